//! Gentle traffic, so that there is something to look at: some twenty requests a second.

use std::{io, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Paths and how often each comes round.
const PATHS: [&str; 12] = [
    "/",
    "/cart/1",
    "/calm",
    "/flaky",
    "/cart/2",
    "/limited",
    "/old",
    "/calm/too",
    "/",
    "/flaky/again",
    "/cart/3",
    "/calm",
];

/// Starts it on a thread of its own; it ends with the process.
///
/// # Errors
/// When a thread cannot be had.
pub fn start(port: u16) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("traffic".into()).spawn(move || runtime.block_on(run(port)))?;
    Ok(())
}

async fn run(port: u16) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let mut connection: Option<SendRequest<Empty<Bytes>>> = None;
    for path in PATHS.iter().cycle() {
        ticks.tick().await;
        if connection.as_ref().is_none_or(SendRequest::is_closed) {
            connection = connect(port).await.ok();
        }
        // Whatever becomes of it can be seen at the admin port.
        if let Some(connection) = &mut connection {
            let _ = ask(connection, path).await;
        }
    }
}

async fn connect(port: u16) -> Result<SendRequest<Empty<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(send)
}

async fn ask(connection: &mut SendRequest<Empty<Bytes>>, path: &str) -> hyper::Result<()> {
    connection.ready().await?;
    let request = Request::get(path).header("host", "localhost").body(Empty::new());
    let Ok(request) = request else { return Ok(()) };
    connection.send_request(request).await?.into_body().collect().await.map(drop)
}
