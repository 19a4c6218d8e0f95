//! POSTs without an Idempotency-Key, origins that reset connections, every retry condition on: none may arrive twice.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;

use super::Bench;
use super::client::Client;
use super::node::Node;
use super::resetting::{Arrived, Resetting};
use crate::report::{Bound, Report};

/// Everything that can be retried is, as often as it likes: only the method holds a POST back.
const POLICY: &str = "\
retry: {attempts: 3, perTryTimeout: 2s, backoff: {base: 1ms, max: 5ms}, retryOn: [connect-failure, refused-stream, \
reset-before-request, reset, per-try-timeout, gateway-error, 5xx]}
retryBudget: {percent: 100, minPerSecond: 100000, ttl: 10s}";
const CONNECTIONS: u32 = 32;
/// One request in so many is a GET, which may be sent again: so that there is something to retry.
const GETS: u32 = 10;
/// The longest body.
const BODY: usize = 4_000;

/// What came of the requests of one method.
#[derive(Default)]
struct Tally {
    answered: Cell<u32>,
    failed: Cell<u32>,
}

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let arrived = Arrived::new(bench.posts);
    let origins = [
        Resetting::start(arrived.clone(), bench.seed).await?,
        Resetting::start(arrived.clone(), bench.seed.wrapping_add(1)).await?,
    ];
    let node = Node::start(&bench.weft, &[origins[0].addr(), origins[1].addr()], 2, POLICY).await?;
    let (posts, gets) = (Rc::new(Tally::default()), Rc::new(Tally::default()));
    let next = Rc::new(Cell::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        let (posts, gets, next, total, target) = (posts.clone(), gets.clone(), next.clone(), bench.posts, node.addr());
        let mut rng = fastrand::Rng::with_seed(bench.seed ^ (u64::from(connection) << 32));
        tasks.spawn_local(async move {
            let mut client = None;
            while next.get() < total {
                let id = next.replace(next.get() + 1);
                let body = Bytes::from(vec![b'x'; rng.usize(1..BODY)]);
                send(&mut client, target, Request::post(format!("/{id}")), body, &posts).await;
                if id % GETS == 0 {
                    send(&mut client, target, Request::get(format!("/{id}")), Bytes::new(), &gets).await;
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection's task")?;
    }
    tell(report, &posts, &gets, &arrived, node.metric("weft_retries_total").await?);
    Ok(())
}

/// Sends one request once, whatever comes of it.
async fn send(
    client: &mut Option<Client>,
    target: SocketAddr,
    request: http::request::Builder,
    body: Bytes,
    tally: &Tally,
) {
    let exchange = async {
        let open = match client.as_mut().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => client.insert(Client::connect(target).await?),
        };
        open.send(request, body).await
    };
    let ended = exchange.await;
    let count =
        if ended.as_ref().is_ok_and(|answer| answer.status().is_success()) { &tally.answered } else { &tally.failed };
    count.set(count.get() + 1);
    if ended.is_err() {
        *client = None;
    }
}

fn tell(report: &mut Report, posts: &Tally, gets: &Tally, arrived: &RefCell<Arrived>, retries: f64) {
    let arrived = arrived.borrow();
    report.info("POSTs answered", f64::from(posts.answered.get()), "");
    report.info("POSTs failed", f64::from(posts.failed.get()), "");
    report.info("POSTs received", arrived.posts.times(1) as f64, "");
    report.check("POSTs received twice or more", arrived.posts.times(2) as f64, "", Bound::AtMost(0.0));
    for (point, resets) in
        ["before reading", "after the head", "after the body", "within the response"].into_iter().zip(arrived.resets)
    {
        report.info(format!("connections reset {point}"), resets as f64, "");
    }
    if arrived.resets.contains(&0) {
        report.missing("resets at every point", "one never came about: too few requests");
    }
    let all = gets.answered.get() + gets.failed.get();
    report.info("GETs answered", f64::from(gets.answered.get()) * 100.0 / f64::from(all.max(1)), "%");
    report.info("GETs received twice or more", arrived.gets.times(2) as f64, "");
    // Without a retry of anything the figure for POSTs proves nothing. A GET that arrives twice is no sign of one: on a
    // connection that was used before, one that is reset is sent again without any policy.
    report.check("requests that the retry policy looked at", retries, "", Bound::AtLeast(1.0));
}
