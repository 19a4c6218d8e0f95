//! No input makes the parser panic, and every problem has a place inside its file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use weft_model::{Options, load_str};

const SEEDS: [&str; 4] = [
    include_str!("contract/gateway.yaml"),
    include_str!("contract/mesh.yaml"),
    include_str!("contract/minimal.yaml"),
    include_str!("mistakes/many.yaml"),
];

fn load(text: &str) {
    for require_refs in [true, false] {
        let Err(problems) = load_str("x.yaml", text, Options { require_refs }) else { continue };
        assert!(!problems.is_empty());
        let lines = text.split('\n').count();
        for problem in &problems {
            assert!(problem.line <= lines, "{problem:?}");
            let line = text.split('\n').nth(problem.line.saturating_sub(1)).unwrap();
            assert!(problem.column <= line.chars().count() + 1, "{problem:?} in {line:?}");
        }
        let _ = format!("{problems}{:?}", problems.report());
    }
}

/// Words that mean something to the parser or to the checks.
fn word() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "---\n",
        "...\n",
        "\n",
        "  ",
        "\t",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "<<: ",
        "!!str ",
        "!x ",
        "\"",
        "'",
        "|\n",
        ">\n",
        "#",
        "%YAML 1.2\n",
        "null",
        "~",
        "1",
        "-1",
        "1e999",
        "0x1",
        ".inf",
        "é",
        "\u{feff}",
        "\0",
        "kind",
        "Service",
        "spec",
        "metadata",
        "name",
        "1s",
        "p95",
        "*.a",
        "$ref",
        "\u{2028}",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        load(&text);
    }

    #[test]
    fn any_words(words in prop::collection::vec(word(), 0..60)) {
        load(&words.concat());
    }

    #[test]
    fn a_configuration_with_a_hole(seed in 0..SEEDS.len(), from in any::<prop::sample::Index>(), length in 0usize..40, word in word()) {
        let chars: Vec<char> = SEEDS[seed].chars().collect();
        let from = from.index(chars.len());
        let to = (from + length).min(chars.len());
        let text: String = chars[..from].iter().copied().chain(word.chars()).chain(chars[to..].iter().copied()).collect();
        load(&text);
    }

    #[test]
    fn a_value_of_another_type(seed in 0..SEEDS.len(), at in any::<prop::sample::Index>(), value in prop::sample::select(vec![
        "{}", "[]", "''", "1", "-1", "1.5", "true", "null", "[[]]", "[{}]", "{a: b}", "\"\\0\"", "99999999999999999999",
    ])) {
        // Only the values of flow mappings and of plain lines: what follows the colon, up to the next comma or end.
        let text = SEEDS[seed];
        let colons: Vec<usize> = text.match_indices(": ").map(|(i, _)| i + 2).collect();
        let start = colons[at.index(colons.len())];
        let end = start + text[start..].find([',', '}', '\n']).unwrap_or(0);
        load(&format!("{}{value}{}", &text[..start], &text[end..]));
    }
}
