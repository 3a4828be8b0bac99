//! The directory's stored values: a format byte, then postcard.
//!
//! A record that cannot be read is `Corrupt`, never guessed at. A changed shape gets a
//! new format byte and a reader for the old one.

use dfs_common::api::directory::OpenSession;
use dfs_common::attributes::{Attributes, Entry, FileKind, Layout, Timestamp};
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, ServerId, SessionId, Token, Version};
use dfs_common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::Value;

const FORMAT: u8 = 1;

/// A stored value.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// For messages.
    const WHAT: &'static str;

    fn encode(&self) -> Value {
        postcard::to_extend(self, vec![FORMAT]).expect("records are plain data")
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("stored {}: {why}", Self::WHAT));
        match bytes.split_first() {
            Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|e| corrupt(e.to_string())),
            Some((other, _)) => Err(corrupt(format!("format {other} is not known"))),
            None => Err(corrupt("it is empty".to_owned())),
        }
    }
}

macro_rules! records {
    ($($type:ty: $what:literal),* $(,)?) => { $(impl Record for $type { const WHAT: &'static str = $what; })* };
}

records! {
    Inode: "inode", Dentry: "directory entry", VersionRecord: "version", Orphan: "orphan", UnderReplicated: "missing copies",
    SessionRecord: "session", ServerRecord: "server", StoredReply: "reply", Number: "number",
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
    /// Of a directory: where it lies; the root lies in itself.
    pub(crate) parent: InodeId,
    pub(crate) target: Vec<u8>,
    pub(crate) placement: Vec<ServerId>,
    /// The servers that a pin allowed when the file was made; empty: any.
    pub(crate) pin: Vec<ServerId>,
    pub(crate) holders: Vec<ServerId>,
    pub(crate) manifest: Option<[u8; 32]>,
    /// The highest token that published.
    pub(crate) fence: Token,
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
        let layout = Layout { placement: self.placement.clone(), holders: self.holders.clone(), manifest: self.manifest.map(BlockHash) };
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
}

/// A removed inode and the sessions that may still have it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orphan {
    pub(crate) sessions: Vec<SessionId>,
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
        for bad in [&[][..], &[2, 1], &[FORMAT], &[FORMAT, 0xff, 0xff]] {
            assert_eq!(Number::decode(bad).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
