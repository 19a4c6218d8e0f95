//! Accepts connections, HTTP/1.1 and HTTP/2 on the same port.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Either;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, watch},
    time::timeout,
};
use weft_store::Store;

use crate::{api, pool::Pool, push::Push};

/// A request's head has to arrive within this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Beyond this many connections, clients wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 1024;
/// Requests given up before they were looked at: a leader's heartbeats to a member that is slow for a moment.
const MAX_RESETS: usize = 256;
/// A peer that is silent for so long is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// For what is in flight when the server stops.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// The port of a member.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    context: Arc<api::Context>,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// Serves `store` on `listener` once [`Self::run`] is polled; `pool` reaches the other members.
    pub fn new(listener: TcpListener, store: Store, pool: Pool, clock: fn() -> u64) -> Self {
        let (stopping, stopped) = watch::channel(false);
        let push = Push::start(&store, clock, stopped.clone());
        let context = api::Context {
            store,
            pool,
            clock,
            changing: Mutex::default(),
            stopping: stopped,
            push,
            removed: Default::default(),
        };
        Self { listener, context: Arc::new(context), stopping }
    }

    /// Serves until `stop` is ready; then ends the watches, and lets what is in flight finish.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::spawn(api::watch_membership(self.context.clone()));
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut stop = std::pin::pin!(stop);
        let mut pause = Duration::ZERO;
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.as_mut() => break,
            };
            match accepted {
                Ok((io, peer)) => {
                    pause = Duration::ZERO;
                    self.connection(io, peer, &graceful, permit);
                }
                Err(error) => {
                    pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_millis(100));
                    tracing::warn!(%error, "the control port cannot accept connections");
                    tokio::time::sleep(pause).await;
                }
            }
        }
        drop(self.listener);
        self.stopping.send_replace(true);
        if timeout(LAST_REQUESTS, graceful.shutdown()).await.is_err() {
            tracing::debug!("ended with requests in flight");
        }
    }

    /// Errors are the client's: it closed, was slow, or did not speak HTTP. hyper has answered what can be answered.
    fn connection(
        &self,
        io: TcpStream,
        peer: SocketAddr,
        graceful: &GracefulShutdown,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        let _ = io.set_nodelay(true);
        let context = self.context.clone();
        let service = service_fn(move |request| {
            let context = context.clone();
            async move {
                Ok::<_, Infallible>(if Push::is_stream(&request) {
                    context.push.serve(request, peer).await.map(Either::Left)
                } else {
                    api::answer(&context, request).await.map(Either::Right)
                })
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_RESETS)
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(16 << 20)
            .keep_alive_interval(KEEP_ALIVE);
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(io), service).into_owned());
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection to the control port");
            }
        });
    }
}
