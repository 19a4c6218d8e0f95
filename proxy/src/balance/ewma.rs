//! Peak EWMA: prefer the endpoint that answers soonest.
//!
//! Two endpoints are drawn, and the one with the lower `latency × (requests in flight + 1)` is taken. The latency is a
//! moving average that follows a rise at once and forgets it exponentially, as in Twitter's Finagle
//! (<https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded>) and Linkerd.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// After this time an observation weighs 1/e.
pub const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint without any observation is taken for, unless its rival is faster.
pub const DEFAULT_RTT: Duration = Duration::from_millis(30);

/// A rival has to be better by this factor: otherwise noise would undo the weights.
const MARGIN: f32 = 1.125;

/// One tick of the stamp is 2^16 ns (65.5 µs), so that 32 bits last for 78 hours.
const TICK_SHIFT: u32 = 16;

const TICKS_PER_DECAY: f32 = DECAY.as_nanos() as f32 / (1_u64 << TICK_SHIFT) as f32;

/// Peak-sensitive exponentially weighted moving average of latency; shared by all workers, without a lock.
///
/// Latency and time stamp share one word, so that they always belong together. Observations that fall into the same
/// tick (65.5 µs) as the one before count only if they are a new peak.
#[derive(Debug)]
pub struct PeakEwma {
    /// High half: nanoseconds as `f32`. Low half: ticks after `epoch`. 0: nothing observed yet.
    state: AtomicU64,
    epoch: Instant,
}

impl PeakEwma {
    /// Nothing observed yet.
    pub fn new(now: Instant) -> Self {
        Self { state: AtomicU64::new(0), epoch: now }
    }

    /// Takes `rtt`, seen at `now`, into account.
    pub fn observe(&self, rtt: Duration, now: Instant) {
        let rtt = (rtt.as_nanos() as f32).max(1.0);
        let ticks = self.ticks(now);
        let _ = self.state.fetch_update(Relaxed, Relaxed, |state| {
            if state == 0 {
                return Some(pack(rtt, ticks));
            }
            let (cost, stamp) = unpack(state);
            let elapsed = elapsed(stamp, ticks);
            if rtt > cost {
                return Some(pack(rtt, ticks));
            }
            if elapsed == 0 {
                return None;
            }
            let keep = decay(elapsed);
            Some(pack((cost * keep + rtt * (1.0 - keep)).max(1.0), ticks))
        });
    }

    /// As if nothing had been observed yet.
    pub fn forget(&self) {
        self.state.store(0, Relaxed);
    }

    /// The estimate at `now`. It falls towards zero while nothing is observed, so that a slow endpoint is tried again
    /// sooner or later. [`DEFAULT_RTT`] before the first observation.
    pub fn get(&self, now: Instant) -> Duration {
        match self.estimate(now) {
            Some(estimate) => Duration::from_nanos(estimate.decayed as u64),
            None => DEFAULT_RTT,
        }
    }

    fn estimate(&self, now: Instant) -> Option<Estimate> {
        let state = self.state.load(Relaxed);
        if state == 0 {
            return None;
        }
        let (cost, stamp) = unpack(state);
        Some(Estimate { measured: cost, decayed: cost * decay(elapsed(stamp, self.ticks(now))) })
    }

    /// At least 1, so that no state is 0.
    fn ticks(&self, now: Instant) -> u32 {
        let nanos = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        ((nanos >> TICK_SHIFT) as u32).max(1)
    }
}

/// Whether `rival` is clearly the better choice. `load` and `rival_load` are their requests in flight.
///
/// It has to be better both as last measured and as decayed since. Of two equally fast endpoints the one that is picked
/// less often has always decayed further; if that counted, a low weight would come to more than its share.
#[inline]
pub(crate) fn prefers_rival(mine: &PeakEwma, load: u32, rival: &PeakEwma, rival_load: u32, now: Instant) -> Verdict {
    let (a, b) = match (mine.estimate(now), rival.estimate(now)) {
        (Some(a), Some(b)) => (a, b),
        (Some(a), None) => (a, a.capped()),
        (None, Some(b)) => (b.capped(), b),
        (None, None) => (Estimate::DEFAULT, Estimate::DEFAULT),
    };
    let (a, b) = (a.coarse(), b.coarse());
    let (load, rival_load) = (load as f32 + 1.0, rival_load as f32 + 1.0);
    let better = |factor: f32| {
        b.measured * rival_load * factor < a.measured * load && b.decayed * rival_load * factor < a.decayed * load
    };
    if !better(MARGIN) {
        Verdict::Keep
    } else if better(2.0 * MARGIN) {
        Verdict::Far
    } else {
        Verdict::Near
    }
}

/// How a rival compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not better.
    Keep,
    /// Better, but by no more than one request in flight explains.
    Near,
    /// More than twice as good.
    Far,
}

/// Nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    measured: f32,
    decayed: f32,
}

/// Below this, in nanoseconds, latencies are equal: what is measured there is the noise of schedulers and sockets. A
/// single late wake-up would otherwise keep an endpoint without traffic for seconds; under load, requests in flight
/// tell fast endpoints apart.
const NOISE: f32 = 5e6;

impl Estimate {
    /// Without what is only noise.
    fn coarse(self) -> Self {
        Self { measured: self.measured.max(NOISE), decayed: self.decayed.max(NOISE) }
    }

    const DEFAULT: Self = Self { measured: DEFAULT_RTT.as_nanos() as f32, decayed: DEFAULT_RTT.as_nanos() as f32 };

    /// What a rival without observations is taken for: as fast as this one, but not slower than the default. A new
    /// endpoint would otherwise wait up to half a minute for its first request, until the default has decayed.
    fn capped(self) -> Self {
        Self { measured: self.measured.min(Self::DEFAULT.measured), decayed: self.decayed.min(Self::DEFAULT.decayed) }
    }
}

fn pack(cost: f32, ticks: u32) -> u64 {
    u64::from(cost.to_bits()) << 32 | u64::from(ticks)
}

fn unpack(state: u64) -> (f32, u32) {
    (f32::from_bits((state >> 32) as u32), state as u32)
}

/// 0 if another worker has been here with a later clock.
fn elapsed(stamp: u32, ticks: u32) -> u32 {
    match ticks.wrapping_sub(stamp) {
        late if late > u32::MAX - (1 << 20) => 0,
        elapsed => elapsed,
    }
}

fn decay(ticks: u32) -> f32 {
    if ticks == 0 { 1.0 } else { (-(ticks as f32) / TICKS_PER_DECAY).exp() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rises_at_once_and_forgets_exponentially() {
        let start = Instant::now();
        let ewma = PeakEwma::new(start);
        assert_eq!(ewma.get(start), DEFAULT_RTT);
        ewma.observe(10 * MS, start);
        assert_eq!(ewma.get(start), 10 * MS);
        // A peak counts in full, a lower value by the time that passed.
        ewma.observe(100 * MS, start);
        assert_eq!(ewma.get(start), 100 * MS);
        let later = start + DECAY;
        let expect = 100.0 * (-1.0_f64).exp() + 10.0 * (1.0 - (-1.0_f64).exp());
        ewma.observe(10 * MS, later);
        let got = ewma.get(later).as_secs_f64() * 1e3;
        assert!((got - expect).abs() < 0.01, "{got} against {expect}");
        // Idle: towards zero.
        let got = ewma.get(later + 2 * DECAY).as_secs_f64() * 1e3;
        assert!((got - expect * (-2.0_f64).exp()).abs() < 0.01, "{got}");
    }

    #[test]
    fn a_clock_that_lags_behind_changes_nothing() {
        let start = Instant::now();
        let ewma = PeakEwma::new(start);
        ewma.observe(10 * MS, start + DECAY);
        ewma.observe(5 * MS, start);
        assert_eq!(ewma.get(start), 10 * MS);
        assert_eq!(ewma.get(start + DECAY), 10 * MS);
    }

    #[test]
    fn compares_by_latency_and_load() {
        let now = Instant::now();
        let with = |ms: u32| {
            let ewma = PeakEwma::new(now);
            if ms > 0 {
                ewma.observe(MS * ms, now);
            }
            ewma
        };
        #[rustfmt::skip]
        let table = [
            // mine, load, rival's, load
            (20, 0, 20, 0, Verdict::Keep),
            (20, 0, 18, 0, Verdict::Keep),
            (20, 0, 16, 0, Verdict::Near),
            (20, 0, 8, 0, Verdict::Far),
            (20, 1, 20, 0, Verdict::Near),
            (20, 9, 20, 0, Verdict::Far),
            (20, 0, 8, 2, Verdict::Keep),
            (4, 0, 1, 0, Verdict::Keep),    // noise
            (4, 5, 1, 0, Verdict::Far),     // what is in flight is not
            (1, 0, 0, 0, Verdict::Keep),    // unknown: as fast as the other one
            (1, 1, 0, 0, Verdict::Near),
            (200, 0, 0, 0, Verdict::Far),   // unknown: 30 ms
            (0, 0, 1, 0, Verdict::Keep),
            (0, 0, 0, 0, Verdict::Keep),
        ];
        for (mine, load, rival, rival_load, expect) in table {
            let got = prefers_rival(&with(mine), load, &with(rival), rival_load, now);
            assert_eq!(got, expect, "{mine} ms × {load} against {rival} ms × {rival_load}");
        }
    }

    proptest! {
        #[test]
        fn stays_between_what_was_seen(seen in prop::collection::vec((1_u64..10_000_000, 0_u64..100_000_000), 1..50)) {
            let start = Instant::now();
            let ewma = PeakEwma::new(start);
            let mut now = start;
            for (rtt, pause) in &seen {
                now += Duration::from_nanos(*pause);
                ewma.observe(Duration::from_nanos(*rtt), now);
            }
            let got = ewma.get(now).as_nanos() as f64;
            let least = seen.iter().map(|s| s.0).min().unwrap_or_default() as f64;
            let most = seen.iter().map(|s| s.0).max().unwrap_or_default() as f64;
            prop_assert!(got >= least * 0.999 - 1.0 && got <= most * 1.001 + 1.0, "{} in {}..{}", got, least, most);
        }
    }
}
