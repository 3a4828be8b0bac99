//! What a mutation changes for those who hold leases, read from the rows that it would
//! write: so it is exact, for every operation, and a mutation that fails changes nothing.
//!
//! Rows of inodes are attributes (an xattr's row never changes without its inode's),
//! rows of entries are names; all others are nobody's business.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::Result;
use dfs_common::ids::InodeId;
use dfs_common::name::Name;

use super::keys;
use super::records::{Inode, Record};
use crate::store::{Key, Value};

/// Rows with their new values; `None`: deleted.
pub(crate) type Changes = BTreeMap<Key, Option<Value>>;

/// Something that a session may have a lease on and that is about to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Affected {
    pub(crate) ino: InodeId,
    /// Of a directory: the entry.
    pub(crate) name: Option<Name>,
    /// Whether the lease ends. That on a directory which goes on existing does not.
    pub(crate) over: bool,
}

/// Who has been told what: the inodes, with the names in them.
#[derive(Debug, Default)]
pub(crate) struct Told {
    things: BTreeSet<(InodeId, Option<Name>)>,
}

impl Told {
    /// Adds `affected`; false where it is known.
    pub(crate) fn insert(&mut self, affected: &Affected) -> bool {
        self.things.insert((affected.ino, affected.name.clone()))
    }

    /// Whether something of `ino` is in it: an event on a name says, too, that attributes change.
    pub(crate) fn has_inode(&self, ino: InodeId) -> bool {
        self.things.range((ino, None)..).next().is_some_and(|thing| thing.0 == ino)
    }

    fn has_name(&self, ino: InodeId, name: &[u8]) -> bool {
        self.things.iter().any(|thing| thing.0 == ino && thing.1.as_ref().is_some_and(|n| n.as_bytes() == name))
    }
}

/// The inodes that `changes` touches; one may come twice.
pub(crate) fn inodes(changes: &Changes) -> impl Iterator<Item = InodeId> + '_ {
    changes.keys().filter(|key| matches!(key.first(), Some(b'd' | b'i'))).map(|key| InodeId(keys::number_of(key)))
}

/// Whether `changes` touches something that is held (as `held` says) by a session which has not been told.
pub(crate) fn is_untold(changes: &Changes, told: Option<&Told>, held: impl Fn(InodeId) -> bool) -> bool {
    changes.keys().any(|key| {
        let ino = InodeId(keys::number_of(key));
        let is_told = |told: &Told| match key.first() {
            Some(b'd') => told.has_name(ino, keys::name_of(key)),
            _ => told.has_inode(ino),
        };
        matches!(key.first(), Some(b'd' | b'i')) && held(ino) && !told.is_some_and(is_told)
    })
}

/// All that `changes` affects.
pub(crate) fn affected(changes: &Changes) -> Result<Vec<Affected>> {
    let mut out = Vec::new();
    // Entries come before inodes in the order of keys.
    for (key, value) in changes {
        let ino = InodeId(keys::number_of(key));
        match key.first() {
            Some(b'd') => out.push(Affected { ino, name: Some(Name::new(keys::name_of(key))?), over: false }),
            Some(b'i') => {
                let inode = value.as_ref().map(|value| Inode::decode(value)).transpose()?;
                let over = inode.is_none_or(|inode| !inode.is_directory() || inode.nlink == 0);
                if over || !out.iter().any(|thing| thing.ino == ino) {
                    out.push(Affected { ino, name: None, over });
                }
            }
            _ => {}
        }
    }
    Ok(out)
}
