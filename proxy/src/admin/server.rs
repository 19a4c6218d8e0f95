//! Accepts connections to the admin port.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::{Hosts, SharedAdmin, answer};

/// A request's head has to arrive within this; idle connections are closed after it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this a connection ends with its current request, so that clients that do not read cannot stay for ever.
const MAX_AGE: Duration = Duration::from_secs(300);
/// For that last request.
const LAST_REQUEST: Duration = Duration::from_secs(10);
/// Together with this limit, a leaky scraper cannot use up the node's descriptors.
const MAX_CONNECTIONS: usize = 128;
/// Head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Serves `admin` on `listener` for as long as it is polled. Dropping it closes every connection.
pub async fn serve(listener: TcpListener, hosts: Hosts, admin: SharedAdmin) {
    let (hosts, permits) = (Arc::new(hosts), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let mut connections = JoinSet::new();
    let mut pause = Duration::ZERO;
    loop {
        // Beyond the limit, clients wait in the backlog.
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a defect in Weft: an admin request failed");
                }
                continue;
            }
        };
        match accepted {
            Ok((io, _)) => {
                pause = Duration::ZERO;
                let (hosts, admin) = (hosts.clone(), admin.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection(io, &hosts, &admin).await;
                });
            }
            Err(error) => {
                pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_millis(100));
                tracing::warn!(%error, "the admin port cannot accept connections");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Errors are the client's: it closed, was slow, or did not speak HTTP. hyper has answered what can be answered.
async fn connection(io: TcpStream, hosts: &Hosts, admin: &SharedAdmin) {
    let _ = io.set_nodelay(true);
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(&**admin, hosts, request).await));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(io), service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = tokio::time::sleep(MAX_AGE) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_REQUEST, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection");
    }
}
