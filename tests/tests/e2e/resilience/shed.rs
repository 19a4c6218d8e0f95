//! A node under pressure refuses what matters least.

use weft_tests::{Client, Options, SOON, Unruly, Weft, client, eventually, grpc, ports, yaml};

use crate::local;

struct Pressed {
    weft: Weft,
    port: u16,
    upstream: Unruly,
}

/// `app.local` is a service without a priority, `vip.local` one of priority 0, `route.local` has a policy on its route.
async fn start(args: &[&str]) -> Pressed {
    let upstream = Unruly::start("app").await;
    let port = ports::free();
    let route = |name: &str, service: &str| {
        let spec = format!("hostnames: [{name}.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend(service));
        yaml::http_route(name, &spec)
    };
    let of_route = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: route}\nspec:\n  \
                    targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: route}]\n  priority: 0\n";
    let config = yaml::docs(&[
        yaml::gateway(port),
        route("app", "app"),
        route("vip", "vip"),
        route("route", "app"),
        yaml::service("app", "http", &[upstream.addr]),
        yaml::service("vip", "http", &[upstream.addr]),
        yaml::policy("vip", "priority: 0"),
        of_route.to_owned(),
    ]);
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let weft = Weft::start_with(&config, Options { args, ..Options::default() }).await;
    Pressed { weft, port, upstream }
}

impl Pressed {
    async fn ask(&self, host: &str, urgency: &str) -> client::Reply {
        let headers = [("priority", urgency)];
        let headers = if urgency.is_empty() { &[][..] } else { &headers };
        let mut client = Client::h1(local(self.port)).await.unwrap();
        weft_tests::soon("an answer", client.send(client::get_with(host, "/", headers))).await.unwrap()
    }
}

#[tokio::test]
async fn without_memory_only_the_most_urgent_is_served() {
    let node = start(&["--max-memory", "1048576"]).await;
    eventually("the pressure is noticed", SOON, async || node.ask("app.local", "").await.status == 503).await;
    let before = node.upstream.count();
    for (host, urgency) in [("app.local", ""), ("app.local", "u=7"), ("app.local", "u=0"), ("vip.local", "u=7, i")] {
        for _ in 0..5 {
            let reply = node.ask(host, urgency).await;
            reply.assert_refused(503, "overloaded");
            assert!(reply.text().contains("sheds load"), "{host} {urgency}: {}", reply.text());
        }
    }
    assert_eq!(node.upstream.count(), before, "nothing refused is forwarded, and a client cannot raise itself");
    for (host, urgency) in [("vip.local", ""), ("vip.local", "u=0"), ("route.local", ""), ("vip.local", "nonsense")] {
        for _ in 0..5 {
            assert_eq!(node.ask(host, urgency).await.status, 200, "{host} {urgency}");
        }
    }
    let metrics = node.weft.metrics().await;
    assert!(metrics.sum("weft_requests_total", &[("reason", "overloaded")]) > 19.5);
    assert_eq!(node.weft.admin("/endpoints").await.status, 200, "the admin port is never shed");
}

#[tokio::test]
async fn grpc_is_told_in_its_own_words() {
    let node = start(&["--max-memory", "1048576"]).await;
    eventually("the pressure is noticed", SOON, async || node.ask("app.local", "").await.status == 503).await;
    let mut greeter = grpc::GreeterClient::connect(local(node.port), "app.local").await;
    let error = greeter.unary(tonic::Request::new(grpc::Msg::new("hi", 1))).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert_eq!(error.metadata().get("x-weft-reason").unwrap(), "overloaded");
}

#[tokio::test]
async fn without_pressure_everything_is_served() {
    let node = start(&["--max-memory", "100000000000", "--latency-budget", "10s"]).await;
    for host in ["app.local", "vip.local", "route.local"] {
        for urgency in ["", "u=0", "u=7", "u=9", "nonsense"] {
            assert_eq!(node.ask(host, urgency).await.status, 200, "{host} {urgency}");
        }
    }
}
