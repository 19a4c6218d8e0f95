//! What an exchange tells the breaker of its endpoint. Each attempt that says something about the endpoint is judged
//! once; one that had been taken for a success and then broke off is judged once more, as a failure.

use super::Exchange;
use crate::{
    error::Reason,
    resilience::outcome::{Failure, Outcome},
};

/// What a gRPC client makes of a response without a status.
const UNKNOWN: Failure = Failure::Grpc(2);

impl Exchange {
    /// Tells the endpoint of the current attempt how it ended, or that it failed after all.
    pub fn judge(&mut self, outcome: Outcome) {
        let Some(ticket) = &mut self.holds.endpoint else { return };
        let probe = ticket.take_probe();
        let worker = &self.conn.worker;
        let event = ticket.endpoint().record(outcome, probe, worker.clock.now(), &mut worker.rng.borrow_mut());
        if let Some(event) = event {
            self.record.breaker(event);
        }
    }

    /// The head of the current attempt's response is there, and the response fit for the client. That is the verdict,
    /// unless it is gRPC, whose status comes with the trailers.
    pub fn judge_head(&mut self, status: u16) {
        let failure = match (self.record.is_grpc(), self.record.attempt_grpc_status()) {
            (true, Some(status)) => Failure::of_grpc(status),
            (true, None) if status == 200 => return,
            _ => Failure::of_status(status),
        };
        self.verdict(failure);
    }

    /// The current attempt came to nothing, for this reason.
    pub fn judge_failure(&mut self, reason: Reason) {
        if let Some(failure) = Failure::of_reason(reason) {
            self.verdict(Some(failure));
        }
    }

    fn verdict(&mut self, failure: Option<Failure>) {
        self.undecided = false;
        if !self.endpoint().is_some_and(|endpoint| endpoint.guard().enabled()) {
            return;
        }
        let took = self.record.took(self.conn.worker.clock.now());
        self.judge(Outcome { failure, took });
    }

    /// gRPC: the first message. Later trailers may still tell of a failure.
    pub(super) fn judge_message(&mut self) {
        self.verdict(None);
    }

    /// gRPC: the response ended with neither a message nor a status.
    pub(super) fn judge_silence(&mut self) {
        self.verdict(Some(UNKNOWN));
    }

    /// gRPC: what its trailers say. A success is no news after a message.
    pub(super) fn judge_trailers(&mut self) {
        if !self.record.is_grpc() {
            return;
        }
        let failure = self.record.attempt_grpc_status().and_then(Failure::of_grpc);
        if failure.is_some() || self.undecided {
            self.verdict(failure);
        }
    }
}
