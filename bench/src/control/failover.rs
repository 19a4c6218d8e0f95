//! Leaders that are killed under load. Gaps are what the clients saw: the longest time without an acknowledged write around
//! each kill, among all of them together.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use weft_tests::plane::client::{Outcome, Written};
use weft_tests::plane::watch::Seen;
use weft_tests::plane::{Follower, Load, Plane};

use crate::report::{Bound, Report};
use crate::stats::percentile;

/// Options of `control failover`.
#[derive(clap::Args)]
pub struct Args {
    /// How often the leader is killed
    #[arg(long, default_value_t = 50)]
    kills: u32,
    /// Clients that write, two to a key
    #[arg(long, default_value_t = 8)]
    writers: u32,
    /// Clients that read, linearizably
    #[arg(long, default_value_t = 4)]
    readers: u32,
}

/// Between two requests of a client: the checker has to look at all of them.
const PACE: Duration = Duration::from_millis(20);
/// Written between two kills.
const BETWEEN: usize = 40;
/// In nanoseconds: a pause that begins later than this after a kill is not the kill's.
const AROUND: i64 = 3_000_000_000;

/// Measures and checks.
pub async fn run(weft: &Path, args: &Args, report: &mut Report) -> Result<()> {
    report.scenario("failover");
    let mut plane = Plane::start_with(weft, 3, true).await;
    let load = Load::start(&plane.addresses(), args.writers, args.readers, PACE);
    let mut followers: Vec<Follower> = vec![Follower::start(plane.addresses())];
    followers.extend(plane.members.iter().map(|member| Follower::start(vec![member.address])));
    load.goes_on(BETWEEN).await;

    let mut kills = Vec::new();
    for number in 1..=args.kills {
        let leader = plane.leader().await;
        kills.push(load.now());
        plane.members[leader].kill();
        load.goes_on(BETWEEN).await;
        plane.restart(leader, &[]);
        plane.voting(3).await;
        load.goes_on(BETWEEN).await;
        if number % 10 == 0 {
            eprintln!("  {number} leaders killed, {} writes acknowledged", load.written());
        }
    }
    let outcome = load.stop().await;
    let mut seen = Vec::new();
    for follower in &followers {
        seen.push(follower.reached(outcome.last()).await);
    }
    drop(followers);
    tell(&outcome, &kills, &seen, report);
    Ok(())
}

fn tell(outcome: &Outcome, kills: &[i64], seen: &[Seen], report: &mut Report) {
    let mut gaps = gaps(&outcome.written, kills);
    gaps.sort_by(f64::total_cmp);
    let ms = |share| percentile(&gaps, share).unwrap_or(f64::NAN);
    let (writes, reads) = outcome.history.counts();
    report.info("leaders killed", kills.len() as f64, "");
    report.check("writes pause, p50", ms(0.5), "ms", Bound::AtMost(1500.0));
    report.check("writes pause, p99", ms(0.99), "ms", Bound::AtMost(2500.0));
    report.info("writes pause, longest", ms(1.0), "ms");
    report.info("writes acknowledged", writes as f64, "");
    report.check("writes refused for good", outcome.failed.len() as f64, "", Bound::AtMost(0.0));
    report.check("acknowledged writes lost", lost(&outcome.written, &seen[0]) as f64, "", Bound::AtMost(0.0));
    report.info("linearizable reads", reads as f64, "");
    report.check("stale among them", outcome.stale as f64, "", Bound::AtMost(0.0));
    let sum = |part: fn(&Seen) -> u64| seen.iter().map(part).sum::<u64>() as f64;
    report.info("watches", seen.len() as f64, "");
    report.info("their resumptions", sum(|seen| seen.resumed), "");
    report.info("changes that they saw", sum(|seen| seen.changes.len() as u64), "");
    report.check("gaps in them", sum(|seen| seen.gaps), "", Bound::AtMost(0.0));
    report.check("doubled or out of order", sum(|seen| seen.again), "", Bound::AtMost(0.0));
    report.check("ended by a member", sum(|seen| seen.ended.len() as u64), "", Bound::AtMost(0.0));
    let verdict = outcome.history.verdict();
    let linearizable = verdict == weft_tests::history::Verdict::Ok;
    eprintln!("  the checker (porcupine): {verdict:?}");
    report.check("the checker: linearizable", f64::from(u8::from(linearizable)), "", Bound::AtLeast(1.0));
}

/// In milliseconds, for each kill: pauses that end before the next one.
fn gaps(written: &[Written], kills: &[i64]) -> Vec<f64> {
    let mut times: Vec<i64> = written.iter().map(|one| one.at).collect();
    times.sort_unstable();
    let longest = |(kill, next): (&i64, &i64)| {
        let around = |pair: &&[i64]| pair[1] > *kill && pair[1] <= *next && pair[0] < kill + AROUND;
        times.windows(2).filter(around).map(|pair| pair[1] - pair[0]).max()
    };
    let next = kills.iter().skip(1).chain([&i64::MAX]);
    kills.iter().zip(next).filter_map(longest).map(|gap| gap as f64 / 1e6).collect()
}

/// How many writes are not where they were acknowledged to be.
fn lost(written: &[Written], seen: &Seen) -> usize {
    let there: HashMap<u64, (&str, u64)> =
        seen.changes.iter().map(|(revision, key, value)| (*revision, (key.as_str(), *value))).collect();
    written.iter().filter(|one| there.get(&one.revision) != Some(&(one.key.as_str(), one.value))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(revision: u64, ms: i64) -> Written {
        Written { key: "a".into(), value: revision, revision, at: ms * 1_000_000 }
    }

    #[test]
    fn a_gap_is_the_longest_pause_around_a_kill() {
        let written: Vec<_> = [0, 10, 20, 30, 900, 910, 9000].iter().zip(1..).map(|(ms, r)| write(r, *ms)).collect();
        assert_eq!(gaps(&written[..6], &[25_000_000]), [870.0]);
        // What belongs to the next kill is not this one's.
        assert_eq!(gaps(&written, &[25_000_000, 905_000_000]), [870.0, 8090.0]);
    }

    #[test]
    fn a_write_that_is_not_seen_as_acknowledged_is_lost() {
        let seen = Seen { changes: vec![(1, "a".into(), 1), (2, "a".into(), 7)], ..Seen::default() };
        assert_eq!(lost(&[write(1, 0)], &seen), 0);
        assert_eq!(lost(&[write(1, 0), write(2, 0), write(3, 0)], &seen), 2);
    }
}
