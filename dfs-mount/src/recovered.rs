//! What a recoverable version says of itself: written by the mount that set it aside, read
//! by `dfs recover`.

/// The extended attribute of a file among the recoverable versions that holds its [`Description`] as JSON.
pub(crate) use dfs_common::api::directory::RECOVERED_XATTR as XATTR;
use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, Version};
use serde::{Deserialize, Serialize};

use crate::cache::record::Owned;

/// Where recoverable content belongs, and why it is not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    /// From the root of the cluster, as far as it is known.
    pub(crate) path: String,
    /// The file.
    pub(crate) ino: InodeId,
    /// The version that it was built on.
    pub(crate) base: Version,
    /// When it was set aside, by the client's clock.
    pub(crate) time: Timestamp,
    /// The client.
    pub(crate) host: String,
    /// For a person.
    pub(crate) reason: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Owner and mode of the original.
    #[serde(flatten)]
    pub(crate) owned: Owned,
    /// Blocks of the base version that nobody has any more, first and last: zeros here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) missing: Vec<(u32, u32)>,
    /// log2 of their size.
    pub(crate) block_bits: u8,
}
