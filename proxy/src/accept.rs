//! The accept loops of a worker: one per listening socket.
//!
//! Errors of `accept()` are classed: those of the one connection are passed over, those of the process (no descriptors,
//! no memory) make the loop wait, 5 ms at first and 100 ms at most, while connections that exist go on.

pub mod captured;
pub mod detect;
pub mod guard;
pub mod rewind;

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::atomic::Ordering,
    task::Poll,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::spawn_local,
};

use captured::Captured;

use crate::{
    conn::Order,
    serve,
    snapshot::PortId,
    worker::{Command, Worker},
};

/// A connection moves to another worker when that one has fewer by more than this.
const IMBALANCE: u32 = 4;

/// What stops each accept loop, by network namespace (0: the proxy's own) and port.
type Loops = HashMap<(u64, PortId), Rc<Notify>>;

/// Carries out commands until the worker has drained.
pub async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut loops = Loops::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(port, listener) => listen(&worker, &mut loops, (0, port), listener, arrived),
            Command::Capture(netns, port, listener) => listen(&worker, &mut loops, (netns, port), listener, captured),
            Command::Leave(netns) => loops.retain(|(of, _), stop| {
                if *of == netns {
                    stop.notify_one();
                }
                *of != netns
            }),
            Command::Unlisten(port) => {
                if let Some(stop) = loops.remove(&(0, port)) {
                    stop.notify_one();
                }
            }
            Command::Adopt(arrived, stream) => match TcpStream::from_std(stream) {
                Ok(stream) => start(&worker, arrived, stream),
                Err(error) => tracing::debug!(%error, "cannot adopt a connection"),
            },
            Command::Drain => {
                // Each loop takes what the kernel has completed for it, and ends.
                worker.draining.set(true);
                loops.drain().for_each(|(_, stop)| stop.notify_one());
                // HTTP/2 is told by GOAWAY at once; HTTP/1.1 by `Connection: close` on its next response.
                worker.connections.give_all(Order::Drain);
            }
            Command::Reclaim(places, left) => worker.reclaim(&places, left),
            Command::Stop => return,
            Command::CloseIdle => worker.connections.give_all(Order::Finish),
        }
    }
}

/// A connection that was accepted: what for, and from whom.
#[derive(Debug)]
pub struct Arrived {
    /// The port of the snapshot that it is for.
    pub port: PortId,
    /// The client.
    pub peer: SocketAddr,
    /// What the kernel knows of it, if it was captured.
    pub captured: Option<Box<Captured>>,
}

/// What a connection on a listening socket is for; `None` when it cannot be served.
type Classify = fn(&Worker, PortId, &TcpStream, SocketAddr) -> Option<Arrived>;

fn arrived(_: &Worker, port: PortId, _: &TcpStream, peer: SocketAddr) -> Option<Arrived> {
    Some(Arrived { port, peer, captured: None })
}

fn captured(worker: &Worker, port: PortId, stream: &TcpStream, peer: SocketAddr) -> Option<Arrived> {
    match Captured::of(worker, stream) {
        Ok(captured) => Some(Arrived { port: captured.destination, peer, captured: Some(Box::new(captured)) }),
        Err(detail) => {
            tracing::info!(%peer, %port, detail, "connection closed");
            None
        }
    }
}

fn listen(
    worker: &Rc<Worker>,
    loops: &mut Loops,
    id: (u64, PortId),
    listener: std::net::TcpListener,
    classify: Classify,
) {
    let (_, port) = id;
    match TcpListener::from_std(listener) {
        Ok(listener) => {
            let stop = Rc::new(Notify::new());
            spawn_local(accept(worker.clone(), port, listener, stop.clone(), classify));
            loops.insert(id, stop);
        }
        Err(error) => tracing::error!(%port, %error, "cannot listen"),
    }
}

async fn accept(worker: Rc<Worker>, port: PortId, listener: TcpListener, stop: Rc<Notify>, classify: Classify) {
    let mut back_off = Duration::ZERO;
    let mut stop = pin!(stop.notified());
    let mut stopping = false;
    loop {
        if worker.shared.load[worker.id].load(Ordering::Relaxed) as usize >= worker.shared.options.limits.connections {
            // The rest waits in the kernel's queue.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let accepted = poll_fn(|cx| {
            stopping = stopping || stop.as_mut().poll(cx).is_ready();
            match listener.poll_accept(cx) {
                Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
                // Closing the socket would reset what is still in its queue, and nothing is.
                Poll::Pending if stopping => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let Some(accepted) = accepted.await else { return };
        match accepted {
            Ok((stream, peer)) => {
                back_off = Duration::ZERO;
                if let Some(arrived) = classify(&worker, port, &stream, peer) {
                    place(&worker, arrived, stream);
                }
            }
            Err(error) if of_one_connection(&error) => {}
            Err(error) => {
                if back_off.is_zero() {
                    tracing::warn!(%port, %error, "accept fails; existing connections go on (descriptor limit? see ulimit -n)");
                }
                back_off = (back_off * 2).clamp(Duration::from_millis(5), Duration::from_millis(100));
                tokio::time::sleep(back_off).await;
            }
        }
    }
}

/// Errors that concern only the connection that was about to be accepted (accept(2)).
fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}

/// Keeps the connection, or gives it to a worker that has clearly fewer: the kernel spreads connections by hash, which
/// leaves workers unequal when there are few (Mitzenmacher's power of two choices, with the worker itself as one).
fn place(worker: &Rc<Worker>, arrived: Arrived, stream: TcpStream) {
    let load = &worker.shared.load;
    if load.len() > 1 {
        let other = worker.rng.borrow_mut().usize(0..load.len() - 1);
        let other = if other >= worker.id { other + 1 } else { other };
        let (mine, theirs) = (load[worker.id].load(Ordering::Relaxed), load[other].load(Ordering::Relaxed));
        if mine > theirs + IMBALANCE {
            if let Ok(stream) = stream.into_std() {
                // It fails only while that worker ends, and then the whole process does.
                let _ = worker.siblings[other].send(Command::Adopt(arrived, stream));
            }
            return;
        }
    }
    start(worker, arrived, stream);
}

fn start(worker: &Rc<Worker>, arrived: Arrived, stream: TcpStream) {
    let peer = arrived.peer;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "connection gone before it was served");
        return;
    }
    let load = Load::new(worker.clone());
    let worker = worker.clone();
    spawn_local(async move {
        let _load = load;
        worker.clock.read();
        if let Err(error) = serve::connection(&worker, arrived, stream).await {
            tracing::debug!(%peer, %error, "connection ended");
        }
    });
}

/// Counts a connection in the worker's load.
struct Load(Rc<Worker>);

impl Load {
    fn new(worker: Rc<Worker>) -> Self {
        worker.shared.load[worker.id].fetch_add(1, Ordering::Relaxed);
        Self(worker)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.shared.load[self.0.id].fetch_sub(1, Ordering::Relaxed);
    }
}
