//! chmod, chown, utimens.

use dfs_common::Result;
use dfs_common::api::directory::SetAttributes;
use dfs_common::attributes::Entry;

use super::change::Change;
use super::xattr::follow_mode;

pub(crate) fn set_attributes(change: &mut Change<'_>, request: &SetAttributes) -> Result<Entry> {
    let now = change.now.wall;
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
