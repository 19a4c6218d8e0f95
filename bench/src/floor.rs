//! The smallest proxy that can be written on hyper: one thread, a `Vec` as the pool, no routing, no policy, no metrics.
//! It is what Weft's own work is added to, so the tables show it beside Weft. Not a proxy to use: its pool is unbounded
//! and a pooled connection that the upstream has just closed costs the client an error.

use std::{cell::RefCell, convert::Infallible, ffi::OsString, net::SocketAddr, rc::Rc};

use anyhow::{Context, Result};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{client::conn::http1 as client, server::conn::http1 as server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Options of `weft-bench floor-proxy`.
#[derive(clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Where requests go
    #[arg(long)]
    upstream: SocketAddr,
}

/// The arguments that start this proxy from this very program.
pub fn proxy_args(listen: SocketAddr, upstream: SocketAddr) -> Vec<OsString> {
    ["floor-proxy", "--listen", &listen.to_string(), "--upstream", &upstream.to_string()].map(OsString::from).into()
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

type Pool = Rc<RefCell<Vec<client::SendRequest<Incoming>>>>;

/// `weft-bench floor-proxy`.
pub async fn run(args: Args) -> Result<crate::Verdict> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let pool = Pool::default();
    loop {
        let (stream, peer) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (pool, upstream) = (pool.clone(), args.upstream);
        let client_ip = HeaderValue::from_str(&peer.ip().to_string())?;
        tokio::task::spawn_local(server::Builder::new().serve_connection(
            TokioIo::new(stream),
            service_fn(move |mut request: Request<Incoming>| {
                let pool = pool.clone();
                request.headers_mut().insert(FORWARDED_FOR, client_ip.clone());
                request.headers_mut().insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
                async move {
                    Ok::<_, Infallible>(forward(request, &pool, upstream).await.unwrap_or_else(|_| {
                        let mut refusal = Response::new(Either::Right(Empty::<Bytes>::new()));
                        *refusal.status_mut() = StatusCode::BAD_GATEWAY;
                        refusal
                    }))
                }
            }),
        ));
    }
}

async fn forward(
    request: Request<Incoming>,
    pool: &Pool,
    upstream: SocketAddr,
) -> Result<Response<Either<Incoming, Empty<Bytes>>>> {
    let idle = pool.borrow_mut().pop();
    let mut sender = match idle {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(upstream).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
            tokio::task::spawn_local(connection);
            sender
        }
    };
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    pool.borrow_mut().push(sender);
    Ok(response.map(Either::Left))
}
