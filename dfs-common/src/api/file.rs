//! A file server: blocks, manifests, commits.
//!
//! | resource | body | answer |
//! |---|---|---|
//! | `POST /v1/file/commit`, meta [`Commit`] | manifest, then the inline blocks, then patches | the published [`crate::attributes::Entry`] |
//! | `POST /v1/file/replicate`, meta [`Replicate`] | the same, from the primary to a replica | [`super::Done`] |
//! | `PUT /v1/file/blocks/HASH?replicas=2,3` | one block | [`super::Done`] |
//! | `POST /v1/file/blocks/HASH?replicas=2,3` | the same as a [`crate::patch::Patch`] | [`super::Done`] |
//! | `GET /v1/file/blocks/HASH` | | one block (between servers) |
//! | `GET /v1/file/versions/INO/VERSION/manifest`, optional `?start=1` | | the manifest's stored form; with `start` followed by the first block |
//! | `GET /v1/file/versions/INO/VERSION/data`, optional `Range`, `?unchecked=1` | | content, holes as zeros; 206 for a range; with `unchecked` the reader compares hashes |
//! | `POST /v1/file/missing` | [`Missing`] | [`MissingBlocks`] |
//! | `POST /v1/file/status` | [`Status`] | [`FileStatus`] |

use serde::{Deserialize, Serialize};

use super::directory::{Make, SetAttributes};
use super::operations;
use crate::attributes::Timestamp;
use crate::block::BlockHash;
use crate::ids::{InodeId, ServerId, SessionId, Token, Version};

operations! {
    Missing => "/v1/file/missing", false, MissingBlocks;
    Status => "/v1/file/status", false, FileStatus;
}

/// Path of a commit.
pub const COMMIT: &str = "/v1/file/commit";
/// Path of a copy to a replica.
pub const REPLICATE: &str = "/v1/file/replicate";
/// Prefix of a block's path.
pub const BLOCKS: &str = "/v1/file/blocks/";
/// Prefix of a version's paths.
pub const VERSIONS: &str = "/v1/file/versions/";

/// The most bytes of content that one read answers.
pub const MAX_READ: u64 = 8 << 20;
/// The most bytes of blocks that a commit carries inline.
pub const MAX_INLINE: usize = 1 << 20;
/// The most bytes of blocks that the patches of one commit make.
pub const MAX_PATCHED: usize = 16 << 20;

/// A new version of a file. Its body is the manifest (`manifest_len` bytes), followed by the blocks of
/// `inline` one after the other, and then by the patches of `patches`; every other block of the manifest must have been put
/// before, or be part of a version that the server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The file.
    pub ino: InodeId,
    /// The session that holds the write lock.
    pub session: SessionId,
    /// The write lock's token.
    pub token: Token,
    /// The version that this one was built on; it becomes `base` + 1.
    pub base: Version,
    /// When the content last changed.
    pub mtime: Timestamp,
    /// Bytes of the manifest at the start of the body.
    pub manifest_len: u32,
    /// They are not the manifest but what differs from this one, which the server has ([`crate::block::Manifest::encode_delta`]);
    /// `NotFound` where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_base: Option<BlockHash>,
    /// Lengths in bytes of the inline blocks.
    pub inline: Vec<u32>,
    /// Lengths in bytes of the patches (see [`crate::patch`]). `NotFound` where one cannot be applied: the whole block must be sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<u32>,
    /// The file's other servers.
    pub replicas: Vec<ServerId>,
    /// True: the answer waits for the disks of all copies and of the directory (fsync).
    pub durable: bool,
    /// True: the writer goes on, see [`super::directory::Publish::interim`].
    #[serde(default)]
    pub interim: bool,
    /// See [`super::directory::Publish::goes_on`].
    #[serde(default)]
    pub goes_on: bool,
    /// See [`super::directory::Publish::set`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetAttributes>,
    /// See [`super::directory::Publish::make`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub make: Option<Make>,
}

/// A version for a replica. The body is as in [`Commit`]; blocks that the replica lacks it fetches from `primary`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// The file.
    pub ino: InodeId,
    /// The version that is about to be published.
    pub version: Version,
    /// Who has all blocks.
    pub primary: ServerId,
    /// Bytes of the manifest at the start of the body.
    pub manifest_len: u32,
    /// As in [`Commit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_base: Option<BlockHash>,
    /// Lengths in bytes of the inline blocks.
    pub inline: Vec<u32>,
    /// Those of the patches, as in [`Commit`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<u32>,
    /// True: the answer waits for the disk.
    pub durable: bool,
}

/// Asks which blocks must still be sent. Those that the server has stay pinned for the session: for an hour, and for ten minutes after its last request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The session.
    pub session: SessionId,
    /// At most [`Missing::MAX`].
    pub hashes: Vec<BlockHash>,
}

impl Missing {
    /// The most hashes of one question.
    pub const MAX: usize = 4096;
}

/// Which are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingBlocks {
    /// Places in [`Missing::hashes`], rising.
    pub missing: Vec<u32>,
}

/// The file server in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {}

/// Answer to [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Program version.
    pub program: String,
    /// Its id; `None` before the directory has answered its registration.
    pub server: Option<ServerId>,
    /// Its name.
    pub name: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Versions held.
    pub versions: u64,
    /// Blocks held, manifests included.
    pub blocks: u64,
    /// Bytes of these.
    pub used: u64,
    /// Bytes that blocks may use.
    pub capacity: u64,
    /// Blocks found broken since it started.
    pub corrupt: u64,
}
