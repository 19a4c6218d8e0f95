//! The table of `peers`, and what the reader must know before believing it.

use super::{HEADROOM, Row, Run, Turn};
use crate::stats::Spread;
use crate::table::Table;

/// Below this share of its CPU a proxy was not saturated, or something else ran there.
const BUSY: f64 = 0.85;

/// Prints head, table and warnings.
pub fn print(run: &Run) {
    let protocol = if run.h2 { "HTTP/2" } else { "HTTP/1.1" };
    println!("{protocol}, {} in flight, bodies of {} bytes, load by {}", run.connections, run.body, run.load);
    println!("{}", run.machine);
    let rates = run.rows.iter().filter_map(|row| row.spread(|turn| turn.outcome.rate()));
    let best = rates.map(|rate| rate.median).max_by(f64::total_cmp);
    let headroom = run.direct.zip(best).map(|(direct, best)| (direct, direct.median / best));
    if let Some((direct, headroom)) = headroom {
        println!(
            "directly, without a proxy: {:.0} requests/s ({:.0}–{:.0}), {headroom:.2}× the fastest proxy",
            direct.median, direct.min, direct.max
        );
    }
    println!();
    print!("{}", table(run));
    println!();
    if headroom.is_some_and(|(_, headroom)| headroom < HEADROOM) {
        println!("note: the load side sustains less than {HEADROOM}× the fastest proxy, so rates are bounded by it.");
    }
    for row in &run.rows {
        if let Some(busy) = row.spread(|turn| turn.busy).filter(|busy| busy.median < BUSY) {
            println!(
                "note: {} used {:.0} % of its CPU: the load side or other processes held it back; read µs, not rates.",
                row.name,
                busy.median * 100.0
            );
        }
    }
}

fn table(run: &Run) -> Table {
    let mut table = Table::new([
        "proxy",
        "CPU µs/request",
        "min–max",
        "user + system",
        "÷ nginx",
        "min–max",
        "requests/CPU-s",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "busy",
        "RSS MiB",
        "errors",
    ]);
    let nginx = run.rows.iter().find(|row| row.name == "nginx");
    for row in &run.rows {
        let median = |figure: &dyn Fn(&Turn) -> f64| row.spread(figure).map(|spread| spread.median);
        let millis = |figure: &dyn Fn(&Turn) -> Option<f64>| {
            let spread = Spread::of(row.turns.iter().filter_map(figure));
            spread.map_or("–".to_owned(), |spread| format!("{:.2}", spread.median / 1e3))
        };
        let show = |figure: Option<f64>, digits: usize| figure.map_or("–".to_owned(), |f| format!("{f:.digits$}"));
        let between =
            |spread: Option<Spread>| spread.map_or("–".to_owned(), |s| format!("{:.2}–{:.2}", s.min, s.max));
        let cpu = row.spread(Turn::cpu_us);
        let ratio = nginx.and_then(|nginx| row.ratio_to(nginx));
        let parts = [median(&|turn| turn.user_us), median(&|turn| turn.system_us)].map(|part| show(part, 1));
        let errors: u64 = row.turns.iter().map(|turn| turn.outcome.errors()).sum();
        table.row([
            format!("{} {}", row.name, row.version),
            show(cpu.map(|cpu| cpu.median), 2),
            between(cpu),
            parts.join(" + "),
            show(ratio.map(|ratio| ratio.median), 2),
            between(ratio),
            show(cpu.map(|cpu| 1e6 / cpu.median), 0),
            show(median(&|turn| turn.outcome.rate()), 0),
            millis(&|turn| turn.outcome.p50_us),
            millis(&|turn| turn.outcome.p99_us),
            show(median(&|turn| turn.busy * 100.0), 0) + " %",
            show(median(&|turn| turn.rss_mib), 1),
            if errors == 0 { "0".to_owned() } else { format!("**{errors}**") },
        ]);
    }
    table
}

impl Row {
    fn spread(&self, figure: impl Fn(&Turn) -> f64) -> Option<Spread> {
        Spread::of(self.turns.iter().map(figure))
    }

    /// CPU per request by that of another proxy, round by round.
    fn ratio_to(&self, other: &Row) -> Option<Spread> {
        let pairs = self.turns.iter().zip(&other.turns);
        Spread::of(pairs.map(|(own, other)| own.cpu_us() / other.cpu_us()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Outcome;

    fn row(name: &'static str, cpu: &[f64], non_2xx: u64) -> Row {
        let turn = |(round, user_us): (usize, &f64)| Turn {
            round: round as u32,
            outcome: Outcome { requests: 100, seconds: 1.0, non_2xx, ..Outcome::default() },
            user_us: *user_us,
            system_us: 0.0,
            busy: 1.0,
            rss_mib: 1.0,
        };
        Row { name, version: "1".to_owned(), turns: cpu.iter().enumerate().map(turn).collect() }
    }

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        let nginx = row("nginx", &[10.0, 20.0, 40.0], 0);
        let ratio = row("weft", &[20.0, 30.0, 40.0], 0).ratio_to(&nginx).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (1.5, 1.0, 2.0));
    }

    #[test]
    fn errors_stand_out() {
        let rows = vec![row("nginx", &[10.0], 0), row("weft", &[10.0], 3)];
        let run =
            Run { machine: String::new(), load: String::new(), body: 6, connections: 1, h2: false, direct: None, rows };
        let text = table(&run).to_string();
        assert_eq!(text.matches("**3**").count(), 1, "{text}");
    }
}
