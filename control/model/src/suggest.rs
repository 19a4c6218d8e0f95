//! "Did you mean …?"

/// The candidate that `word` is most likely a misspelling of, if one is close enough.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > 100 {
        return None;
    }
    let lower = word.to_lowercase();
    // A third of the letters may be wrong: "retires" → "retries" is 2 of 7.
    let limit = (word.chars().count().max(3)).div_ceil(3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= 100)
        .map(|candidate| {
            let other = candidate.to_lowercase();
            // `Prefix` for `PathPrefix`: half of a word is near, but not as near as a slip of a finger.
            let part = lower.len() >= 4 && other.contains(&lower);
            (if part { distance(&lower, &other).min(limit) } else { distance(&lower, &other) }, candidate)
        })
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean "x"?`, or else the list of what there is.
pub(crate) fn hint<'a>(
    word: &str,
    what: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    if let Some(best) = closest(word, candidates.clone()) {
        return Some(format!("did you mean {best:?}?"));
    }
    let mut all: Vec<_> = candidates.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    match all.len() {
        0 => None,
        n if n > 20 => None,
        _ => Some(format!("{what}: {}", all.join(", "))),
    }
}

/// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut row = vec![0; b.len() + 1];
    for i in 1..=a.len() {
        row[0] = i;
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        std::mem::swap(&mut before, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let fields = ["retry", "retries", "timeouts", "rateLimit"];
        assert_eq!(closest("retires", fields), Some("retries"));
        assert_eq!(closest("ratelimit", fields), Some("rateLimit"));
        assert_eq!(closest("timeout", fields), Some("timeouts"));
        assert_eq!(closest("Prefix", ["Exact", "PathPrefix"]), Some("PathPrefix"));
        assert_eq!(closest("zebra", fields), None);
        assert_eq!(closest("", fields), None);
    }

    #[test]
    fn a_swap_counts_once() {
        assert_eq!(distance("retires", "retries"), 1);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
