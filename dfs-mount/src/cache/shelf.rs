//! Closed cache files, kept for the next open: least recently used first out, bounded
//! by size and by the disk's free space.
//!
//! Layout of a cache directory: `lock`, `files/` (only what servers have), `writing/`
//! (may hold changes), `recovered/` (changes that could not be published, each with a
//! note beside it), `index` (what `files/` holds; exists only after a clean end).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use dfs_common::attributes::Timestamp;
use dfs_common::block::Manifest;
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, ErrorKind, Result};
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::content::open_file;
use super::{BlockMap, Content};
use crate::system;

/// The cache leaves this share of its disk free, in percent.
const KEEP_FREE_PERCENT: u64 = 5;
/// The disk's free space is looked at once in so many closed files.
const LOOK_AT_DISK_EVERY: u64 = 64;

struct Closed {
    path: PathBuf,
    version: Version,
    map: BlockMap,
}

struct Inner {
    closed: LruCache<InodeId, Closed>,
    used: u64,
}

/// A cache directory, owned by this mount alone.
pub struct Shelf {
    directory: PathBuf,
    cluster: String,
    limit: u64,
    serial: AtomicU64,
    inner: Mutex<Inner>,
    _lock: File,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// One line of the index: a complete file.
#[derive(Serialize, Deserialize)]
struct Row {
    ino: InodeId,
    version: Version,
    file: String,
    manifest: String,
}

#[derive(Serialize, Deserialize)]
struct Index {
    cluster: String,
    rows: Vec<Row>,
}

/// What is known of a file in `recovered/`, beside it as JSON.
#[derive(Debug, Serialize)]
struct Note<'a> {
    cluster: &'a str,
    ino: InodeId,
    name: Option<String>,
    base: Version,
    reason: &'a str,
    time: Timestamp,
    /// Blocks that were never fetched: zeros in the file, as in the base version in truth.
    missing_blocks: Vec<u32>,
    block_bits: u8,
}

fn io(context: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::from_io(&e, context)
}

impl Shelf {
    /// Opens the cache in `directory` for `cluster`, up to `limit` bytes of closed files. `Busy` where another mount uses it.
    pub fn open(directory: &Path, cluster: &str, limit: u64) -> Result<Self> {
        for sub in ["files", "writing", "recovered"] {
            let path = directory.join(sub);
            std::fs::create_dir_all(&path).map_err(io(format!("cache directory {}", path.display())))?;
        }
        private(directory)?;
        let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"));
        let lock = lock.map_err(io(format!("cache directory {}", directory.display())))?;
        system::try_lock(&lock).map_err(|_| {
            Error::new(ErrorKind::Busy, format!("cache directory {} is used by another mount; choose one with -o cache_dir=", directory.display()))
        })?;
        let shelf = Self {
            directory: directory.to_owned(),
            cluster: cluster.to_owned(),
            limit,
            serial: AtomicU64::new(Timestamp::from_system_time(SystemTime::now()).0 as u64),
            inner: Mutex::new(Inner { closed: LruCache::unbounded(), used: 0 }),
            _lock: lock,
        };
        shelf.keep_what_a_crash_left()?;
        shelf.load_index();
        Ok(shelf)
    }

    fn keep_what_a_crash_left(&self) -> Result<()> {
        let writing = self.directory.join("writing");
        for file in std::fs::read_dir(&writing).map_err(io("cache directory"))?.flatten() {
            let to = self.directory.join("recovered").join(file.file_name());
            std::fs::rename(file.path(), &to).map_err(io("cache directory"))?;
            log::warn!("a crash left {} open for writing; it is kept as {}", file.file_name().display(), to.display());
        }
        Ok(())
    }

    /// Takes over what the last clean end left; everything else in `files/` is deleted.
    fn load_index(&self) {
        let path = self.directory.join("index");
        let index = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Index>(&bytes).ok());
        if let Err(e) = std::fs::remove_file(&path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            // An index that stays would be believed after a crash.
            log::warn!("{}: {e}; starting with an empty cache", path.display());
            return self.delete_unknown();
        }
        let rows = index.filter(|i| i.cluster == self.cluster).map(|i| i.rows).unwrap_or_default();
        {
            let mut inner = self.inner.lock();
            for row in rows {
                let path = self.directory.join("files").join(&row.file);
                let Some(manifest) = from_hex(&row.manifest).and_then(|b| Manifest::decode(&b).ok()) else { continue };
                if row.file.contains('/') || std::fs::metadata(&path).map(|m| m.len()).ok() != Some(manifest.size()) {
                    continue;
                }
                let map = BlockMap::new(&manifest, true);
                inner.used += map.stored();
                inner.closed.put(row.ino, Closed { path, version: row.version, map });
            }
        }
        self.delete_unknown();
        self.evict();
    }

    fn delete_unknown(&self) {
        let known: std::collections::HashSet<PathBuf> = self.inner.lock().closed.iter().map(|(_, c)| c.path.clone()).collect();
        let Ok(files) = std::fs::read_dir(self.directory.join("files")) else { return };
        for file in files.flatten().filter(|f| !known.contains(&f.path())) {
            remove(&file.path());
        }
    }

    /// Writes the index, so that the next mount finds the files.
    pub fn save(&self) -> Result<()> {
        let inner = self.inner.lock();
        let rows = inner.closed.iter().rev().filter_map(|(ino, closed)| {
            let manifest = closed.map.is_complete().then(|| closed.map.clean_manifest().ok()).flatten()?;
            let file = closed.path.file_name()?.to_str()?.to_owned();
            Some(Row { ino: *ino, version: closed.version, file, manifest: to_hex(&manifest.encode()) })
        });
        let index = Index { cluster: self.cluster.clone(), rows: rows.collect() };
        drop(inner);
        let bytes = serde_json::to_vec(&index).expect("an index serializes");
        let temporary = self.directory.join("index.new");
        std::fs::write(&temporary, bytes).map_err(io("cache index"))?;
        std::fs::rename(&temporary, self.directory.join("index")).map_err(io("cache index"))
    }

    fn fresh_path(&self, ino: InodeId, writing: bool) -> PathBuf {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.directory.join(if writing { "writing" } else { "files" }).join(format!("{ino}.{serial:x}"))
    }

    /// The closed file of `ino`, whatever version it is.
    pub fn take(&self, ino: InodeId) -> Option<Content> {
        let closed = {
            let mut inner = self.inner.lock();
            let closed = inner.closed.pop(&ino)?;
            inner.used -= closed.map.stored();
            closed
        };
        match open_file(&closed.path, false) {
            Ok(file) => Some(Content::new(file, closed.path, closed.version, closed.map)),
            Err(e) => {
                log::warn!("{e}; fetching it again");
                None
            }
        }
    }

    /// A new cache file for `version` of `ino`, in the state `map`.
    pub fn create(&self, ino: InodeId, version: Version, map: BlockMap, writing: bool) -> Result<Content> {
        let path = self.fresh_path(ino, writing);
        let file = open_file(&path, true)?;
        if map.size() > 0 {
            file.set_len(map.size()).map_err(io("cache file"))?;
        }
        Ok(Content::new(file, path, version, map))
    }

    /// Must be called before the first change: from now on a crash keeps the file.
    pub fn mark_writing(&self, ino: InodeId, content: &Content) -> Result<()> {
        let path = content.path();
        if path.parent().is_some_and(|p| p.ends_with("writing")) { Ok(()) } else { content.rename(self.fresh_path(ino, true)) }
    }

    /// Keeps an unchanged file for the next open.
    pub fn put_back(&self, ino: InodeId, content: &Content) -> Result<()> {
        assert!(!content.is_changed(), "changes are committed or set aside first");
        if content.path().parent().is_some_and(|p| p.ends_with("writing")) {
            content.rename(self.fresh_path(ino, false))?;
        }
        let closed = Closed { path: content.path(), version: content.version(), map: content.map() };
        {
            let mut inner = self.inner.lock();
            inner.used += closed.map.stored();
            if let Some(old) = inner.closed.put(ino, closed) {
                inner.used -= old.map.stored();
                remove(&old.path);
            }
        }
        self.evict();
        Ok(())
    }

    fn evict(&self) {
        let mut limit = self.limit;
        if self.serial.load(Ordering::Relaxed).is_multiple_of(LOOK_AT_DISK_EVERY)
            && let Ok((free, all)) = system::space(&self.directory)
        {
            let wanted = all / 100 * KEEP_FREE_PERCENT;
            let used = self.inner.lock().used;
            limit = limit.min(used.saturating_sub(wanted.saturating_sub(free)));
        }
        let mut inner = self.inner.lock();
        while inner.used > limit {
            let Some((_, closed)) = inner.closed.pop_lru() else { break };
            inner.used -= closed.map.stored();
            remove(&closed.path);
        }
    }

    /// Deletes what is kept of a removed file.
    pub fn forget(&self, ino: InodeId) {
        let mut inner = self.inner.lock();
        if let Some(closed) = inner.closed.pop(&ino) {
            inner.used -= closed.map.stored();
            remove(&closed.path);
        }
    }

    /// Deletes an open file that nobody will read again.
    pub fn discard(&self, content: &Content) {
        remove(&content.path());
    }

    /// Keeps changes that could not be published; returns where.
    pub fn set_aside(&self, ino: InodeId, name: Option<String>, content: &Content, reason: &str) -> Result<PathBuf> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let to = self.directory.join("recovered").join(format!("{ino}.{serial:x}"));
        let map = content.map();
        let note = Note {
            cluster: &self.cluster,
            ino,
            name,
            base: content.version(),
            reason,
            time: Timestamp::from_system_time(SystemTime::now()),
            missing_blocks: map.missing().collect(),
            block_bits: map.bits(),
        };
        let text = serde_json::to_vec_pretty(&note).expect("a note serializes");
        std::fs::write(to.with_extension(format!("{serial:x}.json")), text).map_err(io("recovered file"))?;
        content.rename(to.clone())?;
        content.sync()?;
        Ok(to)
    }
}

/// Only the owner may look into a cache: it holds everybody's files.
fn private(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).map_err(io(format!("cache directory {}", directory.display())))
}

fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path) {
        log::warn!("cache file {}: {e}", path.display());
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        write!(out, "{b:02x}").expect("writing to a string");
        out
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks_exact(2);
    if !digits.remainder().is_empty() {
        return None;
    }
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use dfs_common::block::BlockHash;

    use super::*;

    fn manifest(bytes: &[u8]) -> Manifest {
        Manifest::new(16, bytes.len() as u64, vec![(0, BlockHash::of(bytes))]).unwrap()
    }

    fn filled(shelf: &Shelf, ino: u64, bytes: &[u8]) {
        let content = shelf.create(InodeId(ino), Version(1), BlockMap::new(&manifest(bytes), false), false).unwrap();
        content.fetched(0, bytes).unwrap();
        shelf.put_back(InodeId(ino), &content).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), "c", 250).unwrap();
        for ino in 1..=3 {
            filled(&shelf, ino, &[ino as u8; 100]);
        }
        assert!(shelf.take(InodeId(1)).is_none());
        let second = shelf.take(InodeId(2)).unwrap();
        assert_eq!(second.read(0, 1000).unwrap(), [2; 100]);
        assert_eq!(std::fs::read_dir(dir.path().join("files")).unwrap().count(), 2);
    }

    #[test]
    fn a_clean_end_keeps_files_and_a_crash_keeps_changes() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), "c", 1 << 20).unwrap();
        filled(&shelf, 1, b"kept");
        assert_eq!(Shelf::open(dir.path(), "c", 1).unwrap_err().kind(), ErrorKind::Busy);
        shelf.save().unwrap();
        drop(shelf);

        let shelf = Shelf::open(dir.path(), "c", 1 << 20).unwrap();
        let content = shelf.take(InodeId(1)).unwrap();
        assert_eq!(content.read(0, 10).unwrap(), b"kept");
        shelf.mark_writing(InodeId(1), &content).unwrap();
        content.write(0, b"lost", false, Timestamp(0)).unwrap();
        drop(shelf); // No save: a crash.

        let shelf = Shelf::open(dir.path(), "c", 1 << 20).unwrap();
        assert!(shelf.take(InodeId(1)).is_none());
        let kept: Vec<_> = std::fs::read_dir(dir.path().join("recovered")).unwrap().flatten().collect();
        assert_eq!(std::fs::read(kept[0].path()).unwrap(), b"lost");
    }

    #[test]
    fn another_cluster_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), "a", 1 << 20).unwrap();
        filled(&shelf, 1, b"of a");
        shelf.save().unwrap();
        drop(shelf);
        assert!(Shelf::open(dir.path(), "b", 1 << 20).unwrap().take(InodeId(1)).is_none());
    }
}
