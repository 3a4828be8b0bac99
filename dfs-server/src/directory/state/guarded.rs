//! What a user must have the right to for each operation, with the errors of Linux in the
//! order of Linux: what does not exist, or exists already, is said before what is forbidden,
//! to whoever may search the directory.
//!
//! Every operation on names and files stands here, also those that need nothing.

use dfs_common::api::Operation;
use dfs_common::api::directory::*;
use dfs_common::attributes::FileKind;
use dfs_common::ids::{InodeId, RECOVERED};
use dfs_common::name::Name;
use dfs_common::user::User;
use dfs_common::{ErrorKind, Result};

use super::change::{find, load, load_directory};
use super::keys;
use super::read::linked;
use super::records::{Inode, Past, Record};
use super::rights::{Asker, EXECUTE, READ, WRITE, not_permitted};
use super::xattr::takes_user_xattrs;
use crate::store::View;

/// The namespace of attributes that only root sees.
const TRUSTED: &[u8] = b"trusted.";
/// What a program gets that root made privileged.
const CAPABILITY: &[u8] = b"security.capability";
const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

/// An operation that not everybody may carry out.
pub(crate) trait Guarded: Operation {
    /// `Forbidden` or `NotPermitted` where the user may not; what else is wrong is left to the operation.
    fn check(&self, asker: &Asker<'_>) -> Result<()>;

    /// Takes out of a reply what is only root's to see.
    fn hide(_: &mut Self::Reply) {}
}

/// Checks `operation` on behalf of `user`.
pub(crate) fn check<O: Guarded>(view: &dyn View, user: Option<&User>, operation: &O) -> Result<()> {
    Asker::new(view, user).map_or(Ok(()), |asker| operation.check(&asker))
}

/// Reads on behalf of `user`.
pub(crate) fn read<O: Guarded>(view: &dyn View, user: Option<&User>, operation: &O, read: fn(&dyn View, &O) -> Result<O::Reply>) -> Result<O::Reply> {
    let Some(asker) = Asker::new(view, user) else { return read(view, operation) };
    operation.check(&asker)?;
    let mut reply = read(view, operation)?;
    O::hide(&mut reply);
    Ok(reply)
}

macro_rules! needs_nothing {
    ($($operation:ty),*) => {
        $(impl Guarded for $operation {
            fn check(&self, _: &Asker<'_>) -> Result<()> {
                Ok(())
            }
        })*
    };
}
// Who knows an inode's number had the right to search a directory that leads to it. Versions that are held are for servers.
needs_nothing!(GetAttributes, ReadLink, HeldVersions);

impl Guarded for ListXattrs {
    fn check(&self, _: &Asker<'_>) -> Result<()> {
        Ok(())
    }

    fn hide(names: &mut Vec<Name>) {
        names.retain(|name| !name.as_bytes().starts_with(TRUSTED));
    }
}

/// A directory that the user may search.
fn searched(asker: &Asker<'_>, ino: InodeId) -> Result<Inode> {
    let directory = load_directory(asker.view, ino)?;
    asker.require(ino, &directory, EXECUTE)?;
    Ok(directory)
}

/// Whether the user may put something new into `directory`, where the name is not taken.
fn require_addable(asker: &Asker<'_>, ino: InodeId, directory: &Inode, name: &[u8]) -> Result<()> {
    match asker.require(ino, directory, WRITE) {
        // The operation says so.
        Err(_) if find(asker.view, ino, name)?.is_some() => Ok(()),
        result => result,
    }
}

/// Whether a user who is not in `gid` loses sgid here. Where it is not known to be in it or not, it has to say.
pub(super) fn loses_sgid(user: &User, gid: u32) -> bool {
    !user.is_root() && !user.is_in(gid)
}

fn require_told_groups(asker: &Asker<'_>, gid: u32) -> Result<()> {
    match loses_sgid(asker.user, gid) && asker.user.groups.is_none() {
        true => Err(not_permitted(format!("sgid is for members of group {gid}, and not all groups of user {} were told", asker.user.uid))),
        false => Ok(()),
    }
}

/// Whether what is made with `mode` in `directory` would run with a group that need not be its maker's.
pub(super) fn hands_down_sgid(directory: &Inode, kind: FileKind, mode: u32) -> bool {
    kind != FileKind::Directory && directory.mode & SGID != 0 && mode & (SGID | GROUP_EXECUTE) == SGID | GROUP_EXECUTE
}

impl Guarded for Lookup {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        let directory = load(asker.view, self.parent)?;
        // Where a mount puts what it could not publish, it must find it again.
        if !directory.is_directory() || self.parent == RECOVERED { Ok(()) } else { asker.require(self.parent, &directory, EXECUTE) }
    }
}

impl Guarded for List {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        asker.require(self.ino, &load(asker.view, self.ino)?, READ)
    }
}

impl Guarded for Make {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        // Any mount may put there what it could not publish; only root sees it.
        if self.parent == RECOVERED && self.kind == FileKind::File {
            return Ok(());
        }
        let directory = searched(asker, self.parent)?;
        require_addable(asker, self.parent, &directory, self.name.as_bytes())?;
        if matches!(self.kind, FileKind::CharDevice | FileKind::BlockDevice) {
            return Err(not_permitted("only root makes devices".to_owned()));
        }
        if hands_down_sgid(&directory, self.kind, self.mode) { require_told_groups(asker, directory.gid) } else { Ok(()) }
    }
}

impl Guarded for Link {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        let directory = searched(asker, self.parent)?;
        require_addable(asker, self.parent, &directory, self.name.as_bytes())
    }
}

impl Guarded for Remove {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        let directory = searched(asker, self.parent)?;
        match find(asker.view, self.parent, self.name.as_bytes())? {
            Some(ino) => asker.require_removable(self.parent, &directory, &linked(asker.view, ino)?),
            None => Ok(()),
        }
    }
}

impl Guarded for Rename {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        let (from, to) = (searched(asker, self.parent)?, searched(asker, self.new_parent)?);
        let Some(source) = find(asker.view, self.parent, self.name.as_bytes())? else { return Ok(()) };
        let target = find(asker.view, self.new_parent, self.new_name.as_bytes())?;
        match (self.mode, target) {
            (RenameMode::NoReplace, Some(_)) | (RenameMode::Exchange, None) => return Ok(()),
            (_, Some(target)) if target == source => return Ok(()),
            _ => {}
        }
        let moved = linked(asker.view, source)?;
        asker.require_removable(self.parent, &from, &moved)?;
        let other = target.map(|target| linked(asker.view, target).map(|inode| (target, inode))).transpose()?;
        match &other {
            Some((_, inode)) => asker.require_removable(self.new_parent, &to, inode)?,
            None => asker.require(self.new_parent, &to, WRITE)?,
        }
        if self.parent == self.new_parent {
            return Ok(());
        }
        // What `..` leads to is an entry of the directory that moves.
        let back = other.as_ref().filter(|_| self.mode == RenameMode::Exchange).map(|(target, inode)| (*target, inode));
        for (ino, inode) in [(source, &moved)].into_iter().chain(back).filter(|(_, inode)| inode.is_directory()) {
            asker.require(ino, inode, WRITE)?;
        }
        Ok(())
    }
}

impl Guarded for SetAttributes {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        let inode = load(asker.view, self.ino)?;
        let owns = asker.owns(&inode);
        let only_owner = |what: &str| not_permitted(format!("only root and the owner of inode {} change its {what}", self.ino));
        if self.uid.is_some_and(|uid| !owns || uid != inode.uid) {
            return Err(not_permitted("only root gives files away".to_owned()));
        }
        if self.gid.is_some_and(|gid| !owns || !(gid == inode.gid || asker.user.is_in(gid))) {
            return Err(not_permitted(format!("only the owner of inode {} changes its group, to one of its own", self.ino)));
        }
        if let Some(mode) = self.mode {
            let ends_privileges = mode & !inode.mode == 0 && mode & !(SUID | SGID) == inode.mode & !(SUID | SGID);
            match owns {
                true if mode & SGID & !inode.mode != 0 => require_told_groups(asker, self.gid.unwrap_or(inode.gid))?,
                true => {}
                // As every write does.
                false if ends_privileges => asker.require(self.ino, &inode, WRITE)?,
                false => return Err(only_owner("mode")),
            }
        }
        match (self.atime.is_some() || self.mtime.is_some()) && !owns {
            true if self.now => asker.require(self.ino, &inode, WRITE),
            true => Err(only_owner("times")),
            false => Ok(()),
        }
    }
}

/// Reading or writing the extended attribute `name`, by its namespace.
fn check_xattr(asker: &Asker<'_>, ino: InodeId, name: &[u8], write: bool) -> Result<()> {
    let inode = load(asker.view, ino)?;
    let refused = |why: &str| match write {
        true => Err(not_permitted(why.to_owned())),
        false => Err(ErrorKind::NoAttribute.into()),
    };
    if name.starts_with(TRUSTED) {
        // A mount whose root is not trusted describes what it could not publish.
        let describes = write && name == RECOVERED_XATTR.as_bytes() && asker.owns(&inode);
        return if describes { Ok(()) } else { refused("trusted attributes are root's") };
    }
    if name.starts_with(b"security.") {
        return if write { refused("security attributes are root's") } else { Ok(()) };
    }
    if name.starts_with(b"system.") {
        return if write && !asker.owns(&inode) { refused("only root and the owner change an access control list") } else { Ok(()) };
    }
    if !name.starts_with(b"user.") || !takes_user_xattrs(inode.kind) {
        // The operation refuses it, to root too.
        return Ok(());
    }
    if write && inode.is_directory() && inode.mode & STICKY != 0 && !asker.owns(&inode) {
        return refused("the attributes of a sticky directory are its owner's");
    }
    asker.require(ino, &inode, if write { WRITE } else { READ })
}

impl Guarded for GetXattr {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        check_xattr(asker, self.ino, self.name.as_bytes(), false)
    }
}

impl Guarded for SetXattr {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        check_xattr(asker, self.ino, self.name.as_bytes(), true)
    }
}

impl Guarded for RemoveXattr {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        if self.name.as_bytes() == CAPABILITY {
            // It ends when somebody who may do so writes or truncates the file, or changes its owner: a kernel removes it before.
            return asker.require_or_own(self.ino, &load(asker.view, self.ino)?, WRITE);
        }
        check_xattr(asker, self.ino, self.name.as_bytes(), true)
    }
}

impl Guarded for Place {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        asker.require_or_own(self.ino, &load(asker.view, self.ino)?, WRITE)
    }
}

impl Guarded for Publish {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        match &self.make {
            Some(make) if asker.view.get(&keys::inode(self.ino))?.is_none() => {
                make.check(asker)?;
                // It will be the user's own, who may set all but what only root may.
                let is_roots = |set: &SetAttributes| set.uid.is_some() || set.gid.is_some() || set.mode.is_some_and(|mode| mode & SGID != 0);
                match self.set.as_ref().is_some_and(is_roots) {
                    true => Err(not_permitted("only root gives files away".to_owned())),
                    false => Ok(()),
                }
            }
            _ => {
                asker.require_or_own(self.ino, &load(asker.view, self.ino)?, WRITE)?;
                self.set.as_ref().map_or(Ok(()), |set| set.check(asker))
            }
        }
    }
}

impl Guarded for Versions {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        asker.require_or_own(self.ino, &load(asker.view, self.ino)?, READ)
    }
}

impl Guarded for NameHistory {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        asker.require(self.parent, &load(asker.view, self.parent)?, EXECUTE)
    }
}

impl Guarded for Removals {
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        asker.require(self.parent, &load(asker.view, self.parent)?, READ)
    }
}

impl Guarded for Undelete {
    /// Its owner brings it back anywhere, others to where it was removed from.
    fn check(&self, asker: &Asker<'_>) -> Result<()> {
        let directory = searched(asker, self.parent)?;
        let name = self.name.as_bytes();
        require_addable(asker, self.parent, &directory, name)?;
        if asker.owns(&load(asker.view, self.ino)?) {
            return Ok(());
        }
        let (from, to) = keys::past_of_name(self.parent, name);
        for (_, value) in asker.view.scan(&from, &to, NameHistory::MAX_ROWS)? {
            if Past::decode(&value)?.ino == self.ino {
                return Ok(());
            }
        }
        Err(not_permitted(format!("inode {} is somebody else's, and was not removed from here under this name", self.ino)))
    }
}
