//! YAML (and so JSON) into a tree that knows where each of its nodes was written.
//!
//! Each document of a file is parsed alone, so that a mistake in one does not hide those in the others.

use std::{collections::HashMap, sync::Arc};

use serde_saphyr::granit_parser::{self as yaml, Event, Parser, ScalarStyle};

use crate::problem::{Diagnostic, Sink, Source, Span};

/// Deeper documents are refused: nothing here needs it, and recursion over a tree must have an end.
const DEEPEST: usize = 64;
/// Nodes that aliases may copy in one document.
const COPIES: usize = 20_000;

/// A node and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub span: Span,
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Seq(Vec<Node>),
    Map(Map),
}

/// A mapping, in the order written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map {
    pub entries: Vec<(Key, Node)>,
    /// Fields that were written but refused: they are not reported as missing as well.
    pub dropped: Vec<String>,
}

/// A key and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub span: Span,
    pub name: String,
}

impl Node {
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(map) => map.entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// What the user would call it.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Str(_) => "text",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Str(value) => value.as_str().into(),
            Value::Seq(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(map) => map.entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Seq(items) => items.iter().map(Node::size).sum(),
            Value::Map(map) => map.entries.iter().map(|(_, node)| node.size()).sum(),
            _ => 0,
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.value {
            Value::Seq(items) => items.iter().map(Node::depth).max().unwrap_or(0),
            Value::Map(map) => map.entries.iter().map(|(_, node)| node.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// The documents of a source.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    /// The documents, each with whether nothing was wrong with it so far.
    pub nodes: Vec<(Node, bool)>,
    /// A document could not be read, so that whatever it defines is unknown.
    pub unreadable: bool,
}

/// Parses every document; what is wrong goes to the sink.
pub(crate) fn parse(source: &Arc<Source>, sink: &Sink) -> Documents {
    let mut documents = Documents::default();
    for chunk in chunks(source.text()) {
        if sink.is_full() {
            documents.unreadable = true;
            break;
        }
        let before = sink.len();
        let mut builder = Builder::new(source, sink, chunk);
        if builder.run().is_none() {
            documents.unreadable = true;
        }
        let sound = sink.len() == before;
        documents.nodes.extend(builder.documents.into_iter().map(|node| (node, sound)));
    }
    documents
}

/// Splits at lines that start with `---`: YAML allows them nowhere inside a document, not even in quotes.
fn chunks(text: &str) -> Vec<Span> {
    let mut chunks = Vec::new();
    let mut start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut content = false;
    let mut offset = start;
    for line in text.get(start..).unwrap_or_default().split_inclusive('\n') {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && content {
            chunks.push(Span { start, end: offset });
            start = offset;
        }
        // Directives and comments before `---` belong to the document that follows.
        content |= marker || !(line.trim().is_empty() || line.starts_with(['#', '%']));
        offset += line.len();
    }
    chunks.push(Span { start, end: offset });
    chunks
}

/// A collection that is still open.
enum Open {
    Seq { span: Span, anchor: usize, items: Vec<Node> },
    Map { span: Span, anchor: usize, map: Map, seen: HashMap<String, Span>, key: Option<Option<Key>> },
}

struct Builder<'a> {
    source: &'a Arc<Source>,
    sink: &'a Sink,
    chunk: Span,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    copies: usize,
    documents: Vec<Node>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Arc<Source>, sink: &'a Sink, chunk: Span) -> Self {
        Self { source, sink, chunk, open: Vec::new(), anchors: HashMap::new(), copies: 0, documents: Vec::new() }
    }

    /// `None` when the rest of the chunk could not be read.
    fn run(&mut self) -> Option<()> {
        let source = self.source.clone();
        let text = source.text().get(self.chunk.start..self.chunk.end)?;
        let mut options = yaml::Options::default();
        options.set_emit_comments(false);
        for event in Parser::new_from_str_with_options(text, options) {
            match event {
                Ok((event, span)) => self.event(event, self.span(&span))?,
                Err(error) => {
                    let start = self.chunk.start + error.marker().byte_offset().unwrap_or(0);
                    self.syntax(Span { start, end: start }, &error.info());
                    return None;
                }
            }
        }
        Some(())
    }

    fn span(&self, span: &yaml::Span) -> Span {
        let start = span.start.byte_offset().unwrap_or(0);
        let end = span.end.byte_offset().unwrap_or(start).max(start);
        Span { start: self.chunk.start + start, end: self.chunk.start + end }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let value = match tag.as_deref().map(|tag| tag.core_suffix_or_empty()) {
                    None if plain => resolve(&text),
                    None | Some("str") => Value::Str(text.into_owned()),
                    Some("int" | "float" | "bool" | "null") => resolve(&text),
                    Some(_) => {
                        self.refuse_tag(span);
                        Value::Str(text.into_owned())
                    }
                };
                self.node(Node { span, value }, anchor, Some(plain))
            }
            Event::SequenceStart(_, anchor, tag) => {
                if tag.as_deref().is_some_and(|tag| tag.core_suffix_or_empty() != "seq") {
                    self.refuse_tag(span);
                }
                self.push(Open::Seq { span, anchor, items: Vec::new() })
            }
            Event::MappingStart(_, anchor, tag) => {
                if tag.as_deref().is_some_and(|tag| tag.core_suffix_or_empty() != "map") {
                    self.refuse_tag(span);
                }
                self.push(Open::Map { span, anchor, map: Map::default(), seen: HashMap::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop()? {
                Open::Seq { span, anchor, items } => self.node(Node { span, value: Value::Seq(items) }, anchor, None),
                Open::Map { span, anchor, map, .. } => {
                    let map = merge_keys(map);
                    self.node(Node { span, value: Value::Map(map) }, anchor, None)
                }
            },
            Event::Alias(id) => {
                let (size, depth) = self.anchors.get(&id).map(|node| (node.size(), node.depth()))?;
                self.copy(span, size)?;
                if self.open.len() + depth > DEEPEST {
                    return self.too_deep(span);
                }
                let node = self.anchors.get(&id).cloned()?;
                // Problems inside the copy point to where its text is; the copy itself is here.
                self.node(node, 0, Some(false))
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Some(())
            }
            _ => Some(()),
        }
    }

    fn push(&mut self, open: Open) -> Option<()> {
        if self.open.len() >= DEEPEST {
            let (Open::Seq { span, .. } | Open::Map { span, .. }) = open;
            return self.too_deep(span);
        }
        self.open.push(open);
        Some(())
    }

    /// Puts a finished node where it belongs. `plain` is `None` for collections.
    fn node(&mut self, node: Node, anchor: usize, plain: Option<bool>) -> Option<()> {
        if anchor != 0 {
            self.copy(node.span, node.size())?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.documents.push(node),
            Some(Open::Seq { items, .. }) => items.push(node),
            Some(Open::Map { map, seen, key, .. }) => match key.take() {
                None => {
                    let source = self.source.text();
                    let name = match node.value {
                        Value::Str(text) => text,
                        // `80: x` or `true: x`: the name is what was typed.
                        _ if plain.is_some() => {
                            source.get(node.span.start..node.span.end).unwrap_or_default().to_owned()
                        }
                        _ => {
                            let message = "a mapping's key has to be text".to_owned();
                            self.sink.push(Diagnostic::at(self.source, node.span, "yaml-syntax", message, None));
                            *key = Some(None);
                            return Some(());
                        }
                    };
                    if let Some(first) = seen.get(&name) {
                        let (line, column) = self.source.position(first.start);
                        let message = format!("field {name:?} is written twice");
                        let hint = format!("the first is at line {line}, column {column}; keep one of them");
                        self.sink.push(Diagnostic::at(self.source, node.span, "duplicate-field", message, Some(hint)));
                        *key = Some(None);
                    } else {
                        seen.insert(name.clone(), node.span);
                        *key = Some(Some(Key { span: node.span, name }));
                    }
                }
                Some(None) => {}
                Some(Some(key)) => map.entries.push((key, node)),
            },
        }
        Some(())
    }

    fn copy(&mut self, span: Span, size: usize) -> Option<()> {
        self.copies += size;
        if self.copies <= COPIES {
            return Some(());
        }
        let message = format!("aliases (*name) of this document expand to more than {COPIES} values");
        let hint = Some("write the values out, or split the document".to_owned());
        self.sink.push(Diagnostic::at(self.source, span, "yaml-too-large", message, hint));
        None
    }

    fn too_deep(&mut self, span: Span) -> Option<()> {
        let message = format!("nested deeper than {DEEPEST} levels");
        self.sink.push(Diagnostic::at(self.source, span, "yaml-too-deep", message, None));
        None
    }

    fn refuse_tag(&mut self, span: Span) {
        let message = "YAML tags (!name) are not supported".to_owned();
        let hint = Some("remove the tag".to_owned());
        self.sink.push(Diagnostic::at(self.source, span, "yaml-syntax", message, hint));
    }

    fn syntax(&mut self, span: Span, info: &str) {
        let (line, _) = self.source.position(span.start);
        let written = self.source.line(line);
        let indent = &written[..written.len() - written.trim_start().len()];
        let hint = if indent.contains('\t') || info.contains("tab") {
            Some("YAML is indented with spaces; replace the tabs of this line".to_owned())
        } else if info.contains("mapping values are not allowed") {
            Some("a value that holds \": \" needs quotes; or the line above is indented differently".to_owned())
        } else if info.contains("anchor") {
            Some("an alias (*name) needs an anchor (&name) before it in the same document; quote text that starts with *".to_owned())
        } else {
            None
        };
        let message = format!("this is not valid YAML: {info}");
        self.sink.push(Diagnostic::at(self.source, span, "yaml-syntax", message, hint));
    }
}

/// The part of a tag after the core schema's prefix, or nothing for any other tag.
trait CoreTag {
    fn core_suffix_or_empty(&self) -> &str;
}

impl CoreTag for yaml::Tag {
    fn core_suffix_or_empty(&self) -> &str {
        self.core_suffix().unwrap_or_default()
    }
}

/// `<<: *base`: the fields of `base` that are not written here.
fn merge_keys(mut map: Map) -> Map {
    let Some(position) = map.entries.iter().position(|(key, node)| {
        key.name == "<<"
            && match &node.value {
                Value::Map(_) => true,
                Value::Seq(items) => items.iter().all(|item| matches!(item.value, Value::Map(_))),
                _ => false,
            }
    }) else {
        return map;
    };
    let (_, node) = map.entries.remove(position);
    let bases = match node.value {
        Value::Seq(items) => items,
        _ => vec![node],
    };
    for base in bases {
        if let Value::Map(base) = base.value {
            for (key, value) in base.entries {
                if !map.entries.iter().any(|(mine, _)| mine.name == key.name) {
                    map.entries.push((key, value));
                }
            }
        }
    }
    map
}

/// The YAML 1.2 core schema. `yes`, `no`, `on` and `off` are text.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let number = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix =
        |prefix, radix| text.strip_prefix(prefix).and_then(|digits: &str| i64::from_str_radix(digits, radix).ok());
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Value::Str(text.to_owned());
    }
    if number.bytes().all(|b| b.is_ascii_digit())
        && let Ok(value) = text.parse()
    {
        return Value::Int(value);
    }
    if let Some(value) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Value::Int(value);
    }
    // Digits first, so that Rust's "inf" and "nan" cannot appear.
    if number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && let Ok(value) = text.parse::<f64>()
        && value.is_finite()
    {
        return Value::Float(value);
    }
    Value::Str(text.to_owned())
}
