//! Does this member still hear the others? If not, it would serve nodes with what it once knew, while the others go on:
//! better that the nodes go to one of them.

use std::time::{Duration, Instant};

/// Between questions while all is well.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// Between questions otherwise.
pub(super) const AGAIN: Duration = Duration::from_millis(100);
/// After so long without an answer this member is alone: an election takes less.
const LOST: Duration = Duration::from_secs(5);

/// May streams be served?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Not known yet: they wait.
    Starting,
    /// Yes.
    Serving,
    /// No.
    Lost,
}

/// Follows what the questions came to.
#[derive(Debug)]
pub(super) struct Quorum {
    health: Health,
    /// When the first question was asked of those that failed since one was answered.
    failing: Option<Instant>,
}

impl Default for Quorum {
    fn default() -> Self {
        Self { health: Health::Starting, failing: None }
    }
}

impl Quorum {
    /// A question that was asked at `asked` has been answered, or not. When to ask again.
    pub(super) fn asked(&mut self, asked: Instant, answered: bool, now: Instant) -> Duration {
        if answered {
            (self.health, self.failing) = (Health::Serving, None);
            return EVERY;
        }
        let failing = *self.failing.get_or_insert(asked);
        if now.duration_since(failing) >= LOST {
            self.health = Health::Lost;
        }
        AGAIN
    }

    /// May streams be served?
    pub(super) fn health(&self) -> Health {
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_does_not_end_streams_and_a_partition_does() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut quorum = Quorum::default();
        for (asked, answered, now, health, pause) in [
            (0, false, 100, Health::Starting, AGAIN),
            (350, true, 360, Health::Serving, EVERY),
            (2_360, false, 4_360, Health::Serving, AGAIN),
            (4_610, true, 4_700, Health::Serving, EVERY),
            (6_700, false, 8_700, Health::Serving, AGAIN),
            (8_950, false, 10_950, Health::Serving, AGAIN),
            (11_200, false, 11_700, Health::Lost, AGAIN),
            (11_950, false, 12_000, Health::Lost, AGAIN),
            (12_250, true, 12_260, Health::Serving, EVERY),
            (14_260, false, 16_260, Health::Serving, AGAIN),
        ] {
            assert_eq!(quorum.asked(at(asked), answered, at(now)), pause);
            assert_eq!(quorum.health(), health, "at {now}");
        }
    }

    #[test]
    fn a_member_of_no_cluster_does_not_serve() {
        let begin = Instant::now();
        let mut quorum = Quorum::default();
        quorum.asked(begin, false, begin);
        quorum.asked(begin + LOST, false, begin + LOST);
        assert_eq!(quorum.health(), Health::Lost);
    }
}
