//! Versions on their way in, noted before anybody hears of them: so a crash between the directory's commit and this
//! server's own loses no manifest, and a durable commit waits for one flush of a file that is there already, instead of
//! those of its blocks, their folders and the index.
//!
//! Two files in turn, each written from front to back, over and over. An entry holds the manifest and, where the disk shall
//! have them, the blocks. At start entries become block files and index rows, which reconciling with the directory settles.
//! An entry is *over* once its version is indexed or given up, and *settled* once the disk has what it came to.
//!
//! Invariant: only what is settled is overwritten; where the disk has an entry that was waited for, it has all before it in its file.
//!
//! Entry, little endian: length u32 of what follows, BLAKE3 (32) of what follows up to the manifest's end, number u64, the
//! number up to which all are settled u64, inode u64 (0: none, the entry only says that), version u64, length of the manifest u32,
//! count of blocks u32, their lengths u32 each, the manifest, the blocks. Numbers rise by one within a file: what follows
//! one that does not is of an earlier turn. Blocks are checked against the manifest by whoever takes them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dfs_common::api::directory::VersionOf;
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::storage::seconds;
use super::upload::Parts;

/// A file that would become longer than this is full.
const MAX_BYTES: u64 = 8 << 20;
/// Files grow by this many bytes of zeros: a flush of what overwrites them need not wait for the file system's own journal.
const STEP: u64 = 1 << 20;
/// Bytes of an entry in front of its hash's range, and those of fixed length behind.
const PREFIX: usize = 36;
const HEAD: usize = 40;

/// A version that an earlier process noted.
#[derive(Clone, Debug)]
pub(super) struct Note {
    number: u64,
    pub(super) what: VersionOf,
    /// How `body` is made up.
    pub(super) parts: Parts,
    /// Manifest and blocks.
    pub(super) body: Bytes,
}

/// The files: `journal.0` and `journal.1`.
#[derive(Debug)]
pub(super) struct Journal {
    files: [Sink; 2],
    inner: Mutex<Inner>,
    /// A flush failed: nobody knows what the disk has.
    failed: AtomicBool,
    /// One file is full: the sooner it is settled, the better.
    pub(super) turned: Notify,
}

#[derive(Debug)]
struct Sink {
    file: File,
    path: PathBuf,
    /// The disk has the entries up to this number.
    synced: Mutex<u64>,
}

#[derive(Debug)]
struct Inner {
    /// The file that is being written, and where its next entry begins.
    current: usize,
    end: u64,
    /// The lengths of both files.
    lens: [u64; 2],
    /// The last number in each.
    last: [u64; 2],
    next: u64,
    under_way: BTreeSet<u64>,
    settled: u64,
}

/// A version that was noted. It is over when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Entry {
    journal: Arc<Journal>,
    number: u64,
    file: usize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.journal.inner.lock().under_way.remove(&self.number);
    }
}

impl Entry {
    /// Returns when the disk has it.
    pub(super) fn sync(&self) -> Result<()> {
        let sink = &self.journal.files[self.file];
        let mut synced = sink.synced.lock();
        if *synced >= self.number {
            return Ok(());
        }
        if self.journal.failed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Internal, format!("{} could not be flushed before", sink.path.display())));
        }
        // Those who wait meanwhile find theirs done, too.
        let last = self.journal.inner.lock().last[self.file];
        if let Err(e) = sink.file.sync_data() {
            // What the kernel could not write it may have forgotten: a second flush would prove nothing.
            self.journal.failed.store(true, Ordering::Relaxed);
            return Err(Error::from_io(&e, sink.path.display()));
        }
        *synced = last;
        Ok(())
    }

    /// It stays noted until the next start.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Journal {
    /// Opens the files in `data` and returns what an earlier process noted and did not settle, in its order.
    /// [`Journal::settle`] must follow once that is on the disk otherwise.
    pub(super) fn open(data: &Path) -> Result<(Arc<Self>, Vec<Note>)> {
        let (mut notes, mut settled, mut last, mut lens) = (Vec::new(), 0, 0, [0; 2]);
        let mut open = |n: usize| -> Result<Sink> {
            let path = data.join(format!("journal.{n}"));
            let context = |e: std::io::Error| Error::from_io(&e, path.display());
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(context)?;
            let content = std::fs::read(&path).map_err(context)?;
            lens[n] = content.len() as u64;
            for (note, settled_then) in entries(&content.into()) {
                settled = settled_then.max(settled);
                last = note.number.max(last);
                notes.push(note);
            }
            Ok(Sink { file, path, synced: Mutex::new(0) })
        };
        let files = [open(0)?, open(1)?];
        notes.retain(|note| note.number > settled && note.what.ino.0 != 0);
        notes.sort_unstable_by_key(|note| note.number);
        // Of what is not found any more some may still be there, under higher numbers.
        let next = (last + 1).max(seconds() << 32);
        if notes.is_empty() {
            settled = next - 1;
        }
        let inner = Inner { current: 0, end: 0, lens, last: [last; 2], next, under_way: BTreeSet::new(), settled };
        let journal = Self { files, inner: Mutex::new(inner), failed: AtomicBool::new(false), turned: Notify::new() };
        Ok((Arc::new(journal), notes))
    }

    /// Notes a version, with blocks that the manifest names; `None` where there is no room, or the disk does not take it.
    pub(super) fn note(self: &Arc<Self>, what: VersionOf, manifest: &[u8], blocks: &[&Bytes]) -> Option<Entry> {
        if self.failed.load(Ordering::Relaxed) {
            return None;
        }
        let mut inner = self.inner.lock();
        let entry = encode(inner.next, inner.settled, what, manifest, blocks);
        if inner.end + entry.len() as u64 > MAX_BYTES {
            let other = 1 - inner.current;
            if entry.len() as u64 > MAX_BYTES || inner.last[other] > inner.settled {
                return None;
            }
            (inner.current, inner.end) = (other, 0);
            self.turned.notify_one();
        }
        if let Err(e) = self.append(&mut inner, &entry) {
            log::debug!("{}: {e}", self.files[inner.current].path.display());
            return None;
        }
        let number = inner.last[inner.current];
        inner.under_way.insert(number);
        Some(Entry { journal: self.clone(), number, file: inner.current })
    }

    /// Writes the entry that has the next number. Where that fails the next one takes its place.
    fn append(&self, inner: &mut Inner, entry: &[u8]) -> std::io::Result<()> {
        let (current, end) = (inner.current, inner.end + entry.len() as u64);
        let file = &self.files[current].file;
        while inner.lens[current] < end {
            file.write_all_at(&vec![0; STEP as usize], inner.lens[current])?;
            inner.lens[current] += STEP;
        }
        file.write_all_at(entry, inner.end)?;
        inner.end = end;
        inner.last[current] = inner.next;
        inner.next += 1;
        Ok(())
    }

    /// True where something is not settled.
    pub(super) fn has_unsettled(&self) -> bool {
        let inner = self.inner.lock();
        inner.settled + 1 < inner.next
    }

    /// True where something up to the number `over` is not settled.
    pub(super) fn is_unsettled(&self, over: u64) -> bool {
        over > self.inner.lock().settled
    }

    /// The number up to which all are over: what they came to can be flushed.
    pub(super) fn over(&self) -> u64 {
        let inner = self.inner.lock();
        inner.under_way.first().unwrap_or(&inner.next) - 1
    }

    /// The disk has what the entries up to `over` came to.
    pub(super) fn settle(&self, over: u64) {
        let mut inner = self.inner.lock();
        let before = inner.settled;
        inner.settled = over.max(before);
        if inner.settled + 1 < inner.next || inner.settled == before {
            return;
        }
        // All: the file starts over with an entry that says so. It may get lost, then what is settled is looked at again.
        let number = inner.next;
        inner.end = 0;
        let marker = encode(number, number, VersionOf { ino: InodeId(0), version: Version(0) }, &[], &[]);
        match self.append(&mut inner, &marker) {
            Ok(()) => inner.settled = number,
            Err(e) => log::warn!("{}: {e}", self.files[inner.current].path.display()),
        }
    }
}

fn encode(number: u64, settled: u64, what: VersionOf, manifest: &[u8], blocks: &[&Bytes]) -> Vec<u8> {
    let hashed = HEAD + 4 * blocks.len() + manifest.len();
    let len = 32 + hashed + blocks.iter().map(|block| block.len()).sum::<usize>();
    let mut entry = Vec::with_capacity(4 + len);
    entry.extend_from_slice(&(len as u32).to_le_bytes());
    entry.extend_from_slice(&[0; 32]);
    for word in [number, settled, what.ino.0, what.version.0] {
        entry.extend_from_slice(&word.to_le_bytes());
    }
    for len in [manifest.len(), blocks.len()].into_iter().chain(blocks.iter().map(|block| block.len())) {
        entry.extend_from_slice(&(len as u32).to_le_bytes());
    }
    entry.extend_from_slice(manifest);
    let hash = BlockHash::of(&entry[PREFIX..]);
    entry[4..PREFIX].copy_from_slice(&hash.0);
    blocks.iter().for_each(|block| entry.extend_from_slice(block));
    entry
}

/// The entries of one turn, each with the number up to which all were settled then.
fn entries(content: &Bytes) -> Vec<(Note, u64)> {
    let (mut found, mut rest): (Vec<(Note, u64)>, Bytes) = (Vec::new(), content.clone());
    while let Some((note, settled, len)) = decode(&rest) {
        if found.last().is_some_and(|(last, _)| note.number != last.number + 1) {
            break;
        }
        found.push((note, settled));
        rest = rest.slice(len..);
    }
    found
}

/// The entry at the beginning of `content`, the settled number, and its length; `None` where there is none, or not all of it.
fn decode(content: &Bytes) -> Option<(Note, u64, usize)> {
    let word = |at: usize| content.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")));
    let long = |at: usize| Some(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
    let total = (word(0)? as usize).checked_add(4).filter(|&total| total >= PREFIX + HEAD && total <= content.len())?;
    let (manifest_len, count) = (word(PREFIX + 32)?, word(PREFIX + 36)?);
    let manifest_at = (count as usize).checked_mul(4)?.checked_add(PREFIX + HEAD).filter(|&at| at <= total)?;
    let hashed_end = manifest_at.checked_add(manifest_len as usize).filter(|&end| end <= total)?;
    if BlockHash::of(&content[PREFIX..hashed_end]).0 != content[4..PREFIX] {
        return None;
    }
    let inline = (0..count as usize).map(|n| word(PREFIX + HEAD + 4 * n)).collect::<Option<Vec<u32>>>()?;
    if hashed_end as u64 + inline.iter().map(|&len| u64::from(len)).sum::<u64>() != total as u64 {
        return None;
    }
    let what = VersionOf { ino: InodeId(long(PREFIX + 16)?), version: Version(long(PREFIX + 24)?) };
    let parts = Parts { manifest_len, inline, ..Parts::default() };
    let note = Note { number: long(PREFIX)?, what, parts, body: content.slice(manifest_at..total) };
    Some((note, long(PREFIX + 8)?, total))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
