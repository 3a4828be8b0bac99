//! Hard links, unlink and rmdir.

use dfs_common::api::directory::{Link, Made, Remove, Removed};
use dfs_common::ids::InodeId;
use dfs_common::{Error, ErrorKind, Result};

use super::change::{Change, find, load_directory};
use super::past::Lost;
use super::read::linked;
use super::{LINK_MAX, keys};
use crate::store::View;

pub(crate) fn link(change: &mut Change<'_>, request: &Link) -> Result<Made> {
    let Link { ino, parent, name } = request;
    load_directory(&change.view, *parent)?;
    let inode = change.load(*ino)?;
    if inode.is_directory() {
        return Err(Error::new(ErrorKind::NotPermitted, format!("directory {ino} cannot have a second name")));
    }
    if inode.nlink == 0 {
        return Err(Error::new(ErrorKind::NotFound, format!("inode {ino} was removed")));
    }
    if find(&change.view, *parent, name.as_bytes())?.is_some() {
        return Err(Error::new(ErrorKind::Exists, format!("'{name}' exists in directory {parent}")));
    }
    if inode.nlink >= LINK_MAX {
        return Err(Error::new(ErrorKind::TooMany, format!("inode {ino} has {LINK_MAX} names, the most it may have")));
    }
    let now = change.now.wall;
    let inode = change.edit(*ino, |inode| {
        inode.nlink += 1;
        inode.ctime = now;
    })?;
    change.put_dentry(*parent, name.as_bytes(), *ino);
    let directory = change.touch_directory(*parent, 0)?;
    Ok(Made { entry: inode.entry(*ino), directory, reserved: None })
}

pub(crate) fn remove(change: &mut Change<'_>, request: &Remove) -> Result<Removed> {
    let Remove { parent, name, directory } = request;
    let parent_mtime = load_directory(&change.view, *parent)?.mtime;
    let ino = find(&change.view, *parent, name.as_bytes())?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no entry '{name}' in directory {parent}")))?;
    let inode = linked(&change.view, ino)?;
    match (*directory, inode.is_directory()) {
        (true, false) => return Err(Error::new(ErrorKind::NotDirectory, format!("'{name}' is no directory"))),
        (false, true) => return Err(Error::new(ErrorKind::IsDirectory, format!("'{name}' is a directory"))),
        (true, true) => require_empty(&change.view, ino)?,
        (false, false) => {}
    }
    change.view.delete(keys::dentry(*parent, name.as_bytes()));
    let directory = change.touch_directory(*parent, -i32::from(*directory))?;
    let inode = change.drop_name(ino, &Lost { parent: *parent, name, parent_mtime })?;
    Ok(Removed { entry: inode.entry(ino), directory })
}

/// `NotEmpty` where directory `ino` has entries.
pub(super) fn require_empty(view: &dyn View, ino: InodeId) -> Result<()> {
    let (from, to) = keys::dentries(ino);
    if view.scan(&from, &to, 1)?.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotEmpty, format!("directory {ino} has entries")))
}
