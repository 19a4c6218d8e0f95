//! Retries over gRPC.

use std::time::Duration;

use tonic::Code;
use weft_tests::{
    Client, soon,
    unruly::grpc::{GrpcMood, UnrulyGrpc},
};

use super::{Scene, grpc_request, grpc_status};

const UNAVAILABLE: &str = "retry: {attempts: 2, retryOn: [connect-failure, refused-stream, \"grpc:UNAVAILABLE\"], \
                           backoff: {base: 5ms, max: 20ms}}\nretryBudget: {minPerSecond: 1000}";

/// A call with an id: its status, and how often it was received.
async fn call(scene: &Scene<UnrulyGrpc>) -> (String, usize) {
    let (id, request) = grpc_request(&[]);
    let mut client = Client::h2(scene.addr).await.unwrap();
    let reply = soon("an answer", client.send(request)).await.unwrap();
    (grpc_status(&reply).unwrap_or_else(|| panic!("{reply:?}")), scene.received(&id))
}

#[tokio::test]
async fn a_status_before_any_message_is_retried_wherever_it_stands() {
    for mood in [GrpcMood::TrailersOnly(Code::Unavailable), GrpcMood::Trailers(Code::Unavailable)] {
        let scene = Scene::grpc(2, UNAVAILABLE).await;
        scene.upstreams[0].set(mood);
        for _ in 0..8 {
            let reply = scene.call().await.unwrap();
            assert_eq!(reply.metadata().get("x-upstream").unwrap(), "app1", "{mood:?}");
            assert_eq!(reply.into_inner().text, "hi");
        }
        let retried = scene.upstreams[0].count();
        assert!((3..=8).contains(&retried), "{mood:?}: {retried}");
        assert_eq!(scene.upstreams[1].count(), 8, "{mood:?}");
        scene.weft.until_metric("weft_retries_total", &[("service", "app"), ("outcome", "recovered")], retried).await;
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_status_is_the_client_s() {
    for mood in [GrpcMood::TrailersOnly(Code::Unavailable), GrpcMood::Trailers(Code::Unavailable)] {
        let scene = Scene::grpc(1, UNAVAILABLE).await;
        scene.upstreams[0].set(mood);
        assert_eq!(call(&scene).await, ("14".to_owned(), 3), "{mood:?}");
        let error = scene.call().await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unavailable, "told to fail"), "{mood:?}");
    }
}

#[tokio::test]
async fn not_after_a_message_and_not_for_what_is_not_listed() {
    let scene = Scene::grpc(1, UNAVAILABLE).await;
    scene.upstreams[0].set(GrpcMood::AfterMessage(Code::Unavailable));
    assert_eq!(call(&scene).await, ("14".to_owned(), 1));
    for code in [Code::DeadlineExceeded, Code::Internal, Code::NotFound, Code::Aborted] {
        for mood in [GrpcMood::TrailersOnly(code), GrpcMood::Trailers(code)] {
            scene.upstreams[0].set(mood);
            assert_eq!(call(&scene).await, ((code as i32).to_string(), 1), "{mood:?}");
        }
    }
    scene.upstreams[0].set(GrpcMood::Reset);
    assert_eq!(call(&scene).await.1, 1, "a reset is not listed, and the call may be at work");
}

#[tokio::test]
async fn without_a_grpc_condition_a_call_is_a_post() {
    let scene = Scene::grpc(1, "retry: {attempts: 2, retryOn: [5xx, reset], backoff: {base: 5ms, max: 20ms}}").await;
    for mood in [GrpcMood::TrailersOnly(Code::Unavailable), GrpcMood::Reset] {
        scene.upstreams[0].set(mood);
        assert_eq!(call(&scene).await.1, 1, "{mood:?}");
    }
}

#[tokio::test]
async fn retries_within_a_slow_call_keep_its_messages_apart() {
    let scene = Scene::grpc(1, UNAVAILABLE).await;
    let slow = Duration::from_millis(50);
    scene.upstreams[0].script([
        GrpcMood::SlowTrailersOnly(slow, Code::Unavailable),
        GrpcMood::Trailers(Code::Unavailable),
        GrpcMood::Slow(slow),
    ]);
    let reply = scene.call().await.unwrap().into_inner();
    assert_eq!((reply.text.as_str(), reply.count), ("hi", 1));
    assert_eq!(scene.count(), 3);
}
