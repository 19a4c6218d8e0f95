//! A strict reader of the Prometheus text format.

use std::collections::{BTreeMap, BTreeSet};

pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Default)]
pub struct Metrics {
    pub samples: Vec<Sample>,
    pub help: BTreeSet<String>,
    pub kinds: BTreeMap<String, String>,
}

impl Metrics {
    /// Fails the test at the first line that is not well formed.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                metrics.help.insert(rest.split(' ').next().unwrap().to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("bad TYPE line: {line}"));
                let known = ["counter", "gauge", "histogram", "summary", "unknown", "untyped", "info", "stateset"];
                assert!(known.contains(&kind), "bad TYPE line: {line}");
                assert!(metrics.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "repeated: {line}");
            } else if !line.starts_with('#') {
                metrics.samples.push(sample(line).unwrap_or_else(|| panic!("bad sample line: {line}")));
            }
        }
        metrics
    }

    /// Sum over every sample of this name that carries all these labels. A counter is found with and without its
    /// `_total`.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|sample| sample.name == name || sample.name.strip_suffix("_total") == Some(name))
            .filter(|sample| labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value)))
            .map(|sample| sample.value)
            .sum()
    }

    /// The family that a sample belongs to: its name without the suffix of histograms and counters.
    pub fn family<'a>(&self, sample: &'a str) -> Option<&'a str> {
        let suffixes = ["", "_total", "_bucket", "_sum", "_count", "_created", "_info"];
        suffixes.iter().filter_map(|suffix| sample.strip_suffix(suffix)).find(|name| self.kinds.contains_key(*name))
    }
}

fn sample(line: &str) -> Option<Sample> {
    let split = line.find(['{', ' '])?;
    let name = &line[..split];
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut labels = BTreeMap::new();
    let mut rest = &line[split..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let end = end_of_quoted(after)?;
            labels.insert(key.trim_start_matches(',').to_owned(), after[..end].to_owned());
            rest = &after[end + 1..];
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.split(' ').next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        other => other.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

fn end_of_quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}
