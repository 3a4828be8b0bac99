//! Which inodes changed lately, and at which revision: what a client that comes back
//! has to give up.
//!
//! Bounded; what lies further back than it reaches counts as changed.

use std::collections::{HashSet, VecDeque};

use dfs_common::ids::InodeId;

/// Changes that are remembered.
const CHANGES: usize = 65_536;

/// The last changes.
#[derive(Debug)]
pub(crate) struct History {
    changes: VecDeque<(u64, InodeId)>,
    /// Every change behind this revision is remembered.
    floor: u64,
    start: u64,
}

impl History {
    /// Nothing before `revision` is known.
    pub(crate) fn new(revision: u64) -> Self {
        Self { changes: VecDeque::new(), floor: revision, start: revision }
    }

    /// The revision with which it began.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// `inodes` changed with the commit that made `revision`.
    pub(crate) fn push(&mut self, revision: u64, inodes: &[InodeId]) {
        for &ino in inodes {
            if self.changes.len() == CHANGES
                && let Some((oldest, _)) = self.changes.pop_front()
            {
                self.floor = oldest;
            }
            self.changes.push_back((revision, ino));
        }
    }

    /// What has changed behind `revision`; `None` where that is not known any more.
    pub(crate) fn since(&self, revision: u64) -> Option<HashSet<InodeId>> {
        if revision < self.floor {
            return None;
        }
        let first = self.changes.partition_point(|change| change.0 <= revision);
        Some(self.changes.range(first..).map(|change| change.1).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_are_known_and_no_others() {
        let mut history = History::new(10);
        assert_eq!((history.since(9), history.since(10)), (None, Some(HashSet::new())));
        history.push(11, &[InodeId(1), InodeId(2)]);
        history.push(12, &[InodeId(1)]);
        assert_eq!(history.since(10), Some(HashSet::from([InodeId(1), InodeId(2)])));
        assert_eq!(history.since(11), Some(HashSet::from([InodeId(1)])));
        assert_eq!(history.since(12), Some(HashSet::new()));
        for revision in 13..13 + CHANGES as u64 - 3 {
            history.push(revision, &[InodeId(9)]);
        }
        assert!(history.since(10).is_some());
        history.push(1 << 20, &[InodeId(9)]);
        assert_eq!(history.since(10), None, "the first change is forgotten");
        assert_eq!(history.since(11), Some(HashSet::from([InodeId(1), InodeId(9)])));
        assert_eq!(history.since(1 << 20), Some(HashSet::new()));
    }
}
