//! What is on the screen, and what keys do to it.

use std::cmp::Ordering;
use std::fmt::Write as _;

use inspect::document::{TrafficList, TrafficRow};

use super::{Told, shares};
use crate::table::printable;

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    GoOn,
    End,
}

/// Columns and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) lines: usize,
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    #[default]
    Rate,
    Total,
    Refused,
    Dropped,
    Name,
}

impl Sort {
    const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Total => "total",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
            Self::Name => "name",
        }
    }

    fn compare(self, a: &TrafficRow, b: &TrafficRow) -> Ordering {
        let rate = |of: fn(&TrafficRow) -> Option<f64>| {
            of(b).unwrap_or_default().total_cmp(&of(a).unwrap_or_default())
        };
        let first = match self {
            Self::Rate => rate(|row| row.connections_per_second),
            Self::Total => b.connections.cmp(&a.connections),
            Self::Refused => rate(|row| row.refused_per_second).then(b.refused.cmp(&a.refused)),
            Self::Dropped => rate(|row| row.dropped_per_second).then(b.dropped.cmp(&a.dropped)),
            Self::Name => Ordering::Equal,
        };
        first.then_with(|| a.service_port.cmp(&b.service_port)).then_with(|| a.protocol.cmp(&b.protocol))
    }
}

/// All that decides what is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    who: String,
    list: TrafficList,
    complaint: Option<String>,
    sort: Sort,
    /// Services are shown whose names contain this.
    filter: String,
    /// The filter is being written.
    writes: bool,
    /// The row that the cursor is on.
    cursor: usize,
    /// The endpoints of that row are shown one by one.
    details: bool,
}

const HELP: &str = "q quit  c rate  t total  r refused  d dropped  n name  / filter  Enter endpoints";
/// Lines above and below the rows.
const FRAME: usize = 4;

impl Screen {
    pub(crate) fn new(who: String) -> Self {
        let sort = Sort::default();
        let list = TrafficList::default();
        let filter = String::new();
        Self { who, list, complaint: None, sort, filter, writes: false, cursor: 0, details: false }
    }

    /// Takes in an answer.
    pub(crate) fn take(&mut self, Told { list, complaint }: Told) {
        self.list = list;
        self.complaint = complaint;
    }

    /// There is no answer; the last one stays.
    pub(crate) fn complain(&mut self, error: &dyn std::error::Error) {
        self.complaint = Some(error.to_string());
    }

    /// Takes in a key.
    pub(crate) fn key(&mut self, key: Key) -> Wish {
        if self.writes {
            match key {
                Key::Char(char) => self.filter.push(char),
                Key::Backspace => drop(self.filter.pop()),
                Key::Escape => {
                    self.filter.clear();
                    self.writes = false;
                }
                Key::Enter => self.writes = false,
                Key::Up | Key::Down | Key::PageUp | Key::PageDown => {}
            }
            self.cursor = 0;
            return Wish::GoOn;
        }
        match key {
            Key::Char('q') => return Wish::End,
            Key::Char('c') => self.sort = Sort::Rate,
            Key::Char('t') => self.sort = Sort::Total,
            Key::Char('r') => self.sort = Sort::Refused,
            Key::Char('d') => self.sort = Sort::Dropped,
            Key::Char('n') => self.sort = Sort::Name,
            Key::Char('/') => self.writes = true,
            Key::Enter => self.details = !self.details,
            Key::Escape => {
                self.filter.clear();
                self.details = false;
            }
            Key::Up | Key::Char('k') => self.cursor = self.cursor.saturating_sub(1),
            Key::Down | Key::Char('j') => self.cursor += 1,
            Key::PageUp => self.cursor = self.cursor.saturating_sub(10),
            Key::PageDown => self.cursor += 10,
            Key::Char(_) | Key::Backspace => {}
        }
        self.cursor = self.cursor.min(self.rows().len().saturating_sub(1));
        Wish::GoOn
    }

    fn rows(&self) -> Vec<&TrafficRow> {
        let is_meant = |row: &&TrafficRow| row.service_port.contains(&self.filter);
        let mut rows: Vec<_> = self.list.items.iter().filter(is_meant).collect();
        rows.sort_by(|a, b| self.sort.compare(a, b));
        rows
    }

    /// The whole screen, each line no longer than it is wide.
    pub(crate) fn lines(&self, size: Size) -> Vec<String> {
        let rows = self.rows();
        let mut lines = vec![self.head(&rows), self.second(), headings()];
        let room = size.lines.saturating_sub(FRAME);
        let body = self.body(&rows, size.columns);
        // The cursor's line stays in sight.
        let at = body.iter().position(|(is_cursor, _)| *is_cursor).unwrap_or_default();
        let first = (at + 1).saturating_sub(room);
        lines.extend(body.into_iter().skip(first).take(room).map(|(_, line)| line));
        lines.resize(size.lines.saturating_sub(1), String::new());
        lines.push(HELP.to_owned());
        lines
            .iter()
            .take(size.lines)
            .map(|line| printable(line).chars().take(size.columns).collect())
            .collect()
    }

    fn head(&self, rows: &[&TrafficRow]) -> String {
        let sum = |of: fn(&TrafficRow) -> Option<f64>| -> f64 { rows.iter().filter_map(|row| of(row)).sum() };
        format!(
            "kube-proxy top: {}  {} Service ports  {:.1} new flows/s  {:.1} refused/s  {:.1} dropped/s",
            self.who,
            rows.len(),
            sum(|row| row.connections_per_second),
            sum(|row| row.refused_per_second),
            sum(|row| row.dropped_per_second),
        )
    }

    fn second(&self) -> String {
        if let Some(complaint) = &self.complaint {
            return format!("no answer: {complaint}");
        }
        if self.list.age_seconds.is_none() {
            return "nothing was counted yet, or this mode does not count".to_owned();
        }
        let cursor = if self.writes { "_" } else { "" };
        let filter = if self.filter.is_empty() && !self.writes {
            String::new()
        } else {
            format!("  filter: {}{cursor}", self.filter)
        };
        format!("sorted by {}{filter}", self.sort.name())
    }

    /// Rows, and below that of the cursor its endpoints, if they are wanted. With whether the cursor is there.
    fn body(&self, rows: &[&TrafficRow], columns: usize) -> Vec<(bool, String)> {
        let mut body = Vec::new();
        for (idx, row) in rows.iter().enumerate() {
            let is_cursor = idx == self.cursor.min(rows.len().saturating_sub(1));
            body.push((is_cursor, line(row, is_cursor, columns)));
            if is_cursor && self.details {
                let endpoints = shares(row);
                body.extend(
                    endpoints
                        .into_iter()
                        .map(|(share, address)| (false, format!("      {share:>5.1}%  {address}"))),
                );
            }
        }
        body
    }
}

fn headings() -> String {
    format!(
        "  {:<40} {:<8} {:>9} {:>10} {:>9} {:>9}  {}",
        "SERVICE-PORT", "PROTOCOL", "NEW/S", "TOTAL", "REFUSED/S", "DROPPED/S", "SHARES"
    )
}

fn line(row: &TrafficRow, is_cursor: bool, columns: usize) -> String {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let mark = if is_cursor { '>' } else { ' ' };
    let mut line = format!(
        "{mark} {:<40} {:<8} {:>9} {:>10} {:>9} {:>9} ",
        row.service_port,
        row.protocol,
        rate(row.connections_per_second),
        row.connections,
        rate(row.refused_per_second),
        rate(row.dropped_per_second),
    );
    // As many as there is room for.
    for (share, address) in shares(row) {
        let text = format!(" {address} {share:.0}%");
        if line.chars().count() + text.chars().count() > columns {
            break;
        }
        // Writing to a string can't fail.
        let _ok = write!(line, "{text}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::tests::row;

    const SIZE: Size = Size { columns: 132, lines: 12 };

    fn screen() -> Screen {
        let mut screen = Screen::new("node-1".into());
        let items = vec![row("api", &[0.5], 9), row("web", &[1.0, 3.0], 0), row("zzz", &[0.0], 1)];
        let list = TrafficList { now: 1.0, age_seconds: Some(0.2), items };
        screen.take(Told { list, complaint: None });
        screen
    }

    fn press(screen: &mut Screen, keys: &str) {
        keys.chars().for_each(|key| assert_eq!(screen.key(Key::Char(key)), Wish::GoOn));
    }

    /// The Services in their order.
    fn shown(screen: &Screen) -> Vec<String> {
        screen.rows().iter().map(|row| row.name.clone()).collect()
    }

    #[test]
    fn a_screen() {
        let mut screen = screen();
        screen.key(Key::Enter);
        insta::assert_snapshot!(screen.lines(SIZE).join("\n"));
    }

    #[test]
    fn what_is_missing_is_told_beside_the_rest() {
        let mut screen = screen();
        let list = screen.list.clone();
        screen.take(Told { list, complaint: Some("node-2: gone".into()) });
        assert_eq!(screen.lines(SIZE)[1], "no answer: node-2: gone");
        assert_eq!(shown(&screen), ["web", "api", "zzz"]);
    }

    #[test]
    fn keys_sort_and_filter() {
        let mut screen = screen();
        assert_eq!(shown(&screen), ["web", "api", "zzz"]);
        press(&mut screen, "r");
        assert_eq!(shown(&screen), ["api", "zzz", "web"]);
        press(&mut screen, "n");
        assert_eq!(shown(&screen), ["api", "web", "zzz"]);
        press(&mut screen, "/we");
        assert_eq!(shown(&screen), ["web"]);
        screen.key(Key::Enter);
        // Letters are commands again.
        press(&mut screen, "t");
        assert_eq!(shown(&screen), ["web"]);
        screen.key(Key::Escape);
        assert_eq!(shown(&screen), ["web", "api", "zzz"]);
        assert_eq!(screen.key(Key::Char('q')), Wish::End);
    }

    #[test]
    fn the_cursor_stays_in_sight_and_lines_within_the_screen() {
        let mut screen = screen();
        screen.list.items = (0..100).map(|n| row(&format!("svc-{n:03}"), &[0.0], 0)).collect();
        for _ in 0..7 {
            screen.key(Key::PageDown);
        }
        let lines = screen.lines(SIZE);
        assert!(lines.iter().any(|line| line.starts_with("> shop/svc-070")), "{lines:?}");
        for size in [SIZE, Size { columns: 20, lines: 5 }, Size { columns: 0, lines: 0 }] {
            let lines = screen.lines(size);
            assert!(lines.len() <= size.lines);
            assert!(lines.iter().all(|line| line.chars().count() <= size.columns));
        }
    }
}
