//! A gRPC echo service with all four kinds of call, on tonic, written by hand so that no `protoc` is needed.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc as ClientGrpc,
    codegen::{BoxFuture, http::uri::PathAndQuery},
    server::{ClientStreamingService, Grpc, ServerStreamingService, StreamingService, UnaryService},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::upstream::{Handler, Seen, Upstream};

/// The only message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Msg {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(uint32, tag = "2")]
    pub count: u32,
}

impl Msg {
    pub fn new(text: &str, count: u32) -> Self {
        Self { text: text.to_owned(), count }
    }
}

pub const SERVICE: &str = "helloworld.Greeter";

/// Counts of what became of calls.
#[derive(Default)]
pub struct Calls {
    /// Response streams dropped by the server's transport before their end.
    pub cancelled: AtomicUsize,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Msg, Status>> + Send>>;

/// Text of a message: `fail:CODE:MESSAGE` fails, `hang` never answers, anything else is echoed.
#[derive(Clone, Default)]
pub(crate) struct Echo(Arc<Calls>);

/// Counts itself when dropped while armed.
struct Watch(Arc<Calls>, bool);

impl Watch {
    fn disarm(mut self) {
        self.1 = false;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn obey(message: &Msg) -> Result<(), Status> {
    let Some(rest) = message.text.strip_prefix("fail:") else { return Ok(()) };
    let (code, text) = rest.split_once(':').unwrap();
    Err(Status::new(Code::from_i32(code.parse().unwrap()), text))
}

/// The metadata that tests look at come back as response metadata.
fn reflect<T>(request: &tonic::metadata::MetadataMap, message: T) -> Response<T> {
    let mut response = Response::new(message);
    for (from, to) in [("grpc-timeout", "x-saw-timeout"), ("x-ask", "x-saw-ask"), ("te", "x-saw-te")] {
        if let Some(value) = request.get(from) {
            response.metadata_mut().insert(to, value.clone());
        }
    }
    response
}

impl UnaryService<Msg> for Echo {
    type Response = Msg;
    type Future = BoxFuture<Response<Msg>, Status>;

    fn call(&mut self, request: Request<Msg>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move {
            let (metadata, _, message) = request.into_parts();
            let watch = Watch(calls, true);
            if message.text == "hang" {
                std::future::pending::<()>().await;
            }
            watch.disarm();
            obey(&message)?;
            Ok(reflect(&metadata, message))
        })
    }
}

impl ClientStreamingService<Msg> for Echo {
    type Response = Msg;
    type Future = BoxFuture<Response<Msg>, Status>;

    fn call(&mut self, request: Request<Streaming<Msg>>) -> Self::Future {
        Box::pin(async move {
            let mut messages = request.into_inner();
            let mut all = Msg::default();
            while let Some(message) = messages.message().await? {
                obey(&message)?;
                all.text += &message.text;
                all.count += 1;
            }
            Ok(Response::new(all))
        })
    }
}

impl ServerStreamingService<Msg> for Echo {
    type Response = Msg;
    type ResponseStream = Messages;
    type Future = BoxFuture<Response<Messages>, Status>;

    /// `count` messages; with the text `endless`, one every few milliseconds until cancelled; with `then:CODE:TEXT`
    /// an error after them.
    fn call(&mut self, request: Request<Msg>) -> Self::Future {
        let calls = self.0.clone();
        Box::pin(async move {
            let message = request.into_inner();
            obey(&message)?;
            let endless = message.text == "endless";
            let last = message.text.strip_prefix("then:").map(|rest| {
                let (code, text) = rest.split_once(':').unwrap();
                Err(Status::new(Code::from_i32(code.parse().unwrap()), text))
            });
            let count = if endless { u32::MAX } else { message.count };
            let watch = Watch(calls, true);
            let messages = stream::unfold((0, watch), move |(number, watch)| {
                let text = message.text.clone();
                async move {
                    if number == count {
                        watch.disarm();
                        return None;
                    }
                    if endless {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Some((Ok(Msg { text, count: number }), (number + 1, watch)))
                }
            });
            let messages: Messages = Box::pin(messages.chain(stream::iter(last)));
            Ok(Response::new(messages))
        })
    }
}

impl StreamingService<Msg> for Echo {
    type Response = Msg;
    type ResponseStream = Messages;
    type Future = BoxFuture<Response<Messages>, Status>;

    /// Each message comes back at once.
    fn call(&mut self, request: Request<Streaming<Msg>>) -> Self::Future {
        Box::pin(async move {
            let messages: Messages = Box::pin(request.into_inner().map(|message| {
                let message = message?;
                obey(&message)?;
                Ok(message)
            }));
            Ok(Response::new(messages))
        })
    }
}

/// The service as an upstream over HTTP/2 with prior knowledge.
pub async fn start() -> (Upstream, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let echo = Echo(calls.clone());
    let handler: Handler = Arc::new(move |request, _seen: Arc<Seen>| {
        let echo = echo.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let mut grpc = Grpc::new(ProstCodec::<Msg, Msg>::default());
            let response = match method.as_str() {
                "Unary" => grpc.unary(echo, request).await,
                "Collect" => grpc.client_streaming(echo, request).await,
                "Repeat" => grpc.server_streaming(echo, request).await,
                "Chat" => grpc.streaming(echo, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            };
            Ok(response.map(boxed))
        })
    });
    (Upstream::h2_with(handler).await, calls)
}

/// A tonic body as an upstream's body.
pub(crate) fn boxed(body: tonic::body::Body) -> crate::upstream::Body {
    use http_body_util::BodyExt as _;
    body.map_err(Into::into).boxed_unsync()
}

/// A client of the service.
#[derive(Clone)]
pub struct GreeterClient {
    inner: ClientGrpc<Channel>,
}

fn path(method: &str) -> PathAndQuery {
    format!("/{SERVICE}/{method}").parse().unwrap()
}

impl GreeterClient {
    /// `authority` is what the route's hostname has to match.
    pub async fn connect(addr: std::net::SocketAddr, authority: &str) -> Self {
        let origin = format!("http://{authority}").parse().unwrap();
        let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap().origin(origin);
        Self { inner: ClientGrpc::new(endpoint.connect().await.unwrap()) }
    }

    async fn ready(&mut self) -> Result<ProstCodec<Msg, Msg>, Status> {
        self.inner.ready().await.map_err(|e| Status::unknown(format!("not ready: {e}")))?;
        Ok(ProstCodec::default())
    }

    pub async fn unary(&mut self, request: Request<Msg>) -> Result<Response<Msg>, Status> {
        let codec = self.ready().await?;
        self.inner.unary(request, path("Unary"), codec).await
    }

    /// Any method by name, unary.
    pub async fn call(&mut self, service: &str, method: &str, message: Msg) -> Result<Response<Msg>, Status> {
        let codec = self.ready().await?;
        self.inner.unary(Request::new(message), format!("/{service}/{method}").parse().unwrap(), codec).await
    }

    pub async fn collect<S>(&mut self, messages: S) -> Result<Response<Msg>, Status>
    where
        S: Stream<Item = Msg> + Send + 'static,
    {
        let codec = self.ready().await?;
        self.inner.client_streaming(Request::new(messages), path("Collect"), codec).await
    }

    pub async fn repeat(&mut self, message: Msg) -> Result<Response<Streaming<Msg>>, Status> {
        let codec = self.ready().await?;
        self.inner.server_streaming(Request::new(message), path("Repeat"), codec).await
    }

    pub async fn chat<S>(&mut self, messages: S) -> Result<Response<Streaming<Msg>>, Status>
    where
        S: Stream<Item = Msg> + Send + 'static,
    {
        let codec = self.ready().await?;
        self.inner.streaming(Request::new(messages), path("Chat"), codec).await
    }
}
