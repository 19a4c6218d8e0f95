//! Upgraded connections and CONNECT: once both sides have agreed, bytes pass unread.

use std::{rc::Rc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::{conn::Conn, snapshot::Target, tunnel};

/// Tells the guard whether the client's connection becomes a tunnel, so that bytes held back are released or read as
/// the next request.
pub fn decided(conn: &Conn, tunnel: bool) {
    if let Some(guard) = conn.guard.get() {
        guard.resume_after_upgrade(tunnel);
    }
}

/// Connects the two sides as soon as the response has been sent.
pub fn spawn(conn: &Rc<Conn>, client: OnUpgrade, server: OnUpgrade, target: &Target) {
    let conn = conn.clone();
    let idle = target.deadlines.idle.unwrap_or(Duration::ZERO);
    let held = conn.worker.telemetry.in_flight(&target.slot);
    tokio::task::spawn_local(async move {
        let _held = held;
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, peer = %conn.peer, "upgrade failed");
                return;
            }
        };
        let ended = tunnel::run(TokioIo::new(client), TokioIo::new(server), idle, &conn.worker.wheel).await;
        if let Err(error) = ended {
            tracing::debug!(%error, peer = %conn.peer, "tunnel ended");
        }
    });
}
