//! Members of a control plane as processes: killed, stopped, cut off, out of space, wiped and replaced under load. What
//! the clients saw is checked for linearizability, and what a watch saw against what was written.

mod disk;
mod harness;
mod killed;
mod members;
mod node_follow;
mod partition;

use std::time::Duration;

use weft_tests::plane::{Follower, Load, Plane};

/// Three members, clients of all of them, and a watch on each.
struct Stage {
    plane: Plane,
    load: Load,
    followers: Vec<Follower>,
}

impl Stage {
    async fn start() -> Self {
        let plane = Plane::start(3).await;
        let load = Load::start(&plane.addresses(), 4, 2, Duration::ZERO);
        let followers = plane.members.iter().map(|member| Follower::start(vec![member.address])).collect();
        load.goes_on(10).await;
        Self { plane, load, followers }
    }

    /// Ends the load, and checks everything that anybody saw: the history is linearizable, every watch saw every revision
    /// once and in order, and every member that runs has all of it.
    async fn check(self) -> Plane {
        self.load.goes_on(10).await;
        let outcome = self.load.stop().await;
        outcome.assert_good();
        for follower in &self.followers {
            follower.assert_saw(&outcome.written).await;
        }
        self.plane.reached(outcome.last()).await;
        for member in &self.plane.members {
            Follower::start(vec![member.direct]).assert_saw(&outcome.written).await;
        }
        self.plane
    }
}

/// Longer than an election takes, and than what the members give each other.
const A_WHILE: Duration = Duration::from_secs(4);
