//! Rate limits: which request is admitted, and what its client is told of its budget.
//!
//! A [`RateLimits`] is the `rateLimit` list of one policy target, and all workers share it. A request is admitted when
//! every limit of the list admits it, and only then charged to any. A limit whose key the request lacks does not apply to
//! it: it is neither asked nor charged, and its client is not told of it.

mod gate;
mod key;
mod ledger;
mod store;
mod text;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use governor::Quota;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use weft_model::{config::RateLimit, duration};

pub use gate::{CircuitView, percent};
pub use key::Key;
use ledger::{Budgets, Ledger};
pub use store::CAPACITY;
use store::Store;

static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static STANDING: HeaderName = HeaderName::from_static("ratelimit");

/// One value per limit; lists longer than this are rare.
type Each<T> = SmallVec<[T; 4]>;

/// The limits of one policy target, and what has been used of them.
#[derive(Debug)]
pub struct RateLimits {
    limits: Box<[Limit]>,
    /// `RateLimit-Policy`, the same for everybody.
    policy: HeaderValue,
    /// Most bytes that `RateLimit` can have.
    longest: usize,
    /// Shared with the limits of the same target in other snapshots: while workers change over, both count.
    ledger: Arc<Ledger>,
}

/// One entry of the list.
#[derive(Debug)]
struct Limit {
    name: Arc<str>,
    /// What comes before the first number in `RateLimit`: `"shop.1";r=`.
    label: String,
    written: RateLimit,
    key: Key,
    /// As a refusal describes it.
    summary: String,
    /// With all of it in force.
    quota: Quota,
    /// Nanoseconds in which an empty budget fills up.
    longest: u64,
    /// Which budgets of the ledger it uses.
    position: usize,
    /// That of the budgets: keys are hashed before the ledger is locked.
    seed: RandomState,
}

/// What a client is told of its budgets.
#[derive(Debug, Clone)]
pub struct Standing {
    policy: HeaderValue,
    /// Of the limits that apply to the request; `None` when none does.
    left: Option<HeaderValue>,
}

/// A request that a limit refuses.
#[derive(Debug)]
pub struct Exceeded {
    /// The limit that makes it wait longest.
    pub limit: Arc<str>,
    /// What that limit is: `shop.2 (50 per 1s, burst 100, key header x-user)`.
    pub summary: String,
    /// When the request would be admitted, if nobody else comes first.
    pub retry_after: Duration,
    /// What is left of all that apply.
    pub standing: Standing,
}

/// What a limit would say to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek {
    /// Name of the limit.
    pub name: Arc<str>,
    /// What it is.
    pub summary: String,
    /// Whether it applies at all: the request has what its key goes by.
    pub applies: bool,
    /// Requests that it would admit at once; zero if it does not apply.
    pub remaining: u32,
    /// How long the request would have to wait; zero if it would be admitted.
    pub wait: Duration,
}

/// A limit as the admin port shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Name of the limit.
    pub name: Arc<str>,
    /// What it says.
    pub written: RateLimit,
    /// Who shares a budget.
    pub key: Key,
    /// Share of it that is in force, in percent.
    pub percent: u32,
    /// Keys that it tracks.
    pub keys: usize,
    /// Requests that it would admit at once, if one budget is for everybody.
    pub remaining: Option<u32>,
    /// Requests refused.
    pub refused: u64,
}

impl RateLimits {
    /// The limits of a target. `policy` is the name of the document that they are written in.
    ///
    /// Those of the same target in the snapshot before lend what they know: a limit goes on counting where the one with
    /// the same key was, at the same position if there are several.
    pub fn new(policy: &str, limits: &[RateLimit], before: Option<&Self>, now: Instant) -> Self {
        let ledger = before.map_or_else(|| Arc::new(Ledger::new(now)), |before| before.ledger.clone());
        let mut taken = Each::<usize>::new();
        let mut state = ledger.lock();
        let limits: Box<[Limit]> = limits
            .iter()
            .enumerate()
            .map(|(at, written)| {
                let kept = before.and_then(|before| before.budgets_for(&Key::from(&written.key), at, &taken));
                let position = kept.unwrap_or_else(|| state.place());
                taken.push(position);
                let budgets = &mut state.budgets[position];
                budgets.users += 1;
                Limit::new(policy, at, written, position, budgets.seed.clone())
            })
            .collect();
        drop(state);
        let policy = limits.iter().map(Limit::policy).collect::<Vec<_>>().join(", ");
        // Names of documents are printable.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static(""));
        let longest = limits.iter().map(|limit| limit.label.len() + 2 * text::LONGEST + 5).sum();
        Self { limits, policy, longest, ledger }
    }

    /// Where the limit with this key was counted, unless another one counts there by now.
    fn budgets_for(&self, key: &Key, at: usize, taken: &[usize]) -> Option<usize> {
        let same = |limit: &&Limit| limit.key == *key && !taken.contains(&limit.position);
        let found = self.limits.get(at).filter(same).or_else(|| self.limits.iter().find(same));
        found.map(|limit| limit.position)
    }

    /// Charges a request to all limits that apply to it, or to none.
    ///
    /// `key_of` gives what a request has for a key; a limit does not apply to a request without it. It is not asked for
    /// [`Key::Global`].
    ///
    /// # Errors
    /// When a limit that applies is used up.
    pub fn admit<'r>(
        &self,
        key_of: impl FnMut(&Key) -> Option<&'r [u8]>,
        circuit: CircuitView,
        now: Instant,
    ) -> Result<Standing, Box<Exceeded>> {
        let mut questions = self.questions(key_of, circuit);
        let asked = questions.as_mut_slice();
        let mut state = self.ledger.lock();
        let now = state.advance(self.ledger.nanos(now));
        let (mut worst, mut wait) = (None, 0);
        for (limit, question) in self.limits.iter().zip(asked.iter_mut()).filter(applies) {
            question.ask(limit, &mut state.budgets[limit.position].store, now);
            if question.wait > wait {
                (worst, wait) = (Some(limit), question.wait);
            }
        }
        match worst {
            None => {
                for (limit, question) in self.limits.iter().zip(asked.iter_mut()).filter(applies) {
                    question.charge();
                    state.budgets[limit.position].store.set(question.key, question.tat, now);
                }
            }
            Some(limit) => state.budgets[limit.position].refused += 1,
        }
        drop(state);

        let standing = Standing { policy: self.policy.clone(), left: self.field(asked, now) };
        let Some(Limit { name, summary, .. }) = worst else { return Ok(standing) };
        let retry_after = Duration::from_nanos(wait);
        Err(Box::new(Exceeded { limit: name.clone(), summary: summary.clone(), retry_after, standing }))
    }

    /// What the limits would say to a request, without charging it.
    pub fn peek<'r>(
        &self,
        key_of: impl FnMut(&Key) -> Option<&'r [u8]>,
        circuit: CircuitView,
        now: Instant,
    ) -> Vec<Peek> {
        let mut asked = self.questions(key_of, circuit);
        let mut state = self.ledger.lock();
        let now = state.advance(self.ledger.nanos(now));
        for (limit, question) in self.limits.iter().zip(&mut asked).filter(applies) {
            question.ask(limit, &mut state.budgets[limit.position].store, now);
        }
        drop(state);
        let peek = |(limit, question): (&Limit, &Question)| Peek {
            name: limit.name.clone(),
            summary: limit.summary.clone(),
            applies: question.applies(),
            remaining: question.remaining,
            wait: Duration::from_nanos(question.wait),
        };
        self.limits.iter().zip(&asked).map(peek).collect()
    }

    /// The limits as the admin port shows them.
    pub fn report(&self, circuit: CircuitView, now: Instant) -> Vec<Report> {
        let peeked = self.peek(|_| None, circuit, now);
        let state = self.ledger.lock();
        let report = |(limit, peek): (&Limit, Peek)| {
            let budgets = &state.budgets[limit.position];
            Report {
                name: limit.name.clone(),
                written: limit.written.clone(),
                key: limit.key.clone(),
                percent: percent(&limit.written.on_breaker_open, circuit),
                keys: budgets.store.len(),
                remaining: (limit.key == Key::Global).then_some(peek.remaining),
                refused: budgets.refused,
            }
        };
        self.limits.iter().zip(peeked).map(report).collect()
    }

    /// Gives memory back that keys held which nobody uses any more. Requests do a little of it as they come; this is
    /// for when none come.
    pub fn tidy(&self, now: Instant) {
        let now = self.ledger.nanos(now);
        for limit in &self.limits {
            for _ in 0..Store::STEPS {
                // Locked anew for every step: requests do not wait for all of it.
                self.ledger.lock().budgets[limit.position].store.tidy(now);
            }
        }
    }

    fn questions<'r>(&self, mut key_of: impl FnMut(&Key) -> Option<&'r [u8]>, circuit: CircuitView) -> Each<Question> {
        let mut questions = Each::with_capacity(self.limits.len());
        for limit in &self.limits {
            let percent = percent(&limit.written.on_breaker_open, circuit);
            questions.push(Question { key: limit.hash(&mut key_of), percent, ..Question::default() });
        }
        questions
    }

    /// `"shop.1";r=9;t=1, "shop.2";r=0;t=4`, of the limits that apply.
    fn field(&self, asked: &[Question], now: u64) -> Option<HeaderValue> {
        let (mut short, mut long) = ([0; 256], Vec::new());
        let text: &mut [u8] = if self.longest <= short.len() {
            &mut short
        } else {
            long.resize(self.longest, 0);
            &mut long
        };
        // From the back: numbers end where the next thing begins, and need not be measured first.
        let end = text.len();
        let mut start = end;
        for (limit, question) in self.limits.iter().zip(asked).rev().filter(|(_, question)| question.applies()) {
            if start < end {
                start = text::put(text, start, b", ");
            }
            start = text::decimal(text, start, question.seconds(limit, now));
            start = text::put(text, start, b";t=");
            start = text::decimal(text, start, question.remaining.into());
            start = text::put(text, start, limit.label.as_bytes());
        }
        HeaderValue::from_bytes(&text[start..]).ok().filter(|left| !left.is_empty())
    }
}

impl Drop for RateLimits {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        for limit in &self.limits {
            let budgets = &mut state.budgets[limit.position];
            budgets.users -= 1;
            if budgets.users == 0 {
                *budgets = Budgets::default();
            }
        }
    }
}

impl Limit {
    fn new(policy: &str, at: usize, written: &RateLimit, position: usize, seed: RandomState) -> Self {
        let name = format!("{policy}.{}", at + 1);
        let RateLimit { requests, per, burst, .. } = written;
        let key = Key::from(&written.key);
        let quota = gate::quota(written, 100);
        Self {
            summary: format!("{name} ({requests} per {}, burst {burst}, key {key})", duration::format(*per)),
            label: format!("\"{name}\";r="),
            name: name.into(),
            longest: gate::longest(quota),
            quota,
            written: written.clone(),
            key,
            position,
            seed,
        }
    }

    /// The draft knows whole seconds only. A window that is none is told as the next longer one that is.
    fn policy(&self) -> String {
        let RateLimit { requests, per, .. } = &self.written;
        let seconds = per.as_secs() + u64::from(per.subsec_nanos() > 0);
        let requests = u128::from(*requests) * u128::from(seconds) * 1_000_000_000 / per.as_nanos().max(1);
        format!("\"{}\";q={requests};w={seconds}", self.name)
    }

    /// 0 when the request lacks what the key goes by. The seed keeps clients from finding keys that share a budget with
    /// somebody else's.
    fn hash<'r>(&self, key_of: impl FnOnce(&Key) -> Option<&'r [u8]>) -> u64 {
        match &self.key {
            Key::Global => 1,
            key => key_of(key).map_or(0, |value| self.seed.hash_one(value).max(1)),
        }
    }

    fn quota(&self, percent: u32) -> Quota {
        if percent == 100 { self.quota } else { gate::quota(&self.written, percent) }
    }
}

/// For lists of limits beside what each is asked.
const fn applies((_, question): &(&Limit, &mut Question)) -> bool {
    question.applies()
}

/// One limit is asked about one request. Times are in nanoseconds of the ledger.
#[derive(Debug, Clone, Copy, Default)]
struct Question {
    /// Hash of the key. 0, which in the store marks places that were never used, is no key: the limit does not apply.
    key: u64,
    /// Share of the limit that is in force.
    percent: u32,
    /// Requests that would be admitted at once.
    remaining: u32,
    /// How long the request has to wait; 0: it is admitted.
    wait: u64,
    /// TAT of the key. 0 has passed, as if there were none.
    tat: u64,
    /// TAT of the key if the request is charged to it.
    charged: u64,
}

impl Question {
    const fn applies(&self) -> bool {
        self.key != 0
    }

    fn ask(&mut self, limit: &Limit, store: &mut Store, now: u64) {
        let quota = limit.quota(self.percent);
        let longest = if self.percent == 100 { limit.longest } else { limit.longest.max(gate::longest(quota)) };
        self.tat = store.get(self.key).unwrap_or_default();
        // Charged under a smaller quota than that of today, a budget can be worse than empty: an hour's wait must not go
        // on when the limit has become a thousand a second. What the circuit takes away does not count as smaller, or
        // each change of it would hand out a bit of budget.
        if self.tat > now.saturating_add(longest) {
            self.tat = now.saturating_add(longest);
            store.set(self.key, self.tat, now);
        }
        match gate::ask(quota, self.tat, now) {
            Ok(pass) => (self.charged, self.remaining) = (pass.tat, pass.remaining + 1),
            Err(wait) => self.wait = wait.max(1),
        }
    }

    /// The request is admitted by all.
    const fn charge(&mut self) {
        self.tat = self.charged;
        self.remaining -= 1;
    }

    /// Until there is another request left if there is none, otherwise until the budget is full. Rounded up: who comes
    /// then is admitted.
    fn seconds(&self, limit: &Limit, now: u64) -> u64 {
        let nanos = match self {
            Self { wait: 1.., .. } => self.wait,
            Self { remaining: 0, .. } => gate::ask(limit.quota(self.percent), self.tat, now).err().unwrap_or_default(),
            _ => self.tat.saturating_sub(now),
        };
        nanos.div_ceil(1_000_000_000)
    }
}

impl Standing {
    /// Tells the client. An upstream may have told it of limits of its own: those stay.
    pub fn apply(self, headers: &mut HeaderMap) {
        headers.append(POLICY.clone(), self.policy);
        if let Some(left) = self.left {
            headers.append(STANDING.clone(), left);
        }
    }
}

#[cfg(test)]
mod tests;
