//! What one server stores: block files, the index of versions, and the pins between them.
//!
//! It owns the rule for when a block may be deleted: no version names it, nothing pins
//! it, and both are looked at while no pin can be added. It knows no other server.
//! Calls are synchronous; large ones belong on a thread of their own.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dfs_common::api::directory::VersionOf;
use dfs_common::block::{BlockHash, BlockSet, Manifest};
use dfs_common::ids::{SessionId, Version};
use dfs_common::patch::Patch;
use dfs_common::{Error, ErrorKind, Result};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::blocks::{BlockFiles, Change, Check, Found, Unflushed, WriteBack};
use super::index::{Claim, Index, Kept, Row, Since, is_embedded};
use super::journal::{Entry, Journal, Note};
use super::patched::Patched;
use super::pins::{Pinner, Pins};
use super::upload::Upload;
use crate::store::{Durability, Store};

/// Of up to this many bytes a durable commit writes its blocks twice instead of flushing their files.
const MAX_NOTED: usize = 256 << 10;

/// So many manifests are at hand while versions are dropped: of one, of what it is counted since, and of what is counted since it.
const RECENT: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// The flushes of what no fsync asked for, counted.
#[derive(Clone, Copy, Debug, Default)]
struct Flushes {
    begun: u64,
    /// The last one that succeeded.
    done: u64,
}

/// Everything below one data directory.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) files: BlockFiles,
    pub(super) index: Index,
    pub(super) journal: Arc<Journal>,
    patched: Patched,
    flushes: watch::Sender<Flushes>,
    pins: Mutex<Pins>,
    /// Blocks that nothing seemed to need when they were put here.
    unneeded: Mutex<BlockSet>,
    /// Blocks that were no good and have not come again: a version that is here may lack them.
    discarded: Mutex<BlockSet>,
    /// Something was put there.
    pub(super) collectable: Notify,
    blocks: AtomicI64,
    bytes: AtomicI64,
    /// Blocks of earlier processes are counted; before that nothing is collected.
    counted: AtomicBool,
    limit: Option<u64>,
    start: Instant,
}

/// Keeps blocks from being collected while it lives.
#[derive(Debug)]
pub(super) struct Hold {
    storage: Arc<Storage>,
    /// `None` once it has ended.
    number: Option<u64>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let free = self.storage.pins.lock().let_go(number);
        self.storage.unneeded(free);
    }
}

impl Hold {
    /// A version that was just indexed keeps the blocks from here on.
    pub(super) fn settle(mut self) {
        if let Some(number) = self.number.take() {
            self.storage.pins.lock().settle(number);
        }
    }

    /// Drops the version that this is about, which was refused; false where it is on its way in once more, and may be accepted.
    pub(super) fn undo(&self, claim: Claim) -> Result<bool> {
        // While this is held nobody begins to add it.
        let pins = self.storage.pins.lock();
        let alone = self.number.is_some_and(|own| pins.is_alone(own));
        if alone {
            self.storage.drop_claims(&[claim])?;
        }
        Ok(alone)
    }

    /// Keeps the blocks for as long as the process lives.
    pub(super) fn keep(mut self) {
        self.number = None;
    }
}

impl Storage {
    /// Opens `data`, whose index is in `store`; blocks may take `limit` bytes.
    pub(super) fn open(data: &Path, store: Arc<dyn Store>, limit: Option<u64>) -> Result<Arc<Self>> {
        let files = BlockFiles::open(data)?;
        let index = Index::open(store)?;
        let (journal, unsettled) = Journal::open(data)?;
        let mut storage = Self {
            files,
            index,
            journal,
            patched: Patched::default(),
            flushes: watch::Sender::default(),
            pins: Mutex::default(),
            unneeded: Mutex::default(),
            discarded: Mutex::default(),
            collectable: Notify::new(),
            blocks: AtomicI64::new(0),
            bytes: AtomicI64::new(0),
            counted: AtomicBool::new(false),
            limit,
            start: Instant::now(),
        };
        let is_clean = unsettled.is_empty();
        unsettled.into_iter().try_for_each(|note| storage.take_noted(note))?;
        if !is_clean {
            storage.flush()?;
            // What came of that is counted with the rest.
            storage.files.start()?;
            (storage.blocks, storage.bytes) = Default::default();
        }
        Ok(Arc::new(storage))
    }

    /// Makes of a version that an earlier process noted what it was to become, if that is still possible.
    fn take_noted(&self, Note { what, parts, body, .. }: Note) -> Result<()> {
        let upload = match Upload::parse(&body, &parts, None, |patch| self.patch(patch)) {
            Ok(upload) => upload,
            Err(e) => {
                // Nobody waited for its flush, or it would be whole.
                log::info!("version {} of inode {} was noted in part when the server ended: {e}", what.version, what.ino);
                return Ok(());
            }
        };
        for (&hash, content) in &upload.inline {
            self.files.write(hash, content, WriteBack::Later)?;
        }
        if !is_embedded(&upload.manifest) {
            self.files.write(upload.hash, &upload.encoded, WriteBack::Later)?;
        }
        if self.absent(what, &upload)?.is_empty() && self.add(what, &upload, Durability::Process)? {
            log::info!("version {} of inode {} was being published when the server ended", what.version, what.ino);
        }
        Ok(())
    }

    /// Bytes of blocks.
    pub(super) fn used(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// Bytes that blocks may use, used ones included.
    pub(super) fn capacity(&self) -> u64 {
        let disk = match self.files.available() {
            Ok(available) => self.used() + available,
            Err(e) => {
                log::warn!("{e}");
                self.used()
            }
        };
        self.limit.map_or(disk, |limit| limit.min(disk))
    }

    fn account(&self, change: Change) {
        self.blocks.fetch_add(change.blocks, Ordering::Relaxed);
        self.bytes.fetch_add(change.bytes, Ordering::Relaxed);
    }

    /// Counts the blocks of earlier processes.
    pub(super) fn count_blocks(&self) -> Result<()> {
        let mut change = Change::default();
        self.files.list(|_, len| {
            change.blocks += 1;
            change.bytes += len as i64;
        })?;
        self.account(change);
        self.counted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps every block of `upload`, and its manifest, from being collected.
    pub(super) fn hold(self: &Arc<Self>, upload: &Arc<Upload>) -> Hold {
        let number = self.pins.lock().hold(upload.clone());
        Hold { storage: self.clone(), number: Some(number) }
    }

    /// True while a version with the manifest `hash` is on its way in.
    pub(super) fn is_on_its_way(&self, hash: BlockHash) -> bool {
        self.pins.lock().holds(hash)
    }

    /// Keeps blocks for a client's upload, or for ten minutes where no session is named.
    pub(super) fn pin(&self, session: Option<SessionId>, hashes: &[BlockHash]) {
        let now = Instant::now();
        let pinner = session.map_or_else(|| Pinner::Minute((now - self.start).as_secs() / 60), Pinner::Session);
        let mut pins = self.pins.lock();
        for &hash in hashes {
            pins.pin(now, pinner, hash);
        }
    }

    /// A session was heard of.
    pub(super) fn renew(&self, session: SessionId) {
        self.pins.lock().renew(Instant::now(), session);
    }

    /// A version was published: the session's pins on its blocks end.
    pub(super) fn unpin(&self, session: Option<SessionId>, upload: &Upload) {
        self.pins.lock().unpin(session, upload.manifest.blocks().iter().map(|row| row.1));
    }

    /// Ends pins whose time is over.
    pub(super) fn expire_pins(&self) {
        let free = self.pins.lock().expire(Instant::now());
        self.unneeded(free);
    }

    /// Stores one block whose hash was checked.
    pub(super) fn put(&self, hash: BlockHash, content: &[u8], write_back: WriteBack) -> Result<()> {
        let len = content.len() as u64;
        let full = self.limit.is_some_and(|limit| self.used() + len > limit) || !self.files.have_room(len)?;
        if full && self.files.len(hash).is_none() {
            return Err(Error::new(ErrorKind::NoSpace, format!("no room for {len} bytes beside the {} that blocks take", self.used())));
        }
        let change = self.files.write(hash, content, write_back)?;
        self.account(change);
        let mut discarded = self.discarded.lock();
        if !discarded.is_empty() {
            discarded.remove(&hash);
        }
        Ok(())
    }

    /// The block that `patch` makes of one that is here, and its name; `NotFound` where that is not here.
    pub(super) fn patch(&self, patch: &Patch) -> Result<(BlockHash, Bytes)> {
        self.patched.make(patch, |hash| self.files.unchecked(hash))
    }

    /// Stores what came with `upload`, and its manifest.
    pub(super) fn put_upload(&self, upload: &Upload) -> Result<()> {
        for (&hash, content) in &upload.inline {
            self.put(hash, content, WriteBack::Later)?;
        }
        if !is_embedded(&upload.manifest) {
            self.put(upload.hash, &upload.encoded, WriteBack::Later)?;
        }
        Ok(())
    }

    /// What of `upload` the disk may not have yet; `but_noted`: besides what [`Storage::note`] has in the journal.
    pub(super) fn unflushed(&self, upload: &Upload, but_noted: bool) -> Unflushed {
        let own = (!is_embedded(&upload.manifest) && !but_noted).then_some(upload.hash);
        let is_noted = |hash: &&BlockHash| but_noted && is_noted(upload) && upload.inline.contains_key(*hash);
        self.files.unflushed(upload.manifest.blocks().iter().map(|row| &row.1).filter(|hash| !is_noted(hash)).copied().chain(own))
    }

    /// Returns when the disk has every version: blocks, and what the journal noted of versions that are indexed. Where there is much the
    /// file system is flushed, with the index in the data directory: no commit waits for that meanwhile.
    pub(super) fn flush(&self) -> Result<()> {
        let over = self.journal.over();
        let unflushed = self.files.all_unflushed();
        match unflushed.is_flushed_singly() {
            true => {
                self.files.flush(&unflushed)?;
                if self.journal.is_unsettled(over) {
                    self.index.sync()?;
                }
            }
            false => self.files.flush_all()?,
        }
        self.journal.settle(over);
        Ok(())
    }

    /// Begins one of the flushes that [`Storage::flushed`] waits for; its number.
    pub(super) fn flush_begins(&self) -> u64 {
        self.flushes.send_modify(|flushes| flushes.begun += 1);
        self.flushes.borrow().begun
    }

    /// It has succeeded.
    pub(super) fn flush_ends(&self, number: u64) {
        self.flushes.send_modify(|flushes| flushes.done = number);
    }

    /// Returns when the disk has all that was stored before: after the next flush, where it has not by now.
    pub(super) async fn flushed(&self) {
        if self.has_unflushed() {
            let mut flushes = self.flushes.subscribe();
            let next = flushes.borrow().begun + 1;
            flushes.wait_for(|flushes| flushes.done >= next).await.expect("the sender lives as long as this");
        }
    }

    #[cfg(test)]
    pub(super) fn is_waited_for(&self) -> bool {
        self.flushes.receiver_count() > 0
    }

    /// True where [`Storage::flush`] has something to do.
    pub(super) fn has_unflushed(&self) -> bool {
        self.files.has_unflushed() || self.journal.has_unsettled()
    }

    /// The blocks of `upload`, which shall be `what`, that are neither here nor came with it. One of a wrong length is removed first.
    pub(super) fn absent(&self, what: VersionOf, upload: &Upload) -> Result<Vec<BlockHash>> {
        let is_absent = |hash: BlockHash, len: usize| match self.files.len(hash) {
            _ if upload.inline.contains_key(&hash) => false,
            Some(found) if found == len as u64 => false,
            Some(_) => {
                self.discard(hash);
                true
            }
            None => true,
        };
        // What the version before has is here, as long as that is, but for what was found to be damaged.
        let base = upload.base.as_ref().and_then(|(hash, _)| Some((before(what)?, *hash)));
        if let Some(base) = base
            && self.index.has(base)?
        {
            let discarded = self.discarded.lock();
            let named = |&hash: &BlockHash| upload.len_of(hash).map(|len| (hash, len));
            let looked_at: Vec<_> = upload.fresh.iter().chain(discarded.iter()).filter_map(named).collect();
            drop(discarded);
            return Ok(looked_at.into_iter().filter(|&(hash, len)| is_absent(hash, len)).map(|block| block.0).collect());
        }
        Ok(upload.blocks().iter().filter(|&(&hash, &len)| is_absent(hash, len)).map(|block| *block.0).collect())
    }

    /// Removes a block that is no good.
    pub(super) fn discard(&self, hash: BlockHash) {
        self.discarded.lock().insert(hash);
        match self.files.remove_damaged(hash) {
            Ok(change) => self.account(change),
            Err(e) => log::error!("{e}"),
        }
    }

    /// Notes that `upload` is about to be published as `what`, with the blocks that came with it where the disk shall have them
    /// and they are few. To be dropped once it is indexed or given up. `None` where there is no room.
    pub(super) fn note(&self, what: VersionOf, upload: &Upload, durable: bool) -> Option<Entry> {
        let blocks: Vec<&Bytes> = if durable && is_noted(upload) { upload.inline.values().collect() } else { Vec::new() };
        self.journal.note(what, &upload.encoded, &blocks)
    }

    /// Indexes a version whose blocks are here; false where it was.
    pub(super) fn add(&self, what: VersionOf, upload: &Upload, durability: Durability) -> Result<bool> {
        let since = before(what).zip(upload.kept_since()).map(|(before, (hash, counted))| Since { claim: (before, hash), counted });
        self.index.add((what, upload.hash), (&upload.manifest, &upload.encoded), since, seconds(), durability)
    }

    /// Drops versions; their blocks are collected later, where nothing else needs them.
    pub(super) fn drop_claims(&self, claims: &[Claim]) -> Result<()> {
        self.drop_older(claims, u64::MAX)
    }

    /// The same, but for those that were added after `latest`, in seconds since 1970.
    pub(super) fn drop_older(&self, claims: &[Claim], latest: u64) -> Result<()> {
        // Each is compared with the next one, which is the next to go.
        let recent = RefCell::new(LruCache::new(RECENT));
        let read = |(_, hash): Claim, row: &Row| {
            let mut recent = recent.borrow_mut();
            let manifest = recent.try_get_or_insert(hash, || self.manifest(hash, row.embedded.as_deref()).ok().flatten().map(Arc::new).ok_or(()));
            manifest.ok().map(|manifest| Kept::new(manifest.clone(), hash))
        };
        let free = self.index.remove(claims, latest, &read)?;
        self.unneeded(free);
        Ok(())
    }

    /// The manifest `hash`, which lies in its row or in a block; `None` where that block is missing or damaged.
    pub(super) fn manifest(&self, hash: BlockHash, embedded: Option<&[u8]>) -> Result<Option<Manifest>> {
        match embedded {
            Some(bytes) => Manifest::decode(bytes).map(Some),
            None => match self.files.read(hash)? {
                Found::Block(bytes) => Manifest::decode(&bytes).map(Some),
                Found::Missing | Found::Corrupt => Ok(None),
            },
        }
    }

    /// Fills `content`, which starts at byte `start` of the version, from the blocks here. Returns the places of
    /// blocks that are missing or damaged, where it holds anything then.
    pub(super) fn read_into(&self, manifest: &Manifest, start: u64, content: &mut [u8], check: Check) -> Result<Vec<(u32, Found)>> {
        let (mut bad, mut filled) = (Vec::new(), 0);
        for (index, hash) in blocks_of(manifest, start, content.len()) {
            let (at, len) = (u64::from(index) << manifest.block_bits(), manifest.block_len(index));
            content[filled..at.saturating_sub(start) as usize].fill(0);
            filled = content.len().min((at + len as u64).saturating_sub(start) as usize);
            let whole = at.checked_sub(start).and_then(|at| content.get_mut(at as usize..)?.get_mut(..len));
            let problem = match whole {
                Some(place) => self.files.read_to(hash, place, check)?,
                None => {
                    let mut block = vec![0; len];
                    let problem = self.files.read_to(hash, &mut block, check)?;
                    copy_block(manifest, index, &block, start, content);
                    problem
                }
            };
            bad.extend(problem.map(|found| (index, found)));
        }
        content[filled..].fill(0);
        Ok(bad)
    }

    /// Blocks that nothing seems to need.
    pub(super) fn unneeded(&self, hashes: Vec<BlockHash>) {
        if hashes.is_empty() {
            return;
        }
        self.unneeded.lock().extend(hashes);
        self.collectable.notify_one();
    }

    /// Blocks of earlier processes that no version names: a crash between two steps left them.
    pub(super) fn sweep(&self) -> Result<()> {
        let mut unnamed = Vec::new();
        // Only those are remembered: there may be millions of the others.
        self.files.list(|hash, _| match self.index.names(hash) {
            Ok(true) => {}
            Ok(false) => unnamed.push(hash),
            Err(e) => log::error!("block {hash}: {e}"),
        })?;
        if !unnamed.is_empty() {
            log::info!("{} blocks belong to no version", unnamed.len());
        }
        self.unneeded(unnamed);
        Ok(())
    }

    /// Deletes up to `limit` blocks that nothing needs; true where there may be more.
    pub(super) fn collect(&self, limit: usize) -> Result<bool> {
        if !self.counted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let batch: Vec<BlockHash> = self.unneeded.lock().iter().take(limit).copied().collect();
        for hash in &batch {
            self.unneeded.lock().remove(hash);
            // Held until the block is gone: whoever pins it later finds it missing and sends it again.
            let pins = self.pins.lock();
            if !pins.contains(*hash) && !self.index.names(*hash)? {
                self.account(self.files.remove(*hash)?);
            }
        }
        Ok(batch.len() == limit)
    }
}

/// Whether the journal takes the blocks that came with `upload`: what is more is written once.
fn is_noted(upload: &Upload) -> bool {
    upload.inline.values().map(Bytes::len).sum::<usize>() <= MAX_NOTED
}

/// Seconds since 1970.
pub(super) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The version that `what` is built on.
fn before(what: VersionOf) -> Option<VersionOf> {
    what.version.0.checked_sub(1).map(|version| VersionOf { version: Version(version), ..what })
}

/// The stored blocks that `len` bytes from `start` touch.
pub(super) fn blocks_of(manifest: &Manifest, start: u64, len: usize) -> impl Iterator<Item = (u32, BlockHash)> + '_ {
    let first = start >> manifest.block_bits();
    let end = (start + len as u64).div_ceil(manifest.block_size());
    let from = manifest.blocks().partition_point(|block| u64::from(block.0) < first);
    manifest.blocks()[from..].iter().copied().take_while(move |block| u64::from(block.0) < end)
}

/// Copies the part of block `index` that lies in `content`, which starts at byte `start`.
pub(super) fn copy_block(manifest: &Manifest, index: u32, block: &[u8], start: u64, content: &mut [u8]) {
    let at = u64::from(index) << manifest.block_bits();
    let from = start.max(at);
    let to = (start + content.len() as u64).min(at + block.len() as u64);
    if from < to {
        content[(from - start) as usize..(to - start) as usize].copy_from_slice(&block[(from - at) as usize..(to - at) as usize]);
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
