//! What is wrong with a configuration, and where.

use std::{cell::RefCell, fmt, path::PathBuf, sync::Arc};

use miette::NamedSource;
use serde::Serialize;

/// After this many problems the rest is only counted: nobody reads more, and a hostile file could hold millions.
const MOST: usize = 1000;

/// A file (or other piece of text) that was read.
#[derive(Debug)]
pub(crate) struct Source {
    /// What the user calls it.
    pub name: String,
    /// Relative paths in its documents start here.
    pub dir: PathBuf,
    /// All of it, for miette's snippets.
    snippet: NamedSource<String>,
    /// Byte offset at which each line starts.
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: &str, dir: PathBuf, text: String) -> Arc<Self> {
        let lines = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        Arc::new(Self { name: name.into(), dir, snippet: NamedSource::new(name, text), lines })
    }

    pub(crate) fn text(&self) -> &str {
        self.snippet.inner()
    }

    /// The text of a line, counted from 1.
    pub(crate) fn line(&self, line: usize) -> &str {
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let end = self.lines.get(line).copied().unwrap_or(self.text().len());
        self.text().get(start..end).unwrap_or_default()
    }

    /// Line and column of a byte offset, both counted from 1, the column in characters.
    pub(crate) fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self.text().get(start..offset).map_or(0, |before| before.chars().count());
        (line, column + 1)
    }
}

/// A range of bytes in a [`Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub start: usize,
    pub end: usize,
}

/// One problem (or warning), ready to be shown.
#[derive(Clone, Serialize)]
pub struct Diagnostic {
    /// File, as the user named it.
    pub file: String,
    /// From 1; 0 when the problem is the file itself.
    pub line: usize,
    /// From 1, in characters; 0 when the problem is the file itself.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// A stable word for this sort of problem, for instance `unknown-field`.
    pub code: &'static str,
    #[serde(skip)]
    place: Option<(Arc<Source>, Span)>,
}

impl Diagnostic {
    /// A problem at a place in a file.
    pub(crate) fn at(
        source: &Arc<Source>,
        span: Span,
        code: &'static str,
        message: String,
        hint: Option<String>,
    ) -> Self {
        let (line, column) = source.position(span.start);
        Self { file: source.name.clone(), line, column, message, hint, code, place: Some((source.clone(), span)) }
    }

    /// A problem with a file as a whole.
    pub(crate) fn of_file(file: &str, code: &'static str, message: String, hint: Option<String>) -> Self {
        Self { file: file.into(), line: 0, column: 0, message, hint, code, place: None }
    }

    /// This diagnostic as a miette report, with a snippet of its source.
    pub fn report(&self) -> miette::Report {
        Drawn(self.clone()).into()
    }
}

impl PartialEq for Diagnostic {
    fn eq(&self, other: &Self) -> bool {
        (&self.file, self.line, self.column, &self.message, &self.hint, self.code)
            == (&other.file, other.line, other.column, &other.message, &other.hint, other.code)
    }
}

impl fmt::Debug for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.code)
    }
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: message`, and the hint on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

/// A diagnostic for miette, which draws position and hint itself.
#[derive(Debug)]
struct Drawn(Diagnostic);

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.place.is_none() {
            write!(f, "{}: ", self.0.file)?;
        }
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Drawn {}

impl miette::Diagnostic for Drawn {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.0.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.0.place.as_ref().map(|(source, _)| &source.snippet as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let (source, span) = self.0.place.as_ref()?;
        // The first line of a mapping is enough to find it.
        let text = source.text().get(span.start..span.end).unwrap_or_default();
        let length = text.lines().next().unwrap_or_default().trim_end().len();
        Some(Box::new(std::iter::once(miette::LabeledSpan::new(None, span.start, length))))
    }
}

/// Every problem of a configuration, in the order of files and lines.
#[derive(Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Problems {
    list: Vec<Diagnostic>,
    #[serde(skip)]
    left_off: usize,
}

impl Problems {
    /// The problems one by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len() + self.left_off
    }

    /// Never true for problems that were returned as an error.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it as one miette report, with snippets.
    pub fn report(&self) -> miette::Report {
        self.clone().into()
    }

    fn summary(&self) -> String {
        match self.len() {
            1 => "the configuration has 1 problem".into(),
            n => format!("the configuration has {n} problems"),
        }
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Problems {
    /// Every problem, one after the other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        match self.left_off {
            0 => Ok(()),
            n => write!(f, "\n… and {n} more"),
        }
    }
}

impl std::error::Error for Problems {}

/// All of them for miette: a headline, and the problems related to it.
#[derive(Debug)]
struct Summary(String, Vec<Drawn>);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Summary {}

impl miette::Diagnostic for Summary {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn miette::Diagnostic> + 'a>> {
        Some(Box::new(self.1.iter().map(|diagnostic| diagnostic as &dyn miette::Diagnostic)))
    }
}

impl From<Problems> for miette::Report {
    fn from(problems: Problems) -> Self {
        let mut summary = problems.summary();
        if problems.left_off > 0 {
            summary.push_str(&format!(", of which the first {MOST} are shown"));
        }
        miette::Report::new(Summary(summary, problems.list.into_iter().map(Drawn).collect()))
    }
}

/// Collects problems while documents are read and checked.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    list: RefCell<Vec<Diagnostic>>,
    left_off: std::cell::Cell<usize>,
}

impl Sink {
    pub(crate) fn push(&self, diagnostic: Diagnostic) {
        let mut list = self.list.borrow_mut();
        if list.len() < MOST {
            // The same problem found twice (say through an alias) is one problem.
            if !list.contains(&diagnostic) {
                list.push(diagnostic);
            }
        } else {
            self.left_off.set(self.left_off.get() + 1);
        }
    }

    /// Whether further problems would only be counted.
    pub(crate) fn is_full(&self) -> bool {
        self.list.borrow().len() >= MOST
    }

    pub(crate) fn len(&self) -> usize {
        self.list.borrow().len() + self.left_off.get()
    }

    /// Everything collected, sorted by file (in the order given) and position.
    pub(crate) fn finish(self, files: &[String]) -> Problems {
        let mut list = self.list.into_inner();
        let rank = |d: &Diagnostic| files.iter().position(|file| *file == d.file).unwrap_or(files.len());
        list.sort_by_cached_key(|d| (rank(d), d.line, d.column));
        Problems { list, left_off: self.left_off.get() }
    }

    /// The collected diagnostics when they are warnings.
    pub(crate) fn into_warnings(self, files: &[String]) -> Vec<Diagnostic> {
        self.finish(files).list
    }
}
