//! Malformed HTTP/2 requests: never forwarded, and the rest of the connection as unharmed as the error allows.

use weft_tests::{
    Client, RawUpstream,
    frames::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, H2Wire, HEADERS, RST_STREAM},
    soon,
};

use super::recorded;
use crate::Stage;

/// Refused: the stream or connection is ended, or answered with a 400.
fn is_refusal(end: &End) -> bool {
    !matches!(end, End::Response(status) if *status != Some(400))
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let stage = recorded().await;
    let get = || frames::get("a", "/");
    let with = |more: &[(&'static str, &'static str)]| {
        let mut fields = get();
        fields.extend_from_slice(more);
        fields
    };
    let without = |name: &str| get().into_iter().filter(|(key, _)| *key != name).collect::<Vec<_>>();
    let replaced = |name: &str, value: &'static str| {
        get().into_iter().map(|(key, old)| (key, if key == name { value } else { old })).collect::<Vec<_>>()
    };
    let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "x")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "h2c")])),
        ("te: gzip", with(&[("te", "gzip")])),
        ("te: trailers, gzip", with(&[("te", "trailers, gzip")])),
        ("upper case", with(&[("X-Upper", "1")])),
        ("empty name", with(&[("", "1")])),
        ("space in a name", with(&[("x a", "1")])),
        ("colon in a name", with(&[("x:a", "1")])),
        ("control character in a name", with(&[("x\u{1}a", "1")])),
        ("NUL in a value", with(&[("x-a", "1\u{0}2")])),
        ("CR LF in a value", with(&[("x-a", "1\r\nx-b: 2")])),
        ("LF in a value", with(&[("x-a", "1\n2")])),
        ("control character in a value", with(&[("x-a", "1\u{1}2")])),
        ("DEL in a value", with(&[("x-a", "1\u{7f}2")])),
        ("late pseudo-header", with(&[("x-a", "1"), (":path", "/late")])),
        ("repeated :path", with(&[(":path", "/two")])),
        ("repeated :method", with(&[(":method", "POST")])),
        ("repeated :authority", with(&[(":authority", "b")])),
        ("unknown pseudo-header", with(&[(":unknown", "1")])),
        ("response pseudo-header", with(&[(":status", "200")])),
        ("no :method", without(":method")),
        ("no :path", without(":path")),
        ("no :scheme", without(":scheme")),
        ("no :authority and no host", without(":authority")),
        ("empty :path", replaced(":path", "")),
        ("empty :authority", replaced(":authority", "")),
        (":path without a slash", replaced(":path", "a")),
        (":path with a space", replaced(":path", "/a b")),
        (":path with a control character", replaced(":path", "/a\u{1}")),
        (":path with CR LF", replaced(":path", "/ HTTP/1.1\r\nhost: b\r\nx:")),
        (":path absolute", replaced(":path", "http://b/")),
        (":path star for a GET", replaced(":path", "*")),
        (":method with a space", replaced(":method", "GET /x HTTP/1.1\r\n")),
        (":method empty", replaced(":method", "")),
        (":scheme unknown", replaced(":scheme", "gopher")),
        (":scheme with a slash", replaced(":scheme", "http://b/?")),
        (":authority with userinfo", replaced(":authority", "u@a")),
        (":authority with a space", replaced(":authority", "a b")),
        (":authority with a slash", replaced(":authority", "a/b")),
        (":authority with CR LF", replaced(":authority", "a\r\nx: y")),
        (":authority with a bad port", replaced(":authority", "a:b")),
        (":authority and host differ", with(&[("host", "b")])),
        ("two hosts", with(&[("host", "a"), ("host", "b")])),
        ("host only, with userinfo", {
            let mut fields = without(":authority");
            fields.push(("host", "u@a"));
            fields
        }),
        ("content-length with an end at once", with(&[("content-length", "5")])),
        ("content-length +0", with(&[("content-length", "+0")])),
        ("content-length twice", with(&[("content-length", "0"), ("content-length", "1")])),
    ];
    let mut holes = Vec::new();
    for (name, fields) in &cases {
        let before = stage.upstream.all().len();
        let mut wire = H2Wire::connect(stage.addr).await;
        wire.request(1, fields, true).await;
        let end = wire.end_of(1).await;
        if !is_refusal(&end) {
            holes.push(format!("{name}: {end:?}"));
        }
        let forwarded = &stage.upstream.all()[before..];
        if !forwarded.is_empty() {
            holes.push(format!("{name}: FORWARDED {forwarded:?}"));
        }
    }
    assert!(holes.is_empty(), "{} of {} got through:\n{}", holes.len(), cases.len(), holes.join("\n"));
    assert_eq!(Client::h2(stage.addr).await.unwrap().get("a", "/").await.unwrap().text(), "ok");
}

#[tokio::test]
async fn a_fragment_is_never_forwarded() {
    // Not a part of any request target. Refused, or cut off before rules are matched; never seen by the upstream.
    let stage = recorded().await;
    let mut wire = H2Wire::connect(stage.addr).await;
    wire.request(1, &frames::get("a", "/a#/../admin"), true).await;
    wire.end_of(1).await;
    let all = stage.upstream.all();
    assert!(all.is_empty() || all.starts_with("GET /a HTTP/1.1\r\n"), "{all}");
}

#[tokio::test]
async fn a_refusal_names_its_reason() {
    let stage = recorded().await;
    let mut client = Client::h2(stage.addr).await.unwrap();
    let bad = weft_tests::client::get_with("u@a", "/", &[]);
    // hyper's client may refuse to send this at all; the raw cases above cover that.
    if let Ok(reply) = client.send(bad).await {
        reply.assert_refused(400, "bad_request");
    }
    let reply = client.send(weft_tests::client::get_with("a", "/%00", &[])).await.unwrap();
    assert!(reply.status == 200 || reply.status == 400, "{reply:?}");
    assert_eq!(client.get("a", "/").await.unwrap().text(), "ok", "the connection goes on");
}

#[tokio::test]
async fn content_length_is_held_against_data() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        for (name, promised, sent) in
            [("too little", "10", 5_usize), ("too much", "5", 10), ("some after none", "0", 1)]
        {
            let mut wire = H2Wire::connect(stage.addr).await;
            let fields = [
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", "/upload"),
                ("content-length", promised),
            ];
            wire.request(1, &fields, false).await;
            wire.send(DATA, END_STREAM, 1, &vec![b'x'; sent]).await;
            let end = wire.end_of(1).await;
            assert!(is_refusal(&end) || end == End::Response(None), "{name}: {end:?}");
            assert_ne!(end, End::Response(Some(200)), "{name}");
        }
        assert_eq!(stage.client_h2().await.post("a", "/upload", "12345").await.unwrap().json()["bytes"], 5);
    }
}

#[tokio::test]
async fn data_in_the_same_packet_as_a_reset_does_no_harm() {
    let stage = Stage::h1().await;
    let mut wire = H2Wire::connect(stage.addr).await;
    for stream in (1..400).step_by(2) {
        let fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/upload")];
        let mut bytes = frames::frame(HEADERS, END_HEADERS, stream, &frames::block(&fields));
        bytes.extend(frames::frame(DATA, 0, stream, b"some data"));
        bytes.extend(frames::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        bytes.extend(frames::frame(DATA, END_STREAM, stream, b"more data"));
        if !wire.send_bytes(&bytes).await {
            break;
        }
    }
    drop(wire);
    assert_eq!(stage.client_h2().await.get("a", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn frames_out_of_order_end_the_connection() {
    let stage = recorded().await;
    let headers = |flags| frames::frame(HEADERS, flags, 1, &frames::block(&frames::get("a", "/")));
    for (name, bytes) in [
        ("DATA on an idle stream", frames::frame(DATA, 0, 1, b"x")),
        ("DATA on stream 0", frames::frame(DATA, 0, 0, b"x")),
        ("HEADERS on stream 0", frames::frame(HEADERS, END_HEADERS, 0, &frames::block(&frames::get("a", "/")))),
        (
            "HEADERS on an even stream",
            frames::frame(HEADERS, END_HEADERS | END_STREAM, 2, &frames::block(&frames::get("a", "/"))),
        ),
        ("CONTINUATION alone", frames::frame(CONTINUATION, END_HEADERS, 1, b"")),
        ("a frame between HEADERS and CONTINUATION", [headers(0), frames::frame(DATA, 0, 1, b"x")].concat()),
        ("a frame larger than allowed", frames::frame(DATA, 0, 1, &vec![0; 17_000])),
        ("SETTINGS of a bad length", frames::frame(frames::SETTINGS, 0, 0, &[0; 5])),
        ("SETTINGS on a stream", frames::frame(frames::SETTINGS, 0, 1, &[])),
        ("an initial window too large", frames::frame(frames::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("PING of a bad length", frames::frame(frames::PING, 0, 0, &[0; 7])),
        ("a WINDOW_UPDATE of nothing", frames::frame(frames::WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("RST_STREAM of an idle stream", frames::frame(RST_STREAM, 0, 1, &[0; 4])),
        ("HPACK: an index beyond the table", frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0x7f])),
        ("HPACK: an endless integer", frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 64])),
        (
            "HPACK: a string longer than its block",
            frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0, 0x7e, b'a']),
        ),
        ("a window that overflows", {
            let more = frames::frame(frames::WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
            [more.clone(), more].concat()
        }),
    ] {
        let mut wire = H2Wire::connect(stage.addr).await;
        wire.send_bytes(&bytes).await;
        let code = soon(name, wire.drain()).await;
        assert_ne!(code, Some(0), "{name}: ended as if nothing were wrong");
    }
    assert_eq!(stage.upstream.all(), "");
    assert_eq!(Client::h2(stage.addr).await.unwrap().get("a", "/").await.unwrap().text(), "ok");
}

#[tokio::test]
async fn cr_and_lf_of_an_http_2_upstream_never_reach_an_http_1_client() {
    // An upstream whose HEADERS carry CR LF would split the response of a client on HTTP/1.
    let upstream = RawUpstream::start(|mut wire, _| async move {
        if wire.read_until(b"SM\r\n\r\n").await.is_none() {
            return;
        }
        wire.send(frames::frame(frames::SETTINGS, 0, 0, &[])).await;
        let fields = [(":status", "200"), ("x-a", "1\r\nset-cookie: evil=1\r\n\r\nsplit")];
        wire.send(frames::frame(frames::SETTINGS, frames::ACK, 0, &[])).await;
        while let Some(head) = wire.read_exact(9).await {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            wire.read_exact(length).await;
            if head[3] == HEADERS {
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                wire.send(frames::frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::block(&fields))).await;
            }
        }
    })
    .await;
    let stage: Stage<_> = Stage::new(upstream, "h2c", |upstream: &RawUpstream| upstream.addr).await;
    let response = stage.wire().await.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.status, response.header("set-cookie")), (502, None), "{response:?}");
}
