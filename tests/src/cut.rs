//! A network between processes on loopback: a TCP proxy in front of each of them, which can delay, swallow and cut.
//!
//! Who connects is told by the socket: the kernel says which process has it. So one address per process is enough to
//! cut a process off in both directions, or in one.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use rustix::net::sockopt::set_socket_linger;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// How much may be under way in a slow direction.
const CHUNKS: usize = 256;

/// What happens to bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    #[default]
    Pass,
    /// They are late by this much, as over a long line.
    Slow(Duration),
    /// Nothing arrives and nobody is told. What was sent arrives when this ends, as TCP would repeat it.
    Swallow,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// What the one that connects sends, and what it is answered.
    Open { there: Way, back: Way },
    /// Reset, now and whenever somebody tries.
    Reset,
}

impl Default for Link {
    fn default() -> Self {
        Self::Open { there: Way::Pass, back: Way::Pass }
    }
}

impl Link {
    pub const SWALLOWED: Self = Self::Open { there: Way::Swallow, back: Way::Swallow };

    pub fn slow(by: Duration) -> Self {
        Self::Open { there: Way::Slow(by), back: Way::Slow(by) }
    }
}

/// Who connects: a process that was introduced, or anybody else.
type From = Option<String>;
/// Who connects to whom.
type Ends = (From, String);

#[derive(Debug, Clone, Default)]
struct Rules(HashMap<Ends, Link>);

impl Rules {
    fn link(&self, ends: &Ends) -> Link {
        self.0.get(ends).copied().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Shared {
    rules: watch::Sender<Rules>,
    /// By process id.
    known: Mutex<HashMap<u32, String>>,
    /// Bytes to and from a process.
    carried: Mutex<HashMap<String, (u64, u64)>>,
}

/// The network. Its proxies end with it.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    proxies: Mutex<Vec<JoinHandle<()>>>,
}

impl Default for Network {
    fn default() -> Self {
        let rules = watch::Sender::new(Rules::default());
        let shared = Shared { rules, known: Mutex::default(), carried: Mutex::default() };
        Self { shared: Arc::new(shared), proxies: Mutex::default() }
    }
}

impl Network {
    /// An address at which `name`, which listens at `target`, is reached.
    pub async fn proxy(&self, name: &str, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, name) = (self.shared.clone(), name.to_owned());
        let proxy = tokio::spawn(async move {
            loop {
                let name = name.clone();
                // Out of descriptors: the test is about to fail anyway.
                let Ok((client, peer)) = listener.accept().await else { return };
                let ends = (shared.whose(peer, address), name.clone());
                let rules = shared.rules.subscribe();
                let shared = Arc::downgrade(&shared);
                let carried = move |there: usize, back: usize| {
                    let Some(shared) = shared.upgrade() else { return };
                    let mut carried = shared.carried.lock().unwrap();
                    let sums = carried.entry(name.clone()).or_default();
                    *sums = (sums.0 + there as u64, sums.1 + back as u64);
                };
                tokio::spawn(connection(client, target, ends, rules, carried));
            }
        });
        self.proxies.lock().unwrap().push(proxy);
        address
    }

    /// Connections of this process are those of `name` from now on.
    pub fn introduce(&self, pid: u32, name: &str) {
        let mut known = self.shared.known.lock().unwrap();
        known.retain(|_, other| other != name);
        known.insert(pid, name.to_owned());
    }

    /// Connections from `from` to `to`; `None` stands for everybody who was not introduced.
    pub fn set(&self, from: Option<&str>, to: &str, link: Link) {
        self.shared.rules.send_modify(|rules| {
            rules.0.insert((from.map(str::to_owned), to.to_owned()), link);
        });
    }

    /// How many bytes `to` was sent, and answered, through its proxy.
    pub fn carried(&self, to: &str) -> (u64, u64) {
        self.shared.carried.lock().unwrap().get(to).copied().unwrap_or_default()
    }

    /// Everything passes.
    pub fn heal(&self) {
        self.shared.rules.send_modify(|rules| rules.0.clear());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for proxy in self.proxies.lock().unwrap().drain(..) {
            proxy.abort();
        }
        // Connections end as well: their rules are gone.
    }
}

impl Shared {
    fn whose(&self, peer: SocketAddr, proxy: SocketAddr) -> From {
        let known = self.known.lock().unwrap();
        let inode = inode_of(peer, proxy)?;
        let socket = format!("socket:[{inode}]");
        let has = |pid: &&u32| {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.to_str() == Some(&socket)))
        };
        known.keys().find(has).map(|pid| known[pid].clone())
    }
}

/// The inode of the socket that connects `local` to `remote`.
fn inode_of(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (hex(local)?, hex(remote)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        (fields.next()? == local && fields.next()? == remote).then(|| fields.nth(6)?.parse().ok())?
    })
}

/// As `/proc/net/tcp` writes it.
fn hex(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    }
}

async fn connection(
    mut client: TcpStream,
    target: SocketAddr,
    ends: Ends,
    mut rules: watch::Receiver<Rules>,
    carried: impl Fn(usize, usize),
) {
    if rules.borrow().link(&ends) == Link::Reset {
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let way = |back: bool| {
        let ends = &ends;
        move |rules: &Rules| match rules.link(ends) {
            Link::Open { there, .. } if !back => there,
            Link::Open { back, .. } => back,
            Link::Reset => Way::Swallow,
        }
    };
    let ended = {
        let ((client_in, client_out), (server_in, server_out)) = (client.split(), server.split());
        let there = pump(client_in, server_out, rules.clone(), way(false), |size| carried(size, 0));
        let back = pump(server_in, client_out, rules.clone(), way(true), |size| carried(0, size));
        tokio::select! {
            ended = async { tokio::try_join!(there, back) } => ended.is_ok(),
            // Or the network is gone.
            _ = rules.wait_for(|rules| rules.link(&ends) == Link::Reset) => false,
        }
    };
    if !ended {
        // Also when one side has reset it: the other is told in the same way.
        reset(&client);
        reset(&server);
    }
}

/// Has the kernel send a reset when it is dropped.
fn reset(stream: &TcpStream) {
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}

/// Carries what comes in to the other side until it ends.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut rules: watch::Receiver<Rules>,
    way: impl Fn(&Rules) -> Way,
    carried: impl Fn(usize),
) -> std::io::Result<()> {
    let (queue, mut due) = mpsc::channel::<(Instant, Bytes)>(CHUNKS);
    let mut reading = rules.clone();
    let way = &way;
    let read = async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            if reading.wait_for(|rules| way(rules) != Way::Swallow).await.is_err() {
                return Ok(());
            }
            let size = from.read(&mut buffer).await?;
            let late = match way(&reading.borrow()) {
                Way::Slow(late) => late,
                Way::Pass | Way::Swallow => Duration::ZERO,
            };
            if size == 0 || queue.send((Instant::now() + late, Bytes::copy_from_slice(&buffer[..size]))).await.is_err()
            {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            // What was read a moment before the cut is cut as well.
            if rules.wait_for(|rules| way(rules) != Way::Swallow).await.is_err() {
                return Ok(());
            }
            to.write_all(&chunk).await?;
            carried(chunk.len());
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}
