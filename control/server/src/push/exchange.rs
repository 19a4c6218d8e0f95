//! Responses and their answers, for one type of one stream: which response is unanswered, and what the client did not
//! take.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use weft_wire::{
    discovery::Status,
    prost::Message,
    resource::{REJECTED, Rejected},
};

/// How many rejections are kept one by one.
pub(super) const REJECTIONS: usize = 256;
/// Others do not wait longer for an answer to what should come first.
const PATIENCE: Duration = Duration::from_secs(5);

/// A resource that a client did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// Its name.
    pub name: Arc<str>,
    /// The version that was not taken.
    pub version: Arc<str>,
    /// Why not.
    pub reason: Arc<str>,
    /// When the client said so, in milliseconds since 1970.
    pub at: u64,
    /// The client names what it does not take. Such a client says with an ACK that everything is in force.
    #[serde(skip)]
    pub named: bool,
}

/// What a request says about a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing, or nothing new.
    None,
    /// It was taken.
    Ack,
    /// These were not taken; new are those that were not said before.
    Nack { new: Vec<Rejection> },
}

/// The last response.
#[derive(Debug)]
struct Sent {
    nonce: u64,
    revision: u64,
    /// What was in it, as many as rejections are kept.
    contents: Vec<(Arc<str>, Arc<str>)>,
    count: usize,
    at: Instant,
    answer: Option<Answered>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Ack,
    Nack,
}

/// Responses and answers of one type.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    last: Option<Sent>,
    rejections: Vec<Rejection>,
    unnamed: usize,
    acknowledged: u64,
    answered: u64,
    sent: u64,
}

/// When it is, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub instant: Instant,
    /// In milliseconds since 1970, for people.
    pub unix_ms: u64,
}

impl Exchange {
    /// Is a response unanswered?
    pub(super) fn waiting(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.answer.is_none())
    }

    /// Is a response unanswered that others should wait for?
    pub(super) fn holds_back(&self, now: Instant) -> bool {
        self.last.as_ref().is_some_and(|last| last.answer.is_none() && now.duration_since(last.at) < PATIENCE)
    }

    /// The revision that the last response leads to.
    pub(super) fn sent_revision(&self) -> u64 {
        self.sent
    }

    /// The revision that the last acknowledged response leads to.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The revision up to which everything was answered, with yes or no.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// What the client does not have for its own reasons, and how many more that are not listed.
    pub(super) fn rejections(&self) -> (&[Rejection], usize) {
        (&self.rejections, self.unnamed)
    }

    /// A response goes out.
    pub(super) fn sent<'c>(
        &mut self,
        nonce: u64,
        revision: u64,
        contents: impl ExactSizeIterator<Item = (&'c Arc<str>, &'c Arc<str>)>,
        now: Now,
    ) {
        let count = contents.len();
        let contents = contents.take(REJECTIONS).map(|(name, version)| (name.clone(), version.clone())).collect();
        self.sent = revision;
        self.last = Some(Sent { nonce, revision, contents, count, at: now.instant, answer: None });
    }

    /// A removed resource cannot be rejected any more.
    pub(super) fn removed(&mut self, name: &str) {
        self.rejections.retain(|rejection| &*rejection.name != name);
    }

    /// A request carries `nonce`, and perhaps an error. `is_ack` is what it means without one. `version_of` knows what
    /// was sent.
    pub(super) fn answer(
        &mut self,
        nonce: &str,
        error: Option<&Status>,
        is_ack: bool,
        now: Now,
        version_of: impl Fn(&str) -> Option<Arc<str>>,
    ) -> Answer {
        let nonce: Option<u64> = nonce.parse().ok();
        let Some(last) = self.last.as_mut().filter(|last| Some(last.nonce) == nonce) else { return Answer::None };
        match error {
            None if !is_ack || last.answer == Some(Answered::Ack) => Answer::None,
            None => {
                last.answer = Some(Answered::Ack);
                let contents = std::mem::take(&mut last.contents);
                (self.acknowledged, self.answered) = (last.revision, last.revision);
                self.unnamed = 0;
                self.rejections
                    .retain(|rejection| !rejection.named && !contents.iter().any(|(name, _)| *name == rejection.name));
                if !self.rejections.is_empty() {
                    // For a late answer.
                    last.contents = contents;
                }
                Answer::Ack
            }
            Some(error) => {
                last.answer = Some(Answered::Nack);
                self.answered = last.revision;
                let named = named(error);
                let found: Vec<Rejection> = if named.is_empty() {
                    let reason: Arc<str> = error.message.as_str().into();
                    let refused = |(name, version): &(Arc<str>, Arc<str>)| Rejection {
                        name: name.clone(),
                        version: version.clone(),
                        reason: reason.clone(),
                        at: now.unix_ms,
                        named: false,
                    };
                    self.unnamed = last.count.saturating_sub(last.contents.len());
                    // Nothing was in it, or it was acknowledged before.
                    let all = [("*".into(), "".into())];
                    let contents = if last.contents.is_empty() { &all[..] } else { &last.contents[..] };
                    contents.iter().map(refused).collect()
                } else {
                    self.unnamed = named.len().saturating_sub(REJECTIONS);
                    let refused = |rejected: Rejected| Rejection {
                        version: version_of(&rejected.name).unwrap_or_default(),
                        name: rejected.name.into(),
                        reason: rejected.reason.into(),
                        at: now.unix_ms,
                        named: true,
                    };
                    named.into_iter().take(REJECTIONS).map(refused).collect()
                };
                Answer::Nack { new: self.take(found) }
            }
        }
    }

    /// Rejections as the client now has them; those that are new.
    fn take(&mut self, mut found: Vec<Rejection>) -> Vec<Rejection> {
        let before = std::mem::take(&mut self.rejections);
        let mut new = Vec::new();
        for rejection in &mut found {
            let same = before.iter().find(|old| {
                old.name == rejection.name && old.version == rejection.version && old.reason == rejection.reason
            });
            match same {
                Some(same) => rejection.at = same.at,
                None => new.push(rejection.clone()),
            }
        }
        // Those that the client named before and does not name now are in force; of others nothing is known.
        let kept = before.into_iter().filter(|old| !old.named && !found.iter().any(|new| new.name == old.name));
        let kept: Vec<Rejection> = kept.collect();
        self.rejections = found;
        self.rejections.extend(kept);
        self.rejections.truncate(REJECTIONS);
        new
    }
}

/// The details of a NACK, each resource once.
fn named(error: &Status) -> Vec<Rejected> {
    let details = error.details.iter().filter(|detail| detail.type_url == REJECTED);
    let mut names = HashSet::new();
    let rejected = details.filter_map(|detail| Rejected::decode(detail.value.clone()).ok());
    rejected.filter(|rejected| names.insert(rejected.name.clone())).collect()
}
