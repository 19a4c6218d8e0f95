//! Every metric that a node exposes: the one list from which help texts, types and the documentation come.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution over the buckets of [`super::histogram::BOUNDS`].
    Histogram,
}

impl Kind {
    /// As in `# TYPE`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One row of [`METRICS`].
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As exposed; a counter's ends in `_total`.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Every label it can have; a label without a value is left out, unless the metric is one of ours (`weft_`).
    pub labels: &'static [&'static str],
    /// `# HELP`.
    pub help: &'static str,
}

const fn row(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind, labels, help }
}

use Kind::{Counter, Gauge, Histogram};

/// The table. [`super::Samples::add`] accepts no other name, so nothing is exposed without a help text.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    row("http_server_request_duration_seconds", Histogram, &["http_request_method", "http_route", "http_response_status_code", "error_type", "route", "service"], "Time from a request's head to the end of its response, as clients of this node see it"),
    row("http_client_request_duration_seconds", Histogram, &["http_request_method", "http_response_status_code", "error_type", "service"], "Time of one attempt at an endpoint of the service, connecting included; every retry counts"),
    row("weft_requests_total", Counter, &["route", "service", "code", "reason"], "Requests answered, by the route that matched, the service chosen, the status sent, and why Weft answered itself if it did"),
    row("weft_retries_total", Counter, &["service", "outcome"], "Requests that a retry policy looked at after a failure, by what came of it: recovered, failed, budget_exhausted, body_too_large"),
    row("weft_hedges_total", Counter, &["service", "outcome"], "Requests sent beside one that was slow to be answered: won when their answer was the one that counted, else lost"),
    row("weft_requests_in_flight", Gauge, &["service"], "Requests whose response is not complete yet"),
    row("weft_connections", Gauge, &["side", "state"], "Open connections: side downstream or upstream; state active or idle"),
    row("weft_retry_budget_remaining", Gauge, &["service"], "Retries that the budget of the service still allows now; only for services whose requests are retried or hedged"),
    row("weft_endpoint_health", Gauge, &["service", "port", "endpoint"], "1 when the endpoint may be picked, 0 when health checks or its circuit breaker say no"),
    row("weft_endpoint_breaker_state", Gauge, &["service", "endpoint"], "Circuit breaker of the endpoint: 0 closed, 1 half-open, 2 open; only for services with a circuitBreaker. The worst of the service's ports"),
    row("weft_ejections_total", Counter, &["reason"], "Endpoints taken out by a circuit breaker, by the evidence: consecutive_failures, failure_rate, slow_calls, probe_failed, kernel_signals"),
    row("weft_rate_limited_total", Counter, &["route", "policy"], "Requests refused by a rate limit: the route that they were for, and the limit as NAME.POSITION of its TrafficPolicy"),
    row("weft_verdicts_total", Counter, &["verdict", "reason"], "Connections classified in the kernel: deny, direct, proxy or pass, and why; only with kernel programs, as everything that begins with weft_tcp_"),
    row("weft_tcp_connects_total", Counter, &["service", "endpoint", "outcome"], "Connections to the endpoint, whoever made them, as the kernel counts them: established, refused, timed_out, or aborted by either side before they stood"),
    row("weft_tcp_connections", Gauge, &["service", "endpoint"], "Connections to the endpoint that exist now, whoever made them"),
    row("weft_tcp_retransmits_total", Counter, &["service", "endpoint"], "TCP segments to the endpoint that were sent again"),
    row("weft_tcp_rto_total", Counter, &["service", "endpoint"], "Retransmission time-outs of connections to the endpoint: they stood still for a while"),
    row("weft_tcp_srtt_seconds", Gauge, &["service", "endpoint"], "Smoothed round-trip time of the connection to the endpoint that told of it last; the largest of the service's ports"),
    row("weft_load_shed_level", Gauge, &[], "How much load the node sheds: 0 nothing, n requests of urgency 8-n (0 first, 7 last) and those that are less urgent"),
    row("weft_config_revision", Gauge, &[], "Revision of the configuration in force"),
    row("weft_config_reload_failures_total", Counter, &[], "Configurations refused as invalid; the one in force stayed"),
    row("weft_control_connected", Gauge, &[], "1 while a member of the control plane is connected, 0 while none is; only on a node that follows one, as all of weft_control_"),
    row("weft_control_revision", Gauge, &[], "Revision of the control plane up to which everything was looked at here"),
    row("weft_control_rejected", Gauge, &[], "Documents and endpoints that are not in force as the control plane has them; /config_dump says why"),
    row("weft_control_reconnects_total", Counter, &[], "Connections to members of the control plane that were lost"),
    row("weft_spans_dropped_total", Counter, &["cause"], "Spans that no collector got: queue_full, or export_failed"),
    row("weft_spans_exported_total", Counter, &[], "Spans accepted by the collector"),
    row("weft_access_log_dropped_total", Counter, &[], "Access log lines left out because standard output did not keep up"),
    row("weft_build_info", Gauge, &["version"], "Always 1; says what runs"),
    row("process_cpu_seconds_total", Counter, &[], "User and system CPU time of the process"),
    row("process_resident_memory_bytes", Gauge, &[], "Resident memory"),
    row("process_open_fds", Gauge, &[], "Open file descriptors"),
    row("process_max_fds", Gauge, &[], "Limit of open file descriptors"),
    row("process_threads", Gauge, &[], "Threads"),
    row("process_start_time_seconds", Gauge, &[], "Start of the process, seconds since 1970"),
];

/// What stands above the table.
const HEADING: &str = "\
# Metrics

What `/metrics` on a node's admin port shows, as Prometheus text or OpenMetrics. Durations are in seconds. A family
appears with its first sample. This file is made from `src/telemetry/metrics/table.rs`, which is also where the help
texts come from.

";

/// Position of a name in [`METRICS`].
pub(super) fn index(name: &str) -> Option<usize> {
    METRICS.iter().position(|metric| metric.name == name)
}

/// [`METRICS`] as a Markdown page: `proxy/METRICS.md`.
pub fn markdown() -> String {
    let mut out = String::from(HEADING);
    out.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for Metric { name, kind, labels, help } in METRICS {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(" ");
        out.push_str(&format!("| `{name}` | {} | {labels} | {help} |\n", kind.as_str()));
    }
    out
}
