#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;

const GET: Manner = Manner { grpc: false, method: Method::GET, h2: false };
const GRPC: Manner = Manner { grpc: true, method: Method::POST, h2: true };

fn refused(reason: Reason) -> Answer {
    Refusal::new(reason, "because").into()
}

fn field<'r>(response: &'r Response<Bytes>, name: &str) -> Option<&'r str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn every_reason_says_its_name() {
    for reason in Reason::ALL {
        let row = reason.row();
        let (response, refusal) = response(refused(reason), &GET);
        assert_eq!(response.status(), row.status, "{reason}");
        assert_eq!(field(&response, "x-weft-reason"), Some(row.name));
        assert_eq!(field(&response, "server"), Some("weft"));
        assert_eq!(field(&response, "content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(*response.body(), format!("{}: because\n({})\n", row.name, row.advice));
        assert_eq!(refusal.map(|refusal| refusal.reason), Some(reason));
        for absent in ["grpc-status", "retry-after", "allow", "location"] {
            assert_eq!(field(&response, absent), None, "{reason} {absent}");
        }
    }
}

#[test]
fn grpc_gets_trailers_only() {
    for reason in Reason::ALL {
        let row = reason.row();
        let (response, refusal) = response(refused(reason), &GRPC);
        assert_eq!(response.status(), StatusCode::OK, "{reason}");
        assert_eq!(field(&response, "content-type"), Some("application/grpc"));
        assert_eq!(field(&response, "grpc-status"), Some(row.grpc.to_string().as_str()));
        assert_eq!(field(&response, "grpc-message"), Some(format!("{}: because", row.name).as_str()));
        assert_eq!(field(&response, "x-weft-reason"), Some(row.name));
        assert!(response.body().is_empty() && refusal.is_some());
    }
    let (response, _) = response(Refusal::new(Reason::Internal, "50 % of\ncafé").into(), &GRPC);
    assert_eq!(field(&response, "grpc-message"), Some("internal_error: 50 %25 of%0Acaf%C3%A9"));
}

#[test]
fn a_redirect_has_a_location_and_no_reason() {
    let answer = Answer::Redirect(StatusCode::MOVED_PERMANENTLY, HeaderValue::from_static("https://a.b/"));
    let (response, refusal) = response(answer, &GET);
    assert_eq!(response.status(), 301);
    assert_eq!((field(&response, "location"), field(&response, "server")), (Some("https://a.b/"), Some("weft")));
    assert_eq!(field(&response, "x-weft-reason"), None);
    assert!(refusal.is_none() && response.body().is_empty());
}

#[test]
fn a_redirected_connect_ends_the_connection() {
    for (method, h2, expected) in
        [(Method::CONNECT, false, Some("close")), (Method::CONNECT, true, None), (Method::GET, false, None)]
    {
        let answer = Answer::Redirect(StatusCode::FOUND, HeaderValue::from_static("https://a.b/"));
        let (response, _) = response(answer, &Manner { grpc: false, method, h2 });
        assert_eq!(field(&response, "connection"), expected);
    }
}

#[test]
fn a_405_says_which_methods_would_do() {
    let (response, refusal) = response(Answer::MethodNotAllowed("GET, PUT".into()), &GET);
    assert_eq!((response.status().as_u16(), field(&response, "allow")), (405, Some("GET, PUT")));
    assert_eq!(refusal.map(|refusal| refusal.reason), Some(Reason::MethodNotAllowed));
}

#[test]
fn retry_after_is_rounded_up_to_whole_seconds() {
    for (millis, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (59_999, "60"), (60_000, "60")] {
        let mut refusal = Refusal::new(Reason::RateLimited, "");
        refusal.retry_after = Some(Duration::from_millis(millis));
        let (response, _) = response(refusal.into(), &GET);
        assert_eq!(field(&response, "retry-after"), Some(seconds), "{millis} ms");
    }
}

#[test]
fn head_gets_no_body() {
    let (response, _) = response(refused(Reason::NoRoute), &Manner { method: Method::HEAD, ..GET });
    assert_eq!((response.status().as_u16(), field(&response, "x-weft-reason")), (404, Some("no_route")));
    assert!(response.body().is_empty());
}

#[test]
fn the_connection_ends_where_nobody_knows_what_comes_next() {
    for reason in Reason::ALL {
        let unclear =
            matches!(reason, Reason::BadRequest | Reason::RequestTimeout | Reason::RequestTooLarge | Reason::Draining);
        let closes = |manner: &Manner| field(&response(refused(reason), manner).0, "connection") == Some("close");
        assert_eq!(closes(&GET), unclear, "{reason}");
        assert!(closes(&Manner { method: Method::CONNECT, ..GET }), "{reason}");
        assert!(!closes(&Manner { h2: true, ..GET }) && !closes(&GRPC), "{reason}");
        assert!(!closes(&Manner { h2: true, method: Method::CONNECT, grpc: false }), "{reason}");
    }
}

#[test]
fn the_manner_is_that_of_the_request() {
    let mut request = Request::head("/").body(()).unwrap();
    let manner = Manner::of(&request, false);
    assert_eq!((manner.method, manner.h2, manner.grpc), (Method::HEAD, false, false));
    *request.version_mut() = Version::HTTP_2;
    assert!(Manner::of(&request, true).h2 && Manner::of(&request, true).grpc);
}

#[test]
fn a_fault_answers_with_the_status_that_was_configured() {
    use crate::error::Abort;
    for (status, http, grpc) in [
        (Abort::Status(StatusCode::IM_A_TEAPOT), 418, "2"),
        (Abort::Status(StatusCode::SERVICE_UNAVAILABLE), 503, "14"),
        (Abort::Status(StatusCode::NOT_FOUND), 404, "12"),
        (Abort::Grpc(14), 503, "14"),
        (Abort::Grpc(1), 499, "1"),
        (Abort::Grpc(13), 500, "13"),
    ] {
        let (plain, _) = response(Refusal::fault(status).into(), &GET);
        assert_eq!((plain.status().as_u16(), field(&plain, "x-weft-reason")), (http, Some("fault_injected")));
        let (trailers, _) = response(Refusal::fault(status).into(), &GRPC);
        assert_eq!((trailers.status().as_u16(), field(&trailers, "grpc-status")), (200, Some(grpc)), "{status:?}");
    }
}
