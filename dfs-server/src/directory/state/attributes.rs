//! chmod, chown, utimens, and when something was accessed.

use dfs_common::Result;
use dfs_common::api::directory::{Accessed, SetAttributes};
use dfs_common::attributes::Entry;

use super::change::Change;
use super::guarded::loses_sgid;
use super::keys;
use super::records::{Inode, Record};
use super::xattr::follow_mode;
use crate::store::View;

const SGID: u32 = 0o2000;

pub(crate) fn set_attributes(change: &mut Change<'_>, request: &SetAttributes) -> Result<Entry> {
    let now = change.now.wall;
    let mut request = request.clone();
    if let Some(user) = change.ordinary_user() {
        let inode = change.load(request.ino)?;
        if request.mode.is_some_and(|mode| mode & SGID & !inode.mode != 0) && loses_sgid(user, request.gid.unwrap_or(inode.gid)) {
            request.mode = request.mode.map(|mode| mode & !SGID);
        }
        if request.now && user.uid != inode.uid {
            (request.atime, request.mtime) = (request.atime.and(Some(now)), request.mtime.and(Some(now)));
        }
    }
    if let Some(mode) = request.mode {
        follow_mode(change, request.ino, mode)?;
    }
    let inode = change.edit(request.ino, |inode| {
        inode.mode = request.mode.map_or(inode.mode, |mode| mode & 0o7777);
        inode.uid = request.uid.unwrap_or(inode.uid);
        inode.gid = request.gid.unwrap_or(inode.gid);
        inode.atime = request.atime.unwrap_or(inode.atime);
        inode.mtime = request.mtime.unwrap_or(inode.mtime);
        inode.ctime = now;
    })?;
    Ok(inode.entry(request.ino))
}

/// Takes over later times of access. Those who hold leases hear of them when they ask next.
pub(crate) fn accessed(change: &mut Change<'_>, request: &Accessed) -> Result<()> {
    for &(ino, time) in &request.times {
        let Some(value) = change.view.get(&keys::inode(ino))? else { continue };
        let mut inode = Inode::decode(&value)?;
        let time = time.min(change.now.wall);
        if inode.atime < time {
            inode.atime = time;
            change.put_inode(ino, &inode);
        }
    }
    Ok(())
}
