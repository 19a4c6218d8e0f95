//! TCP straight to an endpoint: the proxy is not on the path.

use weft_tests::{
    SOON, eventually,
    mesh::{Banner, Bed, Kind, sockets},
};

use super::{direct, docs, vip};

#[tokio::test]
async fn the_proxy_is_not_on_the_path() {
    let Some(bed) = Bed::make("the_proxy_is_not_on_the_path") else { return };
    let (one, two) = (Banner::start("one").await, Banner::start("two").await);
    let weft = bed.weft(&docs(&[direct("redis", 20, &[one.addr, two.addr])])).await;
    let mut held = Vec::new();
    for to in [vip(20, 6379), "[fd00:96::20]:6379".parse().unwrap(), "[::ffff:10.96.0.20]:6379".parse().unwrap()] {
        let mut connection = bed.hold("web", to).await;
        assert_eq!(connection.say("ping").await, "ping");
        assert_eq!(connection.shown["peer"], serde_json::json!([to.ip().to_string(), 6379]));
        held.push(connection);
    }
    for endpoint in [&one, &two] {
        assert_eq!(sockets(weft.pid, endpoint.addr), 0, "the proxy has no connection to it");
    }
    assert_eq!(sockets(weft.pid, ([127, 0, 0, 1], bed.captured).into()), 0, "nothing came to the proxy");
    // Nor does it work: what it does by itself in the same time is a tick or two.
    let ticks = weft.cpu_ticks();
    let storm = bed.storm("web", Kind::Banner, vip(20, 6379));
    storm.progress(2000).await;
    let used = weft.cpu_ticks() - ticks;
    let tally = storm.calm().await;
    tally.fine();
    assert!(tally.count("one") > 500 && tally.count("two") > 500, "{}", tally.0);
    assert!(used < 100, "2,000 connections took the proxy {used} ticks");
    assert!(weft.metrics().await.sum("weft_verdicts_total", &[("verdict", "proxy")]).abs() < 0.5);

    // It sees them all the same.
    eventually("the kernel's numbers are shown", SOON, async || {
        let mut established = 0;
        for banner in [&one, &two] {
            established += weft.endpoint(banner.addr).await["kernel"]["established"].as_u64().unwrap_or(0);
        }
        established >= 2003
    })
    .await;
    assert!(weft.endpoint(one.addr).await["kernel"]["srtt_ms"].as_f64().is_some_and(|ms| ms > 0.0));
}

#[tokio::test]
async fn connections_are_listed_while_they_live() {
    let Some(bed) = Bed::make("connections_are_listed_while_they_live") else { return };
    let server = Banner::start("one").await;
    let proxied = super::service("mail", 12, "mode: Proxy", "{name: any, port: 25}", &[server.addr]);
    let parts = [direct("redis", 20, &[server.addr]), proxied, super::workload("web")];
    let weft = bed.weft(&docs(&parts)).await;
    assert_eq!(weft.admin_json("/connections").await, serde_json::json!([]));
    let straight = bed.hold("web", vip(20, 6379)).await;
    let through = bed.hold("other", vip(12, 25)).await;
    let shown = weft.admin_json("/connections").await;
    let by_pid = |pid: u32| {
        let found = shown.as_array().unwrap().iter().find(|connection| connection["pid"] == pid);
        found.unwrap_or_else(|| panic!("{pid} is missing: {shown}")).clone()
    };
    assert_eq!(shown.as_array().unwrap().len(), 2, "{shown}");
    let one = by_pid(straight.pid());
    let local = straight.shown["local"].clone();
    assert_eq!(one["source"], format!("{}:{}", local[0].as_str().unwrap(), local[1]));
    assert_eq!(
        [&one["verdict"], &one["workload"], &one["destination"], &one["service"], &one["endpoint"]].map(|v| v.as_str()),
        [Some("direct"), Some("web"), Some("10.96.0.20:6379"), Some("redis:6379"), Some(&*server.addr.to_string())]
    );
    let two = by_pid(through.pid());
    assert_eq!(
        [&two["verdict"], &two["workload"], &two["destination"], &two["service"]].map(|v| v.as_str()),
        [Some("proxy"), None, Some("10.96.0.12:25"), Some("mail:25")]
    );
    drop((straight, through));
    eventually("they are gone", SOON, async || weft.admin_json("/connections").await == serde_json::json!([])).await;
}
