//! Leaders that die, and one that only hangs.

use rustix::process::Signal;
use weft_tests::{
    eventually,
    plane::{LONG, Line, client},
};

use super::{A_WHILE, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_leaders_that_are_killed() {
    let mut stage = Stage::start().await;
    for _ in 0..4 {
        let leader = stage.plane.leader().await;
        stage.plane.members[leader].kill();
        let next = stage.plane.leader_but(leader).await;
        assert_ne!(next, leader);
        // While it is away.
        stage.load.goes_on(10).await;
        stage.plane.restart(leader, &[]);
        stage.plane.voting(3).await;
    }
    stage.check().await;
}

/// A process that hangs answers nothing and breaks no connection. When it goes on, it still takes itself for the leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hangs_is_replaced_and_serves_nothing_stale_afterwards() {
    let stage = Stage::start().await;
    for _ in 0..2 {
        let old = stage.plane.leader().await;
        let member = &stage.plane.members[old];
        member.signal(Signal::STOP);
        let new = stage.plane.leader_but(old).await;
        stage.load.goes_on(10).await;

        // Written by the new leader only, and read from the old one, the moment that it goes on: the requests wait for
        // it in its sockets.
        let path = "/v1/objects/Service/default/after-the-stop";
        let value = stage.load.now().unsigned_abs();
        let body = client::service("after-the-stop", value);
        let put = Line::new(stage.plane.members[new].direct).ask("PUT", path, &[], body, LONG).await;
        assert_eq!(put.map(|(status, _)| status), Ok(200));
        let reads: Vec<_> = (0..20)
            .map(|_| {
                let direct = member.direct;
                tokio::spawn(async move { Line::new(direct).get(path, LONG).await })
            })
            .collect();
        member.signal(Signal::CONT);
        for read in reads {
            match read.await.unwrap() {
                Ok((200, service)) => assert_eq!(client::value_of(&service), Some(value), "a stale read"),
                Ok((status, body)) => assert_eq!(status, 503, "{body}"),
                Err(error) => panic!("{error}"),
            }
        }
        eventually("the old leader follows", A_WHILE * 5, async || {
            member.ask("/v1/raft/self").await.is_some_and(|own| own["role"] == "follower")
        })
        .await;
        stage.load.goes_on(10).await;
    }
    stage.load.goes_on(10).await;
    let outcome = stage.load.stop().await;
    outcome.assert_good();
    stage.plane.reached(outcome.last()).await;
    for follower in &stage.followers {
        let seen = follower.reached(outcome.last()).await;
        assert_eq!((seen.gaps, seen.again, &*seen.ended), (0, 0, &[][..]));
        assert_eq!(seen.changes.len(), outcome.written.len() + 2, "the two of this test are among them");
    }
}
