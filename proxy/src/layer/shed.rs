//! Load shedding: watches memory and the workers' loops, and refuses the least urgent requests while they are pressed.
//!
//! Nothing runs unless a limit is set. The decision is made ten times a second beside the workers; a request looks at
//! one number.

use std::{
    rc::Rc,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::HeaderMap;

use crate::{
    error::{Reason, Refusal},
    resilience::shed::{NOTHING, Pressure, Shedder, urgency_of},
    worker::{Shared, Worker},
};

/// Between two looks at memory and lag.
const SAMPLE: Duration = Duration::from_millis(100);
/// Between two looks of a worker at its own loop.
const TICK: Duration = Duration::from_millis(20);
/// What a timer is late by when nothing is.
const TIMER: Duration = Duration::from_millis(1);

/// What is shed now.
#[derive(Debug)]
pub struct Shed {
    /// Requests of this urgency and less urgent ones are refused; 8 is nobody.
    from: AtomicU8,
    /// For the refusal.
    why: ArcSwap<String>,
    /// How late each worker's loop runs, in nanoseconds.
    lag: Box<[AtomicU64]>,
}

impl Shed {
    /// Sheds nothing.
    pub fn new(workers: usize) -> Self {
        Self {
            from: AtomicU8::new(NOTHING),
            why: ArcSwap::default(),
            lag: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// 0: nothing is shed; otherwise requests of urgency 8 less this, and those that are less urgent.
    pub fn level(&self) -> u8 {
        NOTHING - self.from.load(Relaxed)
    }

    /// The urgency from which on requests are refused, while any are.
    pub fn from(&self) -> Option<u8> {
        Some(self.from.load(Relaxed)).filter(|from| *from < NOTHING)
    }

    /// Refuses a request that is not urgent enough. `priority` is its policy's.
    ///
    /// # Errors
    /// `overloaded` while the node sheds requests of this urgency.
    pub fn check(&self, headers: &HeaderMap, priority: u8) -> Result<(), Refusal> {
        let from = self.from.load(Relaxed);
        if from >= NOTHING || urgency_of(headers, priority) < from {
            return Ok(());
        }
        Err(Refusal::with(Reason::Overloaded, self.why.load().as_str()))
    }

    fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag.iter().map(|lag| lag.load(Relaxed)).max().unwrap_or_default())
    }

    /// Puts a decision in force, and tells of its begin and end.
    pub(crate) fn publish(&self, from: u8, pressure: &Pressure) {
        if from < NOTHING {
            let why = format!("the node sheds load from urgency {from} on: {}", pressure.describe());
            if self.from.load(Relaxed) == NOTHING {
                tracing::warn!("{why}");
            }
            self.why.store(Arc::new(why));
        } else if self.from.load(Relaxed) < NOTHING {
            tracing::warn!("the node sheds no load any more");
        }
        self.from.store(from, Relaxed);
    }
}

/// Watches as long as the node lives; ends at once when no limit is set.
pub async fn watch(shared: Weak<Shared>) {
    let mut shedder = Shedder::new(Instant::now());
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let options = &shared.options;
        if options.max_memory.is_none() && options.latency_budget.is_none() {
            return;
        }
        let pressure = Pressure {
            memory: options.max_memory.and_then(|limit| Some((resident()?, limit))),
            lag: options.latency_budget.map(|budget| (shared.shed.lag(), budget)),
        };
        let from = shedder.observe(&pressure, Instant::now());
        shared.shed.publish(from, &pressure);
    }
}

/// Measures how late a worker's loop runs; ends at once when there is no budget for it.
pub async fn measure_lag(worker: Rc<Worker>) {
    if worker.shared.options.latency_budget.is_none() {
        return;
    }
    let Some(lag) = worker.shared.shed.lag.get(worker.id) else { return };
    let mut average = 0.0;
    loop {
        let due = tokio::time::Instant::now() + TICK;
        tokio::time::sleep_until(due).await;
        let late = due.elapsed().saturating_sub(TIMER);
        // One long poll is no overload; several in a row are.
        average += (late.as_nanos() as f64 - average) / 4.0;
        lag.store(average as u64, Relaxed);
    }
}

/// Resident memory of this process in bytes.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::{
        options::Options,
        snapshot::Snapshot,
        telemetry::{Telemetry, export::Environment},
    };

    fn shared(options: Options) -> Arc<Shared> {
        Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            generation: AtomicU64::new(0),
            load: Box::default(),
            requests: Box::default(),
            telemetry: Arc::new(Telemetry::new("test", Environment::default(), std::io::sink())),
            shed: Shed::new(1),
            options,
            kernel: None,
        })
    }

    fn headers(priority: &'static str) -> HeaderMap {
        [("priority".parse().unwrap(), HeaderValue::from_static(priority))].into_iter().collect()
    }

    #[test]
    fn the_least_urgent_are_refused_with_a_reason() {
        let shared = shared(Options::default());
        assert!(shared.shed.check(&headers("u=7"), 3).is_ok());
        let pressure = Pressure { memory: Some((950 << 20, 1_000 << 20)), lag: None };
        shared.shed.publish(4, &pressure);
        assert_eq!(shared.shed.level(), 4);
        for (priority, policy, served) in
            [("u=7", 3, false), ("u=4", 0, false), ("u=3", 3, true), ("", 4, false), ("", 0, true)]
        {
            assert_eq!(shared.shed.check(&headers(priority), policy).is_ok(), served, "{priority:?} {policy}");
        }
        let refusal = shared.shed.check(&HeaderMap::new(), 7).unwrap_err();
        assert_eq!(refusal.reason, Reason::Overloaded);
        assert_eq!(
            refusal.detail,
            "the node sheds load from urgency 4 on: memory is at 950 MiB of 1000 MiB (--max-memory)"
        );
        shared.shed.publish(NOTHING, &pressure);
        assert!(shared.shed.level() == 0 && shared.shed.check(&headers("u=7"), 7).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn memory_over_its_limit_is_noticed() {
        assert!(resident().unwrap() > 1 << 20);
        let shared = shared(Options { max_memory: Some(1 << 20), ..Options::default() });
        let watching = tokio::spawn(watch(Arc::downgrade(&shared)));
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(shared.shed.level(), 7);
        drop(shared);
        watching.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_limits_nothing_runs() {
        let shared = shared(Options { max_memory: None, latency_budget: None, ..Options::default() });
        watch(Arc::downgrade(&shared)).await;
        assert_eq!(shared.shed.level(), 0);
    }

    #[tokio::test]
    async fn a_loop_that_is_blocked_runs_late() {
        let shared = shared(Options { latency_budget: Some(Duration::from_millis(5)), ..Options::default() });
        let local = tokio::task::LocalSet::new();
        let worker = Worker::new(0, shared.clone(), Vec::new());
        local.spawn_local(measure_lag(worker));
        local
            .run_until(async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                for _ in 0..5 {
                    std::thread::sleep(Duration::from_millis(80));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
            .await;
        assert!(shared.shed.lag() > Duration::from_millis(10), "{:?}", shared.shed.lag());
    }
}
