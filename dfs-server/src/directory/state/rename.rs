//! Rename, with and without an existing target, and exchange: one atomic step each.

use dfs_common::api::directory::{Rename, RenameMode, Renamed};
use dfs_common::attributes::Entry;
use dfs_common::ids::InodeId;
use dfs_common::{Error, ErrorKind, Result};

use super::change::{Change, find, load, load_directory};
use super::past::{self, Lost};
use super::read::linked;
use super::records::Inode;
use super::remove::require_empty;
use super::{is_top, keys};
use crate::store::View;

pub(crate) fn rename(change: &mut Change<'_>, request: &Rename) -> Result<Renamed> {
    let Rename { parent, name, new_parent, new_name, mode } = request;
    let from = Lost { parent: *parent, name, parent_mtime: load_directory(&change.view, *parent)?.mtime };
    let to = Lost { parent: *new_parent, name: new_name, parent_mtime: load_directory(&change.view, *new_parent)?.mtime };
    let missing = |name, directory| Error::new(ErrorKind::NotFound, format!("no entry '{name}' in directory {directory}"));
    let source = find(&change.view, *parent, name.as_bytes())?.ok_or_else(|| missing(name, parent))?;
    let target = find(&change.view, *new_parent, new_name.as_bytes())?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => {
            return Err(Error::new(ErrorKind::Exists, format!("'{new_name}' exists in directory {new_parent}")));
        }
        (RenameMode::Exchange, None) => return Err(missing(new_name, new_parent)),
        // Two names of one inode: rename(2) leaves both.
        (_, Some(target)) if target == source => {
            let entry = linked(&change.view, source)?.entry(source);
            return renamed(change, request, entry.clone(), Some(entry));
        }
        _ => {}
    }
    let inode = linked(&change.view, source)?;
    if inode.is_directory() {
        require_outside(&change.view, source, *new_parent)?;
    }
    match (mode, target) {
        (RenameMode::Exchange, Some(target)) => exchange(change, request, (source, &inode, from), (target, to)),
        (_, target) => replace(change, request, (source, &inode, from), (target, to)),
    }
}

fn replace(
    change: &mut Change<'_>,
    request: &Rename,
    (source, inode, from): (InodeId, &Inode, Lost<'_>),
    (target, to): (Option<InodeId>, Lost<'_>),
) -> Result<Renamed> {
    let Rename { parent, name, new_parent, new_name, .. } = request;
    let directory = inode.is_directory();
    let mut replaced = None;
    let mut replaced_directory = false;
    if let Some(target) = target {
        let old = linked(&change.view, target)?;
        match (directory, old.is_directory()) {
            (true, false) => return Err(Error::new(ErrorKind::NotDirectory, format!("'{new_name}' is no directory"))),
            (false, true) => return Err(Error::new(ErrorKind::IsDirectory, format!("'{new_name}' is a directory"))),
            (true, true) => require_empty(&change.view, target)?,
            (false, false) => {}
        }
        replaced_directory = old.is_directory();
        replaced = Some(change.drop_name(target, &to)?.entry(target));
    }
    change.view.delete(keys::dentry(*parent, name.as_bytes()));
    past::note_move(change, &from, source, inode);
    change.put_dentry(*new_parent, new_name.as_bytes(), source);
    let moved = i32::from(directory);
    change.touch_directory(*parent, -moved)?;
    change.touch_directory(*new_parent, moved - i32::from(replaced_directory))?;
    let entry = settle(change, source, *new_parent)?.entry(source);
    renamed(change, request, entry, replaced)
}

fn exchange(
    change: &mut Change<'_>,
    request: &Rename,
    (source, inode, from): (InodeId, &Inode, Lost<'_>),
    (target, to): (InodeId, Lost<'_>),
) -> Result<Renamed> {
    let Rename { parent, name, new_parent, new_name, .. } = request;
    let other = linked(&change.view, target)?;
    if other.is_directory() {
        require_outside(&change.view, target, *parent)?;
    }
    past::note_move(change, &from, source, inode);
    past::note_move(change, &to, target, &other);
    change.put_dentry(*parent, name.as_bytes(), target);
    change.put_dentry(*new_parent, new_name.as_bytes(), source);
    let gain = i32::from(inode.is_directory()) - i32::from(other.is_directory());
    change.touch_directory(*parent, -gain)?;
    change.touch_directory(*new_parent, gain)?;
    let replaced = Some(settle(change, target, *parent)?.entry(target));
    let entry = settle(change, source, *new_parent)?.entry(source);
    renamed(change, request, entry, replaced)
}

/// With both directories as they are after the last change to them.
fn renamed(change: &Change<'_>, request: &Rename, entry: Entry, replaced: Option<Entry>) -> Result<Renamed> {
    let directory = |ino: InodeId| change.load(ino).map(|inode| inode.entry(ino).attributes);
    Ok(Renamed { entry, replaced, directory: directory(request.parent)?, new_directory: directory(request.new_parent)? })
}

/// Notes on a moved inode that it now lies in `parent`.
fn settle(change: &mut Change<'_>, ino: InodeId, parent: InodeId) -> Result<Inode> {
    let now = change.now.wall;
    change.edit(ino, |inode| {
        inode.ctime = now;
        if inode.is_directory() {
            inode.parent = parent;
        }
    })
}

/// `Invalid` where `place` is `directory` or lies below it.
fn require_outside(view: &dyn View, directory: InodeId, place: InodeId) -> Result<()> {
    let mut at = place;
    while !is_top(at) {
        if at == directory {
            return Err(Error::new(ErrorKind::Invalid, format!("directory {directory} cannot move into itself")));
        }
        at = load(view, at)?.parent;
    }
    // The two at the top have no names, so no rename reaches them as a source.
    Ok(())
}
