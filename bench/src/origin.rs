//! A built-in upstream whose answers are the same bytes every time, where nginx would add noise.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The answer to every request. Its headers are those of nginx's.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 6\r\nConnection: keep-alive\r\n\r\nhello\n";

/// Answers requests without a body until it is dropped.
pub struct Origin {
    addr: SocketAddr,
    accept: JoinHandle<()>,
}

impl Origin {
    /// Listens on a loopback port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let accept = tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(answer(stream, || ANSWER));
            }
        });
        Ok(Self { addr, accept })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Counts the ends of heads in what arrives and answers each with what `respond` gives.
pub async fn answer<R: AsRef<[u8]>>(mut stream: TcpStream, mut respond: impl FnMut() -> R) -> std::io::Result<()> {
    const END: &[u8] = b"\r\n\r\n";
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    let mut matched = 0;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        for byte in &buffer[..read] {
            matched = if *byte == END[matched] { matched + 1 } else { usize::from(*byte == b'\r') };
            if matched == END.len() {
                matched = 0;
                stream.write_all(respond().as_ref()).await?;
            }
        }
    }
}
