//! Figures, their bounds and verdicts.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::error::Elapsed;

use crate::Verdict;
use crate::machine;
use crate::stats::Spread;
use crate::table::Table;

/// Everything that was measured, as `--json` writes it.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    #[serde(skip)]
    scenario: &'static str,
    figures: Vec<Figure>,
}

/// One row.
#[derive(Debug, Serialize)]
struct Figure {
    scenario: &'static str,
    figure: String,
    /// `null` when it could not be measured.
    value: Option<f64>,
    unit: &'static str,
    bound: Option<String>,
    /// `null` without a bound.
    pass: Option<bool>,
    /// The smallest and largest of the rounds whose median `value` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<(f64, f64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// What a value must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Between(f64, f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Between(least, most) => (least..=most).contains(&value),
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {}", number(least, unit)),
            Self::AtMost(most) => format!("≤ {}", number(most, unit)),
            Self::Between(least, most) => format!("{} … {}", number(least, ""), number(most, unit)),
        }
    }
}

impl Report {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { machine: machine::describe(), scenario: "", figures: Vec::new() }
    }

    /// What follows belongs to this scenario.
    pub fn scenario(&mut self, name: &'static str) {
        self.scenario = name;
    }

    /// A figure that says something but has no bound.
    pub fn info(&mut self, figure: impl Into<String>, value: f64, unit: &'static str) {
        self.row(figure.into(), Some(value), unit, None, None, None, None);
    }

    /// A figure with its bound.
    pub fn check(&mut self, figure: impl Into<String>, value: f64, unit: &'static str, bound: Bound) {
        let pass = bound.holds(value);
        self.row(figure.into(), Some(value), unit, Some(bound.text(unit)), Some(pass), None, None);
    }

    /// The median of several rounds, shown with the smallest and largest of them.
    pub fn spread(&mut self, figure: impl Into<String>, spread: Spread, unit: &'static str, bound: Option<Bound>) {
        let pass = bound.map(|bound| bound.holds(spread.median));
        let bound = bound.map(|bound| bound.text(unit));
        self.row(figure.into(), Some(spread.median), unit, bound, pass, None, Some((spread.min, spread.max)));
    }

    /// A figure that could not be measured, which fails.
    pub fn missing(&mut self, figure: impl Into<String>, why: &str) {
        self.row(figure.into(), None, "", None, Some(false), Some(why.to_owned()), None);
    }

    /// The scenario ended with an error, which fails.
    pub fn broken(&mut self, error: &str) {
        self.missing("the whole scenario", error);
    }

    /// The scenario has ended, or was cut off after `limit`.
    pub fn ended(&mut self, limit: Duration, ended: Result<Result<()>, Elapsed>) {
        let ended = ended.with_context(|| format!("not done after {} s", limit.as_secs()));
        if let Err(error) = ended.and_then(|ended| ended) {
            self.broken(&format!("{error:#}"));
        }
    }

    /// Prints everything, writes it to `json` too, and says how it went.
    pub fn finish(&self, json: Option<&Path>) -> Result<Verdict> {
        println!("{}", machine::describe());
        print!("{}", self.table());
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(self)? + "\n";
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(if self.passed() { Verdict::Pass } else { Verdict::Fail })
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of the table")]
    fn row(
        &mut self,
        figure: String,
        value: Option<f64>,
        unit: &'static str,
        bound: Option<String>,
        pass: Option<bool>,
        note: Option<String>,
        range: Option<(f64, f64)>,
    ) {
        let figure = Figure { scenario: self.scenario, figure, value, unit, bound, pass, range, note };
        eprintln!("  {}: {} {}", figure.figure, figure.text(), figure.verdict());
        self.figures.push(figure);
    }

    /// Whether every bound held.
    pub fn passed(&self) -> bool {
        self.figures.iter().all(|figure| figure.pass != Some(false))
    }

    /// One row for each figure.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["scenario: figure", "measured", "bound", "verdict"]);
        for figure in &self.figures {
            table.row([
                format!("{}: {}", figure.scenario, figure.figure),
                figure.text(),
                figure.bound.clone().unwrap_or_else(|| "–".into()),
                figure.verdict().to_owned(),
            ]);
        }
        table
    }
}

impl Figure {
    fn text(&self) -> String {
        match (self.value, &self.note) {
            (Some(value), _) => match self.range {
                Some((min, max)) => {
                    format!("{} ({}–{})", number(value, self.unit), digits(min, self.unit), digits(max, self.unit))
                }
                None => number(value, self.unit),
            },
            (None, note) => note.clone().unwrap_or_else(|| "–".into()),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.pass {
            Some(true) => "PASS",
            Some(false) => "FAIL",
            None => "",
        }
    }
}

fn number(value: f64, unit: &str) -> String {
    let text = digits(value, unit);
    if unit.is_empty() { text } else { format!("{text} {unit}") }
}

/// Counts and nanoseconds without a fraction, shares with as many digits as the bound of 99.99 % needs.
fn digits(value: f64, unit: &str) -> String {
    let digits = match unit {
        "" | "ns" => 0,
        "%" | "×" => 3,
        _ => 1,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_passes_when_every_bound_holds() {
        let mut report = Report::new();
        report.scenario("storm");
        report.info("without a bound", 1.0, "");
        report.check("inside", 99.99, "%", Bound::AtLeast(99.99));
        assert!(report.passed());
        report.check("outside", 2.0, "ms", Bound::AtMost(1.5));
        assert!(!report.passed());
        let table = report.table().to_string();
        assert!(table.contains("| storm: inside          | 99.990 % | ≥ 99.990 % |    PASS |"), "{table}");
        assert!(table.contains("2.0 ms |   ≤ 1.5 ms |    FAIL |"), "{table}");
    }

    #[test]
    fn rounds_show_how_far_they_lay_apart() {
        let mut report = Report::new();
        report.spread("ratio", Spread { median: 1.0, min: 0.5, max: 2.0 }, "×", Some(Bound::AtMost(1.0)));
        assert!(report.passed());
        let table = report.table().to_string();
        assert!(table.contains("| 1.000 × (0.500–2.000) | ≤ 1.000 × |    PASS |"), "{table}");
    }

    #[test]
    fn what_could_not_be_measured_fails() {
        let mut report = Report::new();
        report.missing("time", "never seen");
        assert!(!report.passed());
    }

    #[test]
    fn bounds_include_their_ends() {
        for (bound, inside, outside) in [
            (Bound::AtLeast(1.0), 1.0, 0.9),
            (Bound::AtMost(1.0), 1.0, 1.1),
            (Bound::Between(1.0, 2.0), 2.0, 2.1),
            (Bound::Between(1.0, 2.0), 1.0, 0.9),
        ] {
            assert!(bound.holds(inside) && !bound.holds(outside), "{bound:?}");
        }
    }
}
