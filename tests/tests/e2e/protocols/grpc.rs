//! gRPC through Weft, with a real client and server.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tonic::Code;
use weft_tests::{
    SOON, Upstream, Weft, client, eventually,
    grpc::{self, Calls, GreeterClient, Msg},
    ports, soon,
    upstream::full,
    yaml,
};

use crate::local;

struct GrpcStage {
    _weft: Weft,
    upstream: Upstream,
    calls: Arc<Calls>,
    port: u16,
}

async fn stage() -> GrpcStage {
    let (upstream, calls) = grpc::start().await;
    let port = ports::free();
    let rule = format!(
        "hostnames: [grpc.local]\nrules:\n- matches: [{{method: {{service: {}}}}}]\n  backendRefs: [{}]",
        grpc::SERVICE,
        yaml::backend_port("greeter", 50051)
    );
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::grpc_route("greeter", &rule),
        yaml::service_port("greeter", "grpc", 50051, &[upstream.addr]),
    ]);
    GrpcStage { _weft: Weft::start(&config).await, upstream, calls, port }
}

impl GrpcStage {
    async fn client(&self) -> GreeterClient {
        GreeterClient::connect(local(self.port), "grpc.local").await
    }
}

fn request(text: &str) -> tonic::Request<Msg> {
    tonic::Request::new(Msg::new(text, 1))
}

#[tokio::test]
async fn all_four_kinds_of_call() {
    let stage = stage().await;
    let mut client = stage.client().await;
    let mut ask = request("hi");
    ask.metadata_mut().insert("x-ask", "me".parse().unwrap());
    let reply = client.unary(ask).await.unwrap();
    assert_eq!(reply.metadata().get("x-saw-ask").unwrap(), "me");
    assert_eq!(reply.metadata().get("x-saw-te").expect("gRPC servers require `te: trailers`"), "trailers");
    assert_eq!(reply.into_inner().text, "hi");

    let parts = || stream::iter(0..500).map(|number| Msg::new("x", number));
    let collected = client.collect(parts()).await.unwrap().into_inner();
    assert_eq!((collected.text.len(), collected.count), (500, 500));

    let mut repeated = client.repeat(Msg::new("r", 500)).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(message) = repeated.message().await.unwrap() {
        assert_eq!(message.count, count);
        count += 1;
    }
    assert_eq!(count, 500);

    let chat = client.chat(parts()).await.unwrap().into_inner();
    assert_eq!(chat.map(Result::unwrap).count().await, 500);
    assert_eq!(stage.upstream.seen.count(), 4);
}

#[tokio::test]
async fn a_conversation_goes_back_and_forth() {
    let stage = stage().await;
    let mut client = stage.client().await;
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let outgoing = stream::unfold(receive, |mut receive| async { Some((receive.recv().await?, receive)) });
    let chat = soon("the answer's head before any message", client.chat(outgoing)).await;
    let mut chat = chat.unwrap().into_inner();
    for round in 0..20 {
        send.send(Msg::new("ping", round)).await.unwrap();
        let back = soon("the message comes back", chat.message()).await.unwrap().unwrap();
        assert_eq!(back.count, round);
    }
    drop(send);
    assert!(soon("the end", chat.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn errors_arrive_with_code_and_message() {
    let stage = stage().await;
    let mut client = stage.client().await;
    // Before any message: trailers-only.
    let error = client.unary(request("fail:7:not you: é %")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::PermissionDenied, "not you: é %"));
    // After some messages: in the trailers.
    let mut repeated = client.repeat(Msg::new("then:10:stopped", 3)).await.unwrap().into_inner();
    for _ in 0..3 {
        assert!(repeated.message().await.unwrap().is_some());
    }
    let error = repeated.message().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Aborted, "stopped"));
    // In the middle of a client's stream.
    let parts = stream::iter([Msg::new("a", 1), Msg::new("fail:3:bad part", 2)]).chain(stream::pending());
    let error = soon("an early error", client.collect(parts)).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "bad part"));
}

#[tokio::test]
async fn refusals_are_trailers_only_replies() {
    let stage = stage().await;
    let mut client = stage.client().await;
    let error = client.call("no.Such", "Method", Msg::new("", 0)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error:?}");
    assert_eq!(error.metadata().get("x-weft-reason").unwrap(), "no_route");
    assert!(!error.message().is_empty(), "grpc-message says why");
    let error = GreeterClient::connect(local(stage.port), "other.local").await.unary(request("hi")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error:?}");
    assert_eq!(stage.upstream.seen.count(), 0);

    // Anything but gRPC gets plain HTTP from the same route.
    let reply = client::get_once(local(stage.port), "grpc.local", "/no.Such/Method").await.unwrap();
    reply.assert_refused(404, "no_route");

    let addr = stage.upstream.addr;
    stage.upstream.stop().await;
    let error = soon("a call to a server that is gone", client.unary(request("hi"))).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error:?} from {addr}");
}

#[tokio::test]
async fn a_deadline_ends_the_call_here_and_upstream() {
    let stage = stage().await;
    // hyper as a client, so that only Weft watches the deadline.
    let mut client = weft_tests::Client::h2(local(stage.port)).await.unwrap();
    let call = |timeout: &str| {
        // One uncompressed message: field 1 is "hang".
        let body = full(&b"\0\0\0\0\x06\x0a\x04hang"[..]);
        let mut request = client::request("POST", "grpc.local", &format!("/{}/Unary", grpc::SERVICE), body);
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", timeout)] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    };
    let reply = soon("the deadline", client.send(call("200m"))).await.unwrap();
    let status = reply.header("grpc-status").map(str::to_owned);
    assert_eq!((reply.status.as_u16(), status.as_deref()), (200, Some("4")), "trailers-only: {reply:?}");
    assert_eq!(reply.header("x-weft-reason"), Some("upstream_timeout"));
    eventually("the upstream's call is cancelled", SOON, async || stage.calls.cancelled.load(Ordering::SeqCst) == 1)
        .await;
}

#[tokio::test]
async fn the_rest_of_a_deadline_is_forwarded() {
    let stage = stage().await;
    let mut client = stage.client().await;
    let mut ask = request("hi");
    ask.set_timeout(Duration::from_secs(7));
    let reply = client.unary(ask).await.unwrap();
    let saw = reply.metadata().get("x-saw-timeout").expect("grpc-timeout is forwarded").to_str().unwrap().to_owned();
    let (number, unit) = saw.split_at(saw.len() - 1);
    let number: f64 = number.parse().unwrap();
    let seconds = match unit {
        "S" => number,
        "m" => number / 1e3,
        "u" => number / 1e6,
        "n" => number / 1e9,
        other => panic!("unit {other}"),
    };
    assert!(seconds > 0.0 && seconds <= 7.0, "{saw}");
}

#[tokio::test]
async fn a_huge_or_bad_deadline_does_no_harm() {
    let stage = stage().await;
    let mut client = stage.client().await;
    for timeout in ["99999999H", "99999999n", "0S", "12345678901234567890S", "-1S", "S", "5x", ""] {
        let mut ask = request("hi");
        ask.metadata_mut().insert("x-weft-test", "1".parse().unwrap());
        if let Ok(value) = timeout.parse() {
            ask.metadata_mut().insert("grpc-timeout", value);
        }
        // Every answer will do, as long as there is one.
        let _ = soon(timeout, client.unary(ask)).await;
    }
    assert_eq!(client.unary(request("still here")).await.unwrap().into_inner().text, "still here");
}

#[tokio::test]
async fn cancelling_reaches_the_upstream() {
    let stage = stage().await;
    let mut client = stage.client().await;
    let mut endless = client.repeat(Msg::new("endless", 0)).await.unwrap().into_inner();
    assert!(endless.message().await.unwrap().is_some());
    drop(endless);
    eventually("the stream is cancelled", SOON, async || stage.calls.cancelled.load(Ordering::SeqCst) == 1).await;

    let hanging = tokio::spawn({
        let mut client = client.clone();
        async move { client.unary(request("hang")).await }
    });
    eventually("the call arrives", SOON, async || stage.upstream.seen.count() == 2).await;
    hanging.abort();
    eventually("the call is cancelled", SOON, async || stage.calls.cancelled.load(Ordering::SeqCst) == 2).await;
    assert_eq!(client.unary(request("still here")).await.unwrap().into_inner().text, "still here");
}
