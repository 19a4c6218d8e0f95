//! Paths in documents that are sent to where the files are not relative to anything.

use std::path::Path;

use crate::{
    problem::{Sink, Source, Span},
    tree::{self, Node},
};

/// The fields of a Certificate that name files.
const FILES: [&str; 3] = ["certFile", "keyFile", "caFile"];

/// The texts with the paths of their Certificates made absolute: relative ones start in the directory of the file that a
/// text is named after, or in `here` when its name says nothing about that. Everything else stays as it is written, line
/// for line.
pub fn with_absolute_paths(texts: &[(String, String)], here: &Path) -> Vec<(String, String)> {
    let absolute = |(name, text): &(String, String)| {
        let dir = here.join(Path::new(name).parent().unwrap_or(Path::new("")));
        (name.clone(), with_paths_in(name, text, &dir))
    };
    texts.iter().map(absolute).collect()
}

fn with_paths_in(name: &str, text: &str, dir: &Path) -> String {
    // What cannot be read is reported by whoever checks it.
    let problems = Sink::default();
    let source = Source::new(name, dir.to_owned(), text.to_owned());
    let mut found: Vec<(Span, String)> = Vec::new();
    for (node, _) in &tree::parse(&source, &problems).nodes {
        collect(node, &mut found);
    }
    found.sort_by_key(|(span, _)| span.start);
    // An alias is where its anchor is.
    found.dedup_by_key(|(span, _)| span.start);
    let (mut absolute, mut end) = (String::with_capacity(text.len()), 0);
    for (span, path) in found {
        let written = text.get(span.start..span.end).unwrap_or_default();
        if Path::new(&path).is_absolute() || written.contains('\n') {
            continue;
        }
        absolute.push_str(text.get(end..span.start).unwrap_or_default());
        // In JSON's quotes, which are YAML's as well.
        absolute.push_str(&serde_json::Value::from(dir.join(&path).display().to_string()).to_string());
        end = span.end;
    }
    absolute.push_str(text.get(end..).unwrap_or_default());
    absolute
}

/// The paths of the Certificates in a document, or in a List of them.
fn collect(node: &Node, found: &mut Vec<(Span, String)>) {
    if let Some(tree::Value::Seq(items)) = node.get("items").map(|items| &items.value) {
        items.iter().for_each(|item| collect(item, found));
    }
    if node.get("kind").and_then(Node::as_str) != Some("Certificate") {
        return;
    }
    let Some(spec) = node.get("spec") else { return };
    for file in FILES.iter().filter_map(|name| spec.get(name)) {
        if let Some(path) = file.as_str().filter(|path| !path.is_empty()) {
            found.push((file.span, path.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_paths_of_certificates_change() {
        let text = "kind: Service\nspec: {certFile: a.pem}\n---\nkind: Certificate\nspec:\n  certFile: tls/a.pem # ours\n  \
                    keyFile: \"../a key.pem\"\n  caFile: /etc/ca.pem\n";
        let texts = [("conf/tls.yaml".to_owned(), text.to_owned()), ("stdin".to_owned(), text.to_owned())];
        let absolute = with_absolute_paths(&texts, Path::new("/srv"));
        let expected = text
            .replace("tls/a.pem #", "\"/srv/conf/tls/a.pem\" #")
            .replace("\"../a key.pem\"", "\"/srv/conf/../a key.pem\"");
        assert_eq!(absolute[0].1, expected);
        assert!(absolute[1].1.contains("certFile: \"/srv/tls/a.pem\" # ours"), "{}", absolute[1].1);
        let list = [(
            "/x/l.json".to_owned(),
            r#"{"kind": "List", "items": [{"kind": "Certificate", "spec": {"caFile": "ca.pem"}}]}"#.to_owned(),
        )];
        assert!(with_absolute_paths(&list, Path::new("/srv"))[0].1.contains(r#""caFile": "/x/ca.pem""#));
        let broken = [("b.yaml".to_owned(), "kind: [".to_owned())];
        assert_eq!(with_absolute_paths(&broken, Path::new("/srv")), broken);
    }
}
