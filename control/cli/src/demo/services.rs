//! The sample services: small HTTP servers on ports that the kernel picks.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Where the samples listen.
#[derive(Debug)]
pub struct Samples {
    /// Two endpoints.
    pub hello: Vec<SocketAddr>,
    /// One more, of which nobody knows yet.
    pub spare: SocketAddr,
    /// Two endpoints, one slower than the other.
    pub cart: Vec<SocketAddr>,
    /// Two endpoints, one of which fails or dawdles now and then.
    pub flaky: Vec<SocketAddr>,
    /// Two endpoints that speak no HTTP: they answer each line.
    pub store: Vec<SocketAddr>,
}

/// How a sample behaves.
#[derive(Debug, Clone, Copy)]
struct Manner {
    name: &'static str,
    delay: Duration,
    /// Share of requests that fail, and of those that take a second (0–1).
    trouble: (f32, f32),
}

/// Starts all of them on a thread of their own.
///
/// # Errors
/// When a port or a thread cannot be had.
pub fn start() -> io::Result<Samples> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let steady = |name, delay| Manner { name, delay: Duration::from_millis(delay), trouble: (0.0, 0.0) };
    let shaky = Manner { trouble: (0.2, 0.1), ..steady("flaky-b", 5) };
    let samples = runtime.block_on(async {
        Ok::<_, io::Error>(Samples {
            hello: vec![serve(steady("hello-a", 0)).await?, serve(steady("hello-b", 0)).await?],
            spare: serve(steady("hello-c", 0)).await?,
            cart: vec![serve(steady("cart-a", 2)).await?, serve(steady("cart-b", 20)).await?],
            flaky: vec![serve(steady("flaky-a", 5)).await?, serve(shaky).await?],
            store: vec![store("store-a").await?, store("store-b").await?],
        })
    })?;
    std::thread::Builder::new().name("samples".into()).spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(samples)
}

async fn serve(manner: Manner) -> io::Result<SocketAddr> {
    listen(move |stream| async move {
        let service = service_fn(move |request| answer(manner, request));
        // A client that goes away is not worth a word here.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

async fn store(name: &'static str) -> io::Result<SocketAddr> {
    listen(move |stream| async move {
        let (lines, mut answers) = stream.into_split();
        let mut lines = BufReader::new(lines).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if answers.write_all(format!("{name}: {line}\n").as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Serves every connection to a port that the kernel picks.
async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> io::Result<SocketAddr>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            tokio::spawn(serve(stream));
        }
    });
    Ok(address)
}

async fn answer(manner: Manner, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let Manner { name, delay, trouble } = manner;
    let reply = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() == "/healthz" {
        return Ok(reply(StatusCode::OK, "ok\n".into()));
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let dice = fastrand::f32();
    if dice < trouble.0 {
        return Ok(reply(StatusCode::INTERNAL_SERVER_ERROR, format!("{name}: this one failed\n")));
    }
    if dice < trouble.0 + trouble.1 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let traced = request.headers().get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or("none");
    Ok(reply(StatusCode::OK, format!("{name}: {} {} (traceparent: {traced})\n", request.method(), request.uri())))
}
