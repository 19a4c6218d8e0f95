//! Two texts as a unified diff.

/// Lines that stay the same around those that change.
const CONTEXT: usize = 3;
/// Beyond so many pairs of lines, what lies between the first and the last change is shown as replaced.
const PAIRS: usize = 4_000_000;

/// A line, and whether it is only in the old text, only in the new one, or in both.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Line<'t> {
    Old(&'t str),
    New(&'t str),
    Both(&'t str),
}

/// The hunks' lines: headers, and lines with their sign.
pub fn hunks(old: &str, new: &str) -> Vec<String> {
    let lines = compare(&old.lines().collect::<Vec<_>>(), &new.lines().collect::<Vec<_>>());
    let changes: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| !matches!(line, Line::Both(_))).map(|(at, _)| at).collect();
    let mut shown = Vec::new();
    let mut next = 0;
    while let Some(&first) = changes.get(next) {
        let mut last = first;
        while let Some(&change) = changes.get(next).filter(|change| **change <= last + 2 * CONTEXT) {
            last = change;
            next += 1;
        }
        let (start, end) = (first.saturating_sub(CONTEXT), (last + CONTEXT + 1).min(lines.len()));
        shown.push(header(&lines, start, end));
        shown.extend(lines[start..end].iter().map(|line| match line {
            Line::Old(text) => format!("-{text}"),
            Line::New(text) => format!("+{text}"),
            Line::Both(text) => format!(" {text}"),
        }));
    }
    shown
}

/// `@@ -1,3 +1,4 @@`
fn header(lines: &[Line<'_>], start: usize, end: usize) -> String {
    let range = |counts: fn(&Line<'_>) -> bool| {
        let before = lines[..start].iter().filter(|line| counts(line)).count();
        let count = lines[start..end].iter().filter(|line| counts(line)).count();
        // An empty range is named by the line before it.
        let first = if count == 0 { before } else { before + 1 };
        if count == 1 { first.to_string() } else { format!("{first},{count}") }
    };
    let (old, new) = (range(|line| !matches!(line, Line::New(_))), range(|line| !matches!(line, Line::Old(_))));
    format!("@@ -{old} +{new} @@")
}

/// The lines of both, with as many in common as there can be.
fn compare<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<Line<'t>> {
    let head = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (rest_old, rest_new) = (&old[head..], &new[head..]);
    let tail = rest_old.iter().rev().zip(rest_new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (middle_old, middle_new) = (&rest_old[..rest_old.len() - tail], &rest_new[..rest_new.len() - tail]);
    let mut lines: Vec<Line<'t>> = old[..head].iter().map(|line| Line::Both(line)).collect();
    lines.extend(between(middle_old, middle_new));
    lines.extend(old[old.len() - tail..].iter().map(|line| Line::Both(line)));
    lines
}

/// The longest common subsequence, by the table of its lengths.
fn between<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<Line<'t>> {
    if old.len() * new.len() > PAIRS {
        return old.iter().map(|line| Line::Old(line)).chain(new.iter().map(|line| Line::New(line))).collect();
    }
    let width = new.len() + 1;
    let mut common = vec![0u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push(Line::Both(old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            lines.push(Line::Old(old[i]));
            i += 1;
        } else {
            lines.push(Line::New(new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_shown_with_what_is_around_them() {
        let old = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n";
        assert!(hunks(old, old).is_empty());
        let shown = hunks(old, &old.replace("e\n", "E\nE2\n"));
        assert_eq!(shown, ["@@ -2,7 +2,8 @@", " b", " c", " d", "-e", "+E", "+E2", " f", " g", " h"]);
        let shown = hunks(old, &old.replace("a\n", "").replace("l\n", "L\n"));
        assert_eq!(shown, ["@@ -1,4 +1,3 @@", "-a", " b", " c", " d", "@@ -9,4 +8,4 @@", " i", " j", " k", "-l", "+L"]);
        assert_eq!(hunks("", "a\nb\n"), ["@@ -0,0 +1,2 @@", "+a", "+b"]);
        assert_eq!(hunks("a\n", ""), ["@@ -1 +0,0 @@", "-a"]);
    }

    #[test]
    fn both_texts_can_be_read_from_the_comparison() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let mut text = || (0..random.usize(..12)).map(|_| ["a", "b", "c"][random.usize(..3)]).collect::<Vec<_>>();
            let (old, new) = (text(), text());
            let lines = compare(&old, &new);
            let of = |skip: fn(&Line<'_>) -> bool| {
                let kept = lines.iter().filter(|line| !skip(line));
                kept.map(|line| match line {
                    Line::Old(t) | Line::New(t) | Line::Both(t) => *t,
                })
                .collect::<Vec<_>>()
            };
            assert_eq!((of(|line| matches!(line, Line::New(_))), of(|line| matches!(line, Line::Old(_)))), (old, new));
        }
    }
}
