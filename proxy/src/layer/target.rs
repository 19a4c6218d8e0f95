//! What a request asks for: authority and path, checked and normalised, then the rule that serves it.
//!
//! Rules are matched against exactly what is forwarded, so that a path that slips past a rule cannot mean something
//! else to the upstream.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header, uri::PathAndQuery};
use hyper::body::Incoming;
use weft_model::config::HashKey;

use crate::{
    conn::Conn,
    error::{Reason, Refusal},
    pipeline::with_path,
    reply::Answer,
    route::{
        Found, PrefixLen, View,
        path::{host_of, normalize},
        rewrite::{CompiledRedirect, Original, Scheme, rewritten_path_and_query},
    },
    snapshot::{PortKind, Rule, Snapshot, Upstream},
};

/// Where a request wants to go, as received. Kept apart from the request so that [`Asked`] can borrow from it while the
/// request is changed; cloning these is a matter of reference counts.
#[derive(Debug)]
pub struct Source {
    uri: Uri,
    /// As the client wrote it, with port; `None` in HTTP/1.0 without `Host`.
    authority: Option<HeaderValue>,
}

/// Authority and path of a request, checked and normalised.
#[derive(Debug)]
pub struct Asked<'s> {
    source: &'s Source,
    /// Lower case, without port.
    host: Cow<'s, str>,
    /// What rules are matched against; `/` when the target has none (`CONNECT`, `OPTIONS *`).
    path: Cow<'s, str>,
}

impl Asked<'_> {
    /// The host: lower case, without port; empty when the request names none.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The normalised path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What `x-forwarded-host` says.
    pub fn authority(&self) -> Option<HeaderValue> {
        self.source.authority.clone()
    }
}

impl Source {
    /// Takes authority and target from a request.
    ///
    /// # Errors
    /// `bad_request` when there is no authority, or when `:authority` and `Host` disagree.
    pub fn of<B>(request: &Request<B>) -> Result<Self, Refusal> {
        let uri = request.uri();
        let mut fields = request.headers().get_all(header::HOST).iter();
        let field = fields.next();
        if fields.next().is_some() {
            return Err(bad("Host is repeated"));
        }
        let authority = match (uri.authority(), field) {
            (Some(authority), field) => {
                // RFC 9113 §8.3.1: the two must not differ. In HTTP/1.1 absolute-form wins over Host (RFC 9112 §3.2.2).
                if request.version() == Version::HTTP_2
                    && field.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
                {
                    return Err(bad(":authority and Host differ"));
                }
                Some(HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the authority is malformed"))?)
            }
            (None, Some(host)) => Some(host.clone()),
            (None, None) if request.version() == Version::HTTP_10 => None,
            (None, None) => return Err(bad("the request names no host")),
        };
        if uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
            return Err(bad("the scheme is neither http nor https"));
        }
        Ok(Self { uri: uri.clone(), authority })
    }

    /// Checks and normalises.
    ///
    /// # Errors
    /// `bad_request` when host or path are malformed.
    pub fn asked(&self, method: &Method) -> Result<Asked<'_>, Refusal> {
        let host = match &self.authority {
            Some(authority) => {
                let text = authority.to_str().map_err(|_| bad("the host is malformed"))?;
                host_of(text).map_err(|error| Refusal::with(Reason::BadRequest, error.to_string()))?.0
            }
            None => Cow::Borrowed(""),
        };
        let star = self.uri.path() == "*";
        if star && *method != Method::OPTIONS {
            return Err(bad("only OPTIONS asks for *"));
        }
        let none = *method == Method::CONNECT || star;
        let path = normalize(if none { "/" } else { self.uri.path() });
        let path = path.map_err(|error| Refusal::with(Reason::BadRequest, error.to_string()))?;
        Ok(Asked { source: self, host, path })
    }
}

fn bad(detail: &'static str) -> Refusal {
    Refusal::new(Reason::BadRequest, detail)
}

/// A rule and how much of the path it matched.
#[derive(Debug, Clone, Copy)]
pub struct Routed {
    /// Index into the snapshot's rules.
    pub rule: u32,
    /// For ReplacePrefixMatch.
    pub matched: PrefixLen,
}

/// Finds the rule.
///
/// # Errors
/// `no_route` or `method_not_allowed`.
pub fn route(
    snapshot: &Snapshot,
    conn: &Conn,
    request: &Request<Incoming>,
    asked: &Asked<'_>,
) -> Result<Routed, Answer> {
    let no_route = |detail: String| Answer::Refused(Refusal::with(Reason::NoRoute, detail));
    let Some(PortKind::Http { listeners, tls }) = snapshot.port(conn.port) else {
        return Err(moved(conn, "is no longer served"));
    };
    match (tls, &conn.tls) {
        (None, None) => {}
        (Some(identity), Some(client)) if !identity.is_misdirected(client.server_name.as_deref(), &asked.host) => {}
        (Some(_), Some(_)) => {
            let detail = "the host belongs to another listener than the server name of this connection";
            return Err(Refusal::new(Reason::Misdirected, detail).into());
        }
        (Some(_), None) => return Err(moved(conn, "asks for TLS by now")),
        (None, Some(_)) => return Err(moved(conn, "is served without TLS by now")),
    }
    let table = listeners
        .find(&asked.host)
        .ok_or_else(|| no_route(format!("no listener of port {} serves this host", conn.port.port())))?;
    let view = View {
        host: &asked.host,
        method: request.method(),
        path: asked.path(),
        query: asked.source.uri.query(),
        headers: request.headers(),
    };
    match table.find(&view) {
        Found::Match(rule, matched) => Ok(Routed { rule: *rule, matched }),
        Found::MethodMismatch(methods) => {
            Err(Answer::MethodNotAllowed(methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ")))
        }
        Found::None => {
            let what = if conn.captured.is_some() { "service" } else { "listener" };
            Err(no_route(format!("no route of this {what} matches host, path, headers and query")))
        }
    }
}

/// The port means something else than when this connection was made.
fn moved(conn: &Conn, what: &str) -> Answer {
    Refusal::with(Reason::Draining, format!("port {} {what}; connect again", conn.port.port())).into()
}

/// The answer of a RequestRedirect.
pub fn redirect(
    redirect: &CompiledRedirect,
    conn: &Conn,
    asked: &Asked<'_>,
    matched: PrefixLen,
) -> Result<Answer, Refusal> {
    let location = redirect.location(&Original {
        scheme: if conn.tls.is_some() { Scheme::Https } else { Scheme::Http },
        host: &asked.host,
        listener_port: conn.port.port(),
        path: asked.path(),
        query: asked.source.uri.query(),
        matched,
    });
    let location = location.map_err(|error| Refusal::with(Reason::BadRequest, error.to_string()))?;
    Ok(Answer::Redirect(redirect.status, location))
}

/// The target as the upstream gets it; `None` keeps the request's own.
pub fn forwarded_uri(
    rule: &Rule,
    upstream: &Upstream,
    method: &Method,
    asked: &Asked<'_>,
    matched: PrefixLen,
) -> Result<Option<Uri>, Refusal> {
    let uri = &asked.source.uri;
    let bad = || bad("the request target cannot be forwarded");
    if *method == Method::CONNECT {
        return Ok(None);
    }
    let rewrite = rule.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    let path = if matches!(asked.path, Cow::Borrowed(_)) && rewrite.is_none() {
        None
    } else {
        Some(rewritten_path_and_query(rewrite, asked.path(), uri.query(), matched).map_err(|_| bad())?)
    };
    if !upstream.is_h2() {
        return match path {
            Some(path) => with_path(path).map(Some),
            // HTTP/2 and absolute-form: only the path goes on.
            None if uri.authority().is_some() => {
                with_path(uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"))).map(Some)
            }
            None => Ok(None),
        };
    }
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if upstream.tls.is_some() { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.authority = match rule.rewrite.as_ref().and_then(|rewrite| rewrite.host.clone()) {
        Some(host) => Some(host),
        None => match &asked.source.authority {
            Some(authority) => Some(authority.as_bytes().try_into().map_err(|_| bad())?),
            None => Some(upstream.service.name.parse().map_err(|_| bad())?),
        },
    };
    parts.path_and_query =
        Some(path.or_else(|| uri.path_and_query().cloned()).unwrap_or(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map(Some).map_err(|_| bad())
}

/// `Host` as an HTTP/1.1 upstream gets it; `None` keeps the request's own.
pub fn forwarded_host(rule: &Rule, asked: &Asked<'_>) -> Result<Option<HeaderValue>, Refusal> {
    if let Some(host) = rule.rewrite.as_ref().and_then(|rewrite| rewrite.host.as_ref()) {
        let value = HeaderValue::from_str(host.as_str());
        return value.map(Some).map_err(|_| Refusal::new(Reason::Internal, "the rewritten host is not a field value"));
    }
    Ok(if asked.source.uri.authority().is_some() { asked.source.authority.clone() } else { None })
}

/// The value of a cookie.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).find_map(
        |pair| {
            let pair = pair.trim_ascii();
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            (&pair[..equals] == name.as_bytes()).then(|| &pair[equals + 1..])
        },
    )
}

/// What RingHash and Maglev hash. A request that lacks it goes by its client's address.
pub fn hash_key<'r>(key: &HashKey, headers: &'r HeaderMap, path: &'r str, client: &'r [u8]) -> &'r [u8] {
    match key {
        HashKey::Header(name) => headers.get(&**name).map_or(client, HeaderValue::as_bytes),
        HashKey::Cookie(name) => cookie(headers, name).unwrap_or(client),
        HashKey::SourceIp => client,
        HashKey::Path => path.as_bytes(),
    }
}

#[cfg(test)]
mod tests;
