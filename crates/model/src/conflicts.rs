//! Which claims lost against another Service's, and what changed about that.

use std::collections::BTreeMap;

use crate::{Family, Frontend, FrontendKey, ServiceName, ServicePortName};

/// A claim that lost, began to lose, or no longer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictChange<F: Family> {
    /// What is claimed twice.
    pub key: FrontendKey<F>,
    /// Whose claim is not in force.
    pub loser: ServicePortName,
    /// Whose claim was in force when changes were last taken; `None` if there was no conflict.
    pub before: Option<ServicePortName>,
    /// Whose claim is in force; `None` if there is no conflict any more.
    pub now: Option<ServicePortName>,
}

/// The number of conflicts, and what changed about them since that was last taken.
#[derive(Clone, Debug)]
pub(crate) struct Conflicts<F: Family> {
    count: usize,
    changes: BTreeMap<(FrontendKey<F>, ServiceName), ConflictChange<F>>,
}

impl<F: Family> Default for Conflicts<F> {
    fn default() -> Self {
        Self { count: 0, changes: BTreeMap::new() }
    }
}

/// The claims for one key: the one in force, and those that lost.
pub(crate) type Claims<'a, F> = (&'a Frontend<F>, &'a [Frontend<F>]);

impl<F: Family> Conflicts<F> {
    /// How many claims lose now.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Whether something may have changed since that was last taken.
    pub(crate) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Takes note of what became of the claims for a key.
    pub(crate) fn note(&mut self, before: Claims<'_, F>, now: Option<Claims<'_, F>>) {
        let (old_winner, old_losers) = before;
        let new_losers = now.map(|(_, losers)| losers).unwrap_or_default();
        self.count = self.count + new_losers.len() - old_losers.len();
        for loser in old_losers {
            self.entry(loser, Some(old_winner)).now = None;
        }
        for loser in new_losers {
            let winner = now.map(|(winner, _)| winner.service.clone());
            let change = self.entry(loser, None);
            change.loser = loser.service.clone();
            change.now = winner;
        }
    }

    fn entry(&mut self, loser: &Frontend<F>, winner: Option<&Frontend<F>>) -> &mut ConflictChange<F> {
        let name = loser.service.service.clone();
        self.changes.entry((loser.key, name)).or_insert_with(|| ConflictChange {
            key: loser.key,
            loser: loser.service.clone(),
            before: winner.map(|winner| winner.service.clone()),
            now: None,
        })
    }

    /// What changed since this was last asked, in the order of the keys. What came and went again is not in it.
    pub(crate) fn take(&mut self) -> Vec<ConflictChange<F>> {
        let changes = std::mem::take(&mut self.changes).into_values();
        changes.filter(|change| change.before != change.now).collect()
    }
}
