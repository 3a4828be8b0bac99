//! What is kept of the past: names that led elsewhere, and files that were removed.
//!
//! A file whose last name goes keeps its inode and its versions for as long as the policy
//! says. Its attributes, content and versions are asked for by its inode, as of any other.

use serde::{Deserialize, Serialize};

use crate::attributes::{Entry, Timestamp};
use crate::ids::{InodeId, Token, Version};
use crate::name::Name;

/// From now on refuses commits of a file with a token below this one. Sent by the lock service before it grants the lock
/// of a holder that vanished. Where the file does not exist any more there is nothing to refuse, and no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The file.
    pub ino: InodeId,
    /// The token.
    pub token: Token,
}

/// What a name led to before, newest first; the last [`NameHistory::MAX_ROWS`] changes are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameHistory {
    /// The directory, which may be a removed one.
    pub parent: InodeId,
    /// The name.
    pub name: Name,
}

impl NameHistory {
    /// Rows in one answer at the most.
    pub const MAX_ROWS: usize = 1000;
}

/// The removed entries of a directory, which may be a removed one itself: of each name that leads nowhere now, what
/// it led to last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removals {
    /// The directory.
    pub parent: InodeId,
    /// Only names behind this one.
    #[serde(default)]
    pub after: Option<Name>,
    /// Names at the most, 1 to 4096.
    pub limit: u32,
}

impl Removals {
    /// The largest page.
    pub const MAX_LIMIT: u32 = 4096;
}

/// An answer in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalPage {
    /// In order of names.
    pub rows: Vec<PastRow>,
    /// True where more names follow behind the last one.
    pub more: bool,
}

/// What a name led to until a certain time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRow {
    /// The name.
    pub name: Name,
    /// As it is now; `nlink` is 0 where no name is left.
    pub entry: Entry,
    /// The version that was current when the name ceased to lead here.
    pub version: Version,
    /// When that was, by the directory's clock.
    pub until: Timestamp,
    /// The directory's modification time before that.
    pub parent_mtime: Timestamp,
    /// Host and program that did it; empty where it was the service itself, or nobody with a session.
    pub by: String,
}

/// Gives a removed inode a name again. `Exists` where the name is taken, `NotFound` where nothing is kept of it any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undelete {
    /// The removed inode.
    pub ino: InodeId,
    /// Its new directory.
    pub parent: InodeId,
    /// Its new name.
    pub name: Name,
}
