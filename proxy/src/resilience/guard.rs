//! Whether an endpoint may be picked: its health, its breaker, its ejection. Written under a lock by the few who change
//! something, read by every pick as one word.

mod standing;
mod view;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use fastrand::Rng;
use weft_model::policy::CircuitBreaker;

use self::standing::{bit, counts, missing, state, usable};
pub use self::view::View;
use super::{
    breaker::{Breaker, Cause, Slot, State, Transition},
    circuit::{Circuit, Event},
    nanos,
    outcome::Outcome,
};
use crate::endpoint::{self, Endpoint, Health};

/// The standing of one endpoint.
#[derive(Debug)]
pub struct Guard {
    id: u64,
    label: Arc<str>,
    circuit: Arc<Circuit>,
    /// See [`standing`].
    standing: AtomicU32,
    epoch: Instant,
    /// Nanoseconds after `epoch` at which it last became usable: start of its slow start.
    usable_since: AtomicU64,
    /// Made when there is a policy for the first time.
    live: Mutex<Option<Box<Live>>>,
}

#[derive(Debug)]
struct Live {
    /// `None`: there was one once.
    policy: Option<Arc<CircuitBreaker>>,
    breaker: Breaker,
    /// What opened it last.
    why: Option<(Arc<str>, Option<Cause>)>,
}

/// A request that finds out whether an endpoint works again. One that ends without a verdict gives its slot back.
#[derive(Debug)]
pub struct Probe {
    endpoint: Arc<Endpoint>,
    slot: Option<Slot>,
}

impl Probe {
    /// The endpoint that it goes to.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.endpoint.guard().give_back(slot);
        }
    }
}

impl Guard {
    /// Of an endpoint that is usable from `now` on, without a breaker until [`Self::configure`].
    pub fn new(id: u64, label: Arc<str>, circuit: Arc<Circuit>, now: Instant) -> Self {
        Self {
            id,
            label,
            circuit,
            standing: AtomicU32::new(0),
            epoch: now,
            usable_since: AtomicU64::new(0),
            live: Mutex::new(None),
        }
    }

    /// Whether there is a breaker. One load.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.standing() & bit::ENABLED != 0
    }

    /// Whether a picker may choose it outside of panic. One load.
    #[inline]
    pub fn usable(&self) -> bool {
        usable(self.standing())
    }

    /// Whether its breaker keeps it from being picked.
    pub fn ejected(&self) -> bool {
        self.standing() & bit::EJECTED != 0
    }

    /// State of its breaker.
    pub fn state(&self) -> State {
        state(self.standing())
    }

    /// What health checks last said.
    pub fn health(&self) -> Health {
        match self.standing() {
            word if word & bit::UNHEALTHY != 0 => Health::Unhealthy,
            word if word & bit::HEALTHY != 0 => Health::Healthy,
            _ => Health::Unknown,
        }
    }

    /// Whether it left the configuration.
    pub fn is_removed(&self) -> bool {
        self.standing() & bit::REMOVED != 0
    }

    /// How long it has been usable.
    pub fn usable_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.usable_since())
    }

    /// When it last became usable.
    pub fn usable_since(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.usable_since.load(Relaxed))
    }

    /// The circuit that it belongs to.
    pub fn circuit(&self) -> &Arc<Circuit> {
        &self.circuit
    }

    /// A verdict of the health checker. One that was removed keeps none.
    pub fn set_health(&self, health: Health, now: Instant) {
        let bits = match health {
            Health::Unknown => 0,
            Health::Healthy => bit::HEALTHY,
            Health::Unhealthy => bit::UNHEALTHY,
        };
        let (old, new) = self.change(now, |word| match word & bit::REMOVED {
            0 => word & !(bit::HEALTHY | bit::UNHEALTHY) | bits,
            _ => word,
        });
        if (old ^ new) & bit::UNHEALTHY != 0 && state(new) != State::Closed {
            self.circuit.health_changed(self.id, || self.standing() & bit::UNHEALTHY != 0);
        }
    }

    /// Whether pickers may choose it at all.
    pub fn set_weighted(&self, weighted: bool, now: Instant) {
        let bits = if weighted { 0 } else { bit::WEIGHTLESS };
        // Nearly always this is known.
        if self.standing() & bit::WEIGHTLESS != bits {
            self.change(now, |word| match word & bit::REMOVED {
                0 => word & !bit::WEIGHTLESS | bits,
                _ => word,
            });
        }
    }

    /// It left the configuration: it stops counting, in every respect.
    pub fn remove(&self, now: Instant) {
        let mut live = self.lock();
        if let Some(live) = &mut *live {
            live.policy = None;
            live.breaker.reset(now);
        }
        // The rest goes too: nobody takes it back later.
        self.change(now, |_| bit::REMOVED);
        self.circuit.wait(self.id, None, || false);
    }

    /// The policy in force from now on; state is kept. Without one the endpoint is Closed and not ejected.
    pub fn configure(&self, policy: Option<&Arc<CircuitBreaker>>, now: Instant) {
        if policy.is_none() && !self.enabled() {
            return;
        }
        let mut slot = self.lock();
        if self.is_removed() {
            return;
        }
        let transition = match (policy, &mut *slot) {
            (Some(policy), Some(live)) => {
                let same = live.policy.as_ref() == Some(policy);
                live.policy = Some(policy.clone());
                if same { None } else { live.breaker.configure(policy, now) }
            }
            (Some(policy), None) => {
                let breaker = Breaker::new(policy, now);
                *slot = Some(Box::new(Live { policy: Some(policy.clone()), breaker, why: None }));
                None
            }
            (None, Some(live)) => {
                live.policy = None;
                live.breaker.reset(now)
            }
            (None, None) => None,
        };
        let event = transition.map(|transition| self.apply(slot.as_deref_mut(), transition, now));
        let enabled = if policy.is_some() { bit::ENABLED } else { 0 };
        self.change(now, |word| word & !bit::ENABLED | enabled);
        if let Some(live) = slot.as_deref() {
            self.wait(live);
        }
        drop(slot);
        self.log(event.as_ref());
    }

    /// Takes the outcome of an attempt into account; returns what changed. `probe` is the attempt's, if it was one.
    pub fn record(&self, outcome: Outcome, probe: Option<Probe>, now: Instant, rng: &mut Rng) -> Option<Arc<Event>> {
        if !self.enabled() {
            return None;
        }
        // Used up, whatever comes of it.
        let slot = probe.and_then(|mut probe| probe.slot.take());
        let mut guarded = self.lock();
        let live = guarded.as_deref_mut()?;
        let policy = live.policy.as_ref()?;
        let transition = live.breaker.record(policy, outcome, slot, now, rng);
        let event = match transition {
            Some(transition) => Some(self.apply(Some(live), transition, now)),
            None if slot.is_some() => {
                self.wait(live);
                None
            }
            None if outcome.failure.is_some() => self.eject_kept(live, now),
            None => None,
        };
        drop(guarded);
        self.log(event.as_ref());
        event
    }

    /// Opens the breaker on the kernel's `evidence`, if it is Closed and its policy lets that count; returns what changed.
    pub fn trip(&self, evidence: String, now: Instant, rng: &mut Rng) -> Option<Arc<Event>> {
        if !self.enabled() {
            return None;
        }
        let mut guarded = self.lock();
        let live = guarded.as_deref_mut()?;
        let policy = live.policy.as_ref().filter(|policy| policy.kernel_signals)?;
        let transition = live.breaker.trip(policy, Cause::Kernel, evidence, now, rng)?;
        let event = Some(self.apply(Some(live), transition, now));
        drop(guarded);
        self.log(event.as_ref());
        event
    }

    /// Whether its policy takes a call for slow.
    pub fn is_slow(&self, took: Duration) -> bool {
        if !self.enabled() {
            return false;
        }
        let guarded = self.lock();
        let policy = guarded.as_deref().and_then(|live| live.policy.as_deref());
        policy.and_then(|policy| policy.slow_calls.as_ref()).is_some_and(|slow| took >= slow.threshold)
    }

    /// A probe to `endpoint`, whose guard this is, if one is due.
    pub fn probe(&self, endpoint: &Arc<Endpoint>, now: Instant) -> Option<Probe> {
        let mut guarded = self.lock();
        let live = guarded.as_deref_mut()?;
        let policy = live.policy.as_ref()?;
        let (slot, transition) = live.breaker.probe(policy, now)?;
        let event = match transition {
            Some(transition) => Some(self.apply(Some(live), transition, now)),
            None => {
                self.wait(live);
                None
            }
        };
        drop(guarded);
        self.log(event.as_ref());
        Some(Probe { endpoint: endpoint.clone(), slot: Some(slot) })
    }

    /// There may be room among the ejected ones: takes it if this one is Open or HalfOpen, and kept in rotation.
    pub fn take_place(&self, now: Instant) {
        if self.state() == State::Closed || self.ejected() {
            return;
        }
        let guarded = self.lock();
        let event = guarded.as_deref().and_then(|live| self.eject_kept(live, now));
        drop(guarded);
        self.log(event.as_ref());
    }

    /// It may be picked again although its breaker is Open: there are too many ejected ones. Takes no lock.
    pub(super) fn keep(&self, now: Instant) {
        self.change(now, |word| word & !bit::EJECTED);
    }

    fn give_back(&self, slot: Slot) {
        let mut guarded = self.lock();
        if let Some(live) = guarded.as_deref_mut() {
            live.breaker.give_back(slot);
            self.wait(live);
        }
    }

    /// Makes a transition visible. Called with the lock held, so that transitions of one endpoint do not mix.
    fn apply(&self, live: Option<&mut Live>, transition: Transition, now: Instant) -> Arc<Event> {
        let Transition { from, to, evidence, cause, lasts } = transition;
        let evidence: Arc<str> = evidence.into();
        let keep = !(bit::OPEN | bit::HALF_OPEN);
        match to {
            State::Closed => self.change(now, |word| word & keep & !bit::EJECTED),
            State::HalfOpen => self.change(now, |word| word & keep | bit::HALF_OPEN),
            State::Open => self.change(now, |word| word & keep | bit::OPEN),
        };
        match to {
            State::Open => {
                self.eject(now);
            }
            // Also for one that was kept in rotation: it is as good as new.
            State::Closed => self.usable_from(now),
            State::HalfOpen => {}
        }
        if let Some(live) = live {
            if to == State::Open {
                live.why = Some((evidence.clone(), cause));
            }
            self.wait(live);
        }
        self.happened(from, to, evidence, cause, lasts)
    }

    fn happened(
        &self,
        from: State,
        to: State,
        evidence: Arc<str>,
        cause: Option<Cause>,
        lasts: Option<Duration>,
    ) -> Arc<Event> {
        let (endpoint, ejected) = (self.label.clone(), self.ejected());
        let event = Event { at: SystemTime::now(), endpoint, from, to, evidence, cause, ejected, lasts };
        let event = Arc::new(event);
        self.circuit.remember(&event);
        event
    }

    /// An endpoint that was kept in rotation, because too many others were ejected, is ejected now if there is room.
    fn eject_kept(&self, live: &Live, now: Instant) -> Option<Arc<Event>> {
        let state = self.state();
        if state == State::Closed || self.ejected() || !self.eject(now) {
            return None;
        }
        let (evidence, cause) = live.why.clone()?;
        let due = live.policy.as_ref().and_then(|policy| live.breaker.due(policy));
        let lasts = due.filter(|_| state == State::Open).map(|due| due.saturating_duration_since(now));
        Some(self.happened(state, state, evidence, cause, lasts))
    }

    /// Ejects it if the circuit has room; true if it is ejected now.
    fn eject(&self, now: Instant) -> bool {
        if self.ejected() {
            return true;
        }
        self.circuit.eject(|| {
            let may = |word: u32| word & (bit::ENABLED | bit::REMOVED | bit::EJECTED) == bit::ENABLED;
            let (old, new) = self.change(now, |word| if may(word) { word | bit::EJECTED } else { word });
            old != new
        })
    }

    /// Tells the circuit when a probe is due next.
    fn wait(&self, live: &Live) {
        let due = live.policy.as_ref().and_then(|policy| live.breaker.due(policy));
        let due = due.map(|due| (due, live.breaker.state()));
        self.circuit.wait(self.id, due, || self.standing() & bit::UNHEALTHY != 0);
    }

    #[inline]
    fn standing(&self) -> u32 {
        self.standing.load(Relaxed)
    }

    /// Changes the standing in one step, and everything that is counted by it.
    fn change(&self, now: Instant, to: impl Fn(u32) -> u32) -> (u32, u32) {
        let mut old = self.standing();
        let new = loop {
            let new = to(old);
            match self.standing.compare_exchange_weak(old, new, Relaxed, Relaxed) {
                Ok(_) => break new,
                Err(current) => old = current,
            }
        };
        let (mut before, after) = (counts(old), counts(new));
        if after.ejected > before.ejected {
            // Counted already, when the place was reserved.
            before.ejected = after.ejected;
        }
        self.circuit.account(before, after, now);
        if missing(old) != missing(new) {
            self.circuit.count_unusable(if missing(new) { 1 } else { -1 });
        }
        let (was, is) = (usable(old), usable(new));
        if was != is {
            if is {
                self.usable_from(now);
            }
            endpoint::health_changed();
        }
        (old, new)
    }

    fn usable_from(&self, now: Instant) {
        self.usable_since.store(nanos(now.saturating_duration_since(self.epoch)), Relaxed);
    }

    fn log(&self, event: Option<&Arc<Event>>) {
        if let Some(event) = event {
            event.log(self.circuit.service());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
