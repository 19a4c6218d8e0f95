//! What the rule that serves a request does with it.

use http::Uri;
use serde_json::{Map, Value, json};
use weft_model::config::{Filter, HeaderModifier};

use super::{Case, PrefixLen, Scheme, Written, fate, service};
use crate::{
    error::{Reason, Refusal},
    route::rewrite::{Original, rewritten_path_and_query},
    snapshot::{PortKind, Rule},
};

/// `filters`, then either `redirect` or `forwarded` and `backends`.
pub(super) fn explain(case: &Case<'_>, index: u32, matched: PrefixLen) -> Map<String, Value> {
    let mut shown = Map::new();
    let Some(rule) = case.snapshot.rules.get(index as usize) else { return shown };
    let Some(written) = case.written(index) else { return shown };
    shown.insert("filters".into(), filters(written.filters));
    if let Some(redirect) = &rule.redirect {
        let PortKind::Http { tls, .. } = case.kind else { return shown };
        let location = redirect.location(&Original {
            scheme: if tls.is_some() { Scheme::Https } else { Scheme::Http },
            host: case.asked.host(),
            listener_port: case.at.port(),
            path: case.asked.path(),
            query: case.query(),
            matched,
        });
        let location = match &location {
            Ok(location) => String::from_utf8_lossy(location.as_bytes()).into_owned(),
            Err(error) => error.to_string(),
        };
        shown.insert("redirect".into(), json!({"status": redirect.status.as_u16(), "location": location}));
        return shown;
    }
    shown.insert("forwarded".into(), forwarded(case, rule, matched));
    if rule.backends.total() == 0 {
        let refusal = Refusal::new(Reason::NoEndpoint, "the rule has no backend with a weight");
        shown.insert("refusal".into(), fate::show(case, &refusal));
    }
    shown.insert("backends".into(), backends(case, rule, &written));
    shown
}

/// What the endpoint gets to see of host and path, and what was changed.
fn forwarded(case: &Case<'_>, rule: &Rule, matched: PrefixLen) -> Value {
    let rewrite = rule.rewrite.as_ref();
    let path = rewrite.and_then(|rewrite| rewrite.path.as_ref());
    let target = rewritten_path_and_query(path, case.asked.path(), case.query(), matched);
    let target = target.map_or_else(|error| error.to_string(), |target| Uri::from(target).to_string());
    let host = rewrite.and_then(|rewrite| rewrite.host.as_ref()).map(|host| host.as_str().to_owned());
    let asked = || case.asked.authority().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    json!({
        "host": host.or_else(asked),
        "path": target,
        "rewritten": rewrite.is_some(),
    })
}

/// Filters as written, except redirects and rewrites, of which the result is shown instead.
pub(super) fn filters(written: &[Filter]) -> Value {
    let mut shown = Map::new();
    let mut mirrors = Vec::new();
    for filter in written {
        match filter {
            Filter::RequestHeaders(modifier) => {
                shown.insert("request_headers".into(), modified(modifier));
            }
            Filter::ResponseHeaders(modifier) => {
                shown.insert("response_headers".into(), modified(modifier));
            }
            Filter::Mirror(mirror) => mirrors.push(json!({
                "service": mirror.service.to_string(),
                "port": mirror.port,
                "percent": f64::from(mirror.numerator) * 100.0 / f64::from(mirror.denominator),
            })),
            Filter::Redirect(_) | Filter::Rewrite(_) => {}
        }
    }
    if !mirrors.is_empty() {
        shown.insert("mirrors".into(), Value::Array(mirrors));
    }
    Value::Object(shown)
}

fn modified(modifier: &HeaderModifier) -> Value {
    json!({"set": modifier.set, "add": modifier.add, "remove": modifier.remove})
}

fn backends(case: &Case<'_>, rule: &Rule, written: &Written<'_>) -> Value {
    let route = written.route.map(|route| (route.kind, &route.key));
    let total = rule.backends.total();
    let mut compiled = rule.backends.iter();
    let backends = written.backends.iter().map(|backend| {
        let mut shown = Map::new();
        shown.insert("service".into(), json!(backend.service.to_string()));
        shown.insert("port".into(), json!(backend.port));
        shown.insert("weight".into(), json!(backend.weight));
        let share = if total == 0 { 0.0 } else { f64::from(backend.weight) * 100.0 / total as f64 };
        shown.insert("percent".into(), json!((share * 10.0).round() / 10.0));
        shown.insert("filters".into(), filters(&backend.filters));
        // Backends of weight 0 are not compiled: nothing goes there.
        let target = if backend.weight > 0 { compiled.next() } else { None };
        if let Some(target) = target {
            let refusal = fate::refusal(case, target);
            shown.insert("refusal".into(), json!(refusal.map(|refusal| fate::show(case, &refusal))));
            match &target.upstream {
                Some(upstream) => shown.extend(service::explain(case, target, upstream, route)),
                None => {
                    shown.insert("problem".into(), json!("the service or its port does not exist"));
                }
            }
        }
        Value::Object(shown)
    });
    backends.collect()
}
