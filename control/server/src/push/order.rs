//! All types of one stream: which of them sends next, and what waits for what.
//!
//! Types send in the order of the logs. One waits for those that it should come after ([`TypeSpec::after`]), until they
//! have nothing pending and the client has answered; what is gone waits for those that might still refer to it
//! ([`TypeSpec::removed_after`]). So a stream makes before it breaks: clusters, endpoints, listeners, routes, and then
//! the removal of clusters.
//!
//! [`TypeSpec::after`]: super::log::TypeSpec::after
//! [`TypeSpec::removed_after`]: super::log::TypeSpec::removed_after

use std::{collections::BTreeMap, time::Instant};

use super::{
    exchange::Now,
    log::Log,
    protocol::Protocol,
    subscription::{Batch, TooFarBehind},
};

/// The types that a client asks for, by their places among the logs.
#[derive(Debug)]
pub(super) struct Types<P> {
    asked: BTreeMap<usize, P>,
    nonce: u64,
}

/// What a look at the logs came to.
#[derive(Debug)]
pub(super) enum Next {
    /// A response of the type at this place.
    Send { at: usize, batch: Batch, nonce: u64 },
    /// Nothing until something happens.
    Wait,
    /// Nothing, but something is held back for a while.
    Again,
}

impl<P> Default for Types<P> {
    fn default() -> Self {
        Self { asked: BTreeMap::new(), nonce: 0 }
    }
}

impl<P: Protocol> Types<P> {
    /// The type at `at`; the client asks for it from now on.
    pub(super) fn ask(&mut self, at: usize) -> &mut P {
        self.asked.entry(at).or_default()
    }

    /// All that are asked for.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &P)> {
        self.asked.iter().map(|(at, asked)| (*at, asked))
    }

    /// A bit for each type of which a change matters: not those whose client has a response to answer.
    pub(super) fn open(&self) -> u64 {
        self.iter().filter(|(_, asked)| !asked.exchange().waiting()).fold(0, |types, (at, _)| types | 1 << at)
    }

    /// The revision that this member has, if the client has something of a later one.
    pub(super) fn ahead_of(&self, logs: &[Log]) -> Option<u64> {
        let asked = self.iter().filter_map(|(at, asked)| Some((asked, logs.get(at)?)));
        asked.filter(|(asked, log)| asked.ahead(log)).map(|(_, log)| log.revision()).min()
    }

    /// What is to be sent next.
    pub(super) fn next(&mut self, logs: &[Log], now: Now) -> Result<Next, TooFarBehind> {
        // What is gone is for the second round, in which nothing else is left.
        for removals in [false, true] {
            let mut held = false;
            for (at, log) in logs.iter().enumerate() {
                let open = |asked: &P| !asked.exchange().waiting() && !asked.is_settled(log);
                if !self.asked.get(&at).is_some_and(open) {
                    continue;
                }
                let spec = log.spec();
                if self.pending(logs, spec.after, now.instant) {
                    held = true;
                    continue;
                }
                let late = !spec.removed_after.is_empty();
                let hold = late && (!removals || self.pending(logs, spec.removed_after, now.instant));
                held |= hold;
                if let Some(batch) = self.ask(at).next(log, hold)? {
                    return Ok(self.send(logs, at, batch, now));
                }
            }
            match (held, removals) {
                (false, _) => break,
                (true, true) => return Ok(Next::Again),
                (true, false) => {}
            }
        }
        Ok(Next::Wait)
    }

    fn send(&mut self, logs: &[Log], at: usize, batch: Batch, now: Now) -> Next {
        self.nonce += 1;
        let nonce = self.nonce;
        let contents = batch.contents.iter().map(|(name, version)| (name, version));
        self.ask(at).exchange_mut().sent(nonce, batch.revision, contents, now);
        let with = logs.get(at).and_then(|log| log.spec().with);
        let with = with.and_then(|url| logs.iter().position(|log| log.spec().url == url));
        if let Some(other) = with.and_then(|with| self.asked.get_mut(&with)) {
            batch.with.iter().for_each(|name| other.resend(name));
        }
        Next::Send { at, batch, nonce }
    }

    /// Does the client lack something of these types?
    fn pending(&self, logs: &[Log], urls: &[&str], now: Instant) -> bool {
        let of = |(at, log): (usize, &Log)| {
            let asked = self.asked.get(&at).filter(|_| urls.contains(&log.spec().url));
            asked.is_some_and(|asked| log.ready() && (asked.has_changes(log) || asked.exchange().holds_back(now)))
        };
        !urls.is_empty() && logs.iter().enumerate().any(of)
    }
}

#[cfg(test)]
mod tests;
