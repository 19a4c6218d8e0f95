//! Endpoints that were blamed for what others did, or were not blamed for what they did.

use std::{net::SocketAddr, time::Duration};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use weft_tests::{Client, Options, Unruly, Wire, ports, soon, unruly::Mood, upstream::empty, upstream::full, yaml};

use super::{Scene, blamed, by, nobody, number, tagged, until};

/// Two failures in a row, and nothing else.
const TWO: &str =
    "circuitBreaker: {consecutiveFailures: 2, failureRate: {minimumRequests: 10000}, baseEjectionTime: 30s}";

/// An address at which connections neither succeed nor fail: a listener that has no room for more.
struct BlackHole {
    addr: SocketAddr,
    _listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    async fn open() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(addr)).await {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 10, "the backlog is never full");
        }
        Self { addr, _listener: listener, _waiting: waiting }
    }
}

#[tokio::test]
async fn a_black_hole_is_not_the_client_s_fault() {
    let (hole, other) = (BlackHole::open().await, Unruly::start("other").await);
    let port = ports::free();
    let endpoints = [hole.addr, other.addr];
    let docs = vec![yaml::gateway(port), yaml::service("app", "http", &endpoints), yaml::all_to("app")];
    let policy = format!(
        "{TWO}\nretry: {{attempts: 2, perTryTimeout: 200ms, retryOn: [gateway-error, per-try-timeout], \
         backoff: {{base: 5ms, max: 20ms}}}}\nretryBudget: {{minPerSecond: 1000}}\ntimeouts: {{request: 8s}}"
    );
    let scene = Scene::raise(vec![other], port, docs, &policy, Options::default()).await;
    for _ in 0..6 {
        let (id, reply) = scene.ask("PUT", full("pay"), &[]).await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("other")), "{reply:?}");
        let arrivals = scene.upstreams[0].arrivals();
        let bodies: Vec<_> = arrivals.iter().filter(|arrival| arrival.id == id).map(|arrival| &arrival.body).collect();
        assert_eq!(bodies, [b"pay"], "once, and whole");
    }
    let endpoint = scene.weft.until_breaker(hole.addr, "open").await;
    assert_eq!(endpoint["evidence"], "2 of 2 failed: upstream_timeout ×2", "{endpoint}");
    assert_eq!(blamed(&scene.weft, scene.upstreams[0].addr).await, nobody());
}

#[tokio::test]
async fn a_client_that_stops_in_its_body_is_to_blame_itself() {
    let retry = "retry: {attempts: 2, retryOn: [5xx, per-try-timeout], backoff: {base: 5ms, max: 20ms}";
    for policy in
        [format!("{TWO}\n{retry}, perTryTimeout: 300ms}}"), format!("{TWO}\n{retry}}}\ntimeouts: {{request: 300ms}}")]
    {
        let scene = Scene::new(2, &policy).await;
        for _ in 0..3 {
            let mut wire = Wire::connect(scene.addr).await;
            wire.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123").await;
            let response = wire.response_to("PUT").await;
            let told = (response.status, response.header("x-weft-reason"));
            assert_eq!(told, (408, Some("request_timeout")), "{policy}: {response:?}");
        }
        assert_eq!(scene.count(), 3, "{policy}: nothing is tried again");
        for upstream in &scene.upstreams {
            assert_eq!(blamed(&scene.weft, upstream.addr).await, nobody(), "{policy}");
        }
    }
}

#[tokio::test]
async fn a_delay_beyond_the_time_out_is_nobody_s_fault() {
    let policy = format!("{TWO}\nfault: {{delay: {{fixed: 400ms, percent: 100}}}}\ntimeouts: {{request: 200ms}}");
    let scene = Scene::new(1, &policy).await;
    for _ in 0..4 {
        scene.get().await.assert_refused(504, "deadline_exceeded");
    }
    let upstream = &scene.upstreams[0];
    assert_eq!((scene.count(), upstream.connections()), (0, 0));
    assert_eq!(blamed(&scene.weft, upstream.addr).await, nobody());
    scene.weft.until_metric("weft_requests_total", &[("reason", "deadline_exceeded"), ("code", "504")], 4).await;
}

#[tokio::test]
async fn hedges_do_not_hide_a_hung_endpoint() {
    let policy = "hedge: {after: 50ms}\nretryBudget: {minPerSecond: 1000}\nloadBalancer: {type: PeakEWMA}\n\
                  timeouts: {request: 3s}";
    let scene = Scene::new(2, policy).await;
    for _ in 0..20 {
        assert_eq!(scene.get().await.status, 200);
    }
    let [one, other] = [&scene.upstreams[0], &scene.upstreams[1]];
    let ewma = async |upstream: &Unruly| number(&scene.weft, upstream.addr, "ewma_ms").await;
    // The one that would be asked next.
    let hung = if ewma(one).await <= ewma(other).await { one } else { other };
    hung.set(Mood::Hang);
    let before = hung.count();
    let mut most: f64 = 0.0;
    for _ in 0..60 {
        let reply = scene.get().await;
        assert_eq!(reply.status, 200, "{reply:?}");
        most = most.max(ewma(hung).await);
    }
    let asked = hung.count() - before;
    assert!((1..20).contains(&asked), "{asked} of 60 requests went there");
    assert!(most >= 40.0, "it took at least as long as its rivals waited: {most}");
}

#[tokio::test]
async fn a_client_s_short_patience_is_known_to_the_balancer_alone() {
    let scene = Scene::new(1, TWO).await;
    let upstream = &scene.upstreams[0];
    for _ in 0..5 {
        assert_eq!(scene.get().await.status, 200);
    }
    let before = number(&scene.weft, upstream.addr, "ewma_ms").await;
    upstream.set(Mood::Hang);
    for _ in 0..4 {
        let (_, reply) = scene.ask("GET", empty(), &[("x-envoy-expected-rq-timeout-ms", "300")]).await;
        reply.assert_refused(504, "upstream_timeout");
    }
    let after = number(&scene.weft, upstream.addr, "ewma_ms").await;
    assert!(after > before + 100.0, "{before} ms, then {after} ms");
    assert_eq!(scene.weft.breaker(upstream.addr).await, "closed");
    until("what nobody waits for is cancelled", || upstream.cancelled() == 4).await;
}

#[tokio::test]
async fn waiting_for_a_connection_is_no_slow_call() {
    let policy = "connectionPool: {maxConnections: 1}\ntimeouts: {request: 9s}\n\
                  circuitBreaker: {slowCalls: {threshold: 400ms, percent: 20, minimumRequests: 4}}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::Slow(Duration::from_millis(80), 200));
    for reply in scene.at_once(16).await {
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app0")), "{reply:?}");
    }
    let arrivals = upstream.arrivals();
    let took = arrivals[15].at - arrivals[0].at;
    assert!(took > Duration::from_secs(1), "most of them waited: {took:?}");
    assert_eq!(blamed(&scene.weft, upstream.addr).await, nobody());
    let ewma = number(&scene.weft, upstream.addr, "ewma_ms").await;
    assert!(ewma < 400.0, "{ewma} ms");
}

#[tokio::test]
async fn a_client_that_waits_for_a_connection_in_vain_blames_nobody() {
    let scene = Scene::new(1, &format!("{TWO}\nconnectionPool: {{maxConnections: 1}}")).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::Hang);
    let (_, request) = tagged("GET", empty(), &[]);
    let mut first = Client::h1(scene.addr).await.unwrap();
    let holds = tokio::spawn(async move { first.send(request).await });
    until("the only connection is taken", || upstream.count() == 1).await;
    for _ in 0..3 {
        let (_, reply) = scene.ask("GET", empty(), &[("x-envoy-expected-rq-timeout-ms", "100")]).await;
        reply.assert_refused(503, "overloaded");
    }
    assert_eq!((upstream.count(), blamed(&scene.weft, upstream.addr).await), (1, nobody()));
    holds.abort();
    assert!(soon("its end", holds).await.unwrap_err().is_cancelled());
}
