//! Blocks that came as patches a short while ago, for what comes next is likely to be a patch of one of them.
//!
//! They are kept with the inner nodes of their hashes, so a patch needs no read of the disk, and no more is hashed than
//! what it touches. Whatever is here has the name that it is kept under, whatever the disk may have made of it meanwhile.

use bytes::Bytes;
use dfs_common::block::BlockHash;
use dfs_common::patch::Patch;
use dfs_common::tree::Tree;
use dfs_common::{Error, ErrorKind, Result};
use lru::LruCache;
use parking_lot::Mutex;

/// Bytes of blocks that are kept.
const MOST: usize = 16 << 20;

#[derive(Debug)]
struct Made {
    block: Bytes,
    tree: Tree,
}

#[derive(Debug)]
struct Recent {
    blocks: LruCache<BlockHash, Made>,
    bytes: usize,
}

/// Blocks that patches made, the latest ones.
#[derive(Debug)]
pub(super) struct Patched {
    recent: Mutex<Recent>,
}

impl Default for Patched {
    fn default() -> Self {
        Self { recent: Mutex::new(Recent { blocks: LruCache::unbounded(), bytes: 0 }) }
    }
}

impl Patched {
    /// The block that `patch` makes, and its name; of what `read` gives, which nobody has checked, where its base is not here. `NotFound`
    /// where that is nothing.
    pub(super) fn make(&self, patch: &Patch, read: impl FnOnce(BlockHash) -> Result<Option<Vec<u8>>>) -> Result<(BlockHash, Bytes)> {
        let made = match patch.base.and_then(|base| self.recent.lock().take(base)) {
            Some(Made { block, mut tree }) => {
                let (block, first) = (patch.apply(block), patch.offset as usize);
                let touched = tree.touched(block.len(), first, first + patch.bytes.len());
                tree.change(block.len(), &touched, &block[touched.clone()]);
                Made { block, tree }
            }
            None => {
                let absent = |hash| Error::new(ErrorKind::NotFound, format!("block {hash} is not here to be patched"));
                let base = patch.base.map_or_else(|| Ok(Vec::new()), |hash| read(hash)?.ok_or_else(|| absent(hash)))?;
                let block = patch.apply(base.into());
                Made { tree: Tree::of(&block), block }
            }
        };
        let result = (made.tree.hash(), made.block.clone());
        self.recent.lock().put(made);
        Ok(result)
    }
}

impl Recent {
    /// A block that is to be another one: it is not kept any more.
    fn take(&mut self, hash: BlockHash) -> Option<Made> {
        let made = self.blocks.pop(&hash)?;
        self.bytes -= made.block.len();
        Some(made)
    }

    fn put(&mut self, made: Made) {
        self.take(made.tree.hash());
        self.bytes += made.block.len();
        self.blocks.push(made.tree.hash(), made);
        while self.bytes > MOST
            && let Some((_, oldest)) = self.blocks.pop_lru()
        {
            self.bytes -= oldest.block.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 18;

    fn patch(base: BlockHash, offset: u32, bytes: &'static [u8]) -> Patch {
        Patch { base: Some(base), len: LEN as u32, offset, bytes: bytes.into() }
    }

    #[test]
    fn one_patch_after_the_other_reads_the_disk_once() {
        let (patched, mut block) = (Patched::default(), vec![7; LEN]);
        let (stored, mut base, mut reads) = (block.clone(), BlockHash::of(&block), 0);
        for (offset, bytes) in [(0, &b"a"[..]), (100_000, b"bcd"), (LEN - 2, b"ef"), (100_000, b"xyz")] {
            block[offset..][..bytes.len()].copy_from_slice(bytes);
            let made = patched.make(&patch(base, offset as u32, bytes), |hash| {
                reads += 1;
                assert_eq!(hash, base);
                Ok(Some(stored.clone()))
            });
            let (hash, content) = made.unwrap();
            assert_eq!((hash, &content[..]), (BlockHash::of(&block), &block[..]));
            base = hash;
        }
        assert_eq!(reads, 1);
        let kept = patched.recent.lock();
        assert_eq!((kept.blocks.len(), kept.bytes), (1, LEN));
    }

    #[test]
    fn what_others_still_use_does_not_change_under_their_hands() {
        let patched = Patched::default();
        let (first, content) = patched.make(&patch(BlockHash([1; 32]), 0, b"one"), |_| Ok(Some(vec![0; LEN]))).unwrap();
        let (_, other) = patched.make(&patch(first, 0, b"two"), |_| unreachable!("it is here")).unwrap();
        assert_eq!((&content[..3], &other[..3]), (&b"one"[..], &b"two"[..]));
        // The first one is not kept any more: the disk has it.
        let (_, again) = patched.make(&patch(first, 1, b"o"), |_| Ok(Some(content.to_vec()))).unwrap();
        assert_eq!(again[..3], b"ooe"[..]);
    }

    #[test]
    fn the_latest_are_kept() {
        let patched = Patched::default();
        let names: Vec<BlockHash> =
            (0..MOST / LEN + 3).map(|n| patched.make(&patch(BlockHash([9; 32]), n as u32, b"here"), |_| Ok(Some(vec![0; LEN]))).unwrap().0).collect();
        let kept = |hash: &BlockHash| patched.recent.lock().blocks.contains(hash);
        assert_eq!(names.iter().map(kept).collect::<Vec<_>>(), (0..names.len()).map(|n| n >= 3).collect::<Vec<_>>());
        assert_eq!(patched.recent.lock().bytes, MOST);
        assert_eq!(patched.make(&patch(names[0], 0, b"x"), |_| Ok(None)).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
