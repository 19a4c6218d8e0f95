//! One stream of one client: reads its requests, asks the deciders what to send, and sends it.
//!
//! It runs only when its client can take a response, so what is pending for a client that does not read stays in the
//! log, and is the latest when it does.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::OptionFuture;
use tokio::time::sleep;
use tonic::{Status, Streaming};
use weft_wire::{discovery::Node, prost::Message};

use super::{
    Push, Responses,
    exchange::{Answer, Now, Rejection},
    log::Log,
    logs::Listening,
    metrics::count,
    nodes::{Connection, TypeState},
    order::{Next, Types},
    protocol::Protocol,
    quorum::Health,
    subscription::Batch,
};

/// How long a client that is ahead of this member waits for it.
const AHEAD: Duration = Duration::from_secs(5);
/// Between looks at what wakes nobody.
const LOOK: Duration = Duration::from_millis(100);

/// How far a type of the stream is.
#[derive(Debug)]
struct Progress {
    /// In [`super::convergence`].
    position: u64,
    state: TypeState,
}

/// A stream.
pub(super) struct Stream<P: Protocol> {
    push: Arc<Push>,
    peer: SocketAddr,
    requests: Streaming<P::Request>,
    types: Types<P>,
    progress: BTreeMap<usize, Progress>,
    listening: Listening,
    connection: Option<Connection>,
    /// Since when the client has been ahead of this member.
    ahead: Option<Instant>,
}

/// What a look at the logs came to.
enum Look<R> {
    Send(R),
    /// Nothing until something happens.
    Wait,
    /// Nothing, but look again soon.
    Again,
}

impl<P: Protocol> Stream<P> {
    pub(super) fn new(push: Arc<Push>, peer: SocketAddr, requests: Streaming<P::Request>) -> Self {
        let listening = push.logs.listen();
        let (types, progress) = (Types::default(), BTreeMap::new());
        Self { push, peer, requests, types, progress, listening, connection: None, ahead: None }
    }

    /// The responses, to the end.
    pub(super) fn responses(self) -> Responses<P> {
        Box::pin(futures_util::stream::unfold(Some(self), async |stream| {
            let mut stream = stream?;
            match stream.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(stream))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }))
    }

    /// The next response; none when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<P::Response>, Status> {
        let push = self.push.clone();
        let (mut stopping, mut health) = (push.stopping.clone(), push.health.clone());
        loop {
            let again = match self.look()? {
                Look::Send(response) => return Ok(Some(response)),
                Look::Wait => None,
                Look::Again => Some(sleep(LOOK)),
            };
            let replaced = OptionFuture::from(self.connection.as_ref().map(Connection::replaced));
            tokio::select! {
                // Senders outlive streams, or the server is gone.
                _ = stopping.wait_for(|stopping| *stopping) => {
                    return Err(Status::unavailable("this member stops; connect to another one"));
                }
                _ = health.wait_for(|health| *health == Health::Lost) => return Err(lost()),
                Some(()) = replaced => {
                    let message = "another connection of this node has taken over \
                        (if these are two nodes, give them different names: --node NAME)";
                    return Err(Status::aborted(message));
                }
                request = self.requests.message() => match request {
                    Ok(Some(request)) => self.request(request)?,
                    Ok(None) => return Ok(None),
                    Err(status) => return Err(unreadable(status)),
                },
                () = self.listening.woken() => {}
                Some(()) = OptionFuture::from(again) => {}
            }
        }
    }

    fn request(&mut self, mut request: P::Request) -> Result<(), Status> {
        let node = P::node(&mut request);
        if self.connection.is_none() {
            self.connection = Some(self.push.nodes.connect(known(node)?, self.peer));
        }
        let url = P::type_url(&request);
        let Some(at) = self.push.logs.find(url) else {
            let types = self.push.logs.specs().iter().map(|spec| spec.url).collect::<Vec<_>>().join(", ");
            return Err(Status::invalid_argument(format!(
                "there are no resources of type {url:?} here; types: {types}"
            )));
        };
        let now = self.now();
        let push = self.push.clone();
        let logs = push.logs.read();
        let Some(log) = logs.get(at) else { return Err(Status::internal("a type without a log")) };
        let progress = self.progress.entry(at).or_insert_with(|| {
            self.listening.subscribe(at);
            push.logs.converging(at, |convergence| convergence.joined(log.revision()));
            Progress { position: log.revision(), state: TypeState { since: now.unix_ms, ..TypeState::default() } }
        });
        let asked = self.types.ask(at);
        let answer = asked.request(request, log, now);
        let url = log.spec().url;
        // Nobody should wait for what is logged.
        drop(logs);
        let counters = push.counters.types.get(at);
        match answer {
            Answer::None => return Ok(()),
            Answer::Ack => counters.iter().for_each(|counters| count(&counters.acks, 1)),
            Answer::Nack { new } => {
                counters.iter().for_each(|counters| count(&counters.nacks, 1));
                self.connection.iter().for_each(|connection| report(connection, url, &new));
            }
        }
        let (rejections, more) = asked.exchange().rejections();
        (progress.state.rejections, progress.state.more) = (rejections.into(), more);
        Ok(())
    }

    fn now(&self) -> Now {
        Now { instant: Instant::now(), unix_ms: (self.push.clock)() }
    }

    /// What is to be sent next.
    fn look(&mut self) -> Result<Look<P::Response>, Status> {
        let push = self.push.clone();
        let now = self.now();
        // First, so that what changes from here on wakes this stream.
        self.listening.arm(self.types.open());
        let logs = push.logs.read();
        self.wait_for(&logs, now)?;
        let next = self.types.next(&logs, now).map_err(|_| {
            Status::unavailable("this client was too slow for what is remembered: connect again and say what is there")
        })?;
        let look = match next {
            Next::Send { at, batch, nonce } => self.send(&push, at, &logs[at], batch, nonce),
            Next::Again => Look::Again,
            Next::Wait if self.ahead.is_some() => Look::Again,
            Next::Wait => Look::Wait,
        };
        self.settle(&push, &logs, now);
        Ok(look)
    }

    /// A client that has what this member has not heard of waits for it; not for ever.
    fn wait_for(&mut self, logs: &[Log], now: Now) -> Result<(), Status> {
        let Some(revision) = self.types.ahead_of(logs) else {
            self.ahead = None;
            return Ok(());
        };
        let since = *self.ahead.get_or_insert(now.instant);
        if now.instant.duration_since(since) < AHEAD {
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "this member is only at revision {revision}, and the client has resources of a later one: connect to \
             another member; if the control plane was rebuilt on purpose, make the client forget what it has"
        )))
    }

    fn send(&self, push: &Push, at: usize, log: &Log, batch: Batch, nonce: u64) -> Look<P::Response> {
        let from = self.progress.get(&at).map_or(0, |progress| progress.position);
        push.logs.converging(at, |convergence| convergence.sends(from, batch.revision));
        let resources = batch.resources.len() + batch.removed.len();
        let response = P::response(batch, log.spec().url, nonce, &push.member);
        if let Some(counters) = push.counters.types.get(at) {
            count(&counters.responses, 1);
            count(&counters.resources, resources);
        }
        count(&push.counters.bytes, response.encoded_len());
        Look::Send(response)
    }

    /// Says how far the client is, where that has changed.
    fn settle(&mut self, push: &Push, logs: &[Log], now: Now) {
        for (at, asked) in self.types.iter() {
            let (Some(log), Some(progress)) = (logs.get(at), self.progress.get_mut(&at)) else { continue };
            let (settled, exchange) = (asked.is_settled(log), asked.exchange());
            let (from, state) = (progress.position, &mut progress.state);
            progress.position = if settled { log.revision() } else { from.max(exchange.answered()) };
            if progress.position > from {
                push.logs.converging(at, |convergence| convergence.moved(from, progress.position, now.instant));
            }
            (state.sent, state.acknowledged, state.answered) =
                (exchange.sent_revision(), exchange.acknowledged(), exchange.answered());
            if state.settled.is_some() != settled {
                state.since = now.unix_ms;
            }
            state.settled = settled.then(|| log.head());
            if let Some(connection) = &self.connection {
                connection.update(at, state.clone());
            }
        }
    }
}

impl<P: Protocol> Drop for Stream<P> {
    fn drop(&mut self) {
        let now = Instant::now();
        for (at, progress) in &self.progress {
            self.push.logs.converging(*at, |convergence| convergence.left(progress.position, now));
        }
    }
}

pub(super) fn lost() -> Status {
    Status::unavailable("this member has lost the others; connect to another one")
}

fn known(node: Option<Node>) -> Result<Node, Status> {
    let node = node.filter(|node| !node.id.is_empty());
    node.ok_or_else(|| Status::invalid_argument("the first request of a stream says who asks: node.id is empty"))
}

fn unreadable(status: Status) -> Status {
    match status.code() {
        // What tonic says about what is not protobuf, or is too large.
        tonic::Code::Internal => {
            Status::invalid_argument(format!("what arrived is not a discovery request: {}", status.message()))
        }
        _ => status,
    }
}

/// A NACK is in the log once. What a client says is quoted: it may hold anything.
fn report(connection: &Connection, url: &str, new: &[Rejection]) {
    let (node, short) = (connection.node(), url.rsplit('/').next().unwrap_or(url));
    for rejection in new {
        let (resource, version, reason) = (&*rejection.name, &*rejection.version, &*rejection.reason);
        tracing::warn!(node, resource, r#type = short, version, reason, "a node does not take a resource");
    }
}
