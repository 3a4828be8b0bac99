//! How a range of one cached file becomes a range of another: pure decisions on two maps.
//!
//! A whole block whose hash is known is taken over by its hash, so that no server has to
//! be sent what it has. Everything else is copied as bytes, and is new.

use std::collections::BTreeSet;

use dfs_common::block::BlockHash;

use super::BlockMap;

/// A part of a copy, in terms of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// This whole block becomes a hole.
    Hole(u32),
    /// This whole block becomes one with this hash; its bytes are copied besides.
    Block(u32, BlockHash),
    /// Bytes `offset..offset + len`, which no server has.
    Bytes(u64, u64),
}

impl Piece {
    /// First byte, and the one behind the last, in a copy whose bytes end at `end`.
    pub fn span(self, bits: u8, end: u64) -> (u64, u64) {
        match self {
            Self::Hole(block) | Self::Block(block, _) => (u64::from(block) << bits, ((u64::from(block) + 1) << bits).min(end)),
            Self::Bytes(offset, len) => (offset, offset + len),
        }
    }
}

/// A copy of some bytes, and what has to be here before it can be made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CopyPlan {
    /// In order, without gaps.
    pub pieces: Vec<Piece>,
    /// Missing blocks of the source.
    pub needed_of_source: Vec<u32>,
    /// Missing blocks of the target, which it changes in part.
    pub needed_of_target: Vec<u32>,
}

/// How `len` bytes at `from` of `source`, all of them before its end, come to `to` in `target`.
pub fn plan(source: &BlockMap, target: &BlockMap, from: u64, to: u64, len: u64) -> CopyPlan {
    assert!(from + len <= source.size(), "a copy ends with its source");
    let (size, end) = (1u64 << target.bits(), to + len);
    let aligned = source.bits() == target.bits() && from % size == to % size;
    let mut plan = CopyPlan { needed_of_source: source.needed_to_read(from, len), ..CopyPlan::default() };
    let (mut at, mut whole) = (to, BTreeSet::new());
    while at < end {
        let block = (at >> target.bits()) as u32;
        let next = ((u64::from(block) + 1) << target.bits()).min(end);
        let source_block = ((from + (at - to)) >> target.bits()) as u32;
        // The last block of both files is whole, too, as long as both end in it at the same byte.
        let ends_alike = next == end && end >= target.size() && from + len == source.size();
        if aligned && at % size == 0 && (next % size == 0 || ends_alike) && !is_dirty(source, source_block) {
            whole.insert(block);
            plan.pieces.push(source.hash(source_block).map_or(Piece::Hole(block), |hash| Piece::Block(block, hash)));
        } else if let Some(Piece::Bytes(_, before)) = plan.pieces.last_mut() {
            *before += next - at;
        } else {
            plan.pieces.push(Piece::Bytes(at, next - at));
        }
        at = next;
    }
    let mut needed: BTreeSet<u32> = target.needed_to_write(to, len).into_iter().collect();
    for piece in &plan.pieces {
        if let Piece::Bytes(offset, len) = *piece {
            needed.extend(target.needed_to_write(offset, len));
        }
    }
    plan.needed_of_target = needed.difference(&whole).copied().collect();
    plan
}

fn is_dirty(map: &BlockMap, block: u32) -> bool {
    map.holds_data(block) && map.hash(block).is_none()
}

impl BlockMap {
    /// The pieces of a plan were carried out; the bytes end at `end`.
    pub fn copied(&mut self, pieces: &[Piece], end: u64) {
        if end > self.size() {
            self.truncate(end);
        }
        for piece in pieces {
            match *piece {
                Piece::Hole(block) => self.punch(block, block + 1),
                Piece::Block(block, hash) => self.link(block, hash),
                Piece::Bytes(offset, len) => self.wrote(offset, len),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::block::Manifest;
    use proptest::prelude::*;

    use super::*;

    const BITS: u8 = 16;
    const BLOCK: u64 = 1 << BITS;

    /// A file as its map, its cache file, what it is in truth, and what servers have.
    struct Model {
        map: BlockMap,
        local: Vec<u8>,
        truth: Vec<u8>,
        remote: Vec<u8>,
    }

    fn piece(bytes: &[u8], block: u32) -> &[u8] {
        let start = block as usize * BLOCK as usize;
        &bytes[start..(start + BLOCK as usize).min(bytes.len())]
    }

    impl Model {
        /// Blocks by what fills them: 0 is a hole. Those of `dirty` are then overwritten in part.
        fn new(blocks: &[u8], rest: u64, present: bool, dirty: &[prop::sample::Index]) -> Self {
            let mut bytes: Vec<u8> = blocks.iter().flat_map(|&b| vec![b; BLOCK as usize]).collect();
            bytes.resize(bytes.len() + rest as usize, 9);
            let data = (0u32..).zip(bytes.chunks(BLOCK as usize)).filter(|(_, b)| b[0] != 0);
            let manifest = Manifest::new(BITS, bytes.len() as u64, data.map(|(i, b)| (i, BlockHash::of(b))).collect()).unwrap();
            let local = if present { bytes.clone() } else { vec![0; bytes.len()] };
            let mut model = Self { map: BlockMap::new(manifest, present), local, truth: bytes.clone(), remote: bytes };
            for at in dirty.iter().filter(|_| !model.truth.is_empty()).map(|d| d.index(model.truth.len())).collect::<Vec<_>>() {
                model.fetch(&model.map.needed_to_write(at as u64, 1));
                (model.local[at], model.truth[at]) = (77, 77);
                model.map.wrote(at as u64, 1);
            }
            model
        }

        fn fetch(&mut self, blocks: &[u32]) {
            for &block in blocks {
                assert!(self.map.fetched(block));
                let start = block as usize * BLOCK as usize;
                let end = (start + BLOCK as usize).min(self.remote.len()).min(self.local.len());
                self.local[start..end].copy_from_slice(&self.remote[start..end]);
            }
        }

        fn manifest(&self) -> Manifest {
            let hashes: Vec<_> = self.map.dirty().map(|b| BlockHash::of(piece(&self.local, b))).collect();
            self.map.manifest(&hashes).unwrap()
        }
    }

    fn copy(source: &mut Model, target: &mut Model, from: u64, to: u64, len: u64) {
        let plan = plan(&source.map, &target.map, from, to, len);
        source.fetch(&plan.needed_of_source);
        target.fetch(&plan.needed_of_target);
        let again = super::plan(&source.map, &target.map, from, to, len);
        assert_eq!(again, CopyPlan { pieces: plan.pieces, ..CopyPlan::default() });
        for (from_bytes, bytes) in [(&source.local, &mut target.local), (&source.truth, &mut target.truth)] {
            bytes.resize(bytes.len().max((to + len) as usize), 0);
            bytes[to as usize..(to + len) as usize].copy_from_slice(&from_bytes[from as usize..(from + len) as usize]);
        }
        target.map.copied(&again.pieces, to + len);
    }

    proptest! {
        #[test]
        fn a_copy_is_the_truth(
            a in (proptest::collection::vec(0u8..3, 0..5), 0..BLOCK, any::<bool>(), proptest::collection::vec(any::<prop::sample::Index>(), 0..3)),
            b in (proptest::collection::vec(0u8..3, 0..5), 0..BLOCK, any::<bool>(), proptest::collection::vec(any::<prop::sample::Index>(), 0..3)),
            // Offsets on and off the blocks' borders, lengths up to the source's end.
            from in (0..6u64, prop_oneof![2 => Just(0), 1 => 1..BLOCK]), to in (0..6u64, prop_oneof![2 => Just(0), 1 => 1..BLOCK]),
            len in prop_oneof![Just(u64::MAX), 0..6 * BLOCK, (1..6u64).prop_map(|n| n * BLOCK)],
        ) {
            let (mut source, mut target) = (Model::new(&a.0, a.1, a.2, &a.3), Model::new(&b.0, b.1, b.2, &b.3));
            let (from, to) = (from.0 * BLOCK + from.1, to.0 * BLOCK + to.1);
            let len = len.min(source.map.size().saturating_sub(from));
            prop_assume!(len > 0);
            copy(&mut source, &mut target, from, to, len);
            let manifest = target.manifest();
            prop_assert_eq!(manifest.size(), target.truth.len() as u64);
            for (index, bytes) in (0u32..).zip(target.truth.chunks(BLOCK as usize)) {
                match manifest.get(index) {
                    Some(hash) => prop_assert_eq!(hash, BlockHash::of(bytes), "block {}", index),
                    None => prop_assert!(bytes.iter().all(|&b| b == 0), "block {} is data, the manifest says hole", index),
                }
            }
            let missing: Vec<u32> = target.map.missing().collect();
            target.fetch(&missing);
            prop_assert!(target.local == target.truth);
        }
    }

    #[test]
    fn a_whole_file_is_taken_over_by_its_hashes() {
        let mut source = Model::new(&[1, 0, 2], 5, true, &[]);
        let mut target = Model::new(&[], 0, true, &[]);
        let len = source.map.size();
        copy(&mut source, &mut target, 0, 0, len);
        assert_eq!(target.map.dirty().count(), 0);
        assert_eq!(target.manifest(), source.manifest());
        assert!(target.map.is_changed());
    }

    #[test]
    fn what_is_not_aligned_or_not_published_is_new() {
        let source = Model::new(&[1, 1], 0, true, &[]);
        let target = Model::new(&[2, 2, 2], 0, true, &[]);
        let pieces = plan(&source.map, &target.map, 1, 0, BLOCK).pieces;
        assert_eq!(pieces, [Piece::Bytes(0, BLOCK)]);
        let mut source = source;
        source.map.wrote(5, 1);
        let pieces = plan(&source.map, &target.map, 0, 0, 2 * BLOCK).pieces;
        assert_eq!(pieces, [Piece::Bytes(0, BLOCK), Piece::Block(1, source.map.hash(1).unwrap())]);
        // A source that ends inside a block of the target leaves the rest of that block.
        let short = Model::new(&[1], 7, true, &[]);
        assert_eq!(plan(&short.map, &target.map, 0, 0, BLOCK + 7).pieces[1], Piece::Bytes(BLOCK, 7));
    }
}
