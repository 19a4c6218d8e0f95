//! The gRPC counterpart: the same service as [`crate::grpc`], with a status wherever gRPC lets one stand.

use std::{ops::Deref, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::{ID, Moods};
use crate::{
    grpc::{Echo, Msg, boxed},
    upstream::{Answer, Handler, Record, Seen, Upstream, channel},
};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GrpcMood {
    /// The message comes back.
    Well,
    /// A status in the response's only HEADERS.
    TrailersOnly(Code),
    /// The same, after a while.
    SlowTrailersOnly(Duration, Code),
    /// Headers, no message, and a status in the trailers.
    Trailers(Code),
    /// Headers, a message, and a status in the trailers.
    AfterMessage(Code),
    /// The message comes back after a while.
    Slow(Duration),
    /// Headers at once, and after a while a message and a status that is well.
    Late(Duration),
    /// RST_STREAM without an answer.
    Reset,
    /// Nothing.
    Hang,
}

/// The running service. Moods are set through [`Moods`], to which it dereferences.
pub struct UnrulyGrpc {
    pub upstream: Upstream,
    moods: Moods<GrpcMood>,
}

impl Deref for UnrulyGrpc {
    type Target = Moods<GrpcMood>;

    fn deref(&self) -> &Moods<GrpcMood> {
        &self.moods
    }
}

impl UnrulyGrpc {
    /// Over HTTP/2 with prior knowledge; answers well. `name` appears in its answers' metadata, as `x-upstream`.
    pub async fn start(name: &'static str) -> Self {
        let moods = Moods::new(GrpcMood::Well);
        let handler: Handler = Arc::new({
            let moods = moods.clone();
            move |request, _seen: Arc<Seen>| {
                let mood = moods.draw();
                Box::pin(async move {
                    let mut response = answer(mood, request).await?;
                    response.headers_mut().insert("x-upstream", HeaderValue::from_static(name));
                    Ok(response)
                })
            }
        });
        Self { upstream: Upstream::h2_with(handler).await, moods }
    }

    /// Calls received.
    pub fn count(&self) -> usize {
        self.upstream.seen.count()
    }

    /// How often the call with this id was received.
    pub fn received(&self, id: &str) -> usize {
        self.records().iter().filter(|record| record.header(ID) == Some(id)).count()
    }

    pub fn records(&self) -> Vec<Record> {
        self.upstream.seen.requests.lock().unwrap().clone()
    }
}

async fn answer(mood: GrpcMood, request: Request<Incoming>) -> Answer {
    match mood {
        GrpcMood::Slow(pause) => tokio::time::sleep(pause).await,
        GrpcMood::Hang => std::future::pending().await,
        GrpcMood::Reset => return Err("told to reset".into()),
        GrpcMood::Well => {}
        GrpcMood::TrailersOnly(code) => return trailers_only(code, request).await,
        GrpcMood::SlowTrailersOnly(pause, code) => {
            tokio::time::sleep(pause).await;
            return trailers_only(code, request).await;
        }
        GrpcMood::Trailers(code) => return with_trailers(code, None, request).await,
        GrpcMood::AfterMessage(code) => return with_trailers(code, Some(Duration::ZERO), request).await,
        GrpcMood::Late(pause) => return with_trailers(Code::Ok, Some(pause), request).await,
    }
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Msg, Msg>::default());
    Ok(grpc.unary(Echo::default(), request).await.map(boxed))
}

async fn trailers_only(code: Code, request: Request<Incoming>) -> Answer {
    request.into_body().collect().await?;
    Ok(Status::new(code, "told to fail").into_http::<tonic::body::Body>().map(boxed))
}

/// Headers; a message, if there is one, after so long; and the status.
async fn with_trailers(code: Code, message: Option<Duration>, request: Request<Incoming>) -> Answer {
    request.into_body().collect().await?;
    let (mut sender, body) = channel(1);
    tokio::spawn(async move {
        if let Some(pause) = message {
            tokio::time::sleep(pause).await;
            let message = Msg::new("some", 1).encode_to_vec();
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            frame.extend(message);
            let _ = sender.send_data(frame.into()).await;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", (code as i32).into());
        if code != Code::Ok {
            trailers.insert("grpc-message", HeaderValue::from_static("told to fail"));
        }
        let _ = sender.send_trailers(trailers).await;
    });
    Response::builder().header("content-type", "application/grpc").body(body).map_err(Into::into)
}
