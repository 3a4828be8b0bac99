//! Which blocks of a cached file are here, which have changed, and what a version made
//! of them would look like. Pure: no files, no sockets.
//!
//! Every block of data is in exactly one of three states: *clean* (its hash is known
//! and its bytes are here), *missing* (its hash is known, its bytes are not here), or
//! *dirty* (its bytes are here and no version has them). Everything else is a hole.
//! Of a dirty block is known where it differs from what it was before, and its hash, once
//! it was hashed and not changed since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::Result;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::patch::Changed;

use super::dirty::Dirty;
use super::record::runs;

/// A patch saves at least so many bytes, and half of the block: else the block travels whole.
const MIN_SAVED: u32 = 16 << 10;

/// The state of one cached file's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    bits: u8,
    size: u64,
    /// Clean and missing blocks. A copy of the map shares them until one of the two changes.
    hashes: Arc<BTreeMap<u32, BlockHash>>,
    missing: BTreeSet<u32>,
    dirty: BTreeMap<u32, Dirty>,
    /// Takes of blocks so far, see [`Self::take`].
    takes: u64,
    /// Something differs from the version that this map was made from.
    changed: bool,
}

impl BlockMap {
    /// The blocks of `manifest`; `present` where all of them are here.
    pub fn new(manifest: &Manifest, present: bool) -> Self {
        let hashes: BTreeMap<u32, BlockHash> = manifest.blocks().iter().copied().collect();
        let missing = if present { BTreeSet::new() } else { hashes.keys().copied().collect() };
        let (bits, size, hashes) = (manifest.block_bits(), manifest.size(), Arc::new(hashes));
        Self { bits, size, hashes, missing, dirty: BTreeMap::new(), takes: 0, changed: false }
    }

    /// What has become of `manifest`: a file of `size` bytes that lacks the blocks `missing`, in which `dirty` are new and
    /// `gone` have become holes.
    pub fn changed_from(manifest: &Manifest, size: u64, missing: BTreeSet<u32>, dirty: BTreeSet<u32>, gone: &BTreeSet<u32>) -> Self {
        let end = size.div_ceil(manifest.block_size()) as u32;
        let stays = |block: &u32| *block < end && !dirty.contains(block) && !gone.contains(block);
        let hashes: BTreeMap<u32, BlockHash> = manifest.blocks().iter().copied().filter(|(block, _)| stays(block)).collect();
        let missing = missing.into_iter().filter(|block| hashes.contains_key(block)).collect();
        let changed = size != manifest.size() || !dirty.is_empty() || !gone.is_empty();
        let dirty = dirty.into_iter().map(|block| (block, Dirty::unlike_anything())).collect();
        Self { bits: manifest.block_bits(), size, hashes: Arc::new(hashes), missing, dirty, takes: 0, changed }
    }

    /// The file's length in bytes, changes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the block size.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// True where a commit would publish something.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// True where no block is missing.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// True where the servers have this block and the cache does not.
    pub fn is_missing(&self, block: u32) -> bool {
        self.missing.contains(&block)
    }

    /// Blocks that have to be fetched for the whole file.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        self.missing.iter().copied()
    }

    /// The same, from `block` on.
    pub fn missing_from(&self, block: u32) -> impl Iterator<Item = u32> + '_ {
        self.missing.range(block..).copied()
    }

    /// Bytes that holes do not take up, to the block.
    pub fn stored(&self) -> u64 {
        (((self.hashes.len() + self.dirty.len()) as u64) << self.bits).min(self.size)
    }

    fn block_of(&self, offset: u64) -> u32 {
        // Files end below 2^44 bytes and blocks have at least 2^16.
        (offset >> self.bits) as u32
    }

    /// The block in which the file ends, if it ends inside one.
    fn ragged_end(&self) -> Option<u32> {
        (self.size & ((1 << self.bits) - 1) != 0).then(|| self.block_of(self.size))
    }

    /// The hash of a block that is clean or missing.
    pub fn hash(&self, block: u32) -> Option<BlockHash> {
        self.hashes.get(&block).copied()
    }

    /// True for a block that is no hole.
    pub fn holds_data(&self, block: u32) -> bool {
        self.hashes.contains_key(&block) || self.dirty.contains_key(&block)
    }

    /// Missing blocks among the bytes `offset..offset + len`.
    pub fn needed_to_read(&self, offset: u64, len: u64) -> Vec<u32> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end || self.missing.is_empty() {
            return Vec::new();
        }
        self.missing.range(self.block_of(offset)..=self.block_of(end - 1)).copied().collect()
    }

    /// The bytes `offset..offset + len` cut where missing blocks begin and end: (first, behind the last, whether they are missing), in order.
    pub fn pieces(&self, offset: u64, len: u64) -> Vec<(u64, u64, bool)> {
        let (mut at, end) = (offset, offset + len);
        let mut pieces = Vec::with_capacity(1);
        for (first, last) in runs(self.needed_to_read(offset, len)) {
            let (from, to) = ((u64::from(first) << self.bits).max(offset), ((u64::from(last) + 1) << self.bits).min(end));
            if at < from {
                pieces.push((at, from, false));
            }
            pieces.push((from, to, true));
            at = to;
        }
        if at < end {
            pieces.push((at, end, false));
        }
        pieces
    }

    /// True where this block or one behind it is missing.
    pub fn is_missing_from(&self, block: u32) -> bool {
        self.missing.last().is_some_and(|&last| last >= block)
    }

    /// Missing blocks that a write of these bytes changes in part.
    pub fn needed_to_write(&self, offset: u64, len: u64) -> Vec<u32> {
        if len == 0 || self.missing.is_empty() {
            return Vec::new();
        }
        let (end, size) = (offset + len, 1u64 << self.bits);
        let mut needed = BTreeSet::new();
        let (first, last) = (self.block_of(offset), self.block_of(end - 1));
        if !offset.is_multiple_of(size) {
            needed.insert(first);
        }
        // The last block is whole where the write reaches its end, or the end of the file.
        if end % size != 0 && end < self.size {
            needed.insert(last);
        }
        if end > self.size {
            needed.extend(self.ragged_end().filter(|&block| block < first));
        }
        needed.intersection(&self.missing).copied().collect()
    }

    /// The missing block that a new length cuts, or makes longer.
    pub fn needed_to_truncate(&self, size: u64) -> Vec<u32> {
        let cut = if size < self.size { (size & ((1 << self.bits) - 1) != 0).then(|| self.block_of(size)) } else { self.ragged_end() };
        cut.filter(|_| size != self.size).into_iter().filter(|b| self.missing.contains(b)).collect()
    }

    /// Bytes were written here. What [`Self::needed_to_write`] named has been fetched.
    pub fn wrote(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = offset + len;
        if end > self.size {
            self.lengthen_last();
            self.size = end;
        }
        for block in self.block_of(offset)..=self.block_of(end - 1) {
            let start = u64::from(block) << self.bits;
            let within = |at: u64| at.saturating_sub(start).min(1 << self.bits) as u32;
            self.mark_dirty(block, (within(offset), within(end)));
        }
        self.changed = true;
    }

    /// The length was set. What [`Self::needed_to_truncate`] named has been fetched.
    pub fn truncate(&mut self, size: u64) {
        if size == self.size {
            return;
        }
        if size > self.size {
            self.lengthen_last();
            self.size = size;
        } else {
            self.size = size;
            let first_gone = size.div_ceil(1 << self.bits) as u32;
            self.forget_from(first_gone);
            if let Some(block) = self.ragged_end().filter(|&b| self.holds_data(b)) {
                self.mark_dirty(block, (0, 0));
                let len = self.span(block).1 as u32;
                self.dirty.entry(block).and_modify(|dirty| dirty.cut(len));
            }
        }
        self.changed = true;
    }

    /// Whole blocks `first..last` became holes.
    pub fn punch(&mut self, first: u32, last: u32) {
        for block in first..last {
            self.hashes_mut().remove(&block);
            self.missing.remove(&block);
            self.dirty.remove(&block);
        }
        self.changed = true;
    }

    /// The whole of `block` was made equal to a block that servers have.
    pub fn link(&mut self, block: u32, hash: BlockHash) {
        self.missing.remove(&block);
        self.dirty.remove(&block);
        self.hashes_mut().insert(block, hash);
        self.changed = true;
    }

    /// A block that ended with the file gets longer, so its hash changes.
    fn lengthen_last(&mut self) {
        if let Some(block) = self.ragged_end().filter(|&b| self.holds_data(b)) {
            self.mark_dirty(block, (0, 0));
        }
    }

    /// Bytes `written` (first, behind the last) of `block` changed, which has the length that it had before.
    fn mark_dirty(&mut self, block: u32, written: (u32, u32)) {
        let len = self.span(block).1 as u32;
        let hash = self.hash(block).and_then(|_| self.hashes_mut().remove(&block));
        self.missing.remove(&block);
        self.dirty.entry(block).or_insert_with(|| Dirty::since(hash, len)).wrote(written, len);
    }

    fn hashes_mut(&mut self) -> &mut BTreeMap<u32, BlockHash> {
        Arc::make_mut(&mut self.hashes)
    }

    fn forget_from(&mut self, block: u32) {
        self.hashes_mut().split_off(&block);
        self.missing.split_off(&block);
        self.dirty.split_off(&block);
    }

    /// The bytes of a missing block have arrived. False where it is not missing any more: they must not be written.
    pub fn fetched(&mut self, block: u32) -> bool {
        self.missing.remove(&block)
    }

    /// Blocks whose hash a commit needs.
    pub fn dirty(&self) -> impl Iterator<Item = u32> + '_ {
        self.dirty.iter().filter(|(_, dirty)| dirty.hash().is_none()).map(|(block, _)| *block)
    }

    /// True where servers have these bytes: of a version, or because they were sent ahead.
    pub fn is_stored(&self, block: u32) -> bool {
        self.hashes.contains_key(&block) || self.dirty.get(&block).is_some_and(|dirty| dirty.hash().is_some())
    }

    /// Bytes of dirty blocks at the most, and blocks in all.
    pub fn cost(&self) -> (u64, usize) {
        ((self.dirty.len() as u64) << self.bits, self.hashes.len() + self.dirty.len())
    }

    /// Where a dirty block differs from one that servers have, if that is little of it.
    pub fn changed_of(&self, block: u32) -> Option<Changed> {
        let len = self.span(block).1 as u32;
        let changed = self.dirty.get(&block)?.changed(len);
        let saved = len - (changed.end - changed.first);
        (saved >= MIN_SAVED && saved >= len / 2).then_some(changed)
    }

    /// Takes a dirty block to be hashed and stored: each once between two commits. What [`Self::taken`] wants to hear.
    pub fn take(&mut self, block: u32) -> Option<u64> {
        self.takes += 1;
        let ticket = self.takes;
        self.dirty.get_mut(&block).is_some_and(|dirty| dirty.take(ticket)).then_some(ticket)
    }

    /// A server has the bytes that `block` had at `ticket`, and their hash. False where they have changed since.
    pub fn taken(&mut self, block: u32, ticket: u64, hash: BlockHash) -> bool {
        self.dirty.get_mut(&block).is_some_and(|dirty| dirty.taken(ticket, hash))
    }

    /// The bytes of `block` within the file, at most one block.
    pub fn span(&self, block: u32) -> (u64, usize) {
        let start = u64::from(block) << self.bits;
        (start, self.size.saturating_sub(start).min(1 << self.bits) as usize)
    }

    /// The version that a commit publishes, given the hashes of [`Self::dirty`] in the same order.
    pub fn manifest(&self, dirty: &[BlockHash]) -> Result<Manifest> {
        let mut hashes = dirty.iter().copied();
        let dirty = self.dirty.iter().filter_map(|(block, dirty)| Some((*block, dirty.hash().or_else(|| hashes.next())?)));
        // No block is in both; two runs in order are merged as fast as they are read.
        let mut blocks: Vec<(u32, BlockHash)> = self.hashes.iter().map(|(block, hash)| (*block, *hash)).chain(dirty).collect();
        blocks.sort_by_key(|block| block.0);
        Manifest::new(self.bits, self.size, blocks)
    }

    /// The version as it was committed or fetched; only without changes.
    pub fn clean_manifest(&self) -> Result<Manifest> {
        assert!(!self.changed && self.dirty.is_empty(), "a changed map is no version");
        self.manifest(&[])
    }

    /// `manifest` was published from exactly this state.
    pub fn committed(&mut self, manifest: &Manifest) {
        assert_eq!(manifest.size(), self.size, "nothing changes while a commit is under way");
        let dirty = std::mem::take(&mut self.dirty);
        let hashes = self.hashes_mut();
        hashes.extend(dirty.into_keys().filter_map(|block| Some((block, manifest.get(block)?))));
        debug_assert!(hashes.iter().map(|(block, hash)| (*block, *hash)).eq(manifest.blocks().iter().copied()), "it is of this map");
        self.changed = false;
    }

    /// Becomes the map of another version, keeping what both have in the same place. Returns the blocks whose bytes are
    /// here and are holes from now on: the caller must clear them, and cut the file to the new length.
    #[must_use]
    pub fn adopt(&mut self, manifest: &Manifest) -> Vec<u32> {
        assert!(!self.changed, "changes are committed or set aside first");
        if manifest.block_bits() != self.bits {
            let old = (0..self.size.div_ceil(1 << self.bits) as u32).collect();
            *self = Self { takes: self.takes, ..Self::new(manifest, false) };
            return old;
        }
        let hashes: BTreeMap<u32, BlockHash> = manifest.blocks().iter().copied().collect();
        let here = |block: &u32, hash: &BlockHash| self.hashes.get(block) == Some(hash) && !self.missing.contains(block);
        let missing = hashes.iter().filter(|(block, hash)| !here(block, hash)).map(|(block, _)| *block).collect();
        let cleared = self.hashes.keys().filter(|block| !hashes.contains_key(block)).copied().collect();
        self.missing = missing;
        self.hashes = Arc::new(hashes);
        self.size = manifest.size();
        cleared
    }

    /// The next byte at or after `offset` that is data (`true`) or hole (`false`); the end of the file counts as a hole.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let last = self.block_of(self.size - 1);
        let found = (self.block_of(offset)..=last).find(|&block| self.holds_data(block) == data);
        match found {
            Some(block) => Some((u64::from(block) << self.bits).max(offset)),
            None if data => None,
            None => Some(self.size),
        }
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
