//! An origin whose behaviour is changed while it runs, and which counts what it is asked.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use crate::origin::answer;

/// Answers requests without a body with one status, until it is dropped.
pub struct Backend {
    addr: SocketAddr,
    shared: Rc<Shared>,
    listening: Listening,
}

struct Shared {
    status: Cell<u16>,
    requests: Cell<u64>,
}

enum Listening {
    /// The port is held, and the kernel refuses every connection to it.
    Refusing(Option<TcpSocket>),
    Accepting(JoinHandle<()>),
}

impl Backend {
    /// Answers with `status` on a loopback port.
    pub fn answering(status: u16) -> Result<Self> {
        let mut backend = Self::refusing()?;
        backend.heal(status)?;
        Ok(backend)
    }

    /// Refuses connections on a loopback port that nobody else gets meanwhile.
    pub fn refusing() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).context("bind a port")?;
        let shared = Rc::new(Shared { status: Cell::new(200), requests: Cell::new(0) });
        Ok(Self { addr: socket.local_addr()?, shared, listening: Listening::Refusing(Some(socket)) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.get()
    }

    /// From now on it answers, with `status`.
    pub fn heal(&mut self, status: u16) -> Result<()> {
        self.shared.status.set(status);
        if let Listening::Refusing(socket) = &mut self.listening {
            let listener = socket.take().context("the socket is in use")?.listen(1024)?;
            self.listening = Listening::Accepting(tokio::task::spawn_local(accept(listener, self.shared.clone())));
        }
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Listening::Accepting(task) = &self.listening {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::task::spawn_local(answer(stream, move || shared.respond()));
    }
}

impl Shared {
    /// Counts a request; its response.
    fn respond(&self) -> String {
        self.requests.set(self.requests.get() + 1);
        let status = self.status.get();
        format!("HTTP/1.1 {status} Status\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Probe;

    #[tokio::test(flavor = "local")]
    async fn a_refusing_backend_heals_on_the_same_port() {
        let mut backend = Backend::refusing().unwrap();
        let addr = backend.addr();
        assert!(Probe::connect(addr).await.is_err());
        backend.heal(200).unwrap();
        let mut probe = Probe::connect(addr).await.unwrap();
        assert_eq!(probe.get().await.unwrap(), 6);
        backend.heal(503).unwrap();
        assert_eq!(probe.status(addr, "").await.unwrap(), 503);
        assert_eq!(backend.requests(), 2);
    }
}
