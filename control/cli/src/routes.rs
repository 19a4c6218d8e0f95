//! `weft routes`: what the rules of a node match, and where they send requests.

use serde_json::Value;

use crate::query::{Cell, Look, Table, each, service, text};

/// Columns of `/routes`. `REQUESTS` are those of the whole route, so they stand at its first rule.
pub fn table(rules: &Value, look: Look) -> String {
    if each(rules).next().is_none() {
        return "no routes are configured".into();
    }
    let mut headings = vec!["ROUTE", "RULE", "MATCHES", "BACKENDS", "REQUESTS"];
    if look.wide {
        headings.extend(["KIND", "HOSTNAMES", "PARENTS"]);
    }
    let mut table = Table::new(headings);
    let mut before = None;
    for rule in each(rules) {
        let first = before.replace((&rule["kind"], &rule["route"])) != Some((&rule["kind"], &rule["route"]));
        let cell = |field: &str| Cell::from(text(&rule[field]));
        let requests = if first { cell("requests") } else { Cell::default() };
        let mut row =
            vec![cell("route"), cell("rule"), join(&rule["matches"], ", ").into(), backends(rule).into(), requests];
        if look.wide {
            row.extend([cell("kind"), join(&rule["hostnames"], ", ").into(), join(&rule["parents"], ", ").into()]);
        }
        table.row(row);
    }
    table.render(look)
}

fn join(list: &Value, separator: &str) -> String {
    let all: Vec<String> = each(list).map(text).collect();
    if all.is_empty() { "-".into() } else { all.join(separator) }
}

/// `cart:80 90 %, cart-v2:80 10 %`
fn backends(rule: &Value) -> String {
    if rule["redirect"] == true {
        return "(redirect)".into();
    }
    let weight = |backend: &Value| backend["weight"].as_u64().unwrap_or(0);
    let total: u64 = each(&rule["backends"]).map(weight).sum();
    let all: Vec<String> = each(&rule["backends"])
        .map(|backend| match weight(backend) {
            own if own == total => service(backend),
            own => format!("{} {} %", service(backend), (own as f64 * 1000.0 / total as f64).round() / 10.0),
        })
        .collect();
    if all.is_empty() { "(none)".into() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_in_the_order_of_the_configuration() {
        let rule = |name: &str, matches: Value, backends: Value, redirect: bool| {
            json!({"kind": "HTTPRoute", "route": "shop", "rule": name, "parents": ["edge/http"],
                "hostnames": ["shop.local", "*.shop.local"], "matches": matches, "backends": backends,
                "redirect": redirect, "requests": 42})
        };
        let backend = |name: &str, weight: u32| json!({"service": name, "port": 80, "weight": weight});
        let rules = json!([
            rule("cart", json!(["/cart/*"]), json!([backend("cart", 90), backend("cart-v2", 10)]), false),
            rule("old", json!(["GET /old", "/older"]), json!([]), true),
            rule("files", json!(["/files/*"]), json!([backend("files", 1)]), false),
            {"kind": "TCPRoute", "route": "raw", "rule": "0", "parents": ["edge/raw"], "hostnames": [], "matches": [],
                "backends": [{"service": "redis", "port": 6379, "weight": 1}], "redirect": false, "requests": null},
        ]);
        assert_eq!(
            table(&rules, Look { wide: true, ..Look::default() }),
            "\
ROUTE  RULE   MATCHES           BACKENDS                       REQUESTS  KIND       HOSTNAMES                 PARENTS
shop   cart   /cart/*           cart:80 90 %, cart-v2:80 10 %  42        HTTPRoute  shop.local, *.shop.local  edge/http
shop   old    GET /old, /older  (redirect)                               HTTPRoute  shop.local, *.shop.local  edge/http
shop   files  /files/*          files:80                                 HTTPRoute  shop.local, *.shop.local  edge/http
raw    0      -                 redis:6379                     -         TCPRoute   -                         edge/raw"
        );
        assert_eq!(table(&json!([]), Look::default()), "no routes are configured");
    }
}
