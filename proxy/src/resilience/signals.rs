//! What the kernel's counters say about the endpoints of one service: once a second they are compared with what they
//! were and with those of the other endpoints. A pure decider: no clock, no sockets.
//!
//! - *Losing segments*, clearly more than the others: its weight falls step by step, and comes back step by step.
//! - *Losing segments for long*, with retransmission time-outs: it is to be ejected.
//! - *Refusing connections, or not answering them*, while others take them: it is to be ejected.
//!
//! An endpoint never falls on its own evidence alone: when all look the same, the fault is somewhere else (the network
//! of this node, a deployment), and there is nobody better to send the traffic to.

mod sample;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use self::sample::{Fleet, Sample};
use super::breaker::human;
use crate::{endpoint::FULL_WEIGHT, kernel::Signals};

/// Fewer retransmissions a second than this are everyday life: every loss that fast retransmit repairs is one.
const LOSS_RATE: f64 = 3.0;

/// An endpoint loses clearly more than its peers when it is this many times their median, in all and per connection: one
/// that has most of the traffic has most of the losses too.
const LOSS_FACTOR: f64 = 3.0;

/// Below this part of the limits that lower a weight, an endpoint is quiet. Between the two, everything stays as it is:
/// otherwise a rate near the limit would move the weight to and fro.
const QUIET: f64 = 0.5;

/// Samples in a row of which a weight falls by one step. One may be a single burst: the tail of one window.
const SAMPLES_DOWN: u32 = 2;

/// Quiet samples in a row after which a weight rises by one step.
const SAMPLES_UP: u32 = 5;

/// What counts of a weight, in percent. At a tenth, as at the start of a slow start, there is enough traffic left to see
/// when the loss ends.
const STEPS: [u32; 4] = [FULL_WEIGHT, 50, 25, 10];

/// Samples in a row of heavy loss, with retransmission time-outs, after which an endpoint is to be ejected. A time-out
/// means that connections stand still, for 200 ms at least; a rerouted path has recovered by then.
const SAMPLES_EJECT: u32 = 5;

/// Samples with refusals, and without a single established connection, that eject an endpoint. Two, because one may be
/// the moment in which a process is replaced by the next.
const REFUSING_SAMPLES: u32 = 2;

/// Or so many refusals in one sample: whoever has got that many has been told clearly.
const REFUSALS: u64 = 3;

/// Refusals that are this far apart do not belong together.
const WINDOW: Duration = Duration::from_secs(5);

/// Samples that are closer together say nothing of rates.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is known of an endpoint at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// Of the endpoint.
    pub id: u64,
    /// The kernel's counters; zero for an endpoint that it does not know.
    pub signals: Signals,
    /// Connection attempts of Weft's own that were under way at some time since the last sample, made to find out: what
    /// they caused is no evidence.
    pub probes: u32,
    /// It takes its share of the traffic: neither unhealthy nor ejected nor without a weight, and its breaker is Closed.
    /// Others are not judged, and nobody is compared with them.
    pub in_rotation: bool,
}

/// What is to become of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How much of its weight is to count, in percent: between 10 and [`FULL_WEIGHT`].
    pub weight_percent: u32,
    /// Why it is to be ejected, if it is.
    pub eject: Option<String>,
}

/// Judges the endpoints of one service.
#[derive(Debug, Default)]
pub struct Judge {
    tracks: HashMap<u64, Track>,
}

/// What is remembered of an endpoint.
#[derive(Debug)]
struct Track {
    /// The last sample: what it was, and when.
    signals: Signals,
    at: Instant,
    /// Index into [`STEPS`].
    step: usize,
    /// Samples in a row with clearly more loss than its peers have, since its weight last fell.
    lossy: u32,
    /// Samples in a row with that and retransmission time-outs.
    stalled: Run,
    /// Samples in a row without noteworthy loss, since its weight last rose.
    quiet: u32,
    /// Samples with refusals that belong together, since a connection was last established.
    refusing: Run,
    last_established: Option<Instant>,
}

/// Samples that belong together.
#[derive(Debug, Default)]
struct Run {
    samples: u32,
    /// When the first of them began.
    began: Option<Instant>,
    /// Connections refused, in all of them.
    refused: u64,
    /// Connections not answered, in all of them.
    unanswered: u64,
}

/// How an endpoint compares with its peers.
struct Comparison {
    lossy: bool,
    stalled: bool,
    quiet: bool,
    /// Retransmissions a second.
    median: f64,
    /// A peer takes connections while this one does not.
    others_take: bool,
    /// Connections that did not come about at the peers.
    others_failed: u64,
}

impl Judge {
    /// Compares with the sample before, and the endpoints with each other. One verdict for each observation, in their
    /// order; endpoints that are not among them are forgotten.
    pub fn judge(&mut self, observations: &[Observation], now: Instant) -> Vec<Verdict> {
        let mut before = std::mem::take(&mut self.tracks);
        let mut seen: Vec<(Track, Option<Sample>)> = observations
            .iter()
            .map(|observation| Track::follow(before.remove(&observation.id), observation, now))
            .collect();
        let fleet = Fleet::new(seen.iter().filter_map(|(_, sample)| sample.as_ref()));
        // First all are compared as they are; what becomes of one must not depend on what became of another.
        let compared: Vec<Option<Comparison>> = (0..seen.len()).map(|own| compare(own, &seen, &fleet, now)).collect();
        let verdicts = seen.iter_mut().zip(compared).map(|((track, sample), comparison)| {
            let eject = match (sample, comparison) {
                (Some(sample), Some(comparison)) => track.conclude(sample, &comparison, now),
                _ => None,
            };
            Verdict { weight_percent: track.percent(), eject }
        });
        let verdicts = verdicts.collect();
        let ids = observations.iter().map(|observation| observation.id);
        self.tracks = ids.zip(seen.into_iter().map(|(track, _)| track)).collect();
        verdicts
    }
}

fn compare(own: usize, seen: &[(Track, Option<Sample>)], fleet: &Fleet, now: Instant) -> Option<Comparison> {
    let (track, sample) = seen.get(own)?;
    let sample = sample.as_ref()?;
    let peers = fleet.medians_without(sample);
    let medians = peers.clone().unwrap_or_default();
    let limit = LOSS_RATE.max(LOSS_FACTOR * medians.loss);
    let limit_each = LOSS_FACTOR * medians.loss_each;
    let lossy = peers.is_some() && sample.loss > limit && sample.loss_each > limit_each;
    let others = || seen.iter().enumerate().filter(|(other, _)| *other != own);
    // Rarely asked, because rarely anybody refuses.
    let others_take = sample.refuses()
        && others().any(|(_, (peer, sample))| {
            sample.as_ref().is_some_and(|sample| peer.takes(sample, track.refusing.began, now))
        });
    Some(Comparison {
        lossy,
        stalled: lossy && sample.rto > LOSS_FACTOR * medians.rto,
        quiet: sample.loss <= QUIET * limit || sample.loss_each <= QUIET * limit_each,
        median: medians.retransmits,
        others_take,
        others_failed: fleet.failed() - sample.failed(),
    })
}

impl Track {
    /// Goes on from the sample before, if there was one. No sample when there is nothing to compare with: at the start,
    /// when the counters began anew, and for those who are out of rotation.
    fn follow(before: Option<Self>, observation: &Observation, now: Instant) -> (Self, Option<Sample>) {
        let signals = observation.signals;
        let Some(mut track) = before else { return (Self::new(signals, now), None) };
        if now.saturating_duration_since(track.at) < SHORTEST {
            return (track, None);
        }
        let sample = Sample::between(&track.signals, &signals, observation.probes, now - track.at, track.percent());
        let began = track.at;
        (track.signals, track.at) = (signals, now);
        let Some(sample) = sample.filter(|_| observation.in_rotation) else {
            // Its weight stays as it is: whoever comes back is watched before it gets everything.
            track.forget();
            return (track, None);
        };
        if sample.established > 0 {
            track.last_established = Some(now);
            track.refusing = Run::default();
        } else if sample.refuses() {
            if track.refusing.began.is_none_or(|began| now.saturating_duration_since(began) > WINDOW) {
                track.refusing = Run::default();
            }
            track.refusing.add(&sample, began);
        }
        (track, Some(sample))
    }

    fn new(signals: Signals, now: Instant) -> Self {
        Self {
            signals,
            at: now,
            step: 0,
            lossy: 0,
            stalled: Run::default(),
            quiet: 0,
            refusing: Run::default(),
            last_established: None,
        }
    }

    fn percent(&self) -> u32 {
        STEPS.get(self.step).copied().unwrap_or(FULL_WEIGHT)
    }

    /// All evidence, for and against.
    fn forget(&mut self) {
        *self = Self { step: self.step, ..Self::new(self.signals, self.at) };
    }

    /// Whether connections come about there, while another endpoint refuses them since `since`.
    fn takes(&self, sample: &Sample, since: Option<Instant>, now: Instant) -> bool {
        if sample.failed() > 0 {
            return sample.established > sample.failed();
        }
        let established = self.last_established.is_some_and(|at| at > since.unwrap_or(now));
        established || (sample.active > 0 && sample.rto == 0.0 && self.refusing.samples == 0)
    }

    /// Moves the weight; evidence if the endpoint is to be ejected.
    fn conclude(&mut self, sample: &Sample, compared: &Comparison, now: Instant) -> Option<String> {
        self.quiet = if compared.quiet { self.quiet + 1 } else { 0 };
        self.lossy = if compared.lossy { self.lossy + 1 } else { 0 };
        if compared.stalled {
            self.stalled.add(sample, now - sample.took);
        } else {
            self.stalled = Run::default();
        }
        if self.lossy >= SAMPLES_DOWN {
            self.lossy = 0;
            self.step = (self.step + 1).min(STEPS.len() - 1);
        }
        if self.quiet >= SAMPLES_UP {
            self.quiet = 0;
            self.step = self.step.saturating_sub(1);
        }
        let refuses = sample.refuses() && (self.refusing.samples >= REFUSING_SAMPLES || sample.failed() >= REFUSALS);
        let evidence = if refuses && compared.others_take {
            let told = self.refusing.tell(now);
            format!("kernel: {told}, none established; peers: {} refused", compared.others_failed)
        } else if self.stalled.samples >= SAMPLES_EJECT {
            let lasted = human(self.stalled.lasted(now));
            let (rto, rate) = (sample.rto_seen, sample.retransmits_rate());
            let median = compared.median;
            format!("kernel: {rto} RTO and {rate:.0} retransmits/s for {lasted}, median of peers {median:.1}/s")
        } else {
            return None;
        };
        self.forget();
        Some(evidence)
    }
}

impl Run {
    fn add(&mut self, sample: &Sample, began: Instant) {
        self.samples += 1;
        self.began.get_or_insert(began);
        self.refused += sample.refused;
        self.unanswered += sample.unanswered;
    }

    fn lasted(&self, now: Instant) -> Duration {
        self.began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began))
    }

    /// `12 connections refused and 1 unanswered in 2s`
    fn tell(&self, now: Instant) -> String {
        let within = human(self.lasted(now));
        let noun = |count| if count == 1 { "connection" } else { "connections" };
        match (self.refused, self.unanswered) {
            (refused, 0) => format!("{refused} {} refused in {within}", noun(refused)),
            (0, unanswered) => format!("{unanswered} {} unanswered in {within}", noun(unanswered)),
            (refused, unanswered) => {
                format!("{refused} {} refused and {unanswered} unanswered in {within}", noun(refused))
            }
        }
    }
}
