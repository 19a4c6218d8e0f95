//! Checkers against real servers that change their mind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use ::http::{HeaderMap, Request, Response, StatusCode, Version};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
};

use super::*;
use crate::resilience::circuit::Circuit;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// Answers with this status.
    Status(u16),
    /// Never answers.
    Hang,
    /// gRPC: this message, and this `grpc-status` in the trailers.
    Grpc(&'static [u8], &'static str),
    /// gRPC: trailers-only with this status.
    GrpcStatus(&'static str),
}

/// Version, URI, header fields and body of the last request.
type Seen = (Version, String, HeaderMap, Bytes);

/// A server on 127.0.0.1 whose behaviour can be changed. Aborted when dropped.
struct Server {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    seen: Arc<Mutex<Option<Seen>>>,
    requests: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn new(http2: bool, mode: Mode) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), http2, mode)
    }

    fn at(listener: TcpListener, http2: bool, mode: Mode) -> Self {
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(Mutex::new(mode));
        let seen = Arc::new(Mutex::new(None));
        let requests = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (now, log, count) = (mode.clone(), seen.clone(), requests.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (now, log, count) = (now.clone(), log.clone(), count.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (now, log, count) = (now.clone(), log.clone(), count.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let uri = head.uri.to_string();
                        *log.lock().unwrap() = Some((head.version, uri, head.headers, body));
                        count.fetch_add(1, SeqCst);
                        let mode = *now.lock().unwrap();
                        Ok::<_, Infallible>(answer(mode).await)
                    }
                });
                connections.spawn(async move {
                    if http2 {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self { address, mode, seen, requests, _tasks: tasks }
    }

    fn become_(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        endpoint(self.address)
    }
}

type Reply = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

async fn answer(mode: Mode) -> Reply {
    let full = |bytes: &'static [u8]| Full::new(Bytes::from_static(bytes));
    match mode {
        Mode::Status(status) => {
            let mut response = Response::new(full(b"a body that nobody reads").boxed());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        }
        Mode::Hang => std::future::pending().await,
        Mode::Grpc(message, status) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            Response::new(full(message).with_trailers(async move { Some(Ok(trailers)) }).boxed())
        }
        Mode::GrpcStatus(status) => {
            let response = Response::builder().header("grpc-status", status);
            response.body(full(b"").boxed()).unwrap()
        }
    }
}

fn endpoint(address: SocketAddr) -> Arc<Endpoint> {
    let now = Instant::now().into_std();
    let circuit = Arc::new(Circuit::new("test".into(), Arc::default(), now));
    Arc::new(Endpoint::new(address, None, None, 1, circuit, now))
}

fn spec(probe: Probe) -> HealthCheck {
    let (interval, timeout) = (Duration::from_millis(20), Duration::from_millis(200));
    HealthCheck { probe, interval, timeout, healthy: 2, unhealthy: 3 }
}

/// Starts a checker and hands over what it reports.
fn check(
    targets: &[&Arc<Endpoint>],
    spec: HealthCheck,
    protocol: AppProtocol,
) -> (Checker, UnboundedReceiver<(u64, Health, String)>) {
    let (sender, receiver) = unbounded_channel();
    let on_change: OnChange = Arc::new(move |endpoint, health, why| {
        assert_eq!(endpoint.health(), health);
        let _ = sender.send((endpoint.id, health, why.to_owned()));
    });
    let targets = targets.iter().map(|&endpoint| endpoint.clone()).collect();
    (Checker::start(&Handle::current(), spec, targets, protocol, None, on_change), receiver)
}

/// Waits for the next report, which must be this one.
async fn expect(reports: &mut UnboundedReceiver<(u64, Health, String)>, health: Health, why: &str) {
    let report = tokio::time::timeout(Duration::from_secs(20), reports.recv()).await;
    let (_, got, reason) = report.expect("a change is reported").expect("the checker lives");
    assert!(got == health && reason.contains(why), "{got:?} because {reason:?} instead of {health:?} because {why:?}");
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn http_1_follows_the_server() {
    let server = Server::new(false, Mode::Status(200)).await;
    let endpoint = server.endpoint();
    let probe = Probe::Http("/healthz?full=1".into());
    let (_checker, mut reports) = check(&[&endpoint], spec(probe), AppProtocol::Http);
    expect(&mut reports, Health::Healthy, "passed").await;
    let (version, uri, headers, _) = server.seen.lock().unwrap().clone().unwrap();
    assert_eq!((version, uri.as_str()), (Version::HTTP_11, "/healthz?full=1"));
    assert_eq!(headers["user-agent"], "weft-health");
    assert_eq!(headers["host"], server.address.to_string());

    server.become_(Mode::Status(503));
    expect(&mut reports, Health::Unhealthy, "status 503").await;
    assert!(!endpoint.usable());
    server.become_(Mode::Status(204));
    expect(&mut reports, Health::Healthy, "passed").await;
    server.become_(Mode::Hang);
    expect(&mut reports, Health::Unhealthy, "no answer within 200ms").await;
    server.become_(Mode::Status(200));
    expect(&mut reports, Health::Healthy, "passed").await;
    // Redirects are not followed, and are not success.
    server.become_(Mode::Status(302));
    expect(&mut reports, Health::Unhealthy, "status 302").await;
    server.become_(Mode::Status(200));
    expect(&mut reports, Health::Healthy, "passed").await;
    let address = server.address;
    drop(server);
    expect(&mut reports, Health::Unhealthy, "").await;
    let server = Server::at(TcpListener::bind(address).await.unwrap(), false, Mode::Status(200));
    expect(&mut reports, Health::Healthy, "passed").await;
    drop(server);
}

#[tokio::test]
async fn a_refused_connection_needs_the_threshold() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for probe in [Probe::Http("/".into()), Probe::Grpc("".into()), Probe::Tcp] {
        let endpoint = endpoint(address);
        let (_checker, mut reports) = check(&[&endpoint], spec(probe), AppProtocol::Http);
        expect(&mut reports, Health::Unhealthy, "cannot connect").await;
    }
}

#[tokio::test]
async fn http_2_has_prior_knowledge() {
    for protocol in [AppProtocol::Http2, AppProtocol::Grpc] {
        let server = Server::new(true, Mode::Status(200)).await;
        let endpoint = server.endpoint();
        let (_checker, mut reports) = check(&[&endpoint], spec(Probe::Http("/up".into())), protocol);
        expect(&mut reports, Health::Healthy, "passed").await;
        let (version, uri, headers, _) = server.seen.lock().unwrap().clone().unwrap();
        assert_eq!((version, uri), (Version::HTTP_2, format!("http://{}/up", server.address)));
        assert_eq!(headers["user-agent"], "weft-health");
        server.become_(Mode::Status(500));
        expect(&mut reports, Health::Unhealthy, "status 500").await;
        server.become_(Mode::Status(200));
        expect(&mut reports, Health::Healthy, "passed").await;
        server.become_(Mode::Hang);
        expect(&mut reports, Health::Unhealthy, "no answer").await;
    }
}

#[tokio::test]
async fn grpc_asks_the_health_service() {
    const SERVING: Mode = Mode::Grpc(b"\0\0\0\0\x02\x08\x01", "0");
    let server = Server::new(true, SERVING).await;
    let endpoint = server.endpoint();
    let (_checker, mut reports) = check(&[&endpoint], spec(Probe::Grpc("shop".into())), AppProtocol::Grpc);
    expect(&mut reports, Health::Healthy, "passed").await;
    let (_, uri, headers, body) = server.seen.lock().unwrap().clone().unwrap();
    assert_eq!(uri, format!("http://{}/grpc.health.v1.Health/Check", server.address));
    assert_eq!(
        (&headers["content-type"], &headers["te"]),
        (&"application/grpc".parse().unwrap(), &"trailers".parse().unwrap())
    );
    assert_eq!(&body[..], b"\0\0\0\0\x06\x0a\x04shop");
    for (mode, why) in [
        (Mode::Grpc(b"\0\0\0\0\x02\x08\x01", "13"), "grpc-status 13"),
        // Says nothing about the call.
        (Mode::Status(200), "not a HealthCheckResponse"),
        (Mode::Grpc(b"\0\0\0\0\x02\x08\x02", "0"), "NOT_SERVING"),
        (Mode::Grpc(b"\0\0\0\0\0", "0"), "UNKNOWN"),
        (Mode::Grpc(b"nonsense", "0"), "not a HealthCheckResponse"),
        (Mode::Grpc(&[0; 10_000], "0"), "not a HealthCheckResponse"),
        (Mode::GrpcStatus("12"), "grpc-status 12"),
        (Mode::Status(404), "status 404"),
        (Mode::Hang, "no answer"),
    ] {
        server.become_(mode);
        expect(&mut reports, Health::Unhealthy, why).await;
        server.become_(SERVING);
        expect(&mut reports, Health::Healthy, "passed").await;
    }
}

#[tokio::test]
async fn tcp_only_connects() {
    let server = Server::new(false, Mode::Hang).await;
    let endpoint = server.endpoint();
    let (_checker, mut reports) = check(&[&endpoint], spec(Probe::Tcp), AppProtocol::Tcp);
    expect(&mut reports, Health::Healthy, "passed").await;
    drop(server);
    expect(&mut reports, Health::Unhealthy, "cannot connect").await;
}

#[tokio::test]
async fn a_dropped_checker_stops_and_keeps_the_verdict() {
    let server = Server::new(false, Mode::Status(500)).await;
    let endpoint = server.endpoint();
    let (checker, mut reports) = check(&[&endpoint], spec(Probe::Http("/".into())), AppProtocol::Http);
    expect(&mut reports, Health::Unhealthy, "500").await;
    drop(checker);
    // The task held the other one.
    eventually("the task ends", || Arc::strong_count(&endpoint) == 1).await;
    assert_eq!(endpoint.health(), Health::Unhealthy);
    // Its successor goes on from there: two successes are needed.
    let before = server.requests.load(SeqCst);
    server.become_(Mode::Status(200));
    let (checker, mut reports) = check(&[&endpoint], spec(Probe::Http("/".into())), AppProtocol::Http);
    expect(&mut reports, Health::Healthy, "passed").await;
    assert!(server.requests.load(SeqCst) >= before + 2);
    server.become_(Mode::Status(500));
    expect(&mut reports, Health::Unhealthy, "500").await;
    checker.forget();
    eventually("the verdict is taken back", || endpoint.health() == Health::Unknown).await;
}

#[tokio::test]
async fn an_update_keeps_those_who_stay_and_forgets_leavers() {
    let (good, bad) = (Server::new(false, Mode::Status(200)).await, Server::new(false, Mode::Status(500)).await);
    let (stays, leaves) = (good.endpoint(), bad.endpoint());
    let (mut checker, mut reports) = check(&[&stays, &leaves], spec(Probe::Http("/".into())), AppProtocol::Http);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let report = tokio::time::timeout(Duration::from_secs(20), reports.recv()).await.unwrap().unwrap();
        seen.push((report.0, report.1));
    }
    seen.sort_by_key(|report| report.0);
    assert_eq!(seen, [(stays.id, Health::Healthy), (leaves.id, Health::Unhealthy)]);
    let comes = bad.endpoint();
    checker.update(vec![comes.clone(), stays.clone()]);
    eventually("the leaver's task ends", || Arc::strong_count(&leaves) == 1).await;
    assert_eq!(leaves.health(), Health::Unknown);
    // Who stays is not reported again, so the next report is about the new one.
    let report = tokio::time::timeout(Duration::from_secs(20), reports.recv()).await.unwrap().unwrap();
    assert_eq!((report.0, report.1), (comes.id, Health::Unhealthy));
    // A removed endpoint is no longer asked, even if nobody updates the checker.
    stays.mark_removed(Instant::now().into_std());
    eventually("the removed one's task ends", || Arc::strong_count(&stays) == 1).await;
}

#[test]
fn intervals_are_jittered() {
    let mut rng = fastrand::Rng::with_seed(3);
    let second = Duration::from_secs(1);
    let all: Vec<Duration> = (0..1000).map(|_| jittered(second, &mut rng)).collect();
    assert!(all.iter().all(|d| *d >= second.mul_f64(0.9) && *d <= second.mul_f64(1.1)));
    assert!(all.iter().any(|d| *d < second.mul_f64(0.92)) && all.iter().any(|d| *d > second.mul_f64(1.08)));
}

#[test]
fn the_host_is_a_name_where_there_is_one() {
    #[rustfmt::skip]
    let table = [
        (None, "10.0.0.1:80", false, "10.0.0.1:80"),
        (None, "[::1]:8080", false, "[::1]:8080"),
        (Some("shop.example"), "10.0.0.1:80", false, "shop.example"),
        (Some("shop.example"), "10.0.0.1:80", true, "shop.example:80"),
        (Some("shop.example"), "10.0.0.1:443", true, "shop.example"),
        (Some("shop.example"), "10.0.0.1:8080", false, "shop.example:8080"),
    ];
    for (name, address, tls, expect) in table {
        let now = Instant::now().into_std();
        let circuit = Arc::new(Circuit::new("test".into(), Arc::default(), now));
        let endpoint = Endpoint::new(address.parse().unwrap(), name.map(Into::into), None, 1, circuit, now);
        assert_eq!(authority(&endpoint, tls), expect);
    }
}

#[tokio::test]
async fn tls_is_verified_and_alpn_decides() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["shop.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = Arc::new(client);
    for http2 in [false, true] {
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        server.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        // TLS in front of an ordinary server.
        let behind = Server::new(http2, Mode::Status(200)).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, to) = (listener.local_addr().unwrap(), behind.address);
        let mut front = JoinSet::new();
        front.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut outer) = acceptor.accept(stream).await else { return };
                    let mut inner = tokio::net::TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                });
            }
        });
        for (name, health, why) in [("shop.test", Health::Healthy, "passed"), ("other.test", Health::Unhealthy, "TLS")]
        {
            let (sender, mut reports) = unbounded_channel();
            let on_change: OnChange = Arc::new(move |endpoint, health, why| {
                let _ = sender.send((endpoint.id, health, why.to_owned()));
            });
            // What the service declares comes second.
            let protocol = if http2 { AppProtocol::Http } else { AppProtocol::Http2 };
            let tls = Some((client.clone(), ServerName::try_from(name).unwrap()));
            let mut spec = spec(Probe::Http("/up".into()));
            spec.timeout = Duration::from_secs(5);
            let _checker = Checker::start(&Handle::current(), spec, vec![endpoint(address)], protocol, tls, on_change);
            expect(&mut reports, health, why).await;
        }
        let (version, uri, ..) = behind.seen.lock().unwrap().clone().unwrap();
        assert_eq!(version, if http2 { Version::HTTP_2 } else { Version::HTTP_11 });
        assert_eq!(uri, if http2 { format!("https://{address}/up") } else { "/up".to_owned() });
    }
}
