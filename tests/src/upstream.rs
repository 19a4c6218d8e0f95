//! A hyper server as an upstream: HTTP/1, HTTP/2 with prior knowledge, or either over TLS; it records what it sees.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// What went wrong in a handler, as text.
#[derive(Debug)]
pub struct Error(pub String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

macro_rules! from {
    ($($error:ty),*) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        }
    )*};
}

from!(hyper::Error, http::Error, http::status::InvalidStatusCode, std::num::TryFromIntError, tonic::Status);

pub type Body = UnsyncBoxBody<Bytes, Error>;
/// An error from a handler ends the connection (HTTP/1) or resets the stream (HTTP/2).
pub type Answer = Result<Response<Body>, Error>;
pub type AnswerFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;
pub type Handler = Arc<dyn Fn(Request<Incoming>, Arc<Seen>) -> AnswerFuture + Send + Sync>;

/// A request as the upstream saw it.
#[derive(Debug, Clone)]
pub struct Record {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    /// Number of the connection it came on, from 0.
    pub connection: usize,
}

impl Record {
    /// The value of a header that must not be repeated.
    pub fn header(&self, name: &str) -> Option<&str> {
        one(&self.headers, name)
    }
}

/// The value of a header; fails the test when there are several.
pub fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    assert!(values.next().is_none(), "{name} is repeated: {headers:?}");
    first.map(|value| value.to_str().unwrap())
}

/// What an upstream saw so far.
#[derive(Default)]
pub struct Seen {
    pub requests: Mutex<Vec<Record>>,
    pub connections: AtomicUsize,
    /// Connections open now.
    pub open: AtomicUsize,
    /// Handlers dropped before they had an answer: the other side went away.
    pub cancelled: AtomicUsize,
    /// Response bodies dropped before their end.
    pub cut: AtomicUsize,
    /// Request bodies that ended with an error.
    pub broken_bodies: AtomicUsize,
    pub body_bytes: AtomicUsize,
}

impl Seen {
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    pub fn last(&self) -> Record {
        self.requests.lock().unwrap().last().expect("the upstream saw a request").clone()
    }

    pub fn to_path(&self, path: &str) -> Vec<Record> {
        self.requests.lock().unwrap().iter().filter(|request| request.uri.path() == path).cloned().collect()
    }
}

/// A running upstream; ends when dropped.
pub struct Upstream {
    pub addr: SocketAddr,
    pub seen: Arc<Seen>,
    accept: JoinHandle<()>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    H1,
    H2,
}

impl Upstream {
    /// The toolbox of [`crate::tool`] over HTTP/1.1. `name` appears in its echoes.
    pub async fn h1(name: &str) -> Self {
        Self::h1_with(crate::tool::handler(name)).await
    }

    /// The toolbox over HTTP/2 with prior knowledge.
    pub async fn h2(name: &str) -> Self {
        Self::h2_with(crate::tool::handler(name)).await
    }

    /// The toolbox over TLS, HTTP/1.1.
    pub async fn tls(name: &str, config: rustls::ServerConfig) -> Self {
        Self::start(None, Speaks::H1, Some(config), crate::tool::handler(name)).await
    }

    pub async fn h1_with(handler: Handler) -> Self {
        Self::start(None, Speaks::H1, None, handler).await
    }

    pub async fn h2_with(handler: Handler) -> Self {
        Self::start(None, Speaks::H2, None, handler).await
    }

    /// The toolbox over HTTP/1.1 at a given address, for an upstream that comes back.
    pub async fn h1_at(addr: SocketAddr, name: &str) -> Self {
        Self::start(Some(addr), Speaks::H1, None, crate::tool::handler(name)).await
    }

    async fn start(
        addr: Option<SocketAddr>,
        speaks: Speaks,
        tls: Option<rustls::ServerConfig>,
        handler: Handler,
    ) -> Self {
        let listener = TcpListener::bind(addr.unwrap_or(([127, 0, 0, 1], 0).into())).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let accept = tokio::spawn({
            let (seen, connections) = (seen.clone(), connections.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    let number = seen.connections.fetch_add(1, Ordering::SeqCst);
                    let (seen, handler, tls) = (seen.clone(), handler.clone(), tls.clone());
                    let task = tokio::spawn(async move {
                        let _open = Count::up(&seen, |seen| &seen.open);
                        match tls {
                            None => serve(stream, speaks, number, &seen, handler).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve(stream, speaks, number, &seen, handler).await;
                                }
                            }
                        }
                    });
                    connections.lock().unwrap().push(task);
                }
            }
        });
        Self { addr, seen, accept, connections }
    }

    /// Stops listening and closes every connection.
    pub async fn stop(self) -> SocketAddr {
        self.accept.abort();
        let tasks: Vec<_> = self.connections.lock().unwrap().drain(..).collect();
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
        self.addr
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accept.abort();
        for task in self.connections.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

async fn serve<S>(stream: S, speaks: Speaks, connection: usize, seen: &Arc<Seen>, handler: Handler)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let record = Record {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            connection,
        };
        seen.requests.lock().unwrap().push(record);
        let guard = Cancelled { seen: seen.clone(), armed: true };
        let answer = handler(request, seen.clone());
        async move {
            let answer = answer.await;
            guard.disarm();
            answer
        }
    });
    let io = TokioIo::new(stream);
    // An error here is the other side going away, which is what many tests are about.
    if speaks == Speaks::H1 {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
    } else {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.max_concurrent_streams(1000).serve_connection(io, service).await;
    }
}

/// Counts a handler that is dropped before its answer.
struct Cancelled {
    seen: Arc<Seen>,
    armed: bool,
}

impl Cancelled {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        if self.armed {
            self.seen.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Up by one now, down by one when dropped.
struct Count {
    seen: Arc<Seen>,
    of: fn(&Seen) -> &AtomicUsize,
}

impl Count {
    fn up(seen: &Arc<Seen>, of: fn(&Seen) -> &AtomicUsize) -> Self {
        of(seen).fetch_add(1, Ordering::SeqCst);
        Self { seen: seen.clone(), of }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        (self.of)(&self.seen).fetch_sub(1, Ordering::SeqCst);
    }
}

/// A body in one piece.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body fed by hand; dropping the sender without `abort` ends it cleanly.
pub fn channel(capacity: usize) -> (http_body_util::channel::Sender<Bytes, Error>, Body) {
    let (sender, body) = http_body_util::channel::Channel::new(capacity);
    (sender, body.boxed_unsync())
}
