//! Open handles of files and directories, by the number that the kernel gives back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_common::clients::behalf::Behalf;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::RwLock;

use super::directories::Stream;
use super::locks::Held;
use super::node::Node;
use crate::cache::Content;

/// An open file.
#[derive(Debug)]
pub(crate) struct FileHandle {
    pub(crate) node: Arc<Node>,
    pub(crate) content: Arc<Content>,
    /// Its use of the write lock; `None`: open for reading.
    pub(crate) held: Option<Held>,
    /// On whose behalf its content goes to the servers; `None`: the mount's own.
    pub(crate) opener: Option<Behalf>,
    /// What is written comes here past the kernel's page cache: ending privileges and O_DSYNC are left to us.
    pub(crate) direct: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<FileHandle>>>,
    directories: RwLock<HashMap<u64, Arc<Stream>>>,
}

fn unknown() -> Error {
    // Handles come from the kernel: an unknown one means that this process was replaced under a live mount.
    Error::new(ErrorKind::Stale, "the handle is unknown")
}

impl Handles {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn add_file(&self, handle: FileHandle) -> u64 {
        let number = self.number();
        self.files.write().insert(number, Arc::new(handle));
        number
    }

    pub(crate) fn file(&self, number: u64) -> Result<Arc<FileHandle>> {
        self.files.read().get(&number).cloned().ok_or_else(unknown)
    }

    pub(crate) fn remove_file(&self, number: u64) -> Result<Arc<FileHandle>> {
        self.files.write().remove(&number).ok_or_else(unknown)
    }

    pub(crate) fn add_directory(&self, stream: Stream) -> u64 {
        let number = self.number();
        self.directories.write().insert(number, Arc::new(stream));
        number
    }

    pub(crate) fn directory(&self, number: u64) -> Result<Arc<Stream>> {
        self.directories.read().get(&number).cloned().ok_or_else(unknown)
    }

    pub(crate) fn remove_directory(&self, number: u64) {
        self.directories.write().remove(&number);
    }

    /// Open files and directories.
    pub(crate) fn count(&self) -> usize {
        self.files.read().len() + self.directories.read().len()
    }

    /// True where a directory stream of this inode is open.
    pub(crate) fn has_directory(&self, ino: dfs_common::ids::InodeId) -> bool {
        self.directories.read().values().any(|s| s.ino() == ino)
    }
}
