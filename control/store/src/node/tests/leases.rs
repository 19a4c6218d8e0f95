use super::*;
use crate::lease::Lost;
use crate::types::LeaseId;

const TTL: u64 = 1500;

fn lease() -> LeaseId {
    LeaseId::new("node-1")
}

fn grant() -> Command {
    Command::new("node-1", 1, Op::Grant { lease: lease(), ttl_ms: TTL })
}

fn attached(name: &str) -> Command {
    Command::new("node-1", 1, Op::put(Put::spec(key(name), "1").attached(lease())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_attached_lives_as_long_as_the_agent_reports() {
    let cluster = Cluster::new(1).await;
    let store = cluster.leader().await;
    eventually("it keeps leases", async || store.leases().leads()).await;
    assert_eq!(cluster.write(grant()).await, Outcome::Granted { generation: 1 });
    cluster.write(attached("a")).await;
    cluster.write(attached("b")).await;
    for _ in 0..8 {
        sleep(Duration::from_millis(TTL / 4)).await;
        assert_eq!(store.keep_alive(&lease(), 1).unwrap(), Duration::from_millis(TTL));
    }
    assert_eq!(store.status().objects, 2);
    let mut watcher = store.watch(store.status().revision, Filter::default());
    let gone = tokio::time::timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].changes().count(), 2, "both in one revision");
    assert_eq!(&*gone[0].event().actor, "member/m1");
    assert!(matches!(store.keep_alive(&lease(), 1), Err(Error::Lost(Lost::Gone))));
    assert_eq!(store.status().leases, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_gives_a_full_time_to_live_and_an_old_one_promises_nothing() {
    let cluster = Cluster::new(3).await;
    cluster.write(grant()).await;
    cluster.write(attached("a")).await;
    let old = cluster.leader().await;
    eventually("it keeps leases", async || old.keep_alive(&lease(), 1).is_ok()).await;
    sleep(Duration::from_millis(TTL * 2 / 3)).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old.member().0).collect();
    cluster.network.isolate(&[&old.member().1.address]);

    let new = cluster.leader_among(&others).await;
    let led = Instant::now();
    assert!(matches!(old.keep_alive(&lease(), 1), Err(Error::NotLeader { .. })));
    eventually("it is gone", async || new.status().objects == 0).await;
    assert!(led.elapsed() > Duration::from_millis(TTL - 500), "not before a full time to live: {:?}", led.elapsed());
    cluster.network.heal();
    cluster.agree().await;
}

/// Catches the mutation "expire from a stale leader" end to end: the proposal was decided in an earlier term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_of_an_earlier_term_is_rejected_by_every_member() {
    let cluster = Cluster::new(3).await;
    cluster.write(grant()).await;
    cluster.write(attached("a")).await;
    let old = cluster.leader().await;
    let expire = Op::Expire { term: old.status().term, leases: vec![(lease(), 1)] };
    let next = (1..=3).find(|id| *id != old.member().0).unwrap();
    old.transfer(next).await.unwrap();
    let new = cluster.leader().await;
    assert_eq!(new.member().0, next);
    let outcome = new.write(Command::new("member/stale", 1, expire)).await.unwrap();
    assert_eq!(outcome, Outcome::Rejected(crate::types::Rejection::StaleTerm));
    assert_eq!(new.status().objects, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_of_all_agents_at_once_is_held_back() {
    let cluster = Cluster::with(1, |options| options.hold = Hold { always: 1, ..Hold::default() }).await;
    let store = cluster.leader().await;
    for agent in ["n1", "n2", "n3"] {
        let op = Op::Grant { lease: LeaseId::new(agent), ttl_ms: 300 };
        cluster.write(Command::new(agent, 1, op)).await;
    }
    eventually("they are held", async || store.status().held == 3).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(store.status().leases, 3);
    assert!(store.keep_alive(&LeaseId::new("n2"), 2).is_ok(), "an agent that comes back finds its lease");
}
