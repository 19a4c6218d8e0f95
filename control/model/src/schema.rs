//! The JSON Schema of all documents, and the check of a document against it.
//!
//! One schema serves editors and this check, so they cannot disagree. The check knows the keywords that schemars makes
//! from the types in [`crate::written`], and no others.

use std::sync::{Arc, LazyLock};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value as Json, json};

use crate::{
    problem::{Diagnostic, Sink, Source, Span},
    suggest,
    tree::{Map, Node, Value},
    unsupported,
    written::{self, Kind, Object},
};

/// The schema of every kind, with shared definitions.
static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let variants: Vec<Json> = Kind::ALL.into_iter().map(|kind| variant(kind, &mut generator)).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Weft configuration",
        "description": "A document of a Weft configuration.",
        "oneOf": variants,
        "$defs": generator.take_definitions(true),
    })
});

/// One JSON Schema for any document that Weft reads, for use in editors.
pub fn json_schema() -> Json {
    SCHEMA.clone()
}

fn variant(kind: Kind, generator: &mut SchemaGenerator) -> Json {
    let schema = match kind {
        Kind::Gateway => Object::<written::GatewaySpec>::json_schema(generator),
        Kind::HttpRoute => Object::<written::HttpRouteSpec>::json_schema(generator),
        Kind::GrpcRoute => Object::<written::GrpcRouteSpec>::json_schema(generator),
        Kind::TcpRoute => Object::<written::TcpRouteSpec>::json_schema(generator),
        Kind::BackendTlsPolicy => Object::<written::BackendTlsPolicySpec>::json_schema(generator),
        Kind::Service => Object::<written::ServiceSpec>::json_schema(generator),
        Kind::TrafficPolicy => Object::<written::TrafficPolicySpec>::json_schema(generator),
        Kind::AccessPolicy => Object::<written::AccessPolicySpec>::json_schema(generator),
        Kind::TelemetryPolicy => Object::<written::TelemetryPolicySpec>::json_schema(generator),
        Kind::Workload => Object::<written::WorkloadSpec>::json_schema(generator),
        Kind::Certificate => Object::<written::CertificateSpec>::json_schema(generator),
        Kind::Secret => written::Secret::json_schema(generator),
        Kind::ConfigMap => written::ConfigMap::json_schema(generator),
    };
    let mut schema = schema.to_value();
    if let Some(Json::Object(properties)) = schema.get_mut("properties") {
        properties.insert("apiVersion".into(), json!({ "type": "string", "enum": kind.versions() }));
        properties.insert("kind".into(), json!({ "type": "string", "const": kind.name() }));
    }
    if let Json::Object(schema) = &mut schema {
        schema.insert("title".into(), kind.name().into());
    }
    schema
}

/// Checks a document of this kind. The result holds what is well formed; everything else has been reported.
pub(crate) fn check(kind: Kind, document: &Node, source: &Arc<Source>, sink: &Sink) -> Node {
    let position = Kind::ALL.iter().position(|one| *one == kind).unwrap_or(0);
    let schema = &SCHEMA["oneOf"][position];
    let mut check = Check { kind, source, sink, path: Vec::new() };
    check
        .node(document, schema)
        .unwrap_or(Node { span: document.span, value: Value::Map(Map { entries: Vec::new(), dropped: Vec::new() }) })
}

struct Check<'a> {
    kind: Kind,
    source: &'a Arc<Source>,
    sink: &'a Sink,
    path: Vec<String>,
}

impl Check<'_> {
    /// The well-formed part of a node, or nothing when it was refused.
    fn node(&mut self, node: &Node, schema: &Json) -> Option<Node> {
        let schema = deref(schema);
        let choices = branches(schema);
        // Variants with descriptions come as a list of constants.
        if !choices.is_empty() && choices.iter().all(|choice| !words(choice).is_empty()) {
            let words: Vec<&str> = choices.iter().flat_map(|choice| words(choice)).collect();
            return match &node.value {
                Value::Str(text) => self.allowed(node, text, &words),
                _ => self.scalar(node, choices[0], "string"),
            };
        }
        if let [only] = choices[..] {
            return self.node(node, only);
        }
        if !choices.is_empty() {
            return self.one_of(node, &choices);
        }
        match schema.get("type").and_then(type_of) {
            None => Some(node.clone()),
            Some("object") => self.object(node, schema),
            Some("array") => self.array(node, schema),
            Some(expected) => self.scalar(node, schema, expected),
        }
    }

    /// Several spellings: the first that fits, or else the problems of the one that was probably meant.
    fn one_of(&mut self, node: &Node, choices: &[&Json]) -> Option<Node> {
        for choice in choices {
            let trial = Sink::default();
            let mut check = Check { kind: self.kind, source: self.source, sink: &trial, path: self.path.clone() };
            let result = check.node(node, choice);
            if trial.len() == 0 {
                return result;
            }
        }
        let mut same_type = choices.iter().filter(|choice| fits(node, choice));
        if let Some(choice) = same_type.next() {
            return self.node(node, choice);
        }
        let expected: Vec<&str> = choices.iter().map(|choice| expectation(choice)).collect();
        self.wrong_type(node, &expected.join(" or "), None);
        None
    }

    fn object(&mut self, node: &Node, schema: &Json) -> Option<Node> {
        let Value::Map(map) = &node.value else {
            self.wrong_type(node, "a mapping", None);
            return None;
        };
        let properties = schema.get("properties").and_then(Json::as_object);
        let additional = schema.get("additionalProperties");
        let mut checked = Map::default();
        for (key, value) in &map.entries {
            let property = properties.and_then(|properties| properties.get(&key.name));
            let known = match (property, additional) {
                (Some(property), _) => property,
                (None, Some(Json::Bool(false))) => {
                    self.unknown_field(&key.name, key.span, properties);
                    checked.dropped.push(key.name.clone());
                    continue;
                }
                (None, additional) => additional.unwrap_or(&Json::Null),
            };
            if matches!(value.value, Value::Null) {
                // `field:` without a value is the same as no field, as in Kubernetes.
                continue;
            }
            self.path.push(key.name.clone());
            match self.node(value, known) {
                Some(value) => checked.entries.push((key.clone(), value)),
                None => checked.dropped.push(key.name.clone()),
            }
            self.path.pop();
        }
        let node = Node { span: node.span, value: Value::Map(checked) };
        self.required(&node, schema, properties);
        Some(node)
    }

    fn required(&self, node: &Node, schema: &Json, properties: Option<&serde_json::Map<String, Json>>) {
        let Value::Map(map) = &node.value else { return };
        let required = schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str);
        for name in required {
            if node.get(name).is_some() || map.dropped.iter().any(|dropped| dropped == name) {
                continue;
            }
            // A misspelt field was reported with a suggestion already.
            if map.dropped.iter().any(|dropped| suggest::closest(dropped, [name]).is_some()) {
                continue;
            }
            let property = properties.and_then(|properties| properties.get(name));
            let hint = property.map(|property| {
                let about = property.get("description").and_then(Json::as_str).map(first_sentence).unwrap_or_default();
                format!(
                    "{name}: {}{}",
                    about,
                    if about.is_empty() { expectation(property).to_owned() } else { String::new() }
                )
            });
            let span = Span { start: node.span.start, end: node.span.start };
            self.report(span, "missing-field", format!("field {name:?}{} is missing", self.place()), hint);
        }
    }

    fn array(&mut self, node: &Node, schema: &Json) -> Option<Node> {
        let Value::Seq(items) = &node.value else {
            self.wrong_type(node, "a list", Some("start each entry with \"- \", or write [a, b]"));
            return None;
        };
        if items.is_empty() && schema.get("minItems").and_then(Json::as_u64).is_some_and(|least| least > 0) {
            let message = format!("{} is empty; it needs at least one entry", self.subject());
            self.report(node.span, "invalid-value", message, None);
            return None;
        }
        if let Some(most) = schema.get("maxItems").and_then(Json::as_u64).filter(|most| items.len() as u64 > *most) {
            let message = format!("{} has {} entries; {most} are the most", self.subject(), items.len());
            self.report(node.span, "invalid-value", message, None);
            return None;
        }
        let schema = schema.get("items").unwrap_or(&Json::Null);
        let mut checked = Vec::with_capacity(items.len());
        self.path.push("[]".into());
        for item in items {
            checked.extend(self.node(item, schema));
        }
        self.path.pop();
        Some(Node { span: node.span, value: Value::Seq(checked) })
    }

    fn scalar(&mut self, node: &Node, schema: &Json, expected: &str) -> Option<Node> {
        let written = self.source.text().get(node.span.start..node.span.end).unwrap_or_default();
        match (expected, &node.value) {
            ("string", Value::Str(text)) => return self.string(node, schema, text),
            ("boolean", Value::Bool(_)) => {}
            ("integer", Value::Int(number)) => return self.range(node, schema, *number as f64),
            ("number", Value::Int(number)) => return self.range(node, schema, *number as f64),
            ("number", Value::Float(number)) => return self.range(node, schema, *number),
            _ => {
                let duration =
                    schema.get("pattern").and_then(Json::as_str).is_some_and(|pattern| pattern.contains("ms"));
                let hint = match (expected, &node.value) {
                    ("string", Value::Int(_)) if duration => {
                        Some(format!("a duration needs a unit: {written}s or {written}ms"))
                    }
                    ("string", Value::Int(_) | Value::Float(_) | Value::Bool(_)) => {
                        Some(format!("put it in quotes: \"{written}\""))
                    }
                    ("integer" | "number", Value::Str(text)) if text.parse::<f64>().is_ok() => {
                        Some(format!("remove the quotes: {text}"))
                    }
                    ("integer" | "number", Value::Str(text)) if text.ends_with('%') => {
                        Some(format!("leave out the percent sign: {}", text.trim_end_matches('%')))
                    }
                    ("boolean", Value::Str(text)) => match text.to_ascii_lowercase().as_str() {
                        "yes" | "on" | "true" => Some("write true".to_owned()),
                        "no" | "off" | "false" => Some("write false".to_owned()),
                        _ => None,
                    },
                    _ => None,
                };
                self.wrong_type(node, expectation(schema), hint.as_deref());
                return None;
            }
        }
        Some(node.clone())
    }

    fn string(&self, node: &Node, schema: &Json, text: &str) -> Option<Node> {
        match words(schema) {
            allowed if allowed.is_empty() => Some(node.clone()),
            allowed => self.allowed(node, text, &allowed),
        }
    }

    fn allowed(&self, node: &Node, text: &str, allowed: &[&str]) -> Option<Node> {
        if allowed.contains(&text) {
            return Some(node.clone());
        }
        if let Some(hint) = unsupported::value(self.kind, &self.path, text) {
            let message = format!("{} {text} is not supported by Weft", self.subject().replace('"', ""));
            self.report(node.span, "unsupported", message, Some(hint.to_owned()));
            return None;
        }
        let mut message = format!("{text:?} is not a value of {}", self.subject());
        if let Some(best) = suggest::closest(text, allowed.iter().copied()) {
            message.push_str(&format!("; did you mean {best:?}?"));
        }
        self.report(node.span, "invalid-value", message, Some(format!("values: {}", allowed.join(", "))));
        None
    }

    fn range(&self, node: &Node, schema: &Json, number: f64) -> Option<Node> {
        let least = schema.get("minimum").and_then(Json::as_f64);
        let most = schema.get("maximum").and_then(Json::as_f64).or_else(|| {
            match schema.get("format").and_then(Json::as_str) {
                Some("uint8") => Some(f64::from(u8::MAX)),
                Some("uint16") => Some(f64::from(u16::MAX)),
                Some("uint32") => Some(f64::from(u32::MAX)),
                _ => None,
            }
        });
        if least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most) {
            return Some(node.clone());
        }
        let message = format!("{} is out of range: {number}", self.subject());
        // The width of the field is no rule that anybody needs to know.
        let most = most.filter(|most| *most < f64::from(u32::MAX) || number > *most);
        let hint = match (least, most) {
            (Some(least), Some(most)) => format!("between {least} and {most}"),
            (Some(least), None) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => String::new(),
        };
        self.report(node.span, "invalid-value", message, Some(hint));
        None
    }

    fn unknown_field(&self, name: &str, span: Span, properties: Option<&serde_json::Map<String, Json>>) {
        let mut path = self.path.clone();
        path.push(name.into());
        if let Some(hint) = unsupported::field(self.kind, &path) {
            let message = format!("field {name:?} is not supported by Weft");
            return self.report(span, "unsupported", message, Some(hint.to_owned()));
        }
        let known = properties.into_iter().flat_map(|properties| properties.keys().map(String::as_str));
        let mut message = format!("unknown field {name:?}");
        if let Some(best) = suggest::closest(name, known.clone()) {
            message.push_str(&format!("; did you mean {best:?}?"));
        }
        let known: Vec<&str> = known.collect();
        let hint = match known.is_empty() {
            true => "there are no fields here".to_owned(),
            false => format!("fields{}: {}", self.place(), known.join(", ")),
        };
        self.report(span, "unknown-field", message, Some(hint));
    }

    fn wrong_type(&self, node: &Node, expected: &str, hint: Option<&str>) {
        let message = format!("{} has to be {expected}, but this is {}", self.subject(), node.describe());
        self.report(node.span, "wrong-type", message, hint.map(str::to_owned));
    }

    /// The innermost field: `"port"`, `an entry of "listeners"`.
    fn subject(&self) -> String {
        match self.path.as_slice() {
            [.., field, last] if last == "[]" => format!("an entry of {field:?}"),
            [.., field] => format!("{field:?}"),
            [] => "the document".into(),
        }
    }

    /// ` of "tls"`, or nothing at the top of a document.
    fn place(&self) -> String {
        match self.path.iter().rev().find(|part| *part != "[]") {
            Some(field) => format!(" of {field:?}"),
            None => format!(" of {}", self.kind.with_article()),
        }
    }

    fn report(&self, span: Span, code: &'static str, message: String, hint: Option<String>) {
        self.sink.push(Diagnostic::at(self.source, span, code, message, hint));
    }
}

fn deref(schema: &Json) -> &Json {
    let mut schema = schema;
    while let Some(name) = schema.get("$ref").and_then(Json::as_str).and_then(|path| path.strip_prefix("#/$defs/")) {
        schema = &SCHEMA["$defs"][name];
    }
    schema
}

/// The words that a schema allows, if it is an enumeration.
fn words(schema: &Json) -> Vec<&str> {
    match (schema.get("enum"), schema.get("const")) {
        (Some(Json::Array(values)), _) => values.iter().filter_map(Json::as_str).collect(),
        (_, Some(value)) => value.as_str().into_iter().collect(),
        _ => Vec::new(),
    }
}

/// The branches of `anyOf` and of `oneOf` without null.
fn branches(schema: &Json) -> Vec<&Json> {
    let list = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Json::as_array);
    list.into_iter().flatten().filter(|branch| branch.get("type").and_then(Json::as_str) != Some("null")).collect()
}

/// The type that is not null.
fn type_of(value: &Json) -> Option<&str> {
    match value {
        Json::String(name) => Some(name),
        Json::Array(names) => names.iter().filter_map(Json::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// Whether a node has the type of a schema, whatever it holds.
fn fits(node: &Node, schema: &Json) -> bool {
    let schema = deref(schema);
    let choices = branches(schema);
    if !choices.is_empty() {
        return choices.iter().any(|choice| fits(node, choice));
    }
    matches!(
        (schema.get("type").and_then(type_of), &node.value),
        (None, _)
            | (Some("object"), Value::Map(_))
            | (Some("array"), Value::Seq(_))
            | (Some("string"), Value::Str(_))
            | (Some("boolean"), Value::Bool(_))
            | (Some("integer" | "number"), Value::Int(_))
            | (Some("number"), Value::Float(_))
    )
}

/// What a schema asks for, in words.
fn expectation(schema: &Json) -> &'static str {
    let schema = deref(schema);
    if let Some(first) = branches(schema).first() {
        return expectation(first);
    }
    match schema.get("type").and_then(type_of) {
        Some("object") => "a mapping",
        Some("array") => "a list",
        Some("string") if schema.get("pattern").is_some() => "a duration such as 250ms",
        Some("string") => "text",
        Some("boolean") => "true or false",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        _ => "something else",
    }
}

fn first_sentence(text: &str) -> &str {
    text.split("\n\n").next().unwrap_or(text).trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::not_yet::NOT_YET;

    /// The schema of a path such as `spec.rules[].filters`.
    fn find(kind: &str, path: &str) -> Option<&'static Json> {
        let schema = SCHEMA["oneOf"].as_array().unwrap().iter().find(|schema| schema["title"] == kind)?;
        path.split('.').filter(|part| !part.is_empty()).try_fold(schema, |schema, part| {
            let name = part.trim_end_matches("[]");
            let property = inner(schema).get("properties")?.get(name)?;
            if part.ends_with("[]") { inner(property).get("items") } else { Some(property) }
        })
    }

    fn inner(schema: &'static Json) -> &'static Json {
        let schema = deref(schema);
        match branches(schema).as_slice() {
            [only] => inner(only),
            _ => schema,
        }
    }

    #[test]
    fn every_kind_has_a_schema() {
        let schema = json_schema();
        let kinds: Vec<_> =
            schema["oneOf"].as_array().unwrap().iter().map(|one| &one["properties"]["kind"]["const"]).collect();
        assert_eq!(kinds, Kind::ALL.map(Kind::name));
        assert_eq!(
            find("TrafficPolicy", "spec.timeouts.connect").unwrap()["description"],
            "Until a connection is usable; 1s when omitted."
        );
    }

    #[test]
    fn fields_without_effect_exist() {
        for (kind, pattern, _) in NOT_YET {
            let path = pattern.split('=').next().unwrap();
            assert!(find(kind, path).is_some(), "{kind} {path}");
        }
    }

    #[test]
    fn unsupported_fields_do_not_exist_but_their_parents_do() {
        for (kind, path) in unsupported::paths() {
            let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
            assert!(find(kind.name(), parent).is_some(), "{kind} {parent}");
            assert!(find(kind.name(), path).is_none(), "{kind} {path} is supported after all");
        }
        for (kind, path, value) in unsupported::values() {
            let schema = inner(find(kind.name(), path).unwrap_or_else(|| panic!("{kind} {path}")));
            assert!(!words(schema).is_empty() && !words(schema).contains(&value), "{kind} {path}={value}");
        }
    }

    #[test]
    fn every_mapping_refuses_unknown_fields() {
        for (name, schema) in SCHEMA["$defs"].as_object().unwrap() {
            if schema.get("properties").is_some() {
                assert_eq!(schema["additionalProperties"], false, "{name}");
            }
        }
    }
}
