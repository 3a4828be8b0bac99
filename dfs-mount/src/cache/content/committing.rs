//! A commit, as the content sees it: the moment at which nothing changes, the hashes of what
//! has changed before, and what of it servers have already.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::attributes::Timestamp;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::clients::commit::BlockSource;
use dfs_common::ids::Version;
use dfs_common::patch::Changed;
use dfs_common::{Error, ErrorKind, Result};

use super::Content;
use crate::cache::BlockMap;
use crate::cache::restore::compare;
use crate::failpoint;
use crate::turn::until;

/// Above this many bytes two threads hash.
const HASH_ALONE: u64 = 4 << 20;

/// Changes of up to so many bytes stay in memory from when they are hashed until they are sent.
const KEPT: usize = 256 << 10;

/// What a commit has read of a block to hash it, and is going to send.
#[derive(Debug)]
pub(super) struct Hashed {
    block: u32,
    /// Where in the block `bytes` begin.
    at: usize,
    bytes: Bytes,
}

impl Hashed {
    /// Those bytes of the block, where they were read.
    fn get(&self, range: Range<usize>) -> Option<Bytes> {
        let within = range.start.checked_sub(self.at)?..range.end - self.at;
        (within.end <= self.bytes.len()).then(|| self.bytes.slice(within))
    }
}

/// What a commit needs to know of the moment at which it began.
#[derive(Debug)]
pub struct Plan {
    /// The version that the changes are built on.
    pub base: Version,
    /// Their blocks, which need not be sent.
    pub base_manifest: Arc<Manifest>,
    /// The new content.
    pub manifest: Arc<Manifest>,
    /// When it last changed.
    pub mtime: Timestamp,
}

impl Content {
    /// Begins a commit: from now on nothing changes until [`Content::end_commit`]. `None` where there is nothing to do.
    pub fn begin_commit(&self, now: Timestamp, durable: bool) -> Result<Option<Plan>> {
        let map = {
            let mut state = self.state.lock();
            if state.mapped {
                let (map, missing) = (&state.map, state.map.missing().collect());
                state.map = compare(&self.file, map.base(), map.size(), &missing).map_err(|e| Error::from_io(&e, "cache file"))?;
            }
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
        let dirty: Vec<u32> = map.dirty().collect();
        let manifest = Arc::new(map.manifest(&self.hashes(map, &dirty)?)?);
        let state = self.state.lock();
        Ok(Plan { base: state.version, base_manifest: map.base().clone(), manifest, mtime: state.mtime.unwrap_or(now) })
    }

    /// The hashes of `blocks`, in their order; by two threads where it is much.
    fn hashes(&self, map: &BlockMap, blocks: &[u32]) -> Result<Vec<BlockHash>> {
        let lengths = blocks.iter().map(|&block| map.span(block).1);
        if lengths.sum::<usize>() <= KEPT {
            // Stores to a mapping of the cache file may be anywhere, and go on while this is read.
            let is_known = !self.is_mapped();
            let mut hashes = Vec::with_capacity(blocks.len());
            for &block in blocks {
                let ((start, len), changed) = (map.span(block), if is_known { map.changed_of(block) } else { None });
                let (hash, at, bytes) = self.trees.hash(changed, len, |range| self.bytes((start + range.start as u64, range.len())))?;
                hashes.push(hash);
                self.state.lock().hashed.push(Hashed { block, at, bytes });
            }
            return Ok(hashes);
        }
        let hash = |blocks: &[u32]| blocks.iter().map(|&block| Ok(BlockHash::of(&self.block(map, block)?))).collect::<Result<Vec<_>>>();
        if (blocks.len() as u64) << map.bits() <= HASH_ALONE {
            return hash(blocks);
        }
        let (first, second) = blocks.split_at(blocks.len() / 2);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| hash(second));
            let mut hashes = hash(first)?;
            hashes.extend(second.join().expect("hashing does not panic")?);
            Ok(hashes)
        })
    }

    /// At most so many bytes have to be hashed for a commit, and blocks to be looked at.
    pub fn commit_cost(&self) -> (u64, usize) {
        let state = self.state.lock();
        let (bytes, blocks) = state.map.cost();
        (if state.mapped { state.map.size() } else { bytes }, blocks)
    }

    /// Ends a commit, with what was published (version, manifest, whether disks have it) or with nothing.
    pub fn end_commit(&self, published: Option<(Version, &Arc<Manifest>, bool)>) {
        let mut state = self.state.lock();
        state.committing = false;
        state.hashed.clear();
        if let Some((version, manifest, durable)) = published {
            // Before anything else is written: it is built on this version.
            if let Err(e) = state.note_version(version, manifest) {
                log::warn!("{e}; after a crash now, what is written next would be kept as a recoverable version");
            }
            failpoint::reach("commit.rebased");
            state.map.committed(manifest.clone());
            state.version = version;
            (state.durable, state.goes_on) = (durable, durable);
            state.written = false;
            state.origin.clear();
            state.run.go_on();
        } else {
            // Whatever went wrong, the next one looks at the bytes.
            state.map.forget_names();
        }
        self.committed.notify_waiters();
    }

    /// Those bytes of a block that a commit is about to send.
    fn read_range(&self, index: u32, range: Range<usize>) -> Result<Bytes> {
        failpoint::reach("commit.sending");
        let start = {
            let state = self.state.lock();
            let hashed = state.hashed.iter().find(|hashed| hashed.block == index);
            if let Some(bytes) = hashed.and_then(|hashed| hashed.get(range.clone())) {
                return Ok(bytes);
            }
            if state.map.is_missing(index) {
                return Err(Error::new(ErrorKind::Unavailable, format!("block {index} is in no cache and on no server that answers")));
            }
            state.map.span(index).0
        };
        self.bytes((start + range.start as u64, range.len()))
    }

    /// Waits until no commit is under way.
    pub async fn commit_done(&self) {
        until(&self.committed, || !self.state.lock().committing).await;
    }
}

impl BlockSource for Content {
    fn read(&self, index: u32) -> Result<Bytes> {
        let len = self.state.lock().map.span(index).1;
        self.read_range(index, 0..len)
    }

    fn is_stored(&self, index: u32) -> bool {
        self.state.lock().map.is_stored(index)
    }

    fn changed(&self, index: u32) -> Option<Changed> {
        self.state.lock().map.changed_of(index)
    }

    fn read_changed(&self, index: u32, changed: &Changed) -> Result<Bytes> {
        self.read_range(index, changed.range())
    }
}
