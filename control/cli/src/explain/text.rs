//! The answer of `/explain`, for somebody who was woken up by it.

mod backend;
mod verdict;

use serde_json::Value;

use crate::query::{Cell, Look, Table, Tone, clean, each, service, text};

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
    lines.extend(verdict::lines(answer, look));
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
        backend::render(backend, look, lines);
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

fn join(list: &Value, separator: &str) -> String {
    each(list).map(text).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests;
