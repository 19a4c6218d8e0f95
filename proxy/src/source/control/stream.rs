//! One stream to one member of a control plane: xDS, delta.

use std::{collections::HashMap, error::Error, io, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, Streaming, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;
use weft_wire::{
    DELTA,
    discovery::{self, Any, DeltaRequest, DeltaResponse, Node},
    resource::{self, REJECTED},
};

use super::state::{Kind, Rejected};

/// For a connection to stand.
const CONNECT: Duration = Duration::from_secs(1);
/// For a member to accept a stream.
const ACCEPT: Duration = Duration::from_secs(10);
/// Between two pings, and for the answer: a member that is gone without a word is noticed within the sum.
const PING: Duration = Duration::from_secs(2);
/// Largest response.
const LARGEST: usize = 1 << 30;
/// What may be on the way before it is read: the first response of a type may be large.
const WINDOW: u32 = 4 << 20;
/// Requests under way. A member answers each response, of which there is one of a type at a time.
const REQUESTS: usize = 16;

/// Why a stream is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// There is no connection.
    Unreachable(String),
    /// The member does not want it, or not any more.
    Refused(Code, String),
    /// The member closed it.
    Closed,
    /// Somebody here wants another one.
    Forced,
    /// Weft failed.
    Defect(String),
}

impl Ended {
    /// For people.
    pub fn explained(&self, address: &str) -> String {
        match self {
            Self::Unreachable(reason) => format!("{address} cannot be reached: {reason}"),
            Self::Refused(Code::Unavailable, reason) => format!("{address} sends no configuration: {reason}"),
            Self::Refused(code, reason) => {
                format!("{address} does not answer as a control plane does ({code:?}): {reason}")
            }
            Self::Closed => format!("{address} closed the connection"),
            Self::Forced => format!("{address} is connected to anew"),
            Self::Defect(error) => format!("a defect in Weft: what {address} sent was not understood: {error}"),
        }
    }

    /// Of a failed call. A connection that breaks is no refusal, although gRPC has one word for both.
    fn of(status: &Status) -> Self {
        let mut source = Error::source(status);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Self::Unreachable(error.kind().to_string());
            }
            if let Some(error) = error.downcast_ref::<hyper::Error>()
                && error.is_timeout()
            {
                return Self::Unreachable("it does not answer pings".into());
            }
            source = error.source();
        }
        Self::Refused(status.code(), status.message().to_owned())
    }
}

/// A stream that stands.
pub struct Stream {
    requests: mpsc::Sender<DeltaRequest>,
    responses: Streaming<DeltaResponse>,
}

impl Stream {
    /// Connects, and asks with `first`.
    pub async fn open(address: &str, first: impl IntoIterator<Item = DeltaRequest>) -> Result<Self, Ended> {
        let unreachable = |error: tonic::transport::Error| Ended::Unreachable(reason(&error));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
            .map_err(unreachable)?;
        let channel = endpoint.connect().await.map_err(unreachable)?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(unreachable)?;
        let (requests, received) = mpsc::channel(REQUESTS);
        for request in first {
            // There is room.
            let _ = requests.try_send(request);
        }
        let outgoing =
            futures_util::stream::unfold(received, |mut received: mpsc::Receiver<DeltaRequest>| async move {
                let request = received.recv().await?;
                Some((request, received))
            });
        let path = PathAndQuery::from_static(DELTA);
        let call = grpc.streaming(Request::new(outgoing), path, ProstCodec::default());
        match tokio::time::timeout(ACCEPT, call).await {
            Ok(Ok(response)) => Ok(Self { requests, responses: response.into_inner() }),
            Ok(Err(status)) => Err(Ended::of(&status)),
            Err(_) => Err(Ended::Unreachable("it accepts connections, but does not answer".into())),
        }
    }

    /// The next response. May be dropped and called again.
    pub async fn next(&mut self) -> Result<DeltaResponse, Ended> {
        match self.responses.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(Ended::Closed),
            Err(status) => Err(Ended::of(&status)),
        }
    }

    /// Sends a request.
    pub async fn send(&self, request: DeltaRequest) -> Result<(), Ended> {
        self.requests.send(request).await.map_err(|_| Ended::Closed)
    }
}

/// The innermost reason is the one that says something.
fn reason(error: &tonic::transport::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<io::Error>() {
        Some(error) => error.kind().to_string(),
        None => innermost.to_string(),
    }
}

/// The first request for a type: all of it, and what is here already.
pub fn subscribe(node: &Node, kind: Kind, versions: Vec<(Arc<str>, Arc<str>)>) -> DeltaRequest {
    let versions = versions.into_iter().map(|(name, version)| (name.to_string(), version.to_string()));
    DeltaRequest {
        node: Some(node.clone()),
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: vec!["*".into()],
        initial_resource_versions: versions.collect(),
        ..DeltaRequest::default()
    }
}

/// The answer to a response of a type that this node does not know.
pub fn unknown(response: &DeltaResponse) -> DeltaRequest {
    let message = format!("this node knows no resources of type {:?}", response.type_url);
    DeltaRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: Some(discovery::Status { code: Code::InvalidArgument as i32, message, details: Vec::new() }),
        ..DeltaRequest::default()
    }
}

/// The answers that one stream has had, and those that it is owed.
#[derive(Debug, Default)]
pub struct Answers(HashMap<Kind, Last>);

/// The last response of a type.
#[derive(Debug)]
struct Last {
    nonce: String,
    revision: u64,
    /// What the answer said was not in force.
    said: Option<Vec<Rejected>>,
}

impl Answers {
    /// A response came.
    pub fn owe(&mut self, kind: Kind, response: &DeltaResponse) {
        let revision = response.system_version_info.parse().unwrap_or(0);
        self.0.insert(kind, Last { nonce: response.nonce.clone(), revision, said: None });
    }

    /// Whether there was a response of this type.
    pub fn heard(&self, kind: Kind) -> bool {
        self.0.contains_key(&kind)
    }

    /// Whether responses may be at hand, or are needed, before it is worth looking at what there is.
    pub fn awaits_more(&self, configured: bool) -> bool {
        let owed = |kind| self.0.get(&kind).is_some_and(|last| last.said.is_none());
        if configured { !Kind::ALL.into_iter().all(owed) } else { !Kind::ALL.into_iter().all(|kind| self.heard(kind)) }
    }

    /// The answer that is due, if one is, and the revision that it is about: the last response is unanswered, or what was
    /// answered is not true any more. It says of everything that is not in force why, so that what it does not name is.
    pub fn give(&mut self, kind: Kind, rejected: Vec<Rejected>) -> Option<(DeltaRequest, u64)> {
        let last = self.0.get_mut(&kind)?;
        if last.said.as_ref() == Some(&rejected) {
            return None;
        }
        let error_detail = (!rejected.is_empty()).then(|| {
            let first = rejected.iter().take(3).map(|one| format!("{}: {}", one.name, one.reason));
            let mut message = first.collect::<Vec<_>>().join("; ");
            if rejected.len() > 3 {
                message.push_str(&format!("; and {} more", rejected.len() - 3));
            }
            let detail = |one: &Rejected| {
                let rejected = resource::Rejected { name: one.name.to_string(), reason: one.reason.to_string() };
                Any::of(REJECTED, &rejected)
            };
            discovery::Status {
                code: Code::InvalidArgument as i32,
                message,
                details: rejected.iter().map(detail).collect(),
            }
        });
        last.said = Some(rejected);
        let request = DeltaRequest {
            type_url: kind.type_url().to_owned(),
            response_nonce: last.nonce.clone(),
            error_detail,
            ..DeltaRequest::default()
        };
        Some((request, last.revision))
    }
}
