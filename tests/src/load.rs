//! Honest clients that go on until they are told to stop, and remember every failure.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::task::JoinSet;

use crate::{Client, Reply, client, eventually};

/// Which HTTP the clients speak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speak {
    H1,
    H2,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    ok: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// Connections that ended between two requests, without a word about the second one.
    raced: AtomicUsize,
    /// Responses that announced the end of their connection.
    announced: AtomicUsize,
    draining: AtomicBool,
}

/// Running clients.
pub struct Load {
    counts: Arc<Counts>,
    clients: JoinSet<()>,
}

/// What the clients met.
#[derive(Debug)]
pub struct Outcome {
    pub ok: usize,
    pub failures: Vec<String>,
    pub raced: usize,
    pub announced: usize,
}

impl Load {
    /// Each client has a connection of its own and asks for `path` again and again.
    pub fn start(addr: SocketAddr, speak: Speak, clients: usize, host: &str, path: &str) -> Self {
        let counts = Arc::new(Counts::default());
        let mut set = JoinSet::new();
        for _ in 0..clients {
            let (counts, host, path) = (counts.clone(), host.to_owned(), path.to_owned());
            set.spawn(async move { one_client(addr, speak, &counts, &host, &path).await });
        }
        Self { counts, clients: set }
    }

    pub fn ok(&self) -> usize {
        self.counts.ok.load(Ordering::SeqCst)
    }

    /// Waits for `more` further successes.
    pub async fn progress(&self, more: usize) {
        let goal = self.ok() + more;
        eventually("honest clients make progress", std::time::Duration::from_secs(30), async || self.ok() >= goal)
            .await;
    }

    /// From now on, a refused new connection ends a client without being a failure.
    pub fn expect_drain(&self) {
        self.counts.draining.store(true, Ordering::SeqCst);
    }

    /// Whether every client has ended.
    pub fn ended(&mut self) -> bool {
        while self.clients.try_join_next().is_some() {}
        self.clients.is_empty()
    }

    pub async fn finish(mut self) -> Outcome {
        self.counts.stop.store(true, Ordering::SeqCst);
        crate::soon("the clients end", async { while self.clients.join_next().await.is_some() {} }).await;
        Outcome {
            ok: self.ok(),
            failures: std::mem::take(&mut self.counts.failures.lock().unwrap()),
            raced: self.counts.raced.load(Ordering::SeqCst),
            announced: self.counts.announced.load(Ordering::SeqCst),
        }
    }

    /// Ends the clients; fails the test if any request failed.
    pub async fn finish_unharmed(self) {
        let outcome = self.finish().await;
        assert!(outcome.failures.is_empty(), "honest clients were harmed: {outcome:?}");
        assert!(outcome.ok > 0, "honest clients got nothing done");
    }
}

async fn one_client(addr: SocketAddr, speak: Speak, counts: &Counts, host: &str, path: &str) {
    let fail = |what: String| counts.failures.lock().unwrap().push(what);
    'connection: while !counts.stop.load(Ordering::SeqCst) {
        let connected = match speak {
            Speak::H1 => Client::h1(addr).await,
            Speak::H2 => Client::h2(addr).await,
        };
        let mut client = match connected {
            Ok(client) => client,
            Err(_) if counts.draining.load(Ordering::SeqCst) => return,
            Err(error) => return fail(format!("connect: {error}")),
        };
        let mut requests = 0;
        while !counts.stop.load(Ordering::SeqCst) {
            if client.is_closed() {
                continue 'connection;
            }
            match client.send(client::get(host, path)).await {
                Ok(reply) if reply.status == 200 && reply.error.is_none() => {
                    counts.ok.fetch_add(1, Ordering::SeqCst);
                    requests += 1;
                    if closes(&reply) {
                        counts.announced.fetch_add(1, Ordering::SeqCst);
                        continue 'connection;
                    }
                }
                Ok(reply) => fail(format!("{reply:?}")),
                Err(error) if never_sent(&error) => continue 'connection,
                // RFC 9112 section 9.3.1: a server may close an idle connection at any time.
                Err(_) if requests > 0 => {
                    counts.raced.fetch_add(1, Ordering::SeqCst);
                    continue 'connection;
                }
                Err(_) if counts.draining.load(Ordering::SeqCst) => return,
                Err(error) => return fail(error),
            }
        }
    }
}

/// hyper's words for a request that no server has looked at, because the connection was ending: it was still in hyper's
/// queue, the connection's task had gone, or a GOAWAY without error excludes it (RFC 9113 section 6.8: safe to repeat).
fn never_sent(error: &str) -> bool {
    error.starts_with("operation was canceled")
        || error == "channel closed"
        || error == "http2 error: connection error received: not a result of an error"
}

fn closes(reply: &Reply) -> bool {
    reply.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}
