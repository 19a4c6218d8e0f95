//! Files and text into a checked configuration. The only place of this crate that reads files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{Config, Key},
    problem::{Diagnostic, Problems, Sink, Source},
    tree, validate,
};

/// Larger files are refused.
const LARGEST: u64 = 16 << 20;

/// How strict a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// References have to resolve. A source that delivers objects one by one switches this off.
    pub require_refs: bool,
}

impl Default for Options {
    /// A complete configuration.
    fn default() -> Self {
        Self { require_refs: true }
    }
}

/// A valid configuration, and what to know about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checked {
    /// What was read.
    pub config: Config,
    /// Fields without effect and the like.
    pub warnings: Vec<Diagnostic>,
}

/// Loads files, and the `*.yaml`, `*.yml` and `*.json` of directories, as one configuration.
pub fn load_paths(paths: &[PathBuf], options: Options) -> Result<Checked, Problems> {
    let problems = Sink::default();
    let (files, sources, before) = read_all(paths, &problems);
    // A file that cannot be opened might define anything.
    let unreadable = problems.len() > 0 && (before > 0 || sources.len() < files.len());
    let mut names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.extend(files.iter().map(|file| file.display().to_string()));
    check(&sources, &names, unreadable, options, problems)
}

/// The texts of files, and of the `*.yaml`, `*.yml` and `*.json` of directories, each with its name.
pub fn read_texts(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Problems> {
    let problems = Sink::default();
    let (files, sources, _) = read_all(paths, &problems);
    match problems.len() {
        0 => Ok(sources.iter().map(|source| (source.name.clone(), source.text().to_owned())).collect()),
        _ => Err(problems.finish(&files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>())),
    }
}

/// The files that paths mean, what is in them, and how many problems there were before any was read.
fn read_all(paths: &[PathBuf], problems: &Sink) -> (Vec<PathBuf>, Vec<Arc<Source>>, usize) {
    let mut sources = Vec::new();
    let mut files = Vec::new();
    for path in paths {
        files.extend(expand(path, problems));
    }
    // The same file named twice is one file.
    let mut seen = Vec::new();
    files.retain(|file| {
        !seen.contains(file) && {
            seen.push(file.clone());
            true
        }
    });
    let before = problems.len();
    for file in &files {
        sources.extend(read(file, problems));
    }
    if paths.is_empty() {
        problems.push(Diagnostic::of_file("-", "no-file", "no file or directory was given".into(), None));
    }
    (files, sources, before)
}

/// Loads text as one configuration. `name` is what problems call it; relative paths start in its directory.
pub fn load_str(name: &str, text: &str, options: Options) -> Result<Checked, Problems> {
    let problems = Sink::default();
    let mut sources = Vec::new();
    if text.len() as u64 > LARGEST {
        too_large(name, &problems);
    } else {
        sources.push(Source::new(name, directory(Path::new(name)), text.to_owned()));
    }
    check(&sources, &[name.to_owned()], false, options, problems)
}

/// Loads texts, each with what problems call it, as one configuration. No texts are an empty one.
pub fn load_texts(texts: &[(String, String)], options: Options) -> Result<Checked, Problems> {
    let problems = Sink::default();
    let (sources, names) = sources_of(texts, &problems);
    check(&sources, &names, false, options, problems)
}

/// Loads objects of a store, each with what problems call it, as one configuration. Relative paths in them start in the
/// working directory of the process.
pub fn load_objects(objects: &[(String, String)], options: Options) -> Result<Checked, Problems> {
    let problems = Sink::default();
    let (sources, names) = sources_in(objects, |_| PathBuf::new(), &problems);
    check(&sources, &names, false, options, problems)
}

/// A document by itself: what it is called, and what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace and name.
    pub key: Key,
    /// All of it.
    pub json: serde_json::Value,
}

/// The documents of texts, one by one, if all of them are well formed. What they mean together is not checked.
pub fn documents(texts: &[(String, String)]) -> Result<Vec<Document>, Problems> {
    let (problems, warnings) = (Sink::default(), Sink::default());
    let (sources, names) = sources_of(texts, &problems);
    let mut found = Vec::new();
    for source in &sources {
        let mut reader = validate::Reader { source, problems: &problems, warnings: &warnings, found: &mut found };
        for (node, sound) in &tree::parse(source, &problems).nodes {
            reader.document(node, *sound);
        }
    }
    match problems.len() {
        0 => Ok(found
            .into_iter()
            .map(|document| Document { kind: document.kind.name(), key: document.key, json: document.node.to_json() })
            .collect()),
        _ => Err(problems.finish(&names)),
    }
}

fn sources_of(texts: &[(String, String)], problems: &Sink) -> (Vec<Arc<Source>>, Vec<String>) {
    sources_in(texts, |name| directory(Path::new(name)), problems)
}

fn sources_in(
    texts: &[(String, String)],
    directory: impl Fn(&str) -> PathBuf,
    problems: &Sink,
) -> (Vec<Arc<Source>>, Vec<String>) {
    let mut sources = Vec::new();
    for (name, text) in texts {
        if text.len() as u64 > LARGEST {
            too_large(name, problems);
        } else {
            sources.push(Source::new(name, directory(name), text.clone()));
        }
    }
    (sources, texts.iter().map(|(name, _)| name.clone()).collect())
}

fn check(
    sources: &[Arc<Source>],
    names: &[String],
    unreadable: bool,
    options: Options,
    problems: Sink,
) -> Result<Checked, Problems> {
    let warnings = Sink::default();
    let mut documents = Vec::new();
    let mut complete = !unreadable;
    for source in sources {
        let parsed = tree::parse(source, &problems);
        complete &= !parsed.unreadable;
        let empty = parsed.nodes.iter().all(|(node, _)| matches!(node.value, tree::Value::Null));
        if empty && !parsed.unreadable {
            let hint = Some("write a document, or remove the file".to_owned());
            problems.push(Diagnostic::of_file(&source.name, "empty", "there is no document in this file".into(), hint));
        }
        let mut reader = validate::Reader { source, problems: &problems, warnings: &warnings, found: &mut documents };
        for (node, sound) in &parsed.nodes {
            complete &= reader.document(node, *sound);
        }
    }
    // What a document that could not be read defines is unknown: references to it are not mistakes.
    let config = validate::validate(&documents, options.require_refs && complete, &problems, &warnings);
    match problems.len() {
        0 => Ok(Checked { config, warnings: warnings.into_warnings(names) }),
        _ => Err(problems.finish(names)),
    }
}

/// A file as it is, a directory as its files in order.
fn expand(path: &Path, problems: &Sink) -> Vec<PathBuf> {
    let name = path.display().to_string();
    let refuse = |error: &io::Error| {
        let (message, hint) = match error.kind() {
            io::ErrorKind::NotFound => ("there is no such file or directory".to_owned(), Some("check the path")),
            io::ErrorKind::PermissionDenied => ("permission denied".to_owned(), Some("make it readable for this user")),
            _ => (format!("it cannot be read: {error}"), None),
        };
        problems.push(Diagnostic::of_file(&name, "no-file", message, hint.map(str::to_owned)));
        Vec::new()
    };
    match fs::metadata(path) {
        Err(error) => return refuse(&error),
        Ok(metadata) if !metadata.is_dir() => return vec![path.to_owned()],
        Ok(_) => {}
    }
    let mut files = Vec::new();
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return refuse(&error),
    };
    for entry in entries {
        let file = match entry {
            Ok(entry) => entry.path(),
            Err(error) => return refuse(&error),
        };
        // A mounted ConfigMap has a hidden directory with the data, and links into it.
        let hidden = file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let wanted =
            file.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if wanted && !hidden && !fs::metadata(&file).is_ok_and(|metadata| metadata.is_dir()) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let hint = "files end in .yaml, .yml or .json; directories inside are not searched".to_owned();
        problems.push(Diagnostic::of_file(
            &name,
            "empty",
            "there is no configuration in this directory".into(),
            Some(hint),
        ));
    }
    files
}

fn read(path: &Path, problems: &Sink) -> Option<Arc<Source>> {
    let name = path.display().to_string();
    let result = fs::File::open(path).and_then(|file| {
        // Checked while reading, too: the size of a pipe or of a growing file is not known before.
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST + 1), &mut bytes)?;
        Ok(bytes)
    });
    let bytes = match result {
        Ok(bytes) => bytes,
        Err(error) => {
            let (message, hint) = match error.kind() {
                io::ErrorKind::NotFound => ("there is no such file".to_owned(), Some("a link may lead nowhere")),
                io::ErrorKind::PermissionDenied => {
                    ("permission denied".to_owned(), Some("make it readable for this user"))
                }
                _ => (format!("it cannot be read: {error}"), None),
            };
            problems.push(Diagnostic::of_file(&name, "no-file", message, hint.map(str::to_owned)));
            return None;
        }
    };
    if bytes.len() as u64 > LARGEST {
        too_large(&name, problems);
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(Source::new(&name, directory(path), text)),
        Err(error) => {
            not_utf8(&name, &directory(path), error, problems);
            None
        }
    }
}

fn not_utf8(name: &str, dir: &Path, error: std::string::FromUtf8Error, problems: &Sink) {
    let offset = error.utf8_error().valid_up_to();
    let utf16 = error.as_bytes().starts_with(&[0xff, 0xfe]) || error.as_bytes().starts_with(&[0xfe, 0xff]);
    let hint = if utf16 { "this is UTF-16; save it as UTF-8" } else { "save the file as UTF-8" };
    // Every broken byte takes the place of one character, so what is before it keeps its place.
    let source = Source::new(name, dir.to_owned(), String::from_utf8_lossy(error.as_bytes()).into_owned());
    let span = crate::problem::Span { start: offset, end: offset };
    problems.push(Diagnostic::at(&source, span, "not-utf8", "this file is not UTF-8".into(), Some(hint.into())));
}

fn too_large(name: &str, problems: &Sink) {
    let message = format!("this file is larger than {} MiB", LARGEST >> 20);
    problems.push(Diagnostic::of_file(name, "too-large", message, Some("split it into several files".into())));
}

fn directory(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}
