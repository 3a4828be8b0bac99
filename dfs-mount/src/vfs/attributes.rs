//! Attributes, extended attributes, and the file system's own numbers.

use std::sync::Arc;

use dfs_common::api::Operation;
use dfs_common::api::directory::{FsStatus, GetXattr, ListXattrs, RemoveXattr, SetAttributes, SetXattr, StatFs, Sync, XattrMode};
use dfs_common::attributes::{Entry, FileKind, Timestamp};
use dfs_common::name::{Name, Text};
use dfs_common::{Error, ErrorKind, Result};

use super::acl;
use super::coherence::Told;
use super::leases::Stamp;
use super::node::{CAPABILITY, Node};
use super::{Caller, Vfs};

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
/// Values up to this many bytes are kept in memory.
const KEPT_XATTR: usize = 4096;

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
    /// These times are this moment's.
    pub now: bool,
}

impl Vfs {
    /// What `stat` shows.
    pub async fn get_attributes(&self, id: u64) -> Result<Told> {
        let node = self.node(id)?;
        {
            let telling = self.telling();
            // An old version does not change any more.
            let superseded = node.state.lock().superseded;
            if superseded {
                return Ok(telling.unleased(&node));
            }
            if let Some(told) = telling.known_attributes(&node) {
                return Ok(told);
            }
        }
        self.give_births(Some(node.ino)).await?;
        let (result, stamp) = self.ask_entry(node.ino).await;
        match result {
            Ok(entry) => Ok(self.telling().answered(&node, entry, stamp)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // Removed, and let go by everybody: what the kernel still refers to keeps its last attributes.
                node.state.lock().removed = true;
                Ok(self.telling().unleased(&node))
            }
            Err(e) => Err(e),
        }
    }

    /// chmod, chown, utimens, truncate.
    pub async fn set_attributes(self: &Arc<Self>, id: u64, change: Change, caller: Caller) -> Result<Told> {
        let node = self.node(id)?;
        if let Some(size) = change.size {
            self.truncate(&node, size, change.by_handle, caller).await?;
        }
        let mut set = SetAttributes {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            atime: change.atime,
            mtime: change.mtime,
            now: change.now,
            ..SetAttributes::none(node.ino)
        };
        drop_privileges(&node, &mut set, change.size.is_some() && caller.uid != 0);
        if let (Some(mtime), Some(content)) = (change.mtime, node.state.lock().content.clone()) {
            content.set_mtime(mtime)?;
        }
        if change.atime.is_some() {
            self.access_is_set(&node).await;
        }
        if set != SetAttributes::none(node.ino) && (change.size.is_some() || !self.hold_back(&node, &set, caller)) {
            self.send_held_back(&node).await?;
            self.change_inode(&node, &set).await?;
        }
        self.get_attributes(id).await.map(Told::for_now)
    }

    /// A write by somebody who is not root ends suid and sgid.
    pub(crate) async fn kill_privileges(&self, node: &Node) -> Result<()> {
        let mut set = SetAttributes::none(node.ino);
        drop_privileges(node, &mut set, true);
        if set.mode.is_some() {
            self.change_inode(node, &set).await?;
            self.forget_attributes(node.id);
        }
        Ok(())
    }

    /// A write ends what a program may do beyond its user.
    pub(crate) async fn end_capability(&self, node: &Node) -> Result<()> {
        if !node.state.lock().may_have_capability() {
            return Ok(());
        }
        let removed = match self.get_xattr(node.id, CAPABILITY).await {
            Ok(_) => self.remove_xattr(node.id, CAPABILITY).await,
            Err(e) => Err(e),
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NoAttribute => Err(e),
            _ => Ok(()),
        }
    }

    /// Carries out a change of `node` at the directory service, and takes over what it says the node is now.
    pub(crate) async fn change_inode(&self, node: &Node, change: &impl Operation<Reply = Entry>) -> Result<()> {
        self.give_birth(node).await?;
        // What new files get may depend on it.
        self.nursery.end(node.ino);
        let (entry, stamp) = self.mutate(change).await;
        self.changed(node, entry?, &stamp);
        Ok(())
    }

    /// This mount has changed `node`, which is `entry` now.
    pub(crate) fn changed(&self, node: &Node, entry: Entry, stamp: &Stamp) {
        let mut telling = self.telling();
        telling.changed(node, stamp);
        telling.hear(node, entry, stamp);
    }

    /// The value of an extended attribute.
    pub async fn get_xattr(&self, id: u64, name: &[u8]) -> Result<Vec<u8>> {
        let none = || Error::from(ErrorKind::NoAttribute);
        let (node, name) = (self.node(id)?, xattr_name(name)?);
        let believes = self.telling().believes();
        {
            let state = node.state.lock();
            if believes && state.leased {
                if !state.entry.attributes.has_xattrs {
                    return Err(none());
                }
                if let Some(value) = state.xattrs.get(&name) {
                    return value.clone().ok_or_else(none);
                }
            }
        }
        self.give_birth(&node).await?;
        let (result, stamp) = self.ask(&GetXattr { ino: node.ino, name: name.clone() }).await;
        let value = match result {
            Ok(value) => Some(value.0),
            Err(e) if e.kind() == ErrorKind::NoAttribute => None,
            Err(e) => return Err(e),
        };
        if value.as_ref().is_none_or(|v| v.len() <= KEPT_XATTR) {
            self.telling().hear_xattr(&node, name, value.clone(), &stamp);
        }
        value.ok_or_else(none)
    }

    /// The names of all extended attributes, each ended by a NUL. Of `trusted.` the directory service shows them to root alone.
    pub async fn list_xattrs(&self, id: u64) -> Result<Vec<u8>> {
        let node = self.node(id)?;
        self.give_birth(&node).await?;
        let names = self.cluster.directory.call(&ListXattrs { ino: node.ino }).await?;
        Ok(names.iter().flat_map(|n| n.as_bytes().iter().copied().chain([0])).collect())
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(&self, id: u64, name: &[u8], value: &[u8], mode: XattrMode, caller: Caller) -> Result<()> {
        let node = self.node(id)?;
        self.send_held_back(&node).await?;
        self.change_inode(&node, &SetXattr { ino: node.ino, name: xattr_name(name)?, value: Text(value.to_vec()), mode }).await?;
        if name == acl::ACCESS { self.access_list_changed(&node, caller).await } else { Ok(()) }
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, id: u64, name: &[u8]) -> Result<()> {
        let node = self.node(id)?;
        self.send_held_back(&node).await?;
        self.change_inode(&node, &RemoveXattr { ino: node.ino, name: xattr_name(name)? }).await
    }

    /// What `df` shows.
    pub async fn stat_fs(&self) -> Result<FsStatus> {
        self.cluster.directory.call(&StatFs {}).await
    }

    /// fsync of a directory: every name that was changed before is on the directory service's disk.
    pub async fn sync_names(&self) -> Result<()> {
        self.give_births(None).await?;
        self.cluster.directory.call(&Sync {}).await.map(|_| ())
    }
}

fn xattr_name(name: &[u8]) -> Result<Name> {
    let too_long = |e: Error| if e.kind() == ErrorKind::NameTooLong { Error::new(ErrorKind::Range, e.message().to_owned()) } else { e };
    let name = Name::new(name).map_err(too_long)?;
    dfs_common::xattr::check(&name)?;
    Ok(name)
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
            let _no_closes = node.opening.take(super::open::OPENING).await?;
            let open = {
                let state = node.state.lock();
                state.content.clone().filter(|_| state.writers > 0)
            };
            if let Some(content) = open {
                self.change(node, &content, || content.truncate(size, self.now())).await?;
                // The writer may be a close that is not over yet: nobody else would publish before this call returns.
                return if by_handle { Ok(()) } else { self.commit(node, &content, false).await };
            }
        }
        let handle = self.open_for(node, super::open::Intent::truncate(), caller).await?;
        let content = handle.content.clone();
        let done = match self.change(node, &content, || content.truncate(size, self.now())).await {
            Ok(()) => self.commit(node, &content, false).await,
            Err(e) => Err(e),
        };
        self.close(&handle, false).await?;
        done
    }
}
