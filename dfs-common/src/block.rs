//! Blocks and manifests.
//!
//! A block is a piece of content of one fixed power of two of bytes (the last one of
//! a file is shorter), named by its BLAKE3. A manifest lists the blocks of one version
//! and is itself stored as a block. Blocks of a file that were never written (holes)
//! are not in the list.
//!
//! Manifest format, little endian: `DFSM`, format u8 = 1, block size exponent u8, two
//! zero bytes, size u64, count u32, then `count` times {index u32, hash 32 bytes} in
//! rising order of index. A manifest as the change of another one is `DFSD` and the same,
//! with the blocks that differ; 32 zero bytes make a hole, and what lies behind the size goes.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind, Result};

/// log2 of the block size that new files get: 256 KiB.
pub const DEFAULT_BLOCK_BITS: u8 = 18;
/// The smallest block size's log2 (64 KiB).
pub const MIN_BLOCK_BITS: u8 = 16;
/// The largest block size's log2 (1 MiB).
pub const MAX_BLOCK_BITS: u8 = 20;
/// The largest block, and so the largest piece of content in one message, in bytes.
pub const MAX_BLOCK_SIZE: usize = 1 << MAX_BLOCK_BITS;
/// The largest file: 16 TiB, as on ext4.
pub const MAX_FILE_SIZE: u64 = 16 << 40;
/// The most blocks of data in one file, so that a manifest stays below 64 MiB.
pub const MAX_BLOCKS: usize = 1_800_000;

const MAGIC: &[u8; 4] = b"DFSM";
const DELTA_MAGIC: &[u8; 4] = b"DFSD";
/// In the place of a hash: a block that is a hole now.
const HOLE: BlockHash = BlockHash([0; 32]);
const FORMAT: u8 = 1;
/// So many blocks are looked for one by one among those of a manifest.
pub const FEW: usize = 8;
const HEADER: usize = 20;
const ROW: usize = 36;

/// A block's index and hash.
type Row = (u32, BlockHash);

/// The BLAKE3 of a block; 64 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

/// Blocks by name. A large file has thousands, and every commit of it goes through all of them.
pub type BlockTable<T> = HashMap<BlockHash, T, foldhash::quality::RandomState>;
/// Names of blocks.
pub type BlockSet = HashSet<BlockHash, foldhash::quality::RandomState>;

impl BlockHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl std::hash::Hash for BlockHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl std::fmt::Display for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for BlockHash {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        blake3::Hash::from_hex(text).map(|h| Self(*h.as_bytes())).map_err(|_| Error::new(ErrorKind::Invalid, "a block's hash is 64 hex digits"))
    }
}

impl Serialize for BlockHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlockHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(|e: Error| de::Error::custom(e.message().to_owned()))
    }
}

/// The blocks of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    block_bits: u8,
    size: u64,
    /// (index, hash), index rising.
    blocks: Vec<(u32, BlockHash)>,
}

impl Manifest {
    /// An empty file of blocks of `2^block_bits` bytes.
    pub fn empty(block_bits: u8) -> Self {
        assert!((MIN_BLOCK_BITS..=MAX_BLOCK_BITS).contains(&block_bits));
        Self { block_bits, size: 0, blocks: Vec::new() }
    }

    /// From its parts; `Invalid` where they contradict one another.
    pub fn new(block_bits: u8, size: u64, blocks: Vec<(u32, BlockHash)>) -> Result<Self> {
        if !(MIN_BLOCK_BITS..=MAX_BLOCK_BITS).contains(&block_bits) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("blocks of 2^{block_bits} bytes: 2^{MIN_BLOCK_BITS} to 2^{MAX_BLOCK_BITS} are known"),
            ));
        }
        if size > MAX_FILE_SIZE || blocks.len() > MAX_BLOCKS {
            return Err(Error::new(ErrorKind::FileTooLarge, format!("{size} bytes in {} blocks are over the limit of a file", blocks.len())));
        }
        if !blocks.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Error::new(ErrorKind::Invalid, "blocks of a manifest are not in rising order"));
        }
        if blocks.last().is_some_and(|last| u64::from(last.0) << block_bits >= size) {
            return Err(Error::new(ErrorKind::Invalid, "a block lies behind the end of the file"));
        }
        Ok(Self { block_bits, size, blocks })
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        encode(MAGIC, self.block_bits, self.size, &self.blocks)
    }

    /// The stored form, into [`Self::encoded_len`] bytes.
    pub fn encode_to(&self, out: &mut [u8]) {
        encode_to(MAGIC, self.block_bits, self.size, &self.blocks, out);
    }

    /// Bytes of the stored form.
    pub fn encoded_len(&self) -> usize {
        HEADER + self.blocks.len() * ROW
    }

    /// Bytes of the stored form of a file with `stored` bytes of data.
    pub fn len_for(block_bits: u8, stored: u64) -> usize {
        HEADER + stored.div_ceil(1 << block_bits) as usize * ROW
    }

    /// Checks and reads the stored form; `Corrupt` for bytes that are no manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (block_bits, size, blocks) = decode(MAGIC, bytes)?;
        Self::new(block_bits, size, blocks)
    }

    /// How long the stored form is that `bytes` begin with; `Corrupt` where they are too few.
    pub fn stored_len(bytes: &[u8]) -> Result<usize> {
        let count = bytes.get(16..HEADER).ok_or_else(|| corrupt("too short"))?;
        let len = HEADER + u32::from_le_bytes(count.try_into().expect("4 bytes")) as usize * ROW;
        if len <= bytes.len() { Ok(len) } else { Err(corrupt("length does not match its count")) }
    }

    /// What differs from `base`, as [`Manifest::from_delta`] reads it; both have blocks of one size.
    pub fn encode_delta(&self, base: &Self) -> Vec<u8> {
        assert_eq!(self.block_bits, base.block_bits, "blocks of different sizes have nothing in common");
        let gone = base.unlike(self).filter(|(index, _)| self.block_len(*index) > 0 && self.get(*index).is_none());
        let mut rows: Vec<Row> = self.unlike(base).copied().chain(gone.map(|(index, _)| (*index, HOLE))).collect();
        rows.sort_unstable_by_key(|row| row.0);
        encode(DELTA_MAGIC, self.block_bits, self.size, &rows)
    }

    /// The blocks of data that `base` has not in the same place and of the same length, in order.
    pub fn unlike<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = &'a (u32, BlockHash)> {
        let (own, old) = self.apart(base);
        let mut old = old.iter().peekable();
        own.iter().filter(move |row| {
            while old.next_if(|old| old.0 < row.0).is_some() {}
            old.next_if(|old| old.0 == row.0) != Some(row) || base.block_len(row.0) != self.block_len(row.0)
        })
    }

    /// The blocks here and in `base` without the like ones that both begin and end with: a change of a large file leaves nearly all as they were.
    fn apart<'a>(&'a self, base: &'a Self) -> (&'a [Row], &'a [Row]) {
        let (own, old) = (&self.blocks[..], &base.blocks[..]);
        if std::ptr::eq(self, base) {
            return (&[], &[]);
        }
        if self.block_bits != base.block_bits {
            return (own, old);
        }
        // Where the sizes differ one that is not full may be shorter there.
        let full = self.size.min(base.size) >> self.block_bits;
        let head = own.iter().zip(old).take_while(|(a, b)| a == b && u64::from(a.0) < full).count();
        let (own, old) = (&own[head..], &old[head..]);
        let ends = own.iter().rev().zip(old.iter().rev());
        let tail = if self.size == base.size { ends.take_while(|(a, b)| a == b).count() } else { 0 };
        (&own[..own.len() - tail], &old[..old.len() - tail])
    }

    /// Tells whether a block is named here, wherever. For more than [`FEW`] `questions` it makes a set of all, for a few that is not worth it.
    pub fn names(&self, questions: usize) -> impl Fn(&BlockHash) -> bool + '_ {
        let all: Option<BlockSet> = (questions > FEW).then(|| self.blocks.iter().map(|row| row.1).collect());
        move |hash| all.as_ref().map_or_else(|| self.blocks.iter().any(|row| row.1 == *hash), |all| all.contains(hash))
    }

    /// `base` with the changes in `bytes`; `Corrupt` for bytes that are no delta of it.
    pub fn from_delta(base: &Self, bytes: &[u8]) -> Result<Self> {
        let (block_bits, size, changes) = decode(DELTA_MAGIC, bytes)?;
        if block_bits != base.block_bits || !changes.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(corrupt("a delta of another manifest"));
        }
        let kept = size.div_ceil(1 << block_bits).min(u32::MAX.into()) as u32;
        base.with_changes(size, kept, changes.into_iter().map(|(index, hash)| (index, (hash != HOLE).then_some(hash))))
    }

    /// A file of `size` bytes with the blocks of this one before `kept`, but for `changes` (index rising, `None` for a hole).
    pub fn with_changes(&self, size: u64, kept: u32, changes: impl Iterator<Item = (u32, Option<BlockHash>)>) -> Result<Self> {
        let mut old = self.blocks_within(0, kept);
        let mut blocks = Vec::with_capacity(old.len() + changes.size_hint().0);
        for (index, hash) in changes {
            let (before, from) = old.split_at(old.partition_point(|row| row.0 < index));
            blocks.extend_from_slice(before);
            old = &from[usize::from(from.first().is_some_and(|row| row.0 == index))..];
            blocks.extend(hash.map(|hash| (index, hash)));
        }
        blocks.extend_from_slice(old);
        Self::new(self.block_bits, size, blocks)
    }

    /// The name under which the manifest is stored.
    pub fn hash(&self) -> BlockHash {
        BlockHash::of(&self.encode())
    }

    /// log2 of the block size.
    pub fn block_bits(&self) -> u8 {
        self.block_bits
    }

    /// Bytes of a block that is not the last.
    pub fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    /// The file's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// (index, hash) of each block that has data, index rising.
    pub fn blocks(&self) -> &[(u32, BlockHash)] {
        &self.blocks
    }

    /// The hash of block `index`; `None` for a hole.
    pub fn get(&self, index: u32) -> Option<BlockHash> {
        // Without holes before it a block is where its index says.
        if let Some(row) = self.blocks.get(index as usize).filter(|row| row.0 == index) {
            return Some(row.1);
        }
        self.blocks.binary_search_by_key(&index, |b| b.0).ok().map(|at| self.blocks[at].1)
    }

    /// The blocks with data from `first` on and before `end`.
    pub fn blocks_within(&self, first: u32, end: u32) -> &[(u32, BlockHash)] {
        let upto = &self.blocks[..self.blocks.partition_point(|row| row.0 < end)];
        &upto[upto.partition_point(|row| row.0 < first)..]
    }

    /// The length in bytes of block `index`, which is shorter at the end of the file and 0 behind it.
    pub fn block_len(&self, index: u32) -> usize {
        let start = u64::from(index) << self.block_bits;
        self.size.saturating_sub(start).min(self.block_size()) as usize
    }

    /// Bytes of the blocks that have data.
    pub fn stored(&self) -> u64 {
        self.blocks.iter().map(|b| self.block_len(b.0) as u64).sum()
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("manifest: {why}"))
}

fn encode(magic: &[u8; 4], block_bits: u8, size: u64, rows: &[(u32, BlockHash)]) -> Vec<u8> {
    let mut out = vec![0; HEADER + rows.len() * ROW];
    encode_to(magic, block_bits, size, rows, &mut out);
    out
}

fn encode_to(magic: &[u8; 4], block_bits: u8, size: u64, rows: &[Row], out: &mut [u8]) {
    let (header, out) = out.split_at_mut(HEADER);
    header[..4].copy_from_slice(magic);
    header[4..8].copy_from_slice(&[FORMAT, block_bits, 0, 0]);
    header[8..16].copy_from_slice(&size.to_le_bytes());
    header[16..].copy_from_slice(&(rows.len() as u32).to_le_bytes());
    assert_eq!(out.len(), rows.len() * ROW, "room for all rows");
    for (row, (index, hash)) in out.chunks_exact_mut(ROW).zip(rows) {
        row[..4].copy_from_slice(&index.to_le_bytes());
        row[4..].copy_from_slice(&hash.0);
    }
}

fn decode(magic: &[u8; 4], bytes: &[u8]) -> Result<(u8, u64, Vec<Row>)> {
    let (header, rows) = bytes.split_at_checked(HEADER).ok_or_else(|| corrupt("too short"))?;
    if &header[..4] != magic || header[4] != FORMAT || header[6..8] != [0, 0] {
        return Err(corrupt("unknown format"));
    }
    let size = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
    let count = u32::from_le_bytes(header[16..20].try_into().expect("4 bytes"));
    if rows.len() != count as usize * ROW {
        return Err(corrupt("length does not match its count"));
    }
    let row = |row: &[u8]| {
        let index = u32::from_le_bytes(row[..4].try_into().expect("4 bytes"));
        (index, BlockHash(row[4..].try_into().expect("32 bytes")))
    };
    Ok((header[5], size, rows.chunks_exact(ROW).map(row).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_manifest() -> impl Strategy<Value = Manifest> {
        (MIN_BLOCK_BITS..=MAX_BLOCK_BITS, proptest::collection::btree_map(0u32..5000, any::<[u8; 32]>(), 0..40), 1u64..1000).prop_map(
            |(bits, blocks, rest)| {
                let blocks: Vec<_> = blocks.into_iter().map(|(i, h)| (i, BlockHash(h))).collect();
                let size = blocks.last().map_or(0, |b| u64::from(b.0) << bits) + rest;
                Manifest::new(bits, size, blocks).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn a_manifest_survives_storage(manifest in any_manifest()) {
            let mut stored = manifest.encode();
            prop_assert_eq!(Manifest::stored_len(&stored).unwrap(), stored.len());
            prop_assert!(Manifest::stored_len(&stored[..stored.len() - 1]).is_err());
            prop_assert_eq!(Manifest::decode(&stored).unwrap(), manifest);
            let len = stored.len();
            stored.extend(b"content");
            prop_assert_eq!(Manifest::stored_len(&stored).unwrap(), len);
        }

        #[test]
        fn a_delta_makes_the_one_of_the_other(
            bits in MIN_BLOCK_BITS..=MAX_BLOCK_BITS, sizes in (0u64..40, 0u64..40),
            rows in proptest::collection::btree_map(0u32..40, (0u8..3, 0u8..3), 0..40),
        ) {
            // Few hashes, so that some are equal; 0 is a hole.
            let manifest = |size: u64, pick: fn((u8, u8)) -> u8| {
                let rows = rows.iter().map(|(&i, &both)| (i, pick(both))).filter(|row| row.1 > 0 && u64::from(row.0) < size);
                Manifest::new(bits, size << bits, rows.map(|(i, n)| (i, BlockHash([n; 32]))).collect()).unwrap()
            };
            let (old, new) = (manifest(sizes.0, |both| both.0), manifest(sizes.1, |both| both.1));
            prop_assert_eq!(Manifest::from_delta(&old, &new.encode_delta(&old)).unwrap(), new);
        }

        #[test]
        fn what_is_unlike_is_what_is_not_the_same_in_the_same_place(
            bits in (MIN_BLOCK_BITS..=MIN_BLOCK_BITS + 1, MIN_BLOCK_BITS..=MIN_BLOCK_BITS + 1), sizes in (0u64..40, 0u64..40), rests in (0u64..2, 0u64..2),
            rows in proptest::collection::btree_map(0u32..40, (0u8..3, 0u8..9), 0..40),
        ) {
            // Most rows are alike; 0 is a hole.
            let manifest = |bits: u8, size: u64, pick: fn((u8, u8)) -> u8| {
                let rows = rows.iter().map(|(&i, &both)| (i, pick(both))).filter(|row| row.1 > 0 && u64::from(row.0) << bits < size);
                Manifest::new(bits, size, rows.map(|(i, n)| (i, BlockHash([n; 32]))).collect()).unwrap()
            };
            let old = manifest(bits.0, (sizes.0 << bits.0) + rests.0, |both| both.0);
            let new = manifest(bits.1, (sizes.1 << bits.1) + rests.1, |(old, new)| if new < 3 { new } else { old });
            let is_unlike = |row: &&Row| old.get(row.0) != Some(row.1) || old.block_len(row.0) != new.block_len(row.0);
            prop_assert_eq!(new.unlike(&old).collect::<Vec<_>>(), new.blocks().iter().filter(is_unlike).collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), header in any::<bool>()) {
            let _ = Manifest::decode(&bytes);
            if header && bytes.len() >= HEADER {
                let count = ((bytes.len() - HEADER) / ROW) as u32;
                bytes.truncate(HEADER + count as usize * ROW);
                bytes[..8].copy_from_slice(b"DFSD\x01\x10\0\0");
                bytes[16..20].copy_from_slice(&count.to_le_bytes());
            }
            let base = Manifest::new(16, 9 << 16, vec![(3, BlockHash([1; 32])), (8, HOLE)]).unwrap();
            let _ = Manifest::from_delta(&base, &bytes);
        }

        #[test]
        fn a_changed_manifest_is_refused_or_differs(manifest in any_manifest(), at in any::<prop::sample::Index>()) {
            let mut bytes = manifest.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1;
            if let Ok(other) = Manifest::decode(&bytes) {
                prop_assert_ne!(other, manifest);
            }
        }
    }

    #[test]
    fn lengths_at_the_end() {
        let hash = BlockHash::of(b"x");
        let m = Manifest::new(16, (1 << 16) + 5, vec![(0, hash), (1, hash)]).unwrap();
        assert_eq!((m.block_len(0), m.block_len(1), m.block_len(2)), (65536, 5, 0));
        assert!(Manifest::new(16, 1 << 16, vec![(1, hash)]).is_err());
        assert_eq!(m.get(2), None);
    }
}
