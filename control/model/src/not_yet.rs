//! Fields that are read and checked, but whose behaviour comes later. Each one in use is a warning by name; removing a
//! line here is part of making the field work.

use std::sync::Arc;

use crate::{
    problem::{Diagnostic, Sink, Source, Span},
    tree::{Node, Value},
    written::Kind,
};

/// Kind, path (`[]` for the entries of a list, `=value` at the end for one value only, empty for the whole kind), note.
pub const NOT_YET: &[(&str, &str, &str)] = &[];

/// Warns of every field of a document that has no effect yet.
pub(crate) fn warn(kind: Kind, document: &Node, source: &Arc<Source>, warnings: &Sink) {
    for (of, pattern, note) in NOT_YET.iter().filter(|(of, ..)| *of == kind.name()) {
        let (path, value) = match pattern.split_once('=') {
            Some((path, value)) => (path, Some(value)),
            None => (*pattern, None),
        };
        let message = match pattern.is_empty() {
            true => format!("{of} has no effect yet: {note}"),
            false => format!("{of} {pattern} has no effect yet: {note}"),
        };
        for span in select(document, path, value) {
            warnings.push(Diagnostic::at(source, span, "not-in-effect", message.clone(), None));
        }
    }
}

/// Where a path is present: the span of its key, or of the document for the empty path.
fn select(document: &Node, path: &str, value: Option<&str>) -> Vec<Span> {
    let Some((parents, last)) = path.rsplit_once('.') else {
        let kind = document.get("kind").map_or(document.span, |kind| kind.span);
        return vec![kind];
    };
    let mut nodes = vec![document];
    for part in parents.split('.') {
        let (name, list) = match part.strip_suffix("[]") {
            Some(name) => (name, true),
            None => (part, false),
        };
        nodes = nodes
            .into_iter()
            .filter_map(|node| node.get(name))
            .flat_map(|node| match &node.value {
                Value::Seq(items) if list => items.iter().collect(),
                _ => vec![node],
            })
            .collect();
    }
    let found = nodes.into_iter().filter_map(|node| match &node.value {
        Value::Map(map) => map.entries.iter().find(|(key, _)| key.name == last),
        _ => None,
    });
    found.filter(|(_, node)| value.is_none_or(|value| node.as_str() == Some(value))).map(|(key, _)| key.span).collect()
}
