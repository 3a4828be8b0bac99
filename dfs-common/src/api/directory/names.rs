//! Names, attributes and extended attributes.

use serde::{Deserialize, Serialize};

use crate::attributes::{Attributes, Entry, FileKind, Timestamp};
use crate::ids::{InodeId, ServerId};
use crate::name::{Name, Text};

/// Finds `name` in `parent`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookup {
    /// A directory.
    pub parent: InodeId,
    /// The entry.
    pub name: Name,
}

/// Attributes and layout of an inode (orphans too).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetAttributes {
    /// The inode.
    pub ino: InodeId,
}

/// Walks a path from the root, for clients without a mount. Symlinks on the way are followed
/// (40 at most, EINVAL above), the last component's only with `follow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// The path; a leading slash is optional, `.`, `..` and repeated slashes work.
    pub path: Text,
    /// Whether a symlink in the last place is followed.
    pub follow: bool,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The last directory on the way.
    pub parent: InodeId,
    /// The last component; `None` for the root.
    pub name: Option<Name>,
    /// What is there; `None` where only the last component is missing.
    pub entry: Option<Entry>,
}

/// One page of a directory in byte order of names, attributes included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The directory.
    pub ino: InodeId,
    /// Entries behind this name; `None` from the start.
    #[serde(default)]
    pub after: Option<Name>,
    /// At most this many, 1 to [`List::MAX_LIMIT`].
    pub limit: u32,
}

impl List {
    /// The most entries of one page.
    pub const MAX_LIMIT: u32 = 4096;
}

/// Entries of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The directory's parent (itself for the root).
    pub parent: InodeId,
    /// The entries, without `.` and `..`.
    pub entries: Vec<PageEntry>,
    /// True where nothing follows.
    pub end: bool,
}

/// One entry of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageEntry {
    /// Its name.
    pub name: Name,
    /// What it leads to.
    #[serde(flatten)]
    pub entry: Entry,
}

/// The target of a symlink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadLink {
    /// The symlink.
    pub ino: InodeId,
}

/// Creates an entry of any type: create, mkdir, mknod, symlink. `Exists` where the name is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Make {
    /// The directory.
    pub parent: InodeId,
    /// The new name.
    pub name: Name,
    /// The new inode's type.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Bits that are taken away, unless the directory has a default ACL: then that decides.
    #[serde(default)]
    pub umask: u32,
    /// Owner. Only root's word counts: whoever else asks becomes the owner.
    pub uid: u32,
    /// Group, likewise, unless the directory has sgid: then the directory's group is taken, and sgid for a new directory.
    pub gid: u32,
    /// For devices.
    #[serde(default)]
    pub rdev: u32,
    /// For symlinks: 1 to 4095 bytes.
    #[serde(default)]
    pub target: Option<Text>,
    /// For files: the session gets the write lock, with the token [`Token::FRESH`](crate::ids::Token::FRESH), if the answer's
    /// layout names it as `fresh`.
    #[serde(default)]
    pub lock: bool,
    /// So many numbers, at most [`Make::MAX_RESERVED`], for files that the session is going to make in the same directory or, where
    /// this makes a directory, in that one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reserve: u32,
    /// For files: made before, under a number from such a reservation. Repeating it changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth: Option<Birth>,
}

impl Make {
    /// The most numbers of one reservation.
    pub const MAX_RESERVED: u32 = 64;

    /// An entry of root's, with nothing else asked for.
    pub fn new(parent: InodeId, name: Name, kind: FileKind, mode: u32) -> Self {
        Self { parent, name, kind, mode, umask: 0, uid: 0, gid: 0, rdev: 0, target: None, lock: false, reserve: 0, birth: None }
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A file that a session made where it alone may: it has been there for that session since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Birth {
    /// Its number.
    pub ino: InodeId,
    /// The first number of the reservation that it is from; 0 where that is not known any more: it is looked for.
    pub first: InodeId,
    /// When it was made. Times to come, and times before the reservation, are corrected.
    pub at: Timestamp,
}

/// Numbers for new files in one directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The first; the others follow it.
    pub first: InodeId,
    /// For each number, the file servers of that file, the primary first.
    pub placements: Vec<Vec<ServerId>>,
}

/// A new name and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The inode.
    #[serde(flatten)]
    pub entry: Entry,
    /// The directory, afterwards.
    pub directory: Attributes,
    /// Numbers that were reserved, as asked. They are of use as long as the session has the directory to itself
    /// ([`Granted::exclusive`](super::Granted::exclusive)), and then to tell of what it made in that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Reservation>,
}

/// Gives an inode that is no directory another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The inode.
    pub ino: InodeId,
    /// Where the new name goes.
    pub parent: InodeId,
    /// The new name.
    pub name: Name,
}

/// Removes a name: unlink, or with `directory` rmdir.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// The directory.
    pub parent: InodeId,
    /// The name.
    pub name: Name,
    /// True for rmdir (`NotDirectory` for anything else), false for unlink (`IsDirectory` for a directory).
    pub directory: bool,
}

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The inode behind the name, with its new link count. At 0 it is an orphan that the
    /// removing session, too, has to release by [`RenewSession`].
    pub entry: Entry,
    /// The directory, afterwards.
    pub directory: Attributes,
}

/// What a rename does with an existing target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RenameMode {
    /// Replaces it, as rename(2).
    #[default]
    Replace,
    /// `Exists`, as RENAME_NOREPLACE.
    NoReplace,
    /// Swaps the two, as RENAME_EXCHANGE.
    Exchange,
}

/// Moves an entry, in one atomic step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// From this directory …
    pub parent: InodeId,
    /// … this name …
    pub name: Name,
    /// … to this directory …
    pub new_parent: InodeId,
    /// … under this name.
    pub new_name: Name,
    /// What happens to an existing target.
    #[serde(default)]
    pub mode: RenameMode,
}

/// What a rename did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// The moved inode.
    pub entry: Entry,
    /// The inode that was at the target before, with its new link count.
    pub replaced: Option<Entry>,
    /// The directory it was moved from, afterwards.
    pub directory: Attributes,
    /// The directory it was moved to, afterwards.
    pub new_directory: Attributes,
}

/// Asks whether the user on whose behalf the request is made may do all of that: `Forbidden` where not. For what the
/// directory service takes no part in, such as reading content that the client has or gets from a file server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// The inode.
    pub ino: InodeId,
    /// Reading it, listing it.
    #[serde(default)]
    pub read: bool,
    /// Writing it, changing its entries.
    #[serde(default)]
    pub write: bool,
    /// Running it, searching it.
    #[serde(default)]
    pub execute: bool,
    /// Having its content, for whatever purpose: to read it, to run it, or to change parts of it. Its owner may.
    #[serde(default)]
    pub content: bool,
}

impl Access {
    /// Only reading.
    pub fn read(ino: InodeId) -> Self {
        Self { read: true, ..Self::nothing(ino) }
    }

    /// Only writing.
    pub fn write(ino: InodeId) -> Self {
        Self { write: true, ..Self::nothing(ino) }
    }

    /// Only having the content.
    pub fn content(ino: InodeId) -> Self {
        Self { content: true, ..Self::nothing(ino) }
    }

    /// What everybody may.
    pub fn nothing(ino: InodeId) -> Self {
        Self { ino, read: false, write: false, execute: false, content: false }
    }
}

/// Changes attributes; `None` leaves one as it is. Sizes change by publishing, never here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAttributes {
    /// The inode.
    pub ino: InodeId,
    /// Permission bits.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Owner.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Last access.
    #[serde(default)]
    pub atime: Option<Timestamp>,
    /// Last change of content.
    #[serde(default)]
    pub mtime: Option<Timestamp>,
    /// True where these times are this moment's, which who may write the file may set, too. The directory's clock counts
    /// where the user is neither root nor the owner.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}

impl SetAttributes {
    /// No change yet.
    pub fn none(ino: InodeId) -> Self {
        Self { ino, mode: None, uid: None, gid: None, atime: None, mtime: None, now: false }
    }
}

/// Inodes were accessed. Where a time is later than the one that is known, it becomes the last access; nothing else changes,
/// and nobody who holds a lease is told. Inodes that are gone are passed over. Repeating it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accessed {
    /// Each inode with the time of its last access; times to come count as now. One to [`Accessed::MAX`] of them.
    pub times: Vec<(InodeId, Timestamp)>,
}

impl Accessed {
    /// The most inodes of one request.
    pub const MAX: usize = 4096;
}

/// The value of an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its full name (`user.comment`).
    pub name: Name,
}

/// The names of all extended attributes, in byte order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListXattrs {
    /// The inode.
    pub ino: InodeId,
}

/// When an extended attribute may be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XattrMode {
    /// Always.
    #[default]
    Set,
    /// Only where it is new (XATTR_CREATE), else `Exists`.
    Create,
    /// Only where it exists (XATTR_REPLACE), else `NoAttribute`.
    Replace,
}

/// Sets an extended attribute; values up to 65,536 bytes, names up to 65,536 bytes together, 1,000 attributes and 1 MiB in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its full name.
    pub name: Name,
    /// The value.
    pub value: Text,
    /// When.
    #[serde(default)]
    pub mode: XattrMode,
}

/// The extended attribute that describes a recoverable version, in the directory [`crate::ids::RECOVERED`].
pub const RECOVERED_XATTR: &str = "trusted.dfs.recovered";

/// Removes an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveXattr {
    /// The inode.
    pub ino: InodeId,
    /// Its full name.
    pub name: Name,
}
