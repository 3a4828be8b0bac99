//! What a user may do to an inode, by mode and access control list, decided as Linux does
//! (`generic_permission`, `posix_acl_permission`, `__check_sticky` of its fs/namei.c and
//! fs/posix_acl.c). What each operation asks for is in [`super::guarded`].
//!
//! Who is root, or asks without a user, is asked nothing. A user whose groups are not told
//! has none but its own; the client asks once more with all of them where that was refused.

use dfs_common::api::Done;
use dfs_common::api::directory::Access;
use dfs_common::ids::InodeId;
use dfs_common::user::User;
use dfs_common::{Error, ErrorKind, Result};

use super::acl;
use super::change::load;
use super::records::Inode;
use super::xattr::load_acl;
use crate::store::View;

pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;
pub(super) const EXECUTE: u32 = 1;

const STICKY: u32 = 0o1000;
const GROUP_BITS: u32 = 0o070;

/// A user who is not root, and what it looks at.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(super) view: &'a dyn View,
    pub(super) user: &'a User,
}

impl<'a> Asker<'a> {
    /// `None` where nothing is refused.
    pub(super) fn new(view: &'a dyn View, user: Option<&'a User>) -> Option<Self> {
        user.filter(|user| !user.is_root()).map(|user| Self { view, user })
    }

    pub(super) fn owns(&self, inode: &Inode) -> bool {
        self.user.uid == inode.uid
    }

    /// Whether the user has all of `wanted` (bits of rwx) on an inode.
    pub(super) fn may(&self, ino: InodeId, inode: &Inode, wanted: u32) -> Result<bool> {
        let bits = if self.owns(inode) {
            inode.mode >> 6
        } else {
            // A mask without any bit ends the list's say, in Linux too.
            if inode.mode & GROUP_BITS != 0
                && let Some(list) = load_acl(self.view, ino, inode, acl::ACCESS)?
            {
                return Ok(list.grants(inode.uid, inode.gid, self.user, wanted as u16));
            }
            if self.user.is_in(inode.gid) { inode.mode >> 3 } else { inode.mode }
        };
        Ok(bits & wanted == wanted)
    }

    /// `Forbidden` (EACCES) where the user has not all of `wanted`.
    pub(super) fn require(&self, ino: InodeId, inode: &Inode, wanted: u32) -> Result<()> {
        if self.may(ino, inode, wanted)? { Ok(()) } else { Err(forbidden(self.user, ino)) }
    }

    /// Whether the user may take a name that leads to `inode` out of `directory`.
    pub(super) fn require_removable(&self, ino: InodeId, directory: &Inode, inode: &Inode) -> Result<()> {
        self.require(ino, directory, WRITE | EXECUTE)?;
        if directory.mode & STICKY != 0 && !self.owns(inode) && !self.owns(directory) {
            return Err(not_permitted(format!("directory {ino} is sticky, and neither it nor what the name leads to is user {}'s", self.user.uid)));
        }
        Ok(())
    }

    /// As [`Asker::require`], but the owner may, whatever the mode: an open file stays open when its mode changes.
    pub(super) fn require_or_own(&self, ino: InodeId, inode: &Inode, wanted: u32) -> Result<()> {
        if self.owns(inode) { Ok(()) } else { self.require(ino, inode, wanted) }
    }
}

/// EACCES.
pub(super) fn forbidden(user: &User, ino: InodeId) -> Error {
    Error::new(ErrorKind::Forbidden, format!("user {} has not the permissions on inode {ino}", user.uid))
}

/// EPERM.
pub(super) fn not_permitted(why: String) -> Error {
    Error::new(ErrorKind::NotPermitted, why)
}

/// The right to have content, where it is neither known for what nor how much of it.
fn may_have_content(asker: &Asker<'_>, ino: InodeId, inode: &Inode) -> Result<bool> {
    if asker.owns(inode) {
        return Ok(true);
    }
    for wanted in [READ, WRITE, EXECUTE] {
        if asker.may(ino, inode, wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `user` has what `request` asks for. Root may do all but run what nobody may run.
pub(crate) fn access(view: &dyn View, request: &Access, user: Option<&User>) -> Result<Done> {
    let Access { ino, read, write, execute, content } = *request;
    let inode = load(view, ino)?;
    let wanted = if read { READ } else { 0 } | if write { WRITE } else { 0 } | if execute { EXECUTE } else { 0 };
    let fine = match Asker::new(view, user) {
        Some(asker) => asker.may(ino, &inode, wanted)? && (!content || may_have_content(&asker, ino, &inode)?),
        None => !execute || inode.is_directory() || inode.mode & 0o111 != 0,
    };
    match (fine, user) {
        (true, _) => Ok(Done {}),
        (false, Some(user)) => Err(forbidden(user, ino)),
        (false, None) => Err(Error::new(ErrorKind::Forbidden, format!("nobody may execute inode {ino}"))),
    }
}
