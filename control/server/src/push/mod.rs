//! The push: every change reaches every node, over xDS (delta and state of the world).
//!
//! ```text
//!   store ──▶ hub.rs ─▶ own.rs ─┐                       ┌──▶ stream.rs ◀──▶ a client
//!                               ├─▶ logs.rs ─▶ log.rs ──┤      │ asks
//!   another producer ───────────┘   encoded once        │      ▼
//!                                                       │  order.rs: which type sends next
//!                                                       │      │
//!                                                       │  subscription.rs (delta), sotw.rs: what is pending
//!                                                       │  exchange.rs: what was answered, and how
//!                                                       │
//!   quorum.rs: does this member hear the others?        └──▶ nodes.rs, convergence.rs: what nodes have, and how soon
//! ```
//!
//! A stream has no queue: it is a cursor into the log of each type, with at most one unanswered response. That is also
//! what makes one response of many changes under a storm of them, and there is no other delay: pauses of 10 to 100 ms
//! between what goes out, measured with 200 changes a second to 300 streams, saved neither responses nor time.
//!
//! The engine knows nothing of what resources mean; a producer makes them ([`log::Resource`]) and publishes them
//! ([`Logs::publish`]). A type more is a [`log::TypeSpec`] more in `Push::start`, at its place in the order in which
//! types are sent, and a task that publishes.

mod convergence;
mod exchange;
pub mod fleet;
mod hub;
pub mod log;
pub mod logs;
mod metrics;
pub mod nodes;
mod order;
pub(crate) mod own;
mod protocol;
mod quorum;
mod sotw;
mod stream;
mod subscription;
#[cfg(test)]
mod testing;
mod wire;

use std::{future, marker::PhantomData, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::{Status, Streaming, server::Grpc, server::StreamingService};
use tonic_prost::ProstCodec;
use weft_store::Store;
use weft_wire::{DELTA, SOTW};

use crate::envoy::producer;
use fleet::MemberNodes;
use logs::Logs;
use metrics::Counters;
use nodes::Nodes;
use protocol::Protocol;
use quorum::Health;
use stream::Stream;

/// Largest request: a client may name everything that it has.
const REQUEST_MAX: usize = 64 << 20;
/// How long a stream waits for this member to find out whether it hears the others.
const STARTING: Duration = Duration::from_secs(5);

/// The push of a member.
#[derive(Debug)]
pub struct Push {
    logs: Arc<Logs>,
    nodes: Arc<Nodes>,
    counters: Counters,
    member: String,
    clock: fn() -> u64,
    stopping: watch::Receiver<bool>,
    health: watch::Receiver<Health>,
    /// Ends with it.
    _tasks: JoinSet<()>,
}

impl Push {
    /// Follows `store`. Streams end once `stopping` is true.
    pub(crate) fn start(store: &Store, clock: fn() -> u64, stopping: watch::Receiver<bool>) -> Arc<Self> {
        let specs = [own::OBJECTS, own::ENDPOINTS].into_iter().chain(producer::SPECS);
        let logs = Arc::new(Logs::new(specs.collect()));
        let own = hub::Own { objects: 0, endpoints: 1 };
        let (known, health) = watch::channel(Health::Starting);
        let mut tasks = JoinSet::new();
        tasks.spawn(hub::follow(store.clone(), logs.clone(), own));
        tasks.spawn(producer::follow(store.clone(), logs.clone(), 2));
        tasks.spawn(hub::watch_over(store.clone(), known));
        let member = store.member().1.name.to_string();
        let nodes = Arc::new(Nodes::new(&member, clock, logs.clone()));
        let counters = Counters::new(logs.specs().len());
        Arc::new(Self { logs, nodes, counters, member, clock, stopping, health, _tasks: tasks })
    }

    /// The logs, for a producer of further types.
    pub fn logs(&self) -> &Arc<Logs> {
        &self.logs
    }

    /// The nodes of this member.
    pub(crate) fn nodes(&self, id: u64) -> MemberNodes {
        let (revision, nodes) = (self.nodes.revision(), self.nodes.view());
        MemberNodes { id: id.to_string(), member: self.member.clone(), revision, nodes }
    }

    /// What is said about it, in Prometheus's text format.
    pub(crate) fn metrics(&self) -> String {
        metrics::render(self)
    }

    /// Is it for [`Self::serve`]?
    pub(crate) fn is_stream<B>(request: &Request<B>) -> bool {
        let content_type = request.headers().get(http::header::CONTENT_TYPE);
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
    }

    /// Answers a gRPC request.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<tonic::body::Body> {
        match request.uri().path() {
            DELTA => self.stream::<subscription::Subscription>(request, peer).await,
            SOTW => self.stream::<sotw::Sotw>(request, peer).await,
            path => Status::unimplemented(format!("there is no {path}; there are {DELTA} and {SOTW}")).into_http(),
        }
    }

    async fn stream<P: Protocol>(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<tonic::body::Body> {
        let mut health = self.health.clone();
        // Whatever comes of it, what counts is how it is then.
        let _ = timeout(STARTING, health.wait_for(|health| *health != Health::Starting)).await;
        if *health.borrow() != Health::Serving {
            return stream::lost().into_http();
        }
        let codec = ProstCodec::<P::Response, P::Request>::new();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(REQUEST_MAX);
        grpc.streaming(Service::<P> { push: self.clone(), peer, protocol: PhantomData }, request).await
    }
}

/// What tonic calls when a stream begins.
struct Service<P> {
    push: Arc<Push>,
    peer: SocketAddr,
    protocol: PhantomData<fn() -> P>,
}

type Responses<P> = Pin<Box<dyn futures_util::Stream<Item = Result<<P as Protocol>::Response, Status>> + Send>>;

impl<P: Protocol> StreamingService<P::Request> for Service<P> {
    type Response = P::Response;
    type ResponseStream = Responses<P>;
    type Future = future::Ready<Result<tonic::Response<Responses<P>>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<P::Request>>) -> Self::Future {
        let stream = Stream::<P>::new(self.push.clone(), self.peer, request.into_inner());
        future::ready(Ok(tonic::Response::new(stream.responses())))
    }
}
