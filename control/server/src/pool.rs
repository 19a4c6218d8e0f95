//! Connections to members: one HTTP/2 connection to each, shared by all that is asked of it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::timeout};
use weft_store::{Member, Transport, Unreached};

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(1);
/// A connection whose other side is gone without a word is found out by this, not by late answers: messages are given
/// less time than a disk may take.
const PING: Duration = Duration::from_secs(1);
const PONG: Duration = Duration::from_secs(2);
/// Largest answer of a member to another; the largest there is says up to where a log matches.
const ANSWER_MAX: usize = 1 << 20;
/// Messages hold up to a megabyte; a window of HTTP/2's 64 KiB would cost each of them round trips.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

type Sender = http2::SendRequest<Full<Bytes>>;

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent.
    #[error("{0}")]
    Connect(String),
    /// It may have been done.
    #[error("{0}")]
    Lost(String),
}

/// Connections to members. Clones share them.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<HashMap<Arc<str>, Sender>>>);

impl Pool {
    /// Sends a request to `address`; the head of its answer has to arrive `within` this time.
    ///
    /// # Errors
    /// When nobody is there, or does not answer.
    pub async fn send(
        &self,
        address: &str,
        mut request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        let mut sender = self.sender(address, within).await?;
        let target = format!("http://{address}{}", request.uri());
        *request.uri_mut() = target.parse().map_err(|error| CallError::Connect(format!("{target}: {error}")))?;
        request.headers_mut().remove(HOST);
        match timeout(within, sender.send_request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.forget(address);
                Err(CallError::Lost(format!("{address}: {error}")))
            }
            Err(_) => Err(CallError::Lost(format!("{address} did not answer within {within:?}"))),
        }
    }

    async fn sender(&self, address: &str, within: Duration) -> Result<Sender, CallError> {
        let pooled = self.senders().get(address).cloned();
        if let Some(mut sender) = pooled
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let connected = timeout(within.min(CONNECT), connect(address)).await;
        let sender = connected.map_err(|_| CallError::Connect(format!("{address}: no connection in time")))??;
        self.senders().insert(address.into(), sender.clone());
        Ok(sender)
    }

    fn forget(&self, address: &str) {
        self.senders().remove(address);
    }

    fn senders(&self) -> MutexGuard<'_, HashMap<Arc<str>, Sender>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({})", self.senders().len())
    }
}

async fn connect(address: &str) -> Result<Sender, CallError> {
    let failed = |error: &dyn fmt::Display| CallError::Connect(format!("{address}: {error}"));
    let io = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let _ = io.set_nodelay(true);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|error| failed(&error))?;
    // Ends when nobody can send on it any more and the last answer is there.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a member");
        }
    });
    Ok(sender)
}

impl Transport for Pool {
    fn call(&self, to: &Member, message: Bytes, within: Duration) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let (pool, address) = (self.clone(), to.address.clone());
        async move {
            let call = async {
                let request = Request::post("/raft").body(Full::new(message));
                let request = request.map_err(|error| Unreached(error.to_string()))?;
                let answer =
                    pool.send(&address, request, within).await.map_err(|error| Unreached(error.to_string()))?;
                if !answer.status().is_success() {
                    return Err(Unreached(format!("{address} answered {}", answer.status())));
                }
                let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
                body.map(http_body_util::Collected::to_bytes).map_err(|error| Unreached(format!("{address}: {error}")))
            };
            let answered = timeout(within, call).await;
            answered.unwrap_or_else(|_| Err(Unreached(format!("{address} took longer than {within:?}"))))
        }
        .boxed()
    }
}
