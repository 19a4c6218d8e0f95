//! An HTTP/1.1 upstream that misbehaves on demand, and knows what it received, in full or in part, and how often.
//!
//! Requests are told apart by the header `x-id`. The gRPC counterpart is in [`grpc`].

pub mod grpc;
mod moods;

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::{Wire, ports};

pub use moods::Moods;

/// The header that tells requests apart.
pub const ID: &str = "x-id";

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mood {
    /// 200 at once.
    Well,
    /// This status, and these header lines, each ended by CRLF.
    Answer(u16, &'static str),
    /// This status after a while.
    Slow(Duration, u16),
    /// Nothing, until the other side goes away.
    Hang,
    /// A reset before a byte has been sent or read: at the accept, whatever was drawn.
    ResetOnAccept,
    /// A reset once the first bytes are there, unread.
    ResetUnread,
    /// A reset when the head has been read.
    ResetAfterHead,
    /// A reset in the middle of the request's body.
    ResetInRequest,
    /// A reset when the whole request has been read.
    ResetAfterRequest,
    /// Half of the response's head, then the end.
    ResetInHead,
    /// Ten of a thousand promised bytes of the response's body, then a reset.
    ResetInBody,
    /// Ten of a thousand promised bytes of the response's body, then a clean close.
    Half,
    /// An answer that is not HTTP.
    Garbage,
    /// One of the resets and failures above, or an answer: drawn anew for each request.
    Chaos,
}

/// A request as far as it was received.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub at: Instant,
    /// Value of [`ID`]; empty when there was none.
    pub id: String,
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether all of it was received.
    pub whole: bool,
}

impl Arrival {
    /// The value of a header; fails the test when it is repeated.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let first = values.next();
        assert!(values.next().is_none(), "{name} is repeated: {self:?}");
        first.map(|(_, value)| value.as_str())
    }
}

struct Shared {
    name: String,
    moods: Moods<Mood>,
    arrivals: Mutex<Vec<Arrival>>,
    cancelled: AtomicUsize,
    connections: AtomicUsize,
}

/// A running upstream; ends when dropped. Moods are set through [`Moods`], to which it dereferences.
pub struct Unruly {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accept: Mutex<Option<JoinHandle<()>>>,
}

impl Deref for Unruly {
    type Target = Moods<Mood>;

    fn deref(&self) -> &Moods<Mood> {
        &self.shared.moods
    }
}

impl Unruly {
    /// Listens, and answers well. `name` appears in its answers.
    pub async fn start(name: &str) -> Self {
        let upstream = Self::away(name);
        upstream.listen().await;
        upstream
    }

    /// Has a port, but does not listen yet: connections are refused.
    pub fn away(name: &str) -> Self {
        let shared = Shared {
            name: name.to_owned(),
            moods: Moods::new(Mood::Well),
            arrivals: Mutex::default(),
            cancelled: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        };
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        Self { addr, shared: Arc::new(shared), accept: Mutex::new(None) }
    }

    /// Listens (again) at its address.
    pub async fn listen(&self) {
        let listener = TcpListener::bind(self.addr).await.expect("its own port is free");
        let shared = self.shared.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(stream, shared.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        let before = self.accept.lock().unwrap().replace(task);
        assert!(before.is_none(), "it listens already");
    }

    /// Stops listening and closes every connection: new ones are refused.
    pub async fn stop(&self) {
        let task = self.accept.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    /// Everything received, in order of arrival.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    /// How many requests were received, in full or in part.
    pub fn count(&self) -> usize {
        self.shared.arrivals.lock().unwrap().len()
    }

    /// How often the request with this id was received, in full or in part.
    pub fn received(&self, id: &str) -> usize {
        self.shared.arrivals.lock().unwrap().iter().filter(|arrival| arrival.id == id).count()
    }

    /// Requests whose sender went away before it had an answer.
    pub fn cancelled(&self) -> usize {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Unruly {
    fn drop(&mut self) {
        if let Some(task) = self.accept.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut wire = Wire::accepted(stream);
    if shared.moods.current() == Mood::ResetOnAccept {
        wire.reset();
        return;
    }
    while let Some(start) = wire.peek().await {
        let mood = match shared.moods.draw() {
            Mood::Chaos => shared.chaos(),
            mood => mood,
        };
        if mood == Mood::ResetUnread {
            shared.arrived(&start);
            wire.reset();
            return;
        }
        let Some(head) = wire.read_head().await else {
            shared.arrived(&wire.take_buffer());
            return;
        };
        let number = shared.arrived(head.as_bytes());
        if mood == Mood::ResetAfterHead {
            wire.reset();
            return;
        }
        let in_request = mood == Mood::ResetInRequest;
        let whole = read_body(&mut wire, &head, in_request, |body, trailers| {
            let arrival = &mut shared.arrivals.lock().unwrap()[number];
            (arrival.body, arrival.trailers, arrival.whole) = (body, trailers, true);
        })
        .await;
        if in_request || mood == Mood::ResetAfterRequest {
            wire.reset();
            return;
        }
        if whole.is_none() || !shared.answer(&mut wire, mood, number, head.starts_with("HEAD ")).await {
            return;
        }
    }
}

/// Reads the body that `head` announces, or half of it, and hands it on when it is complete.
async fn read_body(
    wire: &mut Wire,
    head: &str,
    half: bool,
    done: impl FnOnce(Vec<u8>, Vec<(String, String)>),
) -> Option<()> {
    let headers = parse(head).headers;
    let field = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    if let Some(length) = field("content-length") {
        let length: usize = length.parse().unwrap();
        let body = wire.read_exact(if half { length / 2 } else { length }).await?;
        if !half {
            done(body, Vec::new());
        }
        return Some(());
    }
    if field("transfer-encoding").is_none() {
        done(Vec::new(), Vec::new());
        return Some(());
    }
    if half {
        wire.read_until(b"\r\n").await?;
        return Some(());
    }
    let (body, trailers) = wire.read_chunked().await?;
    done(body, trailers);
    Some(())
}

/// What can be read of a request, complete or not.
fn parse(bytes: &str) -> Arrival {
    let mut lines = bytes.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers: Vec<(String, String)> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let id = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(ID)).map(|(_, value)| value.clone());
    Arrival {
        at: Instant::now(),
        id: id.unwrap_or_default(),
        method: first.next().unwrap_or_default(),
        target: first.next().unwrap_or_default(),
        headers,
        body: Vec::new(),
        trailers: Vec::new(),
        whole: false,
    }
}

impl Shared {
    /// Records what has come of a request; the number of its record.
    fn arrived(&self, bytes: &[u8]) -> usize {
        let arrival = parse(&String::from_utf8_lossy(bytes));
        let mut arrivals = self.arrivals.lock().unwrap();
        arrivals.push(arrival);
        arrivals.len() - 1
    }

    /// Six of ten requests are answered.
    fn chaos(&self) -> Mood {
        const FAILURES: [Mood; 8] = [
            Mood::ResetUnread,
            Mood::ResetAfterHead,
            Mood::ResetInRequest,
            Mood::ResetAfterRequest,
            Mood::ResetInHead,
            Mood::ResetInBody,
            Mood::Half,
            Mood::Answer(503, ""),
        ];
        *FAILURES.get(self.moods.below(FAILURES.len() * 10 / 4)).unwrap_or(&Mood::Well)
    }

    /// Answers; false when the connection is over.
    async fn answer(&self, wire: &mut Wire, mood: Mood, number: usize, head_only: bool) -> bool {
        let (status, more) = match mood {
            Mood::Answer(status, more) => (status, more),
            Mood::Slow(pause, status) => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => (status, ""),
                    () = wire.gone() => {
                        self.cancelled.fetch_add(1, Ordering::SeqCst);
                        return false;
                    }
                }
            }
            Mood::Hang => {
                wire.gone().await;
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return false;
            }
            Mood::Garbage => {
                wire.send("\x01\x02 this is not HTTP\r\n\r\n").await;
                return false;
            }
            Mood::ResetInHead => {
                wire.send("HTTP/1.1 200 OK\r\nContent-Le").await;
                return false;
            }
            Mood::ResetInBody | Mood::Half => {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789").await;
                // A reset overtakes what has not been read yet.
                tokio::time::sleep(Duration::from_millis(20)).await;
                if mood == Mood::ResetInBody {
                    let _ = socket2::SockRef::from(&wire.stream).set_linger(Some(Duration::ZERO));
                }
                return false;
            }
            _ => (200, ""),
        };
        let number = number + 1;
        let body = format!("{} {number}", self.name);
        let head = format!(
            "HTTP/1.1 {status} Unruly\r\nX-Upstream: {}\r\nX-Number: {number}\r\nContent-Length: {}\r\n{more}\r\n",
            self.name,
            body.len()
        );
        wire.send(if head_only { head } else { head + &body }).await;
        true
    }
}
