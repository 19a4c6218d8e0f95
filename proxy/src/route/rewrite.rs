//! What a rule changes about a request or answer: URLRewrite, RequestRedirect, and the header modifiers.
//!
//! Everything that configuration alone decides is checked and compiled once; applying it cannot fail because of the
//! configuration. Paths that come in have been [normalised](super::path::normalize), hosts have passed
//! [`host_of`]: what a client sends cannot leave its place in the result.

use std::{borrow::Cow, fmt::Write, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    uri::{InvalidUri, PathAndQuery},
};
use weft_model::config::{HeaderModifier, OF_CONNECTION, PathModifier, Redirect};

use super::{
    PrefixLen,
    path::{HostError, PathError, host_of, normalize},
};

/// Why a filter could not be compiled, or a request not be redirected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The replacement is not a path.
    #[error("`{path}`: {source}")]
    Path {
        /// As written.
        path: Arc<str>,
        /// What is wrong with it.
        source: PathError,
    },
    /// The hostname is not one.
    #[error("`{host}`: {source}")]
    Host {
        /// As written.
        host: Arc<str>,
        /// What is wrong with it.
        source: HostError,
    },
    /// Neither `http` nor `https`.
    #[error("`{0}` is not http or https")]
    Scheme(Arc<str>),
    /// Not 301, 302, 303, 307 or 308.
    #[error("{0} is not a redirect")]
    Status(u16),
    /// Not a header, or not a value for it.
    #[error("`{0}` is not a header field, or its value is not a field value")]
    Header(Arc<str>),
    /// A header that says where a message ends or belongs to one connection: changing it would corrupt the message.
    #[error("`{0}` belongs to the connection and cannot be modified")]
    Framing(HeaderName),
    /// The request has no host, and the redirect names none.
    #[error("the request has no host to redirect to")]
    NoHost,
}

/// A checked [`PathModifier`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRewrite(Replace);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Replace {
    Full(Arc<str>),
    /// As written, for a path that ends with the prefix; and without trailing slashes, for one that goes on.
    Prefix {
        whole: Arc<str>,
        stem: Arc<str>,
    },
}

impl PathRewrite {
    /// # Errors
    /// When the replacement is no path. An empty one is `/`.
    pub fn new(modifier: &PathModifier) -> Result<Self, RewriteError> {
        let checked = |path: &Arc<str>| match normalize(if path.is_empty() { "/" } else { path }) {
            Ok(path) => Ok(path.into_owned()),
            Err(source) => Err(RewriteError::Path { path: path.clone(), source }),
        };
        Ok(Self(match modifier {
            PathModifier::ReplaceFullPath(path) => Replace::Full(checked(path)?.into()),
            PathModifier::ReplacePrefixMatch(path) => {
                let whole = checked(path)?;
                Replace::Prefix { stem: whole.trim_end_matches('/').into(), whole: whole.into() }
            }
        }))
    }

    /// The new path for a normalised one, of which the match covered `matched`.
    pub fn apply(&self, path: &str, matched: PrefixLen) -> Cow<'_, str> {
        match &self.0 {
            Replace::Full(path) => Cow::Borrowed(path),
            Replace::Prefix { whole, stem } => match path.get(matched.0..) {
                Some(rest) if !rest.is_empty() => Cow::Owned([stem, rest].concat()),
                _ => Cow::Borrowed(whole),
            },
        }
    }
}

/// The request target for the upstream: the path, rewritten if there is something to rewrite, and the query as it
/// came.
///
/// # Errors
/// When path and query do not form a request target, which normalised input always does.
pub fn rewritten_path_and_query(
    rewrite: Option<&PathRewrite>,
    path: &str,
    query: Option<&str>,
    matched: PrefixLen,
) -> Result<PathAndQuery, InvalidUri> {
    let path = rewrite.map_or(Cow::Borrowed(path), |rewrite| rewrite.apply(path, matched));
    let Some(query) = query else { return PathAndQuery::try_from(path.into_owned()) };
    let mut target = String::with_capacity(path.len() + 1 + query.len());
    target.push_str(&path);
    target.push('?');
    target.push_str(query);
    PathAndQuery::try_from(target)
}

/// A checked [`Redirect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledRedirect {
    /// Status of the reply.
    pub status: StatusCode,
    scheme: Option<Scheme>,
    hostname: Option<Arc<str>>,
    port: Option<u16>,
    path: Option<PathRewrite>,
}

/// Scheme of a URL that Weft makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// As in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL need not name.
    pub const fn well_known_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A configured hostname, which has no port.
fn hostname(written: &Arc<str>) -> Result<Arc<str>, RewriteError> {
    match host_of(written) {
        Ok((host, None)) => Ok(host.into()),
        Ok((_, Some(_))) => Err(RewriteError::Host { host: written.clone(), source: HostError::Port }),
        Err(source) => Err(RewriteError::Host { host: written.clone(), source }),
    }
}

/// What a redirect takes from the request.
#[derive(Debug, Clone, Copy)]
pub struct Original<'r> {
    /// Of the listener: whether it speaks TLS.
    pub scheme: Scheme,
    /// As [`host_of`] returns it; empty when the request names none.
    pub host: &'r str,
    /// Port of the listener, not the one in the request's `Host`.
    pub listener_port: u16,
    /// As [`normalize`] returns it.
    pub path: &'r str,
    /// As received, without `?`.
    pub query: Option<&'r str>,
    /// What the match covered of the path.
    pub matched: PrefixLen,
}

impl CompiledRedirect {
    /// # Errors
    /// When a part of the redirect is not what it should be.
    pub fn new(redirect: &Redirect) -> Result<Self, RewriteError> {
        let scheme = match redirect.scheme.as_deref() {
            None => None,
            Some("http") => Some(Scheme::Http),
            Some("https") => Some(Scheme::Https),
            Some(other) => return Err(RewriteError::Scheme(other.into())),
        };
        let status = match redirect.status {
            code @ (301 | 302 | 303 | 307 | 308) => StatusCode::from_u16(code).ok(),
            _ => None,
        };
        Ok(Self {
            status: status.ok_or(RewriteError::Status(redirect.status))?,
            scheme,
            hostname: redirect.hostname.as_ref().map(hostname).transpose()?,
            port: redirect.port,
            path: redirect.path.as_ref().map(PathRewrite::new).transpose()?,
        })
    }

    /// The value of `location`: always an absolute URL, so that a path such as `//evil.example` stays a path.
    ///
    /// The port is the redirect's; else, when the redirect names a scheme, that scheme's; else the listener's. It is
    /// left out when it is the scheme's well-known port. The query is that of the request.
    ///
    /// # Errors
    /// [`RewriteError::NoHost`]: the reply is a 400.
    pub fn location(&self, original: &Original<'_>) -> Result<HeaderValue, RewriteError> {
        let scheme = self.scheme.unwrap_or(original.scheme);
        let host = self.hostname.as_deref().unwrap_or(original.host);
        if host.is_empty() {
            return Err(RewriteError::NoHost);
        }
        let port = match (self.port, self.scheme) {
            (Some(port), _) => port,
            (None, Some(scheme)) => scheme.well_known_port(),
            (None, None) => original.listener_port,
        };
        let path = match &self.path {
            Some(path) => path.apply(original.path, original.matched),
            // `OPTIONS *` has no path.
            None => Cow::Borrowed(if original.path.starts_with('/') { original.path } else { "/" }),
        };
        let query = original.query.unwrap_or_default();
        let mut url = String::with_capacity(16 + host.len() + path.len() + query.len());
        url.push_str(scheme.as_str());
        url.push_str("://");
        url.push_str(host);
        if port != scheme.well_known_port() {
            // Writing to a String cannot fail.
            let _ = write!(url, ":{port}");
        }
        url.push_str(&path);
        if original.query.is_some() {
            url.push('?');
            for byte in query.bytes() {
                match byte {
                    0x21..=0x7e => url.push(char::from(byte)),
                    _ => url.push_str(percent_encoding::percent_encode_byte(byte)),
                }
            }
        }
        // A checked host and a normalised path are visible ASCII, so only an unchecked host can fail here.
        HeaderValue::try_from(url).map_err(|_| RewriteError::NoHost)
    }
}

/// A checked [`HeaderModifier`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CompiledModifier {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl CompiledModifier {
    /// # Errors
    /// When a name or value is not one, or the header is one on which the end of the message depends.
    pub fn new(modifier: &HeaderModifier) -> Result<Self, RewriteError> {
        let fields = |fields: &[(Arc<str>, Arc<str>)]| {
            fields
                .iter()
                .map(|(name, value)| {
                    let invalid = |_| RewriteError::Header(name.clone());
                    Ok((modifiable(name)?, HeaderValue::from_str(value).map_err(invalid)?))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            set: fields(&modifier.set)?,
            add: fields(&modifier.add)?,
            remove: modifier.remove.iter().map(modifiable).collect::<Result<_, _>>()?,
        })
    }

    /// Whether [`apply`](Self::apply) does nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Sets, then adds (a further line, which is the same as appending with a comma), then removes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn modifiable(name: &Arc<str>) -> Result<HeaderName, RewriteError> {
    let header = HeaderName::try_from(&**name).map_err(|_| RewriteError::Header(name.clone()))?;
    if OF_CONNECTION.contains(&header.as_str()) { Err(RewriteError::Framing(header)) } else { Ok(header) }
}

#[cfg(test)]
mod tests;
