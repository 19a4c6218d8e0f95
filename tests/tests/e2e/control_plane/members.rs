//! Members that come and go.

use weft_tests::{
    plane::{LONG, Plane},
    weft,
};

use super::Stage;

/// `weft raft remove NAME`, asked of the others.
async fn remove(plane: &Plane, name: &str) {
    let mut args = vec!["raft".to_owned(), "remove".into(), name.into()];
    for other in plane.members.iter().filter(|other| other.name != name) {
        args.extend(["--control".into(), other.address.to_string()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = weft::run(&args).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_is_not_taken_for_what_it_was_and_can_be_replaced() {
    let mut stage = Stage::start().await;
    let leader = stage.plane.leader().await;
    let index = (leader + 1) % 3;
    let name = stage.plane.members[index].name.clone();
    let old = stage.plane.members[index].ask("/v1/raft/self").await.unwrap()["id"].clone();
    stage.plane.members[index].kill();
    std::fs::remove_dir_all(&stage.plane.members[index].data).unwrap();
    let join = [stage.plane.members[leader].address];

    stage.plane.restart(index, &join);
    let status = stage.plane.members[index].wait_exit(LONG).await;
    let last = stage.plane.members[index].last_line();
    assert_eq!(status.code(), Some(1), "{last}");
    assert!(last.contains(&format!("there is a member {name} already, with another data directory")), "{last}");
    assert!(last.contains(&format!("weft raft remove {name}")), "{last}");
    stage.load.goes_on(10).await;

    remove(&stage.plane, &name).await;
    stage.plane.voting(2).await;
    stage.plane.restart(index, &join);
    stage.plane.voting(3).await;
    let new = stage.plane.members[index].ask("/v1/raft/self").await.unwrap()["id"].clone();
    assert!(new.is_string() && new != old, "{new} after {old}");
    stage.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_become_five_and_three_again_under_load() {
    let mut stage = Stage::start().await;
    for name in ["d", "e"] {
        stage.plane.add(name).await;
        stage.load.goes_on(5).await;
    }
    stage.plane.voting(5).await;
    stage.load.members(&stage.plane.addresses());
    stage.load.goes_on(20).await;

    // The leader, and the first one that is left: those that the others joined through.
    for _ in 0..2 {
        let index = if stage.plane.members.len() == 5 { stage.plane.leader().await } else { 0 };
        let name = stage.plane.members[index].name.clone();
        remove(&stage.plane, &name).await;
        let gone = stage.plane.members.remove(index);
        stage.load.members(&stage.plane.addresses());
        stage.followers.retain(|follower| follower.member() != gone.address);
        drop(gone);
        stage.plane.voting(stage.plane.members.len()).await;
        stage.load.goes_on(10).await;
    }
    assert_eq!(stage.plane.members.len(), 3);
    stage.check().await;
}
