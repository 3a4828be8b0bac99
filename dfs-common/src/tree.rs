//! The hash of a block that changes again and again: BLAKE3 is the root of a tree over the
//! content, so where the inner nodes are kept, a small change needs only the leaves it touches.
//! Pure.
//!
//! What a leaf stands for is taken from who made the tree: nobody needs the bytes outside of
//! [`Tree::touched`].

use std::ops::Range;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::block::BlockHash;

/// Bytes of a leaf: a power of two of BLAKE3's chunks of 1 KiB. Smaller ones would be hashed less quickly, for the
/// processor does several chunks at a time.
const LEAF: usize = 16 << 10;

/// The inner nodes of a block's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    len: usize,
    /// None where there is but one leaf: as the root it is hashed otherwise.
    leaves: Vec<ChainingValue>,
    hash: BlockHash,
}

impl Tree {
    /// Of `block`.
    pub fn of(block: &[u8]) -> Self {
        let leaves = if block.len() > LEAF { block.chunks(LEAF).enumerate().map(|(n, bytes)| leaf(n, bytes)).collect() } else { Vec::new() };
        let hash = if leaves.is_empty() { BlockHash::of(block) } else { root(&leaves) };
        Self { len: block.len(), leaves, hash }
    }

    /// The block's name.
    pub fn hash(&self) -> BlockHash {
        self.hash
    }

    /// The bytes to be hashed after a change of the block: it has `len` bytes now and is what it was, cut or filled up with zeros, but
    /// for bytes `first..end`. Whole leaves; none where nothing has changed.
    pub fn touched(&self, len: usize, first: usize, end: usize) -> Range<usize> {
        if self.leaves.is_empty() || len <= LEAF {
            return 0..len;
        }
        let mut touched = first..end.max(first);
        if len != self.len {
            // The last leaf of the shorter one becomes longer or shorter, and those behind are new.
            let (short, long) = (len.min(self.len), len.max(self.len));
            let differ = short / LEAF * LEAF..long.min(len);
            touched = if touched.is_empty() { differ } else { touched.start.min(differ.start)..touched.end.max(differ.end) };
        }
        if touched.is_empty() { 0..0 } else { touched.start / LEAF * LEAF..touched.end.next_multiple_of(LEAF).min(len) }
    }

    /// Follows a change of the block to `len` bytes, of which `bytes`, at `touched.start`, are those of [`Self::touched`].
    pub fn change(&mut self, len: usize, touched: &Range<usize>, bytes: &[u8]) {
        if self.leaves.is_empty() || len <= LEAF {
            *self = Self::of(bytes);
            return;
        }
        self.len = len;
        self.leaves.resize(len.div_ceil(LEAF), [0; 32]);
        let first = touched.start / LEAF;
        for (n, bytes) in bytes.chunks(LEAF).enumerate() {
            self.leaves[first + n] = leaf(first + n, bytes);
        }
        self.hash = root(&self.leaves);
    }
}

/// The hash of two leaves or more.
fn root(leaves: &[ChainingValue]) -> BlockHash {
    let (left, right) = leaves.split_at(left(leaves.len()));
    BlockHash(*merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).as_bytes())
}

/// The `n`th leaf, of `bytes`.
fn leaf(n: usize, bytes: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset((n * LEAF) as u64).update(bytes);
    hasher.finalize_non_root()
}

/// How many of `count` leaves, of two at least, are left of the topmost node: the largest power of two that leaves one over.
fn left(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn merged(leaves: &[ChainingValue]) -> ChainingValue {
    if let [leaf] = leaves {
        return *leaf;
    }
    let (left, right) = leaves.split_at(left(leaves.len()));
    merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(tree: &mut Tree, block: &[u8], first: usize, end: usize) -> Range<usize> {
        let touched = tree.touched(block.len(), first, end);
        tree.change(block.len(), &touched, &block[touched.clone()]);
        touched
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| ((at * 31) >> 3) as u8).collect()
    }

    #[test]
    fn the_root_is_the_hash() {
        for leaves in [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 64] {
            for more in [0, 1, 1023, 1024, 1025, LEAF - 1] {
                let block = bytes(leaves * LEAF + more);
                assert_eq!(Tree::of(&block).hash(), BlockHash::of(&block), "{} bytes", block.len());
            }
        }
    }

    #[test]
    fn no_more_is_hashed_than_the_leaves_that_change() {
        let mut block = bytes(4 * LEAF);
        let mut tree = Tree::of(&block);
        block[2 * LEAF] ^= 1;
        assert_eq!(change(&mut tree, &block, LEAF, 2 * LEAF), LEAF..2 * LEAF);
        assert_eq!(tree.hash(), BlockHash::of(&bytes(4 * LEAF)));
        assert_eq!(change(&mut tree, &block, 2 * LEAF, 2 * LEAF + 1), 2 * LEAF..3 * LEAF);
        assert_eq!(tree.hash(), BlockHash::of(&block));
        for (len, first, end, touched) in [
            (4 * LEAF, 7, 7, 0..0),
            (4 * LEAF + 1, 4 * LEAF, 4 * LEAF + 1, 4 * LEAF..4 * LEAF + 1),
            (5 * LEAF + 9, 4 * LEAF + 1, 4 * LEAF + 2, 4 * LEAF..5 * LEAF + 9),
            (5 * LEAF, 0, 0, 0..0),
            (5 * LEAF - 1, 0, 0, 4 * LEAF..5 * LEAF - 1),
            (LEAF, 0, 0, 0..LEAF),
        ] {
            block.resize(len, 0);
            assert_eq!(change(&mut tree, &block, first, end), touched, "{len} bytes");
            assert_eq!(tree.hash(), BlockHash::of(&block), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn it_follows_every_change(
            len in 0..5 * LEAF, changes in proptest::collection::vec((0..5 * LEAF, 0..5 * LEAF, 0..5 * LEAF, any::<u8>()), 1..8),
        ) {
            let mut block = bytes(len);
            let mut tree = Tree::of(&block);
            for (len, a, b, with) in changes {
                // Half of the changes are where the block ends.
                let len = if with % 2 == 0 { len } else { block.len() };
                block.resize(len, 0);
                let (first, end) = (a.min(b).min(len), a.max(b).min(len));
                block[first..end].fill(with);
                change(&mut tree, &block, first, end);
                prop_assert_eq!(tree.hash(), BlockHash::of(&block));
                prop_assert_eq!(&tree, &Tree::of(&block));
            }
        }
    }
}
