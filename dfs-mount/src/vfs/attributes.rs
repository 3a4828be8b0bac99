//! Attributes, extended attributes, and the file system's own numbers.

use std::sync::Arc;

use dfs_common::api::directory::{FsStatus, GetXattr, ListXattrs, RemoveXattr, SetAttributes, SetXattr, StatFs, Sync, XattrMode};
use dfs_common::attributes::{Attributes, FileKind, Timestamp};
use dfs_common::name::{Name, Text};
use dfs_common::{Error, ErrorKind, Result};

use super::acl;
use super::node::{Node, ROOT_ID};
use super::{Caller, Vfs, now};

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// What setattr changes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Through a descriptor (ftruncate, O_TRUNC), whose close publishes the length; otherwise it is published at once.
    pub by_handle: bool,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of content.
    pub mtime: Option<Timestamp>,
}

impl Vfs {
    /// What `stat` shows.
    pub async fn get_attributes(&self, id: u64) -> Result<Attributes> {
        if id == ROOT_ID && self.nodes.get(id).is_none() {
            return Ok(self.cluster.entry(dfs_common::ids::ROOT).await?.attributes);
        }
        let node = self.node(id)?;
        {
            // An old version does not change any more; a file that is open for writing here changes only here.
            let state = node.state.lock();
            if state.superseded || (state.writers > 0 && state.heard.elapsed() < self.settings.attr_ttl) {
                return Ok(state.attributes(id));
            }
        }
        match self.cluster.entry(node.ino).await {
            Ok(entry) => {
                let mut state = node.state.lock();
                // A version that overtook the open one is another node's; this one stays as it is.
                if !state.is_overtaken_by(&entry) {
                    state.hear(entry);
                    state.told = state.entry.attributes.version;
                }
                Ok(state.attributes(id))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // Removed, and let go by everybody: what the kernel still refers to keeps its last attributes.
                let mut state = node.state.lock();
                state.removed = true;
                Ok(state.attributes(id))
            }
            Err(e) => Err(e),
        }
    }

    /// chmod, chown, utimens, truncate.
    pub async fn set_attributes(self: &Arc<Self>, id: u64, change: Change, caller: Caller) -> Result<Attributes> {
        let ino = self.ino(id)?;
        let node = self.nodes.get(id);
        if let (Some(size), Some(node)) = (change.size, &node) {
            self.truncate(node, size, change.by_handle, caller).await?;
        }
        let mut set = SetAttributes {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            atime: change.atime,
            mtime: change.mtime,
            ..SetAttributes::none(ino)
        };
        if let Some(node) = &node {
            drop_privileges(node, &mut set, change.size.is_some() && caller.uid != 0);
            if let (Some(mtime), Some(content)) = (change.mtime, node.state.lock().content.clone()) {
                content.set_mtime(mtime);
            }
        }
        if set != SetAttributes::none(ino) {
            let entry = self.cluster.directory.call(&set).await?;
            match &node {
                Some(node) => node.state.lock().hear(entry),
                None => return Ok(entry.attributes),
            }
        }
        self.get_attributes(id).await
    }

    /// A write by somebody who is not root ends suid and sgid.
    pub(crate) async fn kill_privileges(&self, node: &Node) -> Result<()> {
        let mut set = SetAttributes::none(node.ino);
        drop_privileges(node, &mut set, true);
        if set.mode.is_some() {
            let entry = self.cluster.directory.call(&set).await?;
            node.state.lock().hear(entry);
        }
        Ok(())
    }

    /// The value of an extended attribute.
    pub async fn get_xattr(&self, id: u64, name: &[u8]) -> Result<Vec<u8>> {
        let none = || Error::from(ErrorKind::NoAttribute);
        if self.nodes.get(id).is_some_and(|n| !n.state.lock().entry.attributes.has_xattrs) && is_asked_often(name) {
            return Err(none());
        }
        Ok(self.cluster.directory.call(&GetXattr { ino: self.ino(id)?, name: xattr_name(name)? }).await?.0)
    }

    /// The names of all extended attributes, each ended by a NUL.
    pub async fn list_xattrs(&self, id: u64) -> Result<Vec<u8>> {
        let names = self.cluster.directory.call(&ListXattrs { ino: self.ino(id)? }).await?;
        Ok(names.iter().flat_map(|n| n.as_bytes().iter().copied().chain([0])).collect())
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(&self, id: u64, name: &[u8], value: &[u8], mode: XattrMode, caller: Caller) -> Result<()> {
        let set = SetXattr { ino: self.ino(id)?, name: xattr_name(name)?, value: Text(value.to_vec()), mode };
        self.cluster.directory.call(&set).await?;
        if let Some(node) = self.nodes.get(id) {
            node.state.lock().entry.attributes.has_xattrs = true;
        }
        if name == acl::ACCESS { self.access_list_changed(id, caller).await } else { Ok(()) }
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, id: u64, name: &[u8]) -> Result<()> {
        self.cluster.directory.call(&RemoveXattr { ino: self.ino(id)?, name: xattr_name(name)? }).await.map(|_| ())
    }

    /// What `df` shows.
    pub async fn stat_fs(&self) -> Result<FsStatus> {
        self.cluster.directory.call(&StatFs {}).await
    }

    /// fsync of a directory: every name that was changed before is on the directory service's disk.
    pub async fn sync_names(&self) -> Result<()> {
        self.cluster.directory.call(&Sync {}).await.map(|_| ())
    }
}

/// Programs and the kernel ask for these on every file; a file without attributes has none of them.
fn is_asked_often(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"system.")
}

fn xattr_name(name: &[u8]) -> Result<Name> {
    Name::new(name).map_err(|e| if e.kind() == ErrorKind::NameTooLong { Error::new(ErrorKind::Range, e.message().to_owned()) } else { e })
}

/// A change of owner, or of content by somebody who is not root, ends suid, and sgid where the group may execute.
fn drop_privileges(node: &Node, set: &mut SetAttributes, content_changed: bool) {
    let state = node.state.lock();
    let attributes = &state.entry.attributes;
    let owner_changed = set.uid.is_some() || set.gid.is_some();
    if attributes.kind == FileKind::Directory || set.mode.is_some() || !(owner_changed || content_changed) {
        return;
    }
    let sgid = if attributes.mode & GROUP_EXECUTE != 0 { SGID } else { 0 };
    if attributes.mode & (SUID | sgid) != 0 {
        set.mode = Some(attributes.mode & !(SUID | sgid));
    }
}

impl Vfs {
    /// Sets a file's length: of what is open for writing here, or of the file itself, as a version of its own.
    async fn truncate(self: &Arc<Self>, node: &Arc<Node>, size: u64, by_handle: bool, caller: Caller) -> Result<()> {
        {
            // A handle that is just being closed would not publish what changes behind its back: it is gone, or waits.
            let _no_closes = node.opening.lock().await;
            let open = {
                let state = node.state.lock();
                state.content.clone().filter(|_| state.writers > 0)
            };
            if let Some(content) = open {
                self.change(node, &content, || content.truncate(size, now())).await?;
                // The writer may be a close that is not over yet: nobody else would publish before this call returns.
                return if by_handle { Ok(()) } else { self.commit(node, &content, false).await };
            }
        }
        let handle = self.open_for(node, super::open::Intent::truncate(), caller).await?;
        let content = handle.content.clone();
        let done = match self.change(node, &content, || content.truncate(size, now())).await {
            Ok(()) => self.commit(node, &content, false).await,
            Err(e) => Err(e),
        };
        self.close(&handle, false).await?;
        done
    }
}
