//! OTLP transports: tonic for gRPC, and a POST over one kept connection for HTTP (no second HTTP client in the binary).

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use weft_model::config::OtlpProtocol;

use super::Destination;

/// For one batch, the retry included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest reply of a collector that is read, in bytes.
const MAX_REPLY: usize = 64 * 1024;

/// Why there is no exporter.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("{0:?} is not a URL with a host")]
    Url(Arc<str>),
    #[error("{0:?} does not begin with http://; TLS to collectors is not supported")]
    Scheme(Arc<str>),
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

/// The exporter for a destination. Needs a runtime; connects with the first batch.
pub(super) fn build(destination: &Destination) -> Result<SpanExporter, BuildError> {
    let Destination { endpoint, protocol } = destination;
    let uri = endpoint.parse::<Uri>().map_err(|_| BuildError::Url(endpoint.clone()))?;
    if uri.scheme_str() != Some("http") {
        return Err(BuildError::Scheme(endpoint.clone()));
    }
    let retry = RetryPolicy::recommended().with_max_retries(1);
    let exporter = match protocol {
        OtlpProtocol::Grpc => SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint.to_string())
            .with_timeout(TIMEOUT)
            .with_retry_policy(retry)
            .build(),
        OtlpProtocol::Http => SpanExporter::builder()
            .with_http()
            .with_http_client(Post::default())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.to_string())
            .with_timeout(TIMEOUT)
            .with_retry_policy(retry)
            .build(),
    };
    Ok(exporter?)
}

/// POSTs over one HTTP/1.1 connection, made again when it is gone.
#[derive(Debug, Default)]
struct Post {
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Post {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut connection = self.connection.lock().await;
        let mut kept = connection.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(request.uri()).await?,
        };
        let response = sender.send_request(origin_form(request)?).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_REPLY).collect().await?.to_bytes();
        *connection = Some(sender);
        Ok(Response::from_parts(head, body))
    }
}

impl HttpClient for Post {
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move { timeout(TIMEOUT, self.send(request)).await? })
    }
}

async fn connect(uri: &Uri) -> Result<SendRequest<Full<Bytes>>, HttpError> {
    let host = uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the sender; its error is also the sender's.
    tokio::spawn(connection);
    Ok(sender)
}

/// The request as it goes to a server: path only, with `Host`.
fn origin_form(request: Request<Bytes>) -> Result<Request<Full<Bytes>>, HttpError> {
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().ok_or("the URL has no authority")?;
    head.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    head.uri = Uri::from(head.uri.path_and_query().cloned().unwrap_or(http::uri::PathAndQuery::from_static("/")));
    Ok(Request::from_parts(head, Full::new(body)))
}
