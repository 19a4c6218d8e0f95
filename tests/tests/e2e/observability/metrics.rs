//! `/metrics`.

use weft_tests::{eventually, weft::Weft};

use crate::Stage;

async fn sum(weft: &Weft, name: &str, labels: &[(&str, &str)]) -> f64 {
    weft.metrics().await.sum(name, labels)
}

fn near(value: f64, expected: f64) -> bool {
    (value - expected).abs() < 0.5
}

#[tokio::test]
async fn requests_are_counted_once_with_their_outcome() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    for _ in 0..7 {
        client.get("a", "/").await.unwrap();
    }
    for _ in 0..3 {
        client.get("a", "/status/503").await.unwrap();
    }
    client.get("a", "/abort").await.unwrap();
    let name = "weft_requests_total";
    eventually("all are counted", weft_tests::SOON, async || near(sum(&stage.weft, name, &[]).await, 11.0)).await;
    let metrics = stage.weft.metrics().await;
    assert!(near(metrics.sum(name, &[("service", "app"), ("code", "200")]), 7.0));
    assert!(near(metrics.sum(name, &[("code", "503")]), 3.0));
    assert!(near(metrics.sum(name, &[("reason", "upstream_reset"), ("code", "502")]), 1.0));
    assert!(near(metrics.sum("http_server_request_duration_seconds_count", &[]), 11.0));
    assert!(
        near(metrics.sum("http_client_request_duration_seconds_count", &[]), 11.0) || {
            // The aborted one may have been tried twice.
            near(metrics.sum("http_client_request_duration_seconds_count", &[]), 12.0)
        }
    );
    assert!(near(metrics.sum("weft_requests_in_flight", &[]), 0.0));
}

#[tokio::test]
async fn in_flight_and_connections_go_up_and_down() {
    let stage = Stage::h1().await;
    let mut wires = Vec::new();
    for _ in 0..5 {
        let mut wire = stage.wire().await;
        wire.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await;
        wires.push(wire);
    }
    let weft = &stage.weft;
    let in_flight = "weft_requests_in_flight";
    eventually("five are in flight", weft_tests::SOON, async || near(sum(weft, in_flight, &[]).await, 5.0)).await;
    assert!(sum(weft, "weft_connections", &[]).await >= 9.5, "five on each side");
    drop(wires);
    eventually("none is", weft_tests::SOON, async || near(sum(weft, in_flight, &[]).await, 0.0)).await;
    eventually("all are closed", weft_tests::SOON, async || near(sum(weft, "weft_connections", &[]).await, 0.0)).await;
}

#[tokio::test]
async fn every_family_has_a_help_text_and_a_type() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    for path in ["/", "/status/404", "/abort"] {
        client.get("a", path).await.unwrap();
    }
    let metrics = stage.weft.metrics().await;
    for sample in &metrics.samples {
        let family = metrics.family(&sample.name).unwrap_or_else(|| panic!("{} has no TYPE", sample.name));
        let help = metrics.help.contains(family) || metrics.help.contains(&sample.name);
        assert!(help, "{} has no HELP", sample.name);
    }
    for name in
        ["weft_config_revision", "weft_config_reload_failures_total", "weft_connections", "weft_spans_dropped_total"]
    {
        assert!(
            metrics.samples.iter().any(|s| s.name == name || format!("{}_total", s.name) == name),
            "{name} is missing"
        );
    }
}

#[tokio::test]
async fn labels_do_not_grow_with_what_clients_send() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    client.get("a", "/").await.unwrap();
    let before = stage.weft.metrics().await.samples.len();
    for number in 0..200 {
        client.get(&format!("host{number}.local"), &format!("/path/{number}")).await.unwrap();
        let odd = weft_tests::client::request(&format!("METHOD{number}"), "a", "/", weft_tests::upstream::empty());
        client.send(odd).await.unwrap();
    }
    let after = stage.weft.metrics().await.samples.len();
    assert!(after < before + 60, "{before} samples became {after}");
}
