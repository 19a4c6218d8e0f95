use std::{
    io,
    sync::mpsc::{Receiver, Sender, channel},
};

use http::HeaderValue;
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    error::Reason,
    telemetry::fixture::{Exchange, attempt},
};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn exchange() -> Exchange {
    Exchange::new(Some(Metrics::default().slot("shop", "/cart", "cart")))
}

fn lines(format: LogFormat, exchanges: &[Exchange]) -> String {
    let memory = Memory::default();
    let writer = LogWriter::new(Box::new(memory.clone()), Arc::default());
    let sender = writer.sender();
    for exchange in exchanges {
        let facts = exchange.facts();
        let start = || UNIX_EPOCH + Duration::from_millis(1_795_215_445_007);
        sender.write(&AccessLog { format, when: None }, &facts, facts.slot.unwrap(), start);
    }
    writer.flush(LIMIT);
    let written = memory.0.lock().unwrap().clone();
    String::from_utf8(written).unwrap()
}

#[test]
fn json_has_every_field() {
    let mut exchange = exchange();
    exchange.query = Some("a=1".into());
    exchange.grpc = Some(Some(14));
    exchange.workload = Some("web".into());
    let mut failed = attempt(exchange.start);
    (failed.head, failed.end) = (None, Some(exchange.start + Duration::from_millis(1)));
    exchange.attempts.insert(0, failed);
    let line = lines(LogFormat::Json, &[exchange]);
    assert!(line.starts_with(r#"{"time":"2026-11-20T22:57:25.007Z","method":"GET","path":"/cart/7","#), "{line}");
    let mut expected = json!({
        "time": "2026-11-20T22:57:25.007Z", "method": "GET", "path": "/cart/7", "query": "a=1",
        "host": "shop.example.com:8080", "protocol": "HTTP/1.1", "status": 200, "route": "shop", "rule": "rule-0",
        "service": "cart", "endpoint": "10.0.0.1:9000", "duration_ms": 12.0, "upstream_ms": 11.0, "bytes_in": 3,
        "bytes_out": 512, "client": "192.0.2.1:5555", "user_agent": "curl/8", "request_id": "req-1",
        "trace_id": "00000000000000000000000000000abc", "attempts": 2, "grpc_status": 14,
        "workload": "web",
    });
    assert_eq!(serde_json::from_str::<Json>(&line).unwrap(), expected);

    let mut refused = self::exchange();
    refused.attempts.clear();
    refused.trace.trace_id = 0;
    (refused.status, refused.reason) = (404, Some(Reason::NoRoute));
    refused.slot = Some(Metrics::default().slot("", "", ""));
    let line = lines(LogFormat::Json, &[refused]);
    let fields = expected.as_object_mut().unwrap();
    for absent in ["workload", "query", "route", "service", "endpoint", "upstream_ms", "trace_id", "grpc_status"] {
        fields.remove(absent);
    }
    fields.extend(
        [("status", json!(404)), ("reason", json!("no_route")), ("attempts", json!(0))].map(|(k, v)| (k.to_owned(), v)),
    );
    assert_eq!(serde_json::from_str::<Json>(&line).unwrap(), expected);
}

#[test]
fn text_is_one_readable_line() {
    assert_eq!(
        lines(LogFormat::Text, &[exchange()]),
        "2026-11-20T22:57:25.007Z GET shop.example.com:8080/cart/7 HTTP/1.1 200 12ms route=shop rule=rule-0 \
         service=cart endpoint=10.0.0.1:9000 upstream_ms=10 client=192.0.2.1:5555 user_agent=curl/8 \
         request_id=req-1 trace_id=00000000000000000000000000000abc attempts=1 in=3 out=512\n"
    );
}

#[test]
fn only_what_the_condition_lets_through_is_logged() {
    let log = |when: &str| {
        let when = Some(weft_model::condition::Condition::parse(when).unwrap());
        let memory = Memory::default();
        let writer = LogWriter::new(Box::new(memory.clone()), Arc::default());
        let sender = writer.sender();
        let mut exchange = exchange();
        let log = AccessLog { format: LogFormat::Json, when };
        for (status, reason, ms) in [(200, None, 12), (503, Some(Reason::CircuitOpen), 1), (200, None, 1500)] {
            (exchange.status, exchange.reason, exchange.took) = (status, reason, Duration::from_millis(ms));
            let facts = exchange.facts();
            sender.write(&log, &facts, facts.slot.unwrap(), SystemTime::now);
        }
        writer.flush(LIMIT);
        let written = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let lines = written.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        lines.map(|line| line["duration_ms"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(log("status >= 500 || duration > 1s"), [1.0, 1500.0]);
    assert_eq!(log("reason == \"circuit_open\""), [1.0]);
    assert_eq!(log("route == \"shop\" && service == \"cart\" && method == \"GET\""), [12.0, 1.0, 1500.0]);
    assert_eq!(log("path == \"/other\""), [0.0; 0]);
}

#[test]
fn what_clients_send_cannot_steer_a_terminal() {
    let hostile = "/\u{1b}[31mred\u{7f}\u{9b}2J\u{202e}txt\r\nforged\t\"q\\";
    let mut exchange = exchange();
    exchange.path = hostile.into();
    exchange.user_agent = HeaderValue::from_bytes(b"a \x9b \xc2\x9bK \xff\t\"").unwrap();
    for format in [LogFormat::Json, LogFormat::Text] {
        let line = lines(format, std::slice::from_ref(&exchange));
        let bad =
            line.trim_end_matches('\n').chars().filter(|c| c.is_control() || *c == '\u{202e}').collect::<Vec<_>>();
        assert!(bad.is_empty(), "{bad:?} in {line}");
        assert_eq!(line.lines().count(), 1);
        if format == LogFormat::Json {
            let parsed = serde_json::from_str::<Json>(&line).unwrap();
            assert_eq!(parsed["path"], json!(hostile), "nothing is lost");
        } else {
            assert!(
                line.contains(r#"/\u{1b}[31mred\u{7f}\u{9b}2J\u{202e}txt\u{d}\u{a}forged\u{9}\"q\\ HTTP/1.1"#),
                "{line}"
            );
        }
    }
}

/// A sink that writes only when it is told to.
struct Stuck(Receiver<()>, Sender<usize>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.recv().map_err(io::Error::other)?;
        self.1.send(bytes.len()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_costs_lines_and_no_time() {
    let ((release, stuck), (report, written)) = (channel(), channel());
    let metrics = Arc::<Metrics>::default();
    let writer = LogWriter::new(Box::new(Stuck(stuck, report)), Arc::clone(&metrics));
    let sender = writer.sender();
    let line = [b'x'; 1024];
    for _ in 0..3000 {
        sender.send(&line);
    }
    let dropped = metrics.access_log_dropped.load(Relaxed) as usize;
    // The writer may hold one buffer, and another one waits.
    let kept = 3000 - dropped;
    assert!((1024..=2048).contains(&kept), "{kept} kept");
    let begun = Instant::now();
    writer.flush(Duration::from_millis(50));
    assert!(begun.elapsed() < Duration::from_secs(5), "a flush is bounded");
    release.send(()).unwrap();
    release.send(()).unwrap();
    drop(release);
    writer.flush(LIMIT);
    assert_eq!(written.try_iter().sum::<usize>(), kept * line.len(), "what was kept is written");
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let metrics = Arc::<Metrics>::default();
    let (closed, report) = (channel().1, channel().0);
    let writer = LogWriter::new(Box::new(Stuck(closed, report)), Arc::clone(&metrics));
    let sender = writer.sender();
    sender.send(b"one\n");
    sender.send(b"two\n");
    writer.flush(LIMIT);
    assert_eq!(metrics.access_log_dropped.load(Relaxed), 2);
}

#[test]
fn days_have_dates() {
    let cases = [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (951_868_800_000, "2000-03-01T00:00:00.000Z"),
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
        (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        (4_107_456_000_000, "2100-02-28T00:00:00.000Z"),
        (13_569_465_600_000, "2400-01-01T00:00:00.000Z"),
    ];
    for (ms, expected) in cases {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(ms)), expected);
    }
    // Every day follows the one before.
    for day in 0..200_000 {
        let ((y, m, d), next) = (civil(day), civil(day + 1));
        assert!(next == (y, m, d + 1) || next == (y, m + 1, 1) || next == (y + 1, 1, 1), "{y}-{m}-{d}");
        assert!((1..=12).contains(&m) && (1..=31).contains(&d));
    }
}
