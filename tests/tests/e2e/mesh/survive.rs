//! Weft dies, stops and starts while applications connect.

use std::time::Duration;

use rustix::process::Signal;
use weft_tests::{
    Upstream, Weft, eventually,
    mesh::{Banner, Bed, Kind, Tally, now_ns},
};

use super::{direct, docs, http, service, vip};

/// Redis 20: direct; cart 10: through the proxy, closed; open 11: the same, but open while Weft is away.
struct Stage {
    bed: Bed,
    config: String,
    _redis: [Banner; 2],
    _http: Upstream,
}

impl Stage {
    async fn set(test: &str) -> Option<Self> {
        let bed = Bed::make(test)?;
        let redis = [Banner::start("one").await, Banner::start("two").await];
        let upstream = Upstream::h1("app").await;
        let open = "mode: Proxy, failOpen: true";
        let config = docs(&[
            direct("redis", 20, &[redis[0].addr, redis[1].addr]),
            http("cart", 10, &[upstream.addr]),
            service("open", 11, open, "{name: http, port: 80, appProtocol: http}", &[upstream.addr]),
        ]);
        Some(Self { bed, config, _redis: redis, _http: upstream })
    }

    async fn weft(&self) -> Weft {
        self.bed.weft(&self.config).await
    }
}

/// Every failure is a connection that the proxy had when it went, not one that it did not get.
fn only_cut_short(tally: &Tally, ends: &[(u64, u64)]) {
    for failure in tally.failed() {
        assert_eq!(failure["stage"], "transfer", "no connect() failed: {failure}");
        let (start, end) = (failure["start_ns"].as_u64().unwrap(), failure["end_ns"].as_u64().unwrap());
        assert!(ends.iter().any(|(begun, over)| start <= *over && end >= *begun), "{failure}; ends: {ends:?}");
    }
}

/// Failures of a service that fails closed: refused at once, and only while Weft is away.
fn refused_while_away(tally: &Tally, away: &[(u64, u64)]) {
    for failure in tally.failed().iter().filter(|failure| failure["stage"] == "connect") {
        assert_eq!(failure["error"], "ECONNREFUSED", "{failure}");
        let (start, end) = (failure["start_ns"].as_u64().unwrap(), failure["end_ns"].as_u64().unwrap());
        assert!(end - start < 1_000_000_000, "at once: {failure}");
        assert!(away.iter().any(|(begun, over)| start <= *over && end >= *begun), "{failure}; away: {away:?}");
    }
    assert!(tally.failed().iter().any(|failure| failure["stage"] == "connect"), "it was never refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_traffic() {
    let Some(stage) = Stage::set("killed_under_traffic").await else { return };
    let mut weft = stage.weft().await;
    let direct = stage.bed.storm("web", Kind::Banner, vip(20, 6379));
    let open = stage.bed.storm("web", Kind::Get("/x"), vip(11, 80));
    let closed = stage.bed.storm("web", Kind::Get("/x"), vip(10, 80));
    let (mut ends, mut away) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        for storm in [&direct, &open, &closed] {
            storm.progress(50).await;
        }
        let begun = now_ns();
        weft.signal(Signal::KILL);
        weft.wait_exit(Duration::from_secs(10)).await;
        ends.push((begun, now_ns()));
        for storm in [&direct, &open, &closed] {
            storm.progress(50).await;
        }
        weft = stage.weft().await;
        away.push((begun, now_ns()));
    }
    for storm in [&direct, &open, &closed] {
        storm.progress(50).await;
    }
    let tally = direct.calm().await;
    tally.fine();
    assert!(tally.count("one") > 0 && tally.count("two") > 0, "{}", tally.0);
    let tally = open.calm().await;
    only_cut_short(&tally, &ends);
    assert_eq!(tally.names(), ["200"], "{}", tally.0);
    let tally = closed.calm().await;
    refused_while_away(&tally, &away);
    assert_eq!(tally.names(), ["200"], "{}", tally.0);
    assert_eq!(stage.bed.get("web", "http://10.96.0.10/").await["upstream"], "app");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_under_traffic() {
    let Some(stage) = Stage::set("restarted_under_traffic").await else { return };
    let mut weft = stage.weft().await;
    let direct = stage.bed.storm("web", Kind::Banner, vip(20, 6379));
    let open = stage.bed.storm("web", Kind::Get("/x"), vip(11, 80));
    let closed = stage.bed.storm("web", Kind::Get("/x"), vip(10, 80));
    let mut away = Vec::new();
    for _ in 0..3 {
        for storm in [&direct, &open, &closed] {
            storm.progress(50).await;
        }
        let begun = now_ns();
        weft.signal(Signal::TERM);
        assert!(weft.wait_exit(Duration::from_secs(40)).await.success());
        weft = stage.weft().await;
        away.push((begun, now_ns()));
    }
    for storm in [&direct, &open, &closed] {
        storm.progress(50).await;
    }
    direct.calm().await.fine();
    // A Weft that is told to stop finishes what it has: nothing is cut short, nothing refused.
    let tally = open.calm().await;
    tally.fine();
    assert_eq!(tally.names(), ["200"], "{}", tally.0);
    let tally = closed.calm().await;
    for failure in tally.failed() {
        assert_eq!(failure["stage"], "connect", "nothing is cut short: {failure}");
    }
    if !tally.failed().is_empty() {
        refused_while_away(&tally, &away);
    }
    assert_eq!(tally.names(), ["200"], "{}", tally.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_change_under_traffic() {
    let Some(bed) = Bed::make("endpoints_change_under_traffic") else { return };
    let banners = [Banner::start("one").await, Banner::start("two").await, Banner::start("three").await];
    let upstreams = [Upstream::h1("a").await, Upstream::h1("b").await];
    let config = |round: usize| {
        let redis = [banners[round % 3].addr, banners[(round + 1) % 3].addr];
        docs(&[direct("redis", 20, &redis), http("cart", 10, &[upstreams[round % 2].addr])])
    };
    let weft = bed.weft(&config(0)).await;
    let straight = bed.storm("web", Kind::Banner, vip(20, 6379));
    let through = bed.storm("web", Kind::Get("/x"), vip(10, 80));
    for round in 1..=12 {
        straight.progress(30).await;
        through.progress(30).await;
        weft.apply(&config(round)).await;
    }
    // In the end there are one and two.
    eventually("the kernel has followed", Duration::from_secs(10), async || {
        let shown = weft.admin_json("/ebpf").await;
        let maps = shown["maps"].as_array().unwrap().clone();
        maps.iter().any(|map| map["map"] == "ENDPOINTS" && map["used"] == 3)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let since = now_ns();
    straight.progress(200).await;
    let tally = straight.calm().await;
    tally.fine();
    assert!(tally.last_ns("three") < since && tally.last_ns("one") > since && tally.last_ns("two") > since);
    let tally = through.calm().await;
    tally.fine();
    assert_eq!(tally.names(), ["200"], "{}", tally.0);
}
