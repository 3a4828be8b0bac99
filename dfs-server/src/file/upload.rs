//! The body of a commit or a copy, checked before anything is stored. Pure.
//!
//! Invariant: every block of an [`Upload`] has the hash and the length that its manifest says. What a patch makes is
//! checked as if it had come whole.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dfs_common::api::file::{Commit, MAX_PATCHED, Replicate};
use dfs_common::block::{BlockHash, BlockSet, BlockTable, FEW, Manifest};
use dfs_common::patch::Patch;
use dfs_common::{Error, ErrorKind, Result};

use super::index::{Kept, is_embedded};

/// How a body is made up, in this order.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// Bytes of the manifest.
    pub(super) manifest_len: u32,
    /// They are what differs from this manifest.
    pub(super) manifest_base: Option<BlockHash>,
    /// Bytes of each block.
    pub(super) inline: Vec<u32>,
    /// Bytes of each patch.
    pub(super) patches: Vec<u32>,
}

impl From<&Commit> for Parts {
    fn from(meta: &Commit) -> Self {
        let Commit { manifest_len, manifest_base, inline, patches, .. } = meta;
        Self { manifest_len: *manifest_len, manifest_base: *manifest_base, inline: inline.clone(), patches: patches.clone() }
    }
}

impl From<&Replicate> for Parts {
    fn from(meta: &Replicate) -> Self {
        let Replicate { manifest_len, manifest_base, inline, patches, .. } = meta;
        Self { manifest_len: *manifest_len, manifest_base: *manifest_base, inline: inline.clone(), patches: patches.clone() }
    }
}

/// A version on its way in.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    /// The manifest.
    pub(super) manifest: Arc<Manifest>,
    /// Its stored form.
    pub(super) encoded: Bytes,
    /// Its name.
    pub(super) hash: BlockHash,
    /// [`Upload::blocks`], once somebody wants them: a small change of a large file does without.
    blocks: OnceLock<BlockTable<usize>>,
    /// Blocks that came with it.
    pub(super) inline: BlockTable<Bytes>,
    /// The manifest that it came as a change of, and its name.
    pub(super) base: Option<(BlockHash, Arc<Manifest>)>,
    /// Its blocks that are not in the same place there; of no meaning without.
    pub(super) fresh: Vec<BlockHash>,
}

impl Upload {
    /// From a body made up of `parts`; `base` is the manifest that they are a change of, and `make` gives the block that a patch makes, with its
    /// name. `NotFound` where a patch does not make a block of the manifest.
    pub(super) fn parse(
        body: &Bytes,
        parts: &Parts,
        base: Option<Arc<Manifest>>,
        mut make: impl FnMut(&Patch) -> Result<(BlockHash, Bytes)>,
    ) -> Result<Self> {
        let all = [parts.manifest_len].into_iter().chain(parts.inline.iter().copied()).chain(parts.patches.iter().copied());
        let lengths: u64 = all.map(u64::from).sum();
        if lengths != body.len() as u64 {
            return Err(invalid(format!("the body has {} bytes, its lengths add up to {lengths}", body.len())));
        }
        let mut rest = body.clone();
        let encoded = rest.split_to(parts.manifest_len as usize);
        let mut upload = match parts.manifest_base.zip(base) {
            Some(base) => Self::of_change(base, &encoded)?,
            None => Self::without_blocks(encoded)?,
        };
        for &len in &parts.inline {
            let block = rest.split_to(len as usize);
            let hash = BlockHash::of(&block);
            if !upload.add(hash, block) {
                return Err(invalid(format!("block {hash} of {len} bytes is not in the manifest")));
            }
        }
        let mut patched = 0;
        for &len in &parts.patches {
            let patch = Patch::decode(&rest.split_to(len as usize))?;
            patched += patch.len as usize;
            if patched > MAX_PATCHED {
                return Err(Error::new(ErrorKind::TooBig, format!("the patches of one commit make at most {MAX_PATCHED} bytes")));
            }
            let (hash, block) = make(&patch)?;
            if !upload.add(hash, block) {
                return Err(Error::new(ErrorKind::NotFound, "a patch does not make a block of the manifest from what is stored here"));
            }
        }
        Ok(upload)
    }

    /// A block that came with it; false where the manifest does not name it.
    fn add(&mut self, hash: BlockHash, block: Bytes) -> bool {
        let fits = self.len_of(hash) == Some(block.len());
        if fits {
            self.inline.insert(hash, block);
        }
        fits
    }

    /// A body that holds it without reference to anything else: whole manifest, whole blocks.
    pub(super) fn whole(&self) -> (Bytes, Parts) {
        let blocks: Vec<&Bytes> = self.inline.values().collect();
        let inline = blocks.iter().map(|block| block.len() as u32).collect();
        let body = std::iter::once(&self.encoded).chain(blocks).map(|part| &part[..]).collect::<Vec<_>>().concat();
        (body.into(), Parts { manifest_len: self.encoded.len() as u32, inline, ..Parts::default() })
    }

    /// From a manifest as the change of another one.
    fn of_change((hash, base): (BlockHash, Arc<Manifest>), delta: &[u8]) -> Result<Self> {
        let manifest = Manifest::from_delta(&base, delta).map_err(of_client)?;
        let encoded = manifest.encode().into();
        let mut upload = Self::new(manifest, encoded)?;
        upload.fresh = upload.manifest.unlike(&base).map(|row| row.1).collect();
        upload.base = Some((hash, base));
        Ok(upload)
    }

    /// The manifest that it came as a change of, and what it keeps that a version with that one does not.
    pub(super) fn kept_since(&self) -> Option<(BlockHash, BlockSet)> {
        let (base_hash, base) = self.base.as_ref().filter(|_| !is_embedded(&self.manifest))?;
        let kept: Vec<BlockHash> = self.fresh.iter().chain([&self.hash]).copied().collect();
        Some((*base_hash, Kept::new(base.clone(), *base_hash).among(kept, false).collect()))
    }

    /// From a manifest's stored form.
    pub(super) fn without_blocks(encoded: Bytes) -> Result<Self> {
        Self::new(Manifest::decode(&encoded).map_err(of_client)?, encoded)
    }

    fn new(manifest: Manifest, encoded: Bytes) -> Result<Self> {
        // Only the last one can be shorter than the others.
        if let Some(((last, hash), others)) = manifest.blocks().split_last()
            && manifest.block_len(*last) as u64 != manifest.block_size()
            && others.iter().any(|other| other.1 == *hash)
        {
            return Err(invalid(format!("block {hash} has two lengths")));
        }
        let hash = BlockHash::of(&encoded);
        let (inline, blocks) = (BlockTable::default(), OnceLock::new());
        Ok(Self { manifest: Arc::new(manifest), encoded, hash, blocks, inline, base: None, fresh: Vec::new() })
    }

    /// Each block that the manifest names, once, with its length.
    pub(super) fn blocks(&self) -> &BlockTable<usize> {
        self.blocks.get_or_init(|| self.manifest.blocks().iter().map(|&(index, hash)| (hash, self.manifest.block_len(index))).collect())
    }

    /// The length of a block that the manifest names.
    pub(super) fn len_of(&self, hash: BlockHash) -> Option<usize> {
        if self.blocks.get().is_none() && self.base.is_some() && self.fresh.len() <= FEW {
            let row = self.manifest.blocks().iter().find(|row| row.1 == hash)?;
            return Some(self.manifest.block_len(row.0));
        }
        self.blocks().get(&hash).copied()
    }

    /// True where the version keeps the block: its manifest names it, or is it.
    pub(super) fn keeps(&self, hash: BlockHash) -> bool {
        self.len_of(hash).is_some() || (hash == self.hash && !is_embedded(&self.manifest))
    }

    /// True where storing it takes long enough to leave the runtime's thread.
    pub(super) fn is_large(&self) -> bool {
        let count = self.manifest.blocks().len();
        let (work, most) = if self.base.is_some() { (self.fresh.len(), 4096) } else { (count, 64) };
        work > 64 || count > most || self.inline.values().map(Bytes::len).sum::<usize>() > (256 << 10)
    }
}

/// What a client sends is its mistake, not a broken disk.
fn of_client(e: Error) -> Error {
    match e.kind() {
        ErrorKind::Corrupt => invalid(e.message().to_owned()),
        _ => e,
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::index::kept_blocks;
    use super::super::patched::Patched;
    use super::*;

    /// Makes blocks of what is stored, whatever the base's name.
    fn of(stored: Option<Vec<u8>>) -> impl FnMut(&Patch) -> Result<(BlockHash, Bytes)> {
        move |patch| Patched::default().make(patch, |_| Ok(stored.clone()))
    }

    fn sample() -> (Manifest, Bytes, Bytes) {
        let (a, b) = (vec![1u8; 1 << 16], vec![2u8; 10]);
        let manifest = Manifest::new(16, (1 << 16) + 10, vec![(0, BlockHash::of(&a)), (1, BlockHash::of(&b))]).unwrap();
        (manifest, a.into(), b.into())
    }

    fn body(parts: &[&[u8]]) -> Bytes {
        parts.concat().into()
    }

    fn parts(manifest_len: u32, inline: &[u32], patches: &[u32]) -> Parts {
        Parts { manifest_len, manifest_base: None, inline: inline.to_vec(), patches: patches.to_vec() }
    }

    fn parse(parts: &[&[u8]], lengths: &Parts) -> Result<Upload> {
        Upload::parse(&body(parts), lengths, None, of(None))
    }

    #[test]
    fn a_whole_body() {
        let (manifest, a, b) = sample();
        let encoded = manifest.encode();
        let upload = parse(&[&encoded, &a, &b], &parts(encoded.len() as u32, &[1 << 16, 10], &[])).unwrap();
        assert_eq!((upload.hash, upload.inline.len(), upload.blocks()[&BlockHash::of(&b)]), (manifest.hash(), 2, 10));
        let upload = parse(&[&encoded, &b], &parts(encoded.len() as u32, &[10], &[])).unwrap();
        assert_eq!(upload.inline.len(), 1);
    }

    #[test]
    fn what_changed_makes_the_whole() {
        let (manifest, a, b) = sample();
        let old = Manifest::new(16, 1 << 16, vec![(0, BlockHash::of(b"old"))]).unwrap();
        let delta = manifest.encode_delta(&old);
        let mut patch = bytes::BytesMut::new();
        Patch { base: Some(BlockHash::of(b"old")), len: 1 << 16, offset: 1, bytes: a.slice(1..) }.encode(&mut patch);
        let lengths = Parts { manifest_base: Some(old.hash()), ..parts(delta.len() as u32, &[10], &[patch.len() as u32]) };
        let sent = body(&[&delta, &b, &patch]);
        let upload = Upload::parse(&sent, &lengths, Some(Arc::new(old.clone())), of(Some(vec![1; 7]))).unwrap();
        assert_eq!((upload.hash, upload.inline[&BlockHash::of(&a)].clone()), (manifest.hash(), a.clone()));
        assert_eq!(upload.kept_since().map(|since| since.0), None, "small manifests lie in their rows");
        let (whole, lengths) = upload.whole();
        let again = Upload::parse(&whole, &lengths, None, |_| unreachable!("nothing is patched")).unwrap();
        assert_eq!((again.encoded, again.inline), (upload.encoded, upload.inline));
        // What is stored is another block, or nothing.
        for stored in [Some(vec![2; 7]), None] {
            let lengths = Parts { manifest_base: Some(old.hash()), ..parts(delta.len() as u32, &[10], &[patch.len() as u32]) };
            let refused = Upload::parse(&sent, &lengths, Some(Arc::new(old.clone())), of(stored)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotFound);
        }
    }

    #[test]
    fn what_is_kept_since_another_version_is_the_difference() {
        let hash = |n: u8| BlockHash([n; 32]);
        let manifest = |blocks: &[u8]| Manifest::new(16, 20 << 16, (0..).zip(blocks).map(|(i, &n)| (i, hash(n))).collect()).unwrap();
        let mut old = manifest(&[1, 2, 3, 4, 5, 6]);
        // Few and many changes, blocks that moved, and manifests that are blocks of each other's content.
        for blocks in [&[1, 2, 9, 4, 5, 6][..], &[6, 5, 4, 3, 2, 1, 7], &[11; 9], &[1, 2, 3], &[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1]] {
            let mut rows = manifest(blocks).blocks().to_vec();
            rows.push((18, old.hash()));
            let new = Manifest::new(16, 20 << 16, rows).unwrap();
            let upload = Upload::of_change((old.hash(), Arc::new(old.clone())), &new.encode_delta(&old)).unwrap();
            let (own, before) = (kept_blocks(&new, new.hash()), kept_blocks(&old, old.hash()));
            let expected = own.difference(&before).copied().collect();
            if is_embedded(&new) {
                assert!(upload.kept_since().is_none());
            } else {
                assert_eq!(upload.kept_since().unwrap(), (old.hash(), expected));
            }
            old = new;
        }
    }

    #[test]
    fn patches_do_not_make_much_of_little() {
        let zeros = BlockHash::of(&vec![0; 1 << 20]);
        let encoded = Manifest::new(20, 1 << 20, vec![(0, zeros)]).unwrap().encode();
        let mut patch = bytes::BytesMut::new();
        Patch { base: None, len: 1 << 20, offset: 0, bytes: Bytes::new() }.encode(&mut patch);
        for (count, fits) in [(MAX_PATCHED >> 20, true), ((MAX_PATCHED >> 20) + 1, false)] {
            let sent: Vec<&[u8]> = std::iter::once(&encoded[..]).chain(std::iter::repeat_n(&patch[..], count)).collect();
            let parsed = parse(&sent, &parts(encoded.len() as u32, &[], &vec![patch.len() as u32; count]));
            assert_eq!(parsed.map(|upload| upload.inline.len()).map_err(|e| e.kind()), if fits { Ok(1) } else { Err(ErrorKind::TooBig) });
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let (manifest, a, _) = sample();
        let encoded = manifest.encode();
        let len = encoded.len() as u32;
        for (sent, manifest_len, inline, patches) in [
            (vec![encoded.as_slice(), &a], len, vec![10], vec![]),
            (vec![&encoded, &a[1..], b"x"], len, vec![1 << 16], vec![]),
            (vec![&encoded], u32::MAX, vec![], vec![]),
            (vec![&encoded], len, vec![u32::MAX, u32::MAX], vec![]),
            (vec![&encoded], len, vec![], vec![u32::MAX]),
            (vec![&encoded[1..]], len - 1, vec![], vec![]),
            (vec![&encoded, b""], len, vec![0], vec![]),
            (vec![&encoded, b"patch"], len, vec![], vec![5]),
        ] {
            assert_eq!(parse(&sent, &parts(manifest_len, &inline, &patches)).unwrap_err().kind(), ErrorKind::Invalid);
        }
        let twice = Manifest::new(16, (1 << 16) + 10, vec![(0, BlockHash::of(&a)), (1, BlockHash::of(&a))]).unwrap();
        assert!(Upload::without_blocks(twice.encode().into()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), len in any::<u32>(), inline in proptest::collection::vec(any::<u32>(), 0..4)) {
            prop_assert!(Upload::parse(&bytes.into(), &parts(len, &inline, &[]), None, of(None)).is_err());
        }
    }
}
