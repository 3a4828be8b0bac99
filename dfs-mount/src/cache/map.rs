//! Which blocks of a cached file are here, which have changed, and what a version made
//! of them would look like. Pure: no files, no sockets.
//!
//! Every block of data is in exactly one of three states: *clean* (its hash is known
//! and its bytes are here), *missing* (its hash is known, its bytes are not here), or
//! *dirty* (its bytes are here and no version has them). Everything else is a hole.
//! Of a dirty block is known where it differs from what it was before, and its hash, once
//! it was hashed and not changed since.
//!
//! The map is the version it was made from, shared with whoever knows that, and what has
//! become of blocks since: a file that is only read, or changed in a few places, costs no
//! second list of its blocks.

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
    size: u64,
    /// The version that servers have.
    base: Arc<Manifest>,
    /// Its blocks from this one on went when the file was cut, though it may be longer again.
    cut: u32,
    /// What became of blocks since.
    since: BTreeMap<u32, Now>,
    /// Blocks of data, in all.
    data: usize,
    missing: BTreeSet<u32>,
    /// Takes of blocks so far, see [`Self::take`].
    takes: u64,
    /// Something differs from the version that this map was made from.
    changed: bool,
}

/// What a block is that the base does not describe.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Now {
    /// Of the base's block nothing is left.
    Hole,
    /// A block that servers have.
    Stored(BlockHash),
    Dirty(Dirty),
}

impl BlockMap {
    /// The blocks of `manifest`; `present` where all of them are here.
    pub fn new(manifest: impl Into<Arc<Manifest>>, present: bool) -> Self {
        let base = manifest.into();
        let missing = if present { BTreeSet::new() } else { base.blocks().iter().map(|row| row.0).collect() };
        let (size, data) = (base.size(), base.blocks().len());
        Self { size, base, cut: u32::MAX, since: BTreeMap::new(), data, missing, takes: 0, changed: false }
    }

    /// What has become of `base`: a file of `size` bytes that lacks the blocks `missing`, in which `dirty` are new and
    /// `gone` have become holes.
    pub fn changed_from(base: &Arc<Manifest>, size: u64, missing: &BTreeSet<u32>, dirty: &BTreeSet<u32>, gone: &BTreeSet<u32>) -> Self {
        let mut map = Self::new(base.clone(), true);
        map.size = size;
        map.forget_from(size.div_ceil(base.block_size()) as u32);
        gone.iter().for_each(|&block| map.put(block, Now::Hole));
        dirty.iter().for_each(|&block| map.put(block, Now::Dirty(Dirty::unlike_anything())));
        map.missing = missing.iter().copied().filter(|&block| map.hash(block).is_some()).collect();
        map.changed = size != base.size() || !dirty.is_empty() || !gone.is_empty();
        map
    }

    /// The file's length in bytes, changes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// log2 of the block size.
    pub fn bits(&self) -> u8 {
        self.base.block_bits()
    }

    /// The version that the changes are built on.
    pub fn base(&self) -> &Arc<Manifest> {
        &self.base
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
        ((self.data as u64) << self.bits()).min(self.size)
    }

    fn block_of(&self, offset: u64) -> u32 {
        // Files end below 2^44 bytes and blocks have at least 2^16.
        (offset >> self.bits()) as u32
    }

    /// The block in which the file ends, if it ends inside one.
    fn ragged_end(&self) -> Option<u32> {
        (self.size & ((1 << self.bits()) - 1) != 0).then(|| self.block_of(self.size))
    }

    /// The hash of a block that is clean or missing.
    pub fn hash(&self, block: u32) -> Option<BlockHash> {
        match self.since.get(&block) {
            None => self.of_base(block),
            Some(Now::Stored(hash)) => Some(*hash),
            Some(Now::Hole | Now::Dirty(_)) => None,
        }
    }

    fn of_base(&self, block: u32) -> Option<BlockHash> {
        if block < self.cut { self.base.get(block) } else { None }
    }

    /// True for a block that is no hole.
    pub fn holds_data(&self, block: u32) -> bool {
        self.since.get(&block).map_or_else(|| self.of_base(block).is_some(), |now| *now != Now::Hole)
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
            let (from, to) = ((u64::from(first) << self.bits()).max(offset), ((u64::from(last) + 1) << self.bits()).min(end));
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
        let (end, size) = (offset + len, 1u64 << self.bits());
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
        let cut = if size < self.size { (size & ((1 << self.bits()) - 1) != 0).then(|| self.block_of(size)) } else { self.ragged_end() };
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
            let start = u64::from(block) << self.bits();
            let within = |at: u64| at.saturating_sub(start).min(1 << self.bits()) as u32;
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
            let first_gone = size.div_ceil(1 << self.bits()) as u32;
            self.forget_from(first_gone);
            if let Some(block) = self.ragged_end().filter(|&b| self.holds_data(b)) {
                self.mark_dirty(block, (0, 0));
                let len = self.span(block).1 as u32;
                self.dirty_mut(block).expect("it was marked").cut(len);
            }
        }
        self.changed = true;
    }

    /// Bytes became zeros that lie before the end, whole blocks of them holes. What [`Self::needed_to_write`] named has been fetched.
    pub fn zeroed(&mut self, offset: u64, len: u64) {
        let (end, size) = (offset + len, self.base.block_size());
        let (first, last) = (offset.next_multiple_of(size), end - end % size);
        if first >= last {
            return self.wrote(offset, len);
        }
        self.wrote(offset, first - offset);
        self.punch(self.block_of(first), self.block_of(last));
        self.wrote(last, end - last);
    }

    /// Whole blocks `first..last` became holes.
    pub fn punch(&mut self, first: u32, last: u32) {
        // Not each of these blocks: a hole may be longer than all the data of the file.
        let since = self.since.range(first..last.max(first)).map(|(block, _)| *block);
        let of_base = self.base.blocks_within(first, last.min(self.cut)).iter().map(|row| row.0);
        for block in since.chain(of_base).collect::<Vec<_>>() {
            self.missing.remove(&block);
            self.put(block, Now::Hole);
        }
        self.changed = true;
    }

    /// The whole of `block` was made equal to a block that servers have.
    pub fn link(&mut self, block: u32, hash: BlockHash) {
        self.missing.remove(&block);
        self.put(block, Now::Stored(hash));
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
        self.missing.remove(&block);
        if self.dirty_mut(block).is_none() {
            self.put(block, Now::Dirty(Dirty::since(self.hash(block), len)));
        }
        self.dirty_mut(block).expect("it is now").wrote(written, len);
    }

    fn put(&mut self, block: u32, now: Now) {
        self.data -= usize::from(self.holds_data(block));
        self.data += usize::from(now != Now::Hole);
        if now == Now::Hole && self.of_base(block).is_none() {
            self.since.remove(&block);
        } else {
            self.since.insert(block, now);
        }
    }

    fn dirty_mut(&mut self, block: u32) -> Option<&mut Dirty> {
        if let Some(Now::Dirty(dirty)) = self.since.get_mut(&block) { Some(dirty) } else { None }
    }

    fn forget_from(&mut self, block: u32) {
        let since = self.since.split_off(&block);
        let masked = since.keys().filter(|block| self.of_base(**block).is_some()).count();
        self.data -= self.base.blocks_within(block, self.cut).len() - masked;
        self.data -= since.values().filter(|now| **now != Now::Hole).count();
        self.cut = self.cut.min(block);
        self.missing.split_off(&block);
    }

    /// The bytes of a missing block have arrived. False where it is not missing any more: they must not be written.
    pub fn fetched(&mut self, block: u32) -> bool {
        self.missing.remove(&block)
    }

    fn all_dirty(&self) -> impl Iterator<Item = (u32, &Dirty)> {
        self.since.iter().filter_map(|(block, now)| if let Now::Dirty(dirty) = now { Some((*block, dirty)) } else { None })
    }

    /// Blocks whose hash a commit needs.
    pub fn dirty(&self) -> impl Iterator<Item = u32> + '_ {
        self.all_dirty().filter(|(_, dirty)| dirty.name().is_none()).map(|(block, _)| block)
    }

    /// The name of a dirty block, if it was hashed and not changed since.
    pub fn name(&self, block: u32) -> Option<BlockHash> {
        if let Some(Now::Dirty(dirty)) = self.since.get(&block) { dirty.name() } else { None }
    }

    /// The whole of `block` was just written, and has this name.
    pub fn named(&mut self, block: u32, name: BlockHash) {
        if let Some(dirty) = self.dirty_mut(block) {
            dirty.named(name);
        }
    }

    /// No name is believed that was not told by a server: all dirty blocks are hashed anew.
    pub fn forget_names(&mut self) {
        self.since.values_mut().for_each(|now| {
            if let Now::Dirty(dirty) = now {
                dirty.forget_name()
            }
        });
    }

    /// True where servers have these bytes: of a version, or because they were sent ahead.
    pub fn is_stored(&self, block: u32) -> bool {
        match self.since.get(&block) {
            Some(Now::Dirty(dirty)) => dirty.is_sent(),
            _ => self.hash(block).is_some(),
        }
    }

    /// Bytes of dirty blocks at the most, and blocks in all.
    pub fn cost(&self) -> (u64, usize) {
        ((self.all_dirty().count() as u64) << self.bits(), self.data)
    }

    /// Where a dirty block differs from one that servers have, if that is little of it.
    pub fn changed_of(&self, block: u32) -> Option<Changed> {
        let len = self.span(block).1 as u32;
        let Some(Now::Dirty(dirty)) = self.since.get(&block) else { return None };
        let changed = dirty.changed(len);
        let saved = len - (changed.end - changed.first);
        (saved >= MIN_SAVED && saved >= len / 2).then_some(changed)
    }

    /// Takes a dirty block to be hashed and stored: each once between two commits. What [`Self::taken`] wants to hear.
    pub fn take(&mut self, block: u32) -> Option<u64> {
        self.takes += 1;
        let ticket = self.takes;
        self.dirty_mut(block).is_some_and(|dirty| dirty.take(ticket)).then_some(ticket)
    }

    /// A server has the bytes that `block` had at `ticket`, and their hash. False where they have changed since.
    pub fn taken(&mut self, block: u32, ticket: u64, hash: BlockHash) -> bool {
        self.dirty_mut(block).is_some_and(|dirty| dirty.taken(ticket, hash))
    }

    /// The bytes of `block` within the file, at most one block.
    pub fn span(&self, block: u32) -> (u64, usize) {
        let start = u64::from(block) << self.bits();
        (start, self.size.saturating_sub(start).min(1 << self.bits()) as usize)
    }

    /// The version that a commit publishes, given the hashes of [`Self::dirty`] in the same order.
    pub fn manifest(&self, dirty: &[BlockHash]) -> Result<Manifest> {
        let mut hashes = dirty.iter().copied();
        let changes = self.since.iter().map(|(block, now)| match now {
            Now::Hole => (*block, None),
            Now::Stored(hash) => (*block, Some(*hash)),
            Now::Dirty(dirty) => (*block, dirty.name().or_else(|| hashes.next())),
        });
        self.base.with_changes(self.size, self.cut, changes)
    }

    /// The version as it was committed or fetched; only without changes.
    pub fn clean_manifest(&self) -> &Arc<Manifest> {
        assert!(!self.changed && self.since.is_empty(), "a changed map is no version");
        &self.base
    }

    /// `manifest` was published from exactly this state.
    pub fn committed(&mut self, manifest: Arc<Manifest>) {
        assert_eq!(manifest.size(), self.size, "nothing changes while a commit is under way");
        let is_of_this_map = |(block, hash): &(u32, BlockHash)| self.holds_data(*block) && self.hash(*block).is_none_or(|own| own == *hash);
        debug_assert!(manifest.blocks().len() == self.data && manifest.blocks().iter().all(is_of_this_map), "it is of this map");
        (self.base, self.cut) = (manifest, u32::MAX);
        self.since.clear();
        self.changed = false;
    }

    /// Becomes the map of another version, keeping what both have in the same place. Returns the blocks whose bytes are
    /// here and are holes from now on: the caller must clear them, and cut the file to the new length.
    #[must_use]
    pub fn adopt(&mut self, manifest: impl Into<Arc<Manifest>>) -> Vec<u32> {
        assert!(!self.changed, "changes are committed or set aside first");
        let next = Self { takes: self.takes, ..Self::new(manifest, false) };
        let before = std::mem::replace(self, next);
        if before.bits() != self.bits() {
            return (0..before.size.div_ceil(before.base.block_size()) as u32).collect();
        }
        let is_here = |block: &u32| before.hash(*block) == self.base.get(*block) && !before.missing.contains(block);
        self.missing.retain(|block| !is_here(block));
        let gone = |block: &u32| self.base.get(*block).is_none();
        before.base.blocks().iter().map(|row| row.0).filter(gone).collect()
    }

    /// The first block of data from `block` on; not by looking at each block, of which a hole may have more than the file has data.
    fn next_data(&self, block: u32) -> Option<u32> {
        let since = self.since.range(block..).find(|(_, now)| **now != Now::Hole).map(|(block, _)| *block);
        let of_base = self.base.blocks_within(block, self.cut).iter().map(|row| row.0).find(|&block| self.holds_data(block));
        since.into_iter().chain(of_base).min()
    }

    /// The next byte at or after `offset` that is data (`true`) or hole (`false`); the end of the file counts as a hole.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let first = self.block_of(offset);
        let found = if data { self.next_data(first) } else { (first..=self.block_of(self.size - 1)).find(|&block| !self.holds_data(block)) };
        match found {
            Some(block) => Some((u64::from(block) << self.bits()).max(offset)),
            None if data => None,
            None => Some(self.size),
        }
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
