//! What would happen, in one line.

use serde_json::Value;

use crate::query::{Look, Tone, about, clean, each, text};

/// The line of a request; one per listener when they do not agree.
pub fn lines(answer: &Value, look: Look) -> Vec<String> {
    let verdicts: Vec<_> = each(&answer["listeners"]).map(|listener| (listener, verdict(listener, look))).collect();
    let paint = |(tone, line): &(Tone, String), place: &str| look.paint(*tone, &clean(&format!("{place}{line}")));
    match &*verdicts {
        // Of a node that says less than this verb knows.
        all if all.iter().any(|(_, (_, line))| line.is_empty()) => Vec::new(),
        [] => Vec::new(),
        [(_, first), more @ ..] if more.iter().all(|(_, other)| other == first) => vec![paint(first, "")],
        all => all.iter().map(|(at, each)| paint(each, &format!("on {}: ", text(&at["address"])))).collect(),
    }
}

fn verdict(listener: &Value, look: Look) -> (Tone, String) {
    if listener["refusal"].is_object() {
        return (Tone::Bad, format!("{}: {}", name(&listener["refusal"]), text(&listener["refusal"]["detail"])));
    }
    if listener["redirect"].is_object() {
        let redirect = &listener["redirect"];
        return (Tone::Good, format!("{} to {}", text(&redirect["status"]), text(&redirect["location"])));
    }
    let drawn: Vec<_> = each(&listener["backends"]).filter(|backend| backend["weight"] != 0).collect();
    let share = |backend: &Value| match drawn.len() {
        1 => text(&backend["service"]),
        _ => format!("{} ({} %)", text(&backend["service"]), text(&backend["percent"])),
    };
    let (refused, sent): (Vec<&Value>, Vec<&Value>) = drawn.iter().partition(|backend| backend["refusal"].is_object());
    if let (true, [first, more @ ..]) = (sent.is_empty(), &*refused)
        && more.iter().all(|other| other["refusal"] == first["refusal"])
    {
        return (Tone::Bad, refusal(first));
    }
    let sent: Vec<_> = sent.into_iter().map(|backend| format!("{}{}", share(backend), aside(backend))).collect();
    let tone = match (sent.is_empty(), refused.is_empty()) {
        (false, true) => Tone::Good,
        (false, false) => Tone::Warn,
        _ => Tone::Bad,
    };
    let refused = refused.into_iter().map(|backend| format!("{} for {}", name(&backend["refusal"]), share(backend)));
    let arrow = match (sent.is_empty(), look.unicode) {
        (true, _) => "",
        (false, true) => "→ ",
        (false, false) => "-> ",
    };
    (tone, format!("{arrow}{}", sent.into_iter().chain(refused).collect::<Vec<_>>().join(" or ")))
}

/// What else there is to say about a backend that gets the request.
fn aside(backend: &Value) -> String {
    let mut aside = String::new();
    if backend["probe"].is_string() {
        aside = format!(", as a probe of {}", text(&backend["probe"]));
    }
    let (fault, abort) = (&backend["fault"], &backend["fault"]["abort"]);
    if fault["applies"] == true && abort["percent"].as_f64().is_some_and(|percent| percent > 0.0) {
        let how = if abort["status"].is_null() { &abort["grpc_status"] } else { &abort["status"] };
        aside.push_str(&format!(", but {} % get {} fault_injected", text(&abort["percent"]), text(how)));
    }
    aside
}

/// `503 circuit_open`; gRPC clients see a status of theirs.
fn name(refusal: &Value) -> String {
    let status = if refusal["grpc_status"].is_null() { &refusal["status"] } else { &refusal["grpc_status"] };
    format!("{} {}", text(status), text(&refusal["reason"]))
}

/// The refusal of a backend, and why, shortly.
fn refusal(backend: &Value) -> String {
    let refusal = &backend["refusal"];
    let about_service = ["circuit_open", "no_endpoint"].iter().any(|reason| refusal["reason"] == *reason);
    match backend["problem"].as_str().filter(|_| about_service) {
        Some(problem) => format!("{}: {problem}", name(refusal)),
        None => in_full(refusal),
    }
}

/// A refusal with all that its client is told.
pub fn in_full(refusal: &Value) -> String {
    let mut line = format!("{}: {}", name(refusal), text(&refusal["detail"]));
    if refusal["retry_after_ms"].as_f64().is_some_and(|ms| ms > 0.0) {
        line.push_str(&format!("; try again in {}", about(&refusal["retry_after_ms"])));
    }
    line
}
