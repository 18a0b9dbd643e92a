//! The objects, the resource version and the bounded history of changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::kinds::Kind;
use super::object::Object;

/// Objects of one kind by key.
pub(super) type Objects = BTreeMap<String, Arc<Object>>;

/// One change of one object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) kind: Kind,
    pub(super) before: Option<Arc<Object>>,
    pub(super) after: Option<Arc<Object>>,
}

/// Why there is no snapshot at a revision: the history no longer reaches back to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compacted;

/// Everything that the server remembers.
#[derive(Debug)]
pub(super) struct Store {
    objects: [Objects; Kind::ALL.len()],
    revision: u64,
    /// The state at this revision and later ones can be reconstructed.
    compacted: u64,
    history: VecDeque<Change>,
    history_limit: usize,
}

impl Store {
    /// An empty store at revision 1, which keeps up to `history_limit` changes.
    pub(super) fn new(history_limit: usize) -> Self {
        let objects = Default::default();
        Self { objects, revision: 1, compacted: 1, history: VecDeque::new(), history_limit }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision from which a watch may start.
    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(super) fn objects(&self, kind: Kind) -> &Objects {
        &self.objects[kind.index()]
    }

    pub(super) fn get(&self, kind: Kind, key: &str) -> Option<&Arc<Object>> {
        self.objects(kind).get(key)
    }

    /// Stores what `make` builds for the next revision, and returns it.
    pub(super) fn put<E>(&mut self, make: impl FnOnce(u64) -> Result<Object, E>) -> Result<Arc<Object>, E> {
        let revision = self.revision + 1;
        let object = Arc::new(make(revision)?);
        let before = self.objects[object.kind.index()].insert(object.key(), object.clone());
        self.record(Change { revision, kind: object.kind, before, after: Some(object.clone()) });
        Ok(object)
    }

    /// Removes an object, and returns its last state with the revision of its removal.
    pub(super) fn remove(&mut self, kind: Kind, key: &str) -> Option<Object> {
        let before = self.objects[kind.index()].remove(key)?;
        let revision = self.revision + 1;
        let last = before.with_resource_version(revision);
        self.record(Change { revision, kind, before: Some(before), after: None });
        Some(last)
    }

    /// Stores an object with the revision that it has, without history: nothing before this state can be
    /// asked for.
    pub(super) fn restore(&mut self, object: Object) {
        self.history.clear();
        self.revision = self.revision.max(object.resource_version);
        self.compacted = self.revision;
        self.objects[object.kind.index()].insert(object.key(), Arc::new(object));
    }

    /// Lets the revision jump forward without a change, as writes to other kinds do in a real cluster.
    pub(super) fn advance_to(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Forgets all history, so that every older revision has expired. The present revision expires too.
    pub(super) fn expire(&mut self) {
        self.history.clear();
        self.revision += 1;
        self.compacted = self.revision;
    }

    fn record(&mut self, change: Change) {
        self.revision = change.revision;
        self.history.push_back(change);
        while self.history.len() > self.history_limit {
            if let Some(oldest) = self.history.pop_front() {
                self.compacted = oldest.revision;
            }
        }
    }

    /// The changes after `revision`, oldest first.
    pub(super) fn changes_after(&self, revision: u64) -> Result<impl Iterator<Item = &Change>, Compacted> {
        if revision < self.compacted {
            return Err(Compacted);
        }
        let start = self.history.partition_point(|change| change.revision <= revision);
        Ok(self.history.range(start..))
    }

    /// The objects of a kind as they were at `revision`.
    pub(super) fn at(&self, kind: Kind, revision: u64) -> Result<Objects, Compacted> {
        if revision < self.compacted {
            return Err(Compacted);
        }
        let mut objects = self.objects(kind).clone();
        for change in
            self.history.iter().rev().take_while(|c| c.revision > revision).filter(|c| c.kind == kind)
        {
            match (&change.before, &change.after) {
                (Some(before), _) => {
                    objects.insert(before.key(), before.clone());
                }
                (None, Some(after)) => {
                    objects.remove(&after.key());
                }
                (None, None) => {}
            }
        }
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ObjectError;

    fn put(store: &mut Store, name: &str, note: &str) -> u64 {
        let value = json!({"metadata": {"name": name, "annotations": {"note": note}}});
        store.put(|rv| Object::new(Kind::Node, &value, rv)).map(|o| o.resource_version).unwrap()
    }

    fn names(objects: &Objects) -> Vec<&str> {
        objects.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_snapshot_undoes_later_changes() {
        let mut store = Store::new(100);
        put(&mut store, "a", "1");
        let then = put(&mut store, "b", "1");
        put(&mut store, "b", "2");
        store.remove(Kind::Node, "a").unwrap();
        put(&mut store, "c", "1");
        let old = store.at(Kind::Node, then).unwrap();
        assert_eq!(names(&old), ["a", "b"]);
        assert_eq!(old["b"].resource_version, then);
        assert_eq!(names(store.objects(Kind::Node)), ["b", "c"]);
    }

    #[test]
    fn history_is_bounded() {
        let mut store = Store::new(2);
        let revisions: Vec<u64> = (0..4).map(|i| put(&mut store, "a", &i.to_string())).collect();
        assert_eq!(store.compacted(), revisions[1]);
        assert_eq!(store.changes_after(revisions[1]).unwrap().count(), 2);
        assert!(store.changes_after(revisions[0]).is_err());
        store.expire();
        assert!(store.changes_after(revisions[3]).is_err());
        assert_eq!(store.changes_after(store.revision()).unwrap().count(), 0);
    }

    #[test]
    fn a_refused_object_changes_nothing() {
        let mut store = Store::new(2);
        let revision = store.revision();
        assert!(store.put(|_| Err::<Object, _>(ObjectError::NoName)).is_err());
        assert_eq!(store.revision(), revision);
    }
}
