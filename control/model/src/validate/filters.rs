//! Filters of routes and of backends.

use std::sync::Arc;

use super::{
    at::At,
    service::{port_ref, service_ref},
    syntax,
};
use crate::{
    config::{Filter, HeaderModifier, Mirror, OF_CONNECTION, PathModifier, Redirect, Rewrite},
    written::{self, FilterType, PathModifierType, RedirectScheme},
};

/// Reads the `filters` of an HTTPRoute's rule, or of one of its backends.
pub(super) fn http(at: At<'_>, written: &[written::RouteFilter], of_backend: bool) -> Vec<Filter> {
    let at = at.field("filters");
    let mut seen: Vec<FilterType> = Vec::new();
    let mut filters = Vec::new();
    for (i, written) in written.iter().enumerate() {
        let at = at.item(i);
        let Some(kind) = written.kind else { continue };
        if !once(at, kind, &mut seen) {
            continue;
        }
        if kind == FilterType::RequestMirror && of_backend {
            at.field("type").unsupported("RequestMirror on a backend", "put the filter on the rule");
            continue;
        }
        let bodies = [
            ("requestHeaderModifier", FilterType::RequestHeaderModifier),
            ("responseHeaderModifier", FilterType::ResponseHeaderModifier),
            ("requestMirror", FilterType::RequestMirror),
            ("requestRedirect", FilterType::RequestRedirect),
            ("urlRewrite", FilterType::URLRewrite),
        ];
        if !only_body(at, kind, &bodies) {
            continue;
        }
        filters.extend(match kind {
            FilterType::RequestHeaderModifier => {
                let at = at.field("requestHeaderModifier");
                written.request_header_modifier.as_ref().map(|written| Filter::RequestHeaders(headers(at, written)))
            }
            FilterType::ResponseHeaderModifier => {
                let at = at.field("responseHeaderModifier");
                written.response_header_modifier.as_ref().map(|written| Filter::ResponseHeaders(headers(at, written)))
            }
            FilterType::RequestMirror => written
                .request_mirror
                .as_ref()
                .and_then(|written| mirror(at.field("requestMirror"), written))
                .map(Filter::Mirror),
            FilterType::RequestRedirect => written
                .request_redirect
                .as_ref()
                .map(|written| Filter::Redirect(redirect(at.field("requestRedirect"), written))),
            FilterType::URLRewrite => {
                written.url_rewrite.as_ref().map(|written| Filter::Rewrite(rewrite(at.field("urlRewrite"), written)))
            }
        });
    }
    if seen.contains(&FilterType::RequestRedirect) && seen.contains(&FilterType::URLRewrite) {
        at.error(
            "conflict",
            "RequestRedirect and URLRewrite cannot be used together",
            Some("a redirect can change the path itself".into()),
        );
    }
    filters
}

/// Reads the `filters` of a GRPCRoute's rule, or of one of its backends.
pub(super) fn grpc(at: At<'_>, written: &[written::GrpcRouteFilter], of_backend: bool) -> Vec<Filter> {
    use written::GrpcFilterType as G;
    let same: Vec<written::RouteFilter> = written
        .iter()
        .cloned()
        .map(|filter| written::RouteFilter {
            kind: filter.kind.map(|kind| match kind {
                G::RequestHeaderModifier => FilterType::RequestHeaderModifier,
                G::ResponseHeaderModifier => FilterType::ResponseHeaderModifier,
                G::RequestMirror => FilterType::RequestMirror,
            }),
            request_header_modifier: filter.request_header_modifier,
            response_header_modifier: filter.response_header_modifier,
            request_mirror: filter.request_mirror,
            ..Default::default()
        })
        .collect();
    http(at, &same, of_backend)
}

/// Only mirrors may be repeated.
fn once(at: At<'_>, kind: FilterType, seen: &mut Vec<FilterType>) -> bool {
    let repeated = seen.contains(&kind) && kind != FilterType::RequestMirror;
    if repeated {
        let hint = Some("merge the two filters".to_owned());
        at.field("type").error("conflict", format!("{kind:?} can be used once"), hint);
    }
    seen.push(kind);
    !repeated
}

/// The field that belongs to the type is there, and no other.
fn only_body(at: At<'_>, kind: FilterType, bodies: &[(&str, FilterType)]) -> bool {
    let mut fine = true;
    for (field, of) in bodies {
        match (*of == kind, at.wrote(field)) {
            (true, false) => {
                at.field("type").error(
                    "missing-field",
                    format!("{kind:?} needs {field}"),
                    Some(format!("add {field}: {{…}}")),
                );
                fine = false;
            }
            (false, true) => {
                let hint = format!("set type: {of:?}, or remove {field}");
                at.field(field).error("conflict", format!("{field} does not belong to type {kind:?}"), Some(hint));
                fine = false;
            }
            _ => {}
        }
    }
    fine
}

fn headers(at: At<'_>, written: &written::HeaderModifier) -> HeaderModifier {
    let pairs = |field: &str, list: &[written::Header]| {
        let at = at.field(field);
        let mut pairs: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (i, header) in list.iter().enumerate() {
            let at = at.item(i);
            let (Some(name), Some(value)) = (&header.name, &header.value) else { continue };
            let Some(name) = modifiable(at.field("name"), name, field == "set") else { continue };
            if let Err(reason) = syntax::header_value(value) {
                at.field("value")
                    .invalid(format!("this cannot be the value of a header: {reason}"), "one line of text");
                continue;
            }
            if pairs.iter().any(|(other, _)| *other == name) {
                at.field("name").error(
                    "conflict",
                    format!("header {name:?} is listed twice"),
                    Some("separate several values with a comma".into()),
                );
                continue;
            }
            pairs.push((name, value.as_str().into()));
        }
        pairs
    };
    let remove =
        written.remove.iter().enumerate().filter_map(|(i, name)| modifiable(at.field("remove").item(i), name, false));
    HeaderModifier { set: pairs("set", &written.set), add: pairs("add", &written.add), remove: remove.collect() }
}

/// A header name in lower case.
pub(super) fn header_name(at: At<'_>, text: &str) -> Option<Arc<str>> {
    if !syntax::token(text) {
        at.invalid(format!("{text:?} is not a header name"), "letters, digits and - as in x-user");
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

/// A header that filters may change, in lower case. `Host` can be replaced, but there is always exactly one.
fn modifiable(at: At<'_>, text: &str, replaced: bool) -> Option<Arc<str>> {
    let name = header_name(at, text)?;
    if &*name == "host" && !replaced {
        at.invalid("a request has exactly one Host", "use set, or urlRewrite.hostname");
        return None;
    }
    if OF_CONNECTION.contains(&&*name) {
        at.invalid(format!("header {name:?} cannot be changed"), "Weft frames messages itself; remove it");
        return None;
    }
    Some(name)
}

fn mirror(at: At<'_>, written: &written::RequestMirror) -> Option<Mirror> {
    let (numerator, denominator) = match (written.percent, &written.fraction) {
        (Some(_), Some(_)) => {
            at.field("fraction").error(
                "conflict",
                "percent and fraction cannot be used together",
                Some("remove one".into()),
            );
            return None;
        }
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => {
            let (numerator, denominator) = (fraction.numerator?, fraction.denominator.unwrap_or(100));
            if numerator > denominator {
                at.field("fraction")
                    .invalid(format!("{numerator}/{denominator} is more than one"), "numerator is at most denominator");
            }
            (numerator, denominator)
        }
        (None, None) => (1, 1),
    };
    let backend = written.backend_ref.as_ref()?;
    let at = at.field("backendRef");
    let service = service_ref(
        at,
        backend.group.as_deref(),
        backend.kind.as_deref(),
        backend.namespace.as_deref(),
        backend.name.as_deref()?,
    )?;
    let port = backend.port?;
    port_ref(at, &service, port);
    Some(Mirror { service, port, numerator, denominator })
}

fn redirect(at: At<'_>, written: &written::RequestRedirect) -> Redirect {
    let status = written.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        at.field("statusCode").invalid(format!("{status} is not a redirect"), "one of 301, 302, 303, 307, 308");
    }
    Redirect {
        scheme: written.scheme.map(|scheme| if scheme == RedirectScheme::Https { "https" } else { "http" }.into()),
        hostname: hostname(at, written.hostname.as_deref()),
        path: written.path.as_ref().and_then(|written| path(at.field("path"), written)),
        port: written.port,
        status,
    }
}

fn rewrite(at: At<'_>, written: &written::UrlRewrite) -> Rewrite {
    if written.hostname.is_none() && written.path.is_none() && !at.lost_fields() {
        at.error("missing-field", "urlRewrite changes nothing", Some("add hostname or path".into()));
    }
    Rewrite {
        hostname: hostname(at, written.hostname.as_deref()),
        path: written.path.as_ref().and_then(|written| path(at.field("path"), written)),
    }
}

fn hostname(at: At<'_>, text: Option<&str>) -> Option<Arc<str>> {
    at.field("hostname").hostname(text?, false).map(|hostname| hostname.to_string().into())
}

fn path(at: At<'_>, written: &written::PathModifier) -> Option<PathModifier> {
    let kind = written.kind?;
    let (field, text, other) = match kind {
        PathModifierType::ReplaceFullPath => ("replaceFullPath", &written.replace_full_path, "replacePrefixMatch"),
        PathModifierType::ReplacePrefixMatch => {
            ("replacePrefixMatch", &written.replace_prefix_match, "replaceFullPath")
        }
    };
    if at.wrote(other) {
        at.field(other).error(
            "conflict",
            format!("{other} does not belong to type {kind:?}"),
            Some("remove it".into()),
        );
    }
    let Some(text) = text else {
        if !at.wrote(field) {
            at.field("type").error(
                "missing-field",
                format!("{kind:?} needs {field}"),
                Some(format!("add {field}: /path")),
            );
        }
        return None;
    };
    // An empty replacement of a prefix removes it, as `/` does.
    if let Err(reason) = if text.is_empty() { Ok(()) } else { syntax::path(text) } {
        at.field(field).invalid(format!("{text:?} is not a path: {reason}"), "for instance /cart");
        return None;
    }
    let text: Arc<str> = if text.is_empty() { "/" } else { text }.into();
    Some(match kind {
        PathModifierType::ReplaceFullPath => PathModifier::ReplaceFullPath(text),
        PathModifierType::ReplacePrefixMatch => PathModifier::ReplacePrefixMatch(text),
    })
}
