//! HTTP through the proxy.

use weft_tests::{
    Upstream,
    mesh::{Banner, Bed, Kind},
    yaml::backend,
};

use super::{docs, http, route, service, vip, workload};

#[tokio::test]
async fn curl_reaches_a_service_by_its_address() {
    let Some(bed) = Bed::make("curl_reaches_a_service_by_its_address") else { return };
    let (one, two) = (Upstream::h1("one").await, Upstream::h1("two").await);
    let _weft = bed.weft(&docs(&[http("cart", 10, &[one.addr, two.addr]), workload("web")])).await;
    let mut names = Vec::new();
    for url in ["http://10.96.0.10/a?b=c", "http://[fd00:96::10]/a?b=c", "http://[::ffff:10.96.0.10]/a?b=c"] {
        for workload in ["web", "web/deeper", "stranger", ""] {
            let out = bed.curl(workload, &["--fail", "-i", "-H", "x-mine: 1", "-d", "hello", url]).await;
            assert_eq!(out.code, 0, "{url} from {workload:?}: {}", out.stderr);
            let (head, body) = out.stdout.split_once("\r\n\r\n").unwrap();
            assert!(!head.to_lowercase().contains("server: weft"), "the upstream answered: {head}");
            let echo: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(
                (echo["method"].as_str(), echo["body"].as_str(), crate::echoed(&echo, "x-mine")),
                (Some("POST"), Some("hello"), Some("1"))
            );
            assert!(echo["uri"].as_str().unwrap().ends_with("/a?b=c"), "{echo}");
            assert!(crate::echoed(&echo, "x-request-id").is_some(), "it went through Weft: {echo}");
            assert_eq!(Some(crate::echoed(&echo, "host").unwrap()), url.split('/').nth(2));
            names.push(echo["upstream"].as_str().unwrap().to_owned());
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names, ["one", "two"]);
}

#[tokio::test]
async fn routes_of_a_service_are_in_force() {
    let Some(bed) = Bed::make("routes_of_a_service_are_in_force") else { return };
    let (cart, pay) = (Upstream::h1("cart").await, Upstream::h1("pay").await);
    let rules = format!(
        "[{{matches: [{{path: {{type: PathPrefix, value: /slow}}}}], timeouts: {{request: 300ms}}, backendRefs: [{}]}}, \
         {{matches: [{{path: {{type: PathPrefix, value: /pay}}}}], backendRefs: [{}]}}, \
         {{matches: [{{path: {{type: PathPrefix, value: /cart}}}}], backendRefs: [{}]}}]",
        backend("cart"),
        backend("pay"),
        backend("cart")
    );
    let parts = [http("cart", 10, &[cart.addr]), http("pay", 11, &[pay.addr]), route("cart", &rules)];
    let weft = bed.weft(&docs(&parts)).await;
    assert_eq!(bed.get("web", "http://10.96.0.10/cart/1").await["upstream"], "cart");
    assert_eq!(bed.get("web", "http://10.96.0.10/pay/1").await["upstream"], "pay");
    // The other service has no routes: everything is its own.
    assert_eq!(bed.get("web", "http://10.96.0.11/cart/1").await["upstream"], "pay");
    for (path, status, reason) in [("/slow/5000", 504, "upstream_timeout"), ("/other", 404, "no_route")] {
        let out = bed.curl("web", &["-i", &format!("http://10.96.0.10{path}")]).await;
        let head = out.stdout.to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
        assert!(head.contains(&format!("x-weft-reason: {reason}")), "{path}: {head}");
    }
    let metrics = weft.metrics().await;
    assert!(metrics.sum("weft_verdicts_total", &[("verdict", "proxy"), ("reason", "service")]) >= 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    let Some(bed) = Bed::make("many_at_once") else { return };
    let upstreams = [Upstream::h1("one").await, Upstream::h1("two").await];
    let options = weft_tests::Options { workers: 2, ..bed.options() };
    let parts = [http("cart", 10, &[upstreams[0].addr]), http("pay", 11, &[upstreams[1].addr])];
    let _weft = weft_tests::Weft::start_with(&docs(&parts), options).await;
    let mut storms = Vec::new();
    for (workload, last) in [("web", 10), ("batch", 11), ("other", 10)] {
        storms.push((bed.storm(workload, Kind::Get("/x"), vip(last, 80)), last));
    }
    for (storm, _) in &storms {
        storm.progress(300).await;
    }
    for (storm, _) in storms {
        let tally = storm.calm().await;
        tally.fine();
        assert_eq!(tally.names(), ["200"], "{}", tally.0);
    }
    for upstream in &upstreams {
        assert!(upstream.seen.count() >= 300, "each went to its own service");
    }
}

#[tokio::test]
async fn python_keeps_a_connection() {
    let Some(bed) = Bed::make("python_keeps_a_connection") else { return };
    let upstream = Upstream::h1("cart").await;
    let _weft = bed.weft(&docs(&[http("cart", 10, &[upstream.addr])])).await;
    let script = "
import http.client, json
for host in ['10.96.0.10', 'fd00:96::10', '::ffff:10.96.0.10']:
    c = http.client.HTTPConnection(host, 80, timeout=10)
    seen = []
    for n in range(20):
        c.request('POST', f'/{n}', body='x' * 1000)
        echo = json.loads(c.getresponse().read())
        assert echo['body'] == 'x' * 1000 and echo['uri'].endswith(f'/{n}'), echo
        seen.append(c.sock.getsockname())
    assert len(set(seen)) == 1, 'one connection'
    print(host, c.sock.getpeername()[0])
";
    let out = bed.run("web", "python3", &["-c", script]).await;
    assert_eq!(out.code, 0, "{}", out.stderr);
    let lines: Vec<&str> = out.stdout.lines().collect();
    let expected = ["10.96.0.10 10.96.0.10", "fd00:96::10 fd00:96::10", "::ffff:10.96.0.10 ::ffff:10.96.0.10"];
    assert_eq!(lines, expected, "each sees whom it asked for");
}

#[tokio::test]
async fn a_server_that_speaks_first_on_a_port_of_unknown_protocol() {
    let Some(bed) = Bed::make("a_server_that_speaks_first_on_a_port_of_unknown_protocol") else { return };
    let server = Banner::start("speaks first").await;
    let _weft = bed.weft(&docs(&[service("mail", 12, "mode: Proxy", "{name: any, port: 25}", &[server.addr])])).await;
    let mut held = bed.hold("web", vip(12, 25)).await;
    assert_eq!(held.hello(), "speaks first");
    assert_eq!(held.shown["peer"], serde_json::json!(["10.96.0.12", 25]));
    for text in ["EHLO web", "QUIT"] {
        assert_eq!(held.say(text).await, text);
    }
}

#[tokio::test]
async fn http_on_a_port_of_unknown_protocol() {
    let Some(bed) = Bed::make("http_on_a_port_of_unknown_protocol") else { return };
    let upstream = Upstream::h1("cart").await;
    let parts = [service("cart", 10, "mode: Proxy", "{name: any, port: 80}", &[upstream.addr])];
    let _weft = bed.weft(&docs(&parts)).await;
    let echo = bed.get("web", "http://10.96.0.10/x").await;
    assert!(crate::echoed(&echo, "x-request-id").is_some(), "it was taken for HTTP: {echo}");
}
