//! Nodes that take everything and do nothing with it: streams as `weft proxy` has them, a thousand in one process.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_wire::DELTA;
use weft_wire::discovery::{DeltaRequest, DeltaResponse, Node};
use weft_wire::prost::Message;
use weft_wire::resource::{ENDPOINT, OBJECT};

/// For all of them to have a revision.
const WITHIN: Duration = Duration::from_secs(60);

/// What they have together.
#[derive(Default)]
struct Shared {
    /// What is waited for.
    expected: Cell<u64>,
    /// How far each is.
    has: RefCell<Vec<u64>>,
    /// How many have what is expected.
    have: Cell<usize>,
    ended: Cell<usize>,
    changed: Notify,
}

/// The nodes; disconnected when dropped.
pub struct Fleet {
    size: usize,
    shared: Rc<Shared>,
    _streams: JoinSet<()>,
}

impl Fleet {
    /// Connects `size` of them, spread over the members, and waits until each has `revision`.
    pub async fn connect(members: &[SocketAddr], size: usize, revision: u64) -> Result<Self> {
        let shared = Rc::new(Shared { expected: Cell::new(revision), ..Shared::default() });
        shared.has.replace(vec![0; size]);
        let mut streams = JoinSet::new();
        for (number, member) in (0..size).zip(members.iter().cycle().copied()) {
            let shared = shared.clone();
            streams.spawn_local(async move {
                if let Err(error) = follow(member, number, &shared).await {
                    eprintln!("  light node {number}: {error:#}");
                }
                shared.ended.set(shared.ended.get() + 1);
                shared.changed.notify_one();
            });
            // A listen queue is not what is measured here.
            if number % 50 == 49 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let fleet = Self { size, shared, _streams: streams };
        fleet.reached().await?;
        Ok(fleet)
    }

    /// From now on those are counted that have `revision`.
    pub fn expect(&self, revision: u64) {
        self.shared.expected.set(revision);
        self.shared.have.set(self.shared.has.borrow().iter().filter(|has| **has >= revision).count());
    }

    /// Waits until all have what is expected.
    pub async fn reached(&self) -> Result<()> {
        let all = async {
            while self.shared.have.get() < self.size {
                if self.shared.ended.get() > 0 {
                    bail!("{} streams have ended", self.shared.ended.get());
                }
                self.shared.changed.notified().await;
            }
            Ok(())
        };
        timeout(WITHIN, all).await.with_context(|| {
            let (have, size) = (self.shared.have.get(), self.size);
            format!("{have} of {size} nodes have revision {} after {WITHIN:?}", self.shared.expected.get())
        })?
    }
}

async fn follow(member: SocketAddr, number: usize, shared: &Shared) -> Result<()> {
    let (mut requests, mut responses) = open(member).await?;
    for type_url in [OBJECT, ENDPOINT] {
        let node = Node { id: format!("light-{number}"), user_agent_name: "weft".into(), ..Node::default() };
        let request = DeltaRequest { node: Some(node), type_url: type_url.into(), ..DeltaRequest::default() };
        requests.send_data(framed(&request)?).await.ok().context("the stream ended")?;
    }
    loop {
        let response = responses.next().await?;
        let (type_url, response_nonce) = (response.type_url, response.nonce);
        let leads_to = response.system_version_info.parse::<u64>()?;
        let ack = DeltaRequest { type_url, response_nonce, ..DeltaRequest::default() };
        requests.send_data(framed(&ack)?).await.ok().context("the stream ended")?;
        let expected = shared.expected.get();
        let before = shared.has.borrow()[number];
        shared.has.borrow_mut()[number] = before.max(leads_to);
        if before < expected && leads_to >= expected {
            shared.have.set(shared.have.get() + 1);
            shared.changed.notify_one();
        }
    }
}

async fn open(member: SocketAddr) -> Result<(Sender<Bytes, Infallible>, Responses)> {
    let io = TcpStream::connect(member).await?;
    io.set_nodelay(true)?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    tokio::spawn(async move { drop(connection.await) });
    let (requests, body) = Channel::new(8);
    let request = Request::post(format!("http://{member}{DELTA}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)?;
    let answer = sender.send_request(request).await?;
    if let Some(status) = answer.headers().get("grpc-status") {
        bail!("{member} refuses: grpc-status {status:?}, {:?}", answer.headers().get("grpc-message"));
    }
    Ok((requests, Responses { body: answer.into_body(), rest: BytesMut::new(), _sender: sender }))
}

/// Messages as gRPC frames them.
struct Responses {
    body: Incoming,
    rest: BytesMut,
    _sender: http2::SendRequest<Channel<Bytes, Infallible>>,
}

impl Responses {
    async fn next(&mut self) -> Result<DeltaResponse> {
        loop {
            if self.rest.len() >= 5 {
                let length = u32::from_be_bytes([self.rest[1], self.rest[2], self.rest[3], self.rest[4]]) as usize;
                if self.rest.len() >= 5 + length {
                    self.rest.advance(5);
                    return Ok(DeltaResponse::decode(self.rest.split_to(length).freeze())?);
                }
            }
            let frame = self.body.frame().await.context("the stream ended")??;
            match frame.into_data() {
                Ok(data) => self.rest.extend_from_slice(&data),
                Err(frame) => bail!("the stream ended: {:?}", frame.trailers_ref()),
            }
        }
    }
}

fn framed(message: &impl Message) -> Result<Bytes> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len())?);
    message.encode(&mut framed)?;
    Ok(framed.freeze())
}
