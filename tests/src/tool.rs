//! The toolbox: a handler whose behaviour the request's path chooses.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use serde_json::{Value, json};

use crate::upstream::{Answer, Body, Handler, Seen, channel, empty, full};

/// | path | behaviour |
/// |---|---|
/// | `/status/N` | that status, a short body where one is allowed |
/// | `/slow/MS` | answers after so many milliseconds |
/// | `/hang` | never answers |
/// | `/drip/N/MS` | N chunks, MS apart |
/// | `/bytes/N` | N bytes with `content-length` |
/// | `/stream/N` | N bytes without a length |
/// | `/endless` | a body without end |
/// | `/truncate` | promises 1,000 bytes, sends 10, then fails |
/// | `/truncate-chunked` | sends a chunk, then fails |
/// | `/abort` | closes or resets without an answer |
/// | `/early` | answers at once without reading the request's body |
/// | `/trailers` | a body and the trailer `x-sum` |
/// | `/trailers-in` | answers with the request's trailers |
/// | `/hop` | a response with hop-by-hop headers |
/// | `/cookies` | several `set-cookie` |
/// | `/upload` | counts the request's body |
/// | `/mirror-body` | streams the request's body back |
/// | `/healthz` | 200 |
/// | anything else | echo as JSON |
pub fn handler(name: &str) -> Handler {
    let name: Arc<str> = name.into();
    Arc::new(move |request, seen| {
        let (name, head) = (name.clone(), *request.method() == http::Method::HEAD);
        Box::pin(async move {
            let response = answer(name, request, seen).await?;
            // hyper leaves it to the service not to send a body over HTTP/2.
            Ok(if head { response.map(|_| empty()) } else { response })
        })
    })
}

async fn answer(name: Arc<str>, request: Request<Incoming>, seen: Arc<Seen>) -> Answer {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let what = parts.next().unwrap_or_default();
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).unwrap_or(0);
    match what {
        "status" => status(number()),
        "slow" => {
            tokio::time::sleep(Duration::from_millis(number())).await;
            ok(full("slow"))
        }
        "hang" => std::future::pending().await,
        "drip" => ok(drip(seen, number(), Duration::from_millis(number()))),
        "bytes" => {
            let length = number();
            let mut response = Response::new(stream(seen, length));
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            Ok(response)
        }
        "stream" => ok(stream(seen, number())),
        "endless" => ok(stream(seen, u64::MAX)),
        "truncate" => {
            let mut response = Response::new(broken("0123456789"));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000"));
            Ok(response)
        }
        "truncate-chunked" => ok(broken("some")),
        "abort" => Err("told to abort".into()),
        "early" => Response::builder().status(403).body(full("early")).map_err(Into::into),
        // Over HTTP/1.1 hyper sends trailers only when they are announced here and asked for with `te: trailers`.
        "trailers" => Response::builder()
            .header("trailer", "x-sum")
            .body(with_trailers("body", HeaderMap::from_iter([sum("42")])))
            .map_err(Into::into),
        "trailers-in" => {
            let trailers = request.into_body().collect().await?.trailers().cloned();
            ok(full(trailers.map_or(Value::Null, |trailers| pairs(&trailers)).to_string()))
        }
        "hop" => hop(),
        "cookies" => Response::builder()
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .body(empty())
            .map_err(Into::into),
        "upload" => upload(request, &seen).await,
        "mirror-body" => ok(request.into_body().map_err(Into::into).boxed_unsync()),
        "healthz" => ok(full("healthy")),
        _ => echo(&name, request, &seen).await,
    }
}

fn ok(body: Body) -> Answer {
    Ok(Response::new(body))
}

fn status(code: u64) -> Answer {
    let status = StatusCode::from_u16(u16::try_from(code)?)?;
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let body = if bodiless { empty() } else { full(format!("status {code}")) };
    Response::builder().status(status).header("etag", "\"1\"").body(body).map_err(Into::into)
}

fn drip(seen: Arc<Seen>, chunks: u64, pause: Duration) -> Body {
    let (mut sender, body) = channel(1);
    tokio::spawn(async move {
        for number in 0..chunks {
            tokio::time::sleep(pause).await;
            if sender.send_data(Bytes::from(format!("drop {number}\n"))).await.is_err() {
                seen.cut.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    });
    body
}

/// A body of `length` bytes, made as it is read.
fn stream(seen: Arc<Seen>, length: u64) -> Body {
    let (mut sender, body) = channel(1);
    tokio::spawn(async move {
        let block = Bytes::from(vec![b'w'; 64 * 1024]);
        let mut left = length;
        while left > 0 {
            let size = left.min(block.len() as u64) as usize;
            if sender.send_data(block.slice(..size)).await.is_err() {
                seen.cut.fetch_add(1, Ordering::SeqCst);
                return;
            }
            seen.body_bytes.fetch_add(size, Ordering::SeqCst);
            left -= size as u64;
        }
    });
    body
}

fn broken(start: &'static str) -> Body {
    let (mut sender, body) = channel(1);
    tokio::spawn(async move {
        let _ = sender.send_data(Bytes::from_static(start.as_bytes())).await;
        // The start has to be on the wire before the connection fails.
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.abort("told to break".into());
    });
    body
}

fn sum(value: &'static str) -> (header::HeaderName, HeaderValue) {
    (header::HeaderName::from_static("x-sum"), HeaderValue::from_static(value))
}

fn with_trailers(data: &'static str, trailers: HeaderMap) -> Body {
    let (mut sender, body) = channel(2);
    tokio::spawn(async move {
        let _ = sender.send_data(Bytes::from_static(data.as_bytes())).await;
        let _ = sender.send_trailers(trailers).await;
    });
    body
}

fn hop() -> Answer {
    Response::builder()
        .header("connection", "x-private, keep-alive")
        .header("keep-alive", "timeout=5")
        .header("x-private", "only for the next hop")
        .header("proxy-authenticate", "Basic")
        .header("x-public", "for everybody")
        .body(full("hop"))
        .map_err(Into::into)
}

async fn upload(request: Request<Incoming>, seen: &Seen) -> Answer {
    let length = request.headers().get(header::CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned());
    let mut body = request.into_body();
    let mut bytes = 0_u64;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
            Err(error) => {
                seen.broken_bodies.fetch_add(1, Ordering::SeqCst);
                return Err(error.into());
            }
        }
    }
    ok(full(json!({"bytes": bytes, "content-length": length}).to_string()))
}

async fn echo(name: &str, request: Request<Incoming>, seen: &Seen) -> Answer {
    let (head, body) = request.into_parts();
    let empty_at_once = body.is_end_stream();
    let Ok(collected) = body.collect().await else {
        seen.broken_bodies.fetch_add(1, Ordering::SeqCst);
        return Err("the request's body broke".into());
    };
    let trailers = collected.trailers().map(pairs);
    let text = json!({
        "upstream": name,
        "method": head.method.as_str(),
        "uri": head.uri.to_string(),
        "version": format!("{:?}", head.version),
        "headers": pairs(&head.headers),
        "body": String::from_utf8_lossy(&collected.to_bytes()),
        "empty": empty_at_once,
        "trailers": trailers,
    });
    let response = Response::builder().header("content-type", "application/json").header("x-upstream", name);
    response.body(full(text.to_string())).map_err(Into::into)
}

fn pairs(headers: &HeaderMap) -> Value {
    headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])).collect()
}
