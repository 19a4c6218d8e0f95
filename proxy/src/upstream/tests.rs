//! Pool and send, against small servers that do what they are told.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::LocalSet,
};

use super::{
    obtain::Patience,
    pool::Lease,
    send::{self, Keep, Slot},
};
use crate::{
    body::RequestBody,
    endpoint::{Endpoint, InFlight},
    error::Reason,
    options::Options,
    snapshot::{Snapshot, Upstream, fixture},
    telemetry::{Telemetry, export::Environment},
    worker::{LocalExec, Shared, Worker},
};

/// What a server does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Do {
    Answer,
    /// Then closes the connection, without having said so.
    AnswerAndClose,
    Close,
    Babble,
}

use Do::{Answer, AnswerAndClose, Babble, Close};

/// A server, and what it saw.
struct Origin {
    address: SocketAddr,
    /// One entry per connection: the methods of its requests.
    seen: Rc<RefCell<Vec<Vec<String>>>>,
}

impl Origin {
    /// Follows `script`, one entry per request; answers once that is over.
    async fn start(script: &[Do]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Rc::<RefCell<Vec<Vec<String>>>>::default();
        let script = Rc::new(RefCell::new(script.iter().copied().collect::<VecDeque<_>>()));
        let shown = seen.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let number = shown.borrow().len();
                shown.borrow_mut().push(Vec::new());
                let (shown, script) = (shown.clone(), script.clone());
                tokio::task::spawn_local(async move {
                    let mut head = Vec::new();
                    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                        if !head.windows(4).any(|end| end == b"\r\n\r\n") {
                            continue;
                        }
                        let method = String::from_utf8(head.split(|byte| *byte == b' ').next().unwrap().to_vec());
                        shown.borrow_mut()[number].push(method.unwrap());
                        head.clear();
                        let action = script.borrow_mut().pop_front().unwrap_or(Answer);
                        let text: &[u8] = match action {
                            Answer | AnswerAndClose => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                            Close => return,
                            Babble => b"what?\r\n\r\n",
                        };
                        stream.write_all(text).await.unwrap();
                        if action != Answer {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.borrow().iter().map(|methods| methods.join(" ")).collect()
    }
}

/// A worker, and an upstream of one endpoint.
struct Client {
    worker: Rc<Worker>,
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    patience: Patience,
}

impl Client {
    fn new(address: SocketAddr, protocol: &str, pool: &str) -> Self {
        let options = Options { node: "test".into(), ..Options::default() };
        let shared = Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            generation: AtomicU64::new(0),
            load: Box::default(),
            requests: Box::new([InFlight::default()]),
            telemetry: Arc::new(Telemetry::new("test", Environment::default(), std::io::sink())),
            shed: crate::layer::shed::Shed::new(1),
            options,
            kernel: None,
        };
        let endpoint = format!("[{{address: {}, port: {}}}]", address.ip(), address.port());
        let service = format!("ports: [{{port: 80, appProtocol: {protocol}}}], endpoints: {endpoint}");
        let policy = format!("targetRefs: [{{group: weft.dev, kind: Service, name: app}}], connectionPool: {{{pool}}}");
        let to = "group: weft.dev, kind: Service, name: app, port: 80";
        let route = format!("parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{{{to}}}]}}]");
        let snapshot = fixture::snapshot(
            &[
                fixture::gateway("edge", "[{name: http, port: 8001, protocol: HTTP}]"),
                fixture::ours("Service", "app", &service),
                fixture::ours("TrafficPolicy", "app", &policy),
                fixture::object("HTTPRoute", "name: r", &route),
            ]
            .concat(),
        );
        snapshot.enforce(&Snapshot::empty(), Instant::now());
        let upstream = snapshot.rules[0].backends.get(0).unwrap().upstream.clone().unwrap();
        let endpoint = upstream.service.endpoints()[0].clone();
        Self { worker: Worker::new(0, Arc::new(shared), Vec::new()), upstream, endpoint, patience: Patience::Wait }
    }

    /// Sends; the reason of a failure, whether nobody has processed the request, and whether it came back.
    async fn send(&self, method: Method) -> Result<(Response<Incoming>, Lease), (Reason, bool, bool)> {
        let uri = if self.upstream.protocol == weft_model::config::AppProtocol::Http { "/" } else { "http://a/" };
        let request = Request::builder().method(method).uri(uri).header("host", "a").body(RequestBody::empty());
        let mut slot = Slot::new(request.unwrap(), Keep::ForReuse);
        slot.patience = self.patience;
        let sent = send::send(&self.worker, &self.upstream, &self.endpoint, &slot, None).await;
        sent.map_err(|error| (error.refusal.reason, error.unprocessed, slot.with(|_| ()).is_some()))
    }

    /// A whole exchange.
    async fn exchange(&self, method: Method) -> Result<u16, (Reason, bool, bool)> {
        let (response, mut lease) = self.send(method).await?;
        lease.finish();
        Ok(response.status().as_u16())
    }

    /// The same service, seen from another worker of the node.
    fn sibling(&self) -> Self {
        let worker = Worker::new(1, self.worker.shared.clone(), Vec::new());
        Self { worker, upstream: self.upstream.clone(), endpoint: self.endpoint.clone(), patience: self.patience }
    }

    fn held(&self) -> usize {
        self.worker.pools.connections()
    }
}

/// On one thread, as in a worker; what hangs fails.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(20), test).await.unwrap() };
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    run(async {
        let origin = Origin::start(&[]).await;
        let client = Client::new(origin.address, "http", "");
        for method in [Method::GET, Method::POST, Method::PUT] {
            assert_eq!(client.exchange(method).await, Ok(200));
            assert_eq!(client.held(), 1);
        }
        assert_eq!(origin.seen(), ["GET POST PUT"]);
        // Two at once need two.
        let (first, second) = (client.send(Method::GET).await.unwrap(), client.send(Method::GET).await.unwrap());
        assert_eq!((origin.seen().len(), client.held()), (2, 0));
        // Without `finish` the response has not been read to its end.
        drop((first, second));
        assert_eq!(client.held(), 0);
    });
}

#[test]
fn a_connection_ends_when_it_is_worn_or_forfeited() {
    run(async {
        let origin = Origin::start(&[]).await;
        let client = Client::new(origin.address, "http", "maxRequestsPerConnection: 2");
        for held in [1, 0, 1] {
            assert_eq!(client.exchange(Method::GET).await, Ok(200));
            assert_eq!(client.held(), held);
        }
        assert_eq!(origin.seen(), ["GET GET", "GET"]);
        let (_, mut lease) = client.send(Method::GET).await.unwrap();
        lease.forfeit();
        lease.finish();
        assert_eq!(client.held(), 0);
    });
}

#[test]
fn a_connection_that_was_closed_meanwhile_costs_nothing() {
    run(async {
        for method in [Method::GET, Method::POST] {
            let origin = Origin::start(&[AnswerAndClose]).await;
            let client = Client::new(origin.address, "http", "");
            assert_eq!(client.exchange(Method::GET).await, Ok(200));
            assert_eq!(client.exchange(method.clone()).await, Ok(200), "{method}");
            assert_eq!(origin.seen(), ["GET".to_owned(), method.to_string()]);
        }
        // Closed when the request is on its way: an idempotent one is sent again, others may have been processed.
        for (method, expected, seen) in [
            (Method::GET, Ok(200), &["GET GET", "GET"][..]),
            (Method::POST, Err((Reason::UpstreamReset, false, false)), &["GET POST"]),
        ] {
            let origin = Origin::start(&[Answer, Close]).await;
            let client = Client::new(origin.address, "http", "");
            assert_eq!(client.exchange(Method::GET).await, Ok(200));
            assert_eq!(client.exchange(method.clone()).await, expected, "{method}");
            assert_eq!(origin.seen(), seen);
        }
    });
}

#[test]
fn failures_are_named() {
    run(async {
        for (action, expected) in
            [(Close, (Reason::UpstreamReset, false, false)), (Babble, (Reason::BadUpstreamResponse, false, false))]
        {
            let origin = Origin::start(&[action]).await;
            let client = Client::new(origin.address, "http", "");
            assert_eq!(client.exchange(Method::GET).await, Err(expected), "{action:?}");
            assert_eq!((origin.seen(), client.held()), (vec!["GET".to_owned()], 0), "a fresh connection is no excuse");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for protocol in ["http", "h2c"] {
            let client = Client::new(nobody, protocol, "");
            assert_eq!(client.exchange(Method::POST).await, Err((Reason::ConnectFailed, true, true)), "{protocol}");
        }
        let origin = Origin::start(&[]).await;
        let client = Client::new(origin.address, "h2c", "");
        let error = client.exchange(Method::GET).await.unwrap_err();
        assert_eq!(error.0, Reason::BadUpstreamResponse, "HTTP/1.1 instead of HTTP/2");
    });
}

#[test]
fn idle_connections_are_swept() {
    run(async {
        let origin = Origin::start(&[]).await;
        let client = Client::new(origin.address, "http", "idleTimeout: 5s");
        assert_eq!(client.exchange(Method::GET).await, Ok(200));
        let now = client.worker.clock.now();
        client.worker.pools.sweep(now + Duration::from_secs(4));
        assert_eq!(client.held(), 1);
        client.worker.pools.sweep(now + Duration::from_secs(5));
        assert_eq!(client.held(), 0);
        // An endpoint that is gone keeps nothing, and gets nothing back.
        assert_eq!(client.exchange(Method::GET).await, Ok(200));
        let (_, mut lease) = client.send(Method::GET).await.unwrap();
        client.endpoint.mark_removed(std::time::Instant::now());
        lease.finish();
        client.worker.pools.sweep(Instant::now());
        assert_eq!(client.held(), 0);
    });
}

/// A server of HTTP/2 that counts its connections.
async fn h2_origin() -> (SocketAddr, Rc<Cell<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Rc::new(Cell::new(0));
    let counted = accepted.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.set(counted.get() + 1);
            let serve = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
            });
            let builder = hyper::server::conn::http2::Builder::new(LocalExec);
            tokio::task::spawn_local(builder.serve_connection(TokioIo::new(stream), serve));
        }
    });
    (address, accepted)
}

#[test]
fn http2_requests_share_a_connection() {
    run(async {
        let (address, accepted) = h2_origin().await;
        let client = Rc::new(Client::new(address, "h2c", "http2: {maxConcurrentStreams: 3}"));
        // All at once: one opens the connection, the others wait for it.
        let send = |_| {
            tokio::task::spawn_local({
                let client = client.clone();
                async move { client.send(Method::GET).await.unwrap() }
            })
        };
        let mut held = Vec::new();
        for task in (0..3).map(send).collect::<Vec<_>>() {
            held.push(task.await.unwrap());
        }
        assert_eq!((accepted.get(), client.held()), (1, 1));
        // All of its streams are taken until one ends.
        held.push(client.send(Method::GET).await.unwrap());
        assert_eq!((accepted.get(), client.held()), (2, 2));
        held.clear();
        for _ in 0..3 {
            assert_eq!(client.exchange(Method::GET).await, Ok(200));
        }
        assert_eq!(accepted.get(), 2);
    });
}

#[test]
fn http2_connections_wear_too() {
    run(async {
        let (address, accepted) = h2_origin().await;
        let client = Client::new(address, "h2c", "maxRequestsPerConnection: 2, idleTimeout: 5s");
        for connections in [1, 1, 2, 2, 3] {
            assert_eq!(client.exchange(Method::GET).await, Ok(200));
            assert_eq!(accepted.get(), connections);
        }
        client.worker.pools.sweep(client.worker.clock.now() + Duration::from_secs(5));
        assert_eq!(client.held(), 0);
    });
}

#[test]
fn a_connection_is_handed_over_as_it_is() {
    run(async {
        let origin = Origin::start(&[]).await;
        let client = Rc::new(Client::new(origin.address, "http", "maxConnections: 1, maxPendingRequests: 3"));
        let places = client.upstream.service.places.clone();
        let (_, mut lease) = client.send(Method::GET).await.unwrap();
        let wait = |_| {
            tokio::task::spawn_local({
                let client = client.clone();
                async move { client.exchange(Method::GET).await }
            })
        };
        let waiting: Vec<_> = (0..3).map(wait).collect();
        while places.numbers() != (1, 3) {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.exchange(Method::GET).await, Err((Reason::Overloaded, true, true)));
        waiting[1].abort();
        lease.finish();
        for (number, task) in waiting.into_iter().enumerate() {
            assert_eq!(task.await.ok(), (number != 1).then_some(Ok(200)));
        }
        assert_eq!((origin.seen(), client.held(), places.numbers()), (vec!["GET GET GET".to_owned()], 1, (1, 0)));
    });
}

#[test]
fn a_copy_takes_what_is_idle_and_never_waits() {
    run(async {
        let origin = Origin::start(&[]).await;
        let mut client = Client::new(origin.address, "http", "maxConnections: 2");
        client.patience = Patience::Never;
        let (_, mut lease) = client.send(Method::GET).await.unwrap();
        assert_eq!(client.exchange(Method::GET).await, Err((Reason::Overloaded, true, true)), "the last place");
        lease.finish();
        assert_eq!(client.exchange(Method::GET).await, Ok(200));
        assert_eq!(origin.seen(), ["GET GET"]);
    });
}

#[test]
fn streams_are_handed_over_too() {
    run(async {
        let (address, accepted) = h2_origin().await;
        let pool = "maxConnections: 1, http2: {maxConcurrentStreams: 2}";
        let client = Rc::new(Client::new(address, "h2c", pool));
        let places = client.upstream.service.places.clone();
        // More than fit, before there is a connection at all.
        let send = |_| {
            tokio::task::spawn_local({
                let client = client.clone();
                async move { client.exchange(Method::GET).await }
            })
        };
        for task in (0..7).map(send).collect::<Vec<_>>() {
            assert_eq!(task.await.unwrap(), Ok(200));
        }
        assert_eq!((accepted.get(), places.numbers()), (1, (1, 0)));
        let held = (client.send(Method::GET).await.unwrap(), client.send(Method::GET).await.unwrap());
        let waiting = send(0);
        while places.numbers() != (1, 1) {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert_eq!(waiting.await.unwrap(), Ok(200));
        assert_eq!((accepted.get(), places.numbers()), (1, (1, 0)));
    });
}

#[test]
fn another_worker_gets_its_turn() {
    run(async {
        let (address, accepted) = h2_origin().await;
        let client = Rc::new(Client::new(address, "h2c", "maxConnections: 1"));
        let (places, sibling) = (client.upstream.service.places.clone(), Rc::new(client.sibling()));
        let exchange = |client: &Rc<Client>| {
            let client = client.clone();
            tokio::task::spawn_local(async move { client.exchange(Method::GET).await })
        };
        let until = async |numbers| {
            while places.numbers() != numbers {
                tokio::task::yield_now().await;
            }
        };
        let endless = client.send(Method::GET).await.unwrap();
        let elsewhere = exchange(&sibling);
        until((1, 1)).await;
        assert_eq!(exchange(&client).await.unwrap(), Ok(200), "the connection is here, so why not");
        // It has gone on for so long that the connection takes no more requests ...
        let now = client.worker.clock.now();
        client.worker.pools.sweep(now);
        let here = exchange(&client);
        until((1, 2)).await;
        // ... but it does not end, and so it may as well be used, for good.
        client.worker.pools.sweep(now + Duration::from_secs(1));
        assert_eq!(here.await.unwrap(), Ok(200));
        for seconds in 2..5 {
            client.worker.pools.sweep(now + Duration::from_secs(seconds));
            assert_eq!(exchange(&client).await.unwrap(), Ok(200));
        }
        drop(endless);
        assert_eq!(elsewhere.await.unwrap(), Ok(200));
        assert_eq!((accepted.get(), client.held(), sibling.held(), places.numbers()), (2, 0, 1, (1, 0)));
    });
}
