//! Bodies: what passes, and where the passing ends.

use super::*;

const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn chunked_bodies_pass_and_the_next_request_is_found() {
    for body in [
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "A\r\n0123456789\r\n0a\r\n0123456789\r\n00\r\n\r\n",
        "0000000000000001\r\nx\r\n0000000000000000\r\n\r\n",
        "2\r\n\r\n\r\n0\r\n\r\n",
        "3\r\n0\r\n\r\n0\r\n\r\n",
        "1;a\r\nx\r\n0;b=c;d=\"e;\\\"\\\\f\tg\u{e9}\";h\r\n\r\n",
        "0\r\nX-Checksum: 1\r\nServer-Timing:\r\n\r\n",
    ] {
        passes(format!("{HEAD}{body}").as_bytes());
        passes(format!("{HEAD}{body}{NEXT}{HEAD}{body}").as_bytes());
    }
}

#[test]
fn what_breaks_a_rule_in_a_chunked_body_fails_it() {
    for (body, detail) in [
        ("\r\n", "no size"),
        ("x\r\n", "no size"),
        (" 5\r\nhello\r\n", "no size"),
        ("+5\r\nhello\r\n", "no size"),
        ("-5\r\nhello\r\n", "no size"),
        ("0x5\r\nhello\r\n", "not a hexadecimal"),
        ("5 \r\nhello\r\n", "not a hexadecimal"),
        ("5\t\r\nhello\r\n", "not a hexadecimal"),
        ("5,\r\nhello\r\n", "not a hexadecimal"),
        ("5\nhello\r\n", "not a hexadecimal"),
        ("5\0\r\nhello\r\n", "not a hexadecimal"),
        ("5\rhello\r\n", "bare CR"),
        ("00000000000000000\r\n\r\n", "too large"),
        ("8000000000000000\r\n", "too large"),
        ("ffffffffffffffff\r\n", "too large"),
        ("10000000000000005\r\nhello\r\n", "too large"),
        ("5;\r\nhello\r\n", "extension"),
        ("5;;a\r\nhello\r\n", "extension"),
        ("5; a\r\nhello\r\n", "extension"),
        ("5 ;a\r\nhello\r\n", "not a hexadecimal"),
        ("5;a \r\nhello\r\n", "extension"),
        ("5;a=\r\nhello\r\n", "extension"),
        ("5;a=\"b\r\nhello\r\n", "extension"),
        ("5;a=\"b\"c\r\nhello\r\n", "extension"),
        ("5;a\nhello\r\n", "extension"),
        ("5;a\0\r\nhello\r\n", "extension"),
        ("5;a=\u{1}\r\nhello\r\n", "extension"),
        ("5;a=\"\u{1b}\"\r\nhello\r\n", "extension"),
        ("5;a=\"\\\r\n\"\r\nhello\r\n", "extension"),
        ("5\r\nhello", ""),
        ("5\r\nhello\n", "longer than its size"),
        ("5\r\nhello\r0", "longer than its size"),
        ("5\r\nhello!\r\n", "longer than its size"),
        ("5\r\nhello0\r\n\r\n", "longer than its size"),
        ("6\r\nhello\r\n0\r\n\r\n", "longer than its size"),
        ("0\r\nContent-Length: 5\r\n\r\n", "must not be a trailer"),
        ("0\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n", "must not be a trailer"),
        ("0\r\nHost: b\r\n\r\n", "must not be a trailer"),
        ("0\r\nAuthorization: b\r\n\r\n", "must not be a trailer"),
        ("0\r\nConnection: b\r\n\r\n", "must not be a trailer"),
        ("0\r\nX : y\r\n\r\n", "before a colon"),
        ("0\r\n: y\r\n\r\n", "empty field name"),
        ("0\r\n folded\r\n\r\n", "folded"),
        ("0\r\nX: y\n\r\n", "bare LF"),
        ("0\r\n\n", "bare LF"),
        ("0\r\n\rX", "bare CR"),
        ("0\r\nX: \0\r\n\r\n", "control character"),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", "before a colon"),
    ] {
        let seen = seen(format!("{HEAD}{body}").as_bytes());
        if detail.is_empty() {
            assert_eq!(seen.violation, None, "{body:?}");
            continue;
        }
        let violation = seen.violation.unwrap_or_else(|| panic!("passed: {body:?}"));
        assert!(violation.in_body && violation.detail.contains(detail), "{body:?}: {violation}");
        assert!(seen.text().starts_with(HEAD), "the head is good");
        assert!(!seen.text().contains("/next"));
    }
}

#[test]
fn trailers_wait_until_they_are_known_to_be_good() {
    let seen = seen(format!("{HEAD}1\r\nx\r\n0\r\nA: b\r\nHost: b\r\n\r\n").as_bytes());
    assert_eq!(seen.text(), format!("{HEAD}1\r\nx\r\n0\r\n"));
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let chunk = |n: usize| format!("{HEAD}1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(n));
    assert_eq!(seen(chunk(255).as_bytes()).violation, None);
    assert!(seen(chunk(256).as_bytes()).violation.unwrap().detail.contains("too long"));
    let many = format!("{HEAD}{}", format!("1;{}\r\nx\r\n", "e".repeat(200)).repeat(21));
    assert!(seen(many.as_bytes()).violation.unwrap().detail.contains("too long"));

    let fields = |n: usize| format!("{HEAD}0\r\n{}\r\n", "a: b\r\n".repeat(n));
    assert_eq!(seen(fields(100).as_bytes()).violation, None);
    assert_eq!(seen(fields(101).as_bytes()).violation.unwrap().reason, Reason::HeadersTooLarge);
    let large = format!("{HEAD}0\r\nX: {}", "x".repeat(8192));
    let violation = seen(large.as_bytes()).violation.unwrap();
    assert!(violation.in_body);
    assert_eq!(violation.reason, Reason::HeadersTooLarge);
}

#[test]
fn a_body_with_a_length_may_hold_anything() {
    let body = "GET /smuggled HTTP/1.1\r\n\0\n\r\n";
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    passes(format!("{request}{NEXT}{request}").as_bytes());
    let seen = seen(format!("{request}\0{NEXT}").as_bytes());
    assert_eq!((seen.text(), seen.requests), (request, 1));
}

#[test]
fn a_connection_that_ends_in_a_message_ends_for_hyper_too() {
    for part in ["", "GET /", &format!("{HEAD}5\r\nhe"), &format!("{HEAD}0\r\nX: y\r\n")] {
        let (mut guard, handle) = guard([part.as_bytes().to_vec()], Limits::default());
        guard.io.ends = true;
        drain(&mut guard, 1000);
        assert_eq!(drain(&mut guard, 1000), (Vec::new(), false));
        assert_eq!(handle.violation(), None);
    }
}
