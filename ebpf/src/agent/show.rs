//! What the agent shows of itself.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use serde_json::{Value, json};
use weft_ebpf_abi as abi;

use super::{Agent, background, lock};
use crate::{
    flows::{Clock, counters, socket, verdict_name},
    status, sys,
};

impl Agent {
    /// Verdicts so far, by verdict and reason; those that never were are left out.
    pub fn verdicts(&self) -> Vec<(&'static str, &'static str, u64)> {
        let state = lock(&self.inner.state);
        let all = counters().map(|(verdict, reason, counter)| (verdict, reason, state.maps.verdict(counter)));
        all.filter(|(.., count)| *count > 0).collect()
    }

    /// Verdicts after number `after`. From the first question on, and for some seconds after the last, all of them are
    /// reported, otherwise only refusals.
    pub fn flows(&self, after: u64) -> Value {
        let before = self.inner.followed_ns.swap(sys::now_ns(), Relaxed);
        let lost = {
            let state = &mut *lock(&self.inner.state);
            if before == 0 || state.settings.follow == 0 {
                background::follow(state, true);
            }
            state.maps.lost_events()
        };
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        lock(&self.inner.flows).after(after, &view.names, lost)
    }

    /// Connections that are alive, oldest first.
    pub fn connections(&self) -> Value {
        let mut all: Vec<abi::Connection> = {
            let state = lock(&self.inner.state);
            state.maps.connections.iter().flatten().map(|(_, connection)| connection).collect()
        };
        all.sort_by_key(|connection| connection.meta.since_ns);
        let clock = Clock::now();
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let names = &view.names;
        let show = |connection: &abi::Connection| {
            let meta = &connection.meta;
            json!({
                "verdict": verdict_name(meta.verdict as u8),
                "workload": names.name(meta.workload),
                "pid": meta.pid,
                "source": socket(connection.local, connection.local_port).to_string(),
                "destination": socket(meta.dest, meta.dest_port).to_string(),
                "service": names.name(meta.service),
                "endpoint": names.endpoint(meta.endpoint, meta.generation).map(|address| address.to_string()),
                "since_ms": clock.unix_ms(meta.since_ns),
            })
        };
        Value::Array(all.iter().map(show).collect())
    }

    /// Programs, attach point, maps.
    pub fn status(&self) -> Value {
        let state = lock(&self.inner.state);
        let mut status = status::of(&self.inner.attach, &self.inner.pins, &state.maps);
        status["attached"] = state.attached.into();
        status["unfit"] = state.complained.clone().into();
        status
    }
}
