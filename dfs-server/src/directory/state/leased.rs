//! Which inodes an answer lets its session believe in: the table of the wire contract
//! (`dfs_common::api::directory`, leases), one line an operation. And which inodes
//! other answers tell of, without a lease, so that the session can open them.

use dfs_common::api::Operation;
use dfs_common::api::directory::*;
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::InodeId;
use dfs_common::{ErrorKind, Result};

/// An operation whose answers give leases.
pub(crate) trait Leased: Operation {
    /// The inodes that `answer` tells of; what fails tells of nothing, but for what is then known to be absent.
    fn inodes(&self, answer: &Result<Self::Reply>) -> Vec<InodeId>;

    /// The directory that the session wants to itself.
    fn exclusive(&self, _: &Result<Self::Reply>) -> Option<InodeId> {
        None
    }

    /// The most numbers of inodes that it takes.
    fn numbers(&self) -> u64 {
        1
    }
}

/// `ino`, unless the operation failed.
fn of<T>(answer: &Result<T>, ino: InodeId) -> Vec<InodeId> {
    if answer.is_ok() { vec![ino] } else { Vec::new() }
}

fn named(entry: &Entry) -> Option<InodeId> {
    (entry.attributes.nlink > 0).then_some(entry.attributes.ino)
}

impl Leased for Lookup {
    fn inodes(&self, answer: &Result<Entry>) -> Vec<InodeId> {
        match answer {
            Ok(entry) => vec![self.parent, entry.attributes.ino],
            Err(e) if e.kind() == ErrorKind::NotFound => vec![self.parent],
            Err(_) => Vec::new(),
        }
    }
}

impl Leased for GetXattr {
    fn inodes(&self, answer: &Result<Self::Reply>) -> Vec<InodeId> {
        match answer {
            Err(e) if e.kind() == ErrorKind::NoAttribute => vec![self.ino],
            answer => of(answer, self.ino),
        }
    }
}

macro_rules! one_inode {
    ($($operation:ty),*) => {
        $(impl Leased for $operation {
            fn inodes(&self, answer: &Result<Self::Reply>) -> Vec<InodeId> {
                of(answer, self.ino)
            }
        })*
    };
}
one_inode!(GetAttributes, ReadLink, ListXattrs, SetAttributes, SetXattr, RemoveXattr, Publish);

impl Leased for List {
    fn inodes(&self, answer: &Result<Page>) -> Vec<InodeId> {
        let Ok(page) = answer else { return Vec::new() };
        std::iter::once(self.ino).chain(page.entries.iter().map(|row| row.entry.attributes.ino)).collect()
    }
}

/// A directory and what got a name in it.
fn of_new_name(parent: InodeId, answer: &Result<Made>) -> Vec<InodeId> {
    answer.as_ref().map_or_else(|_| Vec::new(), |made| vec![parent, made.entry.attributes.ino])
}

macro_rules! new_name {
    ($($operation:ty),*) => {
        $(impl Leased for $operation {
            fn inodes(&self, answer: &Result<Made>) -> Vec<InodeId> {
                of_new_name(self.parent, answer)
            }
        })*
    };
}
new_name!(Link, Undelete);

impl Leased for Make {
    fn inodes(&self, answer: &Result<Made>) -> Vec<InodeId> {
        of_new_name(self.parent, answer)
    }

    fn exclusive(&self, answer: &Result<Made>) -> Option<InodeId> {
        let made = answer.as_ref().ok().filter(|made| made.reserved.is_some())?;
        Some(if self.kind == FileKind::Directory { made.entry.attributes.ino } else { self.parent })
    }

    fn numbers(&self) -> u64 {
        1 + u64::from(self.reserve.min(Make::MAX_RESERVED))
    }
}

impl Leased for Remove {
    fn inodes(&self, answer: &Result<Removed>) -> Vec<InodeId> {
        let Ok(removed) = answer else { return Vec::new() };
        std::iter::once(self.parent).chain(named(&removed.entry)).collect()
    }
}

impl Leased for Rename {
    fn inodes(&self, answer: &Result<Renamed>) -> Vec<InodeId> {
        let Ok(renamed) = answer else { return Vec::new() };
        let mut inodes = vec![self.parent, self.new_parent, renamed.entry.attributes.ino];
        inodes.extend(renamed.replaced.as_ref().and_then(named));
        inodes.sort_unstable();
        inodes.dedup();
        inodes
    }
}

/// An operation whose answers tell of inodes and give no leases.
pub(crate) trait Tells: Operation {
    /// The inodes that `reply` tells of.
    fn inodes(&self, reply: &Self::Reply) -> Vec<InodeId>;
}

impl Tells for NameHistory {
    fn inodes(&self, reply: &Vec<PastRow>) -> Vec<InodeId> {
        reply.iter().map(|row| row.entry.attributes.ino).collect()
    }
}

impl Tells for Versions {
    fn inodes(&self, _: &Vec<VersionRow>) -> Vec<InodeId> {
        vec![self.ino]
    }
}

impl Tells for HeldVersions {
    fn inodes(&self, reply: &HeldPage) -> Vec<InodeId> {
        reply.versions.iter().map(|(what, _)| what.ino).collect()
    }
}
