//! Limits of `connectionPool`, loops, and running out of descriptors.

use std::time::Duration;

use futures_util::future::join_all;
use weft_tests::{Client, Upstream, Weft, Wire, client, ports, soon, yaml};

use crate::{Stage, local};

#[tokio::test]
async fn more_requests_than_allowed_are_refused_by_name() {
    let policy = "connectionPool: {maxRequests: 5}";
    let stage = Stage::with_policy(Upstream::h1("app").await, "http", |upstream| upstream.addr, policy).await;
    let replies = join_all((0..20).map(|_| client::get_once(stage.addr, "a", "/slow/700"))).await;
    let (served, refused): (Vec<_>, Vec<_>) =
        replies.into_iter().map(Result::unwrap).partition(|reply| reply.status == 200);
    assert_eq!(served.len(), 5);
    for reply in refused {
        reply.assert_refused(503, "overloaded");
    }
    assert_eq!(stage.upstream.seen.count(), 5);
    assert_eq!(client::get_once(stage.addr, "a", "/").await.unwrap().status, 200, "room again");
}

#[tokio::test]
async fn a_route_that_leads_back_is_noticed() {
    let port = ports::free();
    let weft = Weft::start(&yaml::simple(port, "http", local(port))).await;
    let reply = soon("an answer", client::get_once(local(port), "a", "/")).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("x-weft-reason")), (508, Some("loop_detected")), "{reply:?}");
    assert_eq!(weft.exited(), None);
}

#[tokio::test]
async fn out_of_descriptors_existing_traffic_flows_and_new_clients_wait() {
    let stage = Stage::h1().await;
    let mut honest = stage.client_h1().await;
    assert_eq!(honest.get("a", "/").await.unwrap().status, 200);
    // Lower the limit of the running process, so that new connections fail in accept().
    let used = stage.weft.usage().descriptors;
    let limit = format!("--nofile={}:{}", used + 20, used + 20);
    let done =
        tokio::process::Command::new("prlimit").args(["--pid", &stage.weft.pid.to_string(), &limit]).status().await;
    if !done.is_ok_and(|status| status.success()) {
        weft_tests::skip("out_of_descriptors", "prlimit is not installed");
        return;
    }
    let mut wires = Vec::new();
    for _ in 0..100 {
        wires.push(Wire::connect(stage.addr).await);
    }
    for _ in 0..20 {
        assert_eq!(soon("existing traffic", honest.get("a", "/")).await.unwrap().status, 200);
    }
    let ticks = stage.weft.cpu_ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(stage.weft.cpu_ticks() - ticks < 30, "accept() is retried in a busy loop");
    drop(wires);
    let reply = soon("a new client", async {
        let mut client = Client::h1(stage.addr).await.unwrap();
        client.get("a", "/").await.unwrap()
    })
    .await;
    assert_eq!(reply.status, 200);
}
