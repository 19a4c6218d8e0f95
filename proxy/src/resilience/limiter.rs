//! Rate limits: which request is admitted, and what its client is told of its budget.
//!
//! A [`RateLimits`] is the `rateLimit` list of one policy target, and all workers share it. A request is admitted when
//! every limit of the list admits it, and only then charged to any.

mod gate;
mod store;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use governor::Quota;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use weft_model::config::{RateKey, RateLimit};

pub use gate::{CircuitView, percent};
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
    /// Shared with the limits of the same target in other snapshots: while workers change over, both count.
    ledger: Arc<Ledger>,
}

/// One entry of the list.
#[derive(Debug)]
struct Limit {
    name: Arc<str>,
    written: RateLimit,
    /// As a refusal describes it.
    summary: String,
    /// With all of it in force.
    quota: Quota,
    /// Which budgets of the ledger it uses.
    position: usize,
    /// That of the budgets: keys are hashed before the ledger is locked.
    seed: RandomState,
}

/// What has been used. One lock for all limits of a list, because they are charged together or not at all.
#[derive(Debug)]
struct Ledger {
    /// TATs count from here, whatever happens to the quotas.
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Latest time that anybody asked at. Workers read their clocks at different moments, and time must not go back.
    latest: u64,
    /// Questions so far, to tidy up now and then.
    asked: u64,
    budgets: Vec<Budgets>,
}

/// The budgets of one limit, by key.
#[derive(Debug)]
struct Budgets {
    /// Limits that use it, in all snapshots that are alive. Nobody: the place is free.
    users: usize,
    seed: RandomState,
    store: Store,
    refused: u64,
}

/// What a client is told of its budgets.
#[derive(Debug, Clone)]
pub struct Standing {
    policy: HeaderValue,
    left: HeaderValue,
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
    /// What is left of all of them.
    pub standing: Standing,
}

/// What a limit would say to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek {
    /// Name of the limit.
    pub name: Arc<str>,
    /// What it is.
    pub summary: String,
    /// Requests that it would admit at once.
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
        let ledger = before
            .map_or_else(|| Arc::new(Ledger { start: now, state: Mutex::default() }), |before| before.ledger.clone());
        let mut taken = Each::<usize>::new();
        let mut state = ledger.lock();
        let limits: Box<[Limit]> = limits
            .iter()
            .enumerate()
            .map(|(at, written)| {
                let kept = before.and_then(|before| before.budgets_for(&written.key, at, &taken));
                let position = kept.unwrap_or_else(|| state.place());
                taken.push(position);
                let budgets = &mut state.budgets[position];
                budgets.users += 1;
                Limit::new(format!("{policy}.{}", at + 1), written, position, budgets.seed.clone())
            })
            .collect();
        drop(state);
        let policy = limits.iter().map(Limit::policy).collect::<Vec<_>>().join(", ");
        // Names of documents are printable.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static(""));
        Self { limits, policy, ledger }
    }

    /// Where the limit with this key was counted, unless another one counts there by now.
    fn budgets_for(&self, key: &RateKey, at: usize, taken: &[usize]) -> Option<usize> {
        let same = |limit: &&Limit| limit.written.key == *key && !taken.contains(&limit.position);
        let found = self.limits.get(at).filter(same).or_else(|| self.limits.iter().find(same));
        found.map(|limit| limit.position)
    }

    /// Charges a request to all limits, or to none.
    ///
    /// `key_of` gives what a request has for a key; requests without it share one budget. It is not asked for
    /// [`RateKey::Global`].
    ///
    /// # Errors
    /// When a limit is used up.
    pub fn admit<'r>(
        &self,
        key_of: impl FnMut(&RateKey) -> Option<&'r [u8]>,
        circuit: CircuitView,
        now: Instant,
    ) -> Result<Standing, Box<Exceeded>> {
        let mut asked = self.questions(key_of, circuit);
        let mut state = self.ledger.lock();
        let now = state.advance(self.ledger.nanos(now));
        let mut worst: Option<(usize, Duration)> = None;
        for (at, question) in asked.iter_mut().enumerate() {
            question.ask(&mut state.budgets[question.position].store, now);
            if let Err(wait) = question.answer
                && worst.is_none_or(|(_, longest)| wait > longest)
            {
                worst = Some((at, wait));
            }
        }
        match worst {
            None => {
                for Question { position, key, answer, .. } in &asked {
                    if let Ok(pass) = answer {
                        state.budgets[*position].store.set(*key, pass.tat, now);
                    }
                }
            }
            Some((at, _)) => state.budgets[asked[at].position].refused += 1,
        }
        drop(state);

        let left = asked.iter().map(|question| question.left(worst.is_none(), now));
        let standing = Standing { policy: self.policy.clone(), left: self.field(left) };
        let Some((at, retry_after)) = worst else { return Ok(standing) };
        let Limit { name, summary, .. } = &self.limits[at];
        Err(Box::new(Exceeded { limit: name.clone(), summary: summary.clone(), retry_after, standing }))
    }

    /// What the limits would say to a request, without charging it.
    pub fn peek<'r>(
        &self,
        key_of: impl FnMut(&RateKey) -> Option<&'r [u8]>,
        circuit: CircuitView,
        now: Instant,
    ) -> Vec<Peek> {
        let mut asked = self.questions(key_of, circuit);
        let mut state = self.ledger.lock();
        let now = state.advance(self.ledger.nanos(now));
        for question in &mut asked {
            question.ask(&mut state.budgets[question.position].store, now);
        }
        drop(state);
        let peek = |(limit, question): (&Limit, &Question)| Peek {
            name: limit.name.clone(),
            summary: limit.summary.clone(),
            remaining: question.left(false, now).remaining,
            wait: question.answer.err().unwrap_or_default(),
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
                percent: percent(&limit.written.on_breaker_open, circuit),
                keys: budgets.store.len(),
                remaining: (limit.written.key == RateKey::Global).then_some(peek.remaining),
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

    fn questions<'r>(
        &self,
        mut key_of: impl FnMut(&RateKey) -> Option<&'r [u8]>,
        circuit: CircuitView,
    ) -> Each<Question> {
        let question = |limit: &Limit| Question {
            position: limit.position,
            key: limit.hash(&mut key_of),
            quota: limit.quota(circuit),
            whole: limit.quota,
            before: None,
            answer: Err(Duration::ZERO),
        };
        self.limits.iter().map(question).collect()
    }

    /// `"shop.1";r=9;t=1, "shop.2";r=0;t=4`
    fn field(&self, left: impl Iterator<Item = Left>) -> HeaderValue {
        let mut text = SmallVec::<[u8; 192]>::new();
        for (limit, left) in self.limits.iter().zip(left) {
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            text.push(b'"');
            text.extend_from_slice(limit.name.as_bytes());
            text.extend_from_slice(b"\";r=");
            decimal(&mut text, left.remaining.into());
            text.extend_from_slice(b";t=");
            decimal(&mut text, left.seconds);
        }
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
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
    fn new(name: String, written: &RateLimit, position: usize, seed: RandomState) -> Self {
        let RateLimit { requests, per, burst, key, .. } = written;
        Self {
            summary: format!("{name} ({requests} per {per:?}, burst {burst}, key {})", key_text(key)),
            name: name.into(),
            quota: gate::quota(written, 100),
            written: written.clone(),
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

    /// The seed keeps clients from finding keys that share a budget with somebody else's.
    fn hash<'r>(&self, key_of: impl FnOnce(&RateKey) -> Option<&'r [u8]>) -> u64 {
        match &self.written.key {
            RateKey::Global => 1,
            // 0 is what places are filled with that were never used.
            key => self.seed.hash_one(key_of(key)).max(1),
        }
    }

    fn quota(&self, circuit: CircuitView) -> Quota {
        match percent(&self.written.on_breaker_open, circuit) {
            100 => self.quota,
            percent => gate::quota(&self.written, percent),
        }
    }
}

/// A key as people write it: `global`, `header x-user`.
pub fn key_text(key: &RateKey) -> String {
    match key {
        RateKey::Global => "global".into(),
        RateKey::Header(name) => format!("header {name}"),
        RateKey::Cookie(name) => format!("cookie {name}"),
        RateKey::SourceIp => "sourceIP".into(),
        RateKey::Identity => "identity".into(),
        RateKey::Path => "path".into(),
    }
}

/// One limit is asked about one request.
#[derive(Debug)]
struct Question {
    position: usize,
    key: u64,
    /// In force now.
    quota: Quota,
    /// As written.
    whole: Quota,
    /// TAT before the request.
    before: Option<u64>,
    /// Or how long it has to wait.
    answer: Result<gate::Pass, Duration>,
}

/// What is left of a budget.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// Requests that would be admitted at once.
    remaining: u32,
    /// Until there is another one if there is none, otherwise until the budget is full. Rounded up.
    seconds: u64,
}

impl Question {
    fn ask(&mut self, store: &mut Store, now: u64) {
        self.before = store.get(self.key);
        // Charged under a smaller quota than that of today, a budget can be worse than empty: an hour's wait must not go
        // on when the limit has become a thousand a second. What the circuit takes away does not count as smaller, or
        // each change of it would hand out a bit of budget.
        let worst = gate::empty(self.quota, now).max(gate::empty(self.whole, now));
        if self.before.is_some_and(|tat| tat > worst) {
            self.before = Some(worst);
            store.set(self.key, worst, now);
        }
        self.answer = gate::ask(self.quota, self.before, now);
    }

    fn left(&self, charged: bool, now: u64) -> Left {
        let (tat, remaining) = match self.answer {
            Ok(pass) if charged => (pass.tat, pass.remaining),
            Ok(pass) => (self.before.unwrap_or(now), pass.remaining + 1),
            Err(wait) => return Left { remaining: 0, seconds: seconds(wait) },
        };
        let full = Duration::from_nanos(tat.saturating_sub(now));
        let wait = if remaining > 0 { full } else { gate::ask(self.quota, Some(tat), now).err().unwrap_or(full) };
        Left { remaining, seconds: seconds(wait) }
    }
}

/// Rounded up: who comes then is admitted.
const fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + if duration.subsec_nanos() > 0 { 1 } else { 0 }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl State {
    /// A free place for budgets.
    fn place(&mut self) -> usize {
        self.budgets.iter().position(|budgets| budgets.users == 0).unwrap_or_else(|| {
            self.budgets.push(Budgets::default());
            self.budgets.len() - 1
        })
    }

    /// The time of a question, and a little housekeeping.
    fn advance(&mut self, now: u64) -> u64 {
        /// A store of the largest size costs a microsecond per step; spread over so many, it is lost in the noise.
        const EVERY: u64 = 64;
        self.latest = self.latest.max(now);
        self.asked += 1;
        if self.asked.is_multiple_of(EVERY) {
            let at = (self.asked / EVERY) as usize % self.budgets.len().max(1);
            if let Some(budgets) = self.budgets.get_mut(at) {
                budgets.store.tidy(self.latest);
            }
        }
        self.latest
    }
}

impl Default for Budgets {
    fn default() -> Self {
        Self { users: 0, seed: RandomState::new(), store: Store::default(), refused: 0 }
    }
}

impl Standing {
    /// Tells the client. An upstream may have told it of limits of its own: those stay.
    pub fn apply(self, headers: &mut HeaderMap) {
        headers.append(POLICY.clone(), self.policy);
        headers.append(STANDING.clone(), self.left);
    }
}

/// Writes a number: `write!` costs several times as much.
fn decimal(text: &mut SmallVec<[u8; 192]>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests;
