//! What `stat` says about an inode, in the units of the wire.

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, ServerId, Version};

/// A point in time: nanoseconds since 1970-01-01 UTC, negative before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From a `timespec`; years outside 1678 to 2262 saturate.
    pub fn from_parts(seconds: i64, nanoseconds: u32) -> Self {
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanoseconds)))
    }

    /// Seconds (rounded down) and the nanoseconds above them.
    pub fn parts(self) -> (i64, u32) {
        (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) as u32)
    }

    /// The same as a [`std::time::SystemTime`].
    pub fn to_system_time(self) -> std::time::SystemTime {
        let (seconds, nanos) = self.parts();
        let nanos = std::time::Duration::from_nanos(u64::from(nanos));
        let whole = std::time::Duration::from_secs(seconds.unsigned_abs());
        if seconds >= 0 { std::time::UNIX_EPOCH + whole + nanos } else { std::time::UNIX_EPOCH - whole + nanos }
    }

    /// From a [`std::time::SystemTime`].
    pub fn from_system_time(time: std::time::SystemTime) -> Self {
        let nanos = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Self(nanos(after)),
            Err(before) => Self(-nanos(before.duration())),
        }
    }
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// The attributes of an inode as the directory service last published them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The inode.
    pub ino: InodeId,
    /// Its type.
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky (0 to 0o7777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that lead here; 2 + subdirectories for a directory; 0 once removed but still open somewhere.
    pub nlink: u32,
    /// Device number (Linux `dev_t`), 0 for everything but devices.
    pub rdev: u32,
    /// Bytes: of the current version, or of the symlink's target.
    pub size: u64,
    /// Bytes that are stored (holes left out).
    pub stored: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub crtime: Timestamp,
    /// The current version; 0 while a file has never been published (it is empty).
    pub version: Version,
    /// True where the inode has at least one extended attribute.
    #[serde(default)]
    pub has_xattrs: bool,
}

impl Attributes {
    /// An inode of which only number and type are known.
    pub fn bare(ino: InodeId, kind: FileKind) -> Self {
        let zero = Timestamp(0);
        Self {
            ino,
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            rdev: 0,
            size: 0,
            stored: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            crtime: zero,
            version: Version(0),
            has_xattrs: false,
        }
    }
}

/// Where a file's current version lives and who writes the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The file server that takes the next commit, and the replicas it copies to, in this order. Empty for anything but a file.
    pub placement: Vec<ServerId>,
    /// Servers that hold the current version.
    pub holders: Vec<ServerId>,
    /// The current version's manifest; `None` at version 0.
    pub manifest: Option<crate::block::BlockHash>,
    /// The session that made the file with its write lock ([`Token::FRESH`](crate::ids::Token::FRESH)), as long as nobody has
    /// published or lost a later one. Who asks the lock service for the lock names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh: Option<crate::ids::SessionId>,
}

/// An inode as an operation returns it: attributes and, for files, where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What `stat` says.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// Where the content is.
    #[serde(default)]
    pub layout: Layout,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_before_the_epoch_round_trip() {
        for nanos in [-1_500_000_000, -1, 0, 1, 1_700_000_000_123_456_789] {
            let t = Timestamp(nanos);
            let (s, n) = t.parts();
            assert_eq!(Timestamp::from_parts(s, n), t);
            assert_eq!(Timestamp::from_system_time(t.to_system_time()), t);
        }
    }
}
