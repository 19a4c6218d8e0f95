//! Methods, connections and the forms of a request.

use std::sync::atomic::Ordering;

use weft_tests::{Upstream, Weft, client, curl::curl, nginx::Nginx, ports, upstream::empty, yaml};

use crate::{Stage, echoed, local};

#[tokio::test]
async fn methods_and_bodies_reach_the_upstream_unchanged() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"] {
        let body = if method == "GET" { empty() } else { weft_tests::upstream::full("some body") };
        let reply = client.send(client::request(method, "shop.local", "/a/b?c=d&e=%20f", body)).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        let echo = reply.json();
        assert_eq!((echo["method"].as_str(), echo["uri"].as_str()), (Some(method), Some("/a/b?c=d&e=%20f")));
        assert_eq!(echo["body"], if method == "GET" { "" } else { "some body" });
        assert_eq!(echoed(&echo, "host"), Some("shop.local"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    assert_eq!(stage.upstream.seen.count(), 7);
}

#[tokio::test]
async fn one_connection_carries_many_requests_on_both_sides() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    for _ in 0..100 {
        let response = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(response.status == 200 && response.keeps_alive());
    }
    assert_eq!(stage.upstream.seen.count(), 100);
    assert_eq!(stage.upstream.seen.connections.load(Ordering::SeqCst), 1, "the upstream connection is reused");
}

#[tokio::test]
async fn connection_close_is_honoured() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(response.status == 200 && !response.keeps_alive());
    wire.expect_closed().await;
    assert_eq!(echoed(&response.json(), "connection"), None, "it concerns only the client's connection");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post = "POST /three HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    wire.send(one("/slow/100") + &one("/two") + post + &one("/status/404") + &one("/five")).await;
    assert_eq!(wire.read_response().await.text(), "slow");
    assert_eq!(wire.read_response().await.json()["uri"], "/two");
    assert_eq!(wire.read_response().await.json()["body"], "body");
    assert_eq!(wire.read_response().await.status, 404);
    assert_eq!(wire.read_response().await.json()["uri"], "/five");
}

#[tokio::test]
async fn a_request_may_arrive_byte_by_byte_and_behind_an_empty_line() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    for byte in b"\r\nPOST /slowly HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" {
        wire.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    let echo = wire.read_response().await.json();
    assert_eq!((echo["uri"].as_str(), echo["body"].as_str()), (Some("/slowly"), Some("abc")));
}

#[tokio::test]
async fn http_1_0_gets_no_chunks_and_a_close() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire.exchange("GET /stream/100000 HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.status, response.body.len()), (200, 100_000));
    assert_eq!(response.header("transfer-encoding"), None);
    wire.expect_closed().await;

    let mut wire = stage.wire().await;
    let response = wire.exchange("GET /no-host HTTP/1.0\r\n\r\n").await;
    assert_eq!(response.status, 200, "HTTP/1.0 needs no Host: {response:?}");
    assert_eq!(stage.upstream.seen.last().version, http::Version::HTTP_11);
}

#[tokio::test]
async fn http_1_0_may_ask_to_keep_the_connection() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let request = "GET /bytes/10 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
    let response = wire.exchange(request).await;
    assert_eq!((response.status, response.body.len()), (200, 10));
    if response.keeps_alive() {
        assert_eq!(wire.exchange(request).await.status, 200);
    } else {
        wire.expect_closed().await;
    }
}

#[tokio::test]
async fn absolute_form_wins_over_host() {
    let (one, two) = (Upstream::h1("one").await, Upstream::h1("two").await);
    let port = ports::free();
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route(
            "one",
            &format!("hostnames: [one.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("one")),
        ),
        yaml::http_route(
            "two",
            &format!("hostnames: [two.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("two")),
        ),
        yaml::service("one", "http", &[one.addr]),
        yaml::service("two", "http", &[two.addr]),
    ]);
    let _weft = Weft::start(&config).await;
    for scheme in ["http", "HTTP", "hTtP"] {
        let mut wire = weft_tests::Wire::connect(local(port)).await;
        let request = format!("GET {scheme}://two.local/x?y HTTP/1.1\r\nHost: one.local\r\n\r\n");
        let echo = wire.exchange(request).await.json();
        assert_eq!((echo["upstream"].as_str(), echo["uri"].as_str()), (Some("two"), Some("/x?y")));
        assert_eq!(echoed(&echo, "host"), Some("two.local"), "RFC 9112 section 3.2.2");
    }
    assert_eq!(one.seen.count(), 0);
}

#[tokio::test]
async fn host_is_compared_without_case_and_port() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route(
            "app",
            &format!("hostnames: [shop.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("app")),
        ),
        yaml::service("app", "http", &[upstream.addr]),
    ]);
    let _weft = Weft::start(&config).await;
    for (host, status) in
        [("shop.local", 200), ("SHOP.Local", 200), ("shop.local:8080", 200), ("other.local", 404), ("xshop.local", 404)]
    {
        let reply = client::get_once(local(port), host, "/").await.unwrap();
        assert_eq!(reply.status, status, "{host}: {reply:?}");
        if status == 200 {
            assert_eq!(echoed(&reply.json(), "host"), Some(host), "forwarded as it came");
        }
    }
}

#[tokio::test]
async fn options_star_leaves_the_connection_in_sync() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire.exchange("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(response.status < 500, "{response:?}");
    if response.keeps_alive() {
        assert_eq!(wire.exchange("GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await.json()["uri"], "/after");
    }
}

#[tokio::test]
async fn the_query_and_odd_paths_are_forwarded_as_they_came() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    // Escapes of unreserved characters may be normalised; these are none.
    for path in ["/?", "/?a=b?c=/../d&e=%41", "/a;v=1,2/b", "/~user/(x)'!*", "/a%20b", "/%C3%A4%3F"] {
        let echo = client.get("a", path).await.unwrap().json();
        assert_eq!(echo["uri"], path);
    }
}

#[tokio::test]
async fn in_front_of_nginx_with_curl() {
    let test = "in_front_of_nginx_with_curl";
    let Some(nginx) = Nginx::start(test, "location /hi { return 200 \"hi from $http_host\"; }").await else { return };
    nginx.file("big", &vec![b'n'; 3_000_000]);
    let stage = Stage::new(nginx, "http", |nginx| nginx.addr).await;
    let base = format!("http://{}", stage.addr);
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let Some(out) = curl(test, &[version, "-H", "Host: shop.local", &format!("{base}/hi")]).await else { return };
        assert_eq!((out.code, out.stdout.as_str()), (0, "hi from shop.local"), "{version}: {}", out.stderr);
        let format = "%{http_code} %{size_download}";
        let big = curl(test, &[version, "-o", "/dev/null", "-w", format, &format!("{base}/big")]).await.unwrap();
        assert_eq!((big.code, big.stdout.as_str()), (0, "200 3000000"), "{version}: {}", big.stderr);
        let head = curl(test, &[version, "-I", &format!("{base}/big")]).await.unwrap();
        assert!(head.stdout.to_lowercase().contains("content-length: 3000000"), "{version}: {}", head.stdout);
        assert!(
            head.stdout.to_lowercase().contains("server: nginx"),
            "the upstream's `server` passes: {}",
            head.stdout
        );
        let range = curl(test, &[version, "-r", "10-19", &format!("{base}/big")]).await.unwrap();
        assert_eq!(range.stdout, "nnnnnnnnnn");
    }
}
