//! With hyper's server behind the guard, driven as a connection's owner drives it.

use std::{convert::Infallible, future::poll_fn, pin::pin};

use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::*;

/// A response's body that keeps its exchange.
struct Tracked {
    body: Full<Bytes>,
    _exchange: Exchange,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a service saw.
#[derive(Default)]
struct Log(std::cell::RefCell<Vec<String>>);

impl Log {
    fn add(&self, line: impl Into<String>) {
        self.0.borrow_mut().push(line.into());
    }
}

/// Answers a request after reading its body: `/slow…` late, `/large…` with a megabyte, `/early…` without reading, `/hints` with a
/// 103 before.
async fn answer(
    request: Request<Incoming>,
    handle: GuardHandle,
    log: Rc<Log>,
) -> Result<Response<Tracked>, Infallible> {
    let exchange = handle.exchange();
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    log.add(format!("{} {path}", head.method));
    let respond = |status: StatusCode, body: Bytes| {
        let mut response = Response::new(Tracked { body: Full::new(body), _exchange: exchange });
        *response.status_mut() = status;
        Ok(response)
    };
    if path.starts_with("/early") {
        return respond(StatusCode::OK, Bytes::from_static(b"early"));
    }
    if path.starts_with("/slow") {
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    if path == "/hints" {
        handle.inject(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n").await;
    }
    if head.headers.get("upgrade").is_some_and(|protocol| protocol == "yes") {
        handle.resume_after_upgrade(true);
        return respond(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    }
    match body.collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            let size = if path.starts_with("/large") { 1 << 20 } else { 0 };
            log.add(format!("body {}", String::from_utf8_lossy(&body)));
            respond(StatusCode::OK, format!("{path}:{}{}", body.len(), ".".repeat(size)).into())
        }
        Err(error) => {
            log.add("body failed");
            let said = handle.violation().map_or_else(|| error.to_string(), |violation| violation.to_string());
            respond(StatusCode::BAD_REQUEST, said.into())
        }
    }
}

/// What is left of a connection that became a tunnel.
type Left<IO> = Option<(IO, Vec<u8>)>;

/// The owner's part, as the module's documentation describes it.
async fn serve<IO>(io: IO, prefix: &[u8], log: Rc<Log>) -> Left<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = Limits::default();
    let (guard, handle) = Guard::new(io, BytesMut::from(prefix), limits, clock());
    let mut http = http1::Builder::new();
    limits.configure(&mut http);
    let service = service_fn(|request| answer(request, handle.clone(), log.clone()));
    let mut connection = http.serve_connection(TokioIo::new(guard), service);
    let ended = poll_fn(|cx| {
        let mut polled = pin!(&mut connection);
        if let Poll::Ready(ended) = Future::poll(polled.as_mut(), cx) {
            return Poll::Ready(ended);
        }
        if handle.refuse_now() {
            Pin::new(&mut **polled).graceful_shutdown();
            return Future::poll(polled, cx);
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = ended {
        log.add(format!("connection: {error}"));
    }
    let parts = connection.into_parts();
    let guard = parts.io.into_inner();
    if handle.phase() == Phase::Tunnel {
        let (io, held) = guard.into_parts();
        return Some((io, [parts.read_buf, held].concat()));
    }
    let _ = guard.close(1 << 20, Duration::from_secs(2)).await;
    None
}

struct Outcome {
    replies: String,
    log: Vec<String>,
    left: Option<Vec<u8>>,
}

impl Outcome {
    /// The status lines of all replies.
    fn statuses(&self) -> Vec<&str> {
        self.replies.match_indices("HTTP/1.1 ").map(|(at, _)| &self.replies[at + 9..at + 12]).collect()
    }
}

async fn exchange(pieces: Vec<Vec<u8>>, close: bool, prefix: &[u8]) -> Outcome {
    let log = Rc::new(Log::default());
    let (client, server) = duplex(4096);
    let (mut from_server, mut to_server) = tokio::io::split(client);
    let talk = async move {
        let send = async {
            for piece in pieces {
                let _ = to_server.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            if close {
                let _ = to_server.shutdown().await;
            }
            to_server
        };
        let mut replies = Vec::new();
        let (_open, _) = tokio::join!(send, from_server.read_to_end(&mut replies));
        replies
    };
    let served = async {
        let left: Left<DuplexStream> = serve(server, prefix, log.clone()).await;
        left.map(|(_, bytes)| bytes)
    };
    let (replies, left) = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(talk, served) })
        .await
        .expect("the connection ends");
    Outcome { replies: String::from_utf8(replies).unwrap(), log: log.0.take(), left }
}

async fn in_one(input: &str) -> Outcome {
    exchange(vec![input.as_bytes().to_vec()], false, b"").await
}

const GET: &str = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_malformed_request_gets_the_named_reply_and_no_service() {
    for (bad, status, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request", "bad_request"),
        ("GET / HTTP/1.1\nHost: a\n\n", "400 Bad Request", "bad_request"),
        ("\u{16}\u{3}\u{1}", "400 Bad Request", "bad_request"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
            "bad_request",
        ),
        (&format!("GET /{}", "x".repeat(20_000)), "414 URI Too Long", "uri_too_long"),
        (
            &format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(101)),
            "431 Request Header Fields Too Large",
            "headers_too_large",
        ),
        (
            &format!("GET / HTTP/1.1\r\na: {}", "x".repeat(70_000)),
            "431 Request Header Fields Too Large",
            "headers_too_large",
        ),
    ] {
        let pieces = bad.as_bytes().chunks(1000).map(<[u8]>::to_vec).collect();
        let bytes = bad.bytes().take(3000).map(|byte| vec![byte]).chain([bad.bytes().skip(3000).collect()]).collect();
        for (pieces, close) in [(pieces, false), (vec![bad.as_bytes().to_vec()], true), (bytes, false)] {
            let outcome = exchange(pieces, close, b"").await;
            let replies = &outcome.replies;
            assert!(replies.starts_with(&format!("HTTP/1.1 {status}")), "{replies}");
            assert!(replies.contains(&format!("\r\nx-weft-reason: {reason}\r\n")), "{replies}");
            assert_eq!((outcome.statuses().len(), outcome.log), (1, vec![]));
        }
    }
}

#[tokio::test]
async fn good_pipelined_requests_get_their_replies_before_a_bad_one() {
    let post = "POST /slow2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let chunked = "POST /large3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let input = format!("{GET}{post}{chunked}{GET}GET / HTTP/1.1\r\nHost: a b\r\n\r\n{GET}");
    for pieces in [vec![input.clone().into_bytes()], input.bytes().map(|byte| vec![byte]).collect()] {
        for prefix in [0, 1, 40, 80] {
            let all = pieces.concat();
            let pieces = if prefix == 0 { pieces.clone() } else { vec![all[prefix..].to_vec()] };
            let outcome = exchange(pieces, false, &all[..prefix]).await;
            assert_eq!(outcome.statuses(), ["200", "200", "200", "200", "400"]);
            assert!(outcome.replies.ends_with("\r\n\r\nHost is not host or host:port\n"));
            assert!(outcome.replies.len() > 1 << 20);
            let calls = ["GET /1", "body ", "POST /slow2", "body hi", "POST /large3", "body hi", "GET /1", "body "];
            assert_eq!(outcome.log, calls);
        }
    }
}

#[tokio::test]
async fn a_violation_in_a_body_fails_it_and_the_service_answers() {
    let head = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5\r\nhello\r\n5 \r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: b\r\n\r\n",
        "5\r\nhello\r\n\n",
        "5\r\nhello0",
    ] {
        let input = format!("{head}{body}{GET}");
        for pieces in [vec![input.clone().into_bytes()], input.bytes().map(|byte| vec![byte]).collect()] {
            let outcome = exchange(pieces, false, b"").await;
            assert_eq!(outcome.statuses(), ["400"], "{}", outcome.replies);
            assert!(outcome.replies.contains("bad_request: "), "{}", outcome.replies);
            assert_eq!(outcome.log, ["POST /1", "body failed"], "never a clean end, nothing behind it");
        }
    }
}

#[tokio::test]
async fn a_truncated_body_is_never_a_clean_end() {
    for body in ["Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", "Content-Length: 5\r\n\r\nhell"] {
        let input = format!("POST /1 HTTP/1.1\r\nHost: a\r\n{body}");
        let outcome = exchange(vec![input.into_bytes()], true, b"").await;
        assert_eq!(outcome.log[..2], ["POST /1", "body failed"]);
    }
}

#[tokio::test]
async fn an_early_answer_to_an_unread_body_ends_the_connection() {
    let input = "POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n";
    let outcome = in_one(&format!("{input}{GET}")).await;
    assert_eq!(outcome.statuses(), ["200"]);
    assert_eq!(outcome.log, ["POST /early"]);
}

#[tokio::test]
async fn a_reply_follows_a_refused_upgrade_too() {
    let input = "GET /u HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: no\r\n\r\n";
    let outcome = in_one(&format!("{input}GET / HTTP/1.1\r\n\r\n")).await;
    assert_eq!(outcome.statuses(), ["200", "400"]);
    assert!(outcome.left.is_none());
}

#[tokio::test]
async fn a_tunnel_starts_behind_the_101_with_the_bytes_that_came_early() {
    let input = "GET /u HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: yes\r\n\r\n";
    for early in ["", "early \0\n frames"] {
        let outcome = in_one(&format!("{input}{early}")).await;
        assert_eq!(outcome.statuses(), ["101"]);
        assert_eq!(outcome.left.as_deref(), Some(early.as_bytes()));
    }
}

#[tokio::test]
async fn interim_responses_come_between_responses() {
    let hints = "GET /hints HTTP/1.1\r\nHost: a\r\n\r\n";
    let outcome = in_one(&format!("{GET}GET /large HTTP/1.1\r\nHost: a\r\n\r\n{hints}{hints}\0")).await;
    assert_eq!(outcome.statuses(), ["200", "200", "103", "200", "103", "200", "400"]);
}

#[tokio::test]
async fn the_largest_head_passes_hyper_too() {
    let fields: String = (1..100).map(|n| format!("x-{n}: {}\r\n", "v".repeat(600))).collect();
    let outcome = in_one(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n{fields}\r\n\0", "x".repeat(900))).await;
    assert_eq!(outcome.statuses(), ["200", "400"]);
}

#[tokio::test]
async fn a_client_that_still_sends_can_read_the_reply() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::task::spawn_local(async move {
                let (socket, _) = listener.accept().await.unwrap();
                serve(socket, b"", Rc::default()).await;
            });
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            client.write_all(&vec![b'x'; 500_000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.shutdown().await.unwrap();
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
            server.await.unwrap();
        })
        .await;
}
