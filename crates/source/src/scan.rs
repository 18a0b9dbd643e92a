//! Reads a folder of manifests: what each file says, and what they say together.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use api::{ManifestFormat, Outcome, Parsed, Rejection, parse_manifests};
use model::{Change, Interner, Kind, Object, ObjectName};

use crate::SourceEvent;
use crate::file::read_text;

/// The largest file that is read: some 50,000 Services with ten endpoints each.
const MAX_FILE_BYTES: u64 = 128 << 20;

/// What a folder is known to hold.
#[derive(Debug)]
pub(crate) struct Scanner {
    dir: PathBuf,
    /// By file name; the order decides between two files that hold the same object.
    files: BTreeMap<String, File>,
    interner: Interner,
    was_scanned: bool,
}

/// The last good content of a file.
#[derive(Debug, Default)]
struct File {
    hash: u64,
    objects: Vec<Parsed>,
    /// The file can't be used as it is now. Said once for each cause.
    problem: Option<String>,
}

impl File {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.objects.iter().map(|object| object.kind)
    }
}

impl Scanner {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), interner: Interner::default(), was_scanned: false }
    }

    /// Reads what has changed and returns what to tell: a complete listing of each kind that a changed file concerns,
    /// of all kinds the first time. Files named in `busy` are being written; their last good content stays.
    pub(crate) fn scan(&mut self, busy: &BTreeSet<String>) -> Vec<SourceEvent> {
        let mut out = Vec::new();
        let names = match manifest_names(&self.dir) {
            Ok(names) => names,
            Err(error) => {
                out.push(problem(format!("the folder {} can't be read: {error}", self.dir.display())));
                return out;
            }
        };
        let mut touched: BTreeSet<Kind> = BTreeSet::new();
        self.files.retain(|name, file| {
            let exists = names.contains(name);
            if !exists {
                touched.extend(file.kinds());
            }
            exists
        });
        for name in names.into_iter().filter(|name| !busy.contains(name)) {
            self.read_file(name, &mut touched, &mut out);
        }
        if !self.was_scanned {
            touched.extend(Kind::ALL);
        }
        for kind in touched {
            self.merge(kind, &mut out);
            if !self.was_scanned {
                out.push(SourceEvent::Listed(kind));
            }
        }
        self.was_scanned = true;
        out
    }

    fn read_file(&mut self, name: String, touched: &mut BTreeSet<Kind>, out: &mut Vec<SourceEvent>) {
        let path = self.dir.join(&name);
        let file = self.files.entry(name).or_default();
        match read_manifest(&path, file.hash, &mut self.interner) {
            Ok(None) => {}
            Ok(Some((hash, objects))) => {
                touched.extend(file.kinds());
                *file = File { hash, objects, problem: None };
                touched.extend(file.kinds());
                out.extend(file.objects.iter().flat_map(rejections).cloned().map(SourceEvent::Rejected));
            }
            Err(text) => {
                // The hash is forgotten, so that the former content is noticed when it comes back.
                file.hash = 0;
                let rest = if file.objects.is_empty() {
                    "passed over"
                } else {
                    "its last good content stays in force"
                };
                let text = format!("{}: {text}; {rest}", path.display());
                if file.problem.as_ref() != Some(&text) {
                    file.problem = Some(text.clone());
                    out.push(problem(text));
                }
            }
        }
    }

    /// All objects of a kind. Of two with the same name, that of the first file wins.
    fn merge(&self, kind: Kind, out: &mut Vec<SourceEvent>) {
        let mut winners: BTreeMap<&ObjectName, (&str, &Parsed)> = BTreeMap::new();
        for (file, content) in &self.files {
            for parsed in content.objects.iter().filter(|parsed| parsed.kind == kind) {
                let Some(name) = parsed.name() else { continue };
                match winners.get(name) {
                    Some((first, _)) => out.push(problem(format!(
                        "{kind} {name} is in {first} and again in {file}; the first one counts"
                    ))),
                    None => _ = winners.insert(name, (file, parsed)),
                }
            }
        }
        let (mut objects, mut keep): (Vec<Object>, Vec<ObjectName>) = (Vec::new(), Vec::new());
        for (name, (_, parsed)) in winners {
            match &parsed.outcome {
                Outcome::Keep(object) => objects.push(object.clone()),
                Outcome::Reject(_) => keep.push(name.clone()),
                Outcome::Ignore(..) => {}
            }
        }
        out.push(SourceEvent::Change(Change::Replace { kind, objects, keep }));
    }
}

fn problem(text: String) -> SourceEvent {
    SourceEvent::Problem { kind: None, text }
}

fn rejections(parsed: &Parsed) -> impl Iterator<Item = &Rejection> {
    let rejected = match &parsed.outcome {
        Outcome::Reject(rejection) => Some(rejection),
        Outcome::Keep(_) | Outcome::Ignore(..) => None,
    };
    parsed.notes.iter().chain(rejected)
}

/// The file names that count as manifests. Hidden files are editors' and the kubelet's business.
fn manifest_names(dir: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        if !name.starts_with('.') && format_of(&name).is_some() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn format_of(name: &str) -> Option<ManifestFormat> {
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(ManifestFormat::Yaml),
        "json" => Some(ManifestFormat::Json),
        _ => None,
    }
}

/// The objects in a file and the hash of its content; `None` when the hash is `known`.
fn read_manifest(
    path: &Path,
    known: u64,
    interner: &mut Interner,
) -> Result<Option<(u64, Vec<Parsed>)>, String> {
    let text = read_text(path, MAX_FILE_BYTES).map_err(|error| error.to_string())?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    // 0 stands for no content.
    let hash = hasher.finish().max(1);
    if hash == known {
        return Ok(None);
    }
    let format = path.to_str().and_then(format_of).unwrap_or(ManifestFormat::Yaml);
    let manifests = parse_manifests(&text, format, interner).map_err(|error| error.to_string())?;
    Ok(Some((hash, manifests.objects)))
}

#[cfg(test)]
mod tests;
