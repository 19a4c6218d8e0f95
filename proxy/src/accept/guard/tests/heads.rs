//! Heads: what passes, and what is refused before hyper sees a byte of it.

use super::*;

#[test]
fn what_clients_send_passes() {
    for head in [
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n",
        "GET /index.html?a=b&c=%20|\\^`{}[] HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
        "GET /a|b/\"q\"/{id}/[x]/^;v=1,2:@!$&'()*+~ HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET // HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%2e%2E/%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /? HTTP/1.1\r\nHost: a\r\n\r\n",
        "get / HTTP/1.1\r\nHOST:a\r\n\r\n",
        "M-SEARCH / HTTP/1.1\r\nHost:\t a.b.c. \t\r\n\r\n",
        "GET http://example.com HTTP/1.1\r\nHost: example.com\r\n\r\n",
        "GET HTTP://example.com:80/x?y HTTP/1.1\r\nHost: example.com\r\n\r\n",
        "GET https://[::1]:443/ HTTP/1.1\r\nHost: [::1]:443\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \r\nZ: \t a\tb \t\r\nobs: \u{e9}\r\n!#$%&'*+-.^_`|~09az: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, , Upgrade ,TE,\r\nTE: trailers\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 000000000000005 \r\nExpect: 100-continue\r\n\r\nhello",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: x\r\nContent_Length: x\r\nX-Host: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\nPOST /3 HTTP/1.1\r\nHost: c\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        passes(head.as_bytes());
    }
}

/// Every one of these is `400 bad_request`, and hyper sees nothing.
#[test]
fn what_breaks_a_rule_is_refused() {
    for (line, detail) in [
        ("", "empty lines"),
        (" GET / HTTP/1.1", "start with a method"),
        ("GE(T / HTTP/1.1", "start with a method"),
        ("G\0T / HTTP/1.1", "start with a method"),
        ("GET", "start with a method"),
        ("\u{16}\u{3}\u{1}", "start with a method"),
        ("G\u{e9}T / HTTP/1.1", "start with a method"),
        ("MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM / HTTP/1.1", "method is too long"),
        ("GET  / HTTP/1.1", "neither a path"),
        ("GET\t/ HTTP/1.1", "start with a method"),
        ("GET /", "has no version"),
        ("GET / ", "version"),
        ("GET /  HTTP/1.1", "version"),
        ("GET / HTTP/1.1 ", "goes on behind"),
        ("GET / HTTP/1.1x", "goes on behind"),
        ("GET / HTTP/1.2", "version"),
        ("GET / HTTP/2.0", "version"),
        ("GET / HTTP/0.9", "version"),
        ("GET / HTTP/11", "version"),
        ("GET / http/1.1", "version"),
        ("GET / HTTP /1.1", "version"),
        ("GET /a b HTTP/1.1", "version"),
        ("PRI * HTTP/2.0", "neither a path"),
        ("GET * HTTP/1.1", "neither a path"),
        ("OPTIONS ** HTTP/1.1", "neither a path"),
        ("GET a HTTP/1.1", "neither a path"),
        ("GET ?a HTTP/1.1", "neither a path"),
        ("GET a:80 HTTP/1.1", "neither a path"),
        ("GET /#x HTTP/1.1", "fragment"),
        ("GET /?#x HTTP/1.1", "fragment"),
        ("GET http://a/#x HTTP/1.1", "fragment"),
        ("GET /\u{e9} HTTP/1.1", "not allowed in the target"),
        ("GET /?\u{e9} HTTP/1.1", "not allowed in the target"),
        ("GET /a\\b HTTP/1.1", "not allowed in the target"),
        ("GET /a<b HTTP/1.1", "not allowed in the target"),
        ("GET /a>b HTTP/1.1", "not allowed in the target"),
        ("GET /a`b HTTP/1.1", "not allowed in the target"),
        ("GET /?\" HTTP/1.1", "not allowed in the target"),
        ("GET /\t HTTP/1.1", "not allowed in the target"),
        ("GET /\u{7f} HTTP/1.1", "not allowed in the target"),
        ("GET /\0 HTTP/1.1", "not allowed in the target"),
        ("GET http://a/\\ HTTP/1.1", "not allowed in the target"),
        ("GET http://a/?\" HTTP/1.1", "not allowed in the target"),
        ("GET ftp://a/ HTTP/1.1", "neither a path"),
        ("GET http:/a/ HTTP/1.1", "neither a path"),
        ("GET http:///x HTTP/1.1", "authority"),
        ("GET http://u@a/ HTTP/1.1", "authority"),
        ("GET http://a:99999/ HTTP/1.1", "authority"),
        ("GET http://a?q HTTP/1.1", "authority"),
        ("CONNECT / HTTP/1.1", "CONNECT is not"),
        ("CONNECT * HTTP/1.1", "CONNECT is not"),
        ("CONNECT a HTTP/1.1", "CONNECT is not"),
        ("CONNECT a: HTTP/1.1", "CONNECT is not"),
        ("CONNECT u@a:1 HTTP/1.1", "CONNECT is not"),
        ("CONNECT http://a:1/ HTTP/1.1", "CONNECT is not"),
    ] {
        let head = format!("{line}\r\nHost: a\r\n\r\n");
        let head = if line.is_empty() { format!("\r\n\r\n\r\n{head}") } else { head };
        let said = refused(head.as_bytes());
        assert!(said.contains(detail), "{line:?}: {said}");
    }
}

#[test]
fn what_breaks_a_rule_in_a_field_is_refused() {
    for (fields, detail) in [
        ("X : y", "before a colon"),
        ("X\t: y", "before a colon"),
        (": y", "empty field name"),
        ("X", "without a colon"),
        ("X\0: y", "field name"),
        ("X\u{1}: y", "field name"),
        ("(X): y", "field name"),
        ("\u{e9}: y", "field name"),
        ("X: a\0b", "control character"),
        ("X: a\u{1}b", "control character"),
        ("X: a\u{7f}b", "control character"),
        ("X: \u{1b}[31m", "control character"),
        ("X: a\rb", "bare CR"),
        ("X: a\r", "bare CR"),
        ("X: a\nY: b", "bare LF"),
        ("X: a\n\r\n", "bare LF"),
        ("X\n: a", "bare LF"),
        ("X: a\r\n folded", "folded"),
        ("X: a\r\n\tfolded", "folded"),
        ("X: a\r\n : b", "folded"),
        ("Host: b", "more than one Host"),
        ("host: a", "more than one Host"),
        ("Content-Length: +5", "not a length"),
        ("Content-Length: -1", "not a length"),
        ("Content-Length: 0x3", "not a length"),
        ("Content-Length: 3, 5", "not a length"),
        ("Content-Length: 3, 3", "not a length"),
        ("Content-Length: 3 3", "not a length"),
        ("Content-Length: 3;", "not a length"),
        ("Content-Length: \"3\"", "not a length"),
        ("Content-Length:", "not a length"),
        ("Content-Length: 1e3", "not a length"),
        ("Content-Length: 9223372036854775808", "not a length"),
        ("Content-Length: 18446744073709551616", "not a length"),
        ("Content-Length: 00000000000000000005", "not a length"),
        ("Content-Length: 3\r\nContent-Length: 3", "more than one Content-Length"),
        ("Content-Length: 3\r\ncontent-length: 5", "more than one Content-Length"),
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", "both"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3", "both"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", "both"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "more than one Transfer-Encoding"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "more than one Transfer-Encoding"),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "other than chunked"),
        ("Transfer-Encoding: chunked, chunked", "other than chunked"),
        ("Transfer-Encoding: gzip, chunked", "other than chunked"),
        ("Transfer-Encoding: chunked, identity", "other than chunked"),
        ("Transfer-Encoding: ,chunked", "other than chunked"),
        ("Transfer-Encoding: xchunked", "other than chunked"),
        ("Transfer-Encoding: chunked;q=1", "other than chunked"),
        ("Transfer-Encoding: \"chunked\"", "other than chunked"),
        ("Transfer-Encoding: identity", "other than chunked"),
        ("Transfer-Encoding:", "other than chunked"),
        ("Transfer-Encoding: \u{b}chunked", "control character"),
        ("Transfer-Encoding : chunked", "before a colon"),
        (" Transfer-Encoding: chunked", "folded"),
        ("Transfer-Encoding\r\n : chunked", "without a colon"),
        ("Connection: a b", "list of tokens"),
        ("Connection: close; x", "list of tokens"),
        ("Connection: \"close\"", "list of tokens"),
        ("Connection: \u{e9}", "list of tokens"),
    ] {
        let said =
            refused(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\nGET /smuggled HTTP/1.1\r\n").as_bytes());
        assert!(said.contains(detail), "{fields:?}: {said}");
    }
}

#[test]
fn there_is_exactly_one_host_and_it_is_one() {
    assert!(refused(b"GET / HTTP/1.1\r\n\r\n").contains("no Host"));
    assert!(refused(b"GET / HTTP/1.1\r\nX: y\r\n\r\n").contains("no Host"));
    assert!(refused(b"GET http://a/ HTTP/1.1\r\n\r\n").contains("no Host"));
    assert!(refused(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n").contains("more than one Host"));
    for host in [
        "", " ", "a b", "a@b", "u:p@a", "a/b", "a,b", "http://a", "a:b", "a:", "a:65536", "a#b", "a?b", "a\\b",
        "\u{e9}",
    ] {
        for version in ["1.1", "1.0"] {
            let said = refused(format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n").as_bytes());
            assert!(said.contains("Host is not"), "{host:?}: {said}");
        }
    }
}

#[test]
fn http_1_0_has_no_transfer_encoding() {
    let said = refused(b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert!(said.contains("HTTP/1.0"));
    assert!(
        refused(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\n\r\nabc").contains("CONNECT with a body")
    );
    assert!(
        refused(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n")
            .contains("CONNECT with a body")
    );
}

#[test]
fn line_ends_are_crlf() {
    for head in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\rX",
        "GET / HTTP/1.1\rHost: a\r\r",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        refused(head.as_bytes());
    }
}

#[test]
fn two_empty_lines_before_a_request_are_dropped() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(seen(format!("\r\n\r\n{GET}\r\n{GET}\r\n\r\n").as_bytes()).text(), [GET, GET].concat());
    let third = seen(format!("{GET}\r\n\r\n\r\n{GET}").as_bytes());
    assert_eq!(third.text(), GET);
    assert!(third.violation.unwrap().detail.contains("empty lines"));
}

#[test]
fn limits_are_kept_to_the_byte_and_at_once() {
    let limits = Limits { head_bytes: 200, headers: 3, uri_bytes: 50 };
    let reason = |head: &str| seen_with(head.as_bytes(), limits).violation.map(|violation| violation.reason);

    let uri = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(n - 1));
    assert_eq!(reason(&uri(50)), None);
    assert_eq!(reason(&uri(51)), Some(Reason::UriTooLong));
    assert_eq!(reason(&format!("GET /?{}", "x".repeat(49))), Some(Reason::UriTooLong));
    assert_eq!(reason(&format!("GET http://a/{}", "x".repeat(49))), Some(Reason::UriTooLong));

    let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(n - 1));
    assert_eq!(reason(&fields(3)), None);
    assert_eq!(reason(&fields(4)), Some(Reason::HeadersTooLarge));

    let base = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    let sized = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n - base));
    assert_eq!(reason(&sized(200)), None);
    assert_eq!(reason(&sized(201)), Some(Reason::HeadersTooLarge));
    assert_eq!(reason(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(300))), Some(Reason::HeadersTooLarge));
    assert_eq!(reason(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(100))), None);

    let name = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}: b\r\n\r\n", "n".repeat(n));
    assert_eq!(seen(name(256).as_bytes()).violation, None);
    assert_eq!(seen(name(257).as_bytes()).violation.unwrap().reason, Reason::HeadersTooLarge);
}

#[test]
fn the_default_limits_are_those_of_the_design() {
    let uri = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(n - 1)).into_bytes();
    let see = |bytes: Vec<u8>| see([bytes], Limits::default(), 8192).violation.map(|violation| violation.reason);
    assert_eq!(see(uri(16 * 1024)), None);
    assert_eq!(see(uri(16 * 1024 + 1)), Some(Reason::UriTooLong));
    let large = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(n - 32)).into_bytes();
    assert_eq!(large(64 * 1024).len(), 64 * 1024);
    assert_eq!(see(large(64 * 1024)), None);
    assert_eq!(see(large(64 * 1024 + 1)), Some(Reason::HeadersTooLarge));
}

#[test]
fn good_requests_before_a_bad_one_pass() {
    const GOOD: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let seen = seen(format!("{GOOD}GET / HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    assert_eq!((seen.text().as_str(), seen.requests), (GOOD, 2));
    assert_eq!(seen.violation.unwrap().detail, "no Host");
}

#[test]
fn nothing_passes_behind_the_last_request() {
    for last in [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: x, CLOSE\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        for junk in ["", "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", "\0\0\n"] {
            let seen = seen([last, junk].concat().as_bytes());
            assert_eq!((seen.text().as_str(), seen.violation), (last, None));
        }
    }
}
