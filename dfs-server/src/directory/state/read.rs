//! Looking: lookup, attributes, listings, symlink targets.
//!
//! Reads see what is committed and change nothing.

use dfs_common::api::directory::{GetAttributes, List, Lookup, Page, PageEntry, ReadLink};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::InodeId;
use dfs_common::name::{Name, Text};
use dfs_common::{Error, ErrorKind, Result};

use super::change::{find, load, load_directory};
use super::keys;
use super::records::{Dentry, Inode, Record};
use crate::store::View;

/// A page's inodes are read with one scan where at most this many rows are passed for each that is wanted.
const SCAN_FACTOR: u64 = 3;

pub(crate) fn lookup(view: &dyn View, request: &Lookup) -> Result<Entry> {
    let Lookup { parent, name } = request;
    match find(view, *parent, name.as_bytes())? {
        Some(ino) => Ok(linked(view, ino)?.entry(ino)),
        None => {
            load_directory(view, *parent)?;
            Err(Error::new(ErrorKind::NotFound, format!("no entry '{name}' in directory {parent}")))
        }
    }
}

pub(crate) fn get_attributes(view: &dyn View, request: &GetAttributes) -> Result<Entry> {
    load(view, request.ino).map(|inode| inode.entry(request.ino))
}

pub(crate) fn read_link(view: &dyn View, request: &ReadLink) -> Result<Text> {
    let inode = load(view, request.ino)?;
    if inode.kind != FileKind::Symlink {
        return Err(Error::new(ErrorKind::Invalid, format!("inode {} is no symlink", request.ino)));
    }
    Ok(Text(inode.target))
}

pub(crate) fn list(view: &dyn View, request: &List) -> Result<Page> {
    if !(1..=List::MAX_LIMIT).contains(&request.limit) {
        return Err(Error::new(ErrorKind::Invalid, format!("a page has 1 to {} entries, not {}", List::MAX_LIMIT, request.limit)));
    }
    let directory = load(view, request.ino)?;
    if !directory.is_directory() {
        return Err(Error::new(ErrorKind::NotDirectory, format!("inode {} is no directory", request.ino)));
    }
    let (mut from, to) = keys::dentries(request.ino);
    if let Some(after) = &request.after {
        from = keys::dentry(request.ino, after.as_bytes());
        from.push(0);
    }
    let limit = request.limit as usize;
    let mut rows = view.scan(&from, &to, limit + 1)?;
    let end = rows.len() <= limit;
    rows.truncate(limit);
    let dentries = rows.iter().map(|(key, value)| Ok((Name::new(keys::name_of(key))?, Dentry::decode(value)?.ino))).collect::<Result<Vec<_>>>()?;
    let inodes = load_all(view, dentries.iter().map(|d| d.1))?;
    let entries = dentries.into_iter().map(|(name, ino)| match inodes.binary_search_by_key(&ino, |row| row.0) {
        Ok(at) => Ok(PageEntry { name, entry: inodes[at].1.entry(ino) }),
        Err(_) => Err(dangling(ino)),
    });
    Ok(Page { parent: directory.parent, entries: entries.collect::<Result<_>>()?, end })
}

/// Inodes in order of their numbers; missing ones are left out. Files of one directory were mostly made one after the
/// other, so one scan over their numbers usually beats single reads.
fn load_all(view: &dyn View, inos: impl Iterator<Item = InodeId> + Clone) -> Result<Vec<(InodeId, Inode)>> {
    let (Some(first), Some(last)) = (inos.clone().min(), inos.clone().max()) else { return Ok(Vec::new()) };
    let count = inos.clone().count() as u64;
    if last.0 - first.0 < count * SCAN_FACTOR {
        let mut to = keys::inode(last);
        to.push(0);
        let rows = view.scan(&keys::inode(first), &to, usize::MAX)?;
        return rows.iter().map(|(key, value)| Ok((InodeId(keys::number_of(key)), Inode::decode(value)?))).collect();
    }
    let mut numbers: Vec<InodeId> = inos.collect();
    numbers.sort_unstable();
    numbers.dedup();
    let load = |ino: InodeId| Ok(view.get(&keys::inode(ino))?.map(|value| Inode::decode(&value)).transpose()?.map(|inode| (ino, inode)));
    numbers.into_iter().filter_map(|ino| load(ino).transpose()).collect()
}

/// An inode that a name leads to, which therefore exists.
pub(super) fn linked(view: &dyn View, ino: InodeId) -> Result<Inode> {
    match view.get(&keys::inode(ino))? {
        Some(value) => Inode::decode(&value),
        None => Err(dangling(ino)),
    }
}

fn dangling(ino: InodeId) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a name leads to inode {ino}, which does not exist"))
}
