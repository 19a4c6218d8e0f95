//! Paths that are not what they look like: whatever is forwarded is what the matched rule was about.

use weft_tests::{Upstream, Weft, Wire, ports, soon, yaml};

use crate::local;

/// A public prefix, and a prefix that only a rule with a secret header may reach.
async fn guarded() -> (Weft, std::net::SocketAddr, Upstream, Upstream) {
    let (open, admin) = (Upstream::h1("open").await, Upstream::h1("admin").await);
    let port = ports::free();
    let rules = format!(
        "rules:
- {{matches: [{{path: {{type: PathPrefix, value: /}}}}], backendRefs: [{}]}}
- {{matches: [{{path: {{type: PathPrefix, value: /admin}}}}], backendRefs: [{}]}}",
        yaml::backend("open"),
        yaml::backend("admin")
    );
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", &rules),
        yaml::service("open", "http", &[open.addr]),
        yaml::service("admin", "http", &[admin.addr]),
    ]);
    (Weft::start(&config).await, local(port), open, admin)
}

/// The form by which RFC 3986 section 6.2.2 compares paths: escapes of unreserved characters decoded, dot segments
/// resolved. By Weft's documented decision `%2F`, `%5C` and empty segments are data, not separators.
fn normalised(path: &str) -> String {
    let mut rest = path.split(['?', '#']).next().unwrap();
    let mut decoded = String::new();
    while let Some(at) = rest.find('%') {
        decoded += &rest[..at];
        let byte = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match byte.map(char::from).filter(|c| c.is_ascii_alphanumeric() || "-._~".contains(*c)) {
            Some(unreserved) => {
                decoded.push(unreserved);
                rest = &rest[at + 3..];
            }
            None => {
                decoded.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    decoded += rest;
    let mut parts = Vec::new();
    for part in decoded.split('/').skip(1).filter(|part| *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

#[tokio::test]
async fn no_spelling_of_a_guarded_path_reaches_the_open_service() {
    let (_weft, addr, open, admin) = guarded().await;
    let mut holes = Vec::new();
    for path in [
        "/admin",
        "/admin/x",
        "/x/../admin",
        "/x/..%2fadmin",
        "/x/%2e%2e/admin",
        "/x/%2E%2E/admin",
        "/x/.%2e/admin",
        "/./admin",
        "/%2e/admin",
        "//admin",
        "///admin/x",
        "/x//..//admin",
        "/%61dmin",
        "/%61%64%6d%69%6e/x",
        "/x/../../admin",
        "/../admin",
        "/..%2fadmin",
        "/x/..;/admin",
        "/x/..\\admin",
        "/x\\..\\admin",
        "/x/%5c../admin",
        "/x%2f..%2fadmin",
        "/%2fadmin",
        "/admin%2fx",
        "/admin/../admin",
        "/admin%00",
        "/admin%",
        "/admin%zz",
        "/%252e%252e/admin",
    ] {
        let mut wire = Wire::connect(addr).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let response = soon(path, wire.try_response("GET")).await.expect("an answer");
        match response.status {
            400 => assert_eq!(response.header("x-weft-reason"), Some("bad_request"), "{path}"),
            200 => {
                let echo = response.json();
                let (service, seen) = (echo["upstream"].as_str().unwrap(), echo["uri"].as_str().unwrap());
                let guarded = |path: &str| path == "/admin" || path.starts_with("/admin/");
                if guarded(&normalised(seen)) && service != "admin" {
                    holes.push(format!("{path}: {seen} reached {service}"));
                }
                if seen != normalised(seen) {
                    holes.push(format!("{path}: forwarded as {seen}, which others may read differently"));
                }
                if service == "admin" && !guarded(&normalised(seen)) {
                    holes.push(format!("{path}: matched /admin, but {seen} was forwarded"));
                }
            }
            404 => {}
            other => holes.push(format!("{path}: {other}")),
        }
    }
    assert!(holes.is_empty(), "{}", holes.join("\n"));
    assert!(admin.seen.count() > 0 && open.seen.connections.load(std::sync::atomic::Ordering::SeqCst) < 100);
}

#[tokio::test]
async fn schemes_and_hosts_have_no_case_but_paths_do() {
    let (_weft, addr, _open, admin) = guarded().await;
    for target in ["HTTP://a/admin", "hTTp://A/admin"] {
        let response = Wire::connect(addr).await.exchange(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((response.status, response.json()["upstream"].as_str()), (200, Some("admin")), "{target}");
    }
    let before = admin.seen.count();
    let response = Wire::connect(addr).await.exchange("GET /ADMIN HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.json()["upstream"], "open");
    assert_eq!(admin.seen.count(), before);
}

#[tokio::test]
async fn every_value_of_a_repeated_header_counts() {
    // A rule on `x-role: guest` must not be reached by sending that value beside another one.
    let (guest, other) = (Upstream::h1("guest").await, Upstream::h1("other").await);
    let port = ports::free();
    let rules = format!(
        "rules:
- {{matches: [{{headers: [{{name: x-role, value: guest}}]}}], backendRefs: [{}]}}
- {{backendRefs: [{}]}}",
        yaml::backend("guest"),
        yaml::backend("other")
    );
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", &rules),
        yaml::service("guest", "http", &[guest.addr]),
        yaml::service("other", "http", &[other.addr]),
    ]);
    let _weft = Weft::start(&config).await;
    let ask = async |headers: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        Wire::connect(local(port)).await.exchange(request).await
    };
    assert_eq!(ask("X-Role: guest\r\n").await.json()["upstream"], "guest");
    for repeated in ["X-Role: guest\r\nX-Role: admin\r\n", "X-Role: admin\r\nX-Role: guest\r\n"] {
        let response = ask(repeated).await;
        let to_guest = response.status == 200 && response.json()["upstream"] == "guest";
        assert!(!to_guest, "the combined value is not `guest` (RFC 9110 section 5.3): {response:?}");
    }
}
