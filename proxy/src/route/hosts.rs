//! Hostnames: look-up by specificity, listener isolation, and which hostnames a route has on a listener.

use foldhash::{HashMap, HashMapExt};
use smallvec::SmallVec;
use weft_model::config::Hostname;

/// Values by hostname, found in at most one hash look-up for the exact name and one for each wildcard length in use.
#[derive(Debug, Clone)]
pub(crate) struct HostMap<V> {
    exact: HashMap<Box<str>, V>,
    /// By suffix, without `*.`.
    wildcard: HashMap<Box<str>, V>,
    suffix_lengths: Lengths,
    any: Option<V>,
}

impl<V> Default for HostMap<V> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new(), suffix_lengths: Lengths::default(), any: None }
    }
}

impl<V> HostMap<V> {
    /// The value of this very hostname (`None`: of every host), made by `new` when there is none.
    pub(crate) fn entry(&mut self, hostname: Option<&Hostname>, new: impl FnOnce() -> V) -> &mut V {
        match hostname {
            None => self.any.get_or_insert_with(new),
            Some(Hostname::Exact(name)) => self.exact.entry((&**name).into()).or_insert_with(new),
            Some(Hostname::Wildcard(suffix)) => {
                self.suffix_lengths.insert(suffix.len());
                self.wildcard.entry((&**suffix).into()).or_insert_with(new)
            }
        }
    }

    /// Offers every value whose hostname matches `host`, the most specific first, until `visit` returns something.
    #[inline]
    pub(crate) fn search<'m, R>(&'m self, host: &str, mut visit: impl FnMut(&'m V) -> Option<R>) -> Option<R> {
        if !self.exact.is_empty()
            && let Some(value) = self.exact.get(host)
            && let Some(result) = visit(value)
        {
            return Some(result);
        }
        if !self.wildcard.is_empty() {
            // From the left: the longest suffix first. At least one character has to stand before the dot.
            for dot in memchr::memchr_iter(b'.', host.as_bytes()).filter(|&dot| dot > 0) {
                let suffix = &host[dot + 1..];
                if self.suffix_lengths.contains(suffix.len())
                    && let Some(value) = self.wildcard.get(suffix)
                    && let Some(result) = visit(value)
                {
                    return Some(result);
                }
            }
        }
        self.any.as_ref().and_then(visit)
    }

    /// Every value, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.exact.values().chain(self.wildcard.values()).chain(&self.any)
    }
}

/// A set of lengths in bytes: tells which hash look-ups can succeed at all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lengths {
    words: SmallVec<[u64; 2]>,
}

impl Lengths {
    pub(crate) fn insert(&mut self, length: usize) {
        let word = length / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (length % 64);
    }

    #[inline]
    pub(crate) fn contains(&self, length: usize) -> bool {
        self.words.get(length / 64).is_some_and(|word| word >> (length % 64) & 1 == 1)
    }

    /// The longest; 0 when there is none.
    #[inline]
    pub(crate) fn max(&self) -> usize {
        // The last word was added for a length in it, so it is not 0.
        self.words.last().map_or(0, |last| self.words.len() * 64 - 1 - last.leading_zeros() as usize)
    }
}

/// The listeners of one port. The one with the most specific hostname takes a request, and it alone: a route that is
/// attached only to a less specific listener does not see the request, even when nothing else matches ("listener
/// isolation" of Gateway API).
#[derive(Debug, Clone)]
pub struct Listeners<L> {
    map: HostMap<L>,
}

impl<L> Listeners<L> {
    /// Of listeners with equal hostnames, which Gateway API calls conflicted, the first is kept.
    pub fn build(listeners: Vec<(Option<Hostname>, L)>) -> Self {
        let mut map = HostMap::default();
        for (hostname, listener) in listeners {
            map.entry(hostname.as_ref(), || listener);
        }
        Self { map }
    }

    /// The listener for `host`: lower case, without port and trailing dot, as [`host_of`](super::path::host_of)
    /// returns it. Empty when the request names none: then only a listener without hostname fits.
    #[inline]
    pub fn find(&self, host: &str) -> Option<&L> {
        self.map.search(host, Some)
    }
}

/// Whether `host` (lower case) is one that `hostname` stands for.
pub fn matches(hostname: &Hostname, host: &str) -> bool {
    match hostname {
        Hostname::Exact(name) => &**name == host,
        Hostname::Wildcard(suffix) => is_below(host, suffix),
    }
}

/// Whether `host` is one or more labels, a dot, and `suffix`.
fn is_below(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.')).is_some_and(|labels| !labels.is_empty())
}

/// The hostnames under which a route serves on a listener, without duplicates: the more specific one of each pair that
/// overlaps. `None` in the result stands for every hostname. An empty result means that the route does not attach
/// (Gateway API: `NoMatchingListenerHostname`).
pub fn intersect(listener: Option<&Hostname>, route: &[Hostname]) -> Vec<Option<Hostname>> {
    if route.is_empty() {
        return vec![listener.cloned()];
    }
    let mut result = Vec::with_capacity(route.len());
    for wanted in route {
        let Some(common) = overlap(listener, wanted) else { continue };
        let common = Some(common.clone());
        if !result.contains(&common) {
            result.push(common);
        }
    }
    result
}

/// The more specific of two hostnames if one includes the other. (Hostnames cannot overlap in any other way.)
fn overlap<'h>(listener: Option<&'h Hostname>, route: &'h Hostname) -> Option<&'h Hostname> {
    use Hostname::{Exact, Wildcard};
    let Some(listener) = listener else { return Some(route) };
    if listener == route {
        return Some(route);
    }
    let (listener_includes, route_includes) = match (listener, route) {
        (Exact(_), Exact(_)) => (false, false),
        (Wildcard(_), Exact(name)) => (matches(listener, name), false),
        (Exact(name), Wildcard(_)) => (false, matches(route, name)),
        (Wildcard(outer), Wildcard(inner)) => (is_below(inner, outer), is_below(outer, inner)),
    };
    if listener_includes {
        Some(route)
    } else if route_includes {
        Some(listener)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
