//! A block as a change of another one that the server has: what was written, instead of
//! the whole.
//!
//! Format, little endian: the base's hash (32 bytes, zeros for none), the block's length
//! u32, the offset of the change u32, then the changed bytes. The block is the base, cut or
//! filled up with zeros to its length, with those bytes in place. Nothing here says that the
//! result is right: whoever builds it compares its hash with the name that it shall have.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::block::{BlockHash, MAX_BLOCK_SIZE};
use crate::{Error, ErrorKind, Result};

/// Bytes before those that are changed.
pub const HEADER: usize = 40;
const NO_BASE: [u8; 32] = [0; 32];

/// Where a block differs from one that a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The other one; `None` for zeros.
    pub base: Option<BlockHash>,
    /// The first changed byte.
    pub first: u32,
    /// The byte behind the last one.
    pub end: u32,
}

impl Changed {
    /// Bytes of the patch's stored form.
    pub fn encoded_len(&self) -> usize {
        HEADER + (self.end - self.first) as usize
    }

    /// Where it changes bytes.
    pub fn range(&self) -> Range<usize> {
        self.first as usize..self.end as usize
    }

    /// The patch that makes a block of `len` bytes, of which `bytes` are those of [`Self::range`].
    pub fn patch(&self, len: usize, bytes: Bytes) -> Patch {
        Patch { base: self.base, len: len as u32, offset: self.first, bytes }
    }
}

/// A change of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The block to begin with; `None` for zeros.
    pub base: Option<BlockHash>,
    /// Bytes of the result.
    pub len: u32,
    /// Where `bytes` stand.
    pub offset: u32,
    /// What differs.
    pub bytes: Bytes,
}

impl Patch {
    /// Appends the stored form to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(self.base.as_ref().map_or(&NO_BASE, |base| &base.0));
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.bytes);
    }

    /// Reads the stored form; `Invalid` for bytes that are no patch.
    pub fn decode(stored: &Bytes) -> Result<Self> {
        let invalid = |what: &str| Err(Error::new(ErrorKind::Invalid, format!("patch: {what}")));
        if stored.len() < HEADER {
            return invalid("too short");
        }
        let base: [u8; 32] = stored[..32].try_into().expect("32 bytes");
        let number = |at: usize| u32::from_le_bytes(stored[at..at + 4].try_into().expect("4 bytes"));
        let (len, offset, bytes) = (number(32), number(36), stored.slice(HEADER..));
        if len == 0 || len as usize > MAX_BLOCK_SIZE {
            return invalid(&format!("a block has 1 to {MAX_BLOCK_SIZE} bytes"));
        }
        if u64::from(offset) + bytes.len() as u64 > u64::from(len) {
            return invalid("it changes bytes behind the block's end");
        }
        Ok(Self { base: (base != NO_BASE).then_some(BlockHash(base)), len, offset, bytes })
    }

    /// The block, made of the bytes of its base.
    pub fn apply(&self, base: Bytes) -> Bytes {
        // In its place, where nobody else has it.
        let mut block = BytesMut::from(base);
        block.resize(self.len as usize, 0);
        block[self.offset as usize..][..self.bytes.len()].copy_from_slice(&self.bytes);
        block.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(patch: &Patch) -> Bytes {
        let mut out = BytesMut::new();
        patch.encode(&mut out);
        out.freeze()
    }

    #[test]
    fn a_base_is_cut_or_filled_up() {
        let patch = |len, offset, bytes: &'static [u8]| Patch { base: None, len, offset, bytes: bytes.into() };
        assert_eq!(patch(3, 1, b"x").apply(Bytes::from_static(b"abcdef")), "axc");
        assert_eq!(patch(5, 3, b"x").apply(Bytes::from_static(b"ab")), "ab\0x\0");
        assert_eq!(patch(2, 0, b"").apply(Bytes::new()), "\0\0");
        assert_eq!(patch(2, 2, b"").apply(Bytes::from_static(b"abc")), "ab");
    }

    #[test]
    fn what_changes_bytes_outside_of_its_block_is_refused() {
        for (len, offset, bytes) in [(0, 0, 0), (5, 5, 1), (5, 0, 6), (5, u32::MAX, 1), (u32::MAX, 0, 1), (MAX_BLOCK_SIZE as u32 + 1, 0, 1)] {
            let patch = Patch { base: None, len, offset, bytes: vec![0; bytes].into() };
            assert_eq!(Patch::decode(&stored(&patch)).unwrap_err().kind(), ErrorKind::Invalid, "{patch:?}");
        }
        assert!(Patch::decode(&Bytes::from_static(&[1; HEADER - 1])).is_err());
    }

    proptest! {
        #[test]
        fn what_changed_is_put_back(
            base in proptest::collection::vec(any::<u8>(), 0..100), block in proptest::collection::vec(any::<u8>(), 1..100), a in 0usize..100, b in 0usize..100,
        ) {
            // Equal to the base outside of first..end.
            let (first, end) = (a.min(b).min(block.len()), a.max(b).min(block.len()));
            let mut made = base.clone();
            made.resize(block.len(), 0);
            made[first..end].copy_from_slice(&block[first..end]);
            let hash = BlockHash::of(&base);
            let changed = Changed { base: Some(hash), first: first as u32, end: end as u32 };
            let patch = changed.patch(made.len(), Bytes::copy_from_slice(&made[changed.range()]));
            let bytes = stored(&patch);
            prop_assert_eq!(bytes.len(), changed.encoded_len());
            prop_assert_eq!(Patch::decode(&bytes).unwrap(), patch.clone());
            prop_assert_eq!(patch.apply(base.into()), made);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(patch) = Patch::decode(&bytes.into()) {
                patch.apply(Bytes::new());
            }
        }
    }
}
