//! Which protocol a client speaks, by its first bytes.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What every HTTP/2 client sends first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Room for the head of a small request, so that detection costs no extra read.
const READ: usize = 1024;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// Something else than HTTP/2; the guard finds out whether it is HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Nothing: the client has closed.
    Closed,
}

/// Reads until the first byte that is not the HTTP/2 preface's, or through the preface. The bytes read are left in `buf` for whoever
/// serves the connection, and those found there are looked at first. The caller sets the deadline; cancelling loses no byte.
pub async fn detect<IO: AsyncRead + Unpin>(io: &mut IO, buf: &mut BytesMut) -> io::Result<Detected> {
    loop {
        let seen = buf.len().min(PREFACE.len());
        if buf[..seen] != PREFACE[..seen] {
            return Ok(Detected::Http1);
        }
        if seen == PREFACE.len() {
            return Ok(Detected::Http2);
        }
        buf.reserve(READ);
        if io.read_buf(buf).await? == 0 {
            return Ok(if seen == 0 { Detected::Closed } else { Detected::Http1 });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    async fn verdict(pieces: &[&[u8]]) -> (Detected, Vec<u8>) {
        let (mut client, mut server) = duplex(64);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let sender = tokio::spawn(async move {
            for piece in pieces {
                let _ = client.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
        });
        let mut buf = BytesMut::new();
        let detected = detect(&mut server, &mut buf).await.unwrap();
        sender.await.unwrap();
        (detected, buf.to_vec())
    }

    #[tokio::test]
    async fn the_first_differing_byte_decides() {
        assert_eq!(verdict(&[]).await.0, Detected::Closed);
        assert_eq!(verdict(&[b"P"]).await, (Detected::Http1, b"P".to_vec()));
        assert_eq!(verdict(&[b"POST"]).await, (Detected::Http1, b"POST".to_vec()));
        assert_eq!(verdict(&[b"\x16\x03\x01"]).await.0, Detected::Http1);
        assert_eq!(verdict(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx"]).await.0, Detected::Http1);
        for split in 0..PREFACE.len() {
            let (first, second) = PREFACE.split_at(split);
            assert_eq!(verdict(&[first, second]).await, (Detected::Http2, PREFACE.to_vec()), "split at {split}");
        }
    }

    #[tokio::test]
    async fn bytes_found_in_the_buffer_count() {
        let mut buf = BytesMut::from(&PREFACE[..]);
        assert_eq!(detect(&mut tokio::io::empty(), &mut buf).await.unwrap(), Detected::Http2);
    }
}
