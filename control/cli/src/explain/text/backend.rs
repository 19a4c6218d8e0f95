//! One backend of a rule: its endpoints, and the policy in force with what is left of it.

use serde_json::Value;

use super::{Sections, filters, join, verdict};
use crate::{
    limits::rate,
    query::{Look, Table, about, clean, each, text, time},
};

/// Its endpoints, then what is in force there.
pub fn render(backend: &Value, look: Look, lines: &mut Vec<String>) {
    let mut wrong = Vec::new();
    if backend["refusal"].is_object() {
        wrong.push(verdict::in_full(&backend["refusal"]));
    }
    // What the service suffers from besides what this request is refused for.
    let told = ["circuit_open", "no_endpoint"].iter().any(|reason| backend["refusal"]["reason"] == *reason);
    wrong.extend(backend["problem"].as_str().filter(|_| !told).map(str::to_owned));
    lines.extend(wrong.iter().map(|line| format!("  {} {}", look.mark(false), clean(line))));
    if backend["weight"] == 0 {
        lines.push("  gets nothing: its weight is 0".into());
        return;
    }
    endpoints(backend, look, lines);
    let mut sections = Sections::default();
    filters(&backend["filters"], &mut sections);
    balancer(&backend["balancer"], &mut sections);
    circuit(backend, &mut sections);
    limits(&backend["rate_limits"], &backend["circuit"], &mut sections);
    pool(&backend["pool"], &mut sections);
    retry(&backend["retry"], &mut sections);
    timeouts(&backend["timeouts"], &mut sections);
    fault(&backend["fault"], &mut sections);
    hedge(&backend["hedge"], &mut sections);
    let adaptive = &backend["concurrency"];
    if adaptive.is_object() {
        let (now, least, most) = (text(&adaptive["limit"]), text(&adaptive["min"]), text(&adaptive["max"]));
        sections.add("adaptive", format!("{now} requests in flight now, between {least} and {most}"));
    }
    priority(&backend["priority"], &mut sections);
    sections.render(look, lines);
}

fn endpoints(backend: &Value, look: Look, lines: &mut Vec<String>) {
    let mut table = Table::bare();
    let owner = &backend["balancer"]["hash"]["endpoint"];
    for endpoint in each(&backend["endpoints"]) {
        let state = text(&endpoint["breaker"]);
        let left = match endpoint["ejection_ms_left"].as_f64() {
            Some(left) if left > 0.0 => format!(" for {}", about(&endpoint["ejection_ms_left"])),
            Some(_) => ", probe due".into(),
            None => String::new(),
        };
        let breaker = match (&*state, endpoint["ejected"] == true) {
            // Its circuit is null: there is no breaker.
            _ if !backend["circuit"].is_string() => String::new(),
            (_, true) => format!("{state}, ejected{left}"),
            ("open", false) => format!("open{left}, kept in rotation"),
            _ => state,
        };
        let mut notes = Vec::new();
        if !owner.is_null() && *owner == endpoint["address"] {
            notes.push("<- this request's key leads here".into());
        }
        if backend["probe"].is_string() && backend["probe"] == endpoint["address"] {
            notes.push("<- this request is its probe".into());
        }
        if endpoint["evidence"].is_string() {
            notes.push(text(&endpoint["evidence"]));
        }
        table.row([
            text(&endpoint["address"]).into(),
            endpoint["zone"].as_str().map_or_else(String::new, |zone| format!("zone {zone}")).into(),
            format!("weight {}", text(&endpoint["weight"])).into(),
            text(&endpoint["health"]).into(),
            breaker.into(),
            format!("{} in flight", text(&endpoint["in_flight"])).into(),
            time(&endpoint["ewma_ms"]).into(),
            notes.join("; ").into(),
        ]);
    }
    for (endpoint, line) in each(&backend["endpoints"]).zip(table.lines(look)) {
        lines.push(format!("  {} {line}", look.mark(endpoint["usable"] == true)));
    }
}

pub(super) fn balancer(balancer: &Value, sections: &mut Sections) {
    if !balancer.is_object() {
        return;
    }
    let mut parts = vec![text(&balancer["type"])];
    if balancer["slow_start_ms"].as_f64().unwrap_or(0.0) > 0.0 {
        parts.push(format!("slow start {}", time(&balancer["slow_start_ms"])));
    }
    sections.add("balancer", parts.join(", "));
    let hash = &balancer["hash"];
    if hash.is_object() {
        let by_address = hash["by_address"] == true;
        let key = match (by_address, hash["value"].as_str()) {
            (false, Some(value)) => format!("{} = \"{value}\"", text(&hash["key"])),
            (true, Some(value)) => format!("the client's address, {value}"),
            (_, None) => "the client's address (say which: --client IP)".into(),
        };
        let missing = if by_address && hash["key"] != "the client's address" {
            format!("; the request has no {}", text(&hash["key"]))
        } else {
            String::new()
        };
        sections.add("balancer", format!("by {key}{missing}"));
    }
    if balancer["panicking"] == true {
        let share = text(&balancer["panic_threshold_percent"]);
        sections
            .add("balancer", format!("PANIC: less than {share} % of the endpoints are usable, so health is ignored"));
    }
}

fn circuit(backend: &Value, sections: &mut Sections) {
    let policy = &backend["circuit_breaker"];
    if backend["circuit"].is_string() {
        let probe = match (&backend["next_probe_ms"], backend["circuit"] == "half_open") {
            (Value::Null, _) => String::new(),
            (_, true) => ", a probe is out".into(),
            (left, _) if left.as_f64().is_some_and(|left| left > 0.0) => format!(", next probe in {}", about(left)),
            _ => ", a probe is due".into(),
        };
        sections.add("circuit", format!("{}{probe}", text(&backend["circuit"])));
    }
    if !policy.is_object() {
        return;
    }
    let rate = &policy["failure_rate"];
    let mut causes = vec![
        format!("{} failures in a row", text(&policy["consecutive_failures"])),
        format!(
            "{} % of {} or more failing in {}",
            text(&rate["percent"]),
            text(&rate["minimum_requests"]),
            time(&rate["window_ms"])
        ),
    ];
    let slow = &policy["slow_calls"];
    if slow.is_object() {
        let (percent, least) = (text(&slow["percent"]), text(&slow["minimum_requests"]));
        causes.push(format!("{percent} % of {least} or more taking {}", time(&slow["threshold_ms"])));
    }
    sections.add("circuit", format!("opens after {}", causes.join(", or ")));
    let (base, most) = (time(&policy["base_ejection_ms"]), time(&policy["max_ejection_ms"]));
    let share = text(&policy["max_ejection_percent"]);
    sections.add("circuit", format!("ejects for {base} to {most}, at most {share} % of the endpoints"));
}

pub(super) fn limits(limits: &Value, circuit: &Value, sections: &mut Sections) {
    for limit in each(limits) {
        let key = match (limit["key"].as_str().unwrap_or_default(), limit["value"].as_str()) {
            ("global", _) => "for everybody together".into(),
            (key, Some(value)) => format!("for {key} = \"{value}\""),
            ("sourceIP", None) => "per client address (say which: --client IP)".into(),
            ("identity", None) => "does not apply: no listener knows client identities yet".into(),
            (key, None) => format!("does not apply: the request has no {key}"),
        };
        let mut line = format!("{}: {}, burst {}, {key}", text(&limit["name"]), rate(limit), text(&limit["burst"]));
        match (limit["remaining"].as_u64(), limit["wait_ms"].as_f64()) {
            (Some(0), Some(wait)) if wait > 0.0 => {
                line.push_str(&format!(", USED UP: next in {}", about(&limit["wait_ms"])));
            }
            (Some(left), _) => line.push_str(&format!(", {left} left")),
            (None, _) => {}
        }
        if limit["applies"] == true
            && let Some(factor) = limit["factor"].as_f64().filter(|factor| *factor < 1.0)
        {
            let cause = if circuit == "closed" { "until the circuit has recovered" } else { "by the open circuit" };
            line.push_str(&format!(", cut to {} % {cause}", (factor * 100.0).round()));
        }
        sections.add("limits", line);
    }
}

fn pool(pool: &Value, sections: &mut Sections) {
    if !pool.is_object() {
        return;
    }
    let used = |used: &str, most: &str, what: &str| match &pool[used] {
        Value::Null => format!("at most {} {what}", text(&pool[most])),
        count => format!("{count} of {} {what}", text(&pool[most])),
    };
    sections.add(
        "pool",
        [
            used("requests_in_flight", "max_requests", "requests in flight"),
            used("connections", "max_connections", "connections"),
            used("pending", "max_pending_requests", "waiting"),
        ]
        .join(", "),
    );
}

fn retry(retry: &Value, sections: &mut Sections) {
    if !retry.is_object() {
        return;
    }
    sections.add("retries", format!("{} more on {}", text(&retry["attempts"]), join(&retry["retry_on"], ", ")));
    sections.add("retries", text(&retry["why"]));
    let backoff = &retry["backoff"];
    let (base, most) = (time(&backoff["base_ms"]), time(&backoff["max_ms"]));
    let mut line = format!("waits {base} to {most} (jitter {})", text(&backoff["jitter"]).to_lowercase());
    if backoff["least_ms"].as_f64().is_some_and(|least| least > 0.0) {
        line.push_str(&format!(", at least {}", time(&backoff["least_ms"])));
    }
    if let Some(bytes) = retry["max_body_bytes"].as_u64() {
        line.push_str(&format!("; keeps bodies up to {}", size(bytes)));
    }
    sections.add("retries", line);
    let budget = &retry["budget"];
    let (percent, least, ttl) = (text(&budget["percent"]), text(&budget["min_per_second"]), time(&budget["ttl_ms"]));
    let mut line = format!("budget {percent} % of the requests of {ttl} and {least} per second");
    match budget["remaining"].as_u64() {
        Some(0) => line.push_str(", USED UP"),
        Some(left) => line.push_str(&format!(", {left} left")),
        None => {}
    }
    if !retry["in_flight"].is_null() {
        line.push_str(&format!("; {} of {} in flight", text(&retry["in_flight"]), text(&retry["max_retries"])));
    }
    sections.add("retries", line);
}

/// As in a configuration: `64KiB`.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "0 bytes".into(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

fn timeouts(timeouts: &Value, sections: &mut Sections) {
    if !timeouts.is_object() {
        return;
    }
    let mut parts = vec![format!("connect {}", time(&timeouts["connect_ms"]))];
    if !timeouts["request_ms"].is_null() {
        parts.push(format!("request {} ({})", time(&timeouts["request_ms"]), text(&timeouts["request_covers"])));
    }
    for (name, label) in [("attempt_ms", "attempt"), ("idle_ms", "idle")] {
        if !timeouts[name].is_null() {
            parts.push(format!("{label} {}", time(&timeouts[name])));
        }
    }
    sections.add("time-outs", parts.join(", "));
    for word in each(&timeouts["client"]) {
        let verdict = match word["why_not"].as_str() {
            None => "counts: the client waits no longer".to_owned(),
            Some(why) => format!("does not count: {why}"),
        };
        sections.add("time-outs", format!("{}: {} {verdict}", text(&word["header"]), text(&word["value"])));
    }
}

pub(super) fn fault(fault: &Value, sections: &mut Sections) {
    if !fault.is_object() {
        return;
    }
    if fault["applies"] == false {
        sections.add("fault", format!("not for this request: only with {}", text(&fault["header"])));
        return;
    }
    let (delay, abort) = (&fault["delay"], &fault["abort"]);
    if delay.is_object() {
        sections.add("fault", format!("{} % wait {}", text(&delay["percent"]), time(&delay["ms"])));
    }
    if abort.is_object() {
        let how = if abort["status"].is_null() { &abort["grpc_status"] } else { &abort["status"] };
        sections.add("fault", format!("{} % are answered with {}", text(&abort["percent"]), text(how)));
    }
}

fn hedge(hedge: &Value, sections: &mut Sections) {
    if !hedge.is_object() {
        return;
    }
    let after = match (&hedge["after_ms"], &hedge["now_ms"]) {
        (Value::Null, Value::Null) => format!("{}, which too few answers tell yet", text(&hedge["after_quantile"])),
        (Value::Null, now) => format!("{}, {} now", text(&hedge["after_quantile"]), time(now)),
        (after, _) => time(after),
    };
    let not = if hedge["allowed"] == false { "not for this request, which is not idempotent: " } else { "" };
    sections.add("hedging", format!("{not}{} more to another endpoint after {after}", text(&hedge["max_extra"])));
}

/// Only where something is out of the ordinary.
fn priority(priority: &Value, sections: &mut Sections) {
    let (policy, request, shed) = (&priority["policy"], &priority["request"], &priority["shed_from"]);
    if !priority.is_object() || (*policy == 3 && request.is_null() && shed.is_null()) {
        return;
    }
    let says = match request {
        Value::Null => "the request says nothing".into(),
        said => format!("the request says u={said}"),
    };
    let sheds = match shed {
        Value::Null => "nothing is shed now".into(),
        from => format!("the node sheds from urgency {from} on"),
    };
    let urgency = text(&priority["urgency"]);
    sections.add("priority", format!("urgency {urgency} of 0 to 7 (its policy says {policy}, {says}); {sheds}"));
}
