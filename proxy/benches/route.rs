//! What a look-up costs among 5 routes and among 5,000.
//!
//! `cargo bench -p weft-proxy --bench route`. Prints nanoseconds per look-up, the median of several rounds, and the
//! ratio of the two. *hot*: one route is asked for again and again; *spread*: all routes in turn, which also pays for
//! fetching a table of 5,000 routes from the outer caches.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{hint::black_box, time::Instant};

use http::{HeaderMap, Method};
use weft_model::config::{Hostname, HttpMatch, Key, PathMatch};
use weft_proxy::route::{
    Candidate, Found, Rank, RouteTable, View,
    path::{host_of, normalize},
};

const ROUNDS: usize = 31;
const LOOKUPS: usize = 20_000;

/// Host and path of the request for route number `n`, and that route.
type Shape = fn(n: usize) -> (String, String, Option<Hostname>, PathMatch);

fn exact(n: usize) -> (String, String, Option<Hostname>, PathMatch) {
    let path = format!("/api/v1/service-{n:04}/items");
    ("shop.local".into(), path.clone(), None, PathMatch::Exact(path.into()))
}

fn prefix(n: usize) -> (String, String, Option<Hostname>, PathMatch) {
    let prefix = format!("/service-{n:04}");
    ("shop.local".into(), format!("{prefix}/v1/items/42"), None, PathMatch::Prefix(prefix.into()))
}

fn host(n: usize) -> (String, String, Option<Hostname>, PathMatch) {
    let host = format!("tenant-{n:04}.shop.example.com");
    (host.clone(), "/v1/items/42".into(), Some(Hostname::Exact(host.into())), PathMatch::Prefix("/v1".into()))
}

fn wildcard(n: usize) -> (String, String, Option<Hostname>, PathMatch) {
    let suffix = format!("tenant-{n:04}.example.com");
    (format!("eu.{suffix}"), "/v1/items".into(), Some(Hostname::Wildcard(suffix.into())), PathMatch::Prefix("/".into()))
}

fn table(shape: Shape, routes: usize) -> (RouteTable<usize>, Vec<(String, String)>) {
    let mut requests = Vec::new();
    let mut candidates = Vec::new();
    for n in 0..routes {
        let (host, path, hostname, matched) = shape(n);
        requests.push((host, path));
        candidates.push(Candidate {
            hostname,
            matcher: HttpMatch { path: matched, headers: vec![], query: vec![], method: None },
            rank: Rank::new(None, &Key::new("default", &format!("route-{n}")), 0, 0),
            target: n,
        });
    }
    (RouteTable::build(candidates).unwrap(), requests)
}

/// Nanoseconds for one call of `call`, the median of the rounds; `call` is given 0, 1, 2…
fn measure(mut call: impl FnMut(usize)) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..LOOKUPS).for_each(&mut call);
            start.elapsed().as_nanos() as f64 / LOOKUPS as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Hot and spread.
fn lookups(shape: Shape, routes: usize) -> [f64; 2] {
    let (table, requests) = table(shape, routes);
    // In the order in which they are asked for, as a socket would deliver them; it has nothing to do with the order in
    // the table, for the stride has no factor in common with 5 or 5,000.
    let requests: Vec<_> = (0..routes).map(|n| n * 1237 % routes).map(|n| (n, requests[n].clone())).collect();
    let headers = HeaderMap::new();
    let find = |n: usize| {
        let (number, (host, path)) = &requests[n];
        let view = View { host, method: &Method::GET, path, query: None, headers: &headers };
        assert!(matches!(black_box(&table).find(black_box(&view)), Found::Match(target, _) if target == number));
    };
    [measure(|_| find(routes / 2)), measure(|n| find(n % routes))]
}

fn main() {
    println!(
        "{:<10} {:>8} {:>8} {:>7}   {:>8} {:>8} {:>7}",
        "ns", "5 hot", "5000", "ratio", "5 spread", "5000", "ratio"
    );
    for (name, shape) in [("exact", exact as Shape), ("prefix", prefix), ("host", host), ("wildcard", wildcard)] {
        let [few, many] = [5, 5_000].map(|routes| lookups(shape, routes));
        let ratio = |kind: usize| many[kind] / few[kind];
        println!(
            "{name:<10} {:>8.1} {:>8.1} {:>7.2}   {:>8.1} {:>8.1} {:>7.2}",
            few[0],
            many[0],
            ratio(0),
            few[1],
            many[1],
            ratio(1)
        );
    }
    for path in ["/", "/api/v1/service-0042/items/index.html", "/a%20b/caf%c3%a9"] {
        println!("normalize {path}: {:.1} ns", measure(|_| drop(black_box(normalize(black_box(path))))));
    }
    for authority in ["shop.example.com:8080", "Shop.example.com"] {
        println!("host_of {authority}: {:.1} ns", measure(|_| drop(black_box(host_of(black_box(authority))))));
    }
}
