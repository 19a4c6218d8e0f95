//! Nothing unsafe is ever received twice, wherever the upstream breaks off.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use weft_tests::{Client, Options, Unruly, unruly::Mood, upstream::full, within};

use super::{Scene, tagged};

const CLIENTS: usize = 8;
const EACH: usize = 625;

/// Every retry, hedge and resend that there is, and budget for all of them.
const EAGER: &str = "retry: {attempts: 4, retryOn: [connect-failure, refused-stream, reset-before-request, reset, 5xx, \
                     gateway-error, per-try-timeout], backoff: {base: 1ms, max: 2ms}}\n\
                     retryBudget: {percent: 100, minPerSecond: 100000}\nhedge: {after: 20ms}\n\
                     circuitBreaker: {consecutiveFailures: 20, failureRate: {percent: 100}, baseEjectionTime: 10ms}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_posts_with_resets_at_random_points() {
    let scene = Scene::with(3, EAGER, Options { workers: 2, ..Options::default() }).await;
    for upstream in &scene.upstreams {
        upstream.set(Mood::Chaos);
    }
    let answered = AtomicUsize::new(0);
    // Their own answers matter little; now and then one is cut off together with its connection.
    let clients = (0..CLIENTS).map(|number| {
        let (scene, answered) = (&scene, &answered);
        async move {
            let (mut plain, mut keyed) = (Vec::new(), Vec::new());
            let mut client: Option<Client> = None;
            for round in 0..EACH + EACH / 10 {
                let key: &[_] = if round % 11 == 10 { &[("idempotency-key", "k")] } else { &[] };
                let (id, request) = tagged("POST", full(vec![b'x'; 1 + round * 7 % 4000]), key);
                if key.is_empty() {
                    plain.push(id)
                } else {
                    keyed.push(id)
                }
                let mut open = match client.take().filter(|client| !client.is_closed()) {
                    Some(open) => open,
                    None if number % 2 == 0 => Client::h1(scene.addr).await.unwrap(),
                    None => Client::h2(scene.addr).await.unwrap(),
                };
                if let Ok(reply) = open.send(request).await {
                    answered.fetch_add(usize::from(reply.status == 200 && reply.error.is_none()), Ordering::Relaxed);
                    client = Some(open);
                }
            }
            (plain, keyed)
        }
    });
    let ids = within(std::time::Duration::from_secs(60), "all requests", join_all(clients)).await;
    let mut times = std::collections::HashMap::new();
    for arrival in scene.upstreams.iter().flat_map(Unruly::arrivals) {
        *times.entry(arrival.id).or_insert(0) += 1;
    }
    let often = |id: &String| times.get(id).copied().unwrap_or(0);
    let plain: Vec<_> = ids.iter().flat_map(|(plain, _)| plain).collect();
    let twice: Vec<_> = plain.iter().filter(|id| often(id) > 1).collect();
    assert!(plain.len() >= CLIENTS * EACH, "{}", plain.len());
    assert!(twice.is_empty(), "{} of {} were received more than once: {:?}", twice.len(), plain.len(), &twice[..1]);
    let received = plain.iter().filter(|id| often(id) == 1).count();
    assert!(received > 4000, "{received} were received");
    let again = ids.iter().flat_map(|(_, keyed)| keyed).filter(|id| often(id) > 1).count();
    assert!(again > 50, "{again} with a key were sent again, or this test shows nothing");
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > 2000, "{answered} were answered");
}
