//! The source against members that these tests play, over sockets.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{future::Future, net::SocketAddr, path::Path, pin::Pin};

use futures_util::Stream as Responses;
use http_body_util::BodyExt;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{JoinHandle, JoinSet},
};
use tonic::{Request, Response, Status as GrpcStatus, Streaming, server::StreamingService};
use tonic_prost::ProstCodec;
use weft_model::Config;
use weft_wire::{
    discovery::{Any, ControlPlane, DeltaRequest, Resource},
    prost::Message,
    resource::{ENDPOINT, OBJECT, Rejected as WireRejected},
};

use super::{
    state::{
        Blame,
        tests::{document, endpoint, gateway, route, service},
    },
    *,
};
use crate::{app::App, options::Options as AppOptions};

const PATIENCE: Duration = Duration::from_secs(20);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: it takes too long"))
}

/// A member.
struct Member {
    address: SocketAddr,
    sessions: UnboundedReceiver<Session>,
    task: JoinHandle<()>,
}

/// A stream, as a member sees it.
struct Session {
    requests: Streaming<DeltaRequest>,
    responses: UnboundedSender<Result<DeltaResponse, GrpcStatus>>,
    nonce: u32,
}

impl Member {
    async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request| {
                    let session = Begin(sender.clone());
                    async move {
                        assert_eq!(http::Request::uri(&request).path(), weft_wire::DELTA);
                        let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
                        Ok::<_, std::convert::Infallible>(grpc.streaming(session, request).await)
                    }
                });
                let server = http2::Builder::new(TokioExecutor::new());
                connections.spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, sessions, task }
    }

    /// The next stream, with the first request of each type.
    async fn session(&mut self) -> (Session, [DeltaRequest; 2]) {
        let mut session = within("a stream", self.sessions.recv()).await.unwrap();
        let first = [session.request().await, session.request().await];
        assert_eq!([&*first[0].type_url, &*first[1].type_url], [OBJECT, ENDPOINT]);
        (session, first)
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

struct Begin(UnboundedSender<Session>);

impl StreamingService<DeltaRequest> for Begin {
    type Response = DeltaResponse;
    type ResponseStream = Pin<Box<dyn Responses<Item = Result<DeltaResponse, GrpcStatus>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, GrpcStatus>>;

    fn call(&mut self, request: Request<Streaming<DeltaRequest>>) -> Self::Future {
        let (responses, outgoing) = unbounded_channel();
        let _ = self.0.send(Session { requests: request.into_inner(), responses, nonce: 0 });
        let outgoing = futures_util::stream::unfold(outgoing, |mut outgoing| async move {
            let response = outgoing.recv().await?;
            Some((response, outgoing))
        });
        std::future::ready(Ok(Response::new(Box::pin(outgoing))))
    }
}

impl Session {
    async fn request(&mut self) -> DeltaRequest {
        within("a request", self.requests.message()).await.unwrap().unwrap()
    }

    /// Sends a response; its nonce.
    fn send(&mut self, type_url: &str, revision: u64, resources: &[Resource], removed: &[&str]) -> String {
        self.nonce += 1;
        let response = DeltaResponse {
            system_version_info: revision.to_string(),
            resources: resources.to_vec(),
            type_url: type_url.into(),
            nonce: self.nonce.to_string(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            control_plane: Some(ControlPlane { identifier: "a".into() }),
        };
        self.responses.send(Ok(response)).unwrap();
        self.nonce.to_string()
    }

    /// The nonce of the next answer, and what is rejected.
    async fn answer(&mut self) -> (String, Vec<String>) {
        let request = self.request().await;
        assert!(request.resource_names_subscribe.is_empty() && request.initial_resource_versions.is_empty());
        let Some(status) = request.error_detail else { return (request.response_nonce, Vec::new()) };
        assert!(status.code == 3 && !status.message.is_empty());
        let name = |detail: &Any| {
            let rejected = WireRejected::decode(&*detail.value).unwrap();
            assert!(!rejected.reason.is_empty());
            rejected.name
        };
        (request.response_nonce, status.details.iter().map(name).collect())
    }
}

/// A node that takes everything.
struct Node {
    status: Arc<Status>,
    reloader: Reloader,
    changes: Receiver<Change>,
    task: JoinHandle<()>,
}

impl Node {
    async fn start(members: &[SocketAddr], cache: &Path) -> Self {
        let source = ControlSource::new(Options {
            addresses: members.iter().map(ToString::to_string).collect(),
            node: "node-1".into(),
            zone: Some("a".into()),
            cache: Some(cache.to_owned()),
        });
        let source = source.await;
        let (status, reloader) = (source.status(), source.reloader());
        let (sender, changes) = mpsc::channel(1);
        Self { status, reloader, changes, task: tokio::spawn(source.run(sender)) }
    }

    async fn change(&mut self) -> Change {
        within("a change", self.changes.recv()).await.unwrap()
    }

    /// Takes the next change.
    async fn take(&mut self) -> Arc<Config> {
        let change = self.change().await;
        let config = change.proposal.config.clone();
        change.outcome.send(Ok(())).unwrap();
        config
    }

    async fn stop(self) {
        drop(self.changes);
        within("the end", self.task).await.unwrap();
    }
}

fn versions(request: &DeltaRequest) -> Vec<String> {
    let versions = request.initial_resource_versions.iter();
    let mut versions: Vec<_> = versions.map(|(name, version)| format!("{name}={version}")).collect();
    versions.sort();
    versions
}

#[tokio::test]
async fn an_answer_comes_after_the_configuration_is_in_force() {
    let (mut member, dir) = (Member::start().await, TempDir::new().unwrap());
    let mut node = Node::start(&[member.address], dir.path()).await;
    let (mut session, first) = member.session().await;
    let who = first[0].node.clone().unwrap();
    assert_eq!((&*who.id, &*who.user_agent_name, &*who.locality.unwrap().zone), ("node-1", "weft", "a"));
    assert_eq!((first[0].resource_names_subscribe.clone(), versions(&first[1])), (vec!["*".to_owned()], vec![]));

    // Endpoints alone are no configuration.
    session.send(ENDPOINT, 7, &[endpoint("web", "10.0.0.2:80", 7, 1)], &[]);
    session.send(OBJECT, 7, &[service("web", 3, &[80])], &[]);
    let change = node.change().await;
    assert_eq!(change.proposal.config.services[0].endpoints.len(), 2, "both types make one configuration");
    let early = tokio::time::timeout(Duration::from_millis(50), session.requests.message()).await;
    assert!(early.is_err(), "answered before it is in force: {early:?}");
    change.outcome.send(Ok(())).unwrap();
    assert_eq!(session.answer().await, ("2".into(), vec![]));
    assert_eq!(session.answer().await, ("1".into(), vec![]));
    let shown = node.status.shown();
    assert_eq!((&shown["member"], &shown["revision"], &shown["connected"]), (&"a".into(), &7.into(), &true.into()));

    // What is not valid is rejected by name, and nothing is asked of the host.
    let bad = document("Service", "cart", 8, serde_json::json!({"ports": 1}));
    session.send(OBJECT, 8, &[bad], &[]);
    assert_eq!(session.answer().await, ("3".into(), vec!["Service/default/cart".into()]));
    assert_eq!(node.status.shown()["rejected"][0]["name"], "Service/default/cart");
    // Whatever this host refuses is rejected too, and its rejections stay until something changes.
    session.send(OBJECT, 9, &[gateway("edge", 9, 8001)], &[]);
    let change = node.change().await;
    let blamed = vec![Blame { suspects: vec![vec!["Gateway/default/edge".into()]], reason: "taken".into() }];
    change.outcome.send(Err(Refusal { reason: "no".into(), blamed })).unwrap();
    let both = vec!["Gateway/default/edge".to_owned(), "Service/default/cart".to_owned()];
    assert_eq!(session.answer().await, ("4".into(), both));
    session.send(OBJECT, 10, &[], &["Service/default/cart"]);
    let change = node.change().await;
    change.outcome.send(Ok(())).unwrap();
    let mut answer = session.answer().await;
    // The retry may have come before the removal.
    if answer.0 == "4" {
        assert_eq!(answer.1, ["Service/default/cart"]);
        answer = session.answer().await;
    }
    assert_eq!(answer, ("5".into(), vec![]));
    node.stop().await;
    member.stop().await;
}

#[tokio::test]
async fn another_member_is_told_what_is_here_already() {
    let (mut one, mut other, dir) = (Member::start().await, Member::start().await, TempDir::new().unwrap());
    let mut node = Node::start(&[one.address, other.address], dir.path()).await;
    // Either may be the first.
    let begun = tokio::select! {
        session = one.sessions.recv() => (session.unwrap(), true),
        session = other.sessions.recv() => (session.unwrap(), false),
    };
    let (mut session, is_one) = begun;
    session.request().await;
    session.request().await;
    let all = [service("web", 3, &[80]), service("cart", 4, &[80])];
    session.send(OBJECT, 10, &all, &[]);
    session.send(ENDPOINT, 10, &[endpoint("web", "10.0.0.2:80", 7, 1)], &[]);
    node.take().await;
    session.answer().await;
    session.answer().await;
    let (killed, mut left) = if is_one { (one, other) } else { (other, one) };
    killed.stop().await;
    let (mut session, first) = left.session().await;
    assert_eq!(versions(&first[0]), ["Service/default/cart=4", "Service/default/web=3"]);
    assert_eq!(versions(&first[1]), ["default/web/10.0.0.2:80=7"]);
    // Only what is different comes.
    session.send(OBJECT, 12, &[], &["Service/default/cart"]);
    session.send(ENDPOINT, 12, &[], &["default/web/10.0.0.2:80"]);
    assert!(!node.take().await.services.is_empty());
    session.answer().await;
    session.answer().await;
    let shown = node.status.shown();
    assert_eq!((&shown["reconnects"], &shown["revision"]), (&1.into(), &12.into()));
    // Nobody is left: what is in force stays, and the node says so.
    let address = left.address;
    left.stop().await;
    within("the loss is noticed", async {
        while node.status.is_connected() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(node.changes.try_recv().is_err());
    let mut back = Member::at(address).await;
    let (mut session, first) = back.session().await;
    assert_eq!(versions(&first[0]), ["Service/default/web=3"]);
    session.send(OBJECT, 13, &[service("web", 13, &[80, 81])], &[]);
    assert_eq!(node.take().await.services[0].ports.len(), 2);
    node.stop().await;
    back.stop().await;
}

#[tokio::test]
async fn a_member_that_says_nothing_is_left() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut member, dir) = (Member::start().await, TempDir::new().unwrap());
    let mut node = Node::start(&[silent.local_addr().unwrap()], dir.path()).await;
    // Held open, and never read.
    let held = within("a connection", silent.accept()).await.unwrap();
    within("it is noticed", async {
        while !node.status.waiting_for().contains("does not answer") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    drop((held, silent));
    node.changes.close();
    node.stop().await;
    // One that has gone silent, with another one to go to.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::start(&[silent.local_addr().unwrap(), member.address], dir.path()).await;
    member.session().await;
    node.stop().await;
    member.stop().await;
}

#[tokio::test]
async fn a_port_that_becomes_free_is_told_later() {
    let (mut member, dir) = (Member::start().await, TempDir::new().unwrap());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = AppOptions { workers: 1, pin_workers: false, captured: vec![], ..AppOptions::default() };
    let mut app = App::start(options, None).unwrap();
    let mut node = Node::start(&[member.address], dir.path()).await;
    app.follows(node.status.clone());
    let applying = tokio::spawn(async move {
        while let Some(Change { proposal, outcome }) = node.changes.recv().await {
            let applied = app.apply(proposal.config.clone()).await;
            let _ = outcome.send(applied.map_err(|error| refusal(&error, &proposal.config)));
        }
    });
    let (mut session, _) = member.session().await;
    session.send(OBJECT, 5, &[service("web", 3, &[80]), gateway("edge", 4, port), route("all", 5, "edge", "web")], &[]);
    session.send(ENDPOINT, 5, &[], &[]);
    let rejected = vec!["Gateway/default/edge".to_owned(), "HTTPRoute/default/all".to_owned()];
    assert_eq!(session.answer().await, ("1".into(), rejected));
    assert_eq!(session.answer().await, ("2".into(), vec![]));
    drop(taken);
    // The same nonce: it is in force now.
    assert_eq!(session.answer().await, ("1".into(), vec![]));
    within("it listens", tokio::net::TcpStream::connect(("127.0.0.1", port))).await.unwrap();
    applying.abort();
    member.stop().await;
}

#[tokio::test]
async fn what_was_accepted_survives_a_restart() {
    let (mut member, dir) = (Member::start().await, TempDir::new().unwrap());
    let mut node = Node::start(&[member.address], dir.path()).await;
    let (mut session, _) = member.session().await;
    session.send(OBJECT, 10, &[service("web", 3, &[80])], &[]);
    session.send(ENDPOINT, 10, &[endpoint("web", "10.0.0.2:80", 7, 1)], &[]);
    let before = node.take().await;
    session.answer().await;
    session.answer().await;
    node.stop().await;
    let address = member.address;
    member.stop().await;

    // Nobody is there.
    let mut node = Node::start(&[address], dir.path()).await;
    assert_eq!(node.take().await, before);
    assert_eq!(node.status.shown()["revision"], 7);
    let mut member = Member::at(address).await;
    let (_session, first) = member.session().await;
    assert_eq!((versions(&first[0]).len(), versions(&first[1]).len()), (1, 1));
    node.stop().await;
    member.stop().await;

    // A file that cannot be used is none.
    let file = dir.path().join("accepted");
    let good = std::fs::read(&file).unwrap();
    for bad in [&good[..good.len() / 2], b"kind: Service\n"] {
        std::fs::write(&file, bad).unwrap();
        let mut member = Member::at(address).await;
        let mut node = Node::start(&[address], dir.path()).await;
        let (mut session, first) = member.session().await;
        assert!(first.iter().all(|request| request.initial_resource_versions.is_empty()));
        session.send(OBJECT, 10, &[service("web", 3, &[80])], &[]);
        session.send(ENDPOINT, 10, &[], &[]);
        assert_eq!(node.take().await.services.len(), 1);
        node.stop().await;
        member.stop().await;
        assert_eq!(std::fs::read(file.with_extension("damaged")).unwrap(), bad);
    }
}

#[tokio::test]
async fn a_reload_connects_anew() {
    let (mut member, dir) = (Member::start().await, TempDir::new().unwrap());
    let mut node = Node::start(&[member.address], dir.path()).await;
    let (mut session, _) = member.session().await;
    session.send(OBJECT, 10, &[service("web", 3, &[80])], &[]);
    session.send(ENDPOINT, 10, &[], &[]);
    node.take().await;
    session.answer().await;
    session.answer().await;
    node.reloader.reload();
    let (_session, first) = member.session().await;
    assert_eq!(versions(&first[0]), ["Service/default/web=3"]);
    node.stop().await;
    member.stop().await;
}

#[tokio::test]
async fn nonsense_costs_at_most_the_stream() {
    let (mut member, dir) = (Member::start().await, TempDir::new().unwrap());
    let mut node = Node::start(&[member.address], dir.path()).await;
    let (mut session, _) = member.session().await;
    let nonce = session.send("type.googleapis.com/envoy.config.cluster.v3.Cluster", 1, &[], &[]);
    let answer = session.request().await;
    assert_eq!(answer.response_nonce, nonce);
    assert!(answer.error_detail.unwrap().message.contains("envoy.config.cluster.v3.Cluster"));
    session.send(OBJECT, 10, &[service("web", 3, &[80])], &["what/ever"]);
    session.send(ENDPOINT, 10, &[Resource::default()], &["what/ever"]);
    node.take().await;
    assert_eq!(session.answer().await, ("2".into(), vec![]));
    assert_eq!(session.answer().await, ("3".into(), vec!["".to_owned()]));
    // A member that ends the stream, in any way, is asked again.
    let refused = GrpcStatus::unavailable("this member is behind");
    session.responses.send(Err(refused)).unwrap();
    let (session, first) = member.session().await;
    assert_eq!(versions(&first[0]).len(), 1);
    assert!(node.status.shown()["problem"].as_str().unwrap().contains("this member is behind"));
    drop(session);
    member.session().await;
    node.stop().await;
    member.stop().await;
}

/// Servers of something else.
#[tokio::test]
async fn the_reason_why_there_is_no_configuration_is_told() {
    let dir = TempDir::new().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = web.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = web.accept().await.unwrap();
            let not_found = service_fn(|_: http::Request<hyper::body::Incoming>| async {
                let body = http_body_util::Empty::<bytes::Bytes>::new().map_err(|never| match never {});
                Ok::<_, hyper::Error>(http::Response::builder().status(404).body(body).unwrap())
            });
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), not_found));
        }
    });
    for (address, expected) in [
        (closed, format!("no configuration yet: {closed} cannot be reached: connection refused")),
        (address, format!("no configuration yet: {address} does not answer as a control plane does")),
    ] {
        let node = Node::start(&[address], dir.path()).await;
        within(&expected, async {
            while !node.status.waiting_for().starts_with(&expected) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        node.stop().await;
    }
    serving.abort();
}
