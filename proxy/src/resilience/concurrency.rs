//! A limit on the requests in flight at a service that finds itself, from latency: Gradient2 of Netflix's
//! concurrency-limits, with a baseline that does not drift.
//!
//! Latencies are averaged over short windows. A window that is slower than the baseline tolerates shrinks the limit in
//! proportion; one that is not lets it grow by its square root, which is the queue that a service may have. Gradient2's
//! baseline is a long-term average: under a lasting overload it learns the overload, and the limit grows without end.
//! Here the baseline does not rise while the limit is used up. Instead, a limit that has been used up for long, or has
//! been halved, is lowered for a moment to see the service without a queue, as Envoy does for its minimum RTT.
//!
//! A request has its place until its response has ended, but its latency is known at the response's head. Streams that
//! never end could therefore fill the limit for good: nobody is admitted, so nobody says that there is room. While the
//! limit is full and silent, [`Gradient::tick`] lets it grow.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use weft_model::config::Concurrency;

use super::nanos;

/// Shortest window.
const WINDOW: Duration = Duration::from_millis(100);
/// A window lasts until it has as many samples.
const SAMPLES: u64 = 10;
/// So much slower than the baseline is no queue yet.
const TOLERANCE: f64 = 1.5;
/// Weight of a new limit.
const SMOOTHING: f64 = 0.2;
/// Weight of a window in the baseline.
const LEARNING: f64 = 0.05;
/// From this share of the limit on, it is used up.
const USED_UP: f64 = 0.9;
/// A limit that has been used up for so long is probed.
const PRESSED: Duration = Duration::from_secs(30);
/// Share of the limit during a probe.
const PROBE: f64 = 0.25;
/// A probe ends with so many samples …
const PROBE_SAMPLES: u64 = 50;
/// … or after this time.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// A full limit that has had no sample for so long is stuck.
const SILENCE: Duration = Duration::from_secs(10);

/// What happened in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Window {
    /// Requests that were answered.
    pub samples: u64,
    /// The time they took, together.
    pub total: Duration,
    /// Requests that timed out or were turned away by the service.
    pub failed: u64,
    /// Most requests in flight.
    pub peak: u32,
}

/// The limit of a service port. Plain: `now` is passed in.
#[derive(Debug)]
pub struct Gradient {
    min: f64,
    max: f64,
    limit: f64,
    /// Seconds that a request takes without a queue; `None` before the first window.
    baseline: Option<f64>,
    window: Window,
    window_end: Instant,
    /// Since when the limit has been used up.
    pressed: Option<Instant>,
    /// The limit when the baseline was last measured, or higher since.
    reference: f64,
    probe: Option<Probe>,
    /// Since when the limit has been full without a sample.
    silent: Option<Instant>,
}

/// A measurement of the baseline: only requests that were admitted under the lowered limit count.
#[derive(Debug)]
struct Probe {
    end: Instant,
    seen: Window,
}

impl Gradient {
    /// Starts at a limit that is small beside `max`, and grows.
    pub fn new(policy: &Concurrency, now: Instant) -> Self {
        let (min, max) = (f64::from(policy.min.max(1)), f64::from(policy.max.max(1)));
        Self {
            min,
            max,
            limit: 20.0_f64.clamp(min, max),
            baseline: None,
            window: Window::default(),
            window_end: now + WINDOW,
            pressed: None,
            reference: 0.0,
            probe: None,
            silent: None,
        }
    }

    /// Other bounds; what was learned stays.
    pub fn configure(&mut self, policy: &Concurrency) {
        self.min = f64::from(policy.min.max(1));
        self.max = f64::from(policy.max.max(1));
        self.limit = self.limit.clamp(self.min, self.max);
    }

    /// Requests that may be in flight.
    pub fn limit(&self) -> u32 {
        let limit = if self.probe.is_some() { (self.limit * PROBE).max(self.min) } else { self.limit };
        limit as u32
    }

    /// The latency of one request is known: it took `rtt`, and `in_flight` are under way, itself included. `failed` is for
    /// time-outs and for answers by which the service says that it is overloaded; other failures are fast or slow for
    /// reasons of their own and are left out.
    pub fn sample(&mut self, rtt: Duration, in_flight: u32, failed: bool, now: Instant) {
        if failed {
            self.window.failed += 1;
        } else {
            self.window.samples += 1;
            self.window.total += rtt;
        }
        self.window.peak = self.window.peak.max(in_flight);
        if now >= self.window_end && self.window.samples + self.window.failed >= SAMPLES {
            let window = std::mem::take(&mut self.window);
            self.learn(window, now);
        }
    }

    /// Takes over the counts of a window that has ended.
    pub fn learn(&mut self, window: Window, now: Instant) {
        self.window_end = now + WINDOW;
        self.silent = None;
        if self.probe.is_some() {
            self.probed(window, now);
            return;
        }
        let seen = window.samples + window.failed;
        let peak = f64::from(window.peak);
        let used_up = peak >= self.limit.floor() * USED_UP;
        let gradient = window.mean().map_or(1.0, |short| self.compare(short, used_up));
        // A limit that is not used proves nothing by its latencies.
        if peak >= self.limit / 2.0 && seen > 0 {
            let failures = window.failed as f64 / seen as f64;
            let queue = if window.failed > 0 { 0.0 } else { self.limit.sqrt() };
            let wanted = self.limit * gradient * (1.0 - failures / 2.0) + queue;
            self.limit = (self.limit * (1.0 - SMOOTHING) + wanted * SMOOTHING).clamp(self.min, self.max);
        }
        self.reference = self.reference.max(self.limit);
        if !used_up {
            self.pressed = None;
            return;
        }
        let pressed = *self.pressed.get_or_insert(now);
        // At `max` it grew as far as it may: then nothing suggests a queue.
        let long = now >= pressed + PRESSED && self.limit < self.max;
        let halved = gradient < 1.0 && self.limit < self.reference / 2.0;
        if long || halved {
            self.probe = Some(Probe { end: now + PROBE_TIME, seen: Window::default() });
        }
    }

    /// To be called once per second. `in_flight` requests have places, and `sampled` says whether there has been a sample
    /// since the last call. A limit that is full, and has had no sample for `SILENCE`, grows by one each time until a
    /// window has ended. Those that are let in by it say something at once, so that single samples are no reason to stop.
    pub fn tick(&mut self, sampled: bool, in_flight: u32, now: Instant) {
        let full = in_flight >= self.limit();
        let stuck = self.silent.is_some_and(|since| now >= since + SILENCE);
        if !stuck {
            self.silent = if full && !sampled { self.silent.or(Some(now)) } else { None };
        } else if full {
            // A probe has no samples either.
            if self.probe.take().is_some() {
                self.pressed = None;
            }
            self.limit = (self.limit + 1.0).min(self.max);
        }
    }

    /// How far a window's latency is above what is tolerated: 1 is no queue, less is one.
    fn compare(&mut self, short: f64, used_up: bool) -> f64 {
        let baseline = self.baseline.get_or_insert(short);
        // At most halved: one slow window is not the end.
        let gradient = (TOLERANCE * *baseline / short.max(1e-9)).clamp(0.5, 1.0);
        if !used_up || short < *baseline {
            *baseline += (short - *baseline) * LEARNING;
        }
        gradient
    }

    fn probed(&mut self, window: Window, now: Instant) {
        let lowered = self.limit();
        let Some(probe) = &mut self.probe else { return };
        if window.peak <= lowered {
            probe.seen.samples += window.samples;
            probe.seen.total += window.total;
        }
        if probe.seen.samples < PROBE_SAMPLES && now < probe.end {
            return;
        }
        if probe.seen.samples >= SAMPLES {
            self.baseline = probe.seen.mean();
        }
        self.probe = None;
        self.pressed = None;
        self.reference = self.limit;
    }
}

impl Window {
    /// Seconds that an answered request took.
    fn mean(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.total.as_secs_f64() / self.samples as f64)
    }
}

/// A [`Gradient`] that all workers use: a request costs three additions, a window one lock.
#[derive(Debug)]
pub struct SharedGradient {
    epoch: Instant,
    limit: AtomicU32,
    /// Nanoseconds after `epoch`.
    window_end: AtomicU64,
    samples: AtomicU32,
    failed: AtomicU32,
    peak: AtomicU32,
    /// Nanoseconds.
    total: AtomicU64,
    /// What was counted at the last tick.
    ticked: AtomicU32,
    gradient: Mutex<Gradient>,
}

impl SharedGradient {
    /// Starts at a limit that is small beside `max`, and grows.
    pub fn new(policy: &Concurrency, now: Instant) -> Self {
        let gradient = Gradient::new(policy, now);
        Self {
            epoch: now,
            limit: AtomicU32::new(gradient.limit()),
            window_end: AtomicU64::new(nanos(WINDOW)),
            samples: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            total: AtomicU64::new(0),
            ticked: AtomicU32::new(0),
            gradient: Mutex::new(gradient),
        }
    }

    /// Other bounds; what was learned stays.
    pub fn configure(&self, policy: &Concurrency) {
        let mut gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        gradient.configure(policy);
        self.limit.store(gradient.limit(), Relaxed);
    }

    /// Requests that may be in flight.
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// As [`Gradient::sample`].
    pub fn sample(&self, rtt: Duration, in_flight: u32, failed: bool, now: Instant) {
        let count = if failed {
            &self.failed
        } else {
            self.total.fetch_add(nanos(rtt), Relaxed);
            &self.samples
        };
        count.fetch_add(1, Relaxed);
        if self.peak.load(Relaxed) < in_flight {
            self.peak.fetch_max(in_flight, Relaxed);
        }
        let at = nanos(now.saturating_duration_since(self.epoch));
        if at >= self.window_end.load(Relaxed) {
            self.end_window(at, now);
        }
    }

    /// As [`Gradient::tick`].
    pub fn tick(&self, in_flight: u32, now: Instant) {
        // The end of a window starts the count again, and says so itself.
        let count = self.count();
        let sampled = self.ticked.swap(count, Relaxed) != count;
        let mut gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        gradient.tick(sampled, in_flight, now);
        self.limit.store(gradient.limit(), Relaxed);
    }

    /// Samples in this window.
    fn count(&self) -> u32 {
        self.samples.load(Relaxed) + self.failed.load(Relaxed)
    }

    #[cold]
    fn end_window(&self, at: u64, now: Instant) {
        if u64::from(self.count()) < SAMPLES {
            return;
        }
        // Whoever comes second leaves it to the first.
        let Ok(mut gradient) = self.gradient.try_lock() else { return };
        self.window_end.store(at + nanos(WINDOW), Relaxed);
        // A sample that another worker is adding in between may be split; the next window has its rest.
        let window = Window {
            samples: u64::from(self.samples.swap(0, Relaxed)),
            total: Duration::from_nanos(self.total.swap(0, Relaxed)),
            failed: u64::from(self.failed.swap(0, Relaxed)),
            peak: self.peak.swap(0, Relaxed),
        };
        gradient.learn(window, now);
        self.limit.store(gradient.limit(), Relaxed);
    }
}

#[cfg(test)]
mod tests;
