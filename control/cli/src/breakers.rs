//! `weft breakers`: which circuit breakers are open, since when, until when, and on what evidence.

use serde_json::Value;

use crate::{
    endpoints::urgency,
    query::{Cell, Look, Table, Tone, about, each, service, state, text},
};

/// Events shown at most.
const EVENTS: usize = 20;

/// Columns of `/endpoints`, as far as they are about breakers. A service whose `circuit` is null has none.
pub fn table(services: &Value, look: Look) -> String {
    let with_breaker = || each(services).filter(|of| of["circuit"].is_string());
    let mut rows = Vec::new();
    for of in with_breaker() {
        for endpoint in each(&of["endpoints"]).filter(|endpoint| endpoint["breaker"].is_string()) {
            let open = endpoint["breaker"] != "closed";
            let ejected = match (endpoint["ejected"].as_bool(), open) {
                (Some(true), _) => Cell::toned(Tone::Bad, "yes"),
                // Not more than maxEjectionPercent are taken out.
                (Some(false), true) => Cell::toned(Tone::Warn, "no, kept"),
                _ => "-".into(),
            };
            let row = vec![
                service(of).into(),
                state(&of["circuit"]),
                text(&endpoint["address"]).into(),
                state(&endpoint["breaker"]),
                ejected,
                if open { since(of, endpoint).into() } else { "-".into() },
                about(&endpoint["ejection_ms_left"]).into(),
                text(&endpoint["ejections"]).into(),
                text(&endpoint["evidence"]).into(),
            ];
            rows.push((urgency(endpoint), row));
        }
    }
    if each(services).next().is_some() && each(services).all(|of| of.get("circuit").is_none()) {
        return "this node does not tell about circuit breakers".into();
    }
    if rows.is_empty() {
        return "no circuit breakers are configured".into();
    }
    rows.sort_by_key(|(urgency, _)| *urgency);
    let headings = ["SERVICE", "CIRCUIT", "ENDPOINT", "STATE", "EJECTED", "SINCE", "LEFT", "EJECTIONS", "EVIDENCE"];
    let mut table = Table::new(headings);
    rows.into_iter().for_each(|(_, row)| table.row(row));
    let mut shown = table.render(look);
    if look.wide {
        shown.push_str("\n\n");
        shown.push_str(&events(with_breaker(), look));
    }
    shown
}

/// When the endpoint's breaker last changed, if that is still remembered.
fn since(of: &Value, endpoint: &Value) -> String {
    let own = each(&of["events"]).filter(|event| event["endpoint"] == endpoint["address"]);
    let last = own.max_by(|a, b| a["at"].as_str().cmp(&b["at"].as_str()));
    last.map_or_else(|| "-".into(), |event| text(&event["at"]))
}

/// What changed lately, the latest first.
fn events<'v>(services: impl Iterator<Item = &'v Value>, look: Look) -> String {
    let mut events: Vec<_> = services.flat_map(|of| each(&of["events"]).map(move |event| (of, event))).collect();
    if events.is_empty() {
        return "no breaker has changed lately".into();
    }
    // RFC 3339 in UTC sorts as text.
    events.sort_by(|a, b| b.1["at"].as_str().cmp(&a.1["at"].as_str()));
    let mut table = Table::new(["AT", "SERVICE", "ENDPOINT", "FROM", "TO", "FOR", "EVIDENCE"]);
    for (of, event) in events.into_iter().take(EVENTS) {
        table.row([
            text(&event["at"]).into(),
            service(of).into(),
            text(&event["endpoint"]).into(),
            state(&event["from"]),
            state(&event["to"]),
            about(&event["for_ms"]).into(),
            text(&event["evidence"]).into(),
        ]);
    }
    table.render(look)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn state_evidence_and_events() {
        let services = json!([
            {"service": "plain", "port": 80, "circuit": null, "events": [],
                "endpoints": [{"address": "10.0.0.9:1", "breaker": "closed"}]},
            {"service": "cart", "port": 80, "circuit": "closed",
                "events": [
                    {"at": "2026-01-02T03:04:05Z", "endpoint": "10.0.0.2:1", "from": "closed", "to": "open",
                        "evidence": "5 of 5 failed: connect_failed", "for_ms": 5200},
                    {"at": "2026-01-02T03:00:00Z", "endpoint": "10.0.0.1:1", "from": "half_open", "to": "closed",
                        "evidence": null, "for_ms": null}],
                "endpoints": [
                    {"address": "10.0.0.1:1", "breaker": "closed", "ejected": false, "evidence": null,
                        "ejection_ms_left": null, "ejections": 0},
                    {"address": "10.0.0.2:1", "breaker": "open", "ejected": true,
                        "evidence": "5 of 5 failed: connect_failed", "ejection_ms_left": 3100, "ejections": 1}]},
        ]);
        assert_eq!(
            table(&services, Look { wide: true, ..Look::default() }),
            "\
SERVICE  CIRCUIT  ENDPOINT    STATE   EJECTED  SINCE                 LEFT  EJECTIONS  EVIDENCE
cart:80  closed   10.0.0.2:1  open    yes      2026-01-02T03:04:05Z  3.1s  1          5 of 5 failed: connect_failed
cart:80  closed   10.0.0.1:1  closed  -        -                     -     0          -

AT                    SERVICE  ENDPOINT    FROM       TO      FOR   EVIDENCE
2026-01-02T03:04:05Z  cart:80  10.0.0.2:1  closed     open    5.2s  5 of 5 failed: connect_failed
2026-01-02T03:00:00Z  cart:80  10.0.0.1:1  half_open  closed  -     -"
        );
        assert_eq!(table(&json!([services[0]]), Look::default()), "no circuit breakers are configured");
        let old = json!([{"service": "cart", "port": 80, "endpoints": []}]);
        assert_eq!(table(&old, Look::default()), "this node does not tell about circuit breakers");
    }
}
