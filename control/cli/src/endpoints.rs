//! `weft endpoints`: health, circuit breaker, load and latency of every endpoint, the worst first.

use serde_json::Value;

use crate::query::{Cell, Look, Table, Tone, each, service, state, text};

/// Columns of `/endpoints`.
pub fn table(services: &Value, look: Look) -> String {
    let mut headings = vec!["SERVICE", "ENDPOINT", "HEALTH", "BREAKER", "IN FLIGHT", "EWMA MS", "REQUESTS", "FAILURES"];
    // Only a node with kernel programs knows.
    let kernel = each(services).flat_map(|of| each(&of["endpoints"])).any(|endpoint| endpoint["kernel"].is_object());
    if look.wide {
        headings.extend(["WEIGHT", "ZONE", "HOSTNAME"]);
        headings.extend(["RTT", "RETRANS"].iter().filter(|_| kernel));
        headings.extend(["EJECTIONS", "EVIDENCE"]);
    }
    let mut rows = Vec::new();
    for of in each(services) {
        if each(&of["endpoints"]).next().is_none() {
            rows.push((0, vec![service(of).into(), Cell::toned(Tone::Bad, "(no endpoints)")]));
        }
        for endpoint in each(&of["endpoints"]) {
            let cell = |field: &str| Cell::from(text(&endpoint[field]));
            let breaker = if of["circuit"].is_null() { "-".into() } else { breaker(endpoint) };
            let mut row = vec![service(of).into(), cell("address"), health(endpoint), breaker];
            row.extend([cell("in_flight"), latency(endpoint), cell("requests"), cell("failures")]);
            if look.wide {
                row.extend([weight(endpoint), cell("zone"), cell("hostname")]);
                if kernel {
                    let signals = &endpoint["kernel"];
                    row.extend([round_trip(signals), text(&signals["retransmits"]).into()]);
                }
                row.extend(["ejections", "evidence"].map(cell));
            }
            rows.push((urgency(endpoint), row));
        }
    }
    if rows.is_empty() {
        return "no services are configured".into();
    }
    rows.sort_by_key(|(urgency, _)| *urgency);
    let mut table = Table::new(headings);
    rows.into_iter().for_each(|(_, row)| table.row(row));
    table.render(look)
}

/// One that drains gets no request that could find out.
fn health(endpoint: &Value) -> Cell {
    if endpoint["state"] == "draining" { Cell::toned(Tone::Warn, "draining") } else { state(&endpoint["health"]) }
}

/// Before the first request it is nothing but an assumption.
fn latency(endpoint: &Value) -> Cell {
    match endpoint["ewma_ms"].as_f64().filter(|_| endpoint["requests"] != 0) {
        Some(ms) => format!("{ms:.2}").into(),
        None => "-".into(),
    }
}

/// How much of it counts, if that is less than all.
fn weight(endpoint: &Value) -> Cell {
    let weight = text(&endpoint["weight"]);
    match endpoint["weight_percent"].as_u64().filter(|percent| *percent < 100) {
        Some(percent) => Cell::toned(Tone::Warn, format!("{weight} ({percent} %)")),
        None => weight.into(),
    }
}

fn round_trip(signals: &Value) -> Cell {
    signals["srtt_ms"].as_f64().map_or_else(|| "-".into(), |ms| format!("{ms:.2}ms").into())
}

fn breaker(endpoint: &Value) -> Cell {
    if endpoint["breaker"] == "open" && endpoint["ejected"] == false {
        return Cell::toned(Tone::Bad, "open (kept)");
    }
    state(&endpoint["breaker"])
}

/// The smaller, the earlier it is shown.
pub fn urgency(endpoint: &Value) -> u8 {
    if endpoint["ejected"] == true || endpoint["breaker"] == "open" || endpoint["health"] == "unhealthy" {
        0
    } else if endpoint["breaker"] == "half_open" {
        1
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let endpoint = |address: &str, health: &str, breaker: &str, ejected: bool| {
            json!({"address": address, "hostname": null, "zone": "a", "weight": 1, "health": health, "breaker": breaker,
                "ejected": ejected, "evidence": null, "ejections": 0, "in_flight": 2, "ewma_ms": 1.25, "requests": 10,
                "failures": 1})
        };
        let mut fresh = endpoint("10.0.0.5:9000", "unknown", "closed", false);
        fresh["requests"] = json!(0);
        let mut leaving = endpoint("10.0.0.6:9000", "healthy", "closed", false);
        leaving["state"] = json!("draining");
        let services = json!([
            {"service": "cart", "port": 80, "circuit": "closed", "endpoints": [
                endpoint("10.0.0.1:9000", "healthy", "closed", false),
                endpoint("10.0.0.2:9000", "unknown", "half_open", false),
                endpoint("10.0.0.3:9000", "healthy", "open", false),
                endpoint("10.0.0.4:9000", "healthy", "open", true)]},
            {"service": "shop/empty", "port": 81, "circuit": null, "endpoints": []},
            {"service": "plain", "port": 80, "circuit": null, "endpoints": [fresh, leaving]},
        ]);
        assert_eq!(
            table(&services, Look::default()),
            "\
SERVICE        ENDPOINT        HEALTH    BREAKER      IN FLIGHT  EWMA MS  REQUESTS  FAILURES
cart:80        10.0.0.3:9000   healthy   open (kept)  2          1.25     10        1
cart:80        10.0.0.4:9000   healthy   open         2          1.25     10        1
shop/empty:81  (no endpoints)
cart:80        10.0.0.2:9000   unknown   half_open    2          1.25     10        1
cart:80        10.0.0.1:9000   healthy   closed       2          1.25     10        1
plain:80       10.0.0.5:9000   unknown   -            2          -        0         1
plain:80       10.0.0.6:9000   draining  -            2          1.25     10        1"
        );
        let wide = table(&services, Look { wide: true, ..Look::default() });
        assert!(wide.lines().next().is_some_and(|line| line.ends_with("WEIGHT  ZONE  HOSTNAME  EJECTIONS  EVIDENCE")));
        assert_eq!(table(&json!([]), Look::default()), "no services are configured");
    }

    #[test]
    fn what_the_kernel_counts_is_shown_where_there_is_one() {
        let kernel = json!({"retransmits": 12, "srtt_ms": 0.42});
        let endpoints = json!([
            {"address": "a", "weight": 2, "weight_percent": 25, "kernel": kernel},
            {"address": "b", "weight": 2, "weight_percent": 100, "kernel": {"retransmits": 0, "srtt_ms": null}},
            {"address": "c", "weight": 2},
        ]);
        let services = json!([{"service": "cart", "port": 80, "circuit": null, "endpoints": endpoints}]);
        let wide = table(&services, Look { wide: true, ..Look::default() });
        let ends: Vec<Vec<&str>> = wide.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
        let ends =
            ends.iter().map(|row| row.iter().filter(|cell| !cell.is_empty()).skip(8).copied().collect::<Vec<_>>());
        let expect = [
            vec!["WEIGHT", "ZONE", "HOSTNAME", "RTT", "RETRANS", "EJECTIONS", "EVIDENCE"],
            vec!["2 (25 %)", "-", "-", "0.42ms", "12", "-", "-"],
            vec!["2", "-", "-", "-", "0", "-", "-"],
            vec!["2", "-", "-", "-", "-", "-", "-"],
        ];
        assert_eq!(ends.collect::<Vec<_>>(), expect, "{wide}");
        assert!(!table(&services, Look::default()).contains("RETRANS"));
    }
}
