//! The directory `.dfs` in the root of a mount, which no listing shows: `history/PATH/N` is
//! version N of a file, `trash/PATH` what was removed, `recovered` what could not be
//! published. All of it is read-only, and asked for anew each time.
//!
//! Nodes have numbers of their own, so that nothing here meets what is cached of the present.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_common::api::directory::{GetAttributes, Lookup, NameHistory, PageEntry, ReadLink};
use dfs_common::attributes::{Attributes, Entry, FileKind};
use dfs_common::block::Manifest;
use dfs_common::clients::Cluster;
use dfs_common::clients::past::Save;
use dfs_common::ids::{InodeId, RECOVERED, ROOT};
use dfs_common::name::Name;
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::node::ROOT_ID;

/// Node numbers from here on, up to those of aliases, are of this tree.
const FIRST_ID: u64 = 1 << 61;
const BEHIND_ID: u64 = 1 << 62;
/// What the tree is called in the root.
const NAME: &[u8] = b".dfs";
/// Entries that are looked up for one answer.
const LOOKUPS: usize = 64;
/// Bytes fetched at a time, in whole blocks.
const PIECE: u64 = 1 << 20;

/// True for a node of this tree.
pub fn is_past(id: u64) -> bool {
    (FIRST_ID..BEHIND_ID).contains(&id)
}

/// What a node stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Top,
    /// A directory, with its files as directories of their versions.
    History(InodeId),
    /// The versions of what a name held.
    Saves(InodeId, Name),
    Save(InodeId, Name, String),
    /// A directory, with what was removed from it.
    Trash(InodeId),
    Recovered,
    /// A file, or anything else that is shown as it is.
    Kept(InodeId),
}

#[derive(Clone, Debug)]
struct Shown {
    key: Key,
    entry: Entry,
    /// References that the kernel holds.
    lookups: u64,
}

/// An entry of a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// Directory or file.
    pub kind: FileKind,
}

/// An entry of a listing that was looked up.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub name: Vec<u8>,
    /// The offset behind it.
    pub next: u64,
    /// What `stat` shows.
    pub attributes: Attributes,
}

/// True for `.` and `..`.
pub fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// An open file: one version, of which some bytes may be here.
#[derive(Debug)]
struct Reading {
    entry: Entry,
    manifest: AsyncMutex<Option<Arc<Manifest>>>,
    /// Offset and bytes of what was fetched last.
    last: Mutex<(u64, Bytes)>,
}

#[derive(Clone, Debug)]
enum Handle {
    File(Arc<Reading>),
    Directory(Arc<Vec<Listed>>),
}

/// What the kernel refers to.
#[derive(Debug, Default)]
struct Nodes {
    by_id: HashMap<u64, Shown>,
    ids: HashMap<Key, u64>,
}

/// The tree.
#[derive(Debug)]
pub struct Past {
    cluster: Arc<Cluster>,
    nodes: Mutex<Nodes>,
    next_id: AtomicU64,
    handles: Mutex<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
}

fn missing() -> Error {
    Error::new(ErrorKind::NotFound, "no such file or directory")
}

impl Past {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, nodes: Mutex::default(), next_id: AtomicU64::new(FIRST_ID), handles: Mutex::default(), next_handle: AtomicU64::new(1) }
    }

    /// True where a lookup of `name` in the node `parent` is answered here.
    pub fn answers(&self, parent: u64, name: &[u8]) -> bool {
        is_past(parent) || (parent == ROOT_ID && name == NAME)
    }

    /// Finds a name; the kernel holds one more reference to what is answered.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes> {
        if parent == ROOT_ID {
            return Ok(self.show(Key::Top, self.directory(ROOT).await?));
        }
        let (key, name) = (self.shown(parent)?.key, Name::new(name)?);
        let (key, entry) = match key {
            Key::Top => match name.as_bytes() {
                b"history" => (Key::History(ROOT), self.directory(ROOT).await?),
                b"trash" => (Key::Trash(ROOT), self.directory(ROOT).await?),
                b"recovered" => (Key::Recovered, self.directory(RECOVERED).await?),
                _ => return Err(missing()),
            },
            Key::History(parent) => self.in_history(parent, name).await?,
            Key::Saves(parent, file) => {
                let wanted = std::str::from_utf8(name.as_bytes()).map_err(|_| missing())?;
                let save = self.saves(parent, &file).await?.into_iter().find(|save| save.id == wanted).ok_or_else(missing)?;
                let id = save.id.clone();
                (Key::Save(parent, file, id), self.cluster.saved(&save).await?)
            }
            Key::Trash(parent) => self.in_trash(parent, name).await?,
            Key::Recovered => {
                let entry = self.find(RECOVERED, &name).await?.ok_or_else(missing)?;
                (Key::Kept(entry.attributes.ino), entry)
            }
            Key::Save(..) | Key::Kept(_) => return Err(ErrorKind::NotDirectory.into()),
        };
        Ok(self.show(key, entry))
    }

    async fn in_history(&self, parent: InodeId, name: Name) -> Result<(Key, Entry)> {
        let now = self.find(parent, &name).await?;
        if let Some(entry) = now.as_ref().filter(|entry| entry.attributes.kind == FileKind::Directory) {
            return Ok((Key::History(entry.attributes.ino), entry.clone()));
        }
        let past = self.cluster.directory.call(&NameHistory { parent, name: name.clone() }).await?;
        let is = |entry: &&Entry, kind| entry.attributes.kind == kind;
        let entries = || now.iter().chain(past.iter().map(|row| &row.entry));
        if let Some(file) = entries().find(|entry| is(entry, FileKind::File)) {
            return Ok((Key::Saves(parent, name), as_directory(file.clone())));
        }
        let removed = entries().find(|entry| is(entry, FileKind::Directory)).ok_or_else(missing)?;
        Ok((Key::History(removed.attributes.ino), removed.clone()))
    }

    async fn in_trash(&self, parent: InodeId, name: Name) -> Result<(Key, Entry)> {
        if let Some(entry) = self.find(parent, &name).await?.filter(|entry| entry.attributes.kind == FileKind::Directory) {
            return Ok((Key::Trash(entry.attributes.ino), entry));
        }
        let past = self.cluster.directory.call(&NameHistory { parent, name }).await?;
        let entry = past.into_iter().map(|row| row.entry).find(|entry| entry.attributes.nlink == 0).ok_or_else(missing)?;
        self.cluster.learn(&entry).await?;
        let ino = entry.attributes.ino;
        Ok((if entry.attributes.kind == FileKind::Directory { Key::Trash(ino) } else { Key::Kept(ino) }, entry))
    }

    async fn directory(&self, ino: InodeId) -> Result<Entry> {
        self.cluster.directory.call(&GetAttributes { ino }).await
    }

    /// What a name leads to now; of a removed directory nothing.
    async fn find(&self, parent: InodeId, name: &Name) -> Result<Option<Entry>> {
        match self.cluster.directory.call(&Lookup { parent, name: name.clone() }).await {
            Ok(entry) => Ok(Some(entry)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn saves(&self, parent: InodeId, name: &Name) -> Result<Vec<Save>> {
        let now = self.find(parent, name).await?;
        self.cluster.saves(parent, name, now.as_ref()).await
    }

    fn show(&self, key: Key, entry: Entry) -> Attributes {
        let mut nodes = self.nodes.lock();
        let Nodes { by_id, ids } = &mut *nodes;
        let id = *ids.entry(key.clone()).or_insert_with(|| self.next_id.fetch_add(1, Ordering::Relaxed));
        let shown = by_id.entry(id).or_insert_with(|| Shown { key, entry: entry.clone(), lookups: 0 });
        shown.entry = entry;
        shown.lookups += 1;
        attributes(id, shown)
    }

    fn shown(&self, id: u64) -> Result<Shown> {
        self.nodes.lock().by_id.get(&id).cloned().ok_or_else(|| ErrorKind::Stale.into())
    }

    /// The kernel dropped `count` references.
    pub fn forget(&self, id: u64, count: u64) {
        let mut nodes = self.nodes.lock();
        let Some(shown) = nodes.by_id.get_mut(&id) else { return };
        shown.lookups = shown.lookups.saturating_sub(count);
        if shown.lookups == 0
            && let Some(shown) = nodes.by_id.remove(&id)
        {
            nodes.ids.remove(&shown.key);
        }
    }

    /// What `stat` shows: as it was looked up.
    pub fn attributes(&self, id: u64) -> Result<Attributes> {
        self.shown(id).map(|shown| attributes(id, &shown))
    }

    /// The target of a removed symlink.
    pub async fn read_link(&self, id: u64) -> Result<Vec<u8>> {
        let Key::Kept(ino) = self.shown(id)?.key else { return Err(ErrorKind::Invalid.into()) };
        Ok(self.cluster.directory.call(&ReadLink { ino }).await?.0)
    }

    /// Opens a file for reading.
    pub fn open(&self, id: u64) -> Result<u64> {
        let entry = self.shown(id)?.entry;
        let reading = Reading { entry, manifest: AsyncMutex::default(), last: Mutex::default() };
        Ok(self.add(Handle::File(Arc::new(reading))))
    }

    /// Opens a directory: its listing stays as it is now.
    pub async fn open_directory(&self, id: u64) -> Result<u64> {
        let listing = self.list(self.shown(id)?.key).await?;
        Ok(self.add(Handle::Directory(Arc::new(listing))))
    }

    fn add(&self, handle: Handle) -> u64 {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().insert(number, handle);
        number
    }

    /// The last descriptor of a handle was closed.
    pub fn release(&self, handle: u64) {
        self.handles.lock().remove(&handle);
    }

    /// The listing of an open directory.
    pub fn listing(&self, handle: u64) -> Result<Arc<Vec<Listed>>> {
        match self.handles.lock().get(&handle) {
            Some(Handle::Directory(listing)) => Ok(listing.clone()),
            _ => Err(ErrorKind::Stale.into()),
        }
    }

    /// Some entries from `offset` on. The kernel holds one more reference to each, `.` and `..` left out.
    pub async fn list_and_look_up(&self, id: u64, handle: u64, offset: u64) -> Result<Vec<Found>> {
        let (listing, mut found) = (self.listing(handle)?, Vec::new());
        for (entry, next) in listing.iter().zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX)).take(LOOKUPS) {
            let attributes = match is_dots(&entry.name) {
                true => Attributes::bare(InodeId(id), FileKind::Directory),
                // What has gone since is left out.
                false => match self.lookup(id, &entry.name).await {
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) if found.is_empty() => return Err(e),
                    Err(_) => break,
                    Ok(attributes) => attributes,
                },
            };
            found.push(Found { name: entry.name.clone(), next, attributes });
        }
        Ok(found)
    }

    async fn list(&self, key: Key) -> Result<Vec<Listed>> {
        let listed = |name: &[u8], kind| Listed { name: name.to_vec(), kind };
        let mut all = vec![listed(b".", FileKind::Directory), listed(b"..", FileKind::Directory)];
        match key {
            Key::Top => all.extend([&b"history"[..], b"recovered", b"trash"].map(|name| listed(name, FileKind::Directory))),
            Key::History(ino) => {
                let removed = self.cluster.removals(ino).await?;
                let past = removed.iter().map(|row| (&row.name, row.entry.attributes.kind));
                let now = self.entries(ino).await?;
                let files = now.iter().map(|e| (&e.name, e.entry.attributes.kind)).chain(past);
                let with_history = files.filter(|(_, kind)| matches!(kind, FileKind::File | FileKind::Directory));
                all.extend(with_history.map(|(name, _)| listed(name.as_bytes(), FileKind::Directory)));
            }
            Key::Saves(parent, name) => {
                all.extend(self.saves(parent, &name).await?.iter().map(|save| listed(save.id.as_bytes(), FileKind::File)));
            }
            Key::Trash(ino) => {
                let directories = self.entries(ino).await?.into_iter().filter(|e| e.entry.attributes.kind == FileKind::Directory);
                all.extend(directories.map(|e| listed(e.name.as_bytes(), FileKind::Directory)));
                all.extend(self.cluster.removals(ino).await?.iter().map(|row| listed(row.name.as_bytes(), row.entry.attributes.kind)));
            }
            Key::Recovered => {
                all.extend(self.entries(RECOVERED).await?.iter().map(|e| listed(e.name.as_bytes(), e.entry.attributes.kind)));
            }
            Key::Save(..) | Key::Kept(_) => return Err(ErrorKind::NotDirectory.into()),
        }
        Ok(all)
    }

    /// What is in a directory now; nothing where it was removed.
    async fn entries(&self, ino: InodeId) -> Result<Vec<PageEntry>> {
        match self.cluster.entries(ino).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            entries => entries,
        }
    }

    /// The next byte of data, or with `data` false of a hole, from `offset` on: all of it counts as data.
    pub fn seek(&self, id: u64, offset: u64, data: bool) -> Result<Option<u64>> {
        let size = self.shown(id)?.entry.attributes.size;
        Ok((offset < size).then_some(if data { offset } else { size }))
    }

    /// Bytes of an open file; fewer at its end.
    pub async fn read(&self, handle: u64, offset: u64, len: u64) -> Result<Vec<u8>> {
        let Some(Handle::File(file)) = self.handles.lock().get(&handle).cloned() else { return Err(ErrorKind::Stale.into()) };
        let end = offset.saturating_add(len).min(file.entry.attributes.size);
        let mut out = Vec::new();
        while offset + (out.len() as u64) < end {
            let at = offset + out.len() as u64;
            let (start, piece) = {
                let (start, bytes) = &*file.last.lock();
                (*start, bytes.clone())
            };
            if at < start || at >= start + piece.len() as u64 {
                *file.last.lock() = self.fetch(&file, at).await?;
                continue;
            }
            let (from, to) = ((at - start) as usize, (end - start).min(piece.len() as u64) as usize);
            out.extend_from_slice(&piece[from..to]);
        }
        Ok(out)
    }

    /// The blocks around byte `at`, and where they begin.
    async fn fetch(&self, file: &Reading, at: u64) -> Result<(u64, Bytes)> {
        let manifest = {
            let mut manifest = file.manifest.lock().await;
            if manifest.is_none() {
                *manifest = Some(Arc::new(self.cluster.manifest(&file.entry).await?));
            }
            manifest.clone().expect("it was just fetched")
        };
        if at >= manifest.size() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("a version of {} bytes where {} were expected", manifest.size(), file.entry.attributes.size),
            ));
        }
        let bits = manifest.block_bits();
        let first = (at >> bits) as u32;
        let last = (((at + PIECE).min(manifest.size()) - 1) >> bits) as u32;
        let bytes = self.cluster.blocks(&file.entry, &manifest, first, last).await?;
        Ok((u64::from(first) << bits, bytes))
    }
}

/// Nothing here can be changed, so nobody may write; what stands for a file's versions may be listed by who may read it.
fn attributes(id: u64, shown: &Shown) -> Attributes {
    let a = &shown.entry.attributes;
    Attributes { ino: InodeId(id), mode: a.mode & !0o6222, nlink: a.nlink.max(1), ..a.clone() }
}

fn as_directory(mut entry: Entry) -> Entry {
    let a = &mut entry.attributes;
    let readable = a.mode & 0o444;
    (a.kind, a.mode, a.nlink, a.size, a.stored) = (FileKind::Directory, readable | readable >> 2, 2, 0, 0);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_read_a_file_may_list_its_versions() {
        let mut attributes = Attributes::bare(InodeId(5), FileKind::File);
        attributes.mode = 0o4640;
        let layout = dfs_common::attributes::Layout { placement: Vec::new(), holders: Vec::new(), manifest: None, fresh: None };
        let entry = as_directory(Entry { attributes, layout });
        assert_eq!((entry.attributes.kind, entry.attributes.mode), (FileKind::Directory, 0o550));
    }
}
