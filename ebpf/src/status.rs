//! What can be seen of the programs from outside, whoever runs them: links, maps, and whether they are called at all.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use serde_json::{Value, json};
use weft_ebpf_abi as abi;

use crate::{
    cgroup::{self, Cgroup},
    flows::{counters, socket},
    pins::Pins,
    programs::{EbpfSetupError, PROGRAMS},
    store::Maps,
    sys,
};

/// Programs, attach point and maps of one attach point.
pub fn of(attach: &Cgroup, pins: &Pins, maps: &Maps) -> Value {
    let programs: Vec<Value> = PROGRAMS
        .iter()
        .map(|(name, _)| match sys::pinned(&pins.link(name)).and_then(|link| sys::link_info(link.as_fd())) {
            Ok(info) => json!({
                "program": name,
                "id": info.program,
                "link": info.id,
                // A link outlives its cgroup, and does nothing then.
                "attached": info.cgroup == attach.id,
            }),
            Err(error) => json!({ "program": name, "attached": false, "error": error.to_string() }),
        })
        .collect();
    let settings = maps.settings.get(&0, 0).unwrap_or_default();
    // 0: it has said that it stops.
    let beat = maps.heartbeat.get(&0, 0).ok().filter(|beat| *beat != 0);
    let age_ns = beat.map(|beat| sys::now_ns().saturating_sub(beat));
    let port = settings.capture_port;
    let captured = [settings.capture4, settings.capture6].into_iter().filter(|addr| !addr.is_unspecified());
    json!({
        "cgroup": attach.path,
        "cgroup_id": attach.id,
        "pins": pins.path(),
        "abi": abi::ABI,
        "programs": programs,
        "proxy": {
            "alive": age_ns.is_some_and(|age_ns| age_ns <= abi::HEARTBEAT_NS),
            "heartbeat_age_ms": age_ns.map(|age_ns| age_ns / 1_000_000),
            "cgroup_id": settings.proxy_cgroup,
        },
        "capture": captured.map(|addr| socket(addr, port).to_string()).collect::<Vec<_>>(),
        "maps": [
            fill("VIPS", maps.vips.keys().flatten().count(), abi::MAX_VIPS),
            fill("ENDPOINTS", endpoints(maps), abi::MAX_ENDPOINTS),
            fill("WORKLOADS", maps.workloads.keys().flatten().count(), abi::MAX_WORKLOADS),
            fill("POLICY", maps.policy.keys().flatten().count(), abi::MAX_POLICIES),
            fill("BLOCKS", maps.blocks.keys().flatten().count(), abi::MAX_BLOCKS),
            fill("CONNECTIONS", maps.connections.keys().flatten().count(), abi::MAX_CONNECTIONS),
        ],
        "verdicts": counters()
            .map(|(verdict, reason, counter)| (verdict, reason, maps.verdict(counter)))
            .filter(|(.., count)| *count > 0)
            .map(|(verdict, reason, count)| json!({ "verdict": verdict, "reason": reason, "count": count }))
            .collect::<Vec<_>>(),
        "lost_events": maps.lost_events(),
    })
}

fn fill(name: &str, used: usize, size: u32) -> Value {
    json!({ "map": name, "used": used, "size": size })
}

fn endpoints(maps: &Maps) -> usize {
    maps.endpoints.iter().flatten().filter(|endpoint| endpoint.service != 0).count()
}

/// Whether programs are called: this process goes below the attach point for a moment, connects to a port of its own host
/// where nobody listens, and looks whether that was counted. Links may look healthy and hang on a cgroup that is gone.
///
/// # Errors
/// When there are no programs, or this process may not move.
pub fn probe(attach: &Cgroup, maps: &Maps) -> Result<bool, EbpfSetupError> {
    let count = || counters().map(|(.., counter)| maps.verdict(counter)).sum::<u64>();
    let before = count();
    let home = cgroup::own()?;
    let there = attach.child(&format!("weft-probe-{}", std::process::id()))?;
    let moved = there.enter();
    if moved.is_ok() {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        // Refused or not: the programs were asked.
        let _ = TcpStream::connect_timeout(&nobody, Duration::from_secs(1));
        home.enter()?;
    }
    let _ = std::fs::remove_dir(&there.path);
    moved?;
    Ok(count() > before)
}
