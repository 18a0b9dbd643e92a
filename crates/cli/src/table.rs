//! Tables as `kubectl` prints them: no lines, columns three spaces apart, headings in capitals.

use std::fmt::Write as _;

/// What a cell says about itself besides its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Somebody should look at it.
    Warn,
    /// It is wrong.
    Bad,
}

/// One value of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A text with a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        let text = text.into();
        // As kubectl does, so that columns stay columns.
        let text = if text.is_empty() { "<none>".to_owned() } else { text };
        Self { text, tone: Tone::Plain }
    }
}

/// Rows under headings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// No rows yet.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, which has as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, with or without colours and headings.
    pub fn text(&self, colours: bool, headings: bool) -> String {
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| width(&row[column].text));
                cells.chain([self.headings[column].len()]).max().unwrap_or_default()
            })
            .collect();
        let head: Vec<Cell> =
            self.headings.iter().map(|heading| Cell::toned(*heading, Tone::Plain)).collect();
        let rows = headings.then_some(&head).into_iter().chain(&self.rows);
        rows.fold(String::new(), |text, row| text + &line(row, &widths, colours) + "\n")
    }
}

fn line(row: &[Cell], widths: &[usize], colours: bool) -> String {
    let mut text = String::new();
    for (column, cell) in row.iter().enumerate() {
        // What comes from the API must not write to the terminal's control.
        let shown = printable(&cell.text);
        let padding = if column + 1 < row.len() { widths[column] - width(&shown) + 3 } else { 0 };
        // Writing to a string can't fail.
        let _ok = match colour(cell.tone).filter(|_| colours) {
            Some(code) => write!(text, "\x1b[{code}m{shown}\x1b[0m{:padding$}", ""),
            None => write!(text, "{shown}{:padding$}", ""),
        };
    }
    text
}

/// The text without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn colour(tone: Tone) -> Option<&'static str> {
    match tone {
        Tone::Plain => None,
        Tone::Good => Some("32"),
        Tone::Warn => Some("33"),
        Tone::Bad => Some("31"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must() {
        let mut table = Table::new(&["NAME", "ENDPOINTS", "AGE"]);
        table.row(vec!["a-long-name".into(), Cell::toned("0/3", Tone::Bad), "5s".into()]);
        table.row(vec!["ü".into(), "".into(), "10m".into()]);
        let plain =
            "NAME          ENDPOINTS   AGE\na-long-name   0/3         5s\nü             <none>      10m\n";
        assert_eq!(table.text(false, true), plain);
        assert_eq!(table.text(false, false), plain.split_once('\n').unwrap().1);
        assert!(table.text(true, true).contains("\x1b[31m0/3\x1b[0m         5s\n"));
    }

    #[test]
    fn terminals_are_not_controlled_by_names() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec!["\x1b[2Jgone\n".into()]);
        assert_eq!(table.text(false, false), "?[2Jgone?\n");
    }
}
