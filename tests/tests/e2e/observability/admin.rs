//! The node's admin port.

use weft_tests::{Client, client, upstream::empty};

use crate::Stage;

#[tokio::test]
async fn endpoints_tell_their_state() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    for _ in 0..4 {
        client.get("a", "/").await.unwrap();
    }
    client.get("a", "/abort").await.unwrap();
    let all = stage.weft.admin_json("/endpoints").await;
    let service = &all[0];
    assert_eq!(service["service"], "app", "{all}");
    let endpoint = &service["endpoints"][0];
    assert_eq!(endpoint["address"], stage.upstream.addr.to_string());
    assert_eq!((endpoint["weight"].as_u64(), endpoint["in_flight"].as_u64()), (Some(1), Some(0)), "{endpoint}");
    assert!(endpoint["requests"].as_u64().unwrap() >= 5 && endpoint["failures"].as_u64().unwrap() >= 1, "{endpoint}");
    for field in ["health", "breaker", "ewma_ms"] {
        assert!(!endpoint[field].is_null(), "{field}: {endpoint}");
    }
}

#[tokio::test]
async fn the_loaded_configuration_is_shown_with_its_revision() {
    let stage = Stage::h1().await;
    let dump = stage.weft.admin_json("/config_dump").await;
    assert_eq!(dump["revision"].as_u64(), Some(stage.weft.revision().await), "{dump}");
    let text = dump.to_string();
    assert!(text.contains("\"app\"") && text.contains(&stage.upstream.addr.port().to_string()), "{dump}");
}

#[tokio::test]
async fn keys_are_never_shown() {
    let ca = weft_tests::pki::Ca::new("edge");
    let leaf = ca.leaf(&["app.test"]);
    let port = weft_tests::ports::free();
    let pem = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: edge}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        pem(&leaf.cert),
        pem(&leaf.key)
    );
    let listener =
        format!("{{name: https, port: {port}, protocol: HTTPS, tls: {{certificateRefs: [{{name: edge}}]}}}}");
    let config = weft_tests::yaml::docs(&[
        weft_tests::yaml::listeners(&[listener]),
        secret,
        weft_tests::yaml::all_to("app"),
        weft_tests::yaml::service("app", "http", &[]),
    ]);
    let weft = weft_tests::Weft::start(&config).await;
    let key = leaf.key.lines().nth(1).unwrap();
    for path in ["/config_dump", "/endpoints", "/metrics", "/debug/tasks", "/traces"] {
        assert!(!weft.admin(path).await.text().contains(key), "{path} shows a private key");
    }
    assert!(!(weft.stderr() + &weft.stdout()).contains(key));
}

#[tokio::test]
async fn every_page_answers_and_others_do_not() {
    let stage = Stage::h1().await;
    for path in [
        "/ready",
        "/metrics",
        "/config_dump",
        "/endpoints",
        "/limits",
        "/traces",
        "/connections",
        "/debug/tasks",
        "/debug/heap",
    ] {
        let reply = stage.weft.admin(path).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }
    assert_eq!(stage.weft.admin("/nowhere").await.status, 404);
    let mut admin = Client::h1(stage.weft.admin).await.unwrap();
    let post = admin.send(client::request("POST", "localhost", "/metrics", empty())).await.unwrap();
    assert_eq!(post.status, 405);
}

#[tokio::test]
async fn a_page_of_another_site_cannot_use_the_admin_port() {
    // DNS rebinding: the browser sends the attacker's name in Host, or another Origin.
    let stage = Stage::h1().await;
    let mut admin = Client::h1(stage.weft.admin).await.unwrap();
    let rebound = admin.send(client::request("POST", "evil.example", "/drain", empty())).await.unwrap();
    assert!(rebound.status.is_client_error(), "{rebound:?}");
    let mut crossed = client::request("POST", "localhost", "/drain", empty());
    crossed.headers_mut().insert("origin", "http://evil.example".parse().unwrap());
    let crossed = admin.send(crossed).await.unwrap();
    assert!(crossed.status.is_client_error(), "{crossed:?}");
    assert_eq!(stage.client_h1().await.get("a", "/").await.unwrap().status, 200, "not draining");
}
