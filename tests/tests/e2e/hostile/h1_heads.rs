//! Malformed HTTP/1 heads: 400, the reason, the connection closed, nothing upstream.

use weft_tests::{Client, soon};

use super::recorded;
use crate::Stage;

/// Sends each on a connection of its own. Returns what went wrong, so that one run shows every hole.
async fn refused<B: AsRef<[u8]>>(cases: &[(&str, B)], expected: &[u16]) {
    let stage = recorded().await;
    let mut holes = Vec::new();
    for (name, bytes) in cases {
        let before = stage.upstream.all().len();
        let mut wire = stage.wire().await;
        wire.send(bytes.as_ref()).await;
        let response = soon(name, wire.try_response("GET")).await;
        match response {
            None => holes.push(format!("{name}: closed without a response")),
            Some(response) => {
                let reason = response.header("x-weft-reason").map(str::to_owned);
                if !expected.contains(&response.status) || reason.is_none() {
                    holes.push(format!("{name}: {} {reason:?}", response.status));
                } else if response.status == 400 && reason.as_deref() != Some("bad_request") {
                    holes.push(format!("{name}: 400 with reason {reason:?}"));
                } else if response.keeps_alive() {
                    holes.push(format!("{name}: refused, but the response does not announce the close"));
                } else {
                    wire.expect_closed().await;
                }
            }
        }
        let forwarded = &stage.upstream.all()[before..];
        if !forwarded.is_empty() {
            holes.push(format!("{name}: FORWARDED {forwarded:?}"));
        }
    }
    assert!(holes.is_empty(), "{} of {} got through:\n{}", holes.len(), cases.len(), holes.join("\n"));
    assert_eq!(Client::h1(stage.addr).await.unwrap().get("a", "/").await.unwrap().text(), "ok", "an honest client");
}

fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n{body}")
}

fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n")
}

#[tokio::test]
async fn ambiguous_framing() {
    let te = "Transfer-Encoding";
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let cases = [
        ("CL.TE", post(&format!("Content-Length: 5\r\n{te}: chunked"), chunks)),
        ("TE.CL", post(&format!("{te}: chunked\r\nContent-Length: 5"), chunks)),
        ("CL 0 with TE", post(&format!("Content-Length: 0\r\n{te}: chunked"), chunks)),
        ("TE twice", post(&format!("{te}: chunked\r\n{te}: chunked"), chunks)),
        ("TE chunked, chunked", post(&format!("{te}: chunked, chunked"), chunks)),
        ("TE chunked not last", post(&format!("{te}: chunked, gzip"), chunks)),
        ("TE gzip, chunked", post(&format!("{te}: gzip, chunked"), chunks)),
        ("TE identity", post(&format!("{te}: identity"), "")),
        ("TE identity, chunked", post(&format!("{te}: identity, chunked"), chunks)),
        ("TE xchunked", post(&format!("{te}: xchunked"), chunks)),
        ("TE empty", post(&format!("{te}: "), chunks)),
        ("TE with a parameter", post(&format!("{te}: chunked;q=1"), chunks)),
        ("TE quoted", post(&format!("{te}: \"chunked\""), chunks)),
        ("TE with a vertical tab", post(&format!("{te}: \x0bchunked"), chunks)),
        ("TE with NUL", post(&format!("{te}: chunked\0"), chunks)),
        ("TE with a trailing comma", post(&format!("{te}: chunked,"), chunks)),
        ("TE with a space before the colon", post(&format!("{te} : chunked"), chunks)),
        ("TE folded", post(&format!("{te}:\r\n chunked"), chunks)),
        ("TE with an underscore beside CL", post("Transfer_Encoding\x00: chunked\r\nContent-Length: 5", "hello")),
        ("TE in HTTP/1.0", format!("POST / HTTP/1.0\r\nHost: a\r\n{te}: chunked\r\n\r\n{chunks}")),
        ("TE on a GET beside CL", get(&format!("Content-Length: 0\r\n{te}: chunked")) + chunks),
    ];
    refused(&cases, &[400, 501]).await;
}

#[tokio::test]
async fn odd_content_lengths() {
    let cases: Vec<_> = [
        "+5",
        "-1",
        "0x3",
        "3, 5",
        "3,5",
        "",
        " ",
        "5 5",
        "five",
        "5.0",
        "5e0",
        "05 ;",
        "\"5\"",
        "5;",
        "0b1",
        "٥",
        ",5",
        "5,",
        "18446744073709551616",
        "99999999999999999999999999",
        "-0",
        "5\0",
        "5\x0b",
    ]
    .into_iter()
    .map(|value| (format!("Content-Length: {value:?}"), post(&format!("Content-Length: {value}"), "hello")))
    .chain([
        ("two that differ".to_owned(), post("Content-Length: 5\r\nContent-Length: 6", "hello!")),
        ("two that differ, first zero".to_owned(), post("Content-Length: 0\r\nContent-Length: 5", "hello")),
        ("folded".to_owned(), post("Content-Length:\r\n 5", "hello")),
        ("space before the colon".to_owned(), post("Content-Length : 5", "hello")),
        ("on a GET".to_owned(), get("Content-Length: 5, 6") + "hello"),
    ])
    .collect();
    let cases: Vec<_> = cases.iter().map(|(name, bytes)| (name.as_str(), bytes)).collect();
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn header_fields_that_are_none() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty name", get(": value").into()),
        ("no colon", get("novalue").into()),
        ("space before the colon", get("X-A : 1").into()),
        ("tab before the colon", get("X-A\t: 1").into()),
        ("space in the name", get("X A: 1").into()),
        ("obs-fold", get("X-A: 1\r\n 2").into()),
        ("obs-fold with a tab", get("X-A: 1\r\n\t2").into()),
        ("leading space on the first field", b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n".to_vec()),
        ("control character in the name", get("X\x01A: 1").into()),
        ("DEL in the name", get("X\x7fA: 1").into()),
        ("high byte in the name", [b"GET / HTTP/1.1\r\nHost: a\r\nX\xff: 1\r\n\r\n".as_slice()].concat()),
        ("bracket in the name", get("X[A]: 1").into()),
        ("quote in the name", get("\"X\": 1").into()),
        ("NUL in the name", get("X\0A: 1").into()),
        ("NUL in a value", get("X-A: 1\x002").into()),
        ("control character in a value", get("X-A: 1\x012").into()),
        ("ESC in a value", get("X-A: \x1b[31m").into()),
        ("DEL in a value", get("X-A: 1\x7f2").into()),
        ("bare CR in a value", get("X-A: 1\r2").into()),
        ("bare CR before the end", get("X-A: 1\r").into()),
        ("bare LF ends a field", get("X-A: 1\nX-B: 2").into()),
        ("bare LF ends the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n".to_vec()),
        ("bare LF ends the head", b"GET / HTTP/1.1\r\nHost: a\r\n\n".to_vec()),
        ("bare LF everywhere", b"GET / HTTP/1.1\nHost: a\n\n".to_vec()),
        ("CR CR LF", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n".to_vec()),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn hosts_that_are_none() {
    let with = |host: &str| format!("GET / HTTP/1.1\r\n{host}\r\n\r\n");
    let cases = [
        ("none", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("two", with("Host: a\r\nHost: b")),
        ("two alike", with("Host: a\r\nHost: a")),
        ("empty", with("Host: ")),
        ("a space", with("Host: a b")),
        ("a tab", with("Host: a\tb")),
        ("a list", with("Host: a, b")),
        ("userinfo", with("Host: a@b")),
        ("userinfo with a password", with("Host: u:p@b")),
        ("a path", with("Host: a/b")),
        ("a scheme", with("Host: http://a")),
        ("a query", with("Host: a?b")),
        ("a fragment", with("Host: a#b")),
        ("a backslash", with("Host: a\\b")),
        ("a port that is none", with("Host: a:b")),
        ("a port too large", with("Host: a:99999")),
        ("two ports", with("Host: a:80:81")),
        ("only a port", with("Host: :80")),
        ("an open bracket", with("Host: [::1")),
        ("not an address in brackets", with("Host: [zz]")),
        ("text behind brackets", with("Host: [::1]x")),
        ("angle brackets", with("Host: <a>")),
        ("a quote", with("Host: \"a\"")),
        ("a percent sign that escapes nothing", with("Host: a%zz")),
        ("an escaped NUL", with("Host: a%00")),
        ("high bytes", with("Host: ä.local")),
        ("absolute-form with userinfo", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("absolute-form without a host", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("absolute-form, two Hosts", "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into()),
        ("absolute-form, bad Host", "GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n".into()),
        ("absolute-form, no Host", "GET http://a/ HTTP/1.1\r\n\r\n".into()),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn request_lines_that_are_none() {
    let line = |line: &str| format!("{line}\r\nHost: a\r\n\r\n");
    let cases = [
        ("empty method", line(" / HTTP/1.1")),
        ("method with a bracket", line("GE[T / HTTP/1.1")),
        ("method with a colon", line("GET: / HTTP/1.1")),
        ("method with a control character", line("G\x01T / HTTP/1.1")),
        ("method with NUL", line("GET\0 / HTTP/1.1")),
        ("two spaces", line("GET  / HTTP/1.1")),
        ("a tab", line("GET\t/\tHTTP/1.1")),
        ("a space in the target", line("GET /a b HTTP/1.1")),
        ("a control character in the target", line("GET /a\x01b HTTP/1.1")),
        ("NUL in the target", line("GET /a\0b HTTP/1.1")),
        ("DEL in the target", line("GET /a\x7fb HTTP/1.1")),
        ("a fragment in the target", line("GET /a#b HTTP/1.1")),
        ("no slash", line("GET a HTTP/1.1")),
        ("empty target", line("GET  HTTP/1.1")),
        ("star for a GET", line("GET * HTTP/1.1")),
        ("authority-form for a GET", line("GET a:80 HTTP/1.1")),
        ("an unknown scheme", line("GET ftp://a/ HTTP/1.1")),
        ("CONNECT with a path", line("CONNECT /x HTTP/1.1")),
        ("CONNECT without a port", line("CONNECT a HTTP/1.1")),
        ("no version", line("GET /")),
        ("HTTP/0.9", "GET /\r\n".into()),
        ("HTTP/1", line("GET / HTTP/1")),
        ("HTTP/1.", line("GET / HTTP/1.")),
        ("HTTP/1.11", line("GET / HTTP/1.11")),
        ("HTTP/01.1", line("GET / HTTP/01.1")),
        ("HTTP/2.0", line("GET / HTTP/2.0")),
        ("HTTP/9.9", line("GET / HTTP/9.9")),
        ("http/1.1 in lower case", line("GET / http/1.1")),
        ("another protocol", line("GET / HTCPCP/1.1")),
        ("words behind the version", line("GET / HTTP/1.1 x")),
        ("a TLS ClientHello", "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03 and so on and so on\r\n\r\n".into()),
        ("noise", "\u{1}\u{2}\u{3}\u{4}garbage garbage garbage\r\n\r\n".into()),
    ];
    refused(&cases, &[400, 505]).await;
}

#[tokio::test]
async fn too_much_of_everything_has_its_own_answer() {
    let stage = recorded().await;
    for (name, request, status, reason) in [
        ("a long target", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000)), 414, "uri_too_long"),
        ("one long field", get(&format!("X-Long: {}", "v".repeat(300_000))), 431, "headers_too_large"),
        ("many fields", get("X-Many: 1\r\n".repeat(5_000).trim_end()), 431, "headers_too_large"),
        ("a long name", get(&format!("{}: 1", "n".repeat(300_000))), 431, "headers_too_large"),
    ] {
        let before = stage.upstream.all().len();
        let mut wire = stage.wire().await;
        // Weft may answer and close before everything is read: reading and writing go side by side.
        wire.send(&request).await;
        let response = soon(name, wire.try_response("GET")).await.unwrap_or_else(|| panic!("{name}: no response"));
        assert_eq!((response.status, response.header("x-weft-reason")), (status, Some(reason)), "{name}");
        assert!(!response.keeps_alive(), "{name}");
        assert_eq!(stage.upstream.all().len(), before, "{name} was forwarded");
    }
    let mut wire = stage.wire().await;
    let ordinary = get(&format!("Cookie: {}", "c".repeat(6_000)));
    assert_eq!(wire.exchange(ordinary).await.status, 200, "what browsers send is fine");
}

#[tokio::test]
async fn what_follows_a_refused_request_is_never_read_as_one() {
    let stage = recorded().await;
    for bad in [
        post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("Content-Length: +9", ""),
        get("X-A : 1"),
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".to_owned(),
    ] {
        let mut wire = stage.wire().await;
        wire.send(format!("{bad}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(wire.read_response().await.status, 400);
        wire.expect_closed().await;
    }
    assert!(!stage.upstream.all().contains("smuggled"));
}

#[tokio::test]
async fn a_good_request_before_a_bad_one_is_answered() {
    let stage: Stage<_> = recorded().await;
    let mut wire = stage.wire().await;
    wire.send(format!("{}{}", get("X-Good: 1"), get("Bad Header: 1"))).await;
    assert_eq!(wire.read_response().await.status, 200);
    let bad = wire.read_response().await;
    assert_eq!((bad.status, bad.header("x-weft-reason")), (400, Some("bad_request")));
    wire.expect_closed().await;
}
