//! What names led to before, and removed inodes that are kept: written when a name goes,
//! listed, and given a name again.
//!
//! A name that ceases to lead to an inode leaves one row under the name and one in order
//! of time. The removal that takes an inode's last name keeps it: its [`Orphan`] names
//! that row, and it is freed when no session has it open and the row is gone. Invariant:
//! an inode without names has an orphan's row, with a session or with what keeps it.

use dfs_common::api::directory::{Made, NameHistory, PastRow, RemovalPage, Removals, Undelete};
use dfs_common::attributes::{FileKind, Timestamp};
use dfs_common::ids::InodeId;
use dfs_common::name::Name;
use dfs_common::{Error, ErrorKind, Result};

use super::change::{Change, find, load, load_directory};
use super::keys;
use super::records::{Inode, Orphan, Past, PastName, Record};
use crate::store::{Key, View};

/// Rows of the past that one step of a listing goes through.
const SLICE: usize = 2000;

/// A name that is about to lead nowhere, or elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost<'a> {
    pub(super) parent: InodeId,
    pub(super) name: &'a Name,
    pub(super) parent_mtime: Timestamp,
}

/// Notes that a name of `ino` was removed. Returns the row's number; 0 where nothing is kept.
pub(super) fn note_removal(change: &mut Change<'_>, lost: &Lost<'_>, ino: InodeId, inode: &Inode) -> u64 {
    note(change, lost, ino, inode, true)
}

/// Notes that `ino` was renamed: only of files with content, because only these are asked for by their former names.
pub(super) fn note_move(change: &mut Change<'_>, lost: &Lost<'_>, ino: InodeId, inode: &Inode) {
    if inode.kind == FileKind::File && inode.version.0 > 0 {
        note(change, lost, ino, inode, false);
    }
}

fn note(change: &mut Change<'_>, lost: &Lost<'_>, ino: InodeId, inode: &Inode, removed: bool) -> u64 {
    if change.policy.keep.removed.is_zero() {
        return 0;
    }
    let number = change.tables.past_ids.take();
    let Lost { parent, name, parent_mtime } = *lost;
    let until = change.now.wall;
    let by = change.session.and_then(|session| change.author(session)).unwrap_or_default();
    let past = Past { ino, version: inode.version, until, parent_mtime, by, removed };
    change.view.put(keys::past(parent, name.as_bytes(), number), past.encode());
    change.view.put(keys::past_time(until, number), PastName { ino, parent, name: name.as_bytes().to_vec() }.encode());
    number
}

/// Forgets the row behind `key` in order of time, and with it the inode that it keeps once nobody has that open.
pub(super) fn forget(change: &mut Change<'_>, key: Key, row: &PastName) -> Result<()> {
    let number = keys::past_number(&key);
    change.view.delete(key);
    change.view.delete(keys::past(row.parent, &row.name, number));
    let Some(mut orphan) = kept_by(&change.view, number, row.ino)? else { return Ok(()) };
    if orphan.sessions.is_empty() {
        change.effects.kept -= 1;
        return change.free(row.ino);
    }
    orphan.kept = 0;
    change.view.put(keys::orphan(row.ino), orphan.encode());
    Ok(())
}

/// The orphan's row of `ino`, where row `number` is what keeps it.
pub(super) fn kept_by(view: &dyn View, number: u64, ino: InodeId) -> Result<Option<Orphan>> {
    let orphan = view.get(&keys::orphan(ino))?.map(|value| Orphan::decode(&value)).transpose()?;
    Ok(orphan.filter(|orphan| orphan.kept == number))
}

pub(crate) fn undelete(change: &mut Change<'_>, request: &Undelete) -> Result<Made> {
    let Undelete { ino, parent, name } = request;
    load_directory(&change.view, *parent)?;
    let orphan = change.view.get(&keys::orphan(*ino))?.map(|value| Orphan::decode(&value)).transpose()?;
    let Some(orphan) = orphan.filter(|orphan| orphan.kept != 0) else {
        return Err(Error::new(ErrorKind::NotFound, format!("no removed inode {ino} is kept")));
    };
    if find(&change.view, *parent, name.as_bytes())?.is_some() {
        return Err(Error::new(ErrorKind::Exists, format!("'{name}' exists in directory {parent}")));
    }
    let now = change.now.wall;
    let inode = change.edit(*ino, |inode| {
        assert_eq!(inode.nlink, 0, "inode {ino} has names");
        inode.nlink = 1;
        if inode.is_directory() {
            // It was empty when it was removed.
            (inode.nlink, inode.parent) = (2, *parent);
        }
        inode.ctime = now;
    })?;
    change.view.delete(keys::orphan(*ino));
    change.effects.settled.push(*ino);
    if orphan.sessions.is_empty() {
        change.count_kept(-1);
    } else {
        change.effects.orphans -= 1;
        change.effects.released.extend(orphan.sessions.into_iter().map(|session| (*ino, session)));
    }
    change.put_dentry(*parent, name.as_bytes(), *ino);
    let directory = change.touch_directory(*parent, i32::from(inode.is_directory()))?;
    Ok(Made { entry: inode.entry(*ino), directory, reserved: None })
}

fn require_directory(view: &dyn View, ino: InodeId) -> Result<()> {
    match load(view, ino)?.is_directory() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::NotDirectory, format!("inode {ino} is no directory"))),
    }
}

fn row(name: &[u8], past: Past, inode: &Inode) -> Result<PastRow> {
    let Past { ino, version, until, parent_mtime, by, .. } = past;
    Ok(PastRow { name: Name::new(name)?, entry: inode.entry(ino), version, until, parent_mtime, by })
}

pub(crate) fn name_history(view: &dyn View, request: &NameHistory) -> Result<Vec<PastRow>> {
    require_directory(view, request.parent)?;
    let name = request.name.as_bytes();
    let (from, to) = keys::past_of_name(request.parent, name);
    let mut rows = Vec::new();
    for (_, value) in view.scan(&from, &to, NameHistory::MAX_ROWS)? {
        let past = Past::decode(&value)?;
        if let Some(value) = view.get(&keys::inode(past.ino))? {
            rows.push(row(name, past, &Inode::decode(&value)?)?);
        }
    }
    Ok(rows)
}

/// Where the listing of removals begins.
pub(crate) fn removals_from(view: &dyn View, request: &Removals) -> Result<Key> {
    if !(1..=Removals::MAX_LIMIT).contains(&request.limit) {
        return Err(Error::new(ErrorKind::Invalid, format!("a page has 1 to {} names, not {}", Removals::MAX_LIMIT, request.limit)));
    }
    require_directory(view, request.parent)?;
    Ok(match &request.after {
        Some(after) => keys::past_of_name(request.parent, after.as_bytes()).1,
        None => keys::past_of_directory(request.parent).0,
    })
}

/// Adds to `page` what one slice of rows behind `from` has to tell. Returns where to go on; `None` where the page is done.
/// In slices because any number of rows may tell nothing: of names that lead somewhere again.
pub(crate) fn removals(view: &dyn View, request: &Removals, page: &mut RemovalPage, from: &Key) -> Result<Option<Key>> {
    let to = keys::past_of_directory(request.parent).1;
    let rows = view.scan(from, &to, SLICE)?;
    let mut last: Option<&[u8]> = None;
    for (key, value) in &rows {
        let name = keys::past_name(key);
        // The first row of a name is its newest.
        if last.replace(name) == Some(name) {
            continue;
        }
        let past = Past::decode(value)?;
        if !past.removed || find(view, request.parent, name)?.is_some() {
            continue;
        }
        let Some(inode) = view.get(&keys::inode(past.ino))? else { continue };
        let inode = Inode::decode(&inode)?;
        if inode.nlink > 0 {
            continue;
        }
        if page.rows.len() == request.limit as usize {
            page.more = true;
            return Ok(None);
        }
        page.rows.push(row(name, past, &inode)?);
    }
    Ok(last.filter(|_| rows.len() == SLICE).map(|name| keys::past_of_name(request.parent, name).1))
}
