//! Hostnames, paths, headers, queries, methods, and who wins.

use weft_tests::{Upstream, Weft, client, ports, yaml};

use super::{Routes, rule};
use crate::local;

#[tokio::test]
async fn prefixes_are_whole_segments() {
    let rules = format!(
        "rules:\n{}{}{}",
        rule("{path: {type: PathPrefix, value: /cart}}", "cart"),
        rule("{path: {type: PathPrefix, value: /cart/items/}}", "items"),
        rule("{path: {type: Exact, value: /cart/exact}}", "exact"),
    );
    let routes = Routes::new(&["cart", "items", "exact"], &[yaml::http_route("shop", &rules)]).await;
    for (path, service) in [
        ("/cart", "cart"),
        ("/cart/", "cart"),
        ("/cart?x=/y", "cart"),
        ("/cart/x", "cart"),
        ("/cart/itemsx", "cart"),
        ("/cart/items", "items"),
        ("/cart/items/", "items"),
        ("/cart/items/1", "items"),
        ("/cart/exact", "exact"),
        ("/cart/exact?q", "exact"),
        ("/cart/exact/", "cart"),
    ] {
        assert_eq!(routes.get("a", path).await.upstream(), service, "{path}");
    }
    for path in ["/", "/cartoon", "/Cart", "/carT/x"] {
        routes.get("a", path).await.assert_refused(404, "no_route");
    }
}

#[tokio::test]
async fn the_most_specific_match_wins_whatever_the_order() {
    let path = "path: {type: PathPrefix, value: /p}";
    let list = [
        rule("{path: {type: PathPrefix, value: /}}", "root"),
        rule(&format!("{{{path}}}"), "prefix"),
        rule(&format!("{{{path}, queryParams: [{{name: q, value: \"1\"}}]}}"), "query"),
        rule(&format!("{{{path}, headers: [{{name: X-One, value: \"1\"}}]}}"), "header"),
        rule(
            &format!("{{{path}, headers: [{{name: x-one, value: \"1\"}}, {{name: x-two, value: \"2\"}}]}}"),
            "headers",
        ),
        rule(&format!("{{{path}, method: DELETE}}"), "method"),
        rule("{path: {type: Exact, value: /p}}", "exact"),
    ];
    let services = ["root", "prefix", "query", "header", "headers", "method", "exact"];
    for reversed in [false, true] {
        let mut list = list.to_vec();
        if reversed {
            list.reverse();
        }
        let route = yaml::http_route("all", &format!("rules:\n{}", list.concat()));
        let routes = Routes::new(&services, &[route]).await;
        let (one, two) = (("x-one", "1"), ("x-two", "2"));
        for (path, headers, service) in [
            ("/", &[][..], "root"),
            ("/p/x", &[], "prefix"),
            ("/p/x?q=1", &[], "query"),
            ("/p/x?q=2", &[], "prefix"),
            ("/p/x?a=b&q=1", &[], "query"),
            ("/p/x", &[one], "header"),
            ("/p/x?q=1", &[one], "header"),
            ("/p/x", &[two], "prefix"),
            ("/p/x", &[two, one], "headers"),
            ("/p", &[], "exact"),
            ("/p?q=1", &[one, two], "exact"),
        ] {
            assert_eq!(routes.get_with("a", path, headers).await.upstream(), service, "{path} {headers:?} {reversed}");
        }
        let mut client = weft_tests::Client::h1(routes.addr).await.unwrap();
        let delete = client::request("DELETE", "a", "/p/x?q=1", weft_tests::upstream::empty());
        assert_eq!(client.send(delete).await.unwrap().upstream(), "method", "a method beats headers and queries");
    }
}

#[tokio::test]
async fn the_first_of_equal_rules_wins() {
    let rules = |service: &str| rule("{path: {type: PathPrefix, value: /same}}", service);
    let created = |time: &str, doc: String| {
        doc.replace("metadata: {name", &format!("metadata: {{creationTimestamp: \"{time}\", name"))
    };
    let young = yaml::http_route("aaa", &format!("rules:\n{}", rules("young")));
    let old = yaml::http_route("zzz", &format!("rules:\n{}{}", rules("old"), rules("second")));
    let routes = Routes::new(
        &["young", "old", "second"],
        &[created("2026-02-01T00:00:00Z", young), created("2025-02-01T00:00:00Z", old)],
    )
    .await;
    for _ in 0..10 {
        assert_eq!(routes.get("a", "/same").await.upstream(), "old");
    }
}

#[tokio::test]
async fn regular_expressions_match_the_whole() {
    let rules = format!(
        "rules:\n{}{}{}",
        rule("{path: {type: RegularExpression, value: \"/v[0-9]+/.*\"}}", "path"),
        rule(
            "{path: {type: PathPrefix, value: /h}, headers: [{type: RegularExpression, name: x-user, value: \"a+\"}]}",
            "header"
        ),
        rule(
            "{path: {type: PathPrefix, value: /q}, queryParams: [{type: RegularExpression, name: id, value: \"[0-9]{2}\"}]}",
            "query"
        ),
    );
    let routes = Routes::new(&["path", "header", "query"], &[yaml::http_route("re", &rules)]).await;
    assert_eq!(routes.get("a", "/v12/x").await.upstream(), "path");
    assert_eq!(routes.get_with("a", "/h", &[("x-user", "aaa")]).await.upstream(), "header");
    assert_eq!(routes.get("a", "/q?id=42").await.upstream(), "query");
    for (path, headers) in [
        ("/x/v12/x", &[][..]),
        ("/v/x", &[]),
        ("/h", &[("x-user", "aab")]),
        ("/h", &[]),
        ("/q?id=421", &[]),
        ("/q", &[]),
    ] {
        routes.get_with("a", path, headers).await.assert_refused(404, "no_route");
    }
}

#[tokio::test]
async fn exact_hosts_beat_wildcards_and_longer_wildcards_shorter_ones() {
    let route = |name: &str, hosts: &str| {
        yaml::http_route(name, &format!("hostnames: [{hosts}]\nrules: [{{backendRefs: [{}]}}]", yaml::backend(name)))
    };
    let routes = Routes::new(
        &["short", "long", "exact"],
        &[
            route("short", "\"*.shop.local\""),
            route("long", "\"*.eu.shop.local\""),
            route("exact", "www.eu.shop.local"),
        ],
    )
    .await;
    for (host, service) in [
        ("a.shop.local", "short"),
        ("a.b.shop.local", "short"),
        ("eu.shop.local", "short"),
        ("a.eu.shop.local", "long"),
        ("A.EU.shop.local:80", "long"),
        ("www.eu.shop.local", "exact"),
        ("x.www.eu.shop.local", "long"),
    ] {
        assert_eq!(routes.get(host, "/").await.upstream(), service, "{host}");
    }
    for host in ["shop.local", "xshop.local", "a.shop.local.evil", "local", ".shop.local"] {
        let reply = routes.get(host, "/").await;
        assert!(reply.status == 404 || reply.status == 400, "{host}: {reply:?}");
    }
}

#[tokio::test]
async fn a_more_specific_host_wins_even_where_only_the_other_one_has_the_path() {
    let wide =
        format!("hostnames: [\"*.local\"]\nrules:\n{}", rule("{path: {type: PathPrefix, value: /wide}}", "wide"));
    let narrow =
        format!("hostnames: [a.local]\nrules:\n{}", rule("{path: {type: PathPrefix, value: /narrow}}", "narrow"));
    let routes =
        Routes::new(&["wide", "narrow"], &[yaml::http_route("wide", &wide), yaml::http_route("narrow", &narrow)]).await;
    assert_eq!(routes.get("a.local", "/narrow").await.upstream(), "narrow");
    assert_eq!(routes.get("b.local", "/wide").await.upstream(), "wide");
    // Within one listener, routes of every matching hostname compete; the more specific hostname goes first.
    assert_eq!(routes.get("a.local", "/wide").await.upstream(), "wide");
    routes.get("b.local", "/narrow").await.assert_refused(404, "no_route");
}

#[tokio::test]
async fn listeners_have_hostnames_and_sections() {
    let upstreams = [Upstream::h1("one").await, Upstream::h1("two").await];
    let (first, second) = (ports::free(), ports::free());
    let attach = |name: &str, section: &str| {
        yaml::http_route(name, &format!("rules: [{{backendRefs: [{}]}}]", yaml::backend(name)))
            .replace("{name: edge}]", &format!("{{name: edge, sectionName: {section}}}]"))
    };
    let config = yaml::docs(&[
        yaml::listeners(&[
            format!("{{name: one, port: {first}, protocol: HTTP, hostname: one.local}}"),
            format!("{{name: two, port: {second}, protocol: HTTP, hostname: \"*.two.local\"}}"),
        ]),
        attach("one", "one"),
        attach("two", "two"),
        yaml::service("one", "http", &[upstreams[0].addr]),
        yaml::service("two", "http", &[upstreams[1].addr]),
    ]);
    let _weft = Weft::start(&config).await;
    let get = async |port, host| client::get_once(local(port), host, "/").await.unwrap();
    assert_eq!(get(first, "one.local").await.upstream(), "one");
    assert_eq!(get(second, "a.two.local").await.upstream(), "two");
    get(first, "a.two.local").await.assert_refused(404, "no_route");
    get(second, "one.local").await.assert_refused(404, "no_route");
}

#[tokio::test]
async fn listeners_may_share_a_port() {
    let upstreams = [Upstream::h1("one").await, Upstream::h1("two").await];
    let port = ports::free();
    let attach = |name: &str| {
        yaml::http_route(name, &format!("rules: [{{backendRefs: [{}]}}]", yaml::backend(name)))
            .replace("{name: edge}]", &format!("{{name: edge, sectionName: {name}}}]"))
    };
    let config = yaml::docs(&[
        yaml::listeners(&[
            format!("{{name: one, port: {port}, protocol: HTTP, hostname: one.local}}"),
            format!("{{name: two, port: {port}, protocol: HTTP}}"),
        ]),
        attach("one"),
        attach("two"),
        yaml::service("one", "http", &[upstreams[0].addr]),
        yaml::service("two", "http", &[upstreams[1].addr]),
    ]);
    let _weft = Weft::start(&config).await;
    for (host, service) in [("one.local", "one"), ("other.local", "two")] {
        assert_eq!(client::get_once(local(port), host, "/").await.unwrap().upstream(), service);
    }
}

#[tokio::test]
async fn grpc_routes_match_service_method_and_headers() {
    let rule = |matching: &str, service: &str| {
        format!("- {{matches: [{matching}], backendRefs: [{}]}}\n", yaml::backend(service))
    };
    let rules = format!(
        "rules:\n{}{}{}",
        rule("{method: {service: a.B}}", "service"),
        rule("{method: {service: a.B, method: Do}}", "method"),
        rule("{method: {service: a.B, method: Do}, headers: [{name: x-v, value: \"2\"}]}", "header"),
    );
    let port = ports::free();
    let mut docs = vec![yaml::gateway(port), yaml::grpc_route("grpc", &rules)];
    let mut upstreams = Vec::new();
    for name in ["service", "method", "header"] {
        let upstream = Upstream::h2(name).await;
        docs.push(yaml::service(name, "grpc", &[upstream.addr]));
        upstreams.push(upstream);
    }
    let _weft = Weft::start(&yaml::docs(&docs)).await;
    let mut client = weft_tests::Client::h2(local(port)).await.unwrap();
    for (path, headers, service) in [
        ("/a.B/Other", &[][..], "service"),
        ("/a.B/Do", &[], "method"),
        ("/a.B/Do", &[("x-v", "2")], "header"),
        ("/a.B/Do", &[("x-v", "3")], "method"),
    ] {
        let mut request = client::get_with("a", path, headers);
        *request.method_mut() = http::Method::POST;
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        assert_eq!(client.send(request).await.unwrap().upstream(), service, "{path} {headers:?}");
    }
}
