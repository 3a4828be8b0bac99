//! Block files: `blocks/ab/HASH`, large ones written under a temporary name and renamed.
//!
//! It owns the files and which of them the disk may not have yet; it knows no versions
//! and never decides that a block is no longer needed. Every call is synchronous.
//! Invariant: a file under its final name was written completely, but for a small one whose writer is at it or was killed in between: that is
//! shorter. What that, the loss of power or a bad disk makes of a block shows in its length, or when it is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use dfs_common::block::{BlockHash, MAX_BLOCK_SIZE};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::system::begin_write_back;

/// Directories of blocks, by the first byte of their names.
const DIRECTORIES: u64 = 256;
/// Blocks of less are left to the flush that comes, also where [`WriteBack::Begin`] is wanted.
const BEGIN: usize = 128 << 10;
/// Up to this many others are flushed each by itself, more by flushing the whole file system, with whatever else is dirty there …
const FLUSH_SINGLY: usize = 64;
/// … so many at a time: the disk is asked once for what waits together.
const FLUSH_THREADS: usize = 16;

/// Blocks of up to this many bytes are written in their place, which spares two of five system calls.
const SMALL: usize = 16 << 10;

/// This part of the disk is kept for the index …
const RESERVE_SHARE: u64 = 16;
/// … but no more than this.
const MAX_RESERVE: u64 = 64 << 20;

/// What was free at the last look is believed for so long …
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// … as long as it is much more than is written meanwhile.
const PLENTY: u64 = 1 << 30;

/// What was found in a block's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Bytes with the right hash.
    Block(Bytes),
    /// Nothing.
    Missing,
    /// Other bytes.
    Corrupt,
}

/// What is looked at of a block that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Its hash.
    Hash,
    /// Its length: whoever asked compares the hash, and comes again where it is another one.
    Length,
}

/// What a call added or, negative, took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) blocks: i64,
    pub(super) bytes: i64,
}

/// When the disk is told of a block, if no flush comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteBack {
    /// At once: it is at work while the rest of a large file comes.
    Begin,
    /// When the kernel likes. A block that is soon replaced never gets there.
    Later,
}

/// A write of a block that the disk may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    number: u64,
    /// The disk was told to begin, so it costs little to wait for this one alone.
    begun: bool,
    /// The disk has its bytes elsewhere.
    noted: bool,
}

impl Written {
    fn is_latest(self, unflushed: &HashMap<BlockHash, Self>, hash: BlockHash) -> bool {
        unflushed.get(&hash).is_some_and(|latest| latest.number == self.number)
    }
}

/// Blocks that the disk may not have.
#[derive(Debug)]
pub(super) struct Unflushed {
    blocks: Vec<(BlockHash, Written)>,
    /// There may be more that an earlier process wrote.
    old: bool,
}

impl Unflushed {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && !self.old
    }

    /// Their names.
    #[cfg(test)]
    pub(super) fn hashes(&self) -> impl Iterator<Item = BlockHash> {
        self.blocks.iter().map(|block| block.0)
    }

    /// True where it is better to flush each than the file system as a whole.
    pub(super) fn is_flushed_singly(&self) -> bool {
        !self.old && self.blocks.iter().filter(|(_, write)| !write.begun).count() <= FLUSH_SINGLY
    }
}

/// The block files of one data directory.
#[derive(Debug)]
pub(super) struct BlockFiles {
    /// All that a flush covers: the file system of the blocks, and that of the data directory where it is another one.
    flushed: Vec<PathBuf>,
    root: PathBuf,
    temporary: PathBuf,
    /// The directories of blocks are kept open, so that the kernel has them at hand: to open a block that it has forgotten takes fewer reads of the disk.
    _at_hand: Vec<File>,
    next_name: AtomicU64,
    /// Held while a block is written in its place.
    in_place: Mutex<()>,
    /// Blocks written and not yet flushed.
    unflushed: Mutex<HashMap<BlockHash, Written>>,
    /// What an earlier process wrote is on the disk, too.
    old_flushed: AtomicBool,
    /// Files that are older than this were there when the process started.
    start: SystemTime,
    /// What [`BlockFiles::available`] said, and when.
    room: Mutex<Option<(u64, Instant)>>,
}

impl BlockFiles {
    /// Opens or makes the directories below `data` and removes what an earlier process left half written.
    pub(super) fn open(data: &Path) -> Result<Self> {
        let (root, temporary) = (data.join("blocks"), data.join("tmp"));
        let context = |e: std::io::Error| Error::from_io(&e, data.display());
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(context)?;
        }
        std::fs::create_dir_all(&temporary).map_err(context)?;
        let mut at_hand = Vec::new();
        let may_keep = getrlimit(Resource::Nofile).current.is_none_or(|limit| limit >= 16 * DIRECTORIES);
        for first in 0..DIRECTORIES {
            let directory = root.join(format!("{first:02x}"));
            std::fs::create_dir_all(&directory).map_err(context)?;
            if may_keep {
                at_hand.extend(File::open(&directory));
            }
        }
        let device = |path: &Path| path.metadata().map(|m| m.dev());
        let flushed = match device(data).map_err(context)? == device(&root).map_err(context)? {
            true => vec![root.clone()],
            false => vec![root.clone(), data.to_owned()],
        };
        let (unflushed, old_flushed) = (Mutex::default(), AtomicBool::new(false));
        let mut files = Self {
            flushed,
            root,
            temporary,
            _at_hand: at_hand,
            next_name: AtomicU64::new(0),
            in_place: Mutex::default(),
            unflushed,
            old_flushed,
            start: SystemTime::UNIX_EPOCH,
            room: Mutex::default(),
        };
        files.start()?;
        Ok(files)
    }

    /// What is there now counts as that of an earlier process.
    pub(super) fn start(&mut self) -> Result<()> {
        let mark = self.temporary.join("start");
        let start = File::create(&mark).and_then(|f| f.metadata()).and_then(|m| m.modified());
        self.start = start.map_err(|e| Error::from_io(&e, mark.display()))?;
        Ok(())
    }

    /// Where `hash` is stored.
    pub(super) fn path(&self, hash: BlockHash) -> PathBuf {
        let name = hash.to_string();
        self.root.join(&name[..2]).join(name)
    }

    /// Stores a block whose hash was checked; one that is there already is checked, too.
    pub(super) fn write(&self, hash: BlockHash, content: &[u8], write_back: WriteBack) -> Result<Change> {
        if content.len() <= SMALL { self.write_in_place(hash, content) } else { self.write_aside(hash, content, write_back) }
    }

    fn write_in_place(&self, hash: BlockHash, content: &[u8]) -> Result<Change> {
        let (path, _in_place) = (self.path(hash), self.in_place.lock());
        let mut removed = Change::default();
        let created = loop {
            match File::create_new(&path) {
                Err(e) if e.kind() == IoKind::AlreadyExists => match self.read(hash)? {
                    Found::Block(_) => return Ok(removed),
                    Found::Corrupt => removed = self.remove(hash)?,
                    Found::Missing => {}
                },
                created => break created,
            }
        };
        let written = created.and_then(|mut file| {
            file.write_all(content).inspect_err(|_| {
                // The error that matters is the first one.
                let _ = std::fs::remove_file(&path);
            })
        });
        written.map_err(|e| Error::from_io(&e, format!("block {hash}")))?;
        let number = self.next_name.fetch_add(1, Ordering::Relaxed);
        self.unflushed.lock().insert(hash, Written { number, begun: false, noted: false });
        Ok(Change { blocks: removed.blocks + 1, bytes: removed.bytes + content.len() as i64 })
    }

    fn write_aside(&self, hash: BlockHash, content: &[u8], write_back: WriteBack) -> Result<Change> {
        let path = self.path(hash);
        let removed = match self.read(hash)? {
            Found::Block(_) => return Ok(Change::default()),
            Found::Corrupt => self.remove(hash)?,
            Found::Missing => Change::default(),
        };
        let number = self.next_name.fetch_add(1, Ordering::Relaxed);
        let temporary = self.temporary.join(number.to_string());
        let written = File::create_new(&temporary).and_then(|mut file| {
            file.write_all(content)?;
            let begun = write_back == WriteBack::Begin && content.len() >= BEGIN && begin_write_back(&file).is_ok();
            self.unflushed.lock().insert(hash, Written { number, begun, noted: false });
            rename_new(&temporary, &path)
        });
        if !matches!(written, Ok(true)) {
            // The error that matters is the first one.
            let _ = std::fs::remove_file(&temporary);
        }
        match written {
            Ok(true) => Ok(Change { blocks: removed.blocks + 1, bytes: removed.bytes + content.len() as i64 }),
            // Somebody else has written the same meanwhile, and counts it.
            Ok(false) => Ok(removed),
            Err(e) => {
                let mut unflushed = self.unflushed.lock();
                if unflushed.get(&hash).is_some_and(|write| write.number == number) {
                    unflushed.remove(&hash);
                }
                Err(Error::from_io(&e, format!("block {hash}")))
            }
        }
    }

    /// Reads and verifies a block.
    pub(super) fn read(&self, hash: BlockHash) -> Result<Found> {
        match std::fs::read(self.path(hash)) {
            Ok(bytes) if BlockHash::of(&bytes) == hash => Ok(Found::Block(bytes.into())),
            Ok(_) => Ok(Found::Corrupt),
            Err(e) => unreadable(&e, hash),
        }
    }

    /// The same for a block of as many bytes as `to` has, right to there. What was found instead; `to` holds anything then.
    pub(super) fn read_to(&self, hash: BlockHash, to: &mut [u8], check: Check) -> Result<Option<Found>> {
        let read = File::open(self.path(hash)).and_then(|mut file| {
            let is_long_enough = match file.read_exact(to) {
                Err(e) if e.kind() == IoKind::UnexpectedEof => false,
                read => read.map(|()| true)?,
            };
            Ok(is_long_enough && file.read(&mut [0])? == 0)
        });
        match read {
            Ok(true) if check == Check::Length || BlockHash::of(to) == hash => Ok(None),
            Ok(_) => Ok(Some(Found::Corrupt)),
            Err(e) => unreadable(&e, hash).map(Some),
        }
    }

    /// The bytes that lie in a block's place, unchecked; `None` where there are none.
    pub(super) fn unchecked(&self, hash: BlockHash) -> Result<Option<Vec<u8>>> {
        match std::fs::read(self.path(hash)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == IoKind::NotFound || e.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(e) => Err(Error::from_io(&e, format!("block {hash}"))),
        }
    }

    /// The length of a stored block; `None` where there is none.
    pub(super) fn len(&self, hash: BlockHash) -> Option<u64> {
        std::fs::metadata(self.path(hash)).ok().map(|m| m.len())
    }

    /// Removes a block that somebody found to be no good, unless its writer was at it then.
    pub(super) fn remove_damaged(&self, hash: BlockHash) -> Result<Change> {
        let _in_place = self.in_place.lock();
        if let Found::Block(_) = self.read(hash)? { Ok(Change::default()) } else { self.remove(hash) }
    }

    /// Removes a block, if it is there.
    pub(super) fn remove(&self, hash: BlockHash) -> Result<Change> {
        let Some(len) = self.len(hash) else { return Ok(Change::default()) };
        self.unflushed.lock().remove(&hash);
        match std::fs::remove_file(self.path(hash)) {
            Ok(()) => Ok(Change { blocks: -1, bytes: -(len as i64) }),
            Err(e) if e.kind() == IoKind::NotFound => Ok(Change::default()),
            Err(e) => Err(Error::from_io(&e, format!("removing block {hash}"))),
        }
    }

    /// Those of `hashes` that the disk may not have, for [`BlockFiles::flush`].
    pub(super) fn unflushed(&self, hashes: impl Iterator<Item = BlockHash>) -> Unflushed {
        let mut hashes = hashes.peekable();
        let any = hashes.peek().is_some();
        let unflushed = self.unflushed.lock();
        let blocks = hashes.filter_map(|hash| unflushed.get(&hash).map(|&write| (hash, write))).collect();
        Unflushed { blocks, old: any && !self.old_flushed.load(Ordering::Relaxed) }
    }

    /// Returns when the disk has them.
    pub(super) fn flush(&self, wanted: &Unflushed) -> Result<()> {
        if !wanted.is_flushed_singly() {
            return self.flush_all();
        }
        let context = |e: std::io::Error, hash: BlockHash| Error::from_io(&e, format!("flushing block {hash}"));
        each(&wanted.blocks, |&(hash, write)| match File::open(self.path(hash)).and_then(|file| file.sync_data()) {
            // Collected in the meantime.
            Err(e) if e.kind() == IoKind::NotFound && !write.is_latest(&self.unflushed.lock(), hash) => Ok(()),
            result => result.map_err(|e| context(e, hash)),
        })?;
        let folders: HashMap<u8, BlockHash> = wanted.blocks.iter().map(|(hash, _)| (hash.0[0], *hash)).collect();
        each(&folders.into_values().collect::<Vec<_>>(), |&hash| {
            let path = self.path(hash);
            let folder = path.parent().expect("blocks lie in folders");
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| context(e, hash))
        })?;
        self.settle(&wanted.blocks);
        Ok(())
    }

    /// All that the disk may not have.
    pub(super) fn all_unflushed(&self) -> Unflushed {
        let blocks = self.unflushed.lock().iter().map(|(&hash, &write)| (hash, write)).collect();
        Unflushed { blocks, old: !self.old_flushed.load(Ordering::Relaxed) }
    }

    /// Returns when the disk has every block, and whatever else was written below the data directory.
    pub(super) fn flush_all(&self) -> Result<()> {
        let written = self.all_unflushed().blocks;
        for path in &self.flushed {
            let folder = File::open(path).map_err(|e| Error::from_io(&e, path.display()))?;
            rustix::fs::syncfs(&folder).map_err(|e| Error::from_io(&e.into(), "flushing blocks"))?;
        }
        self.old_flushed.store(true, Ordering::Relaxed);
        self.settle(&written);
        Ok(())
    }

    /// True where [`BlockFiles::flush_all`] has something to do.
    pub(super) fn has_unflushed(&self) -> bool {
        !self.old_flushed.load(Ordering::Relaxed) || !self.unflushed.lock().is_empty()
    }

    fn settle(&self, flushed: &[(BlockHash, Written)]) {
        let mut unflushed = self.unflushed.lock();
        for (hash, write) in flushed {
            // A block that was written again meanwhile stays.
            if write.is_latest(&unflushed, *hash) {
                unflushed.remove(hash);
            }
        }
    }

    /// The disk has the bytes of a block elsewhere until its file is flushed.
    pub(super) fn noted(&self, hash: BlockHash) {
        if let Some(write) = self.unflushed.lock().get_mut(&hash) {
            write.noted = true;
        }
    }

    /// True where a loss of power would take a block.
    pub(super) fn may_be_lost(&self, hash: BlockHash) -> bool {
        self.unflushed.lock().get(&hash).is_some_and(|write| !write.noted)
    }

    /// Calls `each` with every block that was there when the process started, and its length.
    pub(super) fn list(&self, mut each: impl FnMut(BlockHash, u64)) -> Result<()> {
        let context = |e: std::io::Error| Error::from_io(&e, self.root.display());
        for folder in std::fs::read_dir(&self.root).map_err(context)? {
            for file in std::fs::read_dir(folder.map_err(context)?.path()).map_err(context)? {
                let file = file.map_err(context)?;
                let Some(hash) = file.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                // A file that vanishes meanwhile was collected.
                let Ok(metadata) = file.metadata() else { continue };
                if metadata.modified().map_err(context)? <= self.start {
                    each(hash, metadata.len());
                }
            }
        }
        Ok(())
    }

    /// True where the file system below can take `len` more bytes, as [`BlockFiles::available`] counts.
    pub(super) fn have_room(&self, len: u64) -> Result<bool> {
        let (mut room, now) = (self.room.lock(), Instant::now());
        if let Some((available, at)) = *room
            && now.duration_since(at) < LOOK_INTERVAL
            && available > PLENTY + len
        {
            return Ok(true);
        }
        let available = self.available()?;
        *room = Some((available, now));
        Ok(available >= len)
    }

    /// Bytes that the file system below can still take, less a reserve for the index: on a disk that blocks have
    /// filled to the last byte no row could be written, so nothing could be dropped either.
    pub(super) fn available(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| Error::from_io(&e.into(), self.root.display()))?;
        let reserve = (stat.f_blocks * stat.f_frsize / RESERVE_SHARE).min(MAX_RESERVE);
        Ok((stat.f_bavail * stat.f_frsize).saturating_sub(reserve))
    }
}

/// Renames to a name that nothing has, where the file system can promise that; false where something has it.
fn rename_new(from: &Path, to: &Path) -> std::io::Result<bool> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(from, to).map(|()| true),
        renamed => Ok(renamed.map(|()| true)?),
    }
}

/// What the error of a read means.
fn unreadable(error: &std::io::Error, hash: BlockHash) -> Result<Found> {
    match error.kind() {
        IoKind::NotFound => Ok(Found::Missing),
        // EIO of a bad sector: to everybody else the block is as good as changed.
        _ if error.raw_os_error() == Some(libc::EIO) => Ok(Found::Corrupt),
        _ => Err(Error::from_io(error, format!("block {hash}"))),
    }
}

/// Does `work` with each of `items`, several at a time.
fn each<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let take = || items.get(next.fetch_add(1, Ordering::Relaxed));
    let run = || -> Result<()> { std::iter::from_fn(take).try_for_each(&work) };
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, run);
        // With fewer threads it takes longer.
        let others: Vec<_> = (1..items.len().min(FLUSH_THREADS)).map_while(|n| spawn(n).ok()).collect();
        let own = run();
        others.into_iter().fold(own, |result, other| result.and(other.join().expect("flushing does not panic")))
    })
}

/// Checks a block that came from outside against its name.
pub(super) fn verify(hash: BlockHash, content: &[u8]) -> Result<()> {
    if content.is_empty() || content.len() > MAX_BLOCK_SIZE {
        return Err(Error::new(ErrorKind::Invalid, format!("a block has 1 to {MAX_BLOCK_SIZE} bytes, not {}", content.len())));
    }
    if BlockHash::of(content) != hash {
        return Err(Error::new(ErrorKind::Invalid, format!("the content does not have the hash {hash}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_survive_and_damage_shows() {
        for len in [7, SMALL, SMALL + 1] {
            let dir = tempfile::tempdir().unwrap();
            let files = BlockFiles::open(dir.path()).unwrap();
            let (content, bytes) = (vec![7; len], len as i64);
            let hash = BlockHash::of(&content);
            assert_eq!((files.read(hash).unwrap(), files.read_to(hash, &mut [0], Check::Length).unwrap()), (Found::Missing, Some(Found::Missing)));
            assert_eq!(files.write(hash, &content, WriteBack::Later).unwrap(), Change { blocks: 1, bytes });
            assert_eq!(files.write(hash, &content, WriteBack::Later).unwrap(), Change::default(), "stored once");
            assert!(files.has_unflushed());
            files.flush(&files.unflushed([hash].into_iter())).unwrap();
            assert!(!files.has_unflushed());
            assert_eq!(files.remove_damaged(hash).unwrap(), Change::default(), "it is not");
            std::fs::write(files.path(hash), vec![8; len]).unwrap();
            let mut place = vec![0; len];
            assert_eq!((files.read(hash).unwrap(), files.read_to(hash, &mut place, Check::Hash).unwrap()), (Found::Corrupt, Some(Found::Corrupt)));
            assert_eq!(files.write(hash, &content, WriteBack::Later).unwrap(), Change::default(), "one for one");
            assert_eq!(files.read(hash).unwrap(), Found::Block(content.clone().into()));
            assert_eq!((files.read_to(hash, &mut place, Check::Hash).unwrap(), &place), (None, &content));
            assert_eq!(files.read_to(hash, &mut place[1..], Check::Length).unwrap(), Some(Found::Corrupt), "it is longer");
            // As a writer leaves it that is killed.
            std::fs::write(files.path(hash), &content[1..]).unwrap();
            assert_eq!(files.read_to(hash, &mut place, Check::Hash).unwrap(), Some(Found::Corrupt), "it is shorter");
            assert_eq!(files.write(hash, &content, WriteBack::Later).unwrap(), Change { blocks: 0, bytes: 1 });
            assert_eq!(files.remove(hash).unwrap(), Change { blocks: -1, bytes: -bytes });
            assert_eq!(files.remove(hash).unwrap(), Change::default());
            files.write(hash, &content, WriteBack::Later).unwrap();
            std::fs::write(files.path(hash), b"").unwrap();
            assert_eq!(files.remove_damaged(hash).unwrap(), Change { blocks: -1, bytes: 0 });
        }
    }

    #[test]
    fn a_new_process_finds_blocks_and_clears_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let hash = BlockHash::of(b"old");
        BlockFiles::open(dir.path()).unwrap().write(hash, b"old", WriteBack::Later).unwrap();
        std::fs::write(dir.path().join("tmp/7"), b"half").unwrap();
        let files = BlockFiles::open(dir.path()).unwrap();
        assert!(!dir.path().join("tmp/7").exists());
        let mut found = Vec::new();
        files.list(|hash, len| found.push((hash, len))).unwrap();
        assert_eq!(found, [(hash, 3)]);
    }

    #[test]
    fn few_blocks_are_flushed_each_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let files = BlockFiles::open(dir.path()).unwrap();
        files.flush_all().unwrap();
        let write = |n: usize| assert_eq!(files.write(BlockHash::of(&n.to_le_bytes()), &n.to_le_bytes(), WriteBack::Later).unwrap().blocks, 1);
        (0..=FLUSH_SINGLY).for_each(write);
        assert!(!files.all_unflushed().is_flushed_singly());
        files.remove(BlockHash::of(&0usize.to_le_bytes())).unwrap();
        let all = files.all_unflushed();
        assert!(all.is_flushed_singly());
        files.remove(BlockHash::of(&1usize.to_le_bytes())).unwrap();
        files.flush(&all).unwrap();
        assert!(!files.has_unflushed(), "one was collected meanwhile");
        (0..=FLUSH_SINGLY as u8).for_each(|n| assert_eq!(files.write(BlockHash::of(&[n; BEGIN]), &[n; BEGIN], WriteBack::Begin).unwrap().blocks, 1));
        assert!(files.all_unflushed().is_flushed_singly(), "the disk is at work on all of them");
        files.flush(&files.all_unflushed()).unwrap();
        assert!(!files.has_unflushed());
        write(1);
        std::fs::remove_file(files.path(BlockHash::of(&1usize.to_le_bytes()))).unwrap();
        assert!(files.flush(&files.all_unflushed()).is_err(), "nobody collected it");
    }

    #[test]
    fn what_several_write_at_once_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = BlockFiles::open(dir.path()).unwrap();
        for n in 0..50 {
            let content = vec![n; 4 * SMALL];
            let hash = BlockHash::of(&content);
            let write = || files.write(hash, &content, WriteBack::Begin).unwrap();
            let changes: Vec<Change> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            let sum = changes.iter().fold((0, 0), |(blocks, bytes), change| (blocks + change.blocks, bytes + change.bytes));
            assert_eq!(sum, (1, content.len() as i64));
            assert_eq!(files.read(hash).unwrap(), Found::Block(content.into()));
        }
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 1, "only the mark of the start");
    }

    #[test]
    fn what_stands_where_a_block_is_written_first_is_not_that_block() {
        let dir = tempfile::tempdir().unwrap();
        let files = BlockFiles::open(dir.path()).unwrap();
        let (content, next) = (vec![7; 4 * SMALL], files.next_name.load(Ordering::Relaxed));
        std::fs::write(files.temporary.join(next.to_string()), b"left behind").unwrap();
        assert!(files.write(BlockHash::of(&content), &content, WriteBack::Later).is_err());
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = BlockFiles::open(dir.path()).unwrap();
        let hash = BlockHash::of(b"x");
        files.flush_all().unwrap();
        std::fs::remove_dir(files.path(hash).parent().unwrap()).unwrap();
        assert!(files.write(hash, b"x", WriteBack::Later).is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 1, "only the mark of the start");
        assert!(!files.has_unflushed());
    }
}
