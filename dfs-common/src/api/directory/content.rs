//! Versions: where the next one goes, its publication, the ones that are kept.

use serde::{Deserialize, Serialize};

use super::{Make, SetAttributes};
use crate::attributes::Timestamp;
use crate::block::BlockHash;
use crate::ids::{InodeId, ServerId, SessionId, Token, Version};

/// Names the servers for a file's next commit again, because one of them did not answer the client.
/// A file with content keeps a holder of its current version as its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The file.
    pub ino: InodeId,
    /// Servers that the client could not use.
    pub avoid: Vec<ServerId>,
}

/// Publishes a version; sent by the primary once the copies exist. The new version is `base` + 1.
/// `Conflict` where `base` is not current, `Fenced` where `token` is older than one that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The file.
    pub ino: InodeId,
    /// The session that holds the write lock: who the version is by.
    pub session: SessionId,
    /// The write lock's token.
    pub token: Token,
    /// The version that this one was built on.
    pub base: Version,
    /// The new content.
    pub manifest: BlockHash,
    /// Its length in bytes.
    pub size: u64,
    /// Its bytes without holes.
    pub stored: u64,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// Servers that hold it, the primary first.
    pub holders: Vec<ServerId>,
    /// Servers that should hold it and do not yet.
    #[serde(default)]
    pub missing: Vec<ServerId>,
    /// True: the reply waits until the directory's disk has it (fsync).
    #[serde(default)]
    pub durable: bool,
    /// True: the writer goes on (fsync), and the version is dropped once the same grant of the lock publishes the next with `goes_on`.
    #[serde(default)]
    pub interim: bool,
    /// True: nobody has closed the file since the writer made `base`. Where that is interim, of the same grant, it goes.
    #[serde(default)]
    pub goes_on: bool,
    /// Attributes of the same file that change in the same step, checked as [`SetAttributes`] is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetAttributes>,
    /// The file is made in the same step, unless it was before: with a [`Birth`](super::Birth) of the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub make: Option<Make>,
}

/// The kept versions of a file, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// The file.
    pub ino: InodeId,
}

/// One kept version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Its number.
    pub version: Version,
    /// Its content.
    pub manifest: BlockHash,
    /// Bytes.
    pub size: u64,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// When it was published, by the directory's clock.
    pub published: Timestamp,
    /// Host and program that wrote it.
    pub by: String,
    /// Servers that hold it.
    pub holders: Vec<ServerId>,
    /// Published by a writer that went on.
    #[serde(default)]
    pub interim: bool,
}
