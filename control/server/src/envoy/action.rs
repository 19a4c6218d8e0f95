//! What is done with a request: filters and backends of a rule.

use std::time::Duration;

use weft_model::config::{
    BackendRef, Filter, HeaderModifier, HttpRule, Key, Mirror, PathMatch, PathModifier, Policy, Redirect, RouteKind,
};

use super::{World, balancing, names, order::Candidate, retry, wire, wire::Action};

/// Who is to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Envoy,
    Grpc,
}

/// The route of a match: everything but what it matches.
pub(super) fn route(world: &World<'_>, candidate: &Candidate<'_>, client: Client) -> wire::Route {
    let Candidate { rule, matcher, .. } = candidate;
    let headers = Headers::of(&rule.filters);
    let from = Some((candidate.route.kind, &candidate.route.key));
    let redirect = rule.filters.iter().find_map(|filter| match filter {
        Filter::Redirect(redirect) => Some(redirect),
        _ => None,
    });
    let action = match redirect {
        Some(redirect) => Action::Redirect(redirected(redirect, &matcher.path)),
        None => match targets(&rule.backends) {
            // What Weft answers when there is no endpoint.
            None => Action::Direct(wire::DirectResponse { status: 503 }),
            Some((target, first)) => {
                let mut action = forwarded(world, target, &first.service, from, Some(rule), client);
                filtered(&mut action, rule, &matcher.path, &headers);
                Action::Route(Box::new(action))
            }
        },
    };
    wire::Route {
        name: candidate.name(),
        matcher: None,
        action: Some(action),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
    }
}

/// The route of gRPC's client to a service port that nobody wrote one for.
pub(super) fn implicit(world: &World<'_>, service: &Key, port: u16) -> wire::RouteAction {
    forwarded(world, wire::Target::Cluster(names::cluster(service, port)), service, None, None, Client::Grpc)
}

/// Where requests go by weight, and the first of those that decides about policy; nowhere if no backend has a weight.
fn targets(backends: &[BackendRef]) -> Option<(wire::Target, &BackendRef)> {
    let live: Vec<&BackendRef> = backends.iter().filter(|backend| backend.weight > 0).collect();
    let first = *live.first()?;
    if live.len() == 1 && first.filters.is_empty() {
        return Some((wire::Target::Cluster(names::cluster(&first.service, first.port)), first));
    }
    let clusters = live.into_iter().map(|backend| {
        let headers = Headers::of(&backend.filters);
        wire::Share {
            name: names::cluster(&backend.service, backend.port),
            weight: Some(backend.weight),
            request_headers_to_add: headers.request_add,
            request_headers_to_remove: headers.request_remove,
            response_headers_to_add: headers.response_add,
            response_headers_to_remove: headers.response_remove,
            host_rewrite_literal: headers.host.unwrap_or_default(),
        }
    });
    Some((wire::Target::Weighted(wire::Weighted { clusters: clusters.collect() }), first))
}

fn forwarded(
    world: &World<'_>,
    target: wire::Target,
    service: &Key,
    from: Option<(RouteKind, &Key)>,
    rule: Option<&HttpRule>,
    client: Client,
) -> wire::RouteAction {
    let policy: Policy = world.config.policy_for(Some(service), from);
    let whole = rule.and_then(|rule| rule.request_timeout).or(policy.timeouts.request).unwrap_or(Duration::ZERO);
    let retries = retry::policy(&policy, rule);
    let action = wire::RouteAction {
        target: Some(target),
        hash_policy: balancing::hash(&policy.load_balancer),
        ..wire::RouteAction::default()
    };
    match client {
        Client::Envoy => wire::RouteAction {
            // 0 is none; without it Envoy would end every response after 15 s.
            timeout: Some(whole.into()),
            idle_timeout: Some(policy.timeouts.idle.into()),
            retry_policy: retries,
            ..action
        },
        Client::Grpc => wire::RouteAction {
            max_stream_duration: (!whole.is_zero())
                .then(|| wire::StreamDuration { max_stream_duration: Some(whole.into()) }),
            // gRPC's client takes no policy without retries, and has no time-out for an attempt.
            retry_policy: retries.filter(|retries| retries.num_retries != Some(0)),
            ..action
        },
    }
}

/// Mirrors and rewrites.
fn filtered(action: &mut wire::RouteAction, rule: &HttpRule, path: &PathMatch, headers: &Headers) {
    action.host_rewrite_literal = headers.host.clone().unwrap_or_default();
    for filter in &rule.filters {
        match filter {
            Filter::Mirror(mirror) => action.request_mirror_policies.push(mirrored(mirror)),
            Filter::Rewrite(rewrite) => match rewrite.path.as_ref().and_then(|modifier| NewPath::of(modifier, path)) {
                Some(NewPath::Prefix(prefix)) => action.prefix_rewrite = prefix,
                Some(NewPath::Full(path)) => action.regex_rewrite = Some(substitution(".*".to_owned(), &path)),
                Some(NewPath::Regex(regex)) => action.regex_rewrite = Some(regex),
                None => {}
            },
            Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) | Filter::Redirect(_) => {}
        }
    }
}

fn mirrored(mirror: &Mirror) -> wire::MirrorPolicy {
    let (numerator, denominator) = match mirror.denominator {
        100 => (mirror.numerator, wire::Denominator::Hundred),
        other => {
            let millionths = u64::from(mirror.numerator) * 1_000_000 / u64::from(other.max(1));
            (u32::try_from(millionths).unwrap_or(1_000_000), wire::Denominator::Million)
        }
    };
    let share = wire::FractionalPercent { numerator, denominator: denominator.into() };
    wire::MirrorPolicy {
        cluster: names::cluster(&mirror.service, mirror.port),
        runtime_fraction: Some(wire::RuntimeFraction { default_value: Some(share) }),
        disable_shadow_host_suffix_append: true,
    }
}

fn redirected(redirect: &Redirect, path: &PathMatch) -> wire::Redirect {
    let well_known = redirect.scheme.as_deref().map(|scheme| if scheme == "https" { 443 } else { 80 });
    let code = match redirect.status {
        301 => wire::RedirectCode::MovedPermanently,
        303 => wire::RedirectCode::SeeOther,
        307 => wire::RedirectCode::TemporaryRedirect,
        308 => wire::RedirectCode::PermanentRedirect,
        _ => wire::RedirectCode::Found,
    };
    let path = redirect.path.as_ref().and_then(|modifier| NewPath::of(modifier, path)).map(|path| match path {
        NewPath::Full(path) => wire::RedirectPath::Full(path),
        NewPath::Prefix(prefix) => wire::RedirectPath::Prefix(prefix),
        NewPath::Regex(regex) => wire::RedirectPath::Regex(regex),
    });
    wire::Redirect {
        host_redirect: redirect.hostname.as_deref().unwrap_or_default().to_owned(),
        path,
        response_code: code.into(),
        scheme_redirect: redirect.scheme.as_deref().map(str::to_owned),
        // Another scheme means another port: Envoy would keep the one that the client used.
        port_redirect: redirect.port.or(well_known).unwrap_or_default().into(),
    }
}

/// A path modifier for the path that matched.
#[derive(Debug, PartialEq)]
enum NewPath {
    Full(String),
    /// Instead of the text that matched.
    Prefix(String),
    Regex(wire::RegexRewrite),
}

impl NewPath {
    /// `None`: the path stays as it is.
    fn of(modifier: &PathModifier, matched: &PathMatch) -> Option<Self> {
        let new = match modifier {
            PathModifier::ReplaceFullPath(path) if path.is_empty() => return Some(Self::Full("/".to_owned())),
            PathModifier::ReplaceFullPath(path) => return Some(Self::Full(path.to_string())),
            PathModifier::ReplacePrefixMatch(new) => new.trim_end_matches('/'),
        };
        // Nothing else may be combined with a prefix.
        let PathMatch::Prefix(prefix) = matched else { return None };
        let prefix = prefix.trim_end_matches('/');
        match (prefix, new) {
            ("", "") => None,
            // Envoy's prefix is `/` then, which belongs to what follows.
            ("", new) => Some(Self::Prefix(format!("{new}/"))),
            // Envoy would leave two slashes, or none.
            (prefix, "") => Some(Self::Regex(wire::RegexRewrite {
                pattern: Some(wire::Regex { regex: format!("^{}/?", escaped(prefix)) }),
                substitution: "/".to_owned(),
            })),
            (_, new) => Some(Self::Prefix(new.to_owned())),
        }
    }
}

/// The whole path becomes `path`.
fn substitution(regex: String, path: &str) -> wire::RegexRewrite {
    let regex = format!("^{regex}$");
    wire::RegexRewrite { pattern: Some(wire::Regex { regex }), substitution: path.replace('\\', r"\\") }
}

/// `text` in an expression.
fn escaped(text: &str) -> String {
    let mut regex = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_ascii_punctuation() && !matches!(letter, '/' | '_' | '-') {
            regex.push('\\');
        }
        regex.push(letter);
    }
    regex
}

/// Header modifications of filters, and the host that they, or a rewrite, ask for: Envoy changes it apart from headers.
#[derive(Debug, Default)]
struct Headers {
    request_add: Vec<wire::HeaderOption>,
    request_remove: Vec<String>,
    response_add: Vec<wire::HeaderOption>,
    response_remove: Vec<String>,
    host: Option<String>,
}

impl Headers {
    fn of(filters: &[Filter]) -> Self {
        let mut headers = Self::default();
        for filter in filters {
            match filter {
                Filter::RequestHeaders(modifier) => {
                    let host = modifier.set.iter().find(|(name, _)| &**name == "host");
                    headers.host = host.map(|(_, value)| value.to_string()).or(headers.host);
                    headers.request_add.extend(added(modifier, "host"));
                    headers.request_remove.extend(removed(modifier, "host"));
                }
                Filter::ResponseHeaders(modifier) => {
                    headers.response_add.extend(added(modifier, ""));
                    headers.response_remove.extend(removed(modifier, ""));
                }
                Filter::Rewrite(rewrite) => {
                    headers.host = rewrite.hostname.as_deref().map(str::to_owned).or(headers.host);
                }
                Filter::Redirect(_) | Filter::Mirror(_) => {}
            }
        }
        headers
    }
}

fn added(modifier: &HeaderModifier, but: &str) -> Vec<wire::HeaderOption> {
    let set = modifier.set.iter().map(|field| (field, wire::AppendAction::Overwrite));
    let add = modifier.add.iter().map(|field| (field, wire::AppendAction::Append));
    let kept = set.chain(add).filter(|((name, _), _)| **name != *but);
    kept.map(|((name, value), action)| wire::HeaderOption {
        // Envoy fills in what stands between two of them.
        header: Some(wire::HeaderValue { key: name.to_string(), value: value.replace('%', "%%") }),
        append_action: action.into(),
        keep_empty_value: value.is_empty(),
    })
    .collect()
}

fn removed(modifier: &HeaderModifier, but: &str) -> impl Iterator<Item = String> {
    modifier.remove.iter().filter(move |name| ***name != *but).map(|name| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_without_doubling_or_losing_a_slash() {
        let regex = |regex: &str| {
            let pattern = Some(wire::Regex { regex: regex.to_owned() });
            Some(NewPath::Regex(wire::RegexRewrite { pattern, substitution: "/".to_owned() }))
        };
        let prefix = |prefix: &str| Some(NewPath::Prefix(prefix.to_owned()));
        for (matched, new, expected) in [
            ("/files", "/", regex("^/files/?")),
            ("/files", "", regex("^/files/?")),
            ("/f.x", "/", regex(r"^/f\.x/?")),
            ("/files", "/v2", prefix("/v2")),
            ("/files", "/v2/", prefix("/v2")),
            ("/", "/v2", prefix("/v2/")),
            ("/", "/", None),
        ] {
            let modifier = PathModifier::ReplacePrefixMatch(new.into());
            assert_eq!(NewPath::of(&modifier, &PathMatch::Prefix(matched.into())), expected, "{matched} -> {new}");
        }
    }

    #[test]
    fn a_value_is_not_filled_in_by_envoy() {
        let modifier = HeaderModifier { set: vec![("x-a".into(), "100% %REQ(x)%".into())], ..Default::default() };
        let value = added(&modifier, "")[0].header.clone().map(|header| header.value);
        assert_eq!(value.as_deref(), Some("100%% %%REQ(x)%%"));
    }
}
