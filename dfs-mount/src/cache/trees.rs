//! The inner nodes of the hashes of blocks that were changed lately, whichever files they are in: for programs that change a block
//! again and again, like the last one of a log, each close hashes only what was written.

use std::num::NonZeroUsize;
use std::ops::Range;

use bytes::Bytes;
use dfs_common::Result;
use dfs_common::block::BlockHash;
use dfs_common::patch::Changed;
use dfs_common::tree::Tree;
use lru::LruCache;
use parking_lot::Mutex;

/// Of blocks of fewer bytes all is hashed again: that takes hardly longer.
const WORTH: usize = 64 << 10;
/// Blocks of which they are kept, of 0.5 to 2 KiB each.
const KEPT: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// Inner nodes by the block's name.
#[derive(Debug)]
pub(super) struct Trees(Mutex<LruCache<BlockHash, Tree>>);

impl Default for Trees {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }
}

impl Trees {
    /// The hash of a block of `len` bytes, which differs from another one as `changed` says, and what `read` gave of it: all that has
    /// changed at least, from the offset that stands with it.
    pub(super) fn hash(
        &self,
        changed: Option<Changed>,
        len: usize,
        read: impl FnOnce(Range<usize>) -> Result<Bytes>,
    ) -> Result<(BlockHash, usize, Bytes)> {
        let Some((changed, base)) = changed.filter(|_| len >= WORTH).and_then(|changed| Some((changed, changed.base?))) else {
            let block = read(0..len)?;
            return Ok((BlockHash::of(&block), 0, block));
        };
        let known = self.0.lock().pop(&base);
        let mut tree = known.unwrap_or_else(|| Tree::of(&[]));
        let touched = tree.touched(len, changed.first as usize, changed.end as usize);
        let bytes = read(touched.clone())?;
        tree.change(len, &touched, &bytes);
        let hash = tree.hash();
        self.0.lock().put(hash, tree);
        Ok((hash, touched.start, bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_was_changed_before_is_not_hashed_again() {
        let (trees, mut block, reads) = (Trees::default(), vec![7; 4 * WORTH], Cell::new(0));
        let hash = |changed, block: &[u8]| {
            let read = |range: Range<usize>| {
                reads.set(reads.get() + range.len());
                Ok(Bytes::copy_from_slice(&block[range]))
            };
            let (hash, at, bytes) = trees.hash(changed, block.len(), read).unwrap();
            assert_eq!(bytes, block[at..][..bytes.len()]);
            assert!(changed.is_none_or(|Changed { first, end, .. }| at <= first as usize && end as usize <= at + bytes.len()));
            hash
        };
        let changed = |base, at: usize| Some(Changed { base: Some(base), first: at as u32, end: at as u32 + 1 });
        let mut base = BlockHash::of(&block);
        for at in [0, WORTH, 3 * WORTH] {
            block[at] = 1;
            let now = hash(changed(base, at), &block);
            assert_eq!(now, BlockHash::of(&block));
            base = now;
        }
        assert!(reads.get() < block.len() + WORTH, "the first time all of it");
        let right = block.clone();
        // It is taken at its word where the block has changed.
        block[2 * WORTH] ^= 1;
        assert_eq!(hash(changed(base, 0), &block), BlockHash::of(&right));
        assert_eq!(hash(None, &block), BlockHash::of(&block));
        assert_eq!(trees.0.lock().len(), 1);
        assert_eq!(hash(changed(BlockHash::of(b"another"), 0), &block), BlockHash::of(&block));
        block.truncate(WORTH - 1);
        assert_eq!(hash(changed(base, 0), &block), BlockHash::of(&block));
    }
}
