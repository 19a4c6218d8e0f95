//! Opaque bytes in both directions: TCP listeners, upgraded connections, CONNECT.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use crate::wheel::Wheel;

/// Bytes buffered in each direction.
const BUFFER: usize = 16 * 1024;

/// Copies until both directions have ended or nothing has moved for `idle` (`ZERO` is for ever).
///
/// One side's end of stream is passed on to the other, which may go on sending. Returns the bytes copied from `a` to `b`
/// and from `b` to `a`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when idle; otherwise what either side reported.
pub async fn run(
    mut a: impl AsyncRead + AsyncWrite + Unpin,
    mut b: impl AsyncRead + AsyncWrite + Unpin,
    idle: Duration,
    wheel: &Rc<Wheel>,
) -> io::Result<(u64, u64)> {
    let moved = Cell::new(false);
    let mut a = Marked { io: &mut a, moved: &moved };
    let mut b = Marked { io: &mut b, moved: &moved };
    let mut copy = pin!(copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER));
    if idle.is_zero() {
        return copy.await;
    }
    let timer = wheel.arm(Instant::now() + idle);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(done) = copy.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if timer.poll_elapsed(cx).is_pending() {
                return Poll::Pending;
            }
            if !moved.replace(false) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing moved")));
            }
            timer.rearm(Instant::now() + idle);
        }
    })
    .await
}

/// Notes that bytes moved.
struct Marked<'a, T> {
    io: &'a mut T,
    moved: &'a Cell<bool>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Marked<'_, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.io).poll_read(cx, buf);
        if polled.is_ready() {
            this.moved.set(true);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Marked<'_, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut *this.io).poll_write(cx, buf);
        if polled.is_ready() {
            this.moved.set(true);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn passes_the_end_of_one_direction_on_and_keeps_the_other() {
        let wheel = Wheel::new(Instant::now());
        let (mut client, near) = duplex(64);
        let (far, mut server) = duplex(64);
        let tunnel = run(near, far, Duration::from_secs(1), &wheel);
        let talk = async {
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = String::new();
            server.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "ping");
            server.write_all(b"late answer").await.unwrap();
            server.shutdown().await.unwrap();
            got.clear();
            client.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "late answer");
        };
        let (copied, ()) = tokio::join!(tunnel, talk);
        assert_eq!(copied.unwrap(), (4, 11));
    }

    #[tokio::test]
    async fn ends_when_nothing_moves() {
        let wheel = Wheel::new(Instant::now());
        let (_client, near) = duplex(64);
        let (far, _server) = duplex(64);
        let turning = wheel.clone();
        let tunnel = run(near, far, Duration::from_millis(20), &wheel);
        let turn = async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                turning.advance(Instant::now());
            }
        };
        tokio::select! {
            ended = tunnel => assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut),
            () = turn => {}
        }
    }
}
