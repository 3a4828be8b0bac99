//! The block map beside a file of bytes, and a server that has only what it was sent.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const BITS: u8 = 16;
const BLOCK: u64 = 1 << BITS;

/// A file whose bytes are all the same within a block-sized unit is enough to see which version a block came from.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Truncate(u64),
    /// So many bytes, as far as the file goes, become zeros.
    Zero(u64, u64),
    Commit,
    /// A block begins to be sent ahead.
    Take(u32),
    /// What was taken first has arrived.
    Arrive,
}

fn any_step() -> impl Strategy<Value = Step> {
    let offset = 0..5 * BLOCK;
    prop_oneof![
        (offset.clone(), 1..2 * BLOCK).prop_map(|(o, l)| Step::Write(o, l)),
        offset.clone().prop_map(Step::Truncate),
        (offset.clone(), 1..3 * BLOCK).prop_map(|(o, l)| Step::Zero(o, l)),
        (0u64..5, 1u64..3).prop_map(|(first, count)| Step::Zero(first * BLOCK, count * BLOCK)),
        Just(Step::Commit),
        (0u32..5).prop_map(Step::Take),
        Just(Step::Arrive),
    ]
}

/// The cached file as its bytes, and the map: what is not missing must equal the truth.
struct Model {
    map: BlockMap,
    local: Vec<u8>,
    truth: Vec<u8>,
    remote: Vec<u8>,
    /// Blocks that servers have.
    stored: HashMap<BlockHash, Vec<u8>>,
    on_their_way: VecDeque<(u32, u64, Vec<u8>)>,
}

impl Model {
    fn new(content: Vec<u8>) -> Self {
        let map = BlockMap::new(manifest_of(&content), false);
        let mut model =
            Self { map, local: vec![0; content.len()], truth: content, remote: Vec::new(), stored: HashMap::new(), on_their_way: VecDeque::new() };
        model.publish();
        model
    }

    fn publish(&mut self) {
        self.remote = self.truth.clone();
        self.stored.extend(self.truth.chunks(BLOCK as usize).map(|block| (BlockHash::of(block), block.to_vec())));
    }

    /// What is said to have changed of a block makes the block, of what servers have.
    fn assert_changes_make_the_truth(&self) {
        for (block, dirty) in self.map.all_dirty() {
            let expected = piece(&self.truth, block);
            let changed = dirty.changed(expected.len() as u32);
            let base = changed.base.map_or_else(Vec::new, |hash| self.stored[&hash].clone());
            let patch = changed.patch(expected.len(), Bytes::copy_from_slice(&expected[changed.range()]));
            assert!(patch.apply(base.into()) == expected, "block {block}: {dirty:?}");
            assert!(dirty.name().is_none_or(|name| name == BlockHash::of(expected)), "block {block}");
        }
    }

    fn assert_seek_finds_the_next_block(&self) {
        let size = self.truth.len() as u64;
        for offset in (0..size).step_by(BLOCK as usize).flat_map(|start| [start, (start + 7).min(size - 1)]) {
            for data in [true, false] {
                let next = (offset / BLOCK..=(size - 1) / BLOCK).find(|&block| self.map.holds_data(block as u32) == data);
                let expected = next.map(|block| (block * BLOCK).max(offset)).or((!data).then_some(size));
                assert_eq!(self.map.seek(offset, data), expected, "{data} from {offset}");
            }
        }
        assert_eq!((self.map.seek(size, true), self.map.seek(size, false)), (None, None));
    }

    fn fetch(&mut self, blocks: Vec<u32>) {
        for block in blocks {
            let start = u64::from(block) as usize * BLOCK as usize;
            let end = (start + BLOCK as usize).min(self.remote.len());
            assert!(self.map.fetched(block));
            let end = end.min(self.local.len());
            self.local[start..end].copy_from_slice(&self.remote[start..end]);
        }
    }

    fn apply(&mut self, step: &Step, fill: u8) {
        match *step {
            Step::Write(offset, len) => {
                self.fetch(self.map.needed_to_write(offset, len));
                let end = (offset + len) as usize;
                for bytes in [&mut self.local, &mut self.truth] {
                    if bytes.len() < end {
                        bytes.resize(end, 0);
                    }
                    bytes[offset as usize..end].fill(fill);
                }
                self.map.wrote(offset, len);
                // Some writers know the names of the whole blocks that they write.
                if fill.is_multiple_of(2) {
                    for block in offset.div_ceil(BLOCK)..(offset + len) / BLOCK {
                        self.map.named(block as u32, BlockHash::of(piece(&self.local, block as u32)));
                    }
                }
            }
            Step::Truncate(size) => {
                self.fetch(self.map.needed_to_truncate(size));
                self.local.resize(size as usize, 0);
                self.truth.resize(size as usize, 0);
                self.map.truncate(size);
            }
            Step::Zero(offset, len) => {
                let end = (offset + len).min(self.truth.len() as u64);
                if offset < end {
                    self.fetch(self.map.needed_to_write(offset, end - offset));
                    for bytes in [&mut self.local, &mut self.truth] {
                        bytes[offset as usize..end as usize].fill(0);
                    }
                    self.map.zeroed(offset, end - offset);
                }
            }
            Step::Take(block) => {
                if let Some(ticket) = self.map.take(block) {
                    self.on_their_way.push_back((block, ticket, piece(&self.local, block).to_vec()));
                }
            }
            Step::Arrive => {
                if let Some((block, ticket, bytes)) = self.on_their_way.pop_front() {
                    let hash = BlockHash::of(&bytes);
                    self.stored.insert(hash, bytes);
                    self.map.taken(block, ticket, hash);
                }
            }
            Step::Commit => {
                let dirty: Vec<_> = self.map.dirty().collect();
                let hashes: Vec<_> = dirty.iter().map(|&b| BlockHash::of(piece(&self.local, b))).collect();
                let manifest = self.map.manifest(&hashes).unwrap();
                assert_matches_truth(&manifest, &self.truth);
                self.map.committed(manifest.into());
                self.publish();
            }
        }
        self.assert_changes_make_the_truth();
        self.assert_seek_finds_the_next_block();
        assert_eq!(self.map.data, (0..9).filter(|&block| self.map.holds_data(block)).count(), "after {step:?}");
    }
}

fn piece(bytes: &[u8], block: u32) -> &[u8] {
    let start = block as usize * BLOCK as usize;
    &bytes[start..(start + BLOCK as usize).min(bytes.len())]
}

fn manifest_of(content: &[u8]) -> Manifest {
    let blocks = content.chunks(BLOCK as usize).enumerate().map(|(i, b)| (i as u32, BlockHash::of(b))).collect();
    Manifest::new(BITS, content.len() as u64, blocks).unwrap()
}

fn assert_matches_truth(manifest: &Manifest, truth: &[u8]) {
    assert_eq!(manifest.size(), truth.len() as u64);
    for (index, bytes) in truth.chunks(BLOCK as usize).enumerate() {
        match manifest.get(index as u32) {
            Some(hash) => assert_eq!(hash, BlockHash::of(bytes), "block {index}"),
            None => assert!(bytes.iter().all(|&b| b == 0), "block {index} is data, the manifest says hole"),
        }
    }
}

proptest! {
    #[test]
    fn a_commit_is_always_the_truth(start in 0..4 * BLOCK, steps in proptest::collection::vec(any_step(), 1..24)) {
        let mut model = Model::new((0..start).map(|i| (i % 251) as u8 + 1).collect());
        for (n, step) in steps.iter().enumerate() {
            model.apply(step, n as u8 + 1);
        }
        model.apply(&Step::Commit, 0);
        // What is still missing is what the servers have.
        let missing: Vec<_> = model.map.missing().collect();
        model.fetch(missing);
        prop_assert_eq!(model.local, model.truth);
    }

    #[test]
    fn adopting_keeps_only_what_is_equal(a in proptest::collection::vec(0u8..3, 0..6), b in proptest::collection::vec(0u8..3, 0..6)) {
        let content = |v: &[u8]| v.iter().flat_map(|&x| vec![x; BLOCK as usize]).collect::<Vec<u8>>();
        let mut map = BlockMap::new(manifest_of(&content(&a)), true);
        let cleared = map.adopt(manifest_of(&content(&b)));
        prop_assert_eq!(cleared, (b.len()..a.len()).map(|i| i as u32).collect::<Vec<_>>());
        let missing: Vec<u32> = map.missing().collect();
        let expected: Vec<u32> = (0..b.len()).filter(|&i| a.get(i) != Some(&b[i])).map(|i| i as u32).collect();
        prop_assert_eq!(missing, expected);
    }
}

#[test]
fn what_becomes_a_hole_is_cleared() {
    let mut map = BlockMap::new(manifest_of(&vec![1; 3 * BLOCK as usize]), true);
    let hash = map.hash(0).unwrap();
    assert_eq!(map.adopt(Manifest::new(BITS, 3 * BLOCK, vec![(0, hash)]).unwrap()), [1, 2]);
    assert!(map.is_complete());
    assert_eq!(map.adopt(Manifest::new(BITS + 1, 2 * BLOCK, vec![]).unwrap()), [0, 1, 2]);
}

#[test]
fn a_truncating_open_fetches_nothing() {
    let map = BlockMap::new(manifest_of(&vec![1; 3 * BLOCK as usize + 5]), false);
    assert!(map.needed_to_truncate(0).is_empty());
    assert_eq!(map.needed_to_truncate(BLOCK + 1), [1]);
    assert_eq!(map.needed_to_truncate(9 * BLOCK), [3]);
}

#[test]
fn an_append_fetches_the_last_block_only() {
    let map = BlockMap::new(manifest_of(&vec![1; 3 * BLOCK as usize + 5]), false);
    assert_eq!(map.needed_to_write(3 * BLOCK + 5, 10), [3]);
    assert_eq!(map.needed_to_write(8 * BLOCK, 10), [3]);
    assert_eq!(map.needed_to_write(BLOCK, BLOCK), Vec::<u32>::new());
    assert_eq!(map.needed_to_write(BLOCK + 1, BLOCK), [1, 2]);
}

#[test]
fn little_changes_are_told_from_large_ones() {
    let mut map = BlockMap::new(manifest_of(&vec![1; 3 * BLOCK as usize + 5]), true);
    let hash = map.hash(1);
    map.wrote(BLOCK + 4096, 4096);
    assert_eq!(map.changed_of(1), Some(Changed { base: hash, first: 4096, end: 8192 }));
    map.wrote(BLOCK + 60_000, 1);
    assert_eq!(map.changed_of(1), None, "most of the block lies between the two");
    map.wrote(3 * BLOCK + 5, 40_000);
    assert_eq!(map.changed_of(3), None, "it is mostly new");
    map.wrote(9 * BLOCK, 4096);
    assert_eq!(map.changed_of(9), None, "what was a hole and ends with the file is all there is");
    map.truncate(10 * BLOCK);
    assert_eq!(map.changed_of(9), Some(Changed { base: None, first: 0, end: 4096 }));
    assert_eq!(map.changed_of(0), None, "it has not changed");
}

#[test]
fn what_changes_on_its_way_is_hashed_again() {
    let mut map = BlockMap::new(Manifest::empty(BITS), true);
    map.wrote(0, 3 * BLOCK);
    let hash = BlockHash([7; 32]);
    let tickets: Vec<u64> = (0..3).map(|block| map.take(block).unwrap()).collect();
    assert_eq!(map.take(0), None, "once");
    map.wrote(BLOCK, 1);
    assert_eq!((map.taken(0, tickets[0], hash), map.taken(1, tickets[1], hash)), (true, false));
    assert_eq!(map.dirty().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(map.take(1), None, "and never again before a commit");
    // The answer for the third block comes after a commit, and after the block was written and taken again.
    map.committed(map.manifest(&[hash, hash]).unwrap().into());
    map.wrote(0, 3 * BLOCK);
    let again = map.take(2).unwrap();
    assert!(!map.taken(2, tickets[2], hash) && map.taken(2, again, hash));
}

#[test]
fn seeking() {
    let mut map = BlockMap::new(Manifest::empty(BITS), true);
    map.truncate(4 * BLOCK);
    map.wrote(BLOCK, 10);
    assert_eq!((map.seek(0, true), map.seek(0, false)), (Some(BLOCK), Some(0)));
    assert_eq!((map.seek(BLOCK, false), map.seek(2 * BLOCK, true), map.seek(4 * BLOCK, false)), (Some(2 * BLOCK), None, None));
}

#[test]
fn seeking_over_all_that_a_file_can_be_is_not_a_walk() {
    let mut map = BlockMap::new(Manifest::empty(BITS), true);
    map.truncate(1 << 44);
    map.wrote((1 << 44) - 1, 1);
    // Block by block it would take the better part of a second each.
    for offset in 0..1000 {
        assert_eq!(map.seek(offset, true), Some((1 << 44) - BLOCK));
    }
}
