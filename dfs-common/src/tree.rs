//! The hash of a block that changes again and again: BLAKE3 is the root of a tree over the
//! content, so where the inner nodes are kept, a small change needs only the leaves it touches.
//! Pure.
//!
//! What a leaf stands for is taken from who made the tree: [`Tree::change`] does not look at
//! bytes outside of the change.

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

    /// Follows a change of the block: it is `block` now, which is what it was, cut or filled up with zeros to its new length, but for
    /// bytes `first..end`.
    pub fn change(&mut self, block: &[u8], first: usize, end: usize) {
        if self.leaves.is_empty() || block.len() <= LEAF {
            *self = Self::of(block);
            return;
        }
        let before = self.len;
        let span = |n: usize, len: usize| (n * LEAF).min(len)..((n + 1) * LEAF).min(len);
        self.len = block.len();
        self.leaves.resize(block.len().div_ceil(LEAF), [0; 32]);
        for (n, known) in self.leaves.iter_mut().enumerate() {
            let now = span(n, block.len());
            let is_touched = first < end && first < now.end && now.start < end;
            if is_touched || now != span(n, before) {
                *known = leaf(n, &block[now]);
            }
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
    fn what_does_not_touch_a_leaf_does_not_look_at_it() {
        let mut block = bytes(4 * LEAF);
        let mut tree = Tree::of(&block);
        block[2 * LEAF] ^= 1;
        let unseen = block.clone();
        tree.change(&unseen, LEAF, 2 * LEAF);
        assert_eq!(tree.hash(), BlockHash::of(&bytes(4 * LEAF)));
        tree.change(&block, 2 * LEAF, 2 * LEAF + 1);
        assert_eq!(tree.hash(), BlockHash::of(&block));
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
                tree.change(&block, first, end);
                prop_assert_eq!(tree.hash(), BlockHash::of(&block));
                prop_assert_eq!(&tree, &Tree::of(&block));
            }
        }
    }
}
