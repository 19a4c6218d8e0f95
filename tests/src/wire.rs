//! Raw sockets on both sides: bytes out exactly as written, responses read without a library's forgiveness.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::SOON;

/// One TCP connection and what has been read from it but not used yet.
pub struct Wire {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    record: Option<Recording>,
}

/// A response, read strictly.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub version: u8,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The value of a header; fails the test when it is repeated.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() <= 1, "{name} is repeated: {self:?}");
        values.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// Whether the connection may be used again.
    pub fn keeps_alive(&self) -> bool {
        let listed = |token: &str| {
            self.all("connection").iter().any(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
        };
        if self.version == 0 { listed("keep-alive") } else { !listed("close") }
    }
}

impl Wire {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = crate::soon("connect", TcpStream::connect(addr)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new(), record: None }
    }

    /// The server's side of a connection.
    pub fn accepted(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, buffer: Vec::new(), record: None }
    }

    /// The first bytes that have come but are not used yet, left where they are; `None` at the end.
    pub async fn peek(&mut self) -> Option<Vec<u8>> {
        if !self.buffer.is_empty() {
            return Some(self.buffer.clone());
        }
        let mut chunk = vec![0; 16 * 1024];
        let count = self.stream.peek(&mut chunk).await.ok().filter(|count| *count > 0)?;
        chunk.truncate(count);
        Some(chunk)
    }

    /// Waits until the other side is gone; what it sends before is kept.
    pub async fn gone(&mut self) {
        while self.fill().await {}
    }

    /// Sends; the other side may have closed already, which the next read will tell.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Reads more; false at the end or after a reset.
    async fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                if let Some(record) = &self.record {
                    record.lock().unwrap().extend_from_slice(&chunk[..count]);
                }
                true
            }
        }
    }

    /// Reads up to and including `end`; `None` when the connection ends first.
    pub async fn read_until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Reads a head (request or response), ended by an empty line.
    pub async fn read_head(&mut self) -> Option<String> {
        self.read_until(b"\r\n\r\n").await.map(|head| String::from_utf8_lossy(&head).into_owned())
    }

    pub async fn read_exact(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// Everything until the connection ends.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    /// What has been read from the socket but not used yet.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Everything until the connection ends or nothing has come for `idle`.
    pub async fn read_to_end_or_idle(&mut self, idle: Duration) -> Vec<u8> {
        while matches!(tokio::time::timeout(idle, self.fill()).await, Ok(true)) {}
        std::mem::take(&mut self.buffer)
    }

    /// No byte and no end within `limit`.
    pub async fn silent_for(&mut self, limit: Duration) -> bool {
        self.buffer.is_empty() && tokio::time::timeout(limit, self.fill()).await.is_err()
    }

    /// The next response, 1xx included; `None` when the connection ends before it is complete.
    pub async fn try_response(&mut self, method: &str) -> Option<Response> {
        let head = self.read_until(b"\r\n\r\n").await?;
        let mut slots = [httparse::EMPTY_HEADER; 100];
        let mut parsed = httparse::Response::new(&mut slots);
        parsed.parse(&head).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&head)));
        let mut response = Response {
            status: parsed.code.unwrap(),
            version: parsed.version.unwrap(),
            headers: parsed.headers.iter().map(owned).collect(),
            body: Vec::new(),
            trailers: Vec::new(),
        };
        let status = response.status;
        let tunnel = status == 101 || (method == "CONNECT" && status / 100 == 2);
        if tunnel || status / 100 == 1 || status == 204 || status == 304 || method == "HEAD" {
            return Some(response);
        }
        let chunked = response.header("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked"));
        if chunked {
            (response.body, response.trailers) = self.read_chunked().await?;
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().unwrap();
            response.body = self.read_exact(length).await?;
        } else {
            assert!(!response.keeps_alive(), "no length, yet the connection stays open: {response:?}");
            response.body = self.read_to_end().await;
        }
        Some(response)
    }

    /// A chunked body and its trailers; `None` when the connection ends before they are complete.
    pub async fn read_chunked(&mut self) -> Option<(Vec<u8>, Vec<(String, String)>)> {
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        loop {
            let line = self.read_until(b"\r\n").await?;
            let line = std::str::from_utf8(&line).unwrap().trim_end();
            let size = usize::from_str_radix(line.split(';').next().unwrap(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            body.extend(self.read_exact(size).await?);
            assert_eq!(self.read_exact(2).await?, b"\r\n");
        }
        loop {
            let line = self.read_until(b"\r\n").await?;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if line.is_empty() {
                return Some((body, trailers));
            }
            let (name, value) = line.split_once(": ").expect("a trailer");
            trailers.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The next final response to a `method` request. Interim ones are skipped.
    pub async fn response_to(&mut self, method: &str) -> Response {
        crate::soon("a response", async {
            loop {
                let response = self.try_response(method).await.expect("a response before the connection ends");
                if response.status >= 200 || response.status == 101 {
                    return response;
                }
            }
        })
        .await
    }

    pub async fn read_response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// Sends a request and reads its response.
    pub async fn exchange(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request).await;
        self.read_response().await
    }

    /// The other side closes, and sends nothing more before.
    pub async fn expect_closed(&mut self) {
        self.expect_closed_within(SOON).await;
    }

    pub async fn expect_closed_within(&mut self, limit: Duration) {
        let rest = crate::within(limit, "the connection is closed", self.read_to_end()).await;
        assert!(rest.is_empty(), "more before the end: {}", String::from_utf8_lossy(&rest));
    }

    /// Ends with RST instead of FIN.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// No more from this side; reading goes on.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }
}

fn owned(header: &httparse::Header<'_>) -> (String, String) {
    (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned())
}

/// Every byte that a connection has brought.
type Recording = Arc<Mutex<Vec<u8>>>;

/// A TCP server that runs a script per connection and records every byte it receives.
pub struct RawUpstream {
    pub addr: SocketAddr,
    received: Arc<Mutex<Vec<Recording>>>,
    connections: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl RawUpstream {
    /// `script` gets each connection and its number, from 0.
    pub async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(Wire, usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<Recording>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let (received, connections, ended) = (received.clone(), connections.clone(), ended.clone());
            async move {
                let mut scripts = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let number = connections.fetch_add(1, Ordering::SeqCst);
                    let record = Arc::new(Mutex::new(Vec::new()));
                    received.lock().unwrap().push(record.clone());
                    let run = script(Wire { record: Some(record), ..Wire::accepted(stream) }, number);
                    let ended = ended.clone();
                    scripts.spawn(async move {
                        run.await;
                        ended.fetch_add(1, Ordering::SeqCst);
                    });
                    while scripts.try_join_next().is_some() {}
                }
            }
        });
        Self { addr, received, connections, ended, task }
    }

    /// Answers every request (without a body) with these bytes, and keeps the connection.
    pub async fn answering(response: &'static [u8]) -> Self {
        Self::start(move |mut wire, _| async move {
            while wire.read_head().await.is_some() {
                wire.send(response).await;
            }
        })
        .await
    }

    /// Answers one request with these bytes, then closes.
    pub async fn closing(response: &'static [u8]) -> Self {
        Self::start(move |mut wire, _| async move {
            if wire.read_head().await.is_some() {
                wire.send(response).await;
            }
        })
        .await
    }

    /// Everything received so far, connection by connection.
    pub fn received(&self) -> Vec<String> {
        let all = self.received.lock().unwrap();
        all.iter().map(|bytes| String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned()).collect()
    }

    /// Everything received so far, as one text.
    pub fn all(&self) -> String {
        self.received().concat()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Scripts that have run to their end.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
