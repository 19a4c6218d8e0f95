//! The access log.

use serde_json::Value;
use weft_tests::{Upstream, Weft, client, eventually, ports, yaml};

use crate::local;

async fn logging(spec: &str) -> (Weft, std::net::SocketAddr, Upstream) {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let config = yaml::docs(&[yaml::simple(port, "http", upstream.addr), yaml::telemetry(spec)]);
    (Weft::start(&config).await, local(port), upstream)
}

fn lines(weft: &Weft) -> Vec<Value> {
    let text = weft.stdout();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[tokio::test]
async fn each_request_is_a_json_line() {
    let (weft, addr, upstream) = logging("accessLog: {format: json}").await;
    let mut client = weft_tests::Client::h1(addr).await.unwrap();
    client.post("shop.local", "/items?q=1", "hello").await.unwrap();
    client.get("shop.local", "/status/503").await.unwrap();
    eventually("both are logged", weft_tests::SOON, async || lines(&weft).len() == 2).await;
    let lines = lines(&weft);
    let first = &lines[0];
    assert_eq!((first["method"].as_str(), first["path"].as_str()), (Some("POST"), Some("/items")), "{first}");
    assert_eq!((first["status"].as_u64(), first["service"].as_str()), (Some(200), Some("app")), "{first}");
    assert_eq!(first["endpoint"], upstream.addr.to_string());
    assert_eq!(first["bytes_in"], 5);
    assert!(first["duration_ms"].as_f64().unwrap() >= 0.0 && first["bytes_out"].as_u64().unwrap() > 10);
    assert_eq!(lines[1]["status"], 503);
}

#[tokio::test]
async fn the_condition_decides() {
    let (weft, addr, _upstream) =
        logging("accessLog: {format: json, when: \"status >= 500 || duration > 100ms\"}").await;
    let mut client = weft_tests::Client::h1(addr).await.unwrap();
    for path in ["/", "/status/404", "/slow/150", "/status/500", "/"] {
        client.get("a", path).await.unwrap();
    }
    eventually("two are logged", weft_tests::SOON, async || lines(&weft).len() >= 2).await;
    let paths: Vec<_> = lines(&weft).iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["/slow/150", "/status/500"]);
}

#[tokio::test]
async fn nothing_a_client_sends_can_forge_or_colour_a_line() {
    for format in ["json", "text"] {
        let (weft, addr, _upstream) = logging(&format!("accessLog: {{format: {format}}}")).await;
        let mut wire = weft_tests::Wire::connect(addr).await;
        wire.send(
            "GET /a%0a%1b[31m\" HTTP/1.1\r\nHost: a\r\nUser-Agent: x\u{9b}31m \u{202e}evil\" \\n\r\nX-Request-Id: \"},{\"a\":\"\r\n\r\n",
        )
        .await;
        let status = wire.read_response().await.status;
        assert!(status == 200 || status == 400);
        if status == 200 {
            eventually("it is logged", weft_tests::SOON, async || weft.stdout().ends_with('\n')).await;
            let text = weft.stdout();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
        }
        let log = weft.stderr();
        assert!(!log.contains("\u{1b}[31m"), "{log:?}");
    }
}

#[tokio::test]
async fn refusals_carry_their_reason() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let route = format!("hostnames: [only.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("app"));
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", &route),
        yaml::service("app", "http", &[upstream.addr]),
        yaml::telemetry("accessLog: {format: json}"),
    ]);
    let weft = Weft::start(&config).await;
    client::get_once(local(port), "other.local", "/x").await.unwrap().assert_refused(404, "no_route");
    let bad = weft_tests::Wire::connect(local(port)).await.exchange("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n").await;
    assert_eq!(bad.status, 400);
    eventually("both are logged", weft_tests::SOON, async || lines(&weft).len() == 2).await;
    let reasons: Vec<_> = lines(&weft).iter().map(|line| line["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(reasons, ["no_route", "bad_request"]);
}
