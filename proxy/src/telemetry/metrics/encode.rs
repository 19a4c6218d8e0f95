//! From numbers to text: OpenMetrics 1.0, and the older Prometheus format made from it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use super::{
    histogram::{BOUNDS, BUCKETS, Distribution},
    table::{self, Kind, METRICS, Metric},
};

/// Text formats of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Prometheus,
}

impl Format {
    /// OpenMetrics for those who ask for it, otherwise what every scraper and `curl` understands.
    pub fn from_accept(accept: Option<&str>) -> Self {
        let refused = |range: &str| range.split(';').any(|part| matches!(part.trim(), "q=0" | "q=0.0"));
        let wanted = accept.unwrap_or_default().split(',').any(|range| {
            range.trim().to_ascii_lowercase().starts_with("application/openmetrics-text") && !refused(range)
        });
        if wanted { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// `Content-Type` of the reply.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The numbers of one scrape. What is added twice under the same labels is summed: that is how workers are merged.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// By position in [`METRICS`], then by label values in the order of the table.
    families: BTreeMap<usize, Family>,
}

type Family = BTreeMap<Vec<String>, Value>;

#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Distribution(Box<Distribution>),
}

impl Samples {
    /// Adds to a counter or gauge. Names and labels have to be in [`METRICS`]; others are left out, loudly in tests.
    pub fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        if let Some((family, key)) = self.place(name, labels) {
            match family.entry(key).or_insert(Value::Number(0.0)) {
                Value::Number(sum) => *sum += value,
                Value::Distribution(_) => debug_assert!(false, "{name} is a histogram"),
            }
        }
    }

    /// Adds to a histogram.
    pub fn add_distribution(&mut self, name: &str, labels: &[(&str, &str)], value: &Distribution) {
        if let Some((family, key)) = self.place(name, labels) {
            match family.entry(key).or_insert_with(|| Value::Distribution(Box::default())) {
                Value::Distribution(sum) => sum.merge(value),
                Value::Number(_) => debug_assert!(false, "{name} is no histogram"),
            }
        }
    }

    /// The value of a counter or gauge.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        match self.get(name, labels)? {
            Value::Number(number) => Some(*number),
            Value::Distribution(_) => None,
        }
    }

    /// The sum of a counter or gauge over all series that have these labels, among others.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let Some(index) = table::index(name) else { return 0.0 };
        let places: Vec<_> =
            METRICS[index].labels.iter().map(|own| labels.iter().find(|(name, _)| name == own)).collect();
        let fits = |values: &[String]| {
            places.iter().zip(values).all(|(wanted, value)| wanted.is_none_or(|(_, wanted)| wanted == value))
        };
        let series = self.families.get(&index).into_iter().flatten().filter(|(values, _)| fits(values));
        series.filter_map(|(_, value)| if let Value::Number(number) = value { Some(number) } else { None }).sum()
    }

    /// A histogram.
    pub fn distribution(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Distribution> {
        match self.get(name, labels)? {
            Value::Distribution(distribution) => Some(distribution),
            Value::Number(_) => None,
        }
    }

    /// The scrape as text.
    pub fn encode(self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::with_capacity(16 * 1024);
        // Writing into a String cannot fail, and our labels never return an error.
        let written = prometheus_client::encoding::text::encode(&mut text, &registry);
        debug_assert!(written.is_ok());
        match format {
            Format::OpenMetrics => text,
            Format::Prometheus => to_prometheus(&text),
        }
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Value> {
        let index = table::index(name)?;
        self.families.get(&index)?.get(&key(&METRICS[index], labels))
    }

    fn place(&mut self, name: &str, labels: &[(&str, &str)]) -> Option<(&mut Family, Vec<String>)> {
        let Some(index) = table::index(name) else {
            debug_assert!(false, "{name} is not in METRICS");
            return None;
        };
        let metric = &METRICS[index];
        debug_assert!(labels.iter().all(|(label, _)| metric.labels.contains(label)), "{name} has no such label");
        Some((self.families.entry(index).or_default(), key(metric, labels)))
    }
}

/// Label values in the order of the table; what is not given is empty.
fn key(metric: &Metric, labels: &[(&str, &str)]) -> Vec<String> {
    let value = |wanted: &&str| labels.iter().find(|(label, _)| label == wanted).map_or("", |(_, value)| value);
    metric.labels.iter().map(|label| value(label).to_owned()).collect()
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (&index, family) in &self.families {
            let metric = &METRICS[index];
            let (name, kind) = match metric.kind {
                // The encoder appends `_total`.
                Kind::Counter => (metric.name.trim_end_matches("_total"), MetricType::Counter),
                Kind::Gauge => (metric.name, MetricType::Gauge),
                Kind::Histogram => (metric.name, MetricType::Histogram),
            };
            let mut encoder = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for (values, value) in family {
                if metric.labels.is_empty() {
                    encode_value(metric.kind, value, &mut encoder)?;
                } else {
                    let labels = LabelSet { metric, values };
                    encode_value(metric.kind, value, &mut encoder.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

fn encode_value(kind: Kind, value: &Value, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    match value {
        Value::Number(number) if kind == Kind::Counter && number.fract() == 0.0 => {
            encoder.encode_counter(&(*number as u64), None::<&Exemplar<NoLabels, u64>>)
        }
        Value::Number(number) if kind == Kind::Counter => {
            encoder.encode_counter(number, None::<&Exemplar<NoLabels, f64>>)
        }
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            encoder.encode_gauge(&(*number as i64))
        }
        Value::Number(number) => encoder.encode_gauge(number),
        Value::Distribution(distribution) => {
            let buckets: [(f64, u64); BUCKETS] = std::array::from_fn(|index| {
                (BOUNDS.get(index).copied().unwrap_or(f64::INFINITY), distribution.counts[index])
            });
            encoder.encode_histogram(
                distribution.sum,
                distribution.count(),
                &buckets,
                None::<&HashMap<usize, Exemplar<NoLabels, f64>>>,
            )
        }
    }
}

type NoLabels = [(&'static str, &'static str); 0];

#[derive(Debug)]
struct LabelSet<'a> {
    metric: &'a Metric,
    values: &'a [String],
}

impl EncodeLabelSet for LabelSet<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let ours = self.metric.name.starts_with("weft_");
        for (label, value) in self.metric.labels.iter().zip(self.values) {
            // In Prometheus an empty label is an absent one; ours are written always, so that a line shows them all.
            if ours || !value.is_empty() {
                (*label, value.as_str()).encode(encoder.encode_label())?;
            }
        }
        Ok(())
    }
}

/// Format 0.0.4: counters are named in full in HELP and TYPE, and there is no EOF mark.
fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        match line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "))
            .and_then(|rest| rest.split_once(' '))
        {
            Some((name, rest)) => {
                let is_counter = METRICS.iter().any(|metric| metric.name.strip_suffix("_total") == Some(name));
                let suffix = if is_counter { "_total" } else { "" };
                text.extend([&line[..7], name, suffix, " ", rest]);
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}
