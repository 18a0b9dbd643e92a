//! What is known of the objects of one kind: a listing under way, and the versions already delivered.

use std::collections::{BTreeMap, HashMap};

use api::{Outcome, Parsed};
use model::{Change, Kind, Object, ObjectName};

/// Below this many, names of deleted objects are not worth forgetting.
const MIN_TOMBSTONES: usize = 1024;

/// A listing under way. A name that comes twice counts as it came last.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    items: BTreeMap<ObjectName, Item>,
}

#[derive(Debug)]
struct Item {
    /// The object, unless its form can't be used.
    object: Option<Object>,
    version: Option<u64>,
}

impl Listing {
    /// Takes an object in. One that does not concern us, or has no name to keep it by, is left out.
    pub(crate) fn put(&mut self, parsed: Parsed) {
        let version = number(&parsed.resource_version);
        match parsed.outcome {
            Outcome::Keep(object) => {
                let item = Item { version, object: None };
                self.items.insert(object.name().clone(), Item { object: Some(object), ..item });
            }
            Outcome::Ignore(name, _) => self.remove(&name),
            Outcome::Reject(rejection) => {
                if let Some(name) = rejection.name {
                    self.items.insert(name, Item { object: None, version });
                }
            }
        }
    }

    /// Takes an object out that was deleted while the listing went on.
    pub(crate) fn remove(&mut self, name: &ObjectName) {
        self.items.remove(name);
    }

    /// The listing as one change, and the versions in it.
    pub(crate) fn finish(self, kind: Kind) -> (Change, Versions) {
        let (mut objects, mut keep) = (Vec::with_capacity(self.items.len()), Vec::new());
        let mut versions = Versions::default();
        for (name, item) in self.items {
            if let Some(version) = item.version {
                versions.known.insert(name.clone(), Seen { version, is_deleted: false });
            }
            match item.object {
                Some(object) => objects.push(object),
                None => keep.push(name),
            }
        }
        (Change::Replace { kind, objects, keep }, versions)
    }
}

/// The newest version of each object that a watch has delivered, for passing over what comes twice or too late.
///
/// Versions are opaque texts by contract, but every server's are numbers that grow, and since Kubernetes 1.35 clients
/// may compare them (KEP-5504). Where one is no number, the object is simply taken as it comes.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    known: HashMap<ObjectName, Seen>,
    n_deleted: usize,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    version: u64,
    is_deleted: bool,
}

impl Versions {
    /// Whether this version is news. If so, it is noted.
    pub(crate) fn advance(&mut self, name: &ObjectName, version: &str, is_deleted: bool) -> bool {
        let Some(version) = number(version) else { return true };
        match self.known.get_mut(name) {
            Some(seen) if seen.version >= version => return false,
            Some(seen) => {
                self.n_deleted = self.n_deleted + usize::from(is_deleted) - usize::from(seen.is_deleted);
                *seen = Seen { version, is_deleted };
            }
            None => {
                self.n_deleted += usize::from(is_deleted);
                self.known.insert(name.clone(), Seen { version, is_deleted });
            }
        }
        self.forget_deleted();
        true
    }

    /// Names of deleted objects are kept so that a late event does not bring one back, but not for ever.
    fn forget_deleted(&mut self) {
        if self.n_deleted > MIN_TOMBSTONES.max(self.known.len() / 2) {
            self.known.retain(|_, seen| !seen.is_deleted);
            self.n_deleted = 0;
        }
    }
}

/// A resource version as a number. etcd's revisions are signed, so what is beyond them is no version of a server's.
pub(crate) fn number(resource_version: &str) -> Option<u64> {
    resource_version.parse().ok().filter(|version| i64::try_from(*version).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ObjectName {
        ObjectName::new("shop", text)
    }

    #[test]
    fn repeated_and_late_versions_are_no_news() {
        let mut versions = Versions::default();
        assert!(versions.advance(&name("a"), "5", false));
        assert!(!versions.advance(&name("a"), "5", false));
        assert!(!versions.advance(&name("a"), "4", true));
        assert!(versions.advance(&name("b"), "4", false));
        assert!(versions.advance(&name("a"), "7", true));
        assert!(!versions.advance(&name("a"), "6", false), "a late event must not bring it back");
        assert!(versions.advance(&name("a"), "8", false), "but it may be made anew");
        assert!(versions.advance(&name("a"), "opaque", false));
    }

    #[test]
    fn deleted_names_are_forgotten_in_the_end() {
        let mut versions = Versions::default();
        for i in 0..10_000u32 {
            assert!(versions.advance(&name(&format!("{i}")), &format!("{}", 2 * i + 1), false));
            assert!(versions.advance(&name(&format!("{i}")), &format!("{}", 2 * i + 2), true));
        }
        assert!(versions.known.len() <= 2 * MIN_TOMBSTONES, "{}", versions.known.len());
        assert!(versions.n_deleted <= versions.known.len());
    }
}
