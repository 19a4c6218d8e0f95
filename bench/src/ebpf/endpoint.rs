//! An endpoint in a process of its own, so that it can be killed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::stage::Stage;
use crate::child::{self, Server, TempDir};

/// Options of `weft-bench ebpf-endpoint`.
#[derive(clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// What it does with connections
    #[arg(long, value_enum)]
    manner: Manner,
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Manner {
    /// Answers HTTP requests with its own port and that of its peer: who connects knows so where to, and through what
    Http,
    /// Answers everything with +PONG
    Pong,
    /// Accepts, and nothing more
    Drain,
}

/// Connections that an endpoint holds which only accepts: whoever began them has ended them by then.
const HELD: usize = 1024;
/// Between two looks. The backlog holds what comes in the meantime.
const LOOK: Duration = Duration::from_micros(500);
const BACKLOG: i32 = 4096;

/// A running endpoint.
pub struct Endpoint {
    server: Server,
    _dir: TempDir,
}

impl Endpoint {
    /// Starts it outside of what is captured.
    pub async fn start(stage: &Stage, cpu: Option<usize>, manner: Manner, listen: &[SocketAddr]) -> Result<Self> {
        let dir = TempDir::new("endpoint")?;
        let mut args = child::into_cgroup(&stage.out);
        args.push(std::env::current_exe()?.into());
        let manner = match manner {
            Manner::Http => "http",
            Manner::Pong => "pong",
            Manner::Drain => "drain",
        };
        args.extend(["ebpf-endpoint", "--manner", manner].map(OsString::from));
        for listen in listen {
            args.extend([OsString::from("--listen"), listen.to_string().into()]);
        }
        let program = args.remove(0);
        let server = Server::start("endpoint", cpu, &dir, program, &args)?;
        let mut endpoint = Self { server, _dir: dir };
        for listen in listen {
            endpoint.server.ready(*listen, Duration::from_secs(10)).await?;
        }
        Ok(endpoint)
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill().map(drop)
    }
}

/// `weft-bench ebpf-endpoint`.
pub async fn run(args: Args) -> Result<crate::Verdict> {
    let mut listeners = Vec::new();
    for address in &args.listen {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&(*address).into()).with_context(|| format!("listen on {address}"))?;
        socket.listen(BACKLOG)?;
        listeners.push(std::net::TcpListener::from(socket));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        if args.manner == Manner::Drain {
            std::thread::spawn(move || drain(&listener));
            continue;
        }
        tasks.spawn_local(accept(TcpListener::from_std(listener)?, args.manner));
    }
    std::future::pending::<()>().await;
    Ok(crate::Verdict::Pass)
}

/// Looks from time to time: somebody who waits would have to be woken by each connect(), if he is not late, and the time
/// of that depends on everything else.
fn drain(listener: &std::net::TcpListener) {
    let mut held = VecDeque::with_capacity(HELD);
    loop {
        while let Ok(accepted) = listener.accept() {
            if held.len() == HELD {
                held.pop_front();
            }
            held.push_back(accepted);
        }
        std::thread::sleep(LOOK);
    }
}

async fn accept(listener: TcpListener, manner: Manner) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let port = listener.local_addr().map_or(0, |own| own.port());
        tokio::task::spawn_local(async move {
            match manner {
                Manner::Pong => pong(stream).await,
                _ => answer(stream, &describe(port, peer.port())).await,
            }
        });
    }
}

async fn answer(stream: TcpStream, body: &str) -> std::io::Result<()> {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    crate::origin::answer(stream, || text.as_bytes()).await
}

async fn pong(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 512];
    while stream.read(&mut buffer).await? > 0 {
        stream.write_all(b"+PONG\r\n").await?;
    }
    Ok(())
}

/// The body of an answer: where the connection arrived, and from which port.
fn describe(own: u16, peer: u16) -> String {
    format!("{own} {peer}\n")
}

/// Reads what [`describe`] wrote.
pub fn described(body: &str) -> Option<(u16, u16)> {
    let (own, peer) = body.trim().split_once(' ')?;
    Some((own.parse().ok()?, peer.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read() {
        assert_eq!(described(&describe(80, 40_000)), Some((80, 40_000)));
        assert_eq!(described("hello\n"), None);
    }
}
