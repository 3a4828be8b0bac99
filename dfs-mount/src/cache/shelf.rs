//! Closed cache files, kept for the next open: least recently used first out, bounded
//! by size and by the disk's free space.
//!
//! Layout of a cache directory: `lock`, `files/` (only what servers have), `writing/`
//! (may hold changes), `journal` (what in `writing/` is new), `recovered/` (changes that could
//! not be published, each with a note beside it), `index` (what `files/` holds; exists only
//! after a clean end).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use dfs_common::attributes::Timestamp;
use dfs_common::block::Manifest;
use dfs_common::ids::{InodeId, SessionId, Version};
use dfs_common::{Error, ErrorKind, Result};
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::content::set_aside;
use super::file::open_file;
use super::journal::Journal;
use super::record::{History, Owned, Record, Run};
use super::trees::Trees;
use super::{BlockMap, Content};
use crate::{failpoint, system};

/// A mount that was killed may take so long to be gone.
const ENDING: Duration = Duration::from_secs(2);
/// Closed files that are kept, however small: each costs memory, too.
const FILES_MAX: usize = 100_000;
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

/// An empty cache file, which goes unless it becomes the content of a version.
#[derive(Debug)]
pub struct Fresh<'a> {
    shelf: &'a Shelf,
    file: File,
    place: Place,
}

/// Where a file is that goes unless this is emptied.
#[derive(Debug)]
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            remove(&self.0);
        }
    }
}

impl Fresh<'_> {
    /// The content of `version`, in the state `map`, of which the first bytes have come as `start`.
    pub fn become_content(self, version: Version, map: BlockMap, start: &[u8]) -> Result<Content> {
        let Self { shelf, file, mut place } = self;
        if map.size() > 0 {
            file.set_len(map.size()).map_err(io("cache file"))?;
        }
        let content = Content::new(file, place.0.clone(), version, map).sharing(&shelf.trees);
        if !start.is_empty() {
            content.fetched(0, start)?;
        }
        place.0 = PathBuf::new();
        Ok(content)
    }
}

/// A cache directory, owned by this mount alone.
pub struct Shelf {
    directory: PathBuf,
    run: Run,
    limit: u64,
    serial: AtomicU64,
    /// Files that were closed.
    closes: AtomicU64,
    inner: Mutex<Inner>,
    /// Files that nobody needs any more, for [`Shelf::sweep`].
    gone: Mutex<Vec<PathBuf>>,
    journal: Arc<Journal>,
    trees: Arc<Trees>,
    /// What earlier mounts left in the journal.
    left: History,
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

fn io(context: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::from_io(&e, context)
}

impl Shelf {
    /// Opens the cache in `directory` for `run`, up to `limit` bytes of closed files. `Busy` where another mount uses it.
    pub fn open(directory: &Path, run: Run, limit: u64) -> Result<Self> {
        for sub in ["files", "writing", "recovered"] {
            let path = directory.join(sub);
            std::fs::create_dir_all(&path).map_err(io(format!("cache directory {}", path.display())))?;
        }
        private(directory)?;
        let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"));
        let lock = lock.map_err(io(format!("cache directory {}", directory.display())))?;
        let asked = Instant::now();
        while system::try_lock(&lock).is_err() {
            if asked.elapsed() > ENDING {
                let message = format!("cache directory {} is used by another mount; choose one with -o cache_dir=", directory.display());
                return Err(Error::new(ErrorKind::Busy, message));
            }
            std::thread::sleep(ENDING / 40);
        }
        let (journal, left) = Journal::open(directory)?;
        journal.append(&Record::Start(run.clone()))?;
        let now = Timestamp::from_system_time(SystemTime::now());
        // Above every number in use, should the clock have been set back.
        let serial = left.files.keys().last().map_or(0, |last| last + 1).max(now.0 as u64);
        let shelf = Self {
            directory: directory.to_owned(),
            run,
            limit,
            serial: AtomicU64::new(serial),
            closes: AtomicU64::new(0),
            inner: Mutex::new(Inner { closed: LruCache::unbounded(), used: 0 }),
            gone: Mutex::default(),
            journal: Arc::new(journal),
            trees: Arc::default(),
            left,
            _lock: lock,
        };
        shelf.drop_notes_without_files();
        shelf.sort_out_what_has_no_record(now)?;
        shelf.load_index();
        Ok(shelf)
    }

    /// A file is noted before its open for writing returns. One without a note was never written, unless the notes are lost.
    fn sort_out_what_has_no_record(&self, now: Timestamp) -> Result<()> {
        let notes_are_whole = self.left.runs.last().is_some_and(|last| last.boot == self.run.boot);
        for file in std::fs::read_dir(self.directory.join("writing")).map_err(io("cache directory"))?.flatten() {
            let path = file.path();
            if serial_of(&path).is_some_and(|serial| self.left.files.contains_key(&serial)) {
                continue;
            }
            if notes_are_whole { remove(&path) } else { self.keep_unknown(&path, now)? }
        }
        Ok(())
    }

    /// The cluster's random name.
    pub fn cluster(&self) -> &str {
        &self.run.cluster
    }

    /// This mount.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// What earlier mounts left.
    pub fn left(&self) -> &History {
        &self.left
    }

    /// From now on locks are held by `session`.
    pub fn note_session(&self, session: SessionId) -> Result<()> {
        self.journal.append(&Record::Start(Run { session, ..self.run.clone() }))
    }

    /// Earlier sessions are over, and the journal holds nothing of them but files that are still to be recovered.
    pub fn settle(&self) -> Result<()> {
        self.journal.settle()
    }

    /// The file of this number has been recovered.
    pub fn recovered_file(&self, file: u64) -> Result<()> {
        self.journal.append(&Record::End(file))
    }

    /// Where a file of `ino` with this number in the journal is.
    pub fn writing_path(&self, ino: InodeId, file: u64) -> PathBuf {
        self.directory.join("writing").join(format!("{ino}.{file:x}"))
    }

    /// A file that was restored is written on under its old number.
    pub fn note_again(&self, content: &Content, file: u64) {
        content.note_in(self.journal.clone(), file);
    }

    /// A clean end: nothing is left for the next mount, unless files are.
    pub fn finish(&self) -> Result<()> {
        self.journal.finish()
    }

    pub(super) fn recovered(&self) -> PathBuf {
        self.directory.join("recovered")
    }

    /// Where changes of `ino` may be set aside.
    pub(super) fn recovered_path(&self, ino: InodeId) -> PathBuf {
        self.recovered().join(format!("{ino}.{:x}", self.serial.fetch_add(1, Ordering::Relaxed)))
    }

    /// Nothing in `content` needs a crash to be survived any more.
    pub fn end_notes(&self, content: &Content) {
        if let Some(file) = content.end_notes()
            && let Err(e) = self.journal.append(&Record::End(file))
        {
            log::warn!("{e}");
        }
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
        let rows = index.filter(|i| i.cluster == self.run.cluster).map(|i| i.rows).unwrap_or_default();
        {
            let mut inner = self.inner.lock();
            for row in rows {
                let path = self.directory.join("files").join(&row.file);
                let Some(manifest) = from_hex(&row.manifest).and_then(|b| Manifest::decode(&b).ok()) else { continue };
                if row.file.contains('/') || std::fs::metadata(&path).map(|m| m.len()).ok() != Some(manifest.size()) {
                    continue;
                }
                let map = BlockMap::new(manifest, true);
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
        self.sweep();
        let inner = self.inner.lock();
        let rows = inner.closed.iter().rev().filter_map(|(ino, closed)| {
            let manifest = closed.map.is_complete().then(|| closed.map.clean_manifest())?;
            let file = closed.path.file_name()?.to_str()?.to_owned();
            Some(Row { ino: *ino, version: closed.version, file, manifest: to_hex(&manifest.encode()) })
        });
        let index = Index { cluster: self.run.cluster.clone(), rows: rows.collect() };
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

    /// True where there is a closed file of `ino`, whatever version it is.
    pub fn has(&self, ino: InodeId) -> bool {
        self.inner.lock().closed.contains(&ino)
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
            Ok(file) => Some(Content::new(file, closed.path, closed.version, closed.map).sharing(&self.trees)),
            // It is as good as before, and the next open may find a descriptor.
            Err(e) if e.kind() == ErrorKind::TooManyOpen => {
                let mut inner = self.inner.lock();
                inner.used += closed.map.stored();
                inner.closed.put(ino, closed);
                None
            }
            Err(e) => {
                log::warn!("{e}; fetching it again");
                None
            }
        }
    }

    /// A new cache file for `version` of `ino`, in the state `map`.
    pub fn create(&self, ino: InodeId, version: Version, map: BlockMap, writing: bool) -> Result<Content> {
        self.fresh(ino, writing)?.become_content(version, map, &[])
    }

    /// A new cache file for `ino`, whose content is not known yet.
    pub fn fresh(&self, ino: InodeId, writing: bool) -> Result<Fresh<'_>> {
        let path = self.fresh_path(ino, writing);
        Ok(Fresh { shelf: self, file: open_file(&path, true)?, place: Place(path) })
    }

    /// Must be called before the first change: from now on a crash loses nothing. `path` is where people see the file.
    pub fn mark_writing(&self, ino: InodeId, content: &Content, path: impl FnOnce() -> String, owned: Owned) -> Result<()> {
        if content.noted().is_some() {
            return Ok(());
        }
        if content.is_aside() {
            return Err(set_aside());
        }
        failpoint::reach("open.begun");
        let now_at = content.path();
        let placed = serial_of(&now_at).filter(|_| is_in_writing(&now_at));
        let file = placed.unwrap_or_else(|| self.serial.fetch_add(1, Ordering::Relaxed));
        let (begun, manifest) = content.begun(ino, path(), owned);
        self.journal.begin(file, begun, &manifest)?;
        content.note_in(self.journal.clone(), file);
        failpoint::reach("open.journalled");
        if placed.is_none() {
            content.rename(self.writing_path(ino, file)).inspect_err(|_| self.end_notes(content))?;
        }
        failpoint::reach("open.moved");
        Ok(())
    }

    /// Keeps an unchanged file for the next open.
    pub fn put_back(&self, ino: InodeId, content: &Content) -> Result<()> {
        assert!(!content.is_changed(), "changes are committed or set aside first");
        if is_in_writing(&content.path()) {
            content.rename(self.fresh_path(ino, false))?;
        }
        failpoint::reach("put_back.moved");
        self.end_notes(content);
        failpoint::reach("put_back.ended");
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
        if (self.closes.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(LOOK_AT_DISK_EVERY)
            && let Ok((free, all)) = system::space(&self.directory)
        {
            let wanted = all / 100 * KEEP_FREE_PERCENT;
            let used = self.inner.lock().used;
            limit = limit.min(used.saturating_sub(wanted.saturating_sub(free)));
        }
        let mut inner = self.inner.lock();
        while inner.used > limit || inner.closed.len() > FILES_MAX {
            let Some((_, closed)) = inner.closed.pop_lru() else { break };
            inner.used -= closed.map.stored();
            remove(&closed.path);
        }
    }

    /// Lets go of what is kept of a removed file; its cache file goes with the next [`Shelf::sweep`], or at the next start.
    pub fn forget(&self, ino: InodeId) {
        let mut inner = self.inner.lock();
        if let Some(closed) = inner.closed.pop(&ino) {
            inner.used -= closed.map.stored();
            self.gone.lock().push(closed.path);
        }
    }

    /// Deletes the cache files of removed files, which costs as much as the rest of a removal.
    pub fn sweep(&self) {
        let gone = std::mem::take(&mut *self.gone.lock());
        gone.iter().for_each(|path| remove(path));
    }

    /// Deletes an open file that nobody will read again.
    pub fn discard(&self, content: &Content) {
        remove(&content.path());
        self.end_notes(content);
    }
}

/// The number in the name of a cache file.
fn serial_of(path: &Path) -> Option<u64> {
    u64::from_str_radix(path.extension()?.to_str()?, 16).ok()
}

fn is_in_writing(path: &Path) -> bool {
    path.parent().is_some_and(|p| p.ends_with("writing"))
}

/// Only the owner may look into a cache: it holds everybody's files.
fn private(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).map_err(io(format!("cache directory {}", directory.display())))
}

pub(super) fn remove(path: &Path) {
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
        let content = shelf.create(InodeId(ino), Version(1), BlockMap::new(manifest(bytes), false), false).unwrap();
        content.fetched(0, bytes).unwrap();
        shelf.put_back(InodeId(ino), &content).unwrap();
    }

    fn open(dir: &Path, cluster: &str, limit: u64) -> Result<Shelf> {
        Shelf::open(dir, Run { cluster: cluster.into(), boot: "b".into(), session: SessionId(1) }, limit)
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = open(dir.path(), "c", 250).unwrap();
        for ino in 1..=3 {
            filled(&shelf, ino, &[ino as u8; 100]);
        }
        assert!(shelf.take(InodeId(1)).is_none());
        let second = shelf.take(InodeId(2)).unwrap();
        assert_eq!(second.read(0, 1000).unwrap(), [2; 100]);
        assert_eq!(std::fs::read_dir(dir.path().join("files")).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_nothing_came_into_goes() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = open(dir.path(), "c", 250).unwrap();
        let files = || std::fs::read_dir(dir.path().join("files")).unwrap().count();
        let fresh = shelf.fresh(InodeId(1), false).unwrap();
        assert_eq!(files(), 1);
        drop(fresh);
        assert_eq!(files(), 0);
        let content = shelf.fresh(InodeId(1), false).unwrap().become_content(Version(1), BlockMap::new(manifest(b"x"), false), b"x").unwrap();
        assert_eq!((files(), content.size(), content.is_complete()), (1, 1, true));
    }

    #[test]
    fn a_clean_end_keeps_files_and_a_crash_leaves_changes_to_be_recovered() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = open(dir.path(), "c", 1 << 20).unwrap();
        filled(&shelf, 1, b"kept");
        assert_eq!(open(dir.path(), "c", 1).unwrap_err().kind(), ErrorKind::Busy);
        shelf.save().unwrap();
        drop(shelf);

        let shelf = open(dir.path(), "c", 1 << 20).unwrap();
        let content = shelf.take(InodeId(1)).unwrap();
        assert_eq!(content.read(0, 10).unwrap(), b"kept");
        shelf.mark_writing(InodeId(1), &content, || "/f".into(), Owned::default()).unwrap();
        content.write(0, b"lost", false, Timestamp(0)).unwrap();
        drop(shelf); // No save: a crash.

        let shelf = open(dir.path(), "c", 1 << 20).unwrap();
        assert!(shelf.take(InodeId(1)).is_none());
        let (file, left) = shelf.left().files.iter().next().unwrap();
        assert_eq!((left.begun.ino, &left.begun.path[..]), (InodeId(1), "/f"));
        assert_eq!(std::fs::read(shelf.writing_path(InodeId(1), *file)).unwrap(), b"lost");
    }

    #[test]
    fn what_has_no_record_is_kept_where_records_may_be_lost() {
        let run = |boot: &str| Run { cluster: "c".into(), boot: boot.into(), session: SessionId(1) };
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), run("first"), 1 << 20).unwrap();
        std::fs::write(shelf.writing_path(InodeId(7), 1), "of an open that never returned").unwrap();
        drop(shelf);
        let shelf = Shelf::open(dir.path(), run("first"), 1 << 20).unwrap();
        assert!(shelf.asides().is_empty());
        assert!(!shelf.writing_path(InodeId(7), 1).exists());
        std::fs::write(shelf.writing_path(InodeId(8), 2), "its record was not on the disk").unwrap();
        drop(shelf);
        let shelf = Shelf::open(dir.path(), run("second"), 1 << 20).unwrap();
        let asides = shelf.asides();
        assert_eq!((asides.len(), asides[0].note.ino), (1, InodeId(8)));
        asides[0].remove();
        assert!(shelf.asides().is_empty());
    }

    #[test]
    fn what_is_set_aside_is_kept_with_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = open(dir.path(), "c", 1 << 20).unwrap();
        let base = Manifest::new(16, 2 << 16, vec![(0, BlockHash::of(b"a")), (1, BlockHash::of(b"b"))]).unwrap();
        let content = shelf.create(InodeId(1), Version(4), BlockMap::new(base.clone(), false), true).unwrap();
        shelf.mark_writing(InodeId(1), &content, || "/f".into(), Owned::default()).unwrap();
        content.write(0, &[7; 1 << 16], false, Timestamp(3)).unwrap();
        let owned = Owned { uid: 1, gid: 2, mode: 0o640 };
        shelf.set_aside(&content, (InodeId(1), "/f".into(), owned), "fenced", Timestamp(9)).unwrap();
        drop((shelf, content));
        let shelf = open(dir.path(), "c", 1 << 20).unwrap();
        assert!(shelf.left().files.is_empty());
        let asides = shelf.asides();
        let note = &asides[0].note;
        assert_eq!((&note.missing[..], note.base, note.mtime, note.owned), (&[(1, 1)][..], Version(4), Timestamp(3), owned));
        assert_eq!(asides[0].base().unwrap(), base);
        drop(shelf);
        assert!(open(dir.path(), "another", 1 << 20).unwrap().asides().is_empty());
    }

    #[test]
    fn another_cluster_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = open(dir.path(), "a", 1 << 20).unwrap();
        filled(&shelf, 1, b"of a");
        shelf.save().unwrap();
        drop(shelf);
        assert!(open(dir.path(), "b", 1 << 20).unwrap().take(InodeId(1)).is_none());
    }
}
