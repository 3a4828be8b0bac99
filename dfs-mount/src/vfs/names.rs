//! Names: lookup, making, linking, removing and renaming entries.

use dfs_common::api::directory::{Link, Lookup, Make, ReadLink, Remove, Removed, Rename, RenameMode};
use dfs_common::attributes::{Attributes, Entry, FileKind};
use dfs_common::name::{Name, Text};
use dfs_common::{Error, ErrorKind, Result};

use super::{Caller, Vfs};

/// A new entry that is no regular file.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Its type.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// For devices.
    pub rdev: u32,
    /// For symlinks.
    pub target: Option<Vec<u8>>,
}

impl Vfs {
    /// Finds `name` in the directory `parent`.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes> {
        let lookup = Lookup { parent: self.ino(parent)?, name: Name::new(name)? };
        let entry = self.cluster.directory.call(&lookup).await?;
        Ok(self.introduce(entry))
    }

    /// The kernel dropped `count` references to a node.
    pub fn forget(&self, id: u64, count: u64) {
        self.nodes.forget(id, count);
    }

    /// mkdir, mknod, symlink.
    pub async fn make(&self, parent: u64, name: &[u8], new: NewEntry, caller: Caller) -> Result<Attributes> {
        let entry = self.make_entry(parent, name, new, caller).await?;
        Ok(self.introduce(entry))
    }

    pub(crate) async fn make_entry(&self, parent: u64, name: &[u8], new: NewEntry, caller: Caller) -> Result<Entry> {
        let make = Make {
            parent: self.ino(parent)?,
            name: Name::new(name)?,
            kind: new.kind,
            mode: new.mode & 0o7777,
            umask: caller.umask,
            uid: caller.uid,
            gid: caller.gid,
            rdev: new.rdev,
            target: new.target.map(Text),
        };
        self.cluster.directory.call(&make).await.map(|made| made.entry)
    }

    /// Gives a file another name.
    pub async fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<Attributes> {
        let node = self.node(id)?;
        if node.state.lock().superseded {
            // A new name must lead to the current version, which this node is not.
            return Err(ErrorKind::Stale.into());
        }
        let entry = self.cluster.directory.call(&Link { ino: node.ino, parent: self.ino(parent)?, name: Name::new(name)? }).await?.entry;
        Ok(self.introduce(entry))
    }

    /// The target of a symlink.
    pub async fn read_link(&self, id: u64) -> Result<Vec<u8>> {
        Ok(self.cluster.directory.call(&ReadLink { ino: self.ino(id)? }).await?.0)
    }

    /// unlink or, with `directory`, rmdir.
    pub async fn remove(&self, parent: u64, name: &[u8], directory: bool) -> Result<()> {
        let remove = Remove { parent: self.ino(parent)?, name: Name::new(name)?, directory };
        let Removed { entry, .. } = self.cluster.directory.call(&remove).await?;
        self.name_gone(entry);
        Ok(())
    }

    /// renameat2 without RENAME_WHITEOUT.
    pub async fn rename(&self, parent: u64, name: &[u8], new_parent: u64, new_name: &[u8], mode: RenameMode) -> Result<()> {
        let rename =
            Rename { parent: self.ino(parent)?, name: Name::new(name)?, new_parent: self.ino(new_parent)?, new_name: Name::new(new_name)?, mode };
        let renamed = self.cluster.directory.call(&rename).await?;
        if let Some(replaced) = renamed.replaced.filter(|_| mode != RenameMode::Exchange) {
            self.name_gone(replaced);
        }
        Ok(())
    }

    /// A name of `entry` is gone. Where it was the last, the inode lives on only for those who have it open.
    fn name_gone(&self, entry: Entry) {
        let (ino, orphan) = (entry.attributes.ino, entry.attributes.nlink == 0);
        if let Some(node) = self.nodes.current(ino) {
            node.state.lock().hear(entry);
        }
        if orphan {
            self.let_go_if_closed(ino);
        }
    }
}

/// renameat2's flags as a mode; `Invalid` for the ones that no network file system has.
pub fn rename_mode(no_replace: bool, exchange: bool, other: bool) -> Result<RenameMode> {
    match (no_replace, exchange, other) {
        (false, false, false) => Ok(RenameMode::Replace),
        (true, false, false) => Ok(RenameMode::NoReplace),
        (false, true, false) => Ok(RenameMode::Exchange),
        _ => Err(Error::new(ErrorKind::Invalid, "unknown flags of renameat2")),
    }
}
