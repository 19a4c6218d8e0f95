//! A client that does no more than it must: the same request bytes again and again on one connection.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One keep-alive connection.
pub struct Probe {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

/// The head of an answer, as far as it matters here.
struct Head {
    status: u16,
    /// Where the body starts.
    end: usize,
    length: usize,
    close: bool,
}

impl Probe {
    /// Connects to `target`.
    pub async fn connect(target: SocketAddr) -> Result<Self> {
        Self::with_headers(target, "").await
    }

    /// Connects to `target`; every request carries these header lines, each with its end of line.
    pub async fn with_headers(target: SocketAddr, headers: &str) -> Result<Self> {
        let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
        stream.set_nodelay(true)?;
        let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\n{headers}\r\n").into_bytes();
        Ok(Self { stream, request, buffer: Vec::new() })
    }

    /// Sends one request and returns the length of the answer's body; anything but a complete 200 that keeps the
    /// connection open is an error.
    pub async fn get(&mut self) -> Result<usize> {
        let head = self.exchange().await?;
        if head.status != 200 || head.close {
            bail!("the answer was {}, {}", head.status, if head.close { "and closes" } else { "not 200" });
        }
        Ok(head.length)
    }

    /// Sends one request with other headers than the usual ones and returns the answer's status.
    pub async fn status(&mut self, target: SocketAddr, headers: &str) -> Result<u16> {
        self.request.clear();
        write!(self.request, "GET / HTTP/1.1\r\nHost: {target}\r\n{headers}\r\n")?;
        let head = self.exchange().await?;
        if head.close {
            bail!("the answer was {} and closes", head.status);
        }
        Ok(head.status)
    }

    async fn exchange(&mut self) -> Result<Head> {
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(head) = parse(&self.buffer)? {
                break head;
            }
            self.fill().await?;
        };
        while self.buffer.len() < head.end + head.length {
            self.fill().await?;
        }
        Ok(head)
    }

    async fn fill(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the connection was closed within an answer");
        }
        Ok(())
    }

    /// Gives up the buffer: ten thousand idle probes need none.
    pub fn rest(&mut self) {
        self.buffer = Vec::new();
    }
}

/// `None` until the head is complete.
fn parse(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end]).context("the head is not text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status line")?;
    let mut head = Head { status, end: end + 4, length: 0, close: false };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.length = value.parse().context("content-length")?;
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("the answer is chunked, a content-length was expected");
        }
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;

    #[tokio::test(flavor = "local")]
    async fn many_requests_share_one_connection() {
        let origin = Origin::start().await.unwrap();
        let mut probe = Probe::connect(origin.addr()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(probe.get().await.unwrap(), 6);
        }
    }

    #[test]
    fn heads_are_read() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n").unwrap().is_none());
        let head = parse(b"HTTP/1.1 503 No\r\ncontent-length: 4\r\nConnection: close\r\n\r\nab").unwrap().unwrap();
        assert_eq!((head.status, head.length, head.close, head.end), (503, 4, true, 57));
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
