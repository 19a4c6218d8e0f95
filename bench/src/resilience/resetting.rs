//! An origin that resets connections at random points, and remembers every request of which anything has arrived.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How often each id of one kind has arrived.
#[derive(Debug)]
pub struct Seen(Vec<u8>);

impl Seen {
    /// How many ids have arrived at least so often.
    pub fn times(&self, least: u8) -> u64 {
        self.0.iter().filter(|times| **times >= least).count() as u64
    }

    fn note(&mut self, id: usize) {
        if let Some(times) = self.0.get_mut(id) {
            *times = times.saturating_add(1);
        }
    }
}

/// What has arrived at all origins that share it. The id of a request is its path: `/0`, `/1`, …
#[derive(Debug)]
pub struct Arrived {
    pub posts: Seen,
    pub gets: Seen,
    /// Connections reset, by point: before reading, after the head, after the body, within the response.
    pub resets: [u64; 4],
}

impl Arrived {
    /// For so many ids of each kind.
    pub fn new(ids: u32) -> Rc<RefCell<Self>> {
        let seen = || Seen(vec![0; ids as usize]);
        Rc::new(RefCell::new(Self { posts: seen(), gets: seen(), resets: [0; 4] }))
    }

    /// Notes the request that starts here, if its line is complete.
    fn note(&mut self, bytes: &[u8]) -> bool {
        let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return false };
        let mut words = std::str::from_utf8(&bytes[..end]).unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some(id) = path.strip_prefix('/').and_then(|id| id.parse().ok()) {
            match method {
                "POST" => self.posts.note(id),
                "GET" => self.gets.note(id),
                _ => {}
            }
        }
        true
    }
}

/// Where a request's connection is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    BeforeReading,
    AfterHead,
    AfterBody,
    WithinResponse,
    Answer,
}

impl Fate {
    /// Four of ten requests are not answered.
    fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(0..10) {
            0 => Self::BeforeReading,
            1 => Self::AfterHead,
            2 => Self::AfterBody,
            3 => Self::WithinResponse,
            _ => Self::Answer,
        }
    }
}

/// Listens until it is dropped.
pub struct Resetting {
    addr: SocketAddr,
    accept: JoinHandle<()>,
}

impl Resetting {
    /// Listens on a loopback port; everything random comes from `seed`.
    pub async fn start(arrived: Rc<RefCell<Arrived>>, seed: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let mut seeds = fastrand::Rng::with_seed(seed);
        let accept = tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = Connection { stream, rng: seeds.fork(), arrived: arrived.clone(), buffer: Vec::new() };
                tokio::task::spawn_local(connection.serve());
            }
        });
        Ok(Self { addr, accept })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

struct Connection {
    stream: TcpStream,
    rng: fastrand::Rng,
    arrived: Rc<RefCell<Arrived>>,
    buffer: Vec<u8>,
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 40\r\n\r\n\
    0123456789012345678901234567890123456789";

impl Connection {
    /// Request after request, until one has the fate of a reset. An error is the proxy's going away.
    async fn serve(mut self) -> std::io::Result<()> {
        self.stream.set_nodelay(true)?;
        loop {
            let fate = Fate::draw(&mut self.rng);
            if fate == Fate::BeforeReading {
                // At once or a little later: the proxy may be about to use the connection, or just have used it.
                self.pause().await;
                self.look();
                return self.reset(0);
            }
            let Some(body) = self.head().await? else { return Ok(()) };
            if fate == Fate::AfterHead {
                self.pause().await;
                return self.reset(1);
            }
            self.body(body).await?;
            match fate {
                Fate::AfterBody => {
                    self.pause().await;
                    return self.reset(2);
                }
                Fate::WithinResponse => {
                    let cut = self.rng.usize(1..ANSWER.len());
                    self.stream.write_all(&ANSWER[..cut]).await?;
                    // A reset at once may overtake what was written.
                    self.pause().await;
                    return self.reset(3);
                }
                _ => self.stream.write_all(ANSWER).await?,
            }
        }
    }

    /// Nothing, or up to two milliseconds.
    async fn pause(&mut self) {
        if self.rng.bool() {
            tokio::time::sleep(Duration::from_micros(self.rng.u64(0..2_000))).await;
        }
    }

    /// Notes what is there without waiting for more.
    fn look(&mut self) {
        let mut bytes = [0; 4096];
        if let Ok(read) = self.stream.try_read(&mut bytes) {
            self.buffer.extend_from_slice(&bytes[..read]);
            self.arrived.borrow_mut().note(&self.buffer);
        }
    }

    /// Ends the connection with RST in place of FIN.
    fn reset(self, point: usize) -> std::io::Result<()> {
        self.arrived.borrow_mut().resets[point] += 1;
        self.stream.set_zero_linger()
    }

    /// Reads a request's head and notes the request with its first line. `None` when the connection ends instead.
    async fn head(&mut self) -> std::io::Result<Option<Body>> {
        let mut noted = false;
        loop {
            noted = noted || self.arrived.borrow_mut().note(&self.buffer);
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
                self.buffer.drain(..end + 4);
                return Ok(Some(Body::of(&head)));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn body(&mut self, body: Body) -> std::io::Result<()> {
        loop {
            let end = match body {
                Body::Length(length) => (self.buffer.len() >= length).then_some(length),
                Body::Chunked => find(&self.buffer, b"0\r\n\r\n").map(|at| at + 5),
            };
            if let Some(end) = end {
                self.buffer.drain(..end);
                return Ok(());
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// How a request's body ends. Bodies hold neither zeros nor line ends of their own.
enum Body {
    Length(usize),
    Chunked,
}

impl Body {
    /// From a head in lower case.
    fn of(head: &str) -> Self {
        let value = |name: &str| {
            head.split("\r\n").filter_map(|line| line.split_once(':')).find(|(n, _)| *n == name).map(|(_, v)| v.trim())
        };
        match value("transfer-encoding") {
            Some(_) => Self::Chunked,
            None => Self::Length(value("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::client::Client;

    #[tokio::test(flavor = "local")]
    async fn a_request_sent_again_is_seen_and_every_fate_comes_about() {
        let arrived = Arrived::new(300);
        let origin = Resetting::start(arrived.clone(), 7).await.unwrap();
        let mut answered = 0;
        for id in 0..300 {
            let mut client = Client::connect(origin.addr()).await.unwrap();
            let post = http::Request::post(format!("/{id}"));
            answered += u32::from(client.send(post, "xyz".into()).await.is_ok());
        }
        assert!((120..240).contains(&answered), "{answered}");
        assert_eq!(arrived.borrow().posts.times(2), 0);
        assert!(arrived.borrow().resets.iter().all(|resets| *resets > 5), "{:?}", arrived.borrow().resets);
        assert!(arrived.borrow().posts.times(1) >= u64::from(answered));
        for _ in 0..20 {
            let mut client = Client::connect(origin.addr()).await.unwrap();
            let _ = client.send(http::Request::post("/0"), "xyz".into()).await;
        }
        assert_eq!(arrived.borrow().posts.times(2), 1);
    }

    #[test]
    fn an_incomplete_line_tells_no_id() {
        let arrived = Arrived::new(30);
        let mut arrived = arrived.borrow_mut();
        assert!(!arrived.note(b"POST /12"));
        assert!(arrived.note(b"POST /12 HTTP/1.1\r\nhos"));
        assert!(arrived.note(b"GET /12 HTTP/1.1\r\n"));
        assert_eq!((arrived.posts.times(1), arrived.gets.times(1), arrived.gets.times(2)), (1, 1, 0));
    }

    #[test]
    fn both_framings_are_read() {
        assert!(matches!(Body::of("post / http/1.1\r\ncontent-length: 12"), Body::Length(12)));
        assert!(matches!(Body::of("post / http/1.1\r\ntransfer-encoding: chunked"), Body::Chunked));
        assert!(matches!(Body::of("get / http/1.1"), Body::Length(0)));
    }
}
