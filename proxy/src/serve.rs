//! One client connection: TLS if the port asks for it, HTTP/1.1 or HTTP/2 by a bounded look at the first bytes, then
//! hyper, request by request.

mod unknown;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use http::{Method, Version};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    accept::{
        Arrived,
        detect::{Detected, detect},
        guard::{Guard, Limits as GuardLimits, Phase, Violation},
        rewind::Rewind,
    },
    conn::{Conn, Order, Tls},
    identity::handshake::Alpn,
    pipeline, proxy_tcp,
    snapshot::{PortKind, VirtualPort},
    telemetry::{
        Finished,
        context::Trace,
        metrics::{ConnectionSide, ConnectionState},
    },
    upgrade,
    worker::{LocalExec, Worker},
};

/// Most that hyper buffers for one client connection in each direction, in bytes.
const BUFFER: usize = 64 * 1024;
/// Flow-control windows towards clients, in bytes: of one stream, and of the connection.
const H2_WINDOWS: (u32, u32) = (64 * 1024, 1024 * 1024);
/// After a refusal the client's bytes are thrown away for this long and up to this many, so that it can read the
/// refusal instead of a reset.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// Serves an accepted connection until it ends.
///
/// # Errors
/// What ended it early; for the log only.
pub async fn connection(
    worker: &Rc<Worker>,
    arrived: Arrived,
    stream: TcpStream,
) -> Result<(), Box<dyn std::error::Error>> {
    let snapshot = worker.snapshot();
    let local = stream.local_addr()?;
    let identity = match snapshot.port(arrived.port) {
        None => return Ok(()),
        Some(PortKind::Tcp(_)) => return Ok(Box::pin(proxy_tcp::connection(worker, arrived, stream)).await?),
        Some(PortKind::Http { tls, .. }) => tls.clone(),
    };
    let declared = |port: &VirtualPort| port.unknown.is_none();
    let known = arrived.captured.is_none() || snapshot.virtual_port(arrived.port).is_none_or(declared);
    drop(snapshot);
    let Some(identity) = identity else {
        let conn = Rc::new(Conn::new(worker.clone(), arrived, local, None));
        if !known {
            return Box::pin(unknown::connection(conn, stream)).await;
        }
        return Box::pin(http(conn, stream, None)).await;
    };
    let handshake = Box::pin(worker.handshakes.accept(stream, identity.server_config())).await?;
    let tls = Tls { server_name: handshake.sni.clone() };
    let conn = Rc::new(Conn::new(worker.clone(), arrived, local, Some(tls)));
    Box::pin(http(conn, handshake.stream, Some(handshake.alpn))).await
}

async fn http<IO>(conn: Rc<Conn>, mut io: IO, alpn: Option<Alpn>) -> Result<(), Box<dyn std::error::Error>>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let worker = &conn.worker;
    let counted = worker.telemetry.metrics.connection(ConnectionSide::Downstream, ConnectionState::Active);
    let _registration = worker.connections.register(conn.clone(), counted);
    let mut first = BytesMut::new();
    let protocol = match alpn {
        Some(Alpn::Http2) => Detected::Http2,
        Some(Alpn::Http1) => Detected::Http1,
        Some(Alpn::None) | None => {
            // The sweeper closes a connection on which nothing arrives.
            tokio::select! {
                biased;
                () = conn.ended() => return Ok(()),
                detected = detect(&mut io, &mut first) => detected?,
            }
        }
    };
    speak(conn.clone(), io, first, protocol).await
}

/// Serves a connection whose protocol is known; `first` are the bytes that have been read.
async fn speak<IO>(
    conn: Rc<Conn>,
    io: IO,
    first: BytesMut,
    protocol: Detected,
) -> Result<(), Box<dyn std::error::Error>>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    conn.detecting.set(false);
    match protocol {
        Detected::Closed => Ok(()),
        // Boxed: an idle connection keeps the state of what it does, not of everything that it might have done.
        Detected::Http1 => Box::pin(http1(&conn, io, first)).await,
        Detected::Http2 => Box::pin(http2(&conn, Rewind::new(io, first.freeze()))).await,
    }
}

async fn http1<IO>(conn: &Rc<Conn>, io: IO, first: BytesMut) -> Result<(), Box<dyn std::error::Error>>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = &conn.worker.shared.options.limits;
    let bounds = GuardLimits { head_bytes: limits.head_bytes, headers: limits.headers, uri_bytes: limits.uri_bytes };
    let (guard, handle) = Guard::new(io, first, bounds, conn.worker.clock.cell());
    let _ = conn.guard.set(handle.clone());
    let service = {
        let conn = conn.clone();
        service_fn(move |request| pipeline::handle(conn.clone(), request))
    };
    let mut builder = http1::Builder::new();
    bounds.configure(&mut builder);
    // A head that the guard lets through has to fit, together with the next read.
    builder.max_buf_size(BUFFER.max(limits.head_bytes + 4096));
    let mut served = builder.serve_connection(TokioIo::new(guard), service);
    let (mut told, mut finishing) = (false, false);
    let ended = poll_fn(|cx| {
        loop {
            match conn.order(cx) {
                Order::Close => return Poll::Ready(Ok(())),
                Order::Finish if !finishing => {
                    finishing = true;
                    Pin::new(&mut served).graceful_shutdown();
                }
                _ => {}
            }
            if let Poll::Ready(ended) = Pin::new(&mut served).poll(cx) {
                return Poll::Ready(ended);
            }
            if told || !handle.refuse_now() {
                return Poll::Pending;
            }
            // What was asked before has been answered; as hyper shuts the connection down, the guard says why.
            told = true;
            Pin::new(&mut served).graceful_shutdown();
        }
    })
    .await;
    // hyper closes a connection whose request it has not read to its end; the client should still see the response.
    let unread = handle.phase() == Phase::Body;
    let parts = served.into_parts();
    let guard = parts.io.into_inner();
    if let Some(tunnel) = conn.tunnel.take() {
        upgrade::log(tunnel.run(Rewind::new(guard, parts.read_buf), conn).await, conn);
        return Ok(());
    }
    if let Some(violation) = handle.violation().filter(|violation| !violation.in_body) {
        refused(conn, violation, handle.head_since().unwrap_or_else(|| conn.worker.clock.now()));
    }
    if handle.violation().is_some() || (unread && ended.is_ok()) {
        guard.close(LINGER.1, LINGER.0).await?;
    }
    Ok(ended?)
}

/// Records a request that hyper never saw, as far as it is known.
fn refused(conn: &Conn, violation: Violation, since: Instant) {
    let telemetry = &conn.worker.telemetry;
    telemetry.finish(&Finished {
        slot: None,
        rule: None,
        // Unknown: it may be what is wrong.
        method: &Method::default(),
        path: "",
        query: None,
        host: None,
        scheme: conn.scheme(),
        version: Version::HTTP_11,
        status: violation.reason.row().status.as_u16(),
        reason: Some(violation.reason),
        grpc: None,
        start: since,
        end: conn.worker.clock.now(),
        bytes_in: 0,
        bytes_out: 0,
        client: Some(conn.peer),
        user_agent: None,
        request_id: None,
        workload: conn.captured.as_ref().and_then(|captured| captured.workload.as_ref()),
        trace: &Trace::OFF,
        attempts: &[],
    });
    tracing::debug!(peer = %conn.peer, reason = %violation.reason, detail = violation.detail, "request refused unread");
}

async fn http2<IO>(conn: &Rc<Conn>, io: IO) -> Result<(), Box<dyn std::error::Error>>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = &conn.worker.shared.options.limits;
    let service = {
        let conn = conn.clone();
        service_fn(move |request| pipeline::handle(conn.clone(), request))
    };
    let served = http2::Builder::new(LocalExec)
        .initial_stream_window_size(H2_WINDOWS.0)
        .initial_connection_window_size(H2_WINDOWS.1)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(BUFFER)
        .serve_connection(TokioIo::new(io), service);
    let mut served = pin!(served);
    let mut told = false;
    let ended = poll_fn(|cx| {
        match conn.order(cx) {
            Order::Close => return Poll::Ready(Ok(())),
            Order::Drain | Order::Finish if !told => {
                told = true;
                served.as_mut().graceful_shutdown();
            }
            Order::Drain | Order::Finish | Order::None => {}
        }
        served.as_mut().poll(cx)
    })
    .await;
    Ok(ended?)
}
