//! The configuration of the contract, every part of it in use.

use std::time::Duration;

use weft_tests::{
    Client, RawUpstream, Upstream, Weft, Wire, client, eventually,
    grpc::{self, GreeterClient, Msg},
    ports, soon,
};

use crate::{echoed, local};

struct Contract {
    weft: Weft,
    http: std::net::SocketAddr,
    raw: std::net::SocketAddr,
    carts: Vec<Upstream>,
    canary: Upstream,
    files: Upstream,
}

/// The file of the contract with ports of this test.
async fn start() -> (Contract, Upstream, RawUpstream) {
    let carts = vec![Upstream::h1("cart").await, Upstream::h1("cart").await];
    let (canary, files) = (Upstream::h1("cart-v2").await, Upstream::h1("files").await);
    let (greeter, _) = grpc::start().await;
    let redis = RawUpstream::start(|mut wire, _| async move {
        while let Some(line) = wire.read_until(b"\r\n").await {
            wire.send([b"+", line.as_slice()].concat()).await;
        }
    })
    .await;
    let (http, raw) = (ports::free(), ports::free());
    let mut config = include_str!("gateway.yaml").to_owned();
    for (from, to) in [
        // First: a port that one of the others gets may begin with these digits.
        (4317, ports::free()),
        (8080, http),
        (8081, raw),
        (9001, carts[0].addr.port()),
        (9002, carts[1].addr.port()),
        (9003, canary.addr.port()),
        (9004, files.addr.port()),
        (9005, greeter.addr.port()),
        (9006, redis.addr.port()),
    ] {
        for prefix in ["port: ", "127.0.0.1:"] {
            config = config.replace(&format!("{prefix}{from}"), &format!("{prefix}{to}"));
        }
    }
    let weft = Weft::start(&config).await;
    (Contract { weft, http: local(http), raw: local(raw), carts, canary, files }, greeter, redis)
}

#[tokio::test]
async fn every_route_of_the_contract() {
    let (contract, greeter, _redis) = start().await;
    let mut client = Client::h1(contract.http).await.unwrap();

    let canary = client.send(client::get_with("shop.local", "/cart/7", &[("x-canary", "1")])).await.unwrap();
    assert_eq!(canary.upstream(), "cart-v2");
    assert_eq!(echoed(&canary.json(), "x-shop"), None, "another rule's filter");

    let forged = [("x-shop", "false"), ("x-internal", "secret")];
    let cart = client.send(client::get_with("a.b.shop.local", "/cart", &forged)).await.unwrap();
    assert!(cart.upstream().starts_with("cart"));
    assert_eq!(echoed(&cart.json(), "x-shop"), Some("true"), "set replaces");
    assert_eq!(echoed(&cart.json(), "x-internal"), None);

    let old = client.get("shop.local", "/old?q=1").await.unwrap();
    assert_eq!(old.status, 301);
    let location = old.header("location").unwrap();
    assert!(location.starts_with("http://shop.local") && location.ends_with("/cart?q=1"), "{location}");

    let files = client.get("shop.local", "/files/a/b.txt?v=2").await.unwrap();
    assert_eq!((files.upstream().as_str(), files.json()["uri"].as_str()), ("files", Some("/a/b.txt?v=2")));
    assert_eq!(client.get("shop.local", "/files").await.unwrap().json()["uri"], "/");

    client.get("shop.local", "/nowhere").await.unwrap().assert_refused(404, "no_route");
    client.get("nowhere.local", "/cart").await.unwrap().assert_refused(404, "no_route");
    let post = client.post("shop.local", "/old", "").await.unwrap();
    post.assert_refused(405, "method_not_allowed");
    assert_eq!(post.header("allow"), Some("GET"));

    let mut greet = GreeterClient::connect(contract.http, "grpc.local").await;
    assert_eq!(greet.unary(tonic::Request::new(Msg::new("hi", 1))).await.unwrap().into_inner().text, "hi");
    assert_eq!(greeter.seen.count(), 1);

    let mut wire = Wire::connect(contract.raw).await;
    wire.send("PING\r\n").await;
    assert_eq!(soon("an answer over TCP", wire.read_until(b"\r\n")).await.unwrap(), b"+PING\r\n");
}

#[tokio::test]
async fn weights_hold_over_two_thousand_requests() {
    let (contract, _greeter, _redis) = start().await;
    let mut client = Client::h1(contract.http).await.unwrap();
    for _ in 0..2000 {
        assert_eq!(client.get("shop.local", "/cart/status").await.unwrap().status, 200);
    }
    let canary = contract.canary.seen.to_path("/cart/status").len();
    assert!((120..=280).contains(&canary), "10 % of 2,000 within six standard deviations: {canary}");
    let carts: Vec<_> = contract.carts.iter().map(|cart| cart.seen.to_path("/cart/status").len()).collect();
    assert_eq!(carts.iter().sum::<usize>() + canary, 2000);
    assert!(carts.iter().all(|count| *count > 100), "both endpoints are used: {carts:?}");
}

#[tokio::test]
async fn half_of_the_requests_are_mirrored() {
    let (contract, _greeter, _redis) = start().await;
    let mut client = Client::h1(contract.http).await.unwrap();
    for _ in 0..600 {
        assert_eq!(client.get("shop.local", "/files/mirrored").await.unwrap().upstream(), "files");
    }
    assert_eq!(contract.files.seen.to_path("/mirrored").len(), 600);
    let mirrored = || contract.canary.seen.count();
    eventually("mirrored requests arrive", weft_tests::SOON, async || mirrored() > 200).await;
    let settled = mirrored();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!((settled..=400).contains(&mirrored()), "50 % of 600 within eight standard deviations: {}", mirrored());
    assert_eq!(contract.weft.exited(), None);
}

#[tokio::test]
async fn the_exporter_being_away_harms_nobody() {
    let (contract, _greeter, _redis) = start().await;
    let load = weft_tests::load::Load::start(contract.http, weft_tests::load::Speak::H1, 2, "shop.local", "/cart");
    load.progress(300).await;
    load.finish_unharmed().await;
}
