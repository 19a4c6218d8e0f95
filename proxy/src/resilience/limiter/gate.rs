//! What governor is asked, and in which quota.
//!
//! governor does the arithmetic of the generic cell rate algorithm (GCRA). A limiter of its own is four numbers, so one
//! is made on the stack for every question: its state is the TAT of one key, which the caller has looked up and may or
//! may not put back. That is how a request can be asked about without being charged, and how the same keys can be
//! judged by changing quotas.

use std::{cell::Cell, num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};
use weft_model::config::{OnBreakerOpen, RateLimit};

use crate::resilience::nanos;

/// What the circuit breaker of the service says that a request goes to; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CircuitView {
    /// Open.
    Open,
    /// Closed again since so long.
    Recovering(Duration),
    /// Closed, and has been for so long that nobody remembers.
    Steady,
}

/// The share of rate and burst that is in force, in whole percent from 1 to 100: `factor` while the circuit is open,
/// then `recoverPercentPerMinute` more with every minute.
///
/// Never 0: the requests that find out whether the service is well again have to come from somewhere.
pub fn percent(policy: &OnBreakerOpen, circuit: CircuitView) -> u32 {
    let open = policy.factor * 100.0;
    let percent = match circuit {
        // Without floating point: this is nearly always the case.
        CircuitView::Steady => return 100,
        CircuitView::Open => open,
        CircuitView::Recovering(since) => open + policy.recover_percent_per_minute * since.as_secs_f64() / 60.0,
    };
    percent.clamp(1.0, 100.0).round() as u32
}

/// What is left of an unused budget after so long makes no difference to anybody, and governor's nanoseconds do not
/// overflow: 36 years.
const LONGEST: u64 = 1 << 60;

/// The quota of a limit, of which `percent` is in force. Rounded so that it never admits more than was written; the
/// burst is at least 1.
pub fn quota(limit: &RateLimit, percent: u32) -> Quota {
    let burst = u64::from(limit.burst) * u64::from(percent) / 100;
    let burst = NonZeroU32::new(u32::try_from(burst).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
    let interval =
        (limit.per.as_nanos() * 100).div_ceil(u128::from(limit.requests.max(1)) * u128::from(percent.max(1)));
    let longest = LONGEST / u64::from(burst.get());
    let interval = u64::try_from(interval).unwrap_or(u64::MAX).clamp(1, longest);
    // Only zero has no quota.
    let quota = Quota::with_period(Duration::from_nanos(interval)).unwrap_or(Quota::per_second(NonZeroU32::MIN));
    quota.allow_burst(burst)
}

/// Nanoseconds in which an empty budget fills up.
pub fn longest(quota: Quota) -> u64 {
    nanos(quota.burst_size_replenished_in())
}

/// A request that would be admitted.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// The key's TAT once the request has been charged.
    pub tat: u64,
    /// Requests that would be admitted at once after it.
    pub remaining: u32,
}

/// Asks whether a request may pass. `tat` is what the key has, `now` is the time, both in nanoseconds of one clock. A
/// key that has no TAT is as good as one whose TAT is 0.
///
/// # Errors
/// How long it has to wait, in nanoseconds.
pub fn ask(quota: Quota, tat: u64, now: u64) -> Result<Pass, u64> {
    let register = Register(Cell::new(tat));
    // governor takes the time of its making for its start. It is always 0, so that TATs mean the same to all quotas.
    let limiter = RateLimiter::<_, _, _, StateInformationMiddleware>::new(quota, register, Time(Cell::new(0)));
    limiter.clock().0.set(now);
    match limiter.check() {
        Ok(state) => {
            let remaining = state.remaining_burst_capacity();
            Ok(Pass { tat: limiter.into_state_store().0.get(), remaining })
        }
        Err(not_until) => Err(nanos(not_until.wait_time_from(Nanos::new(now)))),
    }
}

/// Holds the TAT of the one key that is asked about.
struct Register(Cell<u64>);

impl StateStore for Register {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (answer, tat) = f(Some(Nanos::new(self.0.get())))?;
        self.0.set(tat.as_u64());
        Ok(answer)
    }
}

/// The time that a question is about.
struct Time(Cell<u64>);

impl Clock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.get())
    }
}
