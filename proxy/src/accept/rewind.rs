//! A connection whose first bytes have been read already.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives `prefix` to the first reads, then gets out of the way.
#[derive(Debug)]
pub struct Rewind<IO> {
    prefix: Prefix,
    io: IO,
}

#[derive(Debug)]
enum Prefix {
    Left(Bytes),
    Done,
}

impl<IO> Rewind<IO> {
    /// `prefix` was read from `io`.
    pub fn new(io: IO, prefix: Bytes) -> Self {
        Self { prefix: if prefix.is_empty() { Prefix::Done } else { Prefix::Left(prefix) }, io }
    }

    /// The connection, and what is left of the prefix.
    pub fn into_parts(self) -> (IO, Bytes) {
        let prefix = match self.prefix {
            Prefix::Left(prefix) => prefix,
            Prefix::Done => Bytes::new(),
        };
        (self.io, prefix)
    }

    /// The connection.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewind<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Prefix::Left(prefix) = &mut this.prefix {
            let n = prefix.len().min(buf.remaining());
            buf.put_slice(&prefix[..n]);
            prefix.advance(n);
            if prefix.is_empty() {
                this.prefix = Prefix::Done;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewind<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn the_prefix_comes_first_in_pieces_of_any_size() {
        for size in 1..8 {
            let mut rewound = Rewind::new(&b"world"[..], Bytes::from_static(b"hello "));
            let mut all = Vec::new();
            let mut piece = vec![0; size];
            while let n @ 1.. = rewound.read(&mut piece).await.unwrap() {
                all.extend_from_slice(&piece[..n]);
            }
            assert_eq!(all, b"hello world");
        }
    }

    #[test]
    fn what_is_left_of_the_prefix_can_be_taken_back() {
        assert_eq!(Rewind::new((), Bytes::from_static(b"x")).into_parts().1, "x");
        assert!(Rewind::new((), Bytes::new()).into_parts().1.is_empty());
    }
}
