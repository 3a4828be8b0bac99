//! Which removed inodes wait for which sessions, because these may have them open.
//!
//! The store knows who might have had one open when it was removed ([`Orphan`]); here is who of them has let go
//! since, which is written when all have. Invariant: what nobody waits for here, and the store
//! does not know, is among the unheld ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dfs_common::ids::{InodeId, SessionId};

use super::records::Orphan;

/// One orphan.
#[derive(Clone, Copy, Debug)]
struct Held {
    sessions: usize,
    /// What kept it when it was removed: tells it from the same inode, brought back and removed once more.
    kept: u64,
}

/// Who waits for what.
#[derive(Debug, Default)]
pub(crate) struct Open {
    /// By session; also by one that has ended, until they are released.
    pub(super) waiting: BTreeMap<SessionId, BTreeSet<InodeId>>,
    held: HashMap<InodeId, Held>,
    /// Those that the last sessions have let go in one commit: none of them knew that it was the last. With what kept them.
    unheld: BTreeMap<InodeId, u64>,
}

impl Open {
    /// An inode was removed, or is read as an orphan from the store.
    pub(super) fn insert(&mut self, ino: InodeId, orphan: &Orphan) {
        self.unheld.remove(&ino);
        for session in &orphan.sessions {
            self.waiting.entry(*session).or_default().insert(ino);
        }
        self.held.insert(ino, Held { sessions: orphan.sessions.len(), kept: orphan.kept });
    }

    /// `session` does not have it open, or it has a name again.
    pub(super) fn release(&mut self, ino: InodeId, session: SessionId) {
        let Some(waiting) = self.waiting.get_mut(&session) else { return };
        if !waiting.remove(&ino) {
            return;
        }
        if waiting.is_empty() {
            self.waiting.remove(&session);
        }
        let Some(held) = self.held.get_mut(&ino) else { return };
        held.sessions -= 1;
        if held.sessions == 0 {
            self.unheld.insert(ino, held.kept);
            self.held.remove(&ino);
        }
    }

    /// The store knows that nobody has it open.
    pub(super) fn settle(&mut self, ino: InodeId) {
        self.unheld.remove(&ino);
    }

    /// What kept `ino` when it was removed, if nobody else than `session` has it open.
    pub(super) fn kept_by_last(&self, session: SessionId, ino: InodeId) -> Option<u64> {
        let held = self.held.get(&ino).filter(|held| held.sessions == 1)?;
        self.waiting.get(&session)?.contains(&ino).then_some(held.kept)
    }

    /// Orphans that nobody has open, with what kept them when they were removed.
    pub(crate) fn unheld(&self) -> impl Iterator<Item = (InodeId, u64)> + '_ {
        self.unheld.iter().map(|(ino, kept)| (*ino, *kept))
    }
}
