//! Handles of files that outlive the kernel's memory of them (name_to_handle_at, NFS
//! servers): a node id and a generation, by which the kernel asks for the node again.
//!
//! An inode's number is never used twice, so a node with that id is the same file for
//! ever, on every mount. Other ids are this mount's own, and their generation says so.

use dfs_common::api::directory::List;
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::{Error, ErrorKind, Result};

use super::Vfs;
use super::coherence::{Telling, Told};
use super::node::{ROOT_ID, is_alias};
use super::past::is_past;

impl Vfs {
    /// Tells nodes apart that had one id in different mounts. 0 for ids that mean the same in all of them.
    pub fn generation(&self, id: u64) -> u64 {
        // The session that the mount began with: its number is never used again, and the kernel takes 32 bits.
        if is_alias(id) || is_past(id) { (self.shelf.run().session.0 << 1 | 1) & u64::from(u32::MAX) } else { 0 }
    }

    /// The node behind a handle. `Stale` where the file has no name any more, or the node is one of an old version or of another mount.
    pub async fn lookup_node(&self, id: u64) -> Result<Told> {
        let stale = || Error::new(ErrorKind::Stale, format!("node {id} is no more"));
        let ino = match self.nodes.get(id) {
            Some(node) => node.ino,
            None if id == ROOT_ID => ROOT,
            None if is_alias(id) || is_past(id) => return Err(stale()),
            None => InodeId(id),
        };
        let told = self.introduce_named(ino).await?.ok_or_else(stale)?;
        match told.node() {
            Some(node) if node.id == id => Ok(told),
            Some(node) => {
                self.forget(node.id, 1);
                Err(stale())
            }
            None => Err(stale()),
        }
    }

    /// The directory above the directory behind a handle.
    pub async fn lookup_parent(&self, id: u64) -> Result<Told> {
        let stale = || Error::new(ErrorKind::Stale, format!("directory {id} is no more"));
        let ino = self.ino(id)?;
        let parent = self.cluster.directory.call(&List { ino, after: None, limit: 1 }).await?.parent;
        self.introduce_named(parent).await?.ok_or_else(stale)
    }

    /// The current node of `ino` with one more reference by the kernel; `None` where it has no name.
    async fn introduce_named(&self, ino: InodeId) -> Result<Option<Told>> {
        match self.ask_entry(ino).await {
            (Ok(entry), stamp) if entry.attributes.nlink > 0 => Ok(Some(self.telling().introduce(&entry, &stamp, None))),
            (Ok(_), _) => Ok(None),
            (Err(e), _) if e.kind() == ErrorKind::NotFound => Ok(None),
            (Err(e), _) => Err(e),
        }
    }
}

impl Telling<'_> {
    /// See [`Vfs::generation`].
    pub fn generation(&self, id: u64) -> u64 {
        self.vfs.generation(id)
    }
}
