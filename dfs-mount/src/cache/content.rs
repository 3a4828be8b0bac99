//! The content of one open file: its cache file and the state of its blocks, shared by
//! every handle of the node.
//!
//! Reads and writes of what is here are plain system calls under one short lock. What
//! is missing is named, and fetched by the caller. While a commit is under way nothing
//! changes, so that a version is always a state that the file had.

mod ahead;
mod committing;
mod copying;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use ahead::Taken;
use bytes::Bytes;
use committing::Hashed;
pub use committing::Plan;
pub use copying::CopyNotYet;
use dfs_common::attributes::Timestamp;
use dfs_common::block::Manifest;
use dfs_common::ids::{InodeId, ServerId, Version};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::ahead::Run;
use super::BlockMap;
use super::arriving::{Arriving, Claim};
use super::file::{modified, read_at, read_filled};
use super::journal::Journal;
use super::record::{Begun, Owned, Record, runs};
use super::trees::Trees;
use crate::failpoint;
use crate::system;
use crate::turn::Turn;

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

#[derive(Debug)]
struct State {
    map: BlockMap,
    path: PathBuf,
    /// The version that the map was made from, or last committed as.
    version: Version,
    /// When the content last changed, or the time that a program set.
    mtime: Option<Timestamp>,
    committing: bool,
    /// While a commit is under way: what was read to be hashed, and is going to be sent.
    hashed: Vec<Hashed>,
    /// A write(2) or copy_file_range(2) since the last commit has made the kernel forget size, times and blocks, and answers on their way.
    written: bool,
    /// False where this mount published the version without asking for disks.
    durable: bool,
    /// The version was published by fsync, and nobody has closed the file since.
    goes_on: bool,
    /// Servers that have what was copied since the last commit.
    origin: Vec<ServerId>,
    /// Where changes are noted, while there may be any.
    noted: Option<Noted>,
    /// The changes could not be published and are kept elsewhere: nothing is written here any more.
    aside: bool,
    /// Programs may have changed bytes that nobody told of: they have mapped the cache file itself.
    mapped: bool,
    /// The cache file is no open file's any more, and may be made another version.
    shelved: bool,
    /// What a program is writing from front to back.
    run: Run,
}

#[derive(Debug)]
struct Noted {
    journal: Arc<Journal>,
    /// The file's number there.
    file: u64,
}

impl State {
    fn note_version(&self, version: Version, manifest: &Arc<Manifest>) -> Result<()> {
        self.noted.as_ref().map_or(Ok(()), |noted| noted.journal.rebased(noted.file, version, manifest))
    }

    fn note(&self, record: impl FnOnce(u64) -> Record) -> Result<()> {
        match &self.noted {
            Some(noted) => noted.journal.append(&record(noted.file)),
            None => Ok(()),
        }
    }

    /// The bytes of missing blocks, a run of whole ones at `start..end`, are in the file.
    fn note_present(&self, start: u64, end: u64) -> Result<()> {
        let bits = self.map.bits();
        self.note(|file| Record::Present(file, vec![((start >> bits) as u32, ((end - 1) >> bits) as u32)]))
    }
}

/// An open cache file.
#[derive(Debug)]
pub struct Content {
    file: File,
    state: Mutex<State>,
    committed: Notify,
    /// There is something to send ahead, and nobody was told.
    ahead: AtomicBool,
    /// Held by who waits for blocks: the next one shares its failure.
    pub(crate) fill: Turn,
    /// Which blocks are being fetched.
    pub(crate) arriving: Arriving,
    /// Held while a version is committed.
    pub(crate) commit: Turn,
    trees: Arc<Trees>,
}

impl Content {
    /// Takes over `file` at `path`, whose blocks are in the state `map`, which is `version` or is built on it.
    pub fn new(file: File, path: PathBuf, version: Version, map: BlockMap) -> Self {
        let state = State {
            map,
            path,
            version,
            mtime: None,
            committing: false,
            hashed: Vec::new(),
            written: false,
            durable: true,
            goes_on: false,
            origin: Vec::new(),
            noted: None,
            aside: false,
            mapped: false,
            shelved: false,
            run: Run::default(),
        };
        Self {
            file,
            state: Mutex::new(state),
            committed: Notify::new(),
            ahead: AtomicBool::new(false),
            fill: Turn::default(),
            arriving: Arriving::default(),
            commit: Turn::default(),
            trees: Arc::default(),
        }
    }

    /// The same, which shares what is known of hashes.
    pub(super) fn sharing(self, trees: &Arc<Trees>) -> Self {
        Self { trees: trees.clone(), ..self }
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
        !state.aside && (state.map.is_changed() || state.mapped || (durable && !state.durable))
    }

    /// True where calls have written since the last commit, and nothing changed without the kernel's knowledge: it has forgotten
    /// size, times and blocks by itself.
    pub fn was_written(&self) -> bool {
        let state = self.state.lock();
        state.written && !state.mapped
    }

    /// True where every byte is here.
    pub fn is_complete(&self) -> bool {
        self.state.lock().map.is_complete()
    }

    /// True where every byte is here and is the version's.
    pub fn is_whole(&self) -> bool {
        let state = self.state.lock();
        !state.aside && !state.map.is_changed() && state.map.is_complete()
    }

    /// The cache file, for who serves from it.
    pub fn with_file<T>(&self, look: impl FnOnce(&File) -> T) -> T {
        look(&self.file)
    }

    /// From now on programs may store to a mapping of the cache file: each commit compares all bytes with the version.
    pub fn may_be_mapped(&self) {
        self.state.lock().mapped = true;
    }

    /// Whether there may be such mappings.
    pub fn is_mapped(&self) -> bool {
        self.state.lock().mapped
    }

    /// No mapping for writing is left.
    pub fn is_not_mapped(&self) {
        self.state.lock().mapped = false;
    }

    /// Changed content, last changed at `mtime`.
    pub(super) fn changed_from(file: File, path: PathBuf, version: Version, map: BlockMap, mtime: Timestamp) -> Self {
        let content = Self::new(file, path, version, map);
        content.state.lock().mtime = Some(mtime);
        content
    }

    /// From now on changes are noted in `journal` under the number `file`.
    pub fn note_in(&self, journal: Arc<Journal>, file: u64) {
        self.state.lock().noted = Some(Noted { journal, file });
    }

    /// The number in the journal, if changes are noted.
    pub fn noted(&self) -> Option<u64> {
        self.state.lock().noted.as_ref().map(|noted| noted.file)
    }

    /// Nothing is noted any more; the number that it had.
    pub fn end_notes(&self) -> Option<u64> {
        self.state.lock().noted.take().map(|noted| noted.file)
    }

    /// What the journal must know before the first change, and the manifest, which is not in it.
    pub fn begun(&self, ino: InodeId, path: String, owned: Owned) -> (Begun, Arc<Manifest>) {
        let state = self.state.lock();
        let begun = Begun { ino, path, owned, version: state.version, manifest: Bytes::new(), missing: runs(state.map.missing()) };
        (begun, state.map.base().clone())
    }

    /// Nothing is written here from now on. False where that was so before.
    pub fn put_aside(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().aside, true)
    }

    /// True where the changes could not be published and are kept elsewhere.
    pub fn is_aside(&self) -> bool {
        self.state.lock().aside
    }

    /// The version's blocks as the servers have them, and those of `blocks` that are still missing.
    pub fn base(&self, blocks: &[u32]) -> (Arc<Manifest>, Vec<u32>) {
        let state = self.state.lock();
        let missing = blocks.iter().copied().filter(|&b| state.map.is_missing(b)).collect();
        (state.map.base().clone(), missing)
    }

    /// The version that the content is built on, and its blocks.
    pub fn source(&self) -> (Version, Arc<Manifest>) {
        let state = self.state.lock();
        (state.version, state.map.base().clone())
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

    /// True where the version was published by fsync, and nobody has closed the file since.
    pub fn goes_on(&self) -> bool {
        self.state.lock().goes_on
    }

    /// Somebody has closed the file: what is published is a version of its own.
    pub fn closed(&self) {
        self.state.lock().goes_on = false;
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
        read_at(&self.file, offset, len).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))
    }

    /// Writes `data` at `offset`, or at the end of the file with `append`, for a write(2).
    pub fn write(&self, offset: u64, data: &[u8], append: bool, now: Timestamp) -> Result<(), NotYet> {
        self.put(offset, data, append, now, true)
    }

    /// Writes what was stored to a mapping, at `offset`.
    pub fn write_back(&self, offset: u64, data: &[u8], now: Timestamp) -> Result<(), NotYet> {
        self.put(offset, data, false, now, false)
    }

    fn put(&self, offset: u64, data: &[u8], append: bool, now: Timestamp, is_call: bool) -> Result<(), NotYet> {
        let names = if append { Vec::new() } else { self.names(offset, data) };
        self.change(now, |file, state| {
            let offset = if append { state.map.size() } else { offset };
            let len = data.len() as u64;
            check_size(offset, len)?;
            let needed = state.map.needed_to_write(offset, len);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            failpoint::reach("write.begun");
            // One piece after the other, so that what a crash leaves of a write is its beginning: the bytes of a missing block
            // count from the record on.
            for (start, end, missing) in state.map.pieces(offset, len) {
                let result = file.write_all_at(&data[(start - offset) as usize..(end - offset) as usize], start);
                failpoint::reach("write.bytes");
                let result =
                    result.map_err(|e| Error::from_io(&e, "cache file")).and_then(|()| if missing { state.note_present(start, end) } else { Ok(()) });
                if let Err(e) = result {
                    // The map must not call equal to a version what is overwritten in part.
                    if !missing {
                        state.map.wrote(start, end.min(state.map.size()).saturating_sub(start));
                    }
                    file.set_len(state.map.size()).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
                    return Err(NotYet::Failed(e));
                }
                state.map.wrote(start, end - start);
            }
            names.iter().for_each(|&(block, name)| state.map.named(block, name));
            state.written |= is_call;
            self.note_run(state, offset, len);
            failpoint::reach("write.done");
            Ok(())
        })
    }

    /// Sets the length.
    pub fn truncate(&self, size: u64, now: Timestamp) -> Result<(), NotYet> {
        self.change(now, |file, state| {
            check_size(size, 0)?;
            let needed = state.map.needed_to_truncate(size);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            file.set_len(size).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
            failpoint::reach("truncate.cut");
            let first_gone = size.div_ceil(1 << state.map.bits()) as u32;
            let noted = if state.map.is_missing_from(first_gone) { state.note(|file| Record::Cut(file, first_gone)) } else { Ok(()) };
            state.map.truncate(size);
            failpoint::reach("truncate.done");
            noted.map_err(NotYet::Failed)
        })
    }

    /// Turns the bytes `offset..offset + len` into zeros, whole blocks into holes. The length stays.
    pub fn zero(&self, offset: u64, len: u64, now: Timestamp) -> Result<(), NotYet> {
        self.change(now, |file, state| {
            let map = &mut state.map;
            let end = offset.saturating_add(len).min(map.size());
            if offset >= end {
                return Ok(());
            }
            let needed = map.needed_to_write(offset, end - offset);
            if !needed.is_empty() {
                return Err(NotYet::Missing(needed));
            }
            system::punch_hole(file, offset, end - offset).map_err(|e| NotYet::Failed(Error::from_io(&e, "cache file")))?;
            let were_missing = runs(map.needed_to_read(offset, end - offset));
            map.zeroed(offset, end - offset);
            let noted = if were_missing.is_empty() { Ok(()) } else { state.note(|file| Record::Present(file, were_missing)) };
            noted.map_err(NotYet::Failed)
        })
    }

    fn change<T>(&self, now: Timestamp, apply: impl FnOnce(&File, &mut State) -> Result<T, NotYet>) -> Result<T, NotYet> {
        let mut state = self.state.lock();
        if state.aside {
            return Err(NotYet::Failed(set_aside()));
        }
        if state.committing {
            return Err(NotYet::Committing);
        }
        let done = apply(&self.file, &mut state)?;
        state.mtime = Some(now);
        Ok(done)
    }

    /// A program set the modification time; the next commit carries it.
    pub fn set_mtime(&self, mtime: Timestamp) -> Result<()> {
        let mut state = self.state.lock();
        state.mtime = Some(mtime);
        state.note(|file| Record::Timed(file, mtime, modified(&self.file)))
    }

    /// A run of missing blocks, of about `bytes` bytes, that nobody fetches: those that will probably be read next.
    pub fn claim_next(&self, bytes: u64) -> Option<Claim<'_>> {
        let state = self.state.lock();
        self.arriving.claim_next(|block| state.map.missing_from(block), (bytes >> state.map.bits()).max(1) as usize)
    }

    /// How many bytes are missing, to the block.
    pub fn missing_bytes(&self) -> u64 {
        let state = self.state.lock();
        (state.map.missing().count() as u64) << state.map.bits()
    }

    /// Nobody has the file open: what is on its way comes too late.
    pub fn shelve(&self) {
        self.state.lock().shelved = true;
    }

    /// Puts fetched and verified bytes of missing blocks in place; `first` is the block that `bytes` begins with.
    pub fn fetched(&self, first: u32, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        if state.shelved {
            return Err(Error::new(ErrorKind::Stale, "the file was closed meanwhile"));
        }
        let size = 1usize << state.map.bits();
        let mut arrived = Vec::new();
        for (block, piece) in (first..).zip(bytes.chunks(size)) {
            // A block that was written meanwhile is newer than what was fetched.
            if state.map.is_missing(block) {
                let (start, len) = state.map.span(block);
                let result = self.file.write_all_at(&piece[..len.min(piece.len())], start);
                result.map_err(|e| Error::from_io(&e, "cache file"))?;
                arrived.push(block);
            }
        }
        failpoint::reach("fetch.bytes");
        if !arrived.is_empty() {
            state.note(|file| Record::Present(file, runs(arrived.iter().copied())))?;
        }
        failpoint::reach("fetch.recorded");
        for block in arrived {
            state.map.fetched(block);
        }
        Ok(())
    }

    /// Becomes another version, keeping the blocks that are equal. Only without changes and while nobody reads.
    pub fn adopt(&self, version: Version, manifest: Manifest) -> Result<()> {
        let mut state = self.state.lock();
        let (mut map, old_bits, size) = (state.map.clone(), state.map.bits(), manifest.size());
        for block in map.adopt(manifest) {
            let clear = system::punch_hole(&self.file, u64::from(block) << old_bits, 1 << old_bits);
            clear.map_err(|e| Error::from_io(&e, "cache file"))?;
        }
        self.file.set_len(size).map_err(|e| Error::from_io(&e, "cache file"))?;
        state.map = map;
        state.version = version;
        state.durable = true;
        state.mtime = None;
        Ok(())
    }

    /// Bytes on disk now, for a copy to `path`.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::from_io(&e, "cache file"))
    }

    /// The next data or hole at or after `offset`.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        self.state.lock().map.seek(offset, data)
    }

    /// The bytes of `block` within the file as the cache file has them.
    pub(super) fn block(&self, map: &BlockMap, block: u32) -> Result<Bytes> {
        self.bytes(map.span(block))
    }

    fn bytes(&self, (start, len): (u64, usize)) -> Result<Bytes> {
        read_filled(&self.file, start, len).map(Bytes::from).map_err(|e| Error::from_io(&e, "cache file"))
    }
}

/// Why nothing is written to content that was set aside.
pub fn set_aside() -> Error {
    Error::new(ErrorKind::Stale, "what was written here could not be published and is kept as a recoverable version")
}

fn check_size(offset: u64, len: u64) -> Result<(), NotYet> {
    match offset.checked_add(len) {
        Some(end) if end <= dfs_common::block::MAX_FILE_SIZE => Ok(()),
        _ => Err(NotYet::Failed(Error::new(ErrorKind::FileTooLarge, "a file has at most 16 TiB"))),
    }
}
