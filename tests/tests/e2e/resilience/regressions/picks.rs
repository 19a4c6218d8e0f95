//! Requests that were offered to endpoints without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use h2::Reason;
use tokio::{net::TcpListener, task::JoinHandle};
use weft_tests::{Options, Unruly, client, ports, soon, unruly::Mood, upstream::empty, yaml};

use super::{Scene, by, number, stage, until};

/// Soon enough to be at once on a machine that others use, too.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn an_endpoint_without_weight_is_no_other_endpoint() {
    for balancer in ["RoundRobin", "LeastRequest", "Random", "PeakEWMA", "Maglev", "RingHash"] {
        let (refusing, idle) = (Unruly::away("refusing"), Unruly::start("idle").await);
        let weighted = |upstream: &Unruly, weight: u32| {
            format!("{{address: 127.0.0.1, port: {}, weight: {weight}}}", upstream.addr.port())
        };
        let endpoints = [weighted(&refusing, 1), weighted(&idle, 0)];
        let port = ports::free();
        let docs = vec![yaml::gateway(port), yaml::service_with("app", "http", 80, &endpoints), yaml::all_to("app")];
        let policy = format!("loadBalancer: {{type: {balancer}}}\ntimeouts: {{request: 3s}}");
        let scene = Scene::raise(vec![refusing, idle], port, docs, &policy, Options::default()).await;
        let start = Instant::now();
        scene.get().await.assert_refused(503, "connect_failed");
        assert!(start.elapsed() < AT_ONCE, "{balancer}: {:?}", start.elapsed());
        let connects = number(&scene.weft, scene.upstreams[0].addr, "requests").await;
        assert!((1.0..=3.0).contains(&connects), "{balancer}: {connects} attempts");
        assert_eq!(scene.upstreams[1].connections(), 0, "{balancer}: weight 0 is no weight");
    }
}

#[tokio::test]
async fn the_owner_of_a_key_that_goes_away_is_not_asked_for_ever() {
    let policy = "loadBalancer: {type: RingHash, hash: {header: x-key}}\ntimeouts: {request: 3s}\n\
                  retry: {attempts: 2, avoidPreviousHosts: false, retryOn: [503], \
                  backoff: {base: 300ms, max: 300ms, jitter: None}}\nretryBudget: {minPerSecond: 1000}";
    let scene = Scene::new(2, policy).await;
    let key = [("x-key", "7")];
    let (_, reply) = scene.ask("GET", empty(), &key).await;
    let (owner, other) = match by(&reply).unwrap() {
        "app0" => (&scene.upstreams[0], "app1"),
        _ => (&scene.upstreams[1], "app0"),
    };
    owner.script([Mood::Answer(503, "Connection: close\r\n")]);
    let leaves = async {
        until("the first attempt has failed", || owner.count() == 2).await;
        owner.stop().await;
    };
    let ((_, reply), ()) = tokio::join!(scene.ask("GET", empty(), &key), leaves);
    assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some(other)), "{reply:?}");
    let attempts = number(&scene.weft, owner.addr, "requests").await;
    assert!((3.0..=5.0).contains(&attempts), "one that was well, one that failed, and few after that: {attempts}");
}

/// An HTTP/2 upstream that refuses every stream.
struct Refusing {
    addr: std::net::SocketAddr,
    streams: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Refusing {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let streams = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let streams = streams.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let streams = streams.clone();
                    tokio::spawn(async move {
                        let mut connection = h2::server::handshake(stream).await.unwrap();
                        while let Some(Ok((_, mut respond))) = connection.accept().await {
                            streams.fetch_add(1, Ordering::SeqCst);
                            respond.send_reset(Reason::REFUSED_STREAM);
                        }
                    });
                }
            }
        });
        Self { addr, streams, task }
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_refused_stream_is_not_offered_to_the_same_endpoint_for_ever() {
    let scene = stage(vec![Refusing::start().await], "h2c", |upstream| upstream.addr, "timeouts: {request: 3s}").await;
    let start = Instant::now();
    soon("an answer", client::get_once(scene.addr, "a", "/")).await.unwrap().assert_refused(502, "upstream_reset");
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    let streams = scene.upstreams[0].streams.load(Ordering::SeqCst);
    assert!((1..=2).contains(&streams), "{streams} streams");
    let attempts = number(&scene.weft, scene.upstreams[0].addr, "requests").await;
    assert!((1.0..=2.0).contains(&attempts), "{attempts} attempts");
}
