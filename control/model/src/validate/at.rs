//! A place in a document, to report problems at.

use std::{str::FromStr, time::Duration};

use super::{Context, Document};
use crate::{
    config::{Hostname, Key},
    duration,
    problem::{Diagnostic, Span},
    suggest,
    tree::{Node, Value},
    validate::syntax,
    written::{DurationText, Kind},
};

/// Moves along with the written structs: `at.field("listeners").item(0)`.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub cx: &'a Context<'a>,
    pub document: &'a Document,
    node: &'a Node,
}

impl<'a> At<'a> {
    pub(crate) fn new(cx: &'a Context<'a>, document: &'a Document) -> Self {
        Self { cx, document, node: &document.node }
    }

    /// A field's value, or this place when the field is not there.
    pub(crate) fn field(self, name: &str) -> Self {
        Self { node: self.node.get(name).unwrap_or(self.node), ..self }
    }

    /// An entry of a list.
    pub(crate) fn item(self, index: usize) -> Self {
        match &self.node.value {
            Value::Seq(items) => Self { node: items.get(index).unwrap_or(self.node), ..self },
            _ => self,
        }
    }

    /// Whether the field was written, even if it was refused.
    pub(crate) fn wrote(self, name: &str) -> bool {
        match &self.node.value {
            Value::Map(map) => map.dropped.iter().any(|dropped| dropped == name) || self.node.get(name).is_some(),
            _ => false,
        }
    }

    /// Whether a field of this mapping was refused.
    pub(crate) fn lost_fields(self) -> bool {
        matches!(&self.node.value, Value::Map(map) if !map.dropped.is_empty())
    }

    pub(crate) fn span(self) -> Span {
        self.node.span
    }

    pub(crate) fn error(self, code: &'static str, message: impl Into<String>, hint: Option<String>) {
        self.cx.problems.push(Diagnostic::at(&self.document.source, self.node.span, code, message.into(), hint));
    }

    /// A value that is not allowed.
    pub(crate) fn invalid(self, message: impl Into<String>, hint: &str) {
        self.error("invalid-value", message, Some(hint.to_owned()));
    }

    pub(crate) fn warn(self, code: &'static str, message: impl Into<String>, hint: Option<String>) {
        self.cx.warnings.push(Diagnostic::at(&self.document.source, self.node.span, code, message.into(), hint));
    }

    /// Something of the Gateway API that Weft does not do.
    pub(crate) fn unsupported(self, what: impl std::fmt::Display, hint: &str) {
        self.error("unsupported", format!("{what} is not supported by Weft"), Some(hint.to_owned()));
    }

    /// A reference to nothing.
    pub(crate) fn unresolved(self, what: &str, name: &str, known: &[String]) {
        let hint = suggest::hint(name, "there are", known.iter().map(String::as_str)).unwrap_or_else(|| {
            let what = Kind::from_name(what).map_or_else(|| what.to_owned(), Kind::with_article);
            format!("add {what} named {name:?}")
        });
        self.error("unresolved-reference", format!("there is no {what} {name:?}"), Some(hint));
    }

    /// Reads the duration in a field.
    pub(crate) fn duration(self, name: &str, text: Option<&DurationText>) -> Option<Duration> {
        let DurationText(text) = text?;
        match duration::parse(text) {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.field(name)
                    .invalid(format!("{text:?} is not a duration: {error}"), "for instance 250ms, 10s or 1m30s");
                None
            }
        }
    }

    /// Reads a duration that must not be zero.
    pub(crate) fn positive(self, name: &str, text: Option<&DurationText>) -> Option<Duration> {
        let duration = self.duration(name, text)?;
        if duration.is_zero() {
            self.field(name).invalid(format!("{name} cannot be zero"), "for instance 250ms, 10s or 1m30s");
            return None;
        }
        Some(duration)
    }

    /// A reference's key: namespace of the referring object unless given.
    pub(crate) fn key(self, namespace: Option<&str>, name: &str) -> Key {
        let home: &str = &self.document.key.namespace;
        Key::new(namespace.unwrap_or(home), name)
    }

    /// Reads a hostname, `*.` in front allowed if `wildcard`.
    pub(crate) fn hostname(self, text: &str, wildcard: bool) -> Option<Hostname> {
        match syntax::hostname(text) {
            Ok(Hostname::Wildcard(_)) if !wildcard => {
                self.invalid(
                    format!("{text:?} is a wildcard; one exact hostname is needed here"),
                    "write the full name",
                );
                None
            }
            Ok(hostname) => Some(hostname),
            Err(reason) => {
                self.invalid(
                    format!("{text:?} is not a hostname: {reason}"),
                    "for instance shop.example.com or *.example.com",
                );
                None
            }
        }
    }

    /// Parses text that has a plain `FromStr`.
    pub(crate) fn parse<T: FromStr>(self, text: &str, what: &str, hint: &str) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.invalid(format!("{text:?} is not {what}"), hint);
        }
        parsed
    }

    /// Checks that a regular expression compiles, by itself and for a match of the whole text: `a)|(b` is none by
    /// itself, and the comment of `(?x)a #b` would swallow what is put behind it.
    pub(crate) fn regex(self, text: &str) -> Option<()> {
        let compiled = regex::Regex::new(text).and_then(|_| regex::Regex::new(&format!(r"\A(?:{text})\z")));
        match compiled {
            Ok(_) => Some(()),
            Err(error) => {
                let hint = syntax::regex_reason(&error);
                self.invalid(format!("{text:?} is not a regular expression"), &hint);
                None
            }
        }
    }
}
