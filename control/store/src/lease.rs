//! Which leases are alive, as the leader sees it.
//!
//! A keep-alive changes nothing that is replicated: it moves a deadline in the leader's memory. What is replicated is
//! that a lease exists, and its end. A new leader does not know the old one's deadlines, and gives every lease a full
//! time to live; an end that the old leader decided is void in the new one's term, because the state machine compares.
//!
//! If a large share of all agents falls silent at once, it is more likely that *we* are cut off from them than that all
//! of them died, and removing their endpoints would turn a hiccup of the control plane into an outage of the mesh. So
//! such an expiry is held back, for a while.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::types::{Lease, LeaseId};

/// When an expiry is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// The largest share of all leases that may expire at once, in percent.
    pub percent: usize,
    /// As many as this always may.
    pub always: usize,
    /// For how long it is held back at most.
    pub most: Duration,
}

impl Default for Hold {
    fn default() -> Self {
        Self { percent: 30, always: 3, most: Duration::from_secs(300) }
    }
}

/// Why a keep-alive was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// There is no such lease: it was revoked or has expired. The agent has to ask for a new one and register again.
    #[error("there is no such lease")]
    Gone,
    /// It has been granted anew since, to somebody else under the same name or to the same one after a restart.
    #[error("the lease has been granted anew")]
    Superseded,
}

/// Is this grant still the lease's?
///
/// # Errors
/// When another is. A grant that is later than any there is was forgotten: the store was restored from a backup.
pub fn lost(asked: u64, granted: u64) -> Result<(), Lost> {
    match asked.cmp(&granted) {
        Ordering::Equal => Ok(()),
        Ordering::Less => Err(Lost::Superseded),
        Ordering::Greater => Err(Lost::Gone),
    }
}

/// The leases that a leader keeps.
#[derive(Debug, Default)]
pub struct Leases {
    hold: Hold,
    /// The term in which we lead, if we do.
    term: Option<u64>,
    alive: HashMap<LeaseId, Alive>,
    held_since: Option<Instant>,
    held: usize,
}

#[derive(Debug)]
struct Alive {
    generation: u64,
    ttl: Duration,
    until: Instant,
}

impl Alive {
    fn new(now: Instant, lease: &Lease) -> Self {
        let ttl = Duration::from_millis(lease.ttl_ms);
        Self { generation: lease.generation, ttl, until: now + ttl }
    }
}

/// Leases to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The term in which this was decided.
    pub term: u64,
    /// Which, of which grant.
    pub leases: Vec<(LeaseId, u64)>,
}

impl Leases {
    /// None yet.
    pub fn new(hold: Hold) -> Self {
        Self { hold, ..Self::default() }
    }

    /// We lead in `term`, or do not lead. A new term begins with a full time to live for everybody.
    pub fn lead(&mut self, term: Option<u64>) {
        if self.term != term {
            *self = Self { term, ..Self::new(self.hold) };
        }
    }

    /// Do we lead?
    pub fn leads(&self) -> bool {
        self.term.is_some()
    }

    /// Takes over which leases exist; those that are new live from now.
    pub fn sync(&mut self, now: Instant, leases: &BTreeMap<LeaseId, Lease>) {
        self.alive.retain(|id, alive| leases.get(id).is_some_and(|lease| lease.generation == alive.generation));
        for (id, lease) in leases {
            self.alive.entry(id.clone()).or_insert_with(|| Alive::new(now, lease));
        }
    }

    /// As [`Self::sync`], for one lease.
    pub fn sync_one(&mut self, now: Instant, id: &LeaseId, lease: Option<&Lease>) {
        let known = self.alive.get(id).map(|alive| alive.generation);
        if known == lease.map(|lease| lease.generation) {
            return;
        }
        self.alive.remove(id);
        if let Some(lease) = lease {
            self.alive.insert(id.clone(), Alive::new(now, lease));
        }
    }

    /// An agent reports. Returns how long it has until it must again.
    pub fn keep_alive(&mut self, now: Instant, id: &LeaseId, generation: u64) -> Result<Duration, Lost> {
        let alive = self.alive.get_mut(id).ok_or(Lost::Gone)?;
        lost(generation, alive.generation)?;
        alive.until = now + alive.ttl;
        Ok(alive.ttl)
    }

    /// How long a lease lives without another keep-alive.
    pub fn left(&self, now: Instant, id: &LeaseId) -> Option<Duration> {
        Some(self.alive.get(id)?.until.saturating_duration_since(now))
    }

    /// What has to end now, if anything has and it is not held back.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        let term = self.term?;
        let due = self.alive.iter().filter(|(_, alive)| alive.until <= now);
        let mut leases: Vec<_> = due.map(|(id, alive)| (id.clone(), alive.generation)).collect();
        let at_once = self.hold.always.max(self.alive.len() * self.hold.percent / 100);
        if leases.len() <= at_once {
            (self.held_since, self.held) = (None, 0);
        } else {
            let since = *self.held_since.get_or_insert(now);
            if now.duration_since(since) < self.hold.most {
                if self.held == 0 {
                    tracing::warn!(silent = leases.len(), of = self.alive.len(), "held back: too many leases at once");
                }
                self.held = leases.len();
                return None;
            }
            self.held = 0;
        }
        leases.sort();
        (!leases.is_empty()).then_some(Due { term, leases })
    }

    /// How many leases are alive or held.
    pub fn len(&self) -> usize {
        self.alive.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    /// How many are held back.
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn leases(n: usize) -> BTreeMap<LeaseId, Lease> {
        let lease = |n| Lease { generation: n as u64, ttl_ms: TTL.as_millis() as u64, keys: BTreeSet::new() };
        (0..n).map(|n| (id(n), lease(n))).collect()
    }

    fn id(n: usize) -> LeaseId {
        LeaseId::new(&format!("node-{n}"))
    }

    fn leading(n: usize, now: Instant) -> Leases {
        let mut kept = Leases::new(Hold::default());
        kept.lead(Some(1));
        kept.sync(now, &leases(n));
        kept
    }

    #[test]
    fn what_is_kept_alive_stays_and_what_is_silent_ends() {
        let start = Instant::now();
        let mut kept = leading(2, start);
        assert_eq!(kept.keep_alive(start + TTL / 2, &id(0), 0), Ok(TTL));
        assert_eq!(kept.due(start + TTL - Duration::from_millis(1)), None);
        assert_eq!(kept.due(start + TTL), Some(Due { term: 1, leases: vec![(id(1), 1)] }));
        assert_eq!(kept.left(start + TTL, &id(0)), Some(TTL / 2));
        assert_eq!((kept.left(start + 2 * TTL, &id(1)), kept.left(start, &id(2))), (Some(Duration::ZERO), None));
        assert_eq!(kept.keep_alive(start, &id(1), 0), Err(Lost::Superseded));
        assert_eq!(kept.keep_alive(start, &id(0), 7), Err(Lost::Gone), "never granted here");
        assert_eq!(kept.keep_alive(start, &id(9), 0), Err(Lost::Gone));
    }

    #[test]
    fn a_new_leader_gives_everybody_a_full_time_to_live() {
        let start = Instant::now();
        let mut kept = leading(1, start);
        kept.lead(None);
        assert_eq!(kept.due(start + 2 * TTL), None, "who does not lead ends nothing");
        kept.lead(Some(3));
        kept.sync(start + 2 * TTL, &leases(1));
        assert_eq!(kept.due(start + 3 * TTL - Duration::from_millis(1)), None);
        assert_eq!(kept.due(start + 3 * TTL).map(|due| due.term), Some(3));
    }

    #[test]
    fn a_lease_that_is_granted_anew_lives_anew() {
        let start = Instant::now();
        let mut kept = leading(1, start);
        let mut granted = leases(1);
        granted.get_mut(&id(0)).unwrap().generation = 5;
        kept.sync(start + TTL / 2, &granted);
        assert_eq!(kept.due(start + TTL), None);
        assert_eq!(kept.due(start + TTL * 3 / 2).map(|due| due.leases), Some(vec![(id(0), 5)]));
        kept.sync(start + TTL * 2, &BTreeMap::new());
        assert!(kept.is_empty());
    }

    #[test]
    fn silence_of_too_many_is_held_back_for_a_while() {
        let start = Instant::now();
        let mut kept = leading(100, start);
        let silent = |kept: &mut Leases, n: usize, now: Instant| {
            for other in n..100 {
                kept.keep_alive(now, &id(other), other as u64).unwrap();
            }
        };
        silent(&mut kept, 31, start + TTL);
        assert_eq!((kept.due(start + TTL), kept.held()), (None, 31));
        // One of them is heard again.
        kept.keep_alive(start + TTL, &id(0), 0).unwrap();
        assert_eq!(kept.due(start + TTL).unwrap().leases.len(), 30);
        assert_eq!(kept.held(), 0);

        let mut kept = leading(100, start);
        let all = start + TTL;
        assert_eq!(kept.due(all), None);
        assert_eq!(kept.due(all + Hold::default().most - Duration::from_secs(1)), None);
        assert_eq!(kept.due(all + Hold::default().most).unwrap().leases.len(), 100);

        let mut few = leading(3, start);
        assert_eq!(few.due(all).unwrap().leases.len(), 3, "of a few, all may go");
    }
}
