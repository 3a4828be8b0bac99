//! The body of a commit or a copy, checked before anything is stored. Pure.
//!
//! Invariant: every block of an [`Upload`] has the hash and the length that its manifest says.

use std::collections::HashMap;

use bytes::Bytes;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::{Error, ErrorKind, Result};

/// A version on its way in.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    /// The manifest.
    pub(super) manifest: Manifest,
    /// Its stored form.
    pub(super) encoded: Bytes,
    /// Its name.
    pub(super) hash: BlockHash,
    /// Each block that the manifest names, once, with its length.
    pub(super) blocks: HashMap<BlockHash, usize>,
    /// Blocks that came with it.
    pub(super) inline: HashMap<BlockHash, Bytes>,
}

impl Upload {
    /// From a body of `manifest_len` bytes of manifest and blocks of the lengths in `inline`.
    pub(super) fn parse(body: &Bytes, manifest_len: u32, inline: &[u32]) -> Result<Self> {
        let lengths = inline.iter().fold(u64::from(manifest_len), |sum, &len| sum + u64::from(len));
        if lengths != body.len() as u64 {
            return Err(invalid(format!("the body has {} bytes, its lengths add up to {lengths}", body.len())));
        }
        let mut upload = Self::without_blocks(body.slice(..manifest_len as usize))?;
        let mut at = manifest_len as usize;
        for &len in inline {
            let block = body.slice(at..at + len as usize);
            at += len as usize;
            let hash = BlockHash::of(&block);
            match upload.blocks.get(&hash) {
                Some(&expected) if expected == block.len() => upload.inline.insert(hash, block),
                _ => return Err(invalid(format!("block {hash} of {len} bytes is not in the manifest"))),
            };
        }
        Ok(upload)
    }

    /// From a manifest's stored form.
    pub(super) fn without_blocks(encoded: Bytes) -> Result<Self> {
        // What a client sends is its mistake, not a broken disk.
        let manifest = Manifest::decode(&encoded).map_err(|e| match e.kind() {
            ErrorKind::Corrupt => invalid(e.message().to_owned()),
            _ => e,
        })?;
        let mut blocks = HashMap::with_capacity(manifest.blocks().len());
        for &(index, hash) in manifest.blocks() {
            let len = manifest.block_len(index);
            if *blocks.entry(hash).or_insert(len) != len {
                return Err(invalid(format!("block {hash} has two lengths")));
            }
        }
        let hash = BlockHash::of(&encoded);
        Ok(Self { manifest, encoded, hash, blocks, inline: HashMap::new() })
    }

    /// True where storing it takes long enough to leave the runtime's thread.
    pub(super) fn is_large(&self) -> bool {
        self.blocks.len() > 64 || self.inline.values().map(Bytes::len).sum::<usize>() > (256 << 10)
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> (Manifest, Bytes, Bytes) {
        let (a, b) = (vec![1u8; 1 << 16], vec![2u8; 10]);
        let manifest = Manifest::new(16, (1 << 16) + 10, vec![(0, BlockHash::of(&a)), (1, BlockHash::of(&b))]).unwrap();
        (manifest, a.into(), b.into())
    }

    fn body(parts: &[&[u8]]) -> Bytes {
        parts.concat().into()
    }

    #[test]
    fn a_whole_body() {
        let (manifest, a, b) = sample();
        let encoded = manifest.encode();
        let upload = Upload::parse(&body(&[&encoded, &a, &b]), encoded.len() as u32, &[1 << 16, 10]).unwrap();
        assert_eq!((upload.hash, upload.inline.len(), upload.blocks[&BlockHash::of(&b)]), (manifest.hash(), 2, 10));
        let upload = Upload::parse(&body(&[&encoded, &b]), encoded.len() as u32, &[10]).unwrap();
        assert_eq!(upload.inline.len(), 1);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let (manifest, a, _) = sample();
        let encoded = manifest.encode();
        let len = encoded.len() as u32;
        for (parts, manifest_len, inline) in [
            (vec![encoded.as_slice(), &a], len, vec![10]),
            (vec![&encoded, &a[1..], b"x"], len, vec![1 << 16]),
            (vec![&encoded], u32::MAX, vec![]),
            (vec![&encoded], len, vec![u32::MAX, u32::MAX]),
            (vec![&encoded[1..]], len - 1, vec![]),
            (vec![&encoded, b""], len, vec![0]),
        ] {
            assert_eq!(Upload::parse(&body(&parts), manifest_len, &inline).unwrap_err().kind(), ErrorKind::Invalid);
        }
        let twice = Manifest::new(16, (1 << 16) + 10, vec![(0, BlockHash::of(&a)), (1, BlockHash::of(&a))]).unwrap();
        assert!(Upload::without_blocks(twice.encode().into()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), len in any::<u32>(), inline in proptest::collection::vec(any::<u32>(), 0..4)) {
            prop_assert!(Upload::parse(&bytes.into(), len, &inline).is_err());
        }
    }
}
