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

/// Small on purpose: with thousands of hostnames the look-up costs what it costs to fetch this.
#[derive(Debug, Default)]
pub(crate) struct PathIndex {
    /// Exact paths, and prefixes without their trailing `/`; the root is not among them as a prefix.
    paths: HashMap<Box<str>, Buckets>,
    /// Of the keys of `paths`.
    lengths: Lengths,
    root: Bucket,
    regexes: Option<Box<Regexes>>,
}

/// What there is for one path; a bucket is empty when there is no match of its kind.
#[derive(Debug, Default)]
struct Buckets {
    exact: Bucket,
    prefix: Bucket,
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
        self.buckets(path).exact = bucket;
    }

    /// `path` is empty for the root, and never ends with `/`.
    pub(crate) fn prefix(&mut self, path: &str, bucket: Bucket) {
        if path.is_empty() {
            self.root = bucket;
        } else {
            self.buckets(path).prefix = bucket;
        }
    }

    fn buckets(&mut self, path: &str) -> &mut Buckets {
        self.lengths.insert(path.len());
        self.paths.entry(path.into()).or_default()
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
        let whole = self.get(path);
        if let Some(buckets) = whole
            && let Some(result) = visit(buckets.exact.clone(), PrefixLen(path.len()))
        {
            return Some(result);
        }
        if let Some(regexes) = &self.regexes
            && let Some(result) = regexes.search(path, &mut visit)
        {
            return Some(result);
        }
        if let Some(buckets) = whole
            && let Some(result) = visit(buckets.prefix.clone(), PrefixLen(path.len()))
        {
            return Some(result);
        }
        if let Some(result) = self.search_parents(path, &mut visit) {
            return Some(result);
        }
        if path.starts_with('/') { visit(self.root.clone(), PrefixLen(0)) } else { None }
    }

    /// Hashes only when there is something of that length.
    #[inline]
    fn get(&self, path: &str) -> Option<&Buckets> {
        if self.lengths.contains(path.len()) { self.paths.get(path) } else { None }
    }

    /// The prefixes that are shorter than the path, the longest first, looked up only where a segment ends.
    #[inline]
    fn search_parents<R>(&self, path: &str, visit: &mut impl FnMut(Bucket, PrefixLen) -> Option<R>) -> Option<R> {
        let bytes = path.as_bytes();
        // The slash that ends the longest prefix stands just behind it.
        let mut rest = &bytes[..bytes.len().min(self.lengths.max() + 1)];
        while let Some(end) = memchr::memrchr(b'/', rest).filter(|&end| end > 0) {
            if let Some(buckets) = self.get(&path[..end])
                && let Some(result) = visit(buckets.prefix.clone(), PrefixLen(end))
            {
                return Some(result);
            }
            rest = &bytes[..end];
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
