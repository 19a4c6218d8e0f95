//! HTTP probes: GET a path; 2xx is healthy. The body is not read.

use bytes::Bytes;
use http::{Method, Request, Response, Uri, Version, header, uri};
use http_body::Body;
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinHandle;

use super::{Failure, tcp::Io};

pub(super) const USER_AGENT: &str = "weft-health";

pub(super) async fn probe(io: Io, http2: bool, tls: bool, authority: &str, path: &str) -> Result<(), Failure> {
    let request = Request::builder().method(Method::GET).header(header::USER_AGENT, USER_AGENT);
    let response = if http2 {
        let request = request.version(Version::HTTP_2).uri(uri(tls, authority, path)?).body(Empty::<Bytes>::new())?;
        send_h2(io, request).await?.0
    } else {
        let request = request.uri(path).header(header::HOST, authority).header(header::CONNECTION, "close");
        send_h1(io, request.body(Empty::<Bytes>::new())?).await?
    };
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

pub(super) fn uri(tls: bool, authority: &str, path: &str) -> Result<Uri, http::Error> {
    let scheme = if tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()
}

/// The connection is polled only until the head of the response is there.
async fn send_h1(io: Io, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, Failure> {
    let (mut sender, connection) = conn::http1::handshake(io).await?;
    let mut connection = std::pin::pin!(connection);
    let mut response = std::pin::pin!(sender.send_request(request));
    tokio::select! {
        biased;
        response = &mut response => Ok(response?),
        // It ends first when the answer arrives together with the end of the stream.
        ended = &mut connection => {
            ended?;
            Ok(response.await?)
        }
    }
}

pub(super) async fn send_h2<B>(io: Io, request: Request<B>) -> Result<(Response<Incoming>, AbortOnDrop), Failure>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
    let task = AbortOnDrop(tokio::spawn(connection));
    Ok((sender.send_request(request).await?, task))
}

/// The task that runs an HTTP/2 connection. It ends with the probe, even if the peer does not react.
pub(super) struct AbortOnDrop(JoinHandle<hyper::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
