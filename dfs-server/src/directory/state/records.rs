//! The directory's stored values: a format byte, then postcard.
//!
//! A record that cannot be read is `Corrupt`, never guessed at. A record grows by fields
//! at its end whose default is encoded as one byte of zero; its format is one more than
//! the count of these, so that every earlier one can be read. Any other change of shape
//! needs a reader of its own.

use dfs_common::api::directory::OpenSession;
use dfs_common::attributes::{Attributes, Entry, FileKind, Layout, Timestamp};
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, ServerId, SessionId, Token, Version};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::Value;

/// A stored value.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// For messages.
    const WHAT: &'static str;
    /// One more than the number of fields that were added at its end.
    const FORMAT: u8;

    fn encode(&self) -> Value {
        postcard::to_extend(self, vec![Self::FORMAT]).expect("records are plain data")
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("stored {}: {why}", Self::WHAT));
        match bytes.split_first() {
            Some((&format, rest)) if format == Self::FORMAT => postcard::from_bytes(rest).map_err(|e| corrupt(e.to_string())),
            Some((&format, rest)) if (1..Self::FORMAT).contains(&format) => {
                let added = vec![0; usize::from(Self::FORMAT - format)];
                postcard::from_bytes(&[rest, &added].concat()).map_err(|e| corrupt(e.to_string()))
            }
            Some((other, _)) => Err(corrupt(format!("format {other} is not known"))),
            None => Err(corrupt("it is empty".to_owned())),
        }
    }
}

macro_rules! records {
    ($($type:ty: $what:literal, $format:literal;)*) => {
        $(impl Record for $type {
            const WHAT: &'static str = $what;
            const FORMAT: u8 = $format;
        })*
    };
}

records! {
    Inode: "inode", 2;
    Dentry: "directory entry", 1;
    VersionRecord: "version", 3;
    Orphan: "removed inode", 2;
    Past: "past of a name", 1;
    PastName: "name of the past", 1;
    UnderReplicated: "missing copies", 1;
    SessionRecord: "session", 1;
    ServerRecord: "server", 1;
    StoredReply: "reply", 1;
    Number: "number", 1;
    Reserved: "reserved numbers", 1;
}

/// Everything about an inode but its names, xattrs and older versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) rdev: u32,
    pub(crate) size: u64,
    pub(crate) stored: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) crtime: Timestamp,
    pub(crate) version: Version,
    pub(crate) xattrs: u32,
    /// Bytes of names and values of these.
    pub(crate) xattr_bytes: u32,
    /// Of a directory: where it lies, or lay; the root and RECOVERED lie in themselves.
    pub(crate) parent: InodeId,
    pub(crate) target: Vec<u8>,
    pub(crate) placement: Vec<ServerId>,
    /// The servers that a pin allowed when the file was made; empty: any.
    pub(crate) pin: Vec<ServerId>,
    pub(crate) holders: Vec<ServerId>,
    pub(crate) manifest: Option<[u8; 32]>,
    /// The highest token that published or was announced by the lock service, or the maker's.
    pub(crate) fence: Token,
    /// The session that was given the first lock with the file; 0: none was.
    pub(crate) maker: SessionId,
}

impl Inode {
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Whether a copy may go to `server`.
    pub(crate) fn may_live_on(&self, server: ServerId) -> bool {
        self.pin.is_empty() || self.pin.contains(&server)
    }

    /// Copies that the file should have where `copies` is the rule; a pin to fewer servers wants fewer.
    pub(crate) fn wanted_copies(&self, copies: u32) -> usize {
        let copies = (copies as usize).max(1);
        if self.pin.is_empty() { copies } else { copies.min(self.pin.len()) }
    }

    /// Who was given the first lock with the file, where no other one is known of.
    fn fresh(&self) -> Option<SessionId> {
        (self.fence == Token::FRESH && self.maker.0 != 0).then_some(self.maker)
    }

    /// As operations return it.
    pub(crate) fn entry(&self, ino: InodeId) -> Entry {
        let attributes = Attributes {
            ino,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            rdev: self.rdev,
            size: self.size,
            stored: self.stored,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
            version: self.version,
            has_xattrs: self.xattrs > 0,
        };
        let layout =
            Layout { placement: self.placement.clone(), holders: self.holders.clone(), manifest: self.manifest.map(BlockHash), fresh: self.fresh() };
        Entry { attributes, layout }
    }
}

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dentry {
    pub(crate) ino: InodeId,
}

/// One kept version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VersionRecord {
    pub(crate) manifest: [u8; 32],
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) published: Timestamp,
    pub(crate) by: String,
    /// With the token, tells a repeated publish from another one.
    pub(crate) session: SessionId,
    pub(crate) token: Token,
    pub(crate) holders: Vec<ServerId>,
    /// Goes when the same grant of the lock publishes the next.
    pub(crate) interim: bool,
    /// When it ceased to be current, which table `w` knows, too; 0 while it is.
    pub(crate) superseded: Timestamp,
}

/// A removed inode: while sessions may have it open, or while the policy keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orphan {
    /// Those that might have it open when it was removed; which of them have let go since is in memory, until all have.
    pub(crate) sessions: Vec<SessionId>,
    /// The number of the row of the past that keeps it; 0: none does.
    pub(crate) kept: u64,
}

/// What a name led to before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) ino: InodeId,
    /// The version that was current then.
    pub(crate) version: Version,
    pub(crate) until: Timestamp,
    /// The directory's, before.
    pub(crate) parent_mtime: Timestamp,
    pub(crate) by: String,
    /// False where the inode was renamed.
    pub(crate) removed: bool,
}

/// Where a row of the past lies, and what it may keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastName {
    pub(crate) ino: InodeId,
    pub(crate) parent: InodeId,
    pub(crate) name: Vec<u8>,
}

/// A file whose current version lacks copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnderReplicated {
    /// Servers that were meant to have it and come first when they are alive.
    pub(crate) missing: Vec<ServerId>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord {
    pub(crate) client: OpenSession,
    pub(crate) opened: Timestamp,
}

/// A registered file server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    pub(crate) name: String,
    pub(crate) store: String,
    pub(crate) url: String,
    pub(crate) capacity: u64,
    pub(crate) used: u64,
}

/// The last answer in a session's slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredReply {
    pub(crate) sequence: u64,
    /// JSON, or the code and message of an error.
    pub(crate) outcome: Result<Vec<u8>, (String, String)>,
}

/// Numbers that were reserved for new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reserved {
    pub(crate) at: Timestamp,
    /// The directory in which they are of use.
    pub(crate) parent: InodeId,
    pub(crate) count: u32,
    /// Those that were not used yet: bit 0 is the first one.
    pub(crate) left: u64,
}

/// A counter's high-water mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Number(pub(crate) u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_formats_are_refused() {
        let number = Number(300).encode();
        assert_eq!(Number::decode(&number).unwrap(), Number(300));
        for bad in [&[][..], &[0, 1], &[2, 1], &[1], &[1, 0xff, 0xff]] {
            assert_eq!(Number::decode(bad).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn earlier_formats_are_read() {
        let sessions = vec![SessionId(3), SessionId(700)];
        let orphan = Orphan { sessions: sessions.clone(), kept: 0 };
        assert_eq!(Orphan::decode(&postcard::to_extend(&sessions, vec![1]).unwrap()).unwrap(), orphan);
        assert_eq!(Orphan::decode(&orphan.encode()).unwrap(), orphan);
        let record = VersionRecord {
            manifest: [7; 32],
            size: 300,
            mtime: Timestamp(-1),
            published: Timestamp(5),
            by: "somebody".to_owned(),
            session: SessionId(1),
            token: Token(2),
            holders: vec![ServerId(9)],
            interim: false,
            superseded: Timestamp(0),
        };
        let mut first = record.encode();
        first.truncate(first.len() - 2);
        first[0] = 1;
        assert_eq!(VersionRecord::decode(&first).unwrap(), record);
    }
}
