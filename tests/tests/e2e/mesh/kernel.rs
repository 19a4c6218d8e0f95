//! The kernel side of a node, as its operator sees it.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use weft_tests::{
    SOON, Upstream, eventually,
    mesh::{Banner, Bed, Kind, now_ns},
    weft,
    yaml::policy,
};

use super::{allow, direct, docs, http, service, vip, workload};

#[tokio::test]
async fn the_proxys_own_connections_are_never_captured() {
    let Some(bed) = Bed::make("the_proxys_own_connections_are_never_captured") else { return };
    let upstream = Upstream::h1("app").await;
    // An endpoint that is itself the address of a service: a captured proxy would come back to itself. Otherwise nobody
    // is there, or somebody who is not one of us.
    let loops: SocketAddr = "[fd00:96::10]:80".parse().unwrap();
    let parts = [http("cart", 10, &[upstream.addr]), http("loop", 11, &[loops]), workload("web")];
    let config = docs(&[docs(&parts), policy("loop", "timeouts: {connect: 200ms, request: 2s}")]);
    for through in [Vec::new(), bed.inside("web"), bed.inside("")] {
        let options = weft_tests::Options { through: through.clone(), ..bed.options() };
        let weft = weft_tests::Weft::start_with(&config, options).await;
        assert_eq!(bed.get("web", "http://10.96.0.10/").await["upstream"], "app");
        let before = upstream.seen.count();
        let out = bed.curl("web", &["-i", "http://10.96.0.11/"]).await;
        assert!(!out.stdout.contains("\"upstream\""), "{through:?}: {}", out.stdout);
        assert_eq!(upstream.seen.count(), before, "{through:?}: its connection was captured");
        let metrics = weft.metrics().await;
        let own = metrics.sum("weft_verdicts_total", &[("verdict", "pass"), ("reason", "own_connection")]);
        assert!(own >= 2.0, "{through:?}: {own}");
        // Where it went is not where it came from: whoever else is there is still a workload.
        assert_eq!(bed.get("", "http://10.96.0.10/").await["upstream"], "app");
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_taken_again() {
    let Some(bed) = Bed::make("a_dead_endpoint_is_passed_over_and_taken_again") else { return };
    let (one, two) = (Banner::start("one").await, Banner::start("two").await);
    let (alive, dead) = (one.addr, two.addr);
    let breaker = policy("redis", "circuitBreaker: {consecutiveFailures: 3, baseEjectionTime: 1s}");
    let weft = bed.weft(&docs(&[direct("redis", 20, &[alive, dead]), breaker])).await;
    let storm = bed.storm("web", Kind::Banner, vip(20, 6379));
    storm.progress(100).await;
    assert_eq!(two.stop().await, dead);
    storm.progress(600).await;
    let tally = storm.calm().await;
    // The first refusal was seen by an application; whoever connected after it met somebody else.
    let failed: Vec<_> = tally.failed().iter().filter(|failure| failure["stage"] == "connect").collect();
    let first = failed.iter().map(|failure| failure["end_ns"].as_u64().unwrap()).min().unwrap_or(u64::MAX);
    let late = |ns: u64| ns > first && ns - first < 500_000_000;
    for failure in &failed {
        assert_eq!(failure["error"], "ECONNREFUSED", "{failure}");
        assert!(!late(failure["start_ns"].as_u64().unwrap()), "{failure}, first: {first}");
    }
    assert!(tally.count("one") > 0 && tally.count("two") > 0, "{}", tally.0);
    eventually("the kernel's refusals are shown", SOON, async || {
        weft.endpoint(dead).await["kernel"]["refused"].as_u64().is_some_and(|refused| refused >= 1)
    })
    .await;
    let back = Banner::at(dead, "back").await;
    let since = now_ns();
    let storm = bed.storm("web", Kind::Banner, vip(20, 6379));
    // Nobody but the proxy finds out.
    eventually("it is taken again", Duration::from_secs(30), async || {
        weft.endpoint(dead).await["kernel"]["established"].as_u64().is_some_and(|count| count > tally.count("two") + 3)
    })
    .await;
    storm.progress(100).await;
    let tally = storm.calm().await;
    assert!(tally.last_ns("back") > since, "{}", tally.0);
    drop((one, back));
}

#[tokio::test]
async fn an_ejected_endpoint_is_masked_in_the_kernel() {
    let Some(bed) = Bed::make("an_ejected_endpoint_is_masked_in_the_kernel") else { return };
    let (good, bad) = (Upstream::h1("good").await, Upstream::h1_with(failing()).await);
    // Through the proxy on one port; straight to the endpoints while it is away.
    let spec = "mode: Proxy, failOpen: true";
    let cart = service("cart", 10, spec, "{name: http, port: 80, appProtocol: http}", &[good.addr, bad.addr]);
    let breaker = policy("cart", "circuitBreaker: {consecutiveFailures: 2, baseEjectionTime: 60s}");
    let weft = bed.weft(&docs(&[cart, breaker])).await;
    let storm = bed.storm("web", Kind::Get("/x"), vip(10, 80));
    weft.until_breaker(bad.addr, "open").await;
    storm.calm().await;
    // The mask is in the kernel's maps: it outlives the proxy, which would have hidden it by itself.
    tokio::time::sleep(Duration::from_millis(200)).await;
    weft.signal(rustix::process::Signal::KILL);
    weft.wait_exit(SOON).await;
    let before = bad.seen.count();
    let storm = bed.storm("web", Kind::Get("/x"), vip(10, 80));
    storm.progress(200).await;
    let tally = storm.calm().await;
    tally.fine();
    assert_eq!(tally.names(), ["200"], "{}", tally.0);
    assert_eq!(bad.seen.count(), before, "nobody went to the ejected endpoint");
}

/// Answers everything with 503.
fn failing() -> weft_tests::upstream::Handler {
    std::sync::Arc::new(|_, _| {
        Box::pin(async {
            let response = ::http::Response::builder().status(503);
            response.body(weft_tests::upstream::full("no")).map_err(Into::into)
        })
    })
}

#[tokio::test]
async fn the_admin_port_shows_programs_and_maps() {
    let Some(bed) = Bed::make("the_admin_port_shows_programs_and_maps") else { return };
    let server = Banner::start("one").await;
    let weft = bed.weft(&docs(&[direct("redis", 20, &[server.addr])])).await;
    let shown = weft.admin_json("/ebpf").await;
    assert_eq!(shown["cgroup"], bed.cgroup.path.to_str().unwrap());
    assert_eq!(shown["proxy"]["alive"], true);
    let programs = shown["programs"].as_array().unwrap();
    assert_eq!(programs.len(), 5, "{shown}");
    assert!(programs.iter().all(|program| program["attached"] == true), "{shown}");
    let used = |name: &str| {
        let maps = shown["maps"].as_array().unwrap();
        maps.iter().find(|map| map["map"] == name).unwrap()["used"].clone()
    };
    // Two addresses, each with its port and all others.
    assert_eq!((used("VIPS"), used("ENDPOINTS")), (json!(4), json!(1)));
    assert_eq!(shown["capture"], json!([format!("127.0.0.1:{}", bed.captured), format!("[::1]:{}", bed.captured)]));
}

#[tokio::test]
async fn a_second_weft_on_the_same_cgroup_is_refused() {
    let Some(bed) = Bed::make("a_second_weft_on_the_same_cgroup_is_refused") else { return };
    let server = Banner::start("one").await;
    let config = docs(&[direct("redis", 20, &[server.addr])]);
    let first = bed.weft(&config).await;
    let path = first.config.to_str().unwrap();
    let cgroup = bed.cgroup.path.to_str().unwrap();
    let args = ["proxy", "--config", path, "--admin", "127.0.0.1:0", "--ebpf", "require", "--cgroup", cgroup];
    let output = weft::run(&args).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another Weft manages") && text.contains(cgroup), "{text}");
    assert_eq!(bed.hold("web", vip(20, 6379)).await.hello(), "one");
}

#[tokio::test]
async fn status_flows_and_unload() {
    let Some(bed) = Bed::make("status_flows_and_unload") else { return };
    let server = Banner::start("one").await;
    let config = docs(&[direct("redis", 20, &[server.addr]), workload("web"), allow("redis", "web")]);
    let weft = bed.weft(&config).await;
    let (cgroup, admin) = (bed.cgroup.path.to_str().unwrap(), weft.admin.to_string());
    assert_eq!(bed.hold("web", vip(20, 6379)).await.hello(), "one");
    let refused = bed.curl("other", &["telnet://10.96.0.20:6379"]).await;
    assert_eq!(refused.code, 7, "connection refused: {}", refused.stderr);

    let status = async |args: &[&str]| {
        let args: Vec<&str> = ["ebpf", "status", "-o", "json"].iter().chain(args).copied().collect();
        let output = weft::run(&args).await;
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let points = shown["attach_points"].as_array().unwrap().clone();
        let point = points.into_iter().find(|point| point["cgroup"] == cgroup).unwrap_or_default();
        (output.status.code(), point)
    };
    let count = |point: &serde_json::Value, verdict: &str, reason: &str| {
        let all = point["verdicts"].as_array().unwrap().iter();
        let mut found = all.filter(|count| count["verdict"] == verdict && count["reason"] == reason);
        found.next().and_then(|count| count["count"].as_u64()).unwrap_or(0)
    };
    // By the node, and by what is in the kernel.
    for args in [&["--admin", &admin][..], &["--cgroup", cgroup]] {
        let (code, point) = status(args).await;
        assert_eq!(code, Some(0), "{args:?}: {point}");
        assert_eq!(count(&point, "direct", "service"), 1, "{args:?}: {point}");
        assert_eq!(count(&point, "deny", "access_denied"), 1, "{args:?}: {point}");
    }
    // Not below a Weft that runs.
    let output = weft::run(&["ebpf", "unload", "--cgroup", cgroup]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(bed.hold("web", vip(20, 6379)).await.hello(), "one");
    weft.signal(rustix::process::Signal::TERM);
    weft.wait_exit(SOON).await;
    assert_eq!(bed.hold("web", vip(20, 6379)).await.hello(), "one", "direct works without Weft");
    assert!(bed.cgroup.pins().exist());

    let output = weft::run(&["ebpf", "unload", "--cgroup", cgroup]).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!bed.cgroup.pins().exist(), "no pin is left");
    assert!(!bed.cgroup.children().contains(&"weft-proxy".to_owned()), "nor a cgroup");
    let (code, point) = status(&["--cgroup", cgroup]).await;
    assert_eq!((code, point), (Some(3), serde_json::Value::Null));
    eventually("what was refused is not any more", SOON, async || {
        bed.curl("other", &["--max-time", "1", "telnet://10.96.0.20:6379"]).await.code != 7
    })
    .await;
}
