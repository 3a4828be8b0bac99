//! Client sessions: opened at mount, renewed, ended.

use serde::{Deserialize, Serialize};

use crate::attributes::Timestamp;
use crate::ids::{InodeId, SessionId};
use crate::user::Squash;

/// Opens a session. Not tied to a [`crate::wire::Replay`]: a session that was opened twice expires unused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// The client's host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// Program and version, as in `dfs-mount 0.1.0`.
    pub program: String,
    /// Where it is mounted; empty for the command line.
    pub mountpoint: String,
}

/// A new session and what a client must know of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub session: SessionId,
    /// The session ends this many milliseconds after its last renewal.
    pub lease_ms: u64,
    /// The cluster's random name, 32 hex digits: a cache belongs to one cluster.
    pub cluster: String,
    /// URL of the lock service.
    pub lock_url: String,
    /// log2 of the block size for new files.
    pub block_bits: u8,
    /// Copies that each new file gets.
    pub copies: u32,
    /// How long opens for writing wait for their turn in certain subtrees, unless the client is told otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lock_waits: Vec<LockWait>,
    /// The service's clock when it answered.
    #[serde(default)]
    pub now: Timestamp,
    /// Who root is, where the client's token squashes root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squash: Option<Squash>,
}

/// How long an open for writing waits for its turn below a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockWait {
    /// From the root. The longest path that a file is below counts.
    pub path: String,
    /// Milliseconds, 0: not at all; absent: as long as it takes.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

impl LockWait {
    /// Whether the file at `path` is at or below this one's.
    pub fn covers(&self, path: &str) -> bool {
        let top = self.path.trim_end_matches('/');
        path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subtree_is_its_directory_and_what_is_below() {
        let covers = |top: &str, path: &str| LockWait { path: top.to_owned(), wait_ms: None }.covers(path);
        assert!(covers("/a", "/a") && covers("/a", "/a/b/c") && covers("/a/", "/a/b") && covers("/", "/x"));
        assert!(!covers("/a", "/ab") && !covers("/a/b", "/a") && !covers("/a", "inode 5"));
    }
}

/// Keeps a session alive and settles which removed files it still has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewSession {
    /// The session.
    pub session: SessionId,
    /// Orphans from [`Renewed::orphans`] that this client does not have open (any more) and will not open again.
    #[serde(default)]
    pub released: Vec<InodeId>,
}

/// Answer to a renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Removed inodes that wait for this session's word; at most [`Renewed::MAX_ORPHANS`], the rest comes next time.
    pub orphans: Vec<InodeId>,
    /// True where more orphans wait: renew again at once.
    pub more: bool,
    /// The service's clock when it answered.
    #[serde(default)]
    pub now: Timestamp,
}

impl Renewed {
    /// The most orphans in one answer.
    pub const MAX_ORPHANS: usize = 1000;
}

/// Ends a session: its orphans and stored replies go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseSession {
    /// The session.
    pub session: SessionId,
}

/// Lists live sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sessions {}

/// One live session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its id.
    pub session: SessionId,
    /// Who it is.
    #[serde(flatten)]
    pub client: OpenSession,
    /// Milliseconds since the last renewal.
    pub idle_ms: u64,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
    /// Leases that it holds.
    #[serde(default)]
    pub leases: u64,
}
