//! What is noted of content that could not be published: written by the mount that set it
//! aside, read by `dfs recover`.

use dfs_common::attributes::Timestamp;
use dfs_common::ids::{InodeId, Version};
use serde::{Deserialize, Serialize};

/// The extended attribute of a file among the recoverable versions that holds its [`Note`] as JSON.
pub(crate) const XATTR: &str = "trusted.dfs.recovered";

/// Where recoverable content belongs, and why it is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// From the root of the cluster, written as names are in JSON, as far as it is known.
    pub(crate) path: Option<String>,
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
}
