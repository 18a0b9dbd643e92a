//! What can't be used at the moment, for those who ask.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::Rejection;
use inspect::document;
use model::{Change, Kind, ObjectName};

/// So many objects are remembered; a cluster full of bad objects must not fill the memory.
const MAX: usize = 1000;
/// And so many of each object.
const MAX_OF_OBJECT: usize = 16;

/// The last rejections of each object, until it is accepted as a whole or gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejections(Arc<Mutex<BTreeMap<Key, Entry>>>);

type Key = (Kind, Option<ObjectName>);

#[derive(Debug, Default)]
struct Entry {
    told: Vec<document::Rejection>,
    /// The change that it belongs to is still to come: a source tells what it left out of a form before the form.
    is_new: bool,
}

impl Rejections {
    /// Something can't be used.
    pub(crate) fn add(&self, rejection: &Rejection) {
        let mut known = self.lock();
        let name = rejection.name.as_ref();
        let told = document::Rejection {
            kind: rejection.kind.to_string(),
            namespace: name.map(|name| name.namespace.to_string()).unwrap_or_default(),
            name: name.map(|name| name.name.to_string()).unwrap_or_default(),
            field: rejection.path.clone(),
            reason: rejection.reason.clone(),
        };
        let key = (rejection.kind, name.cloned());
        if known.len() >= MAX && !known.contains_key(&key) {
            return;
        }
        let entry = known.entry(key).or_default();
        if !std::mem::replace(&mut entry.is_new, true) {
            entry.told.clear();
        }
        if entry.told.len() < MAX_OF_OBJECT && !entry.told.contains(&told) {
            entry.told.push(told);
        }
    }

    /// Objects have another form now, or are gone.
    pub(crate) fn follow(&self, change: &Change) {
        let mut known = self.lock();
        if known.is_empty() {
            return;
        }
        let mut settle = |is_meant: &dyn Fn(Kind, Option<&ObjectName>) -> bool, keep: &[ObjectName]| {
            known.retain(|(kind, name), entry| {
                if !is_meant(*kind, name.as_ref()) {
                    return true;
                }
                let is_kept = name.as_ref().is_some_and(|name| keep.contains(name));
                std::mem::take(&mut entry.is_new) || is_kept
            });
        };
        match change {
            Change::Apply(object) => {
                settle(&|kind, name| kind == object.kind() && name == Some(object.name()), &[]);
            }
            Change::Delete(of, gone) => settle(&|kind, name| kind == *of && name == Some(gone), &[]),
            Change::Replace { kind: of, keep, .. } => settle(&|kind, _| kind == *of, keep),
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<document::Rejection> {
        self.lock().values().flat_map(|entry| &entry.told).cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(name: &str, reason: &str) -> Rejection {
        Rejection {
            kind: Kind::Service,
            name: Some(ObjectName::new("ns", name)),
            path: "spec".into(),
            reason: reason.into(),
        }
    }

    fn names(rejections: &Rejections) -> Vec<String> {
        rejections.all().iter().map(|told| format!("{}: {}", told.name, told.reason)).collect()
    }

    fn gone(name: &str) -> Change {
        Change::Delete(Kind::Service, ObjectName::new("ns", name))
    }

    fn listing(keep: &[&str]) -> Change {
        let keep = keep.iter().map(|name| ObjectName::new("ns", name)).collect();
        Change::Replace { kind: Kind::Service, objects: vec![], keep }
    }

    #[test]
    fn a_rejection_lasts_as_long_as_the_object_is_bad() {
        let rejections = Rejections::default();
        rejections.follow(&listing(&[]));
        rejections.add(&rejection("a", "x"));
        rejections.add(&rejection("a", "x"));
        rejections.add(&rejection("a", "y"));
        rejections.add(&rejection("b", "z"));
        assert_eq!(names(&rejections), ["a: x", "a: y", "b: z"]);
        // The listing that they are from, then one without `b` in which `a` is still bad.
        rejections.follow(&listing(&[]));
        assert_eq!(names(&rejections), ["a: x", "a: y", "b: z"]);
        rejections.add(&rejection("a", "z"));
        rejections.follow(&listing(&[]));
        assert_eq!(names(&rejections), ["a: z"]);
        rejections.follow(&listing(&["a"]));
        rejections.follow(&Change::Delete(Kind::EndpointSlice, ObjectName::new("ns", "a")));
        assert_eq!(names(&rejections), ["a: z"]);
        rejections.follow(&gone("a"));
        assert!(rejections.all().is_empty());
    }

    #[test]
    fn there_is_a_limit() {
        let rejections = Rejections::default();
        for n in 0..2 * MAX {
            rejections.add(&rejection(&n.to_string(), "x"));
            rejections.add(&rejection("0", &n.to_string()));
        }
        assert_eq!(rejections.all().len(), MAX + MAX_OF_OBJECT - 1);
    }
}
