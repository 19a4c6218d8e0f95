//! Whatever comes, however it is cut.

use proptest::prelude::*;

use super::*;

/// Pieces of requests, good and bad, in any order: far more often interesting than arbitrary bytes.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        6 => Just("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        4 => Just("POST /p?q HTTP/1.1\r\nHost: a:80\r\n"),
        2 => Just("GET http://h/x HTTP/1.0\r\n"),
        1 => Just("CONNECT a:1 HTTP/1.1\r\n"),
        1 => Just("OPTIONS * HTTP/1.1\r\n"),
        4 => Just("Transfer-Encoding: chunked\r\n\r\n"),
        3 => Just("Content-Length: 5\r\n"),
        2 => Just("Connection: keep-alive\r\n"),
        1 => Just("Connection: close\r\n"),
        1 => Just("Upgrade: websocket\r\n"),
        3 => Just("Host: a\r\n"),
        3 => Just("X-Y: some value, which is long enough to be looked at in eights\t\r\n"),
        6 => Just("\r\n"),
        4 => Just("5\r\nhello\r\n"),
        3 => Just("1;a=\"b\"\r\nx\r\n"),
        5 => Just("0\r\n\r\n"),
        2 => Just("0\r\nTrailer-X: y\r\n\r\n"),
        3 => Just("hello"),
        1 => Just(" "),
        1 => Just("\n"),
        1 => Just("\r"),
        1 => Just("\0"),
        1 => Just(":"),
        1 => Just("\u{e9}"),
    ];
    prop::collection::vec(fragment, 0..14).prop_map(|fragments| fragments.concat().into_bytes())
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => fragments(), 1 => prop::collection::vec(any::<u8>(), 0..300), 1 => (fragments(), any::<u8>(), any::<prop::sample::Index>())
    .prop_map(|(mut bytes, byte, at)| {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })]
}

/// `bytes` in pieces of these sizes, over and over.
fn cut(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let (mut pieces, mut rest) = (Vec::new(), bytes);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, later) = rest.split_at(rest.len().min(*size));
        pieces.push(piece.to_vec());
        rest = later;
    }
    pieces
}

/// What httparse and `http` make of the heads that passed; `None` if they refuse one.
fn heads_for_hyper(mut bytes: &[u8]) -> Option<u64> {
    let mut heads = 0;
    let mut framing = Framing::new(Limits::default());
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = request.parse(bytes) else {
            return None;
        };
        heads += 1;
        let lines = bytes[..len].iter().filter(|byte| **byte == b'\n').count() - 2;
        let good = request.headers.len() == lines
            && http::Method::try_from(request.method?).is_ok()
            && http::Uri::try_from(request.path?).is_ok()
            && request.headers.iter().all(|field| {
                http::HeaderName::from_bytes(field.name.as_bytes()).is_ok()
                    && http::HeaderValue::from_bytes(field.value).is_ok()
            });
        if !good {
            return None;
        }
        // To the end of this message: the guard's framing, stopped behind one head.
        framing.advance(&bytes[..len]);
        bytes = &bytes[len..];
        while !bytes.is_empty() && framing.state() != State::Head {
            if matches!(framing.state(), State::Hold | State::Closed) {
                return Some(heads);
            }
            let passed = (1..=bytes.len()).map(|n| framing.advance(&bytes[..n]).pass).find(|pass| *pass > 0);
            bytes = &bytes[passed.unwrap_or(bytes.len())..];
        }
    }
    Some(heads)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_verdict_does_not_depend_on_the_cuts(
        bytes in bytes(),
        sizes in prop::collection::vec(1usize..40, 1..6),
        size in 1usize..200,
    ) {
        let whole = see([bytes.clone()], Limits::default(), 1 << 16);
        let pieces = see(cut(&bytes, &sizes), Limits::default(), size);
        prop_assert_eq!(pieces, whole);
    }

    #[test]
    fn what_passes_is_a_part_of_what_came(bytes in bytes(), sizes in prop::collection::vec(1usize..40, 1..6)) {
        let seen = see(cut(&bytes, &sizes), Limits::default(), 8192);
        // Nothing is changed, and only empty lines are left out.
        let mut came = bytes.as_slice();
        let mut passed = seen.bytes.as_slice();
        while let [byte, rest @ ..] = passed {
            while came.first() != Some(byte) {
                prop_assert!(matches!(came.first(), Some(b'\r' | b'\n')));
                came = &came[1..];
            }
            (passed, came) = (rest, &came[1..]);
        }
    }

    #[test]
    fn hyper_takes_every_head_that_passes(bytes in bytes()) {
        let seen = see([bytes], Limits::default(), 1 << 16);
        prop_assert_eq!(heads_for_hyper(&seen.bytes), Some(seen.requests), "{}", seen.text());
    }

    #[test]
    fn limits_do_not_depend_on_the_cuts(
        bytes in bytes(),
        sizes in prop::collection::vec(1usize..40, 1..6),
        head_bytes in 1usize..120,
        headers in 0usize..4,
        uri_bytes in 0usize..12,
    ) {
        let limits = Limits { head_bytes, headers, uri_bytes };
        let whole = see([bytes.clone()], limits, 1 << 16);
        let pieces = see(cut(&bytes, &sizes), limits, 1 << 16);
        prop_assert_eq!(pieces, whole);
    }
}
