use super::*;
use crate::log::tests::{Loss, Power};
use crate::node::identity::Identity;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_alone_serves_and_remembers() {
    let mut cluster = Cluster::new(1).await;
    let store = cluster.stores[&1].clone();
    assert!(!store.bootstrap().await.unwrap(), "it belongs to a cluster already");
    assert_eq!(cluster.write(put("a", 1)).await.revision(), Some(Revision(1)));
    assert_eq!(cluster.write(put("a", 2)).await.revision(), Some(Revision(2)));
    let before = store.status();
    assert_eq!((before.role, before.leader, before.revision), (Role::Leader, Some(1), Revision(2)));
    assert!(before.log_bytes > 0);
    drop(store);

    cluster.restart(1).await;
    let store = cluster.leader().await;
    assert_eq!(read(&store, Consistency::Linearizable, "a").await.unwrap(), Some(2));
    assert!(store.status().term > before.term, "a restarted leader is elected anew");
    let mut watcher = store.watch(Revision(0), Filter::default());
    assert_eq!(watcher.next().await.unwrap().len(), 2, "history is remembered too");
    store.shutdown().await;
    assert!(matches!(store.write(put("a", 3)).await, Err(Error::Stopped(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_point_to_the_leader_and_follow() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.stores.values().find(|store| store.member().0 != leader.member().0).unwrap();
    let mut watcher = follower.watch(Revision(0), Filter::kind("Service"));

    let to = |error| match error {
        Error::NotLeader { leader: Some((_, member)) } => member.address,
        other => panic!("{other}"),
    };
    eventually("the follower knows the leader", async || follower.status().leader.is_some()).await;
    let address = leader.member().1.address.clone();
    assert_eq!(to(follower.write(put("a", 1)).await.unwrap_err()), address);

    for body in 1..=20 {
        let revision = leader.write(put("a", body)).await.unwrap().revision().unwrap();
        if body % 2 == 0 {
            assert_eq!(read(follower, Consistency::Linearizable, "a").await.unwrap(), Some(body));
        }
        assert_eq!(read(follower, Consistency::AtLeast(revision), "a").await.unwrap(), Some(body));
    }
    let mut seen = Vec::new();
    while seen.len() < 20 {
        seen.extend(watcher.next().await.unwrap().iter().map(|seen| seen.event().revision.0));
    }
    assert_eq!(seen, (1..=20).collect::<Vec<_>>());

    let status = leader.status();
    assert_eq!((status.members.len(), status.joint), (3, false));
    assert!(status.members.iter().all(|member| member.voter && member.lag.is_some()));
}

/// Catches "acknowledge before fsync" too, as far as a process in memory can: what was acknowledged is there after every
/// member was stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_is_there_after_all_members_restart() {
    let mut cluster = Cluster::new(3).await;
    for n in 0..50 {
        cluster.write(put(&format!("o{n}"), n)).await;
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    let leader = cluster.leader().await;
    for n in 0..50 {
        assert_eq!(read(&leader, Consistency::Linearizable, &format!("o{n}")).await.unwrap(), Some(n));
    }
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_leader_loses_nothing_and_a_retry_applies_nothing() {
    let mut cluster = Cluster::new(3).await;
    let first = put("a", 1).identified(request(1));
    let done = cluster.write(first.clone()).await;
    let old = cluster.leader().await.member().0;
    cluster.stop(old).await;

    // The client did not hear the answer, asks the next leader, and gets the same one.
    let second = put("a", 2);
    cluster.write(second).await;
    assert_eq!(cluster.write(first).await, done);
    let leader = cluster.leader().await;
    assert_eq!(read(&leader, Consistency::Linearizable, "a").await.unwrap(), Some(2));
    cluster.start(old).await;
    cluster.agree().await;
}

/// Catches the mutation "read without quorum": the old leader would answer 1 after the new one has acknowledged 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_answers_no_linearizable_read() {
    let cluster = Cluster::new(3).await;
    cluster.write(put("a", 1)).await;
    let old = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old.member().0).collect();
    cluster.network.isolate(&[&old.member().1.address]);

    let stranded = tokio::spawn({
        let old = old.clone();
        async move { old.write(put("b", 9)).await }
    });
    cluster.write_among(&others, put("a", 2)).await;
    for _ in 0..3 {
        let read = read(&old, Consistency::Linearizable, "a").await;
        assert!(matches!(read, Err(Error::Unavailable | Error::NotLeader { .. })), "{read:?}");
    }
    assert_eq!(read(&old, Consistency::Serializable, "a").await.unwrap(), Some(1), "the past, as was asked for");
    assert!(matches!(stranded.await.unwrap(), Err(Error::Unknown | Error::NotLeader { .. })));

    cluster.network.heal();
    cluster.agree().await;
    assert_eq!(read(&old, Consistency::Serializable, "a").await.unwrap(), Some(2));
    assert_eq!(read(&old, Consistency::Serializable, "b").await.unwrap(), None, "what had no quorum is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_too_long_gets_a_snapshot_and_its_watchers_go_on() {
    let mut cluster = Cluster::with(3, |options| options.snapshot_every = 40).await;
    for n in 0..10 {
        cluster.write(put("a", n)).await;
    }
    cluster.agree().await;
    let leader = cluster.leader().await.member().0;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    cluster.stop(away).await;
    for n in 10..300 {
        cluster.write(put("a", n)).await;
    }
    let status = cluster.leader().await.status();
    assert!(status.snapshot > Some(100) && status.snapshot_bytes > 0);
    let log = cluster.leader().await.0.log.lock().unwrap().clone().unwrap();
    // Openraft keeps what it is trying to send, until it finds again that nobody is there.
    let compacted = async || log.purged().is_some_and(|purged| purged.index > 100);
    eventually("the log is compacted", compacted).await;
    drop(log);

    let store = cluster.start(away).await;
    let mut watcher = store.watch(Revision(10), Filter::default());
    let mut seen = Vec::new();
    while seen.len() < 290 {
        seen.extend(watcher.next().await.unwrap().iter().map(|seen| seen.event().revision.0));
    }
    assert_eq!(seen, (11..=300).collect::<Vec<_>>());
    cluster.agree().await;
    assert!(store.status().snapshot > Some(100), "it came by a snapshot");
    let store = cluster.restart(away).await;
    assert!(read(&store, Consistency::AtLeast(Revision(300)), "a").await.unwrap() == Some(299));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_trims_what_is_old() {
    let cluster = Cluster::with(1, |options| {
        options.clock = || 1_000_000;
        options.history = Duration::from_secs(600);
    })
    .await;
    let mut watcher = cluster.stores[&1].watch(Revision(0), Filter::kind("Nothing"));
    let old = Command { at: 399_999, ..put("a", 1) };
    let recent = Command { at: 400_000, ..put("a", 2) };
    cluster.write(old.identified(RequestId { issued: 399_999, ..request(1) })).await;
    cluster.write(recent).await;
    let store = cluster.leader().await;
    eventually("history is trimmed", async || store.status().compacted == Revision(1)).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(store.status().compacted, Revision(1), "and no further");
    assert_eq!(watcher.poll().unwrap_err().at, Revision(1), "a watcher that missed it is told");
    let ahead = put("a", 3).identified(RequestId { issued: 1_060_001, ..request(2) });
    assert!(matches!(store.write(ahead).await, Err(Error::ClockAhead)));
}

/// A full or failing disk: the member says so and stops, and everything it acknowledged before is on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_stops_the_member_with_a_reason() {
    let dir = TempDir::new().unwrap();
    let power = Power::formatted(u64::MAX);
    let failure = Failure::default();
    let options = Options::new("m1", "m1:15010", dir.path());
    let start = |power: Power, failure: Failure, options: Options| async {
        let log = Log::open_power(power, failure.clone()).unwrap();
        let snapshots = Snapshots::open(&options.data_dir, Disk).unwrap();
        let identity = Identity { id: 1, incarnation: 1 };
        let transport = Arc::new(Memory::default().port("m1:15010"));
        Store::start(options, transport, log, snapshots, identity, failure).await.unwrap()
    };
    let store = start(power.clone(), failure, options.clone()).await;
    store.bootstrap().await.unwrap();
    eventually("it leads", async || store.write(put("a", 0)).await.is_ok()).await;
    power.fail_after(25);
    let mut acknowledged = 0;
    let error = loop {
        match store.write(put("a", acknowledged + 1)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Stopped(_) | Error::Unknown), "{error}");
    let fatal = tokio::time::timeout(PATIENCE, store.failed()).await.unwrap();
    assert!(fatal.to_string().contains("the power is off"), "{fatal}");
    assert!(matches!(store.write(put("a", 99)).await, Err(Error::Stopped(Fatal::Disk { .. }))));
    store.shutdown().await;

    let store = start(power.restored(Loss::All), Failure::default(), options).await;
    eventually("it leads again", async || store.read(Consistency::Linearizable, |_| ()).await.is_ok()).await;
    let found = read(&store, Consistency::Linearizable, "a").await.unwrap().unwrap();
    assert!(found == acknowledged || found == acknowledged + 1, "{found}, {acknowledged} acknowledged");
}
