//! Why a request is served by one rule and not by another: every entry of a table with its reasons. For people; nothing
//! on the path of a request calls it.
//!
//! Whether an entry fits is asked of the same index and the same conditions as [`RouteTable::find`] asks.

use std::{cmp::Ordering, cmp::Reverse, fmt::Write};

use weft_model::config::{Hostname, HttpMatch, NamedMatch, PathMatch, ValueMatch};

use super::{
    PathKey, PrefixLen, Rank, RouteTable, View,
    condition::{field, parameter},
    hosts,
    path::normalize,
};

/// Longest part of a request's value that is shown, in characters.
const SHOWN: usize = 60;

/// Where an entry comes from.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) hostname: Option<Hostname>,
    pub(super) path: PathKey,
    pub(super) matcher: HttpMatch,
    pub(super) rank: Rank,
}

/// One entry of a table, looked at with one request in mind.
#[derive(Debug)]
pub struct Considered<'t, T> {
    /// The rule.
    pub target: &'t T,
    /// The hostname under which it is entered; `None`: every hostname.
    pub hostname: Option<&'t Hostname>,
    /// What it asks of a request.
    pub matcher: &'t HttpMatch,
    /// Number of the match in its rule.
    pub position: usize,
    /// What became of it.
    pub verdict: Verdict,
}

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It serves the request.
    Serves(PrefixLen),
    /// It fits, but another one comes first.
    Outranked(Criterion),
    /// It does not fit: all that is missing.
    Misses(Vec<Miss>),
}

/// A condition that a request does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// What it is about.
    pub part: Part,
    /// For people: `header x-canary: wants "1", is absent`.
    pub text: String,
    /// Of a path: how many bytes of it agree from the left. A typing error agrees far.
    pub agrees: usize,
}

/// The parts of a request that rules look at, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Part {
    Hostname,
    Path,
    Method,
    Header,
    Query,
}

/// What decided between two entries that both fit: see the order of precedence in [`super`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Criterion {
    Hostname,
    PathKind,
    PathLength,
    Method,
    Headers,
    Query,
    Age,
    Name,
    Document,
}

impl Criterion {
    /// What the winner has over the others.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hostname => "a more specific hostname",
            Self::PathKind => "a more specific kind of path (exact, then expression, then prefix)",
            Self::PathLength => "a longer path",
            Self::Method => "a method in its match",
            Self::Headers => "more header conditions",
            Self::Query => "more query conditions",
            Self::Age => "an older route",
            Self::Name => "a route whose namespace/name sorts first",
            Self::Document => "an earlier place in the route",
        }
    }
}

impl<T> Considered<'_, T> {
    /// Sorts near misses first: what fits, then what misses least, then what got furthest.
    pub fn distance(&self) -> (usize, bool, bool, Reverse<usize>) {
        let Verdict::Misses(misses) = &self.verdict else { return (0, false, false, Reverse(0)) };
        let missing = |part| misses.iter().any(|miss| miss.part == part);
        let agrees = misses.iter().map(|miss| miss.agrees).max().unwrap_or(0);
        (misses.len(), missing(Part::Hostname), missing(Part::Path), Reverse(agrees))
    }
}

impl<T> RouteTable<T> {
    /// Every entry with what became of it, in order of precedence.
    #[cold]
    pub fn explain(&self, request: &View<'_>) -> Vec<Considered<'_, T>> {
        // Paths are asked under every hostname: that only the hostname is wrong is worth knowing.
        let mut path_fits = vec![false; self.entries.len()];
        for paths in self.hosts.values() {
            paths.search(request.path, |bucket, _| {
                bucket.for_each(|at| path_fits[at as usize] = true);
                None::<()>
            });
        }
        let winner = self.buckets(request, |mut bucket, matched| {
            bucket.find(|at| self.rest_fits(*at as usize, request)).map(|at| (at as usize, matched))
        });
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_by(|a, b| compare(&self.origins[*a], &self.origins[*b]).0);
        let verdict = |at: usize| match winner {
            Some((winner, matched)) if winner == at => Verdict::Serves(matched),
            _ => {
                let misses = self.misses(at, path_fits[at], request);
                match winner {
                    Some((winner, _)) if misses.is_empty() => {
                        Verdict::Outranked(compare(&self.origins[winner], &self.origins[at]).1)
                    }
                    _ => Verdict::Misses(misses),
                }
            }
        };
        let considered = |at: usize| {
            let origin = &self.origins[at];
            Considered {
                target: &self.entries[at].target,
                hostname: origin.hostname.as_ref(),
                matcher: &origin.matcher,
                position: origin.rank.position,
                verdict: verdict(at),
            }
        };
        order.into_iter().map(considered).collect()
    }

    /// Method, headers and query.
    fn rest_fits(&self, at: usize, request: &View<'_>) -> bool {
        self.entries[at].serves(request.method) && self.entries[at].conditions_hold(request)
    }

    fn misses(&self, at: usize, path_fits: bool, request: &View<'_>) -> Vec<Miss> {
        let (entry, origin) = (&self.entries[at], &self.origins[at]);
        let mut misses = Vec::new();
        let mut miss = |part, text| misses.push(Miss { part, text, agrees: 0 });
        if let Some(hostname) = &origin.hostname
            && !hosts::matches(hostname, request.host)
        {
            miss(Part::Hostname, format!("hostname {hostname} does not fit {}", shown(request.host.as_bytes())));
        }
        if !path_fits {
            miss(Part::Path, path_text(&origin.matcher.path, request.path));
        }
        if let Some(method) = entry.method.as_ref().filter(|_| !entry.serves(request.method)) {
            miss(Part::Method, format!("method: wants {method}, is {}", request.method));
        }
        if let Some(conditions) = &entry.conditions {
            let (headers, query) = conditions.failing(request.headers, request.query);
            for NamedMatch { name, value } in headers.iter().filter_map(|at| origin.matcher.headers.get(*at)) {
                let actual = name.parse().ok().and_then(|name| field(request.headers, &name));
                miss(Part::Header, format!("header {name}: {}", wants(value, actual.as_deref())));
            }
            for NamedMatch { name, value } in query.iter().filter_map(|at| origin.matcher.query.get(*at)) {
                let actual = parameter(request.query.unwrap_or_default(), name);
                miss(Part::Query, format!("query {name}: {}", wants(value, actual.as_deref())));
            }
        }
        if let Some(miss) = misses.iter_mut().find(|miss| miss.part == Part::Path) {
            miss.agrees = agreement(&origin.matcher.path, request.path);
        }
        misses
    }
}

fn agreement(wanted: &PathMatch, path: &str) -> usize {
    match wanted {
        PathMatch::Exact(wanted) | PathMatch::Prefix(wanted) => {
            wanted.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count()
        }
        PathMatch::Regex(_) => 0,
    }
}

fn path_text(wanted: &PathMatch, path: &str) -> String {
    let is = shown(path.as_bytes());
    match wanted {
        PathMatch::Exact(wanted) => format!("path: wants {wanted} exactly, is {is}"),
        PathMatch::Regex(wanted) => format!("path: {is} does not match the expression {wanted}"),
        PathMatch::Prefix(wanted) => {
            let normal = normalize(wanted).unwrap_or_default();
            let half = path.starts_with(&*normal);
            let why = if half { ": prefixes end at a /" } else { "" };
            format!("path {wanted} is no prefix of {is}{why}")
        }
    }
}

fn wants(wanted: &ValueMatch, actual: Option<&[u8]>) -> String {
    let wanted = match wanted {
        ValueMatch::Exact(text) => format!("\"{text}\""),
        ValueMatch::Regex(expression) => format!("what matches {expression}"),
    };
    match actual {
        Some(actual) => format!("wants {wanted}, is \"{}\"", shown(actual)),
        None => format!("wants {wanted}, is absent"),
    }
}

/// A value of the request, fit for a line of text.
fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        let _ = write!(shown, "... ({} bytes)", value.len());
    }
    shown
}

/// Precedence, and by what.
fn compare(a: &Origin, b: &Origin) -> (Ordering, Criterion) {
    type Step = fn(&Origin, &Origin) -> Ordering;
    let steps: [(Criterion, Step); 9] = [
        (Criterion::Hostname, |a, b| host_key(a).cmp(&host_key(b))),
        (Criterion::PathKind, |a, b| path_kind(a).cmp(&path_kind(b))),
        (Criterion::PathLength, |a, b| path_length(b).cmp(&path_length(a))),
        (Criterion::Method, |a, b| a.matcher.method.is_none().cmp(&b.matcher.method.is_none())),
        (Criterion::Headers, |a, b| b.matcher.headers.len().cmp(&a.matcher.headers.len())),
        (Criterion::Query, |a, b| b.matcher.query.len().cmp(&a.matcher.query.len())),
        (Criterion::Age, |a, b| age(a).cmp(&age(b))),
        (Criterion::Name, |a, b| a.rank.route.cmp(&b.rank.route)),
        (Criterion::Document, |a, b| a.rank.cmp(&b.rank)),
    ];
    let decided = steps.iter().map(|(criterion, step)| (step(a, b), *criterion)).find(|(order, _)| order.is_ne());
    decided.unwrap_or((Ordering::Equal, Criterion::Document))
}

fn host_key(origin: &Origin) -> (u8, Reverse<usize>) {
    match &origin.hostname {
        Some(Hostname::Exact(name)) => (0, Reverse(name.len())),
        Some(Hostname::Wildcard(suffix)) => (1, Reverse(suffix.len())),
        None => (2, Reverse(0)),
    }
}

fn path_kind(origin: &Origin) -> u8 {
    match origin.path {
        PathKey::Exact(_) => 0,
        PathKey::Regex => 1,
        PathKey::Prefix(_) => 2,
    }
}

fn path_length(origin: &Origin) -> usize {
    match (&origin.path, &origin.matcher.path) {
        (PathKey::Prefix(path), _) => path.len(),
        (PathKey::Regex, PathMatch::Regex(pattern)) => pattern.chars().count(),
        // Two exact paths never fit one request.
        _ => 0,
    }
}

fn age(origin: &Origin) -> impl Ord {
    (origin.rank.created.is_none(), &origin.rank.created)
}

/// A match in one short line: `GET /cart/* x-canary="1" ?page="2"`. `~` stands before an expression.
pub fn describe(matcher: &HttpMatch) -> String {
    let mut text = String::new();
    if let Some(method) = &matcher.method {
        let _ = write!(text, "{method} ");
    }
    let _ = match &matcher.path {
        PathMatch::Exact(path) => write!(text, "{path}"),
        PathMatch::Prefix(path) => write!(text, "{}/*", path.trim_end_matches('/')),
        PathMatch::Regex(pattern) => write!(text, "~{pattern}"),
    };
    for (mark, all) in [("", &matcher.headers), ("?", &matcher.query)] {
        for NamedMatch { name, value } in all {
            let _ = match value {
                ValueMatch::Exact(value) => write!(text, " {mark}{name}=\"{value}\""),
                ValueMatch::Regex(pattern) => write!(text, " {mark}{name}~\"{pattern}\""),
            };
        }
    }
    text
}
