//! Random faults under load.

#[cfg(debug_assertions)]
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::watch::WatchEnd;

/// A register with one writer: a linearizable read returns at least what was acknowledged before it began, at most what
/// had been tried before it ended, and not less than a read that ended before it began.
#[derive(Default)]
struct Register {
    tried: AtomicU64,
    acknowledged: AtomicU64,
    seen: AtomicU64,
    reads: AtomicU64,
}

async fn write_on(stores: Arc<Mutex<BTreeMap<u64, Store>>>, register: Arc<Register>, stop: Arc<AtomicBool>) -> u64 {
    let all = || stores.lock().unwrap().values().cloned().collect::<Vec<_>>();
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        register.tried.store(n, Ordering::SeqCst);
        let command = put("register", n).identified(request(n));
        // A client that does not hear an answer asks the next member, for as long as it takes.
        'retry: loop {
            for store in all() {
                if let Ok(outcome) = store.write(command.clone()).await {
                    assert_eq!(outcome.revision(), Some(Revision(n)), "applied once, in order");
                    break 'retry;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
        register.acknowledged.store(n, Ordering::SeqCst);
    }
    n
}

async fn read_on(stores: Arc<Mutex<BTreeMap<u64, Store>>>, register: Arc<Register>, stop: Arc<AtomicBool>) {
    let all = || stores.lock().unwrap().values().cloned().collect::<Vec<_>>();
    while !stop.load(Ordering::SeqCst) {
        for store in all() {
            let least = register.acknowledged.load(Ordering::SeqCst).max(register.seen.load(Ordering::SeqCst));
            let Ok(found) = read(&store, Consistency::Linearizable, "register").await else { continue };
            let found = found.unwrap_or(0);
            assert!(found >= least, "a stale read: {found} after {least}");
            assert!(found <= register.tried.load(Ordering::SeqCst), "{found} was not written yet");
            register.seen.fetch_max(found, Ordering::SeqCst);
            register.reads.fetch_add(1, Ordering::SeqCst);
        }
        sleep(Duration::from_millis(3)).await;
    }
}

/// Watches whatever member there is, resuming elsewhere when that one stops.
async fn watch_on(stores: Arc<Mutex<BTreeMap<u64, Store>>>, until: Arc<AtomicU64>) {
    let mut last = Revision(0);
    let mut turn = 0;
    while until.load(Ordering::SeqCst) == 0 || last.0 < until.load(Ordering::SeqCst) {
        turn += 1;
        let store = {
            let stores = stores.lock().unwrap();
            stores.values().nth(turn % stores.len().max(1)).cloned()
        };
        let Some(store) = store else { continue };
        let mut watcher = store.watch(last, Filter::kind("Service"));
        let change = Instant::now() + Duration::from_millis(300);
        while let Ok(next) = tokio::time::timeout_at(change, watcher.next()).await {
            match next {
                Ok(batch) => {
                    for seen in batch {
                        assert_eq!(seen.event().revision, last.next(), "in order, once, without a gap");
                        last = seen.event().revision;
                        let change = seen.changes().next().unwrap();
                        assert_eq!(*change.after.as_ref().unwrap().spec, *last.to_string().as_bytes());
                    }
                }
                Err(WatchEnd::Closed) => break,
                Err(WatchEnd::Compacted(compacted)) => panic!("{compacted}"),
            }
        }
    }
}

/// Lost and doubled writes, stale reads and watches with gaps, under random partitions, restarts and transfers in real
/// time. What this has too little time to meet, `simulation.rs` does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_under_load() {
    let seconds = std::env::var("WEFT_FAULT_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    let seed = std::env::var("WEFT_FAULT_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::with(3, |options| {
        options.snapshot_every = 100;
        options.timeout = Duration::from_millis(800);
    })
    .await;
    let stores = Arc::new(Mutex::new(cluster.stores.clone()));
    let (register, stop, until) = (Arc::<Register>::default(), Arc::<AtomicBool>::default(), Arc::default());
    let writer = tokio::spawn(write_on(stores.clone(), register.clone(), stop.clone()));
    let readers = [0, 1].map(|_| tokio::spawn(read_on(stores.clone(), register.clone(), stop.clone())));
    let watchers = [0, 1].map(|_| tokio::spawn(watch_on(stores.clone(), Arc::clone(&until))));

    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let id = random.u64(1..=3);
        let other = 1 + id % 3;
        match random.u32(..5) {
            0 => cluster.network.isolate(&[&address(id)]),
            1 => cluster.network.cut(&address(id), &address(other)),
            2 => {
                stores.lock().unwrap().remove(&id);
                cluster.restart(id).await;
                *stores.lock().unwrap() = cluster.stores.clone();
            }
            3 => {
                let _ = cluster.stores[&id].transfer(other).await;
            }
            _ => cluster.network.delay(Duration::from_millis(random.u64(..15))),
        }
        sleep(Duration::from_millis(random.u64(200..1200))).await;
        cluster.network.heal();
        sleep(Duration::from_millis(random.u64(..800))).await;
    }
    cluster.network.heal();
    cluster.network.delay(Duration::ZERO);
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    until.store(written, Ordering::SeqCst);
    for watcher in watchers {
        tokio::time::timeout(PATIENCE, watcher).await.expect("the watchers see everything").unwrap();
    }
    cluster.agree().await;
    let reads = register.reads.load(Ordering::SeqCst);
    eprintln!("seed {seed}: {written} writes, {reads} linearizable reads");
    assert!(written > 20 && reads > 20, "{written} writes, {reads} reads");
}

/// What makes it panic here is an assertion of openraft's, in builds that have it: a follower comes back with an old copy
/// of its directory.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raft_that_panics_ends_its_member() {
    let mut cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let follower = 1 + leader.member().0 % 3;
    let copy = |from: &Path, to: &Path| {
        for file in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    cluster.stop(follower).await;
    let old = TempDir::new().unwrap();
    copy(cluster.dirs[&follower].path(), old.path());
    cluster.start(follower).await;
    for body in 0..20 {
        cluster.write(put("a", body)).await;
    }
    cluster.agree().await;
    cluster.stop(follower).await;
    copy(old.path(), cluster.dirs[&follower].path());
    cluster.start(follower).await;
    let fatal = tokio::time::timeout(PATIENCE, leader.failed()).await.expect("it does not go on without its raft");
    assert!(matches!(fatal, Fatal::Raft(_)), "{fatal}");
}
