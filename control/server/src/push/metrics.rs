//! Counters of the push, and how they are shown. Histograms are beside what they measure, gauges are counted when
//! somebody asks.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Push,
    convergence::{BOUNDS, Histogram},
    fleet::Counts,
    quorum::Health,
};

/// Of one type.
#[derive(Debug, Default)]
pub(super) struct TypeCounters {
    pub responses: AtomicU64,
    pub resources: AtomicU64,
    pub acks: AtomicU64,
    pub nacks: AtomicU64,
}

/// Of a member.
#[derive(Debug)]
pub(super) struct Counters {
    pub types: Vec<TypeCounters>,
    pub bytes: AtomicU64,
}

impl Counters {
    pub(super) fn new(types: usize) -> Self {
        Self { types: (0..types).map(|_| TypeCounters::default()).collect(), bytes: AtomicU64::new(0) }
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Its name, what it means, and where it is.
type Counter = (&'static str, &'static str, fn(&TypeCounters) -> &AtomicU64);

/// What is said about the push, in Prometheus's text format.
pub(super) fn render(push: &Push) -> String {
    let mut text = String::new();
    head(&mut text, "weft_push_serving", "gauge", "1 while this member hears the others, and so serves nodes.");
    let serving = *push.health.borrow() == Health::Serving;
    let _ = writeln!(text, "weft_push_serving {}", u8::from(serving));

    head(&mut text, "weft_push_streams", "gauge", "Streams to this member, by the `client` that asks.");
    for (client, streams) in push.nodes.clients() {
        let _ = writeln!(text, "weft_push_streams{{client=\"{}\"}} {streams}", escaped(&client));
    }
    let help = "Nodes of this member, by `state`: synced, stale, nacked; disconnected ones were here a short time ago.";
    head(&mut text, "weft_push_nodes", "gauge", help);
    let Counts { synced, stale, nacked, disconnected } = Counts::of(&push.nodes.view());
    for (state, nodes) in [("synced", synced), ("stale", stale), ("nacked", nacked), ("disconnected", disconnected)] {
        let _ = writeln!(text, "weft_push_nodes{{state=\"{state}\"}} {nodes}");
    }

    let counters: [Counter; 4] = [
        ("weft_push_responses_total", "Responses sent, by `type` of resource.", |of| &of.responses),
        ("weft_push_resources_total", "Resources sent, and removals, by `type`.", |of| &of.resources),
        ("weft_push_acks_total", "Responses that clients took, by `type`.", |of| &of.acks),
        ("weft_push_nacks_total", "Responses of which clients did not take something, by `type`.", |of| &of.nacks),
    ];
    for (name, help, counter) in counters {
        head(&mut text, name, "counter", help);
        for (spec, of) in push.logs.specs().iter().zip(&push.counters.types) {
            let short = spec.url.rsplit('/').next().unwrap_or(spec.url);
            let _ = writeln!(text, "{name}{{type=\"{short}\"}} {}", counter(of).load(Ordering::Relaxed));
        }
    }
    head(&mut text, "weft_push_bytes_total", "counter", "Bytes of responses sent.");
    let _ = writeln!(text, "weft_push_bytes_total {}", push.counters.bytes.load(Ordering::Relaxed));

    let name = "weft_push_convergence_seconds";
    let help = "From a revision's being applied on this member to the last answer of the streams that had to take it.";
    head(&mut text, name, "histogram", help);
    let Histogram { counts, sum } = push.logs.convergence();
    let mut total = 0;
    for (bound, count) in BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]).zip(counts) {
        total += count;
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
    }
    let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {total}");
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
