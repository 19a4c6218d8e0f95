//! Recognises a command that has been applied before.
//!
//! A write that times out is *unknown*: it may still be committed. The client repeats it with the same client id and
//! sequence, and gets the recorded outcome instead of a second application.
//!
//! The table is bounded, and must not forget a client that may retry:
//!
//! - Within a client: an outcome is kept until the client says, in a later request, that it is settled. A client with
//!   [`OUTSTANDING`] unsettled requests is refused new ones.
//! - Among clients: one is dropped only when a `Trim` says that nothing it issued is recent, or, when the table is full,
//!   if the longest idle one has issued nothing for [`RETRY_MS`], for which clients promise to give up retrying. If even
//!   that one is active, it is the newcomer that is refused.
//! - And if a client retries after all, it is not applied twice: `floor` is later than anything that a forgotten
//!   client issued, and a request of an unknown client issued before it is answered [`Rejection::Forgotten`]. This
//!   rests on `issued`, which a retry repeats, and not on clocks agreeing: a client whose clock is slow may be refused
//!   without need, but never applied twice.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{Malformed, Reader, Wire, wire};
use crate::types::{ClientId, Outcome, Rejection, RequestId};

/// How many clients are remembered.
pub const CLIENTS: usize = 10_000;
/// How many unsettled requests a client may have.
pub const OUTSTANDING: usize = 256;
/// How long after it issued a request for the first time a client may still retry it, in milliseconds.
pub const RETRY_MS: u64 = 5 * 60 * 1000;

/// What is remembered about the clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dedupe {
    clients: BTreeMap<ClientId, Client>,
    /// The clients by when they last issued something.
    idle: BTreeSet<(u64, ClientId)>,
    floor: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Client {
    /// The floor when it came (again): what it issued before that may be among what was forgotten.
    since: u64,
    issued: u64,
    settled: u64,
    outcomes: BTreeMap<u64, Outcome>,
}

wire!(struct Client { since, issued, settled, outcomes });

impl Dedupe {
    /// The outcome to answer with instead of applying, if there is one.
    pub fn before(&mut self, request: &RequestId) -> Option<Outcome> {
        let Some(client) = self.clients.get_mut(&request.client) else {
            return self.admit(request).err().map(Outcome::Rejected);
        };
        if let Some(outcome) = client.outcomes.get(&request.sequence) {
            return Some(outcome.clone());
        }
        if request.sequence < client.settled {
            return Some(Outcome::Rejected(Rejection::Settled));
        }
        if request.issued < client.since {
            return Some(Outcome::Rejected(Rejection::Forgotten));
        }
        if request.settled > client.settled {
            client.settled = request.settled;
            client.outcomes = client.outcomes.split_off(&request.settled);
        }
        if client.outcomes.len() >= OUTSTANDING {
            return Some(Outcome::Rejected(Rejection::TooManyOutstanding));
        }
        None
    }

    /// Records the outcome of a request that [`Self::before`] let through.
    pub fn after(&mut self, request: &RequestId, outcome: Outcome) {
        let floor = self.floor;
        let client = self.clients.entry(request.client).or_insert_with(|| Client { since: floor, ..Client::default() });
        self.idle.remove(&(client.issued, request.client));
        client.issued = client.issued.max(request.issued);
        client.settled = client.settled.max(request.settled);
        client.outcomes.insert(request.sequence, outcome);
        self.idle.insert((client.issued, request.client));
    }

    /// Forgets the clients that issued nothing at or after `before`.
    pub fn trim(&mut self, before: u64) {
        while let Some(&(issued, client)) = self.idle.first() {
            if issued >= before {
                break;
            }
            self.forget(issued, client);
        }
    }

    /// Would [`Self::trim`] forget anybody?
    pub fn would_trim(&self, before: u64) -> bool {
        self.idle.first().is_some_and(|&(issued, _)| issued < before)
    }

    /// How many clients are remembered.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    fn admit(&mut self, request: &RequestId) -> Result<(), Rejection> {
        if request.issued < self.floor {
            return Err(Rejection::Forgotten);
        }
        if self.clients.len() < CLIENTS {
            return Ok(());
        }
        match self.idle.first() {
            Some(&(issued, client)) if request.issued.saturating_sub(issued) > RETRY_MS => {
                self.forget(issued, client);
                Ok(())
            }
            _ => Err(Rejection::TooManyClients),
        }
    }

    fn forget(&mut self, issued: u64, client: ClientId) {
        self.idle.remove(&(issued, client));
        self.clients.remove(&client);
        self.floor = self.floor.max(issued.saturating_add(1));
    }
}

impl Wire for Dedupe {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.floor.write_to(to);
        self.clients.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let floor = u64::read_from(from)?;
        let clients = BTreeMap::<ClientId, Client>::read_from(from)?;
        let idle = clients.iter().map(|(id, client)| (client.issued, *id)).collect();
        Ok(Self { clients, idle, floor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    fn request(client: u128, sequence: u64, settled: u64, issued: u64) -> RequestId {
        RequestId { client: ClientId(client), sequence, settled, issued }
    }

    fn done(revision: u64) -> Outcome {
        Outcome::Done { revision: Revision(revision), changed: 1 }
    }

    /// Applies a request as the state machine does; true when it was let through.
    fn apply(table: &mut Dedupe, request: RequestId, revision: u64) -> Result<(), Outcome> {
        match table.before(&request) {
            Some(outcome) => Err(outcome),
            None => {
                table.after(&request, done(revision));
                Ok(())
            }
        }
    }

    #[test]
    fn a_retry_gets_the_recorded_outcome_also_out_of_order() {
        let mut table = Dedupe::default();
        assert_eq!(apply(&mut table, request(1, 2, 0, 10), 1), Ok(()));
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 2), Ok(()));
        assert_eq!(apply(&mut table, request(1, 2, 0, 10), 3), Err(done(1)));
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 4), Err(done(2)));
    }

    #[test]
    fn settled_outcomes_are_dropped_and_never_applied_again() {
        let mut table = Dedupe::default();
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 1), Ok(()));
        assert_eq!(apply(&mut table, request(1, 2, 2, 11), 2), Ok(()));
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 3), Err(Outcome::Rejected(Rejection::Settled)));
    }

    #[test]
    fn a_client_that_settles_nothing_is_refused_and_recovers() {
        let mut table = Dedupe::default();
        for sequence in 0..OUTSTANDING as u64 {
            assert_eq!(apply(&mut table, request(1, sequence, 0, 10), sequence), Ok(()));
        }
        let refused = Err(Outcome::Rejected(Rejection::TooManyOutstanding));
        assert_eq!(apply(&mut table, request(1, 900, 0, 10), 0), refused);
        assert_eq!(apply(&mut table, request(1, 900, 100, 10), 0), Ok(()));
    }

    #[test]
    fn a_full_table_refuses_newcomers_rather_than_forget_a_client_that_may_retry() {
        let mut table = Dedupe::default();
        for client in 0..CLIENTS as u128 {
            assert_eq!(apply(&mut table, request(client, 1, 0, 1000 + client as u64), 1), Ok(()));
        }
        let newcomer = u128::MAX;
        let refused = Err(Outcome::Rejected(Rejection::TooManyClients));
        assert_eq!(apply(&mut table, request(newcomer, 1, 0, 1000 + RETRY_MS), 2), refused);
        assert_eq!(apply(&mut table, request(newcomer, 1, 0, 1001 + RETRY_MS), 2), Ok(()));
        assert_eq!(table.clients(), CLIENTS);
        // Client 0 made room. It breaks its promise and retries: it learns that nobody knows, and nothing is applied.
        assert_eq!(apply(&mut table, request(0, 1, 0, 1000), 3), Err(Outcome::Rejected(Rejection::Forgotten)));
        // The others are as safe as before.
        assert_eq!(apply(&mut table, request(1, 1, 0, 1001), 3), Err(done(1)));
    }

    #[test]
    fn a_retry_after_a_trim_is_refused_and_a_new_client_is_not() {
        let mut table = Dedupe::default();
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 1), Ok(()));
        assert_eq!(apply(&mut table, request(2, 1, 0, 20), 2), Ok(()));
        table.trim(20);
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 3), Err(Outcome::Rejected(Rejection::Forgotten)));
        assert_eq!(apply(&mut table, request(2, 1, 0, 20), 3), Err(done(2)));
        assert_eq!(apply(&mut table, request(3, 1, 0, 11), 3), Ok(()));
        // Back with something new, its old request is still not taken for new.
        assert_eq!(apply(&mut table, request(1, 2, 0, 30), 4), Ok(()));
        assert_eq!(apply(&mut table, request(1, 1, 0, 10), 5), Err(Outcome::Rejected(Rejection::Forgotten)));
        assert_eq!(Dedupe::decode(&table.encode()), Ok(table));
    }
}
