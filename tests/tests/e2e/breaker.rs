//! Endpoints that fail are left alone for a while, and come back by a probe.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use weft_tests::{Client, SOON, Upstream, Weft, eventually, grpc, ports, yaml};

use crate::local;

/// Opens after three failures, for about 400 ms.
const QUICK: &str = "circuitBreaker: {consecutiveFailures: 3, baseEjectionTime: 400ms}";

struct Guarded {
    weft: Weft,
    addr: SocketAddr,
}

impl Guarded {
    async fn new(protocol: &str, endpoints: &[SocketAddr], spec: &str) -> Self {
        let port = ports::free();
        let config = yaml::docs(&[
            yaml::gateway(port),
            yaml::all_to("app"),
            yaml::service("app", protocol, endpoints),
            yaml::policy("app", spec),
        ]);
        Self { weft: Weft::start(&config).await, addr: local(port) }
    }

    async fn service(&self) -> Value {
        self.weft.admin_json("/endpoints").await[0].take()
    }

    /// What the only breaker, or the first one, shows.
    async fn endpoint(&self) -> Value {
        self.service().await["endpoints"][0].take()
    }

    /// Sends until the breaker opens; returns the number of requests.
    async fn open(&self, client: &mut Client, path: &str) -> usize {
        for number in 1..20 {
            let _ = client.get("a", path).await;
            if self.endpoint().await["breaker"] == "open" {
                return number;
            }
        }
        panic!("still closed: {}", self.service().await);
    }
}

#[tokio::test]
async fn an_open_circuit_refuses_at_once_and_closes_by_a_probe() {
    let upstream = Upstream::h1("one").await;
    let stage = Guarded::new("http", &[upstream.addr], QUICK).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    assert_eq!(stage.open(&mut client, "/status/503").await, 3);
    let seen = upstream.seen.count();
    let refused = client.get("a", "/").await.unwrap();
    refused.assert_refused(503, "circuit_open");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let evidence = format!("last: {}: 3 of 3 failed: 503 ×3", upstream.addr);
    assert!(refused.text().contains("the only endpoint of service app is open") && refused.text().contains(&evidence));
    assert_eq!(upstream.seen.count(), seen);
    let service = stage.service().await;
    assert_eq!(service["circuit"], "open", "{service}");
    let (endpoint, event) = (&service["endpoints"][0], &service["events"][0]);
    assert_eq!((&endpoint["ejected"], &endpoint["ejections"]), (&false.into(), &1.into()), "{service}");
    assert!(endpoint["ejection_ms_left"].as_u64().unwrap() <= 440 && event["for_ms"].as_u64().unwrap() >= 360);
    assert_eq!((&event["from"], &event["to"]), (&"closed".into(), &"open".into()), "{service}");
    let state = [("service", "app"), ("endpoint", &*upstream.addr.to_string())];
    assert_eq!(stage.weft.metrics().await.sum("weft_endpoint_breaker_state", &state), 2.0);

    tokio::time::sleep(Duration::from_millis(450)).await;
    // A probe that fails, then one that does not.
    assert_eq!(client.get("a", "/status/500").await.unwrap().status, 500);
    client.get("a", "/").await.unwrap().assert_refused(503, "circuit_open");
    let endpoint = stage.endpoint().await;
    assert_eq!((&endpoint["evidence"], &endpoint["ejections"]), (&"a probe failed: 500".into(), &2.into()));
    eventually("a probe closes it", SOON, async || client.get("a", "/").await.unwrap().status == 200).await;
    let service = stage.service().await;
    assert_eq!((&service["circuit"], &service["endpoints"][0]["breaker"]), (&"closed".into(), &"closed".into()));
    assert_eq!(stage.weft.metrics().await.sum("weft_endpoint_breaker_state", &state), 0.0);
}

#[tokio::test]
async fn one_of_two_is_ejected_and_the_other_serves() {
    let good = Upstream::h1("good").await;
    let gone = local(ports::free());
    // PeakEWMA would hardly ask the dead one again.
    let spec = format!("{QUICK}\nloadBalancer: {{type: RoundRobin}}");
    let stage = Guarded::new("http", &[gone, good.addr], &spec).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    stage.open(&mut client, "/").await;
    let endpoint = stage.endpoint().await;
    assert_eq!(
        (&endpoint["ejected"], &endpoint["evidence"]),
        (&true.into(), &"3 of 3 failed: connect_failed ×3".into())
    );
    assert_eq!(stage.service().await["circuit"], "closed");
    for _ in 0..50 {
        assert_eq!(client.get("a", "/").await.unwrap().status, 200);
    }
    assert_eq!(stage.weft.metrics().await.sum("weft_ejections_total", &[("reason", "consecutive_failures")]), 1.0);
    let log = stage.weft.stderr() + &stage.weft.stdout();
    assert!(log.contains("circuit breaker") && log.contains("connect_failed ×3"), "{log}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_too() {
    let upstream = Upstream::h1("one").await;
    let stage = Guarded::new("http", &[upstream.addr], "circuitBreaker: {consecutiveFailures: 1}").await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    assert_eq!(client.get("a", "/").await.unwrap().status, 200);
    assert!(client.get("a", "/truncate").await.unwrap().error.is_some());
    assert_eq!(stage.endpoint().await["evidence"], "1 of 1 failed: upstream_reset ×1");
}

#[tokio::test]
async fn grpc_is_judged_by_its_status() {
    let (upstream, _calls) = grpc::start().await;
    let stage = Guarded::new("grpc", &[upstream.addr], "circuitBreaker: {consecutiveFailures: 2}").await;
    let mut client = grpc::GreeterClient::connect(stage.addr, "a").await;
    let mut call = async |text: &str| client.unary(tonic::Request::new(grpc::Msg::new(text, 1))).await;
    for _ in 0..5 {
        assert_eq!(call("fail:5:not found is an answer").await.unwrap_err().code() as i32, 5);
    }
    for _ in 0..3 {
        call("fail:14:no").await.unwrap_err();
        call("a success ends the run").await.unwrap();
    }
    assert_eq!(stage.endpoint().await["breaker"], "closed");
    call("fail:14:no").await.unwrap_err();
    call("fail:13:no").await.unwrap_err();
    let evidence = stage.endpoint().await["evidence"].take();
    assert_eq!(evidence, "2 of 2 failed: grpc:UNAVAILABLE ×1, grpc:INTERNAL ×1");
    let refused = call("hello").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().contains("circuit_open"), "{refused}");
}

#[tokio::test]
async fn a_probe_whose_client_left_is_sent_again() {
    let upstream = Upstream::h1("one").await;
    let stage = Guarded::new("http", &[upstream.addr], QUICK).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    stage.open(&mut client, "/status/502").await;
    tokio::time::sleep(Duration::from_millis(450)).await;
    let mut leaving = Client::h1(stage.addr).await.unwrap();
    let hanging = tokio::spawn(async move { leaving.get("a", "/hang").await });
    eventually("the probe is out", SOON, async || stage.service().await["circuit"] == "half_open").await;
    client.get("a", "/").await.unwrap().assert_refused(503, "circuit_open");
    hanging.abort();
    eventually("another probe", SOON, async || client.get("a", "/").await.unwrap().status == 200).await;
    assert_eq!(stage.endpoint().await["ejections"], 1);
}

#[tokio::test]
async fn without_its_policy_an_endpoint_is_used_again() {
    let upstream = Upstream::h1("one").await;
    let port = ports::free();
    let config = |policy: &str| {
        let service = yaml::service("app", "http", &[upstream.addr]);
        yaml::docs(&[yaml::gateway(port), yaml::all_to("app"), service, policy.to_owned()])
    };
    let long = yaml::policy("app", "circuitBreaker: {consecutiveFailures: 1, baseEjectionTime: 60s}");
    let stage = Guarded { weft: Weft::start(&config(&long)).await, addr: local(port) };
    let mut client = Client::h1(stage.addr).await.unwrap();
    stage.open(&mut client, "/status/500").await;
    // Another policy keeps it open.
    let other = yaml::policy("app", "circuitBreaker: {consecutiveFailures: 9, baseEjectionTime: 60s}");
    stage.weft.apply(&config(&other)).await;
    client.get("a", "/").await.unwrap().assert_refused(503, "circuit_open");
    stage.weft.apply(&config("")).await;
    assert_eq!(client.get("a", "/").await.unwrap().status, 200);
    assert_eq!(stage.endpoint().await["breaker"], "closed");
}
