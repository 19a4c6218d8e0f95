//! Configuration that changes under traffic.

use std::time::Duration;

use rustix::process::Signal;
use weft_tests::{
    Client, Options, SOON, Upstream, Weft, client, eventually,
    load::{Load, Speak},
    ports, soon,
    upstream::channel,
    yaml,
};

use crate::local;

fn marked(port: u16, upstream: &Upstream, mark: usize) -> String {
    let filter = format!(
        "rules:\n- filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-mark, value: \"{mark}\"}}]}}}}]\n  \
         backendRefs: [{}]",
        yaml::backend("app")
    );
    yaml::docs(&[yaml::gateway(port), yaml::http_route("all", &filter), yaml::service("app", "http", &[upstream.addr])])
}

async fn mark(port: u16) -> usize {
    let echo = client::get_once(local(port), "a", "/").await.unwrap().json();
    crate::echoed(&echo, "x-mark").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_fail_no_request() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let options = Options { workers: 2, ..Options::default() };
    let weft = Weft::start_with(&marked(port, &upstream, 0), options).await;
    let loads = [(Speak::H1, "/"), (Speak::H2, "/"), (Speak::H1, "/slow/30"), (Speak::H1, "/drip/5/20")]
        .map(|(speak, path)| Load::start(local(port), speak, 2, "a", path));
    loads[0].progress(20).await;
    for round in 1..=25 {
        weft.edit(&marked(port, &upstream, round));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eventually("the last edit is in force", SOON, async || mark(port).await == 25).await;
    for load in loads {
        let outcome = load.finish().await;
        assert!(outcome.failures.is_empty() && outcome.raced == 0, "{outcome:?}");
        assert!(outcome.ok > 0);
    }
    let metrics = weft.metrics().await;
    assert!(metrics.sum("weft_config_reload_failures_total", &[]).abs() < 0.5);
    assert!(metrics.sum("weft_config_revision", &[]) >= 2.0);
}

#[tokio::test]
async fn a_bad_configuration_replaces_nothing() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let good = marked(port, &upstream, 1);
    let weft = Weft::start(&good).await;
    let revision = weft.revision().await;
    for (number, bad) in [
        "this: [is not\n".to_owned(),
        good.replace("HTTPRoute", "HTTPRuote"),
        good.replace("backendRefs", "backendRef"),
        good.replace("name: app, port: 80", "name: nobody, port: 80"),
    ]
    .into_iter()
    .enumerate()
    {
        weft.edit(&bad);
        eventually("the failure is counted", SOON, async || {
            weft.metrics().await.sum("weft_config_reload_failures_total", &[]) > number as f64 + 0.5
        })
        .await;
        assert_eq!(mark(port).await, 1, "the good one goes on");
        assert_eq!(weft.revision().await, revision);
        assert_eq!(weft.admin("/ready").await.status, 200);
    }
    assert!(weft.stderr().contains("HTTPRuote"), "the log says what is wrong");
    weft.apply(&marked(port, &upstream, 2)).await;
    eventually("a good one is taken again", SOON, async || mark(port).await == 2).await;
}

#[tokio::test]
async fn an_empty_or_missing_file_replaces_nothing() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let weft = Weft::start(&marked(port, &upstream, 1)).await;
    std::fs::remove_file(&weft.config).unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(mark(port).await, 1);
    weft.edit(&marked(port, &upstream, 2));
    eventually("the file that came back is in force", SOON, async || mark(port).await == 2).await;
}

#[tokio::test]
async fn sighup_reloads() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let weft = Weft::start(&marked(port, &upstream, 1)).await;
    // Written in place, as `>` does it; the signal must find it whether or not the watcher did.
    std::fs::write(&weft.config, marked(port, &upstream, 2)).unwrap();
    weft.signal(Signal::HUP);
    eventually("the edit is in force", SOON, async || mark(port).await == 2).await;
    assert_eq!(weft.exited(), None);
}

#[tokio::test]
async fn requests_in_flight_keep_their_configuration() {
    let (old, new) = (Upstream::h1("old").await, Upstream::h1("new").await);
    let port = ports::free();
    let weft = Weft::start(&yaml::simple(port, "http", old.addr)).await;
    let mut client = Client::h1(local(port)).await.unwrap();
    let (mut sender, body) = channel(1);
    let response = soon("the head", client.open(client::request("POST", "a", "/mirror-body", body))).await.unwrap();
    weft.apply(&yaml::simple(port, "http", new.addr)).await;
    assert_eq!(client::get_once(local(port), "a", "/").await.unwrap().upstream(), "new");
    sender.send_data("still the old one".into()).await.unwrap();
    drop(sender);
    assert_eq!(client::collect(response).await.text(), "still the old one");
    assert_eq!(client.get("a", "/").await.unwrap().upstream(), "new", "the next request on the same connection");
}

#[tokio::test]
async fn listeners_come_and_go() {
    let upstream = Upstream::h1("app").await;
    let (first, second) = (ports::free(), ports::free());
    let weft = Weft::start(&yaml::simple(first, "http", upstream.addr)).await;
    let load = Load::start(local(first), Speak::H1, 1, "a", "/");
    load.progress(10).await;
    let both = yaml::docs(&[
        yaml::listeners(&[
            format!("{{name: http, port: {first}, protocol: HTTP}}"),
            format!("{{name: more, port: {second}, protocol: HTTP}}"),
        ]),
        yaml::all_to("app"),
        yaml::service("app", "http", &[upstream.addr]),
    ]);
    weft.apply(&both).await;
    eventually("the new listener answers", SOON, async || client::get_once(local(second), "a", "/").await.is_ok())
        .await;
    load.progress(10).await;
    load.finish_unharmed().await;
    weft.apply(&yaml::simple(second, "http", upstream.addr)).await;
    eventually("the old one is gone", SOON, async || tokio::net::TcpStream::connect(local(first)).await.is_err()).await;
    assert_eq!(client::get_once(local(second), "a", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_directory_is_read_as_one_configuration() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("gateway.yaml", &yaml::gateway(port));
    write("route.yaml", &yaml::all_to("app"));
    write("service.yaml", &yaml::service("app", "http", &[upstream.addr]));
    write("README.txt", "not YAML: [");
    let extra = vec!["--config".to_owned(), dir.path().display().to_string()];
    // The main file adds nothing but an unused service.
    let unused = yaml::service("unused", "http", &[]);
    let weft = Weft::start_with(&unused, Options { args: extra, ..Options::default() }).await;
    assert_eq!(client::get_once(local(port), "a", "/").await.unwrap().upstream(), "app");
    let other = Upstream::h1("other").await;
    write("service.yaml", &yaml::service("app", "http", &[other.addr]));
    eventually("the edited file is in force", SOON, async || {
        client::get_once(local(port), "a", "/").await.unwrap().upstream() == "other"
    })
    .await;
    assert_eq!(weft.admin("/ready").await.status, 200);
}

#[tokio::test]
async fn an_endpoint_that_stays_keeps_its_state_and_connections() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let weft = Weft::start(&marked(port, &upstream, 1)).await;
    let mut client = Client::h1(local(port)).await.unwrap();
    for round in 2..6 {
        client.get("a", "/").await.unwrap();
        weft.apply(&marked(port, &upstream, round)).await;
    }
    client.get("a", "/").await.unwrap();
    assert_eq!(upstream.seen.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "the pool survives a reload");
    let endpoints = weft.admin_json("/endpoints").await;
    assert_eq!(endpoints[0]["endpoints"][0]["requests"], 5, "{endpoints}");
}
