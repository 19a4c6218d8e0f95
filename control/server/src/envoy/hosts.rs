//! Hostnames: which include which, and which of a port's virtual hosts a listener gets.

use weft_model::config::Hostname;

/// `None` is every hostname.
pub(super) type Host<'c> = Option<&'c Hostname>;

/// Whether every host that `inner` stands for is one of `outer`.
pub(super) fn includes(outer: Host<'_>, inner: Host<'_>) -> bool {
    use Hostname::{Exact, Wildcard};
    let below = |host: &str, suffix: &str| {
        host.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.')).is_some_and(|labels| !labels.is_empty())
    };
    match (outer, inner) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(outer), Some(inner)) if outer == inner => true,
        (Some(Wildcard(suffix)), Some(Exact(host) | Wildcard(host))) => below(host, suffix),
        (Some(Exact(_)), Some(_)) => false,
    }
}

/// The hostnames under which a route serves on a listener: the more specific one of each pair that overlaps. None at all:
/// it is not attached.
pub(super) fn intersect<'c>(listener: Host<'c>, route: &'c [Hostname]) -> Vec<Host<'c>> {
    if route.is_empty() {
        return vec![listener];
    }
    let mut result = Vec::with_capacity(route.len());
    for wanted in route.iter().map(Some) {
        let common = match () {
            () if includes(listener, wanted) => wanted,
            () if includes(wanted, listener) => listener,
            () => continue,
        };
        if !result.contains(&common) {
            result.push(common);
        }
    }
    result
}

/// What decides between hostnames that include a host: the smaller is the more specific.
pub(super) fn specificity(host: Host<'_>) -> (u8, std::cmp::Reverse<usize>) {
    match host {
        Some(Hostname::Exact(_)) => (0, std::cmp::Reverse(0)),
        Some(Hostname::Wildcard(suffix)) => (1, std::cmp::Reverse(suffix.len())),
        None => (2, std::cmp::Reverse(0)),
    }
}

/// As Envoy writes it.
pub(super) fn domain(host: Host<'_>) -> String {
    host.map_or_else(|| "*".to_owned(), ToString::to_string)
}

/// For each of a port's listeners, the hostnames of its virtual hosts: its own, and `wanted`'s of its routes, without
/// those of which a more specific listener takes every request (Gateway API's isolation of listeners). Of listeners with
/// equal hostnames the first counts.
pub(super) fn isolated<'c>(listeners: &[(Host<'c>, Vec<Host<'c>>)]) -> Vec<Vec<Host<'c>>> {
    let taken = |position: usize, host: Host<'c>| {
        let own = listeners[position].0;
        listeners.iter().enumerate().any(|(other, (theirs, _))| {
            let closer = includes(own, *theirs) && (own != *theirs || other < position);
            other != position && closer && includes(*theirs, host)
        })
    };
    let hosts = |(position, (own, wanted)): (usize, &(Host<'c>, Vec<Host<'c>>))| {
        let mut hosts: Vec<Host<'c>> = Vec::new();
        for host in wanted.iter().chain([own]) {
            if !hosts.contains(host) && !taken(position, *host) {
                hosts.push(*host);
            }
        }
        hosts.sort_by_key(|host| (specificity(*host), *host));
        hosts
    };
    listeners.iter().enumerate().map(hosts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Option<Hostname> {
        match text.strip_prefix("*.") {
            Some(suffix) => Some(Hostname::Wildcard(suffix.into())),
            None if text == "*" => None,
            None => Some(Hostname::Exact(text.into())),
        }
    }

    #[test]
    fn what_includes_what() {
        for (outer, inner, expected) in [
            ("*", "*", true),
            ("*", "a.b", true),
            ("a.b", "*", false),
            ("a.b", "a.b", true),
            ("*.b", "a.b", true),
            ("*.b", "c.a.b", true),
            ("*.b", "*.a.b", true),
            ("*.b", "b", false),
            ("*.b", "ab", false),
            ("*.a.b", "*.b", false),
            ("a.b", "*.a.b", false),
        ] {
            assert_eq!(includes(host(outer).as_ref(), host(inner).as_ref()), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn a_more_specific_listener_takes_its_hosts_from_the_others() {
        let names = ["*", "*.shop.test", "www.shop.test"].map(host);
        let routes: Vec<Hostname> =
            ["a.shop.test", "other.test", "*.shop.test", "www.shop.test"].into_iter().filter_map(host).collect();
        let listeners: Vec<_> = names.iter().map(|name| (name.as_ref(), intersect(name.as_ref(), &routes))).collect();
        let shown: Vec<Vec<String>> =
            isolated(&listeners).into_iter().map(|hosts| hosts.into_iter().map(domain).collect()).collect();
        assert_eq!(shown, [vec!["other.test", "*"], vec!["a.shop.test", "*.shop.test"], vec!["www.shop.test"]]);
    }
}
