//! Conditions on headers and query parameters, and the compilation of regular expressions.

use std::{borrow::Cow, sync::Arc};

use foldhash::HashMap;
use http::{
    HeaderMap, HeaderValue,
    header::{self, HeaderName},
};
use percent_encoding::percent_decode;
use regex::{Regex, RegexSet, RegexSetBuilder};
use weft_model::config::{HttpMatch, NamedMatch, ValueMatch};

use super::RouteError;

/// Largest compiled form of one expression in bytes. The default of `regex`, and so what validation lets pass.
const REGEX_SIZE: usize = 10 << 20;

/// Compiles each expression once, however many rules use it.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    known: HashMap<Box<str>, Regex>,
}

impl Compiler {
    /// An expression that has to match the whole text.
    pub(crate) fn regex(&mut self, pattern: &str) -> Result<Regex, RouteError> {
        if let Some(regex) = self.known.get(pattern) {
            return Ok(regex.clone());
        }
        let regex =
            Regex::new(&anchored(pattern)?).map_err(|source| RouteError::Regex { pattern: pattern.into(), source })?;
        self.known.insert(pattern.into(), regex.clone());
        Ok(regex)
    }

    /// Several expressions, each of which has to match the whole text.
    pub(crate) fn set(&mut self, patterns: &[&str]) -> Result<RegexSet, RouteError> {
        let anchored = patterns.iter().map(|pattern| anchored(pattern)).collect::<Result<Vec<_>, _>>()?;
        RegexSetBuilder::new(anchored)
            .size_limit(REGEX_SIZE.saturating_mul(patterns.len()))
            .build()
            .map_err(|source| RouteError::Regex { pattern: patterns.join(" "), source })
    }
}

/// `pattern` for a match of the whole text. It has to be valid by itself, so that `a)|(b` cannot leave the group.
fn anchored(pattern: &str) -> Result<String, RouteError> {
    Regex::new(pattern).map_err(|source| RouteError::Regex { pattern: pattern.into(), source })?;
    Ok(format!(r"\A(?:{pattern})\z"))
}

/// What a match asks of headers and query.
#[derive(Debug)]
pub(crate) struct Conditions {
    headers: Vec<HeaderCondition>,
    query: Vec<(Arc<str>, Value)>,
}

/// What is asked of one header.
#[derive(Debug)]
pub(crate) struct HeaderCondition {
    name: HeaderName,
    value: Value,
}

impl HeaderCondition {
    pub(crate) fn new(NamedMatch { name, value }: &NamedMatch, compiler: &mut Compiler) -> Result<Self, RouteError> {
        let value = Value::new(value, compiler)?;
        let name = HeaderName::try_from(&**name).map_err(|_| RouteError::HeaderName(name.clone()))?;
        Ok(Self { name, value })
    }

    pub(crate) fn holds(&self, headers: &HeaderMap) -> bool {
        self.value.matches_header(&self.name, headers)
    }
}

#[derive(Debug)]
enum Value {
    Exact(Arc<str>),
    Regex(Regex),
}

impl Conditions {
    /// `None` when the match has no such conditions.
    pub(crate) fn new(matcher: &HttpMatch, compiler: &mut Compiler) -> Result<Option<Box<Self>>, RouteError> {
        if matcher.headers.is_empty() && matcher.query.is_empty() {
            return Ok(None);
        }
        let mut headers = Vec::with_capacity(matcher.headers.len());
        for header in &matcher.headers {
            headers.push(HeaderCondition::new(header, compiler)?);
        }
        let mut query = Vec::with_capacity(matcher.query.len());
        for NamedMatch { name, value } in &matcher.query {
            query.push((name.clone(), Value::new(value, compiler)?));
        }
        Ok(Some(Box::new(Self { headers, query })))
    }

    pub(crate) fn hold(&self, headers: &HeaderMap, query: Option<&str>) -> bool {
        self.headers.iter().all(|header| header.holds(headers))
            && self.query.iter().all(|(name, value)| value.matches_parameter(name, query))
    }

    /// Positions of the header conditions that do not hold, and of the query conditions.
    pub(crate) fn failing(&self, headers: &HeaderMap, query: Option<&str>) -> (Vec<usize>, Vec<usize>) {
        let of_headers = self.headers.iter().enumerate().filter(|(_, header)| !header.holds(headers));
        let of_query = self.query.iter().enumerate().filter(|(_, (name, value))| !value.matches_parameter(name, query));
        (of_headers.map(|(at, _)| at).collect(), of_query.map(|(at, _)| at).collect())
    }
}

impl Value {
    fn new(value: &ValueMatch, compiler: &mut Compiler) -> Result<Self, RouteError> {
        Ok(match value {
            ValueMatch::Exact(text) => Self::Exact(text.clone()),
            ValueMatch::Regex(pattern) => Self::Regex(compiler.regex(pattern)?),
        })
    }

    /// Bytes that are not UTF-8 match no expression.
    fn matches(&self, actual: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == actual,
            Self::Regex(regex) => std::str::from_utf8(actual).is_ok_and(|actual| regex.is_match(actual)),
        }
    }

    fn matches_header(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        field(headers, name).is_some_and(|actual| self.matches(&actual))
    }

    fn matches_parameter(&self, name: &str, query: Option<&str>) -> bool {
        parameter(query.unwrap_or_default(), name).is_some_and(|actual| self.matches(&actual))
    }
}

/// The value of a field. One that comes in several lines has the lines joined by `,` (RFC 9110 §5.3); the crumbs of
/// `cookie` are joined by `; ` (RFC 9113 §8.2.3).
pub(crate) fn field<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    if lines.next().is_none() {
        return Some(Cow::Borrowed(first.as_bytes()));
    }
    let separator: &[u8] = if name == header::COOKIE { b"; " } else { b"," };
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    Some(Cow::Owned(lines.join(separator)))
}

/// The value of the first parameter called `name`, percent-decoded; empty when it has no `=`. `+` is not a space:
/// that is a rule of HTML forms and not of URIs.
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let same = if memchr::memchr(b'%', key.as_bytes()).is_none() {
            key == name
        } else {
            percent_decode(key.as_bytes()).eq(name.bytes())
        };
        same.then(|| percent_decode(value.as_bytes()).into())
    })
}
