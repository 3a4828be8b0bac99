//! The inner nodes of the hashes of blocks that were changed lately, whichever files they are in: for programs that change a block
//! again and again, like the last one of a log, each close hashes only what was written.

use std::num::NonZeroUsize;

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
    /// The hash of `block`, which differs from another one as `changed` says.
    pub(super) fn hash(&self, changed: Option<Changed>, block: &[u8]) -> BlockHash {
        let Some(Changed { base: Some(base), first, end }) = changed.filter(|_| block.len() >= WORTH) else { return BlockHash::of(block) };
        let known = self.0.lock().pop(&base);
        let mut tree = known.unwrap_or_else(|| Tree::of(&[]));
        tree.change(block, first as usize, end as usize);
        let hash = tree.hash();
        self.0.lock().put(hash, tree);
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_before_is_not_hashed_again() {
        let (trees, mut block) = (Trees::default(), vec![7; 4 * WORTH]);
        let changed = |base, at: usize| Some(Changed { base: Some(base), first: at as u32, end: at as u32 + 1 });
        let mut base = BlockHash::of(&block);
        for at in [0, WORTH, 3 * WORTH] {
            block[at] = 1;
            let hash = trees.hash(changed(base, at), &block);
            assert_eq!(hash, BlockHash::of(&block));
            base = hash;
        }
        let right = block.clone();
        // It is taken at its word where the block has changed.
        block[2 * WORTH] ^= 1;
        assert_eq!(trees.hash(changed(base, 0), &block), BlockHash::of(&right));
        assert_eq!(trees.hash(None, &block), BlockHash::of(&block));
        assert_eq!(trees.0.lock().len(), 1);
        assert_eq!(trees.hash(changed(BlockHash::of(b"another"), 0), &block), BlockHash::of(&block));
        block.truncate(WORTH - 1);
        assert_eq!(trees.hash(changed(base, 0), &block), BlockHash::of(&block));
    }
}
