//! From a request to the rule that serves it.
//!
//! A [`RouteTable`] answers for one listener, or for one captured service. It is immutable and synchronous, and knows
//! nothing of what a rule does: that is its payload `T`.
//!
//! # Precedence
//! Of all the matches that fit a request the first in this order wins; it is Gateway API's for HTTPRoute:
//! 1. the hostname: exact, then the longest wildcard, then none. A less specific hostname is still tried when no
//!    match of a more specific one fits;
//! 2. the path: `Exact`, then `RegularExpression` (whose place is left to implementations: here the longest
//!    expression first), then the longest `PathPrefix`;
//! 3. a match with a method before one without;
//! 4. the larger number of header conditions, then of query conditions;
//! 5. [`Rank`]: the oldest route, then alphabetically by `namespace/name`, then in the order of the document.
//!
//! # Cost
//! Hostnames, exact paths and prefixes are found by hashing, so that thousands of routes cost what five do. Expressions
//! are tried only when no exact path fits. Only matches that share hostname *and* path are looked at one by one.
//! Nothing is allocated, unless a regular expression meets a header of several lines, the query has escapes, or a
//! hostname has many expressions and one of them fits.
//!
//! Paths are compared in the form that [`path::normalize`] gives them, which is also the form that is forwarded.

pub(crate) mod condition;
pub mod explain;
pub mod hosts;
mod index;
pub mod path;
pub mod rewrite;
pub mod weighted;

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use http::{HeaderMap, Method};
use smallvec::SmallVec;
use weft_model::config::{Hostname, HttpMatch, Key, PathMatch};

use condition::{Compiler, Conditions};
use hosts::HostMap;
use index::{Bucket, PathIndex};

/// One match of one rule under one hostname.
#[derive(Debug, Clone)]
pub struct Candidate<T> {
    /// `None`: every hostname.
    pub hostname: Option<Hostname>,
    /// What a request has to look like.
    pub matcher: HttpMatch,
    /// Breaks ties.
    pub rank: Rank,
    /// The rule.
    pub target: T,
}

/// What decides between matches that are equally specific. The smaller one wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rank {
    created: Option<Arc<str>>,
    /// `namespace/name`: compared as one text, as Gateway API has it.
    route: Arc<str>,
    rule: usize,
    position: usize,
}

impl Rank {
    /// The place of match number `position` of rule number `rule` of the route `key`, created at `created` (RFC 3339).
    pub fn new(created: Option<Arc<str>>, key: &Key, rule: usize, position: usize) -> Self {
        Self { created, route: format!("{}/{}", key.namespace, key.name).into(), rule, position }
    }
}

impl Ord for Rank {
    /// A route without a timestamp is younger than any with one.
    fn cmp(&self, other: &Self) -> Ordering {
        fn key(rank: &Rank) -> impl Ord {
            (rank.created.is_none(), &rank.created, &rank.route, rank.rule, rank.position)
        }
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The parts of a request that decide about its route.
#[derive(Debug, Clone, Copy)]
pub struct View<'r> {
    /// Lower case, without port and trailing dot, as [`path::host_of`] returns it; empty when the request names none.
    pub host: &'r str,
    /// Compared exactly: `HEAD` is not `GET`.
    pub method: &'r Method,
    /// As [`path::normalize`] returns it.
    pub path: &'r str,
    /// As received, without `?`.
    pub query: Option<&'r str>,
    /// All header fields.
    pub headers: &'r HeaderMap,
}

/// How much of the path the match covers, in bytes: the length of the matching `PathPrefix` without its trailing `/`
/// (so 0 for `/`), the whole path for other matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixLen(pub usize);

/// Methods that would have been served, in order of precedence, each once.
pub type Allowed<'t> = SmallVec<[&'t Method; 4]>;

/// What [`RouteTable::find`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'t, T> {
    /// The rule that serves the request.
    Match(&'t T, PrefixLen),
    /// Nothing fits, but something would with one of these methods: a 405 with `allow`.
    MethodMismatch(Allowed<'t>),
    /// Nothing fits: a 404.
    None,
}

/// Why a table could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Not a regular expression, or one that is too large.
    #[error("regular expression `{pattern}`: {source}")]
    Regex {
        /// As written; of several, all of them.
        pattern: String,
        /// What is wrong with it.
        source: regex::Error,
    },
    /// Not the name of a header.
    #[error("`{0}` is not a header name")]
    HeaderName(Arc<str>),
    /// Not a method.
    #[error("`{0}` is not a method")]
    Method(Arc<str>),
    /// A path that no request can have.
    #[error("path `{path}`: {source}")]
    Path {
        /// As written.
        path: Arc<str>,
        /// What is wrong with it.
        source: path::PathError,
    },
}

/// The matches of a listener, ordered and indexed.
#[derive(Debug)]
pub struct RouteTable<T> {
    hosts: HostMap<PathIndex>,
    entries: Vec<Entry<T>>,
    /// For each entry. Apart from them: only explanations read it.
    origins: Vec<explain::Origin>,
}

#[derive(Debug)]
struct Entry<T> {
    method: Option<Method>,
    conditions: Option<Box<Conditions>>,
    target: T,
}

/// Path of a candidate in order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum PathKey {
    Exact(Arc<str>),
    /// All expressions of a hostname form one bucket.
    Regex,
    /// Without trailing `/`.
    Prefix(Arc<str>),
}

impl<T> RouteTable<T> {
    /// Compiles the candidates, in whatever order they come.
    ///
    /// # Errors
    /// When a candidate cannot be compiled; the validation of the model lets no such candidate pass.
    pub fn build(candidates: Vec<Candidate<T>>) -> Result<Self, RouteError> {
        let mut compiler = Compiler::default();
        let mut buckets: BTreeMap<(Option<Hostname>, PathKey), Vec<Candidate<T>>> = BTreeMap::new();
        let mut entries = Vec::with_capacity(candidates.len());
        let mut origins = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let key = (candidate.hostname.clone(), PathKey::new(&candidate.matcher.path)?);
            buckets.entry(key).or_default().push(candidate);
        }
        let mut hosts: HostMap<PathIndex> = HostMap::default();
        for ((hostname, path), mut bucket) in buckets {
            bucket.sort_by(within_bucket);
            let start = entries.len() as u32;
            let range = start..start + bucket.len() as u32;
            let index = hosts.entry(hostname.as_ref(), PathIndex::default);
            match &path {
                PathKey::Exact(path) => index.exact(path, range),
                PathKey::Prefix(path) => index.prefix(path, range),
                PathKey::Regex => {
                    let patterns: Vec<_> = bucket.iter().filter_map(pattern).cloned().collect();
                    index.regexes(&patterns, range, &mut compiler)?;
                }
            }
            for candidate in bucket {
                entries.push(Entry::new(&candidate.matcher, candidate.target, &mut compiler)?);
                let Candidate { hostname, matcher, rank, .. } = candidate;
                origins.push(explain::Origin { hostname, path: path.clone(), matcher, rank });
            }
        }
        Ok(Self { hosts, entries, origins })
    }

    /// The rule for a request.
    pub fn find(&self, request: &View<'_>) -> Found<'_, T> {
        let mut method_missed = false;
        let found = self.search(request, |entry, matched| {
            if !entry.serves(request.method) {
                method_missed = true;
                return None;
            }
            entry.conditions_hold(request).then_some((&entry.target, matched))
        });
        match found {
            Some((target, matched)) => Found::Match(target, matched),
            None if method_missed => self.allowed(request),
            None => Found::None,
        }
    }

    /// Offers the entries whose hostname and path fit, in order of precedence.
    #[inline]
    fn search<'t, R>(
        &'t self,
        request: &View<'_>,
        mut visit: impl FnMut(&'t Entry<T>, PrefixLen) -> Option<R>,
    ) -> Option<R> {
        self.buckets(request, |bucket, matched| {
            let entries = &self.entries[bucket.start as usize..bucket.end as usize];
            entries.iter().find_map(|entry| visit(entry, matched))
        })
    }

    /// As [`Self::search`], by position.
    #[inline]
    fn buckets<R>(&self, request: &View<'_>, mut visit: impl FnMut(Bucket, PrefixLen) -> Option<R>) -> Option<R> {
        self.hosts.search(request.host, |paths| paths.search(request.path, &mut visit))
    }

    /// Which methods would have been served; nothing fits this request as it is.
    #[cold]
    fn allowed(&self, request: &View<'_>) -> Found<'_, T> {
        let mut allowed = Allowed::new();
        self.search(request, |entry, _| {
            if let Some(method) = &entry.method
                && !allowed.contains(&method)
                && entry.conditions_hold(request)
            {
                allowed.push(method);
            }
            None::<()>
        });
        if allowed.is_empty() { Found::None } else { Found::MethodMismatch(allowed) }
    }
}

impl<T> Entry<T> {
    fn new(matcher: &HttpMatch, target: T, compiler: &mut Compiler) -> Result<Self, RouteError> {
        let method = match &matcher.method {
            Some(name) => Some(Method::try_from(&**name).map_err(|_| RouteError::Method(name.clone()))?),
            None => None,
        };
        Ok(Self { method, conditions: Conditions::new(matcher, compiler)?, target })
    }

    #[inline]
    fn serves(&self, method: &Method) -> bool {
        self.method.as_ref().is_none_or(|own| own == method)
    }

    #[inline]
    fn conditions_hold(&self, request: &View<'_>) -> bool {
        self.conditions.as_ref().is_none_or(|conditions| conditions.hold(request.headers, request.query))
    }
}

impl PathKey {
    fn new(path: &PathMatch) -> Result<Self, RouteError> {
        let normal = |path: &Arc<str>| match path::normalize(path) {
            Ok(normal) => Ok(normal.into_owned()),
            Err(source) => Err(RouteError::Path { path: path.clone(), source }),
        };
        Ok(match path {
            PathMatch::Exact(path) => Self::Exact(normal(path)?.into()),
            PathMatch::Regex(_) => Self::Regex,
            PathMatch::Prefix(path) => Self::Prefix(normal(path)?.trim_end_matches('/').into()),
        })
    }
}

/// Order of the candidates that share hostname and path (or are all expressions).
fn within_bucket<T>(a: &Candidate<T>, b: &Candidate<T>) -> Ordering {
    fn key<T>(candidate: &Candidate<T>) -> (impl Ord, bool, impl Ord, impl Ord, &Rank) {
        let matcher = &candidate.matcher;
        let longest = std::cmp::Reverse(pattern(candidate).map_or(0, |pattern| pattern.chars().count()));
        let most_headers = std::cmp::Reverse(matcher.headers.len());
        let most_query = std::cmp::Reverse(matcher.query.len());
        (longest, matcher.method.is_none(), most_headers, most_query, &candidate.rank)
    }
    key(a).cmp(&key(b))
}

/// The regular expression that the path has to match, if it is matched by one.
fn pattern<T>(candidate: &Candidate<T>) -> Option<&Arc<str>> {
    match &candidate.matcher.path {
        PathMatch::Regex(pattern) => Some(pattern),
        PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
    }
}

#[cfg(test)]
mod tests;
