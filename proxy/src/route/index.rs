//! The paths of one hostname, in a form whose look-up cost does not depend on how many there are.
//!
//! A *bucket* is a range of entries that share one path match, sorted by what is left of precedence.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use foldhash::HashMap;
use regex::{Regex, RegexSet};
use smallvec::SmallVec;

use super::{PrefixLen, hosts::Lengths};

/// Positions in the table's list of entries.
pub(crate) type Bucket = Range<u32>;

/// From so many different expressions on, one pass over the path for all of them replaces one pass each.
const SET_FROM: usize = 5;

#[derive(Debug, Default)]
pub(crate) struct PathIndex {
    exact: HashMap<Box<str>, Bucket>,
    regexes: Option<Box<Regexes>>,
    /// Without trailing `/`, and without the root.
    prefixes: HashMap<Box<str>, Bucket>,
    prefix_lengths: Lengths,
    root: Bucket,
}

/// The regular expressions of one hostname, in order of precedence.
#[derive(Debug)]
struct Regexes {
    /// Position in `patterns` for each entry of `bucket`.
    pattern_of: Vec<u32>,
    bucket: Bucket,
    patterns: Patterns,
}

#[derive(Debug)]
enum Patterns {
    Few(SmallVec<[Regex; 1]>),
    Many(RegexSet),
}

impl PathIndex {
    pub(crate) fn exact(&mut self, path: &str, bucket: Bucket) {
        self.exact.insert(path.into(), bucket);
    }

    /// `path` is empty for the root, and never ends with `/`.
    pub(crate) fn prefix(&mut self, path: &str, bucket: Bucket) {
        if path.is_empty() {
            self.root = bucket;
        } else {
            self.prefix_lengths.insert(path.len());
            self.prefixes.insert(path.into(), bucket);
        }
    }

    /// The one bucket of all regular expressions; `patterns` names the expression of each of its entries.
    pub(crate) fn regexes(
        &mut self,
        patterns: &[Arc<str>],
        bucket: Bucket,
        compiler: &mut super::condition::Compiler,
    ) -> Result<(), super::RouteError> {
        let mut numbers = BTreeMap::new();
        let mut unique = Vec::new();
        let pattern_of = patterns
            .iter()
            .map(|pattern| {
                *numbers.entry(pattern).or_insert_with(|| {
                    unique.push(&**pattern);
                    (unique.len() - 1) as u32
                })
            })
            .collect();
        let patterns = if unique.len() < SET_FROM {
            Patterns::Few(unique.iter().map(|pattern| compiler.regex(pattern)).collect::<Result<_, _>>()?)
        } else {
            Patterns::Many(compiler.set(&unique)?)
        };
        self.regexes = Some(Box::new(Regexes { pattern_of, bucket, patterns }));
        Ok(())
    }

    /// Offers every bucket whose path match fits `path` in order of precedence, until `visit` returns something.
    #[inline]
    pub(crate) fn search<R>(&self, path: &str, mut visit: impl FnMut(Bucket, PrefixLen) -> Option<R>) -> Option<R> {
        if !self.exact.is_empty()
            && let Some(bucket) = self.exact.get(path)
            && let Some(result) = visit(bucket.clone(), PrefixLen(path.len()))
        {
            return Some(result);
        }
        if let Some(regexes) = &self.regexes
            && let Some(result) = regexes.search(path, &mut visit)
        {
            return Some(result);
        }
        if !self.prefixes.is_empty()
            && let Some(result) = self.search_prefixes(path, &mut visit)
        {
            return Some(result);
        }
        if self.root.is_empty() || !path.starts_with('/') {
            return None;
        }
        visit(self.root.clone(), PrefixLen(0))
    }

    /// Longest first. Looks only where a segment ends, and hashes only where a prefix of that length exists.
    fn search_prefixes<R>(&self, path: &str, visit: &mut impl FnMut(Bucket, PrefixLen) -> Option<R>) -> Option<R> {
        let bytes = path.as_bytes();
        let longest = self.prefix_lengths.max();
        let mut end = if bytes.len() <= longest { bytes.len() } else { memchr::memrchr(b'/', &bytes[..=longest])? };
        while end > 0 {
            if self.prefix_lengths.contains(end)
                && let Some(bucket) = self.prefixes.get(&path[..end])
                && let Some(result) = visit(bucket.clone(), PrefixLen(end))
            {
                return Some(result);
            }
            end = memchr::memrchr(b'/', &bytes[..end])?;
        }
        None
    }
}

impl Regexes {
    fn search<R>(&self, path: &str, visit: &mut impl FnMut(Bucket, PrefixLen) -> Option<R>) -> Option<R> {
        let entries = self.bucket.clone().zip(&self.pattern_of);
        let mut offer = |entry: u32| visit(entry..entry + 1, PrefixLen(path.len()));
        match &self.patterns {
            Patterns::Few(regexes) => {
                let mut verdicts = [None; SET_FROM];
                for (entry, &pattern) in entries {
                    let pattern = pattern as usize;
                    if *verdicts[pattern].get_or_insert_with(|| regexes[pattern].is_match(path))
                        && let Some(result) = offer(entry)
                    {
                        return Some(result);
                    }
                }
            }
            Patterns::Many(set) => {
                // Most requests to a host with expressions match none of them: find that out without allocating.
                if !set.is_match(path) {
                    return None;
                }
                let verdicts = set.matches(path);
                for (entry, &pattern) in entries {
                    if verdicts.matched(pattern as usize)
                        && let Some(result) = offer(entry)
                    {
                        return Some(result);
                    }
                }
            }
        }
        None
    }
}
