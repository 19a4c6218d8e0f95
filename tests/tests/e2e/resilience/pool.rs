//! `connectionPool.maxConnections` and `maxPendingRequests`: of a service port, for the whole node.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use weft_tests::{
    Client, Options, RawUpstream, Reply, SOON, Upstream, Weft, Wire, client, eventually, ports, soon, tool,
    upstream::Handler,
    websocket::{self, WsEcho},
    within, yaml,
};

use crate::local;

/// Connections that are open at the same time, and the most there ever were.
#[derive(Clone, Default)]
struct Overlap {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Overlap {
    /// Waits until every end that has already arrived has been seen: this test's peers share one thread.
    async fn enter(&self) {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// Answers requests without a body after `pause`.
async fn answering(overlap: &Overlap, pause: Duration) -> RawUpstream {
    let overlap = overlap.clone();
    RawUpstream::start(move |mut wire, _| {
        let overlap = overlap.clone();
        async move {
            overlap.enter().await;
            while wire.read_head().await.is_some() {
                tokio::time::sleep(pause).await;
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            overlap.now.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await
}

fn config(port: u16, protocol: &str, endpoints: &[SocketAddr], policy: &str) -> String {
    yaml::docs(&[
        yaml::gateway(port),
        yaml::all_to("app"),
        yaml::service("app", protocol, endpoints),
        yaml::policy("app", policy),
    ])
}

async fn start(protocol: &str, endpoints: &[SocketAddr], workers: usize, policy: &str) -> (Weft, SocketAddr) {
    let port = ports::free();
    let options = Options { workers, ..Options::default() };
    (Weft::start_with(&config(port, protocol, endpoints, policy), options).await, local(port))
}

/// Open connections and waiting requests, as the admin port has them.
async fn numbers(weft: &Weft) -> (u64, u64) {
    let services = weft.admin_json("/endpoints").await;
    let service = &services[0];
    (service["connections"].as_u64().unwrap(), service["pending"].as_u64().unwrap())
}

async fn until_numbers(weft: &Weft, expected: (u64, u64)) {
    eventually(&format!("{expected:?} connections and waiting requests"), SOON, async || {
        numbers(weft).await == expected
    })
    .await;
}

fn assert_overloaded(reply: &Reply) {
    reply.assert_refused(503, "overloaded");
    assert_eq!(reply.header("retry-after"), None, "nobody knows when: {reply:?}");
    assert!(reply.text().contains("maxPendingRequests"), "{}", reply.text());
}

async fn fifty_clients(workers: usize, endpoints: usize, connections: usize) {
    let overlap = Overlap::default();
    let mut upstreams = Vec::new();
    for _ in 0..endpoints {
        upstreams.push(answering(&overlap, Duration::from_millis(1)).await);
    }
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.addr).collect();
    let policy = format!("connectionPool: {{maxConnections: {connections}}}\nloadBalancer: {{type: RoundRobin}}");
    let (weft, addr) = start("http", &addresses, workers, &policy).await;
    let clients = (0..50).map(|_| async move {
        let mut client = Client::h1(addr).await.unwrap();
        for round in 0..10 {
            let reply = client.get("a", "/").await.unwrap();
            assert_eq!(reply.status, 200, "round {round}: {reply:?}");
        }
    });
    within(Duration::from_secs(60), "all are served", join_all(clients)).await;
    assert_eq!(overlap.most(), connections);
    let (open, pending) = numbers(&weft).await;
    assert!(open <= connections as u64 && pending == 0, "{open} open, {pending} wait");
}

#[tokio::test]
async fn one_connection_serves_the_clients_of_two_workers() {
    fifty_clients(2, 1, 1).await;
}

#[tokio::test]
async fn one_connection_serves_several_endpoints() {
    fifty_clients(1, 3, 1).await;
}

#[tokio::test]
async fn few_connections_serve_several_endpoints_of_several_workers() {
    fifty_clients(4, 3, 3).await;
}

#[tokio::test]
async fn handing_over_keeps_connections() {
    let overlap = Overlap::default();
    let upstream = answering(&overlap, Duration::from_millis(1)).await;
    let (_weft, addr) = start("http", &[upstream.addr], 1, "connectionPool: {maxConnections: 2}").await;
    let clients = (0..20).map(|_| async move {
        let mut client = Client::h1(addr).await.unwrap();
        for _ in 0..10 {
            assert_eq!(client.get("a", "/").await.unwrap().status, 200);
        }
    });
    soon("all are served", join_all(clients)).await;
    assert_eq!(upstream.connections(), 2, "one worker has no reason to close any");
}

#[tokio::test]
async fn who_finds_no_room_to_wait_is_refused_at_once() {
    let upstream = Upstream::h1("app").await;
    let policy = "connectionPool: {maxConnections: 2, maxPendingRequests: 3}";
    let (weft, addr) = start("http", &[upstream.addr], 2, policy).await;
    let replies = join_all((0..20).map(|_| async move {
        let start = Instant::now();
        (client::get_once(addr, "a", "/slow/1500").await.unwrap(), start.elapsed())
    }))
    .await;
    let (served, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|(reply, _)| reply.status == 200);
    assert_eq!((served.len(), refused.len()), (5, 15));
    for (reply, after) in refused {
        assert_overloaded(&reply);
        assert!(reply.text().contains("service app has maxPendingRequests: 3 waiting"), "{}", reply.text());
        assert!(after < Duration::from_millis(1200), "after {after:?}");
    }
    assert_eq!(upstream.seen.count(), 5);
    assert!(upstream.seen.connections.load(Ordering::SeqCst) >= 2);
    let failures = weft.admin_json("/endpoints").await[0]["endpoints"][0]["failures"].clone();
    assert_eq!(failures, 0, "a limit says nothing of an endpoint");
    assert_eq!(client::get_once(addr, "a", "/").await.unwrap().status, 200, "room again");
}

#[tokio::test]
async fn a_limit_of_the_service_is_not_tried_at_other_endpoints() {
    let upstreams = [Upstream::h1("a").await, Upstream::h1("b").await, Upstream::h1("c").await];
    let addresses = upstreams.each_ref().map(|upstream| upstream.addr);
    let policy = "connectionPool: {maxConnections: 1, maxPendingRequests: 0}";
    let (weft, addr) = start("http", &addresses, 1, policy).await;
    let hanging = tokio::spawn(client::get_once(addr, "a", "/hang"));
    until_numbers(&weft, (1, 0)).await;
    assert_overloaded(&client::get_once(addr, "a", "/").await.unwrap());
    let endpoints = weft.admin_json("/endpoints").await;
    let requests = |endpoint: &serde_json::Value| endpoint["requests"].as_u64().unwrap();
    let sent: u64 = endpoints[0]["endpoints"].as_array().unwrap().iter().map(requests).sum();
    assert_eq!(sent, 1, "the one that hangs: {endpoints}");
    let ended = weft.metrics().await.sum("http_client_request_duration_seconds_count", &[]);
    assert!((ended - 1.0).abs() < f64::EPSILON, "one attempt for the one that was refused: {ended}");
    hanging.abort();
}

#[tokio::test]
async fn who_goes_away_stops_waiting() {
    let upstream = Upstream::h1("app").await;
    let policy = "connectionPool: {maxConnections: 1, maxPendingRequests: 1}";
    let (weft, addr) = start("http", &[upstream.addr], 2, policy).await;
    let mut first = Wire::connect(addr).await;
    first.send("GET /slow/3000 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until_numbers(&weft, (1, 0)).await;
    let mut second = Wire::connect(addr).await;
    second.send("GET /second HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until_numbers(&weft, (1, 1)).await;
    assert_overloaded(&client::get_once(addr, "a", "/").await.unwrap());
    drop(second);
    until_numbers(&weft, (1, 0)).await;
    let third = soon("a connection", client::get_once(addr, "a", "/third")).await.unwrap();
    assert_eq!(third.status, 200, "{third:?}");
    assert_eq!(first.read_response().await.status, 200);
    assert!(upstream.seen.to_path("/second").is_empty());
}

#[tokio::test]
async fn who_waits_too_long_is_told_so() {
    let upstream = Upstream::h1("app").await;
    let policy = "connectionPool: {maxConnections: 1}\ntimeouts: {request: 700ms}";
    let (weft, addr) = start("http", &[upstream.addr], 2, policy).await;
    let replies = join_all((0..4).map(|_| client::get_once(addr, "a", "/hang"))).await;
    let mut reasons: Vec<String> =
        replies.into_iter().map(|reply| reply.unwrap().header("x-weft-reason").unwrap().to_owned()).collect();
    reasons.sort_unstable();
    // One had the connection; the endpoint never saw the others.
    assert_eq!(reasons, ["overloaded", "overloaded", "overloaded", "upstream_timeout"]);
    until_numbers(&weft, (0, 0)).await;
    assert_eq!(client::get_once(addr, "a", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn connections_that_break_are_given_back() {
    let upstream = Upstream::h1("app").await;
    let policy = "connectionPool: {maxConnections: 2}";
    let (weft, addr) = start("http", &[upstream.addr], 2, policy).await;
    for path in ["/abort", "/truncate", "/truncate-chunked", "/"] {
        let replies = soon(path, join_all((0..20).map(|_| client::get_once(addr, "a", path)))).await;
        for reply in replies.into_iter().map(Result::unwrap) {
            match path {
                "/abort" => reply.assert_refused(502, "upstream_reset"),
                "/" => assert_eq!(reply.status, 200, "{reply:?}"),
                _ => assert!(reply.error.is_some(), "{reply:?}"),
            }
        }
    }
    eventually("nobody waits and at most two are open", SOON, async || {
        let (open, pending) = numbers(&weft).await;
        open <= 2 && pending == 0
    })
    .await;
    // Clients that leave in the middle of a response take its connection with them.
    for _ in 0..10 {
        let mut wire = Wire::connect(addr).await;
        wire.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(wire.read_exact(1000).await.is_some());
    }
    assert_eq!(soon("an answer", client::get_once(addr, "a", "/")).await.unwrap().status, 200);
}

#[tokio::test]
async fn connections_that_cannot_be_opened_are_given_back() {
    for protocol in ["http", "h2c"] {
        let policy = "connectionPool: {maxConnections: 1, maxPendingRequests: 100}";
        let (weft, addr) = start(protocol, &[ports::refusing()], 2, policy).await;
        let replies = soon("answers", join_all((0..30).map(|_| client::get_once(addr, "a", "/")))).await;
        for reply in replies {
            reply.unwrap().assert_refused(503, "connect_failed");
        }
        until_numbers(&weft, (0, 0)).await;
    }
}

#[tokio::test]
async fn idle_connections_elsewhere_are_closed_for_those_who_wait() {
    let overlap = Overlap::default();
    let upstreams = [answering(&overlap, Duration::ZERO).await, answering(&overlap, Duration::ZERO).await];
    let addresses = upstreams.each_ref().map(|upstream| upstream.addr);
    let policy = "connectionPool: {maxConnections: 1}\nloadBalancer: {type: RoundRobin}\ntimeouts: {request: 3s}";
    let (weft, addr) = start("http", &addresses, 2, policy).await;
    // Nobody else is there: each of them has to find what the one before has left, at whichever worker.
    for _ in 0..60 {
        let reply = client::get_once(addr, "a", "/").await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(numbers(&weft).await, (1, 0));
    }
    assert_eq!(overlap.most(), 1);
    assert!(upstreams.iter().all(|upstream| upstream.connections() > 0));
}

#[tokio::test]
async fn a_limit_that_is_raised_counts_for_those_who_wait() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let limited =
        |limit| config(port, "http", &[upstream.addr], &format!("connectionPool: {{maxConnections: {limit}}}"));
    let options = Options { workers: 2, ..Options::default() };
    let weft = Weft::start_with(&limited(1), options).await;
    let hanging: Vec<_> = (0..5).map(|_| tokio::spawn(client::get_once(local(port), "a", "/hang"))).collect();
    until_numbers(&weft, (1, 4)).await;
    weft.apply(&limited(3)).await;
    until_numbers(&weft, (3, 2)).await;
    weft.apply(&limited(5)).await;
    until_numbers(&weft, (5, 0)).await;
    assert_eq!(upstream.seen.count(), 5);
    hanging.into_iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn a_limit_that_is_lowered_closes_what_is_idle() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let limited =
        |limit| config(port, "http", &[upstream.addr], &format!("connectionPool: {{maxConnections: {limit}}}"));
    let weft = Weft::start_with(&limited(100), Options { workers: 2, ..Options::default() }).await;
    let replies = join_all((0..10).map(|_| client::get_once(local(port), "a", "/slow/500"))).await;
    assert!(replies.into_iter().all(|reply| reply.unwrap().status == 200));
    until_numbers(&weft, (10, 0)).await;
    weft.apply(&limited(4)).await;
    until_numbers(&weft, (4, 0)).await;
    eventually("the upstream sees it", SOON, async || upstream.seen.open.load(Ordering::SeqCst) == 4).await;
}

/// The toolbox, and the most connections that were open when a request came.
fn watched(most: &Arc<AtomicUsize>) -> Handler {
    let (most, tool) = (most.clone(), tool::handler("app"));
    Arc::new(move |request, seen| {
        let (most, tool) = (most.clone(), tool.clone());
        Box::pin(async move {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            most.fetch_max(seen.open.load(Ordering::SeqCst), Ordering::SeqCst);
            tool(request, seen).await
        })
    })
}

#[tokio::test]
async fn http2_connections_count_too() {
    let most = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::h2_with(watched(&most)).await;
    let policy = "connectionPool: {maxConnections: 1, http2: {maxConcurrentStreams: 3}}";
    let (weft, addr) = start("h2c", &[upstream.addr], 2, policy).await;
    let clients = (0..40).map(|_| async move {
        let mut client = Client::h1(addr).await.unwrap();
        for round in 0..10 {
            let reply = client.get("a", "/slow/2").await.unwrap();
            assert_eq!(reply.status, 200, "round {round}: {reply:?}");
        }
    });
    within(Duration::from_secs(60), "all are served", join_all(clients)).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_eq!(numbers(&weft).await, (1, 0));
}

#[tokio::test]
async fn an_http2_connection_that_is_never_idle_is_shared_between_workers() {
    let upstream = Upstream::h2("app").await;
    let policy = "connectionPool: {maxConnections: 1}\ntimeouts: {request: 2s}";
    let (_weft, addr) = start("h2c", &[upstream.addr], 2, policy).await;
    // Enough for every worker to have some, and never all between two requests.
    let clients = (0..12).map(|number| async move {
        let mut client = Client::h1(addr).await.unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            let reply = client.get("a", &format!("/slow/{}", 41 + 17 * number)).await.unwrap();
            assert_eq!(reply.status, 200, "{reply:?}");
        }
    });
    join_all(clients).await;
}

#[tokio::test]
async fn http2_requests_are_refused_by_the_same_limits() {
    let upstream = Upstream::h2("app").await;
    let policy = "connectionPool: {maxConnections: 1, maxPendingRequests: 3, http2: {maxConcurrentStreams: 2}}";
    let (weft, addr) = start("h2c", &[upstream.addr], 1, policy).await;
    assert_eq!(client::get_once(addr, "a", "/").await.unwrap().status, 200, "the connection is there");
    let replies = join_all((0..12).map(|_| client::get_once(addr, "a", "/slow/1000"))).await;
    let (served, refused): (Vec<_>, Vec<_>) =
        replies.into_iter().map(Result::unwrap).partition(|reply| reply.status == 200);
    assert_eq!((served.len(), refused.len()), (5, 7));
    refused.iter().for_each(assert_overloaded);
    assert_eq!(numbers(&weft).await, (1, 0));
    assert_eq!(upstream.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place() {
    let echo = WsEcho::start().await;
    let policy = "connectionPool: {maxConnections: 1, maxPendingRequests: 0}";
    let (weft, addr) = start("http", &[echo.addr], 2, policy).await;
    let socket = websocket::connect(addr, "a", "/").await.unwrap();
    assert_eq!(numbers(&weft).await, (1, 0));
    assert_overloaded(&client::get_once(addr, "a", "/").await.unwrap());
    drop(socket);
    until_numbers(&weft, (0, 0)).await;
    let again = websocket::connect(addr, "a", "/").await;
    assert!(again.is_ok(), "{again:?}");
}

/// A TCP listener in front of `upstream`.
async fn tcp(upstream: SocketAddr, policy: &str) -> (Weft, SocketAddr) {
    let port = ports::free();
    let config = yaml::docs(&[
        yaml::listeners(&[format!("{{name: raw, port: {port}, protocol: TCP}}")]),
        yaml::tcp_route("raw", "app", 80),
        yaml::service("app", "tcp", &[upstream]),
        yaml::policy("app", policy),
    ]);
    (Weft::start_with(&config, Options { workers: 2, ..Options::default() }).await, local(port))
}

#[tokio::test]
async fn tcp_connections_wait_for_a_place_too() {
    let upstream = RawUpstream::start(|mut wire, number| async move {
        wire.send(format!("{number}\n")).await;
        wire.read_to_end().await;
    })
    .await;
    let (weft, addr) = tcp(upstream.addr, "connectionPool: {maxConnections: 1, maxPendingRequests: 2}").await;
    let mut first = Wire::connect(addr).await;
    assert_eq!(first.read_until(b"\n").await.unwrap(), b"0\n");
    let (mut second, leaver) = (Wire::connect(addr).await, Wire::connect(addr).await);
    second.send("early").await;
    until_numbers(&weft, (1, 2)).await;
    Wire::connect(addr).await.expect_closed().await;
    drop(leaver);
    until_numbers(&weft, (1, 1)).await;
    drop(first);
    assert_eq!(soon("a place", second.read_until(b"\n")).await.unwrap(), b"1\n");
    eventually("what it said early has arrived", SOON, async || upstream.all() == "early").await;
    second.reset();
    until_numbers(&weft, (0, 0)).await;
}

#[tokio::test]
async fn mirrors_never_wait_and_never_keep_others_waiting() {
    let (app, mirror) = (Upstream::h1("app").await, Upstream::h1("mirror").await);
    let port = ports::free();
    let filter = format!("{{type: RequestMirror, requestMirror: {{backendRef: {}}}}}", yaml::backend("mirror"));
    let rules = format!(
        "rules:\n- matches: [{{path: {{type: PathPrefix, value: /mirror}}}}]\n  backendRefs: [{}]\n\
         - filters: [{filter}]\n  backendRefs: [{}]\n",
        yaml::backend("mirror"),
        yaml::backend("app")
    );
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", &rules),
        yaml::service("app", "http", &[app.addr]),
        yaml::service("mirror", "http", &[mirror.addr]),
        yaml::policy("mirror", "connectionPool: {maxConnections: 2}"),
    ]);
    let weft = Weft::start_with(&config, Options::default()).await;
    // Copies that never end: one of two places is all they get.
    let hanging: Vec<_> = (0..10).map(|_| tokio::spawn(client::get_once(local(port), "a", "/hang"))).collect();
    eventually("all are at the app", SOON, async || app.seen.count() == 10).await;
    let service = weft.admin_json("/endpoints").await[1].clone();
    assert_eq!(
        (&service["service"], &service["connections"], &service["pending"]),
        (&"mirror".into(), &1.into(), &0.into())
    );
    let reply = soon("a place", client::get_once(local(port), "a", "/mirror")).await.unwrap();
    assert_eq!((reply.status.as_u16(), mirror.seen.to_path("/hang").len()), (200, 1));
    hanging.into_iter().for_each(|task| task.abort());
}
