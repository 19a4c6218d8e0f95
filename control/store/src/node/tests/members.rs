use std::collections::BTreeSet;

use super::*;

fn voters(store: &Store) -> Vec<u64> {
    store.status().members.iter().filter(|member| member.voter).map(|member| member.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_become_five_become_three_while_writes_go_on() {
    let mut cluster = Cluster::new(3).await;
    let mut n = 0;
    let mut write = async |cluster: &Cluster| {
        for _ in 0..10 {
            n += 1;
            cluster.write(put("a", n)).await;
        }
    };
    write(&cluster).await;
    cluster.add(4).await;
    cluster.add(5).await;
    write(&cluster).await;
    assert_eq!(voters(&cluster.leader().await), [1, 2, 3, 4, 5]);
    cluster.agree().await;

    // Two of five may be away.
    cluster.network.isolate(&[&address(4), &address(5)]);
    write(&cluster).await;
    cluster.network.heal();

    // The leader goes first, by its own word.
    let leader = cluster.leader().await.member().0;
    cluster.leader().await.remove(leader).await.unwrap();
    cluster.stop(leader).await;
    let next = *cluster.stores.keys().next().unwrap();
    eventually("another is removed", async || cluster.leader().await.remove(next).await.is_ok()).await;
    cluster.stop(next).await;
    write(&cluster).await;
    assert_eq!(cluster.stores.len(), 3);
    eventually("the removed are gone", async || voters(&cluster.leader().await).iter().eq(cluster.stores.keys())).await;
    cluster.agree().await;
    assert_eq!(read(&cluster.leader().await, Consistency::Linearizable, "a").await.unwrap(), Some(40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_can_be_handed_over() {
    let cluster = Cluster::new(3).await;
    for to in [2, 3, 1] {
        let leader = cluster.leader().await;
        if leader.member().0 != to {
            leader.transfer(to).await.unwrap();
        }
        assert_eq!(cluster.leader().await.member().0, to);
        cluster.write(put("a", to)).await;
    }
    let leader = cluster.leader().await;
    assert!(matches!(leader.transfer(9).await, Err(Error::Membership(_))));
    assert!(matches!(cluster.stores[&2].transfer(3).await, Err(Error::NotLeader { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_was_wiped_is_nobody() {
    let mut cluster = Cluster::new(3).await;
    cluster.write(put("a", 1)).await;
    let leader = cluster.leader().await;
    let wiped = (1..=3).find(|id| *id != leader.member().0).unwrap();
    cluster.stop(wiped).await;
    cluster.dirs.remove(&wiped);
    let store = cluster.start(wiped).await;

    cluster.write(put("a", 2)).await;
    sleep(Duration::from_millis(1500)).await;
    let status = store.status();
    assert_eq!((status.last, status.term, status.revision), (None, 0, Revision(0)), "nobody tells it anything");
    let again = cluster.leader().await.add_learner(wiped, store.member().1.clone()).await;
    assert!(matches!(again, Err(Error::Membership(_))), "{again:?}");

    // Its vote does not count either: with another member gone there is no quorum.
    let other = (1..=3).find(|id| *id != leader.member().0 && *id != wiped).unwrap();
    cluster.stop(other).await;
    let write = leader.write(put("a", 3)).await;
    assert!(matches!(write, Err(Error::Unknown | Error::NotLeader { .. })), "{write:?}");
    cluster.start(other).await;
    cluster.write(put("a", 4)).await;

    cluster.leader().await.remove(wiped).await.unwrap();
    cluster.stop(wiped).await;
    cluster.add(9).await;
    let there = async || cluster.stores[&9].read(Consistency::Serializable, |m| m.len()).await.unwrap() == 1;
    eventually("it has what the others have", there).await;
}

#[tokio::test]
async fn a_data_directory_that_is_not_ones_own_or_not_whole_is_named() {
    let dir = TempDir::new().unwrap();
    let open = async |id: Option<u64>| {
        let options = Options { id, ..Options::new("m", "m:1", dir.path()) };
        let store = Store::open(options.clone(), Memory::default().port("m:1")).await?;
        let member = (store.member().0, store.member().1.clone());
        store.bootstrap().await.unwrap();
        let twice = Store::open(options, Memory::default().port("m:1")).await.unwrap_err();
        assert!(twice.to_string().contains("another process uses it"), "{twice}");
        store.shutdown().await;
        Ok::<_, Fatal>(member)
    };
    let first = open(None).await.unwrap();
    assert_eq!(open(None).await.unwrap(), first, "id and incarnation stay");
    assert_eq!(open(Some(first.0)).await.unwrap(), first);
    let other = open(Some(2)).await.unwrap_err();
    assert!(other.to_string().ends_with("'s, not member 2's"), "{other}");

    let (log, aside) = (dir.path().join("log.redb"), dir.path().join("aside"));
    std::fs::rename(&log, &aside).unwrap();
    let missing = open(None).await.unwrap_err();
    assert!(missing.to_string().contains("log.redb: it is missing"), "{missing}");
    std::fs::rename(&aside, &log).unwrap();
    std::fs::remove_file(dir.path().join("member")).unwrap();
    let nobody = open(None).await.unwrap_err();
    assert!(matches!(nobody, Fatal::Mismatch { .. }), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_change_that_was_left_half_done_is_finished() {
    let cluster = Cluster::new(3).await;
    let leader = cluster.leader().await;
    let nodes: BTreeMap<u64, Member> =
        cluster.stores.values().map(|store| (store.member().0, store.member().1.clone())).collect();
    let (old, new) = (BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2]));
    let joint = crate::raft::Membership::new(vec![old, new], nodes).unwrap();
    leader.0.raft.append_membership(joint, openraft::EntryPayload::Blank, []).await.unwrap();
    assert!(leader.status().joint);
    eventually("it is finished", async || !cluster.leader().await.status().joint).await;
    eventually("as intended", async || voters(&cluster.leader_among(&[1, 2]).await) == [1, 2]).await;
}
