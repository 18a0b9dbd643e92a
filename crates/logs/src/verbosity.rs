//! Which records are shown: klog's numbers, and patterns that set them for parts of the program.

use tracing::{Level, Metadata};

/// The number of a record that is always shown, as errors and warnings are.
pub(crate) const ALWAYS: u32 = 0;

/// The number of a record whose callsite does not say one (field `v`); `None` if it is never shown.
pub(crate) fn default_of(metadata: &Metadata<'_>) -> Option<u32> {
    match (*metadata.level(), is_ours(metadata)) {
        (Level::ERROR | Level::WARN, _) | (Level::INFO, true) => Some(ALWAYS),
        (Level::DEBUG, true) => Some(2),
        (Level::TRACE, true) | (Level::INFO, false) => Some(4),
        (Level::DEBUG, false) => Some(8),
        (Level::TRACE, false) => None,
    }
}

/// The lowest number that a record of this callsite can have, whatever its field `v` says; `None` if it is never shown.
pub(crate) fn lowest_of(metadata: &Metadata<'_>) -> Option<u32> {
    match (*metadata.level(), is_ours(metadata)) {
        (Level::DEBUG, true) => Some(1),
        _ => default_of(metadata),
    }
}

/// The number from which a span's fields are shown in the records inside it; `None` for spans of libraries.
pub(crate) fn lowest_of_span(metadata: &Metadata<'_>) -> Option<u32> {
    is_ours(metadata).then(|| default_of(metadata)).flatten()
}

/// Whether the code is of this workspace, which cargo compiles with paths relative to the workspace.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.file().is_some_and(|file| file.starts_with("crates/"))
}

/// `--vmodule`: other verbosities for parts of the program.
///
/// A pattern is compared with the name of the source file without `.rs`, and with each part of the module's path
/// (`agent::side` has `agent` and `side`); one with a slash with the file's whole path without `.rs`. `*` stands for any
/// characters, `?` for one. The first that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmodule {
    patterns: Vec<(String, u32)>,
}

/// An entry of `--vmodule` that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is not of the form pattern=N")]
pub struct PatternError {
    entry: String,
}

impl std::str::FromStr for Vmodule {
    type Err = PatternError;

    /// Reads `pattern=N,...`. Blank entries are skipped, as klog does.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let patterns = entries.map(|entry| {
            let parsed = entry.split_once('=').and_then(|(pattern, number)| {
                let (pattern, number) = (pattern.trim(), number.trim().parse().ok()?);
                (!pattern.is_empty()).then(|| (pattern.to_owned(), number))
            });
            parsed.ok_or_else(|| PatternError { entry: entry.to_owned() })
        });
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }
}

impl Vmodule {
    /// Patterns and their verbosities; the first that fits counts.
    pub fn new(patterns: Vec<(String, u32)>) -> Self {
        Self { patterns }
    }

    /// The highest of the verbosities; 0 without any.
    pub(crate) fn highest(&self) -> u32 {
        self.patterns.iter().map(|(_, number)| *number).max().unwrap_or_default()
    }

    /// The verbosity for a callsite; `None` if no pattern fits.
    pub(crate) fn verbosity(&self, metadata: &Metadata<'_>) -> Option<u32> {
        if self.patterns.is_empty() {
            return None;
        }
        self.verbosity_of(metadata.file().unwrap_or_default(), metadata.module_path().unwrap_or_default())
    }

    fn verbosity_of(&self, file: &str, module: &str) -> Option<u32> {
        let path = file.strip_suffix(".rs").unwrap_or(file);
        let stem = path.rsplit('/').next().unwrap_or(path);
        let fits = |pattern: &str| {
            if pattern.contains('/') {
                return matches(pattern.as_bytes(), path.as_bytes());
            }
            module.split("::").chain([stem]).any(|part| matches(pattern.as_bytes(), part.as_bytes()))
        };
        self.patterns.iter().find(|(pattern, _)| fits(pattern)).map(|(_, number)| *number)
    }
}

/// Whether the text is as the pattern says.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on if the text does not fit: one byte later under the last star.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|byte| *byte == b'?' || *byte == text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read() {
        let read: Vmodule = " side=4, ,source*=9".parse().unwrap();
        assert_eq!(read, Vmodule::new(vec![("side".into(), 4), ("source*".into(), 9)]));
        assert_eq!(read.highest(), 9);
        for bad in ["side", "=3", "side=", "side=-1", "side=x"] {
            assert!(bad.parse::<Vmodule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_pattern_that_fits_counts() {
        let verbosity = |patterns: &str| {
            patterns.parse::<Vmodule>().unwrap().verbosity_of("crates/agent/src/side.rs", "agent::side")
        };
        assert_eq!(verbosity("side=4,agent=2"), Some(4));
        assert_eq!(verbosity("agent=2,side=4"), Some(2));
        assert_eq!(verbosity("si?e=5"), Some(5));
        assert_eq!(verbosity("crates/*/side=6"), Some(6));
        assert_eq!(verbosity("*=1"), Some(1));
        assert_eq!(verbosity("sid=4,crates=3,side.rs=2,agent/side=1"), None);
    }

    #[test]
    fn stars_are_tried_at_every_place() {
        for (pattern, text, fits) in
            [("a*b*c", "aXbYbZc", true), ("a*b", "abX", false), ("*", "", true), ("", "a", false)]
        {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }
}
