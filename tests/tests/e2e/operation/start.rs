//! Starts that fail: one clear line, and an exit code that scripts can rely on.

use std::os::unix::fs::PermissionsExt;

use weft_tests::{Options, SOON, Upstream, Weft, client, ports, weft::run, yaml};

use crate::local;

/// Exit code, stdout, stderr.
async fn outcome(args: &[&str]) -> (i32, String, String) {
    let output = run(args).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("an exit code, not a signal"), text(&output.stdout), text(&output.stderr))
}

fn no_panic(stderr: &str) {
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let upstream = ports::refusing();
    let weft = Weft::spawn(&yaml::simple(port, "http", upstream), Options::default());
    let status = weft.wait_exit(SOON).await;
    let stderr = weft.stderr();
    assert_eq!(status.code(), Some(1), "{stderr}");
    no_panic(&stderr);
    assert!(stderr.contains(&port.to_string()) && stderr.to_lowercase().contains("in use"), "{stderr}");
}

#[tokio::test]
async fn an_admin_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weft.yaml");
    std::fs::write(&file, yaml::simple(ports::free(), "http", ports::refusing())).unwrap();
    let (code, _, stderr) = outcome(&["proxy", "--config", file.to_str().unwrap(), "--admin", &admin]).await;
    assert_eq!(code, 1, "{stderr}");
    no_panic(&stderr);
    assert!(stderr.contains(&admin) && stderr.to_lowercase().contains("in use"), "{stderr}");
}

#[tokio::test]
async fn a_missing_or_forbidden_file_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nowhere.yaml");
    let forbidden = dir.path().join("secret.yaml");
    std::fs::write(&forbidden, "x").unwrap();
    std::fs::set_permissions(&forbidden, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut cases = vec![(missing, "no such file")];
    if std::fs::read(&forbidden).is_err() {
        cases.push((forbidden, "permission"));
    } else {
        weft_tests::skip("a_missing_or_forbidden_file: permission", "root may read everything");
    }
    let admin = format!("127.0.0.1:{}", ports::free());
    for (file, words) in cases {
        let file = file.to_str().unwrap();
        for args in [&["proxy", "--admin", admin.as_str(), "--config", file][..], &["validate", file]] {
            let (code, _, stderr) = outcome(args).await;
            assert!(code == 4 || code == 1, "{args:?}: {code} {stderr}");
            no_panic(&stderr);
            assert!(stderr.contains(file) && stderr.to_lowercase().contains(words), "{args:?}: {stderr}");
        }
    }
}

/// Seven mistakes, each on a line of its own.
const MISTAKES: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: weft
  listeners:
  - {name: http, port: 80800, protocol: HTTP}
  - {name: other, port: 81, protocol: HTTQ}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all}
spec:
  parentRefs: [{name: edge}]
  hostname: [shop.local]
  rules:
  - matches: [{path: {type: RegularExpression, value: '/a('}}]
    timeouts: {request: 5 parsecs}
    backendRefs: [{group: weft.dev, kind: Service, name: missing, port: 80}]
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {name: app}
spec:
  ports: [{name: http, port: 80, appProtocol: htpp}]
  endpoints: [{address: 127.0.0.1, port: 0}]
";

#[tokio::test]
async fn every_mistake_is_located_and_the_exit_code_is_4() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.yaml");
    std::fs::write(&file, MISTAKES).unwrap();
    let file = file.to_str().unwrap();
    let admin = format!("127.0.0.1:{}", ports::free());
    for args in [&["validate", file][..], &["proxy", "--admin", &admin, "--config", file]] {
        let (code, stdout, stderr) = outcome(args).await;
        assert_eq!(code, 4, "{args:?}: {stderr}");
        no_panic(&stderr);
        assert_eq!(stdout, "", "errors belong on stderr");
        let missing: Vec<_> = [7, 8, 15, 17, 18, 19, 25, 26]
            .into_iter()
            .filter(|line| !stderr.contains(&format!("bad.yaml:{line}:")))
            .collect();
        assert!(missing.is_empty(), "{args:?}: no mention of lines {missing:?}:\n{stderr}");
        assert!(stderr.contains("hostnames"), "did you mean: {stderr}");
    }
}

#[tokio::test]
async fn validate_says_what_is_valid_and_for_tools_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.yaml"), dir.path().join("bad.yaml"));
    std::fs::write(&good, yaml::simple(8080, "http", ports::refusing())).unwrap();
    std::fs::write(&bad, MISTAKES).unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let (code, stdout, stderr) = outcome(&["validate", good]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("valid"), "{stdout}");
    assert_eq!(outcome(&["validate", good, bad]).await.0, 4);
    let (code, stdout, _) = outcome(&["validate", "-o", "json", bad]).await;
    assert_eq!(code, 4);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(json["errors"].as_array().unwrap().len() >= 7, "{json}");
    assert_eq!(outcome(&["validate"]).await.0, 2, "usage");
    assert_eq!(outcome(&["no-such-verb"]).await.0, 2, "usage");
    assert_eq!(outcome(&["--version"]).await.0, 0);
    for file in ["gateway.yaml"] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/routing/").to_owned() + file;
        let (code, _, stderr) = outcome(&["validate", &path]).await;
        assert_eq!(code, 0, "{file}: {stderr}");
    }
}

#[tokio::test]
async fn a_field_without_effect_is_named_at_the_start() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let policy = "hedge: {after: 50ms, maxExtra: 1}";
    let config = yaml::docs(&[yaml::simple(port, "http", upstream.addr), yaml::policy("app", policy)]);
    let weft = Weft::start(&config).await;
    assert_eq!(client::get_once(local(port), "a", "/").await.unwrap().status, 200);
    let log = weft.stderr();
    if !log.contains("hedge") {
        // It has an effect by now, which another test shows; a silent no-op is what must not be.
        weft_tests::skip("a_field_without_effect_is_named_at_the_start", "no warning about `hedge`: implemented?");
    }
}

#[tokio::test]
async fn the_start_is_summarised() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let weft = Weft::start(&yaml::simple(port, "http", upstream.addr)).await;
    let log = weft.stderr();
    for word in [port.to_string(), weft.admin.port().to_string()] {
        assert!(log.contains(&word), "{word} is not in the summary:\n{log}");
    }
    assert_eq!(weft.stdout(), "", "data only on stdout");
}
