//! `weft limits`: rate limits of a node, those that refuse most first.

use std::cmp::Reverse;

use serde_json::Value;

use crate::query::{Cell, Look, Table, Tone, each, text, time};

/// Columns of `/limits`.
pub fn table(limits: &Value, look: Look) -> String {
    let mut limits: Vec<_> = each(limits).collect();
    if limits.is_empty() {
        return "no rate limits are configured".into();
    }
    limits.sort_by_key(|limit| Reverse(limit["refused"].as_u64()));
    let mut headings = vec!["NAME", "TARGET", "KEY", "RATE", "BURST", "FACTOR", "REMAINING", "KEYS", "REFUSED"];
    if look.wide {
        headings.push("SCOPE");
    }
    let mut table = Table::new(headings);
    for limit in limits {
        let cell = |field: &str| Cell::from(text(&limit[field]));
        let mut row = vec![cell("name"), cell("target"), cell("key"), rate(limit).into(), cell("burst"), factor(limit)];
        row.extend([cell("remaining"), cell("keys"), refused(limit)]);
        if look.wide {
            row.push(cell("scope"));
        }
        table.row(row);
    }
    table.render(look)
}

/// `50/1s`
pub fn rate(limit: &Value) -> String {
    format!("{}/{}", text(&limit["requests"]), time(&limit["per_ms"]))
}

fn factor(limit: &Value) -> Cell {
    match limit["factor"].as_f64() {
        None => "-".into(),
        Some(factor) => {
            let tone = if factor < 1.0 { Tone::Warn } else { Tone::Plain };
            Cell::toned(tone, format!("{} %", (factor * 100.0).round()))
        }
    }
}

fn refused(limit: &Value) -> Cell {
    let tone = if limit["refused"].as_u64().unwrap_or(0) > 0 { Tone::Warn } else { Tone::Plain };
    Cell::toned(tone, text(&limit["refused"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_refuses_most_comes_first() {
        let limits = json!([
            {"name": "shop.1", "target": "HTTPRoute default/shop", "key": "global", "requests": 1000, "per_ms": 1000,
                "burst": 2000, "scope": "node", "factor": 1.0, "keys": 1, "remaining": 1990, "refused": 0},
            {"name": "shop.2", "target": "HTTPRoute default/shop", "key": "header x-user", "requests": 50,
                "per_ms": 60000, "burst": 100, "scope": "node", "factor": 0.3, "keys": 12, "remaining": null,
                "refused": 7},
        ]);
        assert_eq!(
            table(&limits, Look::default()),
            "\
NAME    TARGET                  KEY            RATE     BURST  FACTOR  REMAINING  KEYS  REFUSED
shop.2  HTTPRoute default/shop  header x-user  50/1m    100    30 %    -          12    7
shop.1  HTTPRoute default/shop  global         1000/1s  2000   100 %   1990       1     0"
        );
        assert_eq!(table(&json!([]), Look::default()), "no rate limits are configured");
    }
}
