//! What the guard costs: run under callgrind with two counts, and divide the difference.
//!
//! ```sh
//! cargo build --release -p weft-proxy --example guard_cost
//! for n in 1000 11000; do valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/guard_cost wrk $n; done
//! ```
//! The first argument is one of `wrk`, `curl`, `browser`, `post`, or one of them with `-bare` for the loop without a guard.

use std::{
    cell::Cell,
    hint::black_box,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_proxy::accept::guard::{Guard, Limits};

const WRK: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
const CURL: &str =
    "GET /api/v1/items?page=2 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";
const BROWSER: &str = "GET /api/v1/items?page=2 HTTP/1.1\r\nHost: shop.example.com\r\nConnection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"126\", \"Not-A.Brand\";v=\"8\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\nSec-Fetch-Site: none\r\n\
    Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9\r\nCookie: session=0123456789abcdef0123456789abcdef\r\n\r\n";
const POST: &str = "POST /api/v1/items HTTP/1.1\r\nHost: shop.example.com\r\nContent-Type: application/json\r\n\
    Content-Length: 17\r\n\r\n{\"item\":\"kettle\"}";

/// The same request at every read.
struct Again(&'static [u8]);

impl AsyncRead for Again {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        buf.put_slice(self.0);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Again {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn run(mut io: impl AsyncRead + Unpin, n: usize, mut each: impl FnMut()) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut memory = [0; 8192];
    for _ in 0..n {
        let mut buf = ReadBuf::new(&mut memory);
        let _ = black_box(Pin::new(&mut io).poll_read(&mut cx, &mut buf));
        black_box(buf.filled());
        each();
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_default();
    let n = args.next().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let request = match name.trim_end_matches("-bare") {
        "curl" => CURL,
        "browser" => BROWSER,
        "post" => POST,
        _ => WRK,
    };
    let io = Again(request.as_bytes());
    if name.ends_with("-bare") {
        run(io, n, || {});
    } else {
        let (guard, handle) = Guard::new(io, BytesMut::new(), Limits::default(), Rc::new(Cell::new(Instant::now())));
        run(guard, n, || drop(handle.exchange()));
        assert_eq!((handle.requests(), handle.violation()), (n as u64, None));
    }
}
