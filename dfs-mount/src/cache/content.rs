//! The content of one open file: its cache file and the state of its blocks, shared by
//! every handle of the node.
//!
//! Reads and writes of what is here are plain system calls under one short lock. What
//! is missing is named, and fetched by the caller. While a commit is under way nothing
//! changes, so that a version is always a state that the file had.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::attributes::Timestamp;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::clients::commit::BlockSource;
use dfs_common::ids::{ServerId, Version};
use dfs_common::{Error, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::BlockMap;
use super::copy::{self, Piece};
use crate::system;
use crate::turn::Turn;

/// Bytes that are copied at once where the kernel does not copy.
const COPY_BUFFER: u64 = 256 << 10;

/// Why something could not be done at once.
#[derive(Debug)]
pub enum NotYet {
    /// These blocks have to be fetched first.
    Missing(Vec<u32>),
    /// A commit is under way: wait for [`Content::commit_done`].
    Committing,
    /// It failed for good.
    Failed(Error),
}

/// Why a copy could not be made at once.
#[derive(Debug)]
pub enum CopyNotYet {
    /// These blocks of the source have to be fetched first.
    Source(Vec<u32>),
    /// The target has to be ready first.
    Target(NotYet),
}

#[derive(Debug)]
struct State {
    map: BlockMap,
    path: PathBuf,
    /// The version that the map was made from, or last committed as.
    version: Version,
    /// When the content last changed, or the time that a program set.
    mtime: Option<Timestamp>,
    committing: bool,
    /// The version's blocks as the servers have them.
    base: Arc<Manifest>,
    /// False where this mount published the version without asking for disks.
    durable: bool,
    /// Servers that have what was copied since the last commit.
    origin: Vec<ServerId>,
}

/// An open cache file.
#[derive(Debug)]
pub struct Content {
    file: File,
    state: Mutex<State>,
    committed: Notify,
    /// Held while blocks are fetched, so that each is fetched once.
    pub(crate) fill: Turn,
    /// Held while a version is committed.
    pub(crate) commit: Turn,
}

/// What a commit needs to know of the moment at which it began.
#[derive(Debug)]
pub struct Plan {
    /// The version that the changes are built on.
    pub base: Version,
    /// Their blocks, which need not be sent.
    pub base_manifest: Arc<Manifest>,
    /// The new content.
    pub manifest: Manifest,
    /// When it last changed.
    pub mtime: Timestamp,
}

impl Content {
    /// Takes over `file` at `path`, whose blocks are in the state `map` of `version`, without changes.
    pub fn new(file: File, path: PathBuf, version: Version, map: BlockMap) -> Self {
        let base = Arc::new(map.clean_manifest().expect("a map that was made from a manifest makes that manifest"));
        let state = State { map, path, version, mtime: None, committing: false, base, durable: true, origin: Vec::new() };
        Self { file, state: Mutex::new(state), committed: Notify::new(), fill: Turn::default(), commit: Turn::default() }
    }

    /// The version that this content is, or is built on.
    pub fn version(&self) -> Version {
        self.state.lock().version
    }

    /// Length in bytes, changes included.
    pub fn size(&self) -> u64 {
        self.state.lock().map.size()
    }

    /// Size, stored bytes and modification time where they differ from the published ones.
    pub fn changes(&self) -> Option<(u64, u64, Option<Timestamp>)> {
        let state = self.state.lock();
        state.map.is_changed().then(|| (state.map.size(), state.map.stored(), state.mtime))
    }

    /// True where a commit would publish something.
    pub fn is_changed(&self) -> bool {
        self.state.lock().map.is_changed()
    }

    /// True where the one change is that everything was cut off.
    pub fn is_only_emptied(&self) -> bool {
        let state = self.state.lock();
        state.map.is_changed() && state.map.size() == 0
    }

    /// True where a commit, with disks if `durable`, has something to do.
    pub fn needs_commit(&self, durable: bool) -> bool {
        let state = self.state.lock();
        state.map.is_changed() || (durable && !state.durable)
    }

    /// The version's blocks as the servers have them, and those of `blocks` that are still missing.
    pub fn base(&self, blocks: &[u32]) -> (Arc<Manifest>, Vec<u32>) {
        let state = self.state.lock();
        let missing = blocks.iter().copied().filter(|&b| state.map.is_missing(b)).collect();
        (state.base.clone(), missing)
    }

    /// Notes which servers have the blocks that are copied into this content.
    pub fn set_origin(&self, servers: &[ServerId]) {
        self.state.lock().origin = servers.to_vec();
    }

    /// Servers that have what was copied since the last commit: best a commit goes to one of them.
    pub fn origin(&self) -> Vec<ServerId> {
        self.state.lock().origin.clone()
    }

    /// Where the cache file is.
    pub fn path(&self) -> PathBuf {
        self.state.lock().path.clone()
    }

    /// Moves the cache file.
    pub fn rename(&self, to: PathBuf) -> Result<()> {
        let mut state = self.state.lock();
        std::fs::rename(&state.path, &to).map_err(|e| Error::from_io(&e, "cache file"))?;
        state.path = to;
        Ok(())
    }

    /// A copy of the block map.
    pub fn map(&self) -> BlockMap {
        self.state.lock().map.clone()
    }

    /// Blocks that have to be fetched until everything is here.
    pub fn missing(&self) -> Vec<u32> {
        self.state.lock().map.missing().collect()
    }

    /// Reads up to `len` bytes; fewer at the end of the file.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, NotYet> {
        let len = {
            let state = self.state.lock();
            let needed = state.map.needed_to_read(offset, len);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            state.map.size().saturating_sub(offset).min(len) as usize
        };
        let mut buffer = vec![0; len];
        let done = read_full(&self.file, &mut buffer, offset).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
        buffer.truncate(done);
        Ok(buffer)
    }

    /// Writes `data` at `offset`, or at the end of the file with `append`.
    pub fn write(&self, offset: u64, data: &[u8], append: bool, now: Timestamp) -> Result<(), NotYet> {
        self.change(now, |file, map| {
            let offset = if append { map.size() } else { offset };
            let len = data.len() as u64;
            check_size(offset, len)?;
            let needed = map.needed_to_write(offset, len);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            file.write_all_at(data, offset).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
            map.wrote(offset, len);
            Ok(())
        })
    }

    /// Sets the length.
    pub fn truncate(&self, size: u64, now: Timestamp) -> Result<(), NotYet> {
        self.change(now, |file, map| {
            check_size(size, 0)?;
            let needed = map.needed_to_truncate(size);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            file.set_len(size).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
            map.truncate(size);
            Ok(())
        })
    }

    /// Turns the bytes `offset..offset + len` into zeros, whole blocks into holes. The length stays.
    pub fn zero(&self, offset: u64, len: u64, now: Timestamp) -> Result<(), NotYet> {
        self.change(now, |file, map| {
            let end = offset.saturating_add(len).min(map.size());
            if offset >= end {
                return Ok(());
            }
            let needed = map.needed_to_write(offset, end - offset);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            system::punch_hole(file, offset, end - offset).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
            let (first, last) = (offset.div_ceil(1 << map.bits()) as u32, (end >> map.bits()) as u32);
            map.wrote(offset, end - offset);
            if first < last {
                map.punch(first, last);
            }
            Ok(())
        })
    }

    /// Copies up to `len` bytes at `from` of `source` (which may be this content) to `to`; fewer where the source ends.
    /// Whole blocks that servers have stay blocks that servers have.
    pub fn copy_from(&self, source: &Self, from: u64, to: u64, len: u64, now: Timestamp) -> Result<u64, CopyNotYet> {
        // In one order everywhere, so that copies in opposite directions do not wait for each other.
        let (mut state, other) = match std::ptr::from_ref(self).cmp(&std::ptr::from_ref(source)) {
            Less => {
                let state = self.state.lock();
                (state, Some(source.state.lock()))
            }
            Equal => (self.state.lock(), None),
            Greater => {
                let other = source.state.lock();
                (self.state.lock(), Some(other))
            }
        };
        let source_map = other.as_ref().map_or(&state.map, |other| &other.map);
        let len = len.min(source_map.size().saturating_sub(from));
        check_size(to, len).map_err(CopyNotYet::Target)?;
        if state.committing {
            return Err(CopyNotYet::Target(NotYet::Committing));
        }
        let plan = copy::plan(source_map, &state.map, from, to, len);
        if !plan.needed_of_source.is_empty() {
            return Err(CopyNotYet::Source(plan.needed_of_source));
        }
        if !plan.needed_of_target.is_empty() {
            return Err(CopyNotYet::Target(NotYet::Missing(plan.needed_of_target)));
        }
        if len > 0 {
            let done = self.copy_pieces(&mut state.map, &source.file, &plan.pieces, (from, to, len));
            state.mtime = Some(now);
            done.map_err(|e| CopyNotYet::Target(NotYet::Failed(Error::from_io(&e, "cache file"))))?;
        }
        Ok(len)
    }

    fn copy_pieces(&self, map: &mut BlockMap, source: &File, pieces: &[Piece], (from, to, len): (u64, u64, u64)) -> std::io::Result<()> {
        if to + len > map.size() {
            self.file.set_len(to + len)?;
        }
        for (n, piece) in pieces.iter().enumerate() {
            let (start, end) = piece.span(map.bits(), to + len);
            let result = match piece {
                Piece::Hole(_) => system::punch_hole(&self.file, start, end - start),
                Piece::Block(..) | Piece::Bytes(..) => copy_bytes(source, from + (start - to), &self.file, start, end - start),
            };
            if let Err(e) = result {
                // The map must not call equal to a version what is overwritten in part.
                map.copied(&pieces[..n], start);
                let touched = end.min(map.size()).saturating_sub(start);
                map.wrote(start, touched);
                self.file.set_len(map.size())?;
                return Err(e);
            }
        }
        map.copied(pieces, to + len);
        Ok(())
    }

    fn change<T>(&self, now: Timestamp, apply: impl FnOnce(&File, &mut BlockMap) -> Result<T, NotYet>) -> Result<T, NotYet> {
        let mut state = self.state.lock();
        if state.committing {
            return Err(NotYet::Committing);
        }
        let done = apply(&self.file, &mut state.map)?;
        state.mtime = Some(now);
        Ok(done)
    }

    /// A program set the modification time; the next commit carries it.
    pub fn set_mtime(&self, mtime: Timestamp) {
        self.state.lock().mtime = Some(mtime);
    }

    /// Puts fetched and verified bytes of missing blocks in place; `first` is the block that `bytes` begins with.
    pub fn fetched(&self, first: u32, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let size = 1usize << state.map.bits();
        for (block, piece) in (first..).zip(bytes.chunks(size)) {
            // A block that was written meanwhile is newer than what was fetched.
            let (start, len) = state.map.span(block);
            if state.map.fetched(block) {
                let result = self.file.write_all_at(&piece[..len.min(piece.len())], start);
                result.map_err(|e| Error::from_io(&e, "cache file"))?;
            }
        }
        Ok(())
    }

    /// Becomes another version, keeping the blocks that are equal. Only without changes and while nobody reads.
    pub fn adopt(&self, version: Version, manifest: &Manifest) -> Result<()> {
        let mut state = self.state.lock();
        let (mut map, old_bits) = (state.map.clone(), state.map.bits());
        for block in map.adopt(manifest) {
            let clear = system::punch_hole(&self.file, u64::from(block) << old_bits, 1 << old_bits);
            clear.map_err(|e| Error::from_io(&e, "cache file"))?;
        }
        self.file.set_len(manifest.size()).map_err(|e| Error::from_io(&e, "cache file"))?;
        state.map = map;
        state.version = version;
        state.base = Arc::new(manifest.clone());
        state.durable = true;
        state.mtime = None;
        Ok(())
    }

    /// Begins a commit: from now on nothing changes until [`Content::end_commit`]. `None` where there is nothing to do.
    pub fn begin_commit(&self, now: Timestamp, durable: bool) -> Result<Option<Plan>> {
        let map = {
            let mut state = self.state.lock();
            if !state.map.is_changed() && (!durable || state.durable) {
                return Ok(None);
            }
            state.committing = true;
            state.map.clone()
        };
        let plan = self.plan(&map, now);
        if plan.is_err() {
            self.end_commit(None);
        }
        plan.map(Some)
    }

    fn plan(&self, map: &BlockMap, now: Timestamp) -> Result<Plan> {
        let hashes = map.dirty().map(|block| Ok(BlockHash::of(&self.block(map, block)?))).collect::<Result<Vec<_>>>()?;
        let manifest = map.manifest(&hashes)?;
        let state = self.state.lock();
        Ok(Plan { base: state.version, base_manifest: state.base.clone(), manifest, mtime: state.mtime.unwrap_or(now) })
    }

    /// Ends a commit, with what was published (version, manifest, whether disks have it) or with nothing.
    pub fn end_commit(&self, published: Option<(Version, &Manifest, bool)>) {
        let mut state = self.state.lock();
        state.committing = false;
        if let Some((version, manifest, durable)) = published {
            state.map.committed(manifest);
            state.base = Arc::new(manifest.clone());
            state.version = version;
            state.durable = durable;
            state.origin.clear();
        }
        self.committed.notify_waiters();
    }

    /// Waits until no commit is under way.
    pub async fn commit_done(&self) {
        loop {
            let notified = self.committed.notified();
            if !self.state.lock().committing {
                return;
            }
            notified.await;
        }
    }

    /// Bytes on disk now, for a copy to `path`.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::from_io(&e, "cache file"))
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        self.state.lock().map.seek(offset, data)
    }

    fn block(&self, map: &BlockMap, block: u32) -> Result<Bytes> {
        let (start, len) = map.span(block);
        let mut bytes = vec![0; len];
        // Behind the last write the cache file may be shorter than the file: zeros.
        read_full(&self.file, &mut bytes, start).map_err(|e| Error::from_io(&e, "cache file"))?;
        Ok(bytes.into())
    }
}

impl BlockSource for Content {
    fn read(&self, index: u32) -> Result<Bytes> {
        let map = self.map();
        if map.is_missing(index) {
            return Err(Error::new(dfs_common::ErrorKind::Unavailable, format!("block {index} is in no cache and on no server that answers")));
        }
        self.block(&map, index)
    }
}

/// Copies bytes from one cache file to another or within one, in the kernel where it can.
fn copy_bytes(source: &File, mut from: u64, target: &File, mut to: u64, len: u64) -> std::io::Result<()> {
    let end = to + len;
    while to < end {
        let copied = match system::copy_range((source, from), (target, to), end - to) {
            // Behind its end a cache file stands for zeros.
            Ok(0) => return system::punch_hole(target, to, end - to),
            Ok(copied) => copied,
            Err(_) => {
                let mut buffer = vec![0; (end - to).min(COPY_BUFFER) as usize];
                read_full(source, &mut buffer, from)?;
                target.write_all_at(&buffer, to)?;
                buffer.len() as u64
            }
        };
        (from, to) = (from + copied, to + copied);
    }
    Ok(())
}

/// Reads until `buffer` is full or the file ends; returns how much it got.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn check_size(offset: u64, len: u64) -> Result<(), NotYet> {
    match offset.checked_add(len) {
        Some(end) if end <= dfs_common::block::MAX_FILE_SIZE => Ok(()),
        _ => Err(NotYet::Failed(Error::new(dfs_common::ErrorKind::FileTooLarge, "a file has at most 16 TiB"))),
    }
}

/// Opens or creates a cache file for reading and writing.
pub fn open_file(path: &Path, create: bool) -> Result<File> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(create)
        .open(path)
        .map_err(|e| Error::from_io(&e, format!("cache file {}", path.display())))
}
