//! The answer of `/explain`, for somebody who was woken up by it.

use serde_json::Value;

use crate::{
    limits::rate,
    query::{Cell, Look, Table, Tone, clean, each, service, text, time},
};

/// Rules that do not serve the request: the nearest ones are shown.
const OTHERS: usize = 20;

/// Everything but what is off.
pub fn render(answer: &Value, look: Look) -> String {
    let request = &answer["request"];
    let port = request["port"].as_u64().map_or_else(String::new, |port| format!(":{port}"));
    let query = request["query"].as_str().map_or_else(String::new, |query| format!("?{query}"));
    let part = |name: &str| text(&request[name]);
    let url = format!("{} {}://{}{port}{}{query}", part("method"), part("scheme"), part("host"), part("path"));
    let mut lines = vec![look.paint(Tone::Bold, &clean(&url))];
    for listener in each(&answer["listeners"]) {
        lines.push(String::new());
        on_listener(listener, look, &mut lines);
    }
    if each(&answer["listeners"]).next().is_none() {
        lines.push(String::new());
        lines.push(format!("{} no listener takes this request", look.mark(false)));
        let mut table = Table::bare();
        for skipped in each(&answer["skipped"]) {
            table.row(["  listener".into(), listener_name(skipped).into(), text(&skipped["why"]).into()]);
        }
        lines.extend(table.lines(look));
    }
    lines.join("\n")
}

fn listener_name(listener: &Value) -> String {
    let part = |name: &str| text(&listener[name]);
    format!("{}/{} on {} ({})", part("gateway"), part("listener"), part("address"), part("protocol"))
}

fn rule_name(rule: &Value) -> String {
    format!("{} {}, rule {}", text(&rule["kind"]), text(&rule["route"]), text(&rule["rule"]))
}

fn on_listener(listener: &Value, look: Look, lines: &mut Vec<String>) {
    lines.push(look.paint(Tone::Bold, &clean(&format!("Listener {}", listener_name(listener)))));
    let rule = &listener["rule"];
    let mut table = Table::bare();
    let mut marks = Vec::new();
    if rule.is_object() {
        marks.push(true);
        table.row([rule_name(rule).into(), Cell::toned(Tone::Good, format!("serves it: {}", text(&rule["match"])))]);
    } else {
        let refusal = match listener["outcome"].as_str() {
            Some("method_not_allowed") => {
                format!("405 method_not_allowed, allowed: {}", join(&listener["allow"], ", "))
            }
            _ => "404 no_route".into(),
        };
        lines.push(format!("  {} no rule matches: {refusal}", look.mark(false)));
    }
    let others: Vec<_> = each(&listener["others"]).collect();
    for other in others.iter().take(OTHERS) {
        marks.push(false);
        table.row([rule_name(other).into(), reasons(other).into()]);
    }
    for (mark, line) in marks.into_iter().zip(table.lines(look)) {
        lines.push(format!("  {} {line}", look.mark(mark)));
    }
    if others.len() > OTHERS {
        lines.push(format!("    ... and {} more that are further off (all of them: -o json)", others.len() - OTHERS));
    }
    let mut sections = Sections::default();
    filters(&listener["filters"], &mut sections);
    if listener["redirect"].is_object() {
        let redirect = &listener["redirect"];
        sections.add("redirect", format!("{} to {}", text(&redirect["status"]), text(&redirect["location"])));
    }
    let forwarded = &listener["forwarded"];
    if forwarded["rewritten"] == true {
        sections.add("sent as", format!("{} to host {}", text(&forwarded["path"]), text(&forwarded["host"])));
    }
    if !sections.0.is_empty() {
        lines.push(String::new());
        lines.push(look.paint(Tone::Bold, &clean(&format!("Rule {}", text(&rule["rule"])))));
        sections.render(look, lines);
    }
    let backends = each(&listener["backends"]).collect::<Vec<_>>();
    if listener["backends"].is_array() && backends.is_empty() {
        lines.push(format!("  {} the rule has no backends: 503 no_endpoint", look.mark(false)));
    }
    for backend in backends {
        lines.push(String::new());
        lines.push(
            look.paint(Tone::Bold, &clean(&format!("Backend {}, {} %", service(backend), text(&backend["percent"])))),
        );
        on_backend(backend, look, lines);
    }
}

/// The reasons that a person needs: of a rule for other hosts, only that.
fn reasons(other: &Value) -> String {
    let all: Vec<String> = each(&other["reasons"]).map(text).collect();
    let shown = if all.first().is_some_and(|first| first.starts_with("hostname")) { 1 } else { 2 };
    match all.len().saturating_sub(shown) {
        0 => all.join("; "),
        more => format!("{}; and {more} more", all[..shown].join("; ")),
    }
}

/// Lines under labels; a label stands at its first line.
#[derive(Default)]
struct Sections(Vec<(&'static str, String)>);

impl Sections {
    fn add(&mut self, label: &'static str, line: impl Into<String>) {
        self.0.push((label, line.into()));
    }

    fn render(self, look: Look, lines: &mut Vec<String>) {
        let mut table = Table::bare();
        let mut before = "";
        for (label, line) in self.0 {
            table.row([format!("  {}", if label == before { "" } else { label }).into(), line.into()]);
            before = label;
        }
        lines.extend(table.lines(look));
    }
}

fn filters(filters: &Value, sections: &mut Sections) {
    for (name, label) in [("request_headers", "request"), ("response_headers", "response")] {
        let modifier = &filters[name];
        let pairs = |verb: &'static str| {
            each(&modifier[verb]).map(move |pair| format!("{verb} {}: {}", text(&pair[0]), text(&pair[1])))
        };
        let removed = each(&modifier["remove"]).map(|name| format!("remove {}", text(name)));
        let changes: Vec<String> = pairs("set").chain(pairs("add")).chain(removed).collect();
        if !changes.is_empty() {
            sections.add(label, changes.join("; "));
        }
    }
    for mirror in each(&filters["mirrors"]) {
        sections.add("mirror", format!("{} % of the requests to {}", text(&mirror["percent"]), service(mirror)));
    }
}

fn on_backend(backend: &Value, look: Look, lines: &mut Vec<String>) {
    if backend["problem"].is_string() {
        let problem = clean(&text(&backend["problem"]));
        lines.push(format!("  {} {problem}: 503 no_endpoint", look.mark(false)));
    }
    if backend["weight"] == 0 {
        lines.push("  gets nothing: its weight is 0".into());
        return;
    }
    endpoints(backend, look, lines);
    let mut sections = Sections::default();
    filters(&backend["filters"], &mut sections);
    balancer(&backend["balancer"], &mut sections);
    circuit(backend, &mut sections);
    limits(&backend["rate_limits"], &mut sections);
    pool(&backend["pool"], &mut sections);
    retry(&backend["retry"], &mut sections);
    timeouts(&backend["timeouts"], &mut sections);
    fault(&backend["fault"], &mut sections);
    let hedge = &backend["hedge"];
    if hedge.is_object() {
        let after = if hedge["after_ms"].is_null() { text(&hedge["after_quantile"]) } else { time(&hedge["after_ms"]) };
        sections.add("hedging", format!("{} more after {after}, to another endpoint", text(&hedge["max_extra"])));
    }
    let adaptive = &backend["concurrency"];
    if adaptive.is_object() {
        let now =
            if adaptive["limit"].is_null() { String::new() } else { format!("{} now, ", text(&adaptive["limit"])) };
        let bounds = format!("between {} and {}", text(&adaptive["min"]), text(&adaptive["max"]));
        sections.add("adaptive", format!("{now}{bounds} requests in flight"));
    }
    if !backend["priority"].is_null() {
        sections
            .add("priority", format!("urgency {} (0 is served first, 7 is shed first)", text(&backend["priority"])));
    }
    sections.render(look, lines);
}

fn endpoints(backend: &Value, look: Look, lines: &mut Vec<String>) {
    let mut table = Table::bare();
    let owner = &backend["balancer"]["hash"]["endpoint"];
    for endpoint in each(&backend["endpoints"]) {
        let breaker = match (endpoint["breaker"].as_str(), endpoint["ejected"].as_bool()) {
            (None, _) => String::new(),
            (Some(state), Some(true)) => match time(&endpoint["ejection_ms_left"]).as_str() {
                "-" => format!("{state}, ejected"),
                left => format!("{state}, ejected for {left}"),
            },
            (Some("open"), Some(false)) => "open, kept in rotation".into(),
            (Some(state), _) => state.to_owned(),
        };
        let mut notes = Vec::new();
        if !owner.is_null() && *owner == endpoint["address"] {
            notes.push("<- this request's key leads here".into());
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

fn balancer(balancer: &Value, sections: &mut Sections) {
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
        sections.add("circuit", text(&backend["circuit"]));
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

fn limits(limits: &Value, sections: &mut Sections) {
    for limit in each(limits) {
        let key = match (limit["key"].as_str().unwrap_or_default(), limit["value"].as_str()) {
            ("global", _) => "for everybody together".into(),
            (key, Some(value)) => format!("for {key} = \"{value}\""),
            (key, None) => format!("per {key}; all without one share a budget"),
        };
        let mut line = format!("{}: {}, burst {}, {key}", text(&limit["name"]), rate(limit), text(&limit["burst"]));
        if !limit["remaining"].is_null() {
            line.push_str(&format!(", {} left", text(&limit["remaining"])));
        }
        if let Some(factor) = limit["factor"].as_f64().filter(|factor| *factor < 1.0) {
            line.push_str(&format!(", cut to {} % by an open circuit", (factor * 100.0).round()));
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
    sections.add("retries", format!("{} more on {}", text(&retry["attempts"]), join(&retry["on"], ", ")));
    sections.add("retries", text(&retry["why"]));
    let backoff = &retry["backoff"];
    let (base, most, jitter) = (time(&backoff["base_ms"]), time(&backoff["max_ms"]), text(&backoff["jitter"]));
    let mut line = format!("waits {base} to {most} (jitter {jitter})");
    if !retry["per_try_ms"].is_null() {
        line.push_str(&format!(", {} per try", time(&retry["per_try_ms"])));
    }
    sections.add("retries", line);
    let budget = &retry["budget"];
    let (percent, least, ttl) = (text(&budget["percent"]), text(&budget["min_per_second"]), time(&budget["ttl_ms"]));
    let left =
        if budget["remaining"].is_null() { String::new() } else { format!(", {} left", text(&budget["remaining"])) };
    sections.add("retries", format!("budget {percent} % of the requests of {ttl} and {least} per second{left}"));
}

fn timeouts(timeouts: &Value, sections: &mut Sections) {
    if !timeouts.is_object() {
        return;
    }
    let mut parts = vec![format!("connect {}", time(&timeouts["connect_ms"]))];
    if !timeouts["request_ms"].is_null() {
        parts.push(format!("request {} ({})", time(&timeouts["request_ms"]), text(&timeouts["request_covers"])));
    }
    for (name, label) in [("attempt_ms", "attempt"), ("idle_ms", "idle"), ("client_ms", "asked for by the client")] {
        if !timeouts[name].is_null() {
            parts.push(format!("{label} {}", time(&timeouts[name])));
        }
    }
    sections.add("time-outs", parts.join(", "));
}

fn fault(fault: &Value, sections: &mut Sections) {
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

fn join(list: &Value, separator: &str) -> String {
    each(list).map(text).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests;
