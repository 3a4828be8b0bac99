//! File servers: registration, heartbeats, what the directory wants from them.

use serde::{Deserialize, Serialize};

use crate::block::BlockHash;
use crate::ids::{InodeId, ServerId, Version};

/// A file server announces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterServer {
    /// A name for people and pins, unique in the cluster.
    pub name: String,
    /// A random name of its data directory, 32 hex digits: the same directory gets the same id again.
    pub store: String,
    /// Where others reach it.
    pub url: String,
    /// Bytes of its disk that blocks may use, used ones included.
    pub capacity: u64,
    /// Bytes of blocks.
    pub used: u64,
}

/// A file server's place in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id.
    pub server: ServerId,
    /// The cluster's name.
    pub cluster: String,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
}

/// A file server is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// The server.
    pub server: ServerId,
    /// Bytes that blocks may use, used ones included.
    pub capacity: u64,
    /// Bytes of blocks.
    pub used: u64,
    /// Versions from [`Orders::drop`] that are gone.
    #[serde(default)]
    pub dropped: Vec<VersionOf>,
}

/// One version of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionOf {
    /// The file.
    pub ino: InodeId,
    /// The version.
    pub version: Version,
}

/// What the directory wants from a file server. `NotFound` for an unknown id: register again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Versions that are no longer alive; repeated until reported as dropped. At most 4,000 a time.
    pub drop: Vec<VersionOf>,
    /// Versions to copy from another server. At most 100 a time.
    pub copy: Vec<CopyOrder>,
    /// Addresses of all servers that are known.
    pub servers: Vec<ServerRow>,
}

/// A missing copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOrder {
    /// The file and the version.
    #[serde(flatten)]
    pub what: VersionOf,
    /// Its content.
    pub manifest: BlockHash,
    /// Servers that have it.
    pub from: Vec<ServerId>,
}

/// A file server has made the copy that it was ordered to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportCopy {
    /// The server.
    pub server: ServerId,
    /// What it now holds.
    pub what: VersionOf,
}

/// The live versions that a server should hold, in order of inode and version: what it compares itself with at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldVersions {
    /// The server.
    pub server: ServerId,
    /// Versions behind this one; `None` from the start.
    #[serde(default)]
    pub after: Option<VersionOf>,
    /// Only this inode.
    #[serde(default)]
    pub ino: Option<InodeId>,
}

/// One page of [`HeldVersions`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPage {
    /// Version and manifest.
    pub versions: Vec<(VersionOf, BlockHash)>,
    /// Continue behind this one; `None` where nothing follows.
    pub next: Option<VersionOf>,
}

/// Lists file servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Servers {}

/// How well a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Heartbeats arrive.
    Alive,
    /// Three are missing: nothing new is placed there.
    Suspect,
    /// Ten are missing: its copies do not count.
    Dead,
}

/// One file server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRow {
    /// Its id.
    pub server: ServerId,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub url: String,
    /// How well it is.
    pub state: Liveness,
    /// Bytes that blocks may use.
    pub capacity: u64,
    /// Bytes of blocks.
    pub used: u64,
    /// Milliseconds since the last heartbeat.
    pub idle_ms: u64,
}
