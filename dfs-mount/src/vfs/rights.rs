//! On whose behalf the mount asks, beyond the system call that is under way: an open file's
//! content goes and comes on behalf of who opened it, whoever closes it; what a crash left,
//! on behalf of whose file it is.
//!
//! The kernel has checked modes and lists before anything comes here, and the directory
//! service checks them again. Only where the service takes root for somebody else is the
//! kernel's word, which lets root do anything, not enough for what is cached.

use std::future::Future;

use dfs_common::Result;
use dfs_common::api::directory::Access;
use dfs_common::attributes::Attributes;
use dfs_common::clients::behalf::{self, Behalf};
use dfs_common::user::User;
use futures_util::future::Either;

use super::handles::FileHandle;
use super::node::Node;
use super::{Caller, Vfs};
use crate::cache::record::Owned;

const OTHERS_WRITE: u32 = 0o002;

/// Whether only a supplementary group can have let `user` open this for writing.
pub(super) fn needs_groups(attributes: &Attributes, user: &User) -> bool {
    let by_mode = user.gid == attributes.gid || attributes.mode & OTHERS_WRITE != 0;
    !user.is_root() && user.uid != attributes.uid && (attributes.has_xattrs || !by_mode)
}

/// Who is opening `node`, for when it is published later. `None`: the mount itself.
pub(super) fn opener(node: &Node, write: bool) -> Option<Behalf> {
    let behalf = behalf::current()?;
    let needed = write && needs_groups(&node.state.lock().entry.attributes, &behalf.user());
    Some(behalf.to_keep(needed))
}

pub(super) fn scope<F: Future>(behalf: Option<&Behalf>, operation: F) -> impl Future<Output = F::Output> + use<F> {
    match behalf {
        Some(behalf) => Either::Left(behalf.scope(operation)),
        None => Either::Right(operation),
    }
}

impl FileHandle {
    /// Carries out `operation` on behalf of who opened the file.
    pub(super) fn on_behalf<F: Future>(&self, operation: F) -> impl Future<Output = F::Output> + use<F> {
        scope(self.opener.as_ref(), operation)
    }
}

impl Vfs {
    /// Whether somebody who asks here is somebody else, with fewer rights, for the servers.
    pub fn is_squashed(&self, caller: Caller) -> bool {
        (caller.uid == 0 || caller.gid == 0) && self.cluster.is_squashed()
    }

    /// `Forbidden` where the caller is root here, not for the servers, and may not open the node for that (open(2)'s flags).
    pub async fn admit(&self, id: u64, flags: i32, caller: Caller) -> Result<()> {
        /// As the kernel marks what it opens to run (`__FMODE_EXEC`).
        const EXECUTE: i32 = 0x20;
        if !self.is_squashed(caller) {
            return Ok(());
        }
        let mode = flags & libc::O_ACCMODE;
        let execute = flags & EXECUTE != 0;
        let access = Access {
            read: mode != libc::O_WRONLY && !execute,
            write: mode != libc::O_RDONLY || flags & libc::O_TRUNC != 0,
            execute,
            ..Access::nothing(self.ino(id)?)
        };
        self.cluster.directory.call(&access).await.map(|_| ())
    }

    /// Carries out what the mount does with somebody's file by itself: as root, or else, where root has no rights, as the owner.
    pub(super) fn on_behalf_of_owner<F: Future>(&self, owned: Owned, operation: F) -> impl Future<Output = F::Output> + use<F> {
        let owner = self.cluster.is_squashed().then(|| Behalf::of(owned.uid, owned.gid, Vec::new()));
        scope(owner.as_ref(), operation)
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::attributes::FileKind;
    use dfs_common::ids::InodeId;

    use super::*;

    #[test]
    fn groups_are_looked_up_where_nothing_else_lets_somebody_write() {
        let user = |uid, gid| User { uid, gid, groups: None };
        let file = |mode, has_xattrs| Attributes { mode, uid: 1, gid: 10, has_xattrs, ..Attributes::bare(InodeId(5), FileKind::File) };
        for (mode, has_xattrs, who, needed) in [
            (0o660, false, user(0, 0), false),
            (0o000, true, user(1, 99), false),
            (0o660, false, user(2, 10), false),
            (0o660, false, user(2, 11), true),
            (0o666, false, user(2, 11), false),
            (0o666, true, user(2, 10), true),
        ] {
            assert_eq!(needs_groups(&file(mode, has_xattrs), &who), needed, "{mode:o} {has_xattrs} {who}");
        }
    }
}
