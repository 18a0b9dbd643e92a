//! The input of `iptables-restore --noflush --counters`.

use std::fmt;

use crate::{ChainName, TableName};

/// Changes of tables. Each section is atomic, and they are carried out in order; behind a section that fails, none is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restore {
    /// Changes, a table each. A table may occur several times.
    pub sections: Vec<Section>,
}

/// Changes of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The table.
    pub table: TableName,
    /// The changes, in order; none refers to a chain that is made later.
    pub edits: Vec<Edit>,
}

/// A change of a table. Rules are given by their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Makes a chain, or empties it if it is there.
    Reset(ChainName),
    /// Adds a rule at the end of a chain.
    Append(ChainName, Box<str>),
    /// Adds a rule at the beginning of a chain.
    Insert(ChainName, Box<str>),
    /// Deletes the first rule of a chain that has this text.
    Delete(ChainName, Box<str>),
    /// Deletes an empty chain that no rule refers to.
    Remove(ChainName),
    /// Changes nothing, and is refused unless a chain has a rule with this text.
    Check(ChainName, Box<str>),
}

impl Restore {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// How many changes there are.
    pub fn edit_count(&self) -> usize {
        self.sections.iter().map(|section| section.edits.len()).sum()
    }

    /// Adds a section, if it changes anything.
    pub fn push(&mut self, table: TableName, edits: Vec<Edit>) {
        if !edits.is_empty() {
            self.sections.push(Section { table, edits });
        }
    }
}

impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Section { table, edits } in &self.sections {
            writeln!(f, "*{table}")?;
            for edit in edits {
                writeln!(f, "{edit}")?;
            }
            f.write_str("COMMIT\n")?;
        }
        Ok(())
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(chain) => write!(f, ":{chain} - [0:0]"),
            Self::Append(chain, rule) => write!(f, "-A {chain} {rule}"),
            Self::Insert(chain, rule) => write!(f, "-I {chain} {rule}"),
            Self::Delete(chain, rule) => write!(f, "-D {chain} {rule}"),
            Self::Remove(chain) => write!(f, "-X {chain}"),
            Self::Check(chain, rule) => write!(f, "-C {chain} {rule}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_committed_in_order() {
        let chain = || ChainName::from_static("KUBE-X");
        let mut restore = Restore::default();
        restore.push(TableName::Nat, vec![]);
        assert!(restore.is_empty());
        restore.push(TableName::Filter, vec![Edit::Reset(chain()), Edit::Append(chain(), "-j DROP".into())]);
        restore.push(TableName::Nat, vec![Edit::Delete(chain(), "-j ACCEPT".into()), Edit::Remove(chain())]);
        assert_eq!(restore.edit_count(), 4);
        assert_eq!(
            restore.to_string(),
            "*filter\n:KUBE-X - [0:0]\n-A KUBE-X -j DROP\nCOMMIT\n*nat\n-D KUBE-X -j ACCEPT\n-X KUBE-X\nCOMMIT\n"
        );
    }
}
