//! Columns for people: no lines drawn, as wide as their widest cell.

use unicode_width::UnicodeWidthStr;

use super::Look;

/// What a cell means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Look at it.
    Warn,
    /// It is broken.
    Bad,
    /// A heading.
    Bold,
}

impl Tone {
    /// Of the terminal.
    pub const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Warn => Some("33"),
            Self::Bad => Some("31"),
            Self::Bold => Some("1"),
        }
    }
}

/// One cell.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell that stands out.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: clean(&text.into()), tone }
    }
}

impl<S: Into<String>> From<S> for Cell {
    fn from(text: S) -> Self {
        Self::toned(Tone::Plain, text)
    }
}

/// Text without what could move the cursor or change the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Rows under headings.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
    /// What columns are wide at least.
    widths: Vec<usize>,
}

impl Table {
    /// A table with these headings; empty ones leave the heading out.
    pub fn new<'h>(headings: impl IntoIterator<Item = &'h str>) -> Self {
        let headings: Vec<Cell> = headings.into_iter().map(|heading| Cell::toned(Tone::Bold, heading)).collect();
        Self { rows: vec![headings], ..Self::default() }
    }

    /// Columns that are this wide at least: rows that come later stand below them.
    #[must_use]
    pub fn at_least(self, widths: &[usize]) -> Self {
        Self { widths: widths.into(), ..self }
    }

    /// Columns without headings.
    pub fn bare() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines; no blanks at their ends.
    pub fn lines(&self, look: Look) -> Vec<String> {
        let mut widths = self.widths.clone();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let line = |row: &Vec<Cell>| {
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
            let mut line = String::new();
            // A column in which nothing stands takes no room.
            let columns = row.iter().take(last).zip(&widths).enumerate().filter(|(_, (_, width))| **width > 0);
            for (column, (cell, width)) in columns {
                line.push_str(&look.paint(cell.tone, &cell.text));
                if column + 1 < last {
                    line.extend(std::iter::repeat_n(' ', width - cell.text.width() + 2));
                }
            }
            line
        };
        self.rows.iter().map(line).collect()
    }

    /// The lines as one text.
    pub fn render(&self, look: Look) -> String {
        self.lines(look).join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_come_later_stand_below() {
        let mut table = Table::bare().at_least(&[5, 0, 2]);
        table.row(["a".into(), "b".into(), "c".into()]);
        assert_eq!(table.render(Look::default()), "a      b  c");
    }

    #[test]
    fn columns_are_as_wide_as_what_they_show() {
        let mut table = Table::new(["A", "B", "C"]);
        table.row(["日本".into(), Cell::toned(Tone::Bad, "x"), "".into()]);
        table.row(["e\u{301}a\x1b[2J".into(), "".into(), "end".into()]);
        assert_eq!(table.render(Look::default()), "A       B  C\n日本    x\ne\u{301}a\u{fffd}[2J     end");
        let color = Look { color: true, ..Look::default() };
        assert_eq!(table.lines(color)[1], "日本    \x1b[31mx\x1b[0m");
    }
}
