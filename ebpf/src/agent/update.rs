//! Brings the maps in line with what the proxy knows, and with the cgroups that there are.

use std::{collections::HashMap, sync::PoisonError};

use weft_ebpf_abi::{Action, MAX_DEPTH};
use weft_model::config::Key;

use super::{Inner, State, View};
use crate::{
    maps::{Live, desired},
    netns,
    programs::EbpfSetupError,
    reconcile::Report,
    sys,
};

/// A program takes microseconds; what it may have read is kept for so long, in nanoseconds.
const GRACE_NS: u64 = 1_000_000_000;

impl Inner {
    /// Brings the maps in line with the configuration, the endpoints and the cgroups that there are.
    pub(super) fn reconcile(&self, state: &mut State) -> Result<(), EbpfSetupError> {
        let policies = state.config.access_policies.iter();
        let mut sources = policies.flat_map(|policy| &policy.rules).flat_map(|rule| &rule.from);
        if sources.any(|source| !source.ip_blocks.is_empty()) {
            // Only then the addresses matter from which endpoints are reached.
            find_sources(&mut state.live);
        }
        let wanted = desired(&state.config, &state.live, |relative| self.attach.below(relative));
        state.cgroups = wanted.workloads.keys().copied().collect();
        state.by_address = !wanted.groups.is_empty();
        let mut ports = wanted.services.iter().flat_map(|service| &service.ports);
        state.proxied = ports.any(|port| port.action == Action::Proxy);
        let report = state.reconciler.apply(&wanted, &mut state.maps)?;
        if state.settings.depth != wanted.depth {
            state.settings.depth = wanted.depth;
            state.write_settings()?;
        }
        let mut view = View::default();
        view.names.names = wanted.names;
        for live in &state.live {
            if let Some(place) = state.reconciler.place_of(live.id) {
                view.places.insert(live.id, place);
                view.names.endpoints.insert(place, live.address);
            }
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        self.follow_up(state, report, &wanted.too_deep);
        Ok(())
    }

    /// Gives back what was replaced: programs that may still have read it have ended long since.
    pub(super) fn reclaim(&self, state: &mut State) -> Result<(), EbpfSetupError> {
        if state.reconciler.waiting() && sys::now_ns().saturating_sub(state.applied_ns) >= GRACE_NS {
            state.reconciler.reclaim(&mut state.maps)?;
        }
        Ok(())
    }

    /// Complains of what did not fit, and notes which connections are stale.
    fn follow_up(&self, state: &mut State, report: Report, too_deep: &[Key]) {
        let deep = too_deep.iter().map(|key| {
            format!(
                "Workload {key} is not recognised: its cgroup is more than {MAX_DEPTH} levels below the attach point"
            )
        });
        state.again = report.again;
        state.applied_ns = sys::now_ns();
        let complaints: Vec<String> = report.unfit.iter().map(ToString::to_string).chain(deep).collect();
        if complaints != state.complained {
            complaints.iter().for_each(|complaint| tracing::error!("{complaint}"));
            state.complained = complaints;
        }
        if let Some(after) = self.end_stale {
            let at = sys::now_ns().saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
            state.stale.extend(report.removed.into_iter().map(|removed| (at, removed)));
        }
    }
}

/// Finds out from which local address each endpoint is reached.
fn find_sources(live: &mut [Live]) {
    let mut known = HashMap::new();
    for one in live.iter_mut() {
        let ip = one.address.ip();
        one.source = *known.entry(ip).or_insert_with(|| netns::source(ip));
    }
}
