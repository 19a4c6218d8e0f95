//! Verdicts as they are made: from the ring of events to something that can be read, and kept for a while.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use weft_ebpf_abi::{Addr, Event, Reason, Trouble, Verdict};

use crate::names::Names;

/// How many are kept.
const KEPT: usize = 4096;

/// The last events, numbered.
#[derive(Debug, Default)]
pub struct Flows {
    /// Number of the next one; numbers begin with 1.
    next: u64,
    kept: VecDeque<(u64, Event)>,
}

impl Flows {
    /// One more.
    pub fn push(&mut self, event: Event) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.next += 1;
        self.kept.push_back((self.next, event));
    }

    /// Those after number `after`, oldest first. `next` is what to ask for the next time.
    pub fn after(&self, after: u64, names: &Names, lost: u64) -> Value {
        let clock = Clock::now();
        let fresh = self.kept.iter().filter(|(number, _)| *number > after);
        let flows: Vec<Value> = fresh.map(|(number, event)| show(*number, event, names, clock)).collect();
        json!({ "next": self.next, "lost": lost, "flows": flows })
    }
}

/// Both clocks at one moment: events have the kernel's, people the wall's.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: SystemTime,
    kernel_ns: u64,
}

impl Clock {
    /// Now.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), kernel_ns: crate::sys::now_ns() }
    }

    /// Milliseconds since 1970 of a moment that the kernel names.
    pub fn unix_ms(self, at_ns: u64) -> u64 {
        let ago = Duration::from_nanos(self.kernel_ns.saturating_sub(at_ns));
        let at = self.wall.checked_sub(ago).unwrap_or(self.wall);
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

fn show(number: u64, event: &Event, names: &Names, clock: Clock) -> Value {
    let (verdict, reason) = match event.kind {
        Event::TROUBLE if event.reason == Trouble::Refused as u8 => ("trouble", "refused"),
        Event::TROUBLE => ("trouble", "timed_out"),
        kind => (verdict_name(kind), reason_name(event.reason)),
    };
    let end = event.comm.iter().position(|byte| *byte == 0).unwrap_or(event.comm.len());
    json!({
        "number": number,
        "at_ms": clock.unix_ms(event.at_ns),
        "verdict": verdict,
        "reason": reason,
        "workload": names.name(event.workload),
        "pid": event.pid,
        "command": String::from_utf8_lossy(&event.comm[..end]),
        "destination": socket(event.dest, event.dest_port).to_string(),
        "service": names.name(event.service),
        "endpoint": names.endpoint(event.endpoint, event.generation).map(|address| address.to_string()),
    })
}

/// An address of the maps as everybody else writes it.
pub fn socket(addr: Addr, port: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), u16::try_from(port).unwrap_or(0))
}

const VERDICTS: [(Verdict, &str); 4] =
    [(Verdict::Pass, "pass"), (Verdict::Direct, "direct"), (Verdict::Proxy, "proxy"), (Verdict::Deny, "deny")];

const REASONS: [(Reason, &str); 9] = [
    (Reason::NotAService, "not_a_service"),
    (Reason::OwnConnection, "own_connection"),
    (Reason::Service, "service"),
    (Reason::FailOpen, "fail_open"),
    (Reason::AccessDenied, "access_denied"),
    (Reason::ProxyDown, "proxy_down"),
    (Reason::OtherNamespace, "other_namespace"),
    (Reason::NoPort, "no_port"),
    (Reason::NoEndpoint, "no_endpoint"),
];

/// Every verdict with every reason, and the counter of both.
pub fn counters() -> impl Iterator<Item = (&'static str, &'static str, u32)> {
    let pairs = VERDICTS.iter().flat_map(|verdict| REASONS.iter().map(move |reason| (verdict, reason)));
    pairs.map(|((verdict, name), (reason, why))| (*name, *why, weft_ebpf_abi::counter(*verdict, *reason)))
}

/// How a verdict is written.
pub fn verdict_name(verdict: u8) -> &'static str {
    VERDICTS.iter().find(|(of, _)| *of as u8 == verdict).map_or("unknown", |(_, name)| name)
}

/// How a reason is written.
pub fn reason_name(reason: u8) -> &'static str {
    REASONS.iter().find(|(of, _)| *of as u8 == reason).map_or("unknown", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn whoever_asks_again_gets_what_is_new() {
        let mut flows = Flows::default();
        let names = Names::default();
        for pid in 1..=3 {
            flows.push(Event { pid, kind: Verdict::Deny as u8, reason: Reason::NoPort as u8, ..Event::default() });
        }
        let first = flows.after(0, &names, 0);
        assert_eq!(first["flows"].as_array().unwrap().len(), 3);
        assert_eq!(first["flows"][0]["verdict"], "deny");
        assert_eq!(first["flows"][0]["reason"], "no_port");
        flows.push(Event { pid: 4, ..Event::default() });
        let second = flows.after(first["next"].as_u64().unwrap(), &names, 0);
        assert_eq!(second["flows"].as_array().unwrap().len(), 1);
        assert_eq!(second["flows"][0]["pid"], 4);
    }

    #[test]
    fn old_ones_make_room() {
        let mut flows = Flows::default();
        for pid in 0..KEPT as u32 + 10 {
            flows.push(Event { pid, ..Event::default() });
        }
        let all = flows.after(0, &Names::default(), 0);
        assert_eq!(all["flows"].as_array().unwrap().len(), KEPT);
        assert_eq!(all["flows"][0]["pid"], 10);
    }

    #[test]
    fn counters_differ() {
        let mut seen: Vec<u32> = counters().map(|(.., counter)| counter).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), VERDICTS.len() * REASONS.len());
    }
}
