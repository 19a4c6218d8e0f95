//! Whether a failed attempt is repeated, and when: a policy's `retry` and a rule's, compiled into one [`RetryPlan`].
//!
//! The plan looks at one request. What requests share, the budget and `connectionPool.maxRetries`, is asked by the
//! caller once [`RetryPlan::decide`] says [`Decision::Retry`].

use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use weft_model::config::{Backoff, Jitter, Retry, RetryOn, RuleRetry};

use super::backoff;
use crate::{error::Reason, telemetry::names, upstream::send::is_idempotent};

/// Attempts after the first, where a rule's `retry` does not say.
const ATTEMPTS: u32 = 2;
/// From a rule's `backoff`, which is the least wait, to the longest.
const STRETCH: u32 = 10;

/// What is repeated, how often and when.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPlan {
    /// Attempts after the first; never 0.
    pub attempts: u32,
    /// Bodies up to this size are kept, in bytes.
    pub max_body_bytes: u64,
    /// Prefer an endpoint that has not been tried.
    pub avoid_previous_hosts: bool,
    statuses: Statuses,
    /// Bit n: gRPC status n.
    grpc: u32,
    on: Conditions,
    methods: Box<[Method]>,
    unsafe_methods: bool,
    backoff: Backoff,
    /// A rule's `backoff`: no wait is shorter.
    least: Duration,
}

/// Conditions of `retryOn` that are no status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Conditions {
    connect_failure: bool,
    refused_stream: bool,
    reset_before_request: bool,
    reset: bool,
    per_try_timeout: bool,
}

/// A set of status codes below 640.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Statuses([u64; 10]);

impl Statuses {
    fn insert(&mut self, status: u16) {
        if let Some(word) = self.0.get_mut(usize::from(status / 64)) {
            *word |= 1 << (status % 64);
        }
    }

    fn contains(&self, status: u16) -> bool {
        self.0.get(usize::from(status / 64)).is_some_and(|word| word & 1 << (status % 64) != 0)
    }

    /// Runs of codes: `503`, `500-599`.
    fn describe(&self) -> Vec<String> {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for status in (100..640).filter(|status| self.contains(*status)) {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == status => *last = status,
                _ => runs.push((status, status)),
            }
        }
        let text = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
        runs.into_iter().map(text).collect()
    }
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failed {
    /// The upstream's HTTP status, if it answered.
    pub status: Option<u16>,
    /// Its gRPC status, in headers or trailers.
    pub grpc: Option<u8>,
    /// Why there is no answer.
    pub reason: Option<Reason>,
    /// No endpoint has seen any of the request.
    pub unprocessed: bool,
    /// The request had been sent completely.
    pub sent: bool,
    /// The request can be sent again: it came back, or its body was kept.
    pub repeatable: bool,
    /// The upstream's `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The time-out was that of the attempt (`perTryTimeout`, `backendRequest`), and not that of the request.
    pub per_try_timeout: bool,
}

/// What one request has used of its plan.
#[derive(Debug, Clone, Copy)]
pub struct RetryState {
    /// Retries so far.
    pub retries: u32,
    /// The method may be repeated: see [`RetryPlan::allows_method`].
    method: bool,
    /// The wait before the last retry.
    previous: Duration,
}

impl RetryState {
    /// A request before its first failure; `method` is what [`RetryPlan::allows_method`] said.
    pub const fn new(method: bool) -> Self {
        Self { retries: 0, method, previous: Duration::ZERO }
    }
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Wait, then send it again.
    Retry {
        /// How long.
        after: Duration,
    },
    /// The client gets what there is.
    Stop(Why),
}

/// Why an attempt is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// `retryOn` does not list this.
    NotRetryable,
    /// An endpoint has seen it, and its method is not known to be safe to repeat.
    Method,
    /// `attempts` are used up.
    AttemptsUsed,
    /// The body was larger than `maxBodyBytes`, or cannot be kept.
    BodyTooLarge,
    /// The upstream wants to be left alone for longer than `backoff.max`, and there is no other endpoint.
    RetryAfter,
    /// The request's deadline would be over before the next attempt.
    Deadline,
}

/// Why a request may be sent again although an endpoint may have processed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// Its method is idempotent.
    Idempotent,
    /// `unsafeMethods` is set.
    UnsafeMethods,
    /// It is gRPC, and `retryOn` has a `grpc:` condition.
    Grpc,
    /// `methods` has its method.
    Listed,
    /// It has an `Idempotency-Key`.
    Key,
}

impl RetryPlan {
    /// The plan for requests of a rule under a policy; `None` when nothing is retried.
    ///
    /// What a rule says wins over the policy: its `attempts`; its `codes` over all statuses of `retryOn`; its `backoff`
    /// over `backoff.base`, and as the least wait (Gateway API, GEP-1731). A rule alone also retries what no endpoint has
    /// processed.
    pub fn compile(policy: Option<&Retry>, rule: Option<&RuleRetry>) -> Option<Self> {
        let alone;
        let policy = match (policy, rule) {
            (Some(policy), _) => policy,
            (None, Some(rule)) => {
                alone = rule_alone(rule);
                &alone
            }
            (None, None) => return None,
        };
        let attempts = rule.and_then(|rule| rule.attempts).unwrap_or(policy.attempts);
        if attempts == 0 {
            return None;
        }
        let (mut statuses, mut grpc, mut on) = (Statuses::default(), 0, Conditions::default());
        for condition in &policy.retry_on {
            match condition {
                RetryOn::ConnectFailure => on.connect_failure = true,
                RetryOn::RefusedStream => on.refused_stream = true,
                RetryOn::ResetBeforeRequest => on.reset_before_request = true,
                RetryOn::Reset => on.reset = true,
                RetryOn::PerTryTimeout => on.per_try_timeout = true,
                RetryOn::Status(status) => statuses.insert(*status),
                RetryOn::Grpc(status) => grpc |= 1u32.checked_shl(u32::from(*status)).unwrap_or(0),
            }
        }
        if let Some(rule) = rule.filter(|rule| !rule.codes.is_empty()) {
            statuses = Statuses::default();
            rule.codes.iter().for_each(|status| statuses.insert(*status));
        }
        // Envoy's `5xx`, whose word it is, includes an upstream that does not answer at all.
        if (500..600).all(|status| statuses.contains(status)) {
            on = Conditions { connect_failure: true, refused_stream: true, reset: true, ..on };
        }
        let mut backoff = policy.backoff.clone();
        let least = rule.and_then(|rule| rule.backoff).unwrap_or_default();
        if !least.is_zero() {
            backoff.base = least;
            if backoff.max <= least {
                backoff.max = least.saturating_mul(STRETCH);
            }
        }
        Some(Self {
            attempts,
            max_body_bytes: policy.max_body_bytes,
            avoid_previous_hosts: policy.avoid_previous_hosts,
            statuses,
            grpc,
            on,
            methods: policy.methods.iter().filter_map(|method| Method::from_bytes(method.as_bytes()).ok()).collect(),
            unsafe_methods: policy.unsafe_methods,
            backoff,
            least,
        })
    }

    /// Whether a request that an endpoint may have processed can be sent again.
    ///
    /// Idempotent methods (RFC 9110 §9.2.2), those of `methods`, all with `unsafeMethods`, and requests with an
    /// `Idempotency-Key`. gRPC is always POST: there a `grpc:` condition in `retryOn` is the user's word for it.
    pub fn allows_method(&self, method: &Method, headers: &HeaderMap, grpc: bool) -> bool {
        self.permit(method, headers, grpc).is_some()
    }

    /// Why [`Self::allows_method`]; `None` when it does not.
    pub fn permit(&self, method: &Method, headers: &HeaderMap, grpc: bool) -> Option<Permit> {
        match () {
            () if *method == Method::CONNECT => None,
            () if is_idempotent(method) => Some(Permit::Idempotent),
            () if self.unsafe_methods => Some(Permit::UnsafeMethods),
            () if grpc && self.watches_grpc() => Some(Permit::Grpc),
            () if self.methods.contains(method) => Some(Permit::Listed),
            () if headers.contains_key("idempotency-key") => Some(Permit::Key),
            () => None,
        }
    }

    /// Whether an answer with this status is a failure to retry.
    pub fn retries_status(&self, status: u16) -> bool {
        self.statuses.contains(status)
    }

    /// Whether an answer with this gRPC status is a failure to retry.
    pub const fn retries_grpc(&self, status: u8) -> bool {
        status < 32 && self.grpc & (1 << status) != 0
    }

    /// Whether any gRPC status is retried, so that trailers have to be waited for.
    pub const fn watches_grpc(&self) -> bool {
        self.grpc != 0
    }

    /// Whether an upstream's `Retry-After` is longer than anybody waits here.
    pub fn is_too_long(&self, wanted: Duration) -> bool {
        wanted > self.backoff.max
    }

    /// Whether `retryOn` lists the failure.
    fn lists(&self, failed: &Failed) -> bool {
        if failed.status.is_some_and(|status| self.retries_status(status))
            || failed.grpc.is_some_and(|status| self.retries_grpc(status))
        {
            return true;
        }
        let on = self.on;
        match failed.reason {
            Some(Reason::ConnectFailed) => on.connect_failure || self.retries_status(503),
            Some(Reason::UpstreamReset) if failed.unprocessed => {
                on.refused_stream || on.reset_before_request || on.reset
            }
            Some(Reason::UpstreamReset) => {
                on.reset || (on.reset_before_request && !failed.sent) || self.retries_status(502)
            }
            // What the client would be told is what the list speaks of.
            Some(Reason::BadUpstreamResponse) => on.reset || self.retries_status(502),
            Some(Reason::UpstreamTimeout) if failed.per_try_timeout => on.per_try_timeout || self.retries_status(504),
            _ => false,
        }
    }

    /// Decides what follows a failed attempt, and notes a retry in `state`.
    ///
    /// `deadline` is the end of the whole exchange; `others_untried` says that an endpoint has not been tried yet.
    pub fn decide(
        &self,
        failed: &Failed,
        state: &mut RetryState,
        now: Instant,
        deadline: Option<Instant>,
        others_untried: bool,
        rng: &mut Rng,
    ) -> Decision {
        if !self.lists(failed) {
            return Decision::Stop(Why::NotRetryable);
        }
        if !(failed.unprocessed || state.method) {
            return Decision::Stop(Why::Method);
        }
        if state.retries >= self.attempts {
            return Decision::Stop(Why::AttemptsUsed);
        }
        if !failed.repeatable {
            // Bodies are kept for methods that may be repeated.
            return Decision::Stop(if state.method { Why::BodyTooLarge } else { Why::Method });
        }
        let mut after = self.wait(state, rng);
        match failed.retry_after {
            Some(wanted) if wanted <= self.backoff.max => after = after.max(wanted),
            Some(_) if !others_untried => return Decision::Stop(Why::RetryAfter),
            _ => {}
        }
        if deadline.is_some_and(|deadline| now + after >= deadline) {
            return Decision::Stop(Why::Deadline);
        }
        state.retries += 1;
        state.previous = after;
        Decision::Retry { after }
    }

    fn wait(&self, state: &RetryState, rng: &mut Rng) -> Duration {
        let wait = backoff::wait(&self.backoff, state.retries, state.previous, rng);
        // Drawn on top of a least wait: clients that failed together must not come back together at its end.
        if self.least.is_zero() || self.backoff.jitter == Jitter::None {
            wait
        } else {
            self.least.saturating_add(wait).min(self.backoff.max)
        }
    }

    /// The plan as people read it.
    pub fn describe(&self) -> Value {
        let on = self.on;
        let words = [
            (on.connect_failure, "connect-failure"),
            (on.refused_stream, "refused-stream"),
            (on.reset_before_request, "reset-before-request"),
            (on.reset, "reset"),
            (on.per_try_timeout, "per-try-timeout"),
        ];
        let words = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word.to_owned());
        let grpc =
            (0..32u8).filter(|status| self.retries_grpc(*status)).map(|status| match names::grpc_status(status) {
                Some(name) => format!("grpc:{name}"),
                None => format!("grpc:{status}"),
            });
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        json!({
            "attempts": self.attempts,
            "retry_on": words.chain(self.statuses.describe()).chain(grpc).collect::<Vec<_>>(),
            "methods": if self.unsafe_methods {
                vec!["any"]
            } else {
                ["idempotent", "Idempotency-Key"].into_iter().chain(self.methods.iter().map(Method::as_str)).collect()
            },
            "backoff": {
                "base_ms": millis(self.backoff.base),
                "max_ms": millis(self.backoff.max),
                "least_ms": millis(self.least),
                "jitter": format!("{:?}", self.backoff.jitter),
            },
            "max_body_bytes": self.max_body_bytes,
            "avoid_previous_hosts": self.avoid_previous_hosts,
        })
    }
}

/// What a rule's `retry` means without a policy: its codes, and what no endpoint has processed.
fn rule_alone(rule: &RuleRetry) -> Retry {
    let codes = rule.codes.iter().map(|status| RetryOn::Status(*status));
    Retry {
        attempts: ATTEMPTS,
        retry_on: [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::ResetBeforeRequest]
            .into_iter()
            .chain(codes)
            .collect(),
        methods: Vec::new(),
        unsafe_methods: false,
        per_try_timeout: None,
        backoff: Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250), jitter: Jitter::Full },
        max_body_bytes: 64 << 10,
        avoid_previous_hosts: true,
    }
}

/// Reads `Retry-After` (RFC 9110 §10.2.3): seconds, or a date. A date in the past is no wait; what is neither counts as
/// not said.
pub fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests;
