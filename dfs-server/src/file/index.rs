//! Which versions this server holds, and how many of them name each block.
//!
//! Rows: `v` inode, version, manifest hash; `b` block hash; `m` for the rest. Numbers
//! are big endian, so versions lie in order. Two manifests may claim one version until
//! the directory has said which one was published. A small manifest is part of its row,
//! a larger one is a block and counted like one.
//! Invariant: a block's count is the number of version rows that name it; both change
//! in one batch.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_common::api::directory::VersionOf;
use dfs_common::block::{BlockHash, Manifest};
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::{Batch, Durability, Store};

/// Manifests of up to this many blocks lie in their version's row.
const MAX_EMBEDDED: usize = 4;
const FORMAT: u8 = 1;
/// Rows of one page while scanning.
const PAGE: usize = 1000;

/// One version here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    /// When the row was made, in seconds since 1970: reconciling leaves young rows alone.
    pub(super) made: u64,
    /// The manifest's stored form, if it is small.
    pub(super) embedded: Option<Vec<u8>>,
}

/// A version and the manifest that claims it.
pub(super) type Claim = (VersionOf, BlockHash);

/// True where a manifest is stored in its row and not as a block.
pub(super) fn is_embedded(manifest: &Manifest) -> bool {
    manifest.blocks().len() <= MAX_EMBEDDED
}

/// The blocks that a version keeps: those it names, and the manifest where that is one.
pub(super) fn kept_blocks(manifest: &Manifest, hash: BlockHash) -> HashSet<BlockHash> {
    let own = (!is_embedded(manifest)).then_some(hash);
    manifest.blocks().iter().map(|b| b.1).chain(own).collect()
}

/// The rows.
#[derive(Debug)]
pub(super) struct Index {
    store: Arc<dyn Store>,
    /// Held from reading counts to committing them.
    counts: Mutex<()>,
    versions: AtomicU64,
}

fn version_key(what: VersionOf) -> Vec<u8> {
    [b"v".as_slice(), &what.ino.0.to_be_bytes(), &what.version.0.to_be_bytes()].concat()
}

fn row_key((what, manifest): Claim) -> Vec<u8> {
    [version_key(what).as_slice(), &manifest.0].concat()
}

fn claim_of(key: &[u8]) -> Result<Claim> {
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes);
    let parse = || -> Result<Claim, std::array::TryFromSliceError> {
        let what = VersionOf { ino: InodeId(number(&key[1..9])?), version: Version(number(&key[9..17])?) };
        Ok((what, BlockHash(key[17..].try_into()?)))
    };
    let fault = || Error::new(ErrorKind::Corrupt, "index: a key of a wrong length");
    if key.len() != 49 { Err(fault()) } else { parse().map_err(|_| fault()) }
}

fn count_key(hash: BlockHash) -> Vec<u8> {
    [b"b".as_slice(), &hash.0].concat()
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).expect("rows serialize")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let fault = |why: String| Error::new(ErrorKind::Corrupt, format!("index: {why}"));
    match bytes.split_first() {
        Some((&FORMAT, row)) => postcard::from_bytes(row).map_err(|e| fault(e.to_string())),
        _ => Err(fault("a row of an unknown format".to_owned())),
    }
}

impl Index {
    /// Over `store`; counts the versions once.
    pub(super) fn open(store: Arc<dyn Store>) -> Result<Self> {
        let index = Self { store, counts: Mutex::new(()), versions: AtomicU64::new(0) };
        let (mut after, mut count) = (None, 0);
        loop {
            let page = index.page(after, None)?;
            count += page.len() as u64;
            match page.last() {
                Some((claim, _)) if page.len() == PAGE => after = Some(*claim),
                _ => break,
            }
        }
        index.versions.store(count, Ordering::Relaxed);
        Ok(index)
    }

    /// Versions held.
    pub(super) fn versions(&self) -> u64 {
        self.versions.load(Ordering::Relaxed)
    }

    /// What claims to be `what`; almost always one or none.
    pub(super) fn claims(&self, what: VersionOf) -> Result<Vec<(BlockHash, Row)>> {
        let from = version_key(what);
        let to = [from.as_slice(), &[0xff; 33]].concat();
        let rows = self.store.scan(&from, &to, 16)?;
        rows.iter().map(|(key, value)| Ok((claim_of(key)?.1, decode(value)?))).collect()
    }

    /// One page of rows in order, behind `after` and not behind `last`.
    pub(super) fn page(&self, after: Option<Claim>, last: Option<VersionOf>) -> Result<Vec<(Claim, Row)>> {
        let from = after.map_or(b"v".to_vec(), |claim| [row_key(claim).as_slice(), &[0]].concat());
        let to = last.map_or(b"w".to_vec(), |what| [version_key(what).as_slice(), &[0xff; 33]].concat());
        if from >= to {
            return Ok(Vec::new());
        }
        let rows = self.store.scan(&from, &to, PAGE)?;
        rows.iter().map(|(key, value)| Ok((claim_of(key)?, decode(value)?))).collect()
    }

    /// Adds a version; false where it was there.
    pub(super) fn add(&self, claim: Claim, manifest: &Manifest, encoded: &[u8], now: u64, durability: Durability) -> Result<bool> {
        let _counts = self.counts.lock();
        let key = row_key(claim);
        if self.store.get(&key)?.is_some() {
            return Ok(false);
        }
        let embedded = is_embedded(manifest).then(|| encoded.to_vec());
        let mut batch = Batch::default();
        batch.changes.insert(key, Some(encode(&Row { made: now, embedded })));
        for hash in kept_blocks(manifest, claim.1) {
            let count = self.count(hash)? + 1;
            batch.changes.insert(count_key(hash), Some(encode(&count)));
        }
        self.store.commit(&batch, durability)?;
        self.versions.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Removes versions in one batch; returns the blocks that no version names any more. Each comes with the blocks
    /// that it keeps; rows that are not there are passed over.
    pub(super) fn remove(&self, versions: &[(Claim, HashSet<BlockHash>)]) -> Result<Vec<BlockHash>> {
        let _counts = self.counts.lock();
        let mut batch = Batch::default();
        let mut fewer: HashMap<BlockHash, u64> = HashMap::new();
        let mut gone = BTreeSet::new();
        for (claim, blocks) in versions {
            let key = row_key(*claim);
            if self.store.get(&key)?.is_none() || !gone.insert(key.clone()) {
                continue;
            }
            batch.changes.insert(key, None);
            for &hash in blocks {
                *fewer.entry(hash).or_default() += 1;
            }
        }
        let mut free = Vec::new();
        for (hash, fewer) in fewer {
            let left = self.count(hash)?.saturating_sub(fewer);
            batch.changes.insert(count_key(hash), (left > 0).then(|| encode(&left)));
            if left == 0 {
                free.push(hash);
            }
        }
        if !batch.changes.is_empty() {
            self.store.commit(&batch, Durability::Process)?;
        }
        self.versions.fetch_sub(gone.len() as u64, Ordering::Relaxed);
        Ok(free)
    }

    /// True where a version names the block.
    pub(super) fn names(&self, hash: BlockHash) -> Result<bool> {
        Ok(self.count(hash)? > 0)
    }

    fn count(&self, hash: BlockHash) -> Result<u64> {
        self.store.get(&count_key(hash))?.map_or(Ok(0), |row| decode(&row))
    }

    /// A setting of this data directory.
    pub(super) fn setting(&self, name: &str) -> Result<Option<String>> {
        self.store.get(format!("m{name}").as_bytes())?.map(|row| decode(&row)).transpose()
    }

    /// Stores a setting.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<()> {
        let changes = BTreeMap::from([(format!("m{name}").into_bytes(), Some(encode(&value)))]);
        self.store.commit(&Batch { changes, ..Batch::default() }, Durability::Disk).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn block(n: u8) -> BlockHash {
        BlockHash::of(&[n])
    }

    /// A manifest of full blocks.
    fn manifest(blocks: &[u8]) -> Manifest {
        let rows = blocks.iter().enumerate().map(|(i, &n)| (i as u32, block(n))).collect();
        Manifest::new(16, (blocks.len() as u64) << 16, rows).unwrap()
    }

    fn what(ino: u64, version: u64) -> VersionOf {
        VersionOf { ino: InodeId(ino), version: Version(version) }
    }

    fn add(index: &Index, what: VersionOf, m: &Manifest) -> bool {
        index.add((what, m.hash()), m, &m.encode(), 1, Durability::Process).unwrap()
    }

    fn remove(index: &Index, what: VersionOf, m: &Manifest) -> BTreeSet<BlockHash> {
        index.remove(&[((what, m.hash()), kept_blocks(m, m.hash()))]).unwrap().into_iter().collect()
    }

    #[test]
    fn a_block_is_free_when_its_last_version_goes() {
        let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
        let (a, b) = (manifest(&[1, 2, 1]), manifest(&[2, 3]));
        assert!(add(&index, what(1, 1), &a) && add(&index, what(1, 2), &b) && !add(&index, what(1, 1), &a));
        assert_eq!(index.versions(), 2);
        assert_eq!(remove(&index, what(1, 1), &a), [block(1)].into());
        assert!(remove(&index, what(1, 1), &a).is_empty(), "once");
        assert_eq!(remove(&index, what(1, 2), &b), [block(2), block(3)].into());
        assert_eq!(index.versions(), 0);
    }

    #[test]
    fn a_large_manifest_is_a_block_too() {
        let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
        let m = manifest(&[1, 2, 3, 4, 5]);
        add(&index, what(1, 1), &m);
        assert!(index.names(m.hash()).unwrap());
        assert_eq!(index.claims(what(1, 1)).unwrap()[0].1.embedded, None);
        assert_eq!(remove(&index, what(1, 1), &m).len(), 6);
    }

    #[test]
    fn pages_are_in_order_and_claims_apart() {
        let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
        let (a, b) = (manifest(&[1]), manifest(&[2]));
        for w in [what(2, 1), what(1, 256), what(1, 2)] {
            add(&index, w, &a);
        }
        add(&index, what(1, 2), &b);
        let page: Vec<_> = index.page(None, Some(what(1, 256))).unwrap().iter().map(|r| r.0.0).collect();
        assert_eq!(page, [what(1, 2), what(1, 2), what(1, 256)]);
        assert_eq!(index.claims(what(1, 2)).unwrap().len(), 2);
        let last = index.page(None, None).unwrap()[2].0;
        assert_eq!(index.page(Some(last), None).unwrap()[0].0.0, what(2, 1));
    }

    proptest! {
        #[test]
        fn counts_follow_the_rows(steps in proptest::collection::vec((any::<bool>(), 1u64..4, 1u64..4, proptest::collection::vec(0u8..6, 0..7)), 1..60)) {
            let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
            let mut model: BTreeMap<(VersionOf, BlockHash), Manifest> = BTreeMap::new();
            for (adding, ino, version, blocks) in steps {
                let (w, m) = (what(ino, version), manifest(&blocks));
                if adding {
                    let new = model.insert((w, m.hash()), m.clone()).is_none();
                    prop_assert_eq!(add(&index, w, &m), new);
                } else {
                    model.remove(&(w, m.hash()));
                    remove(&index, w, &m);
                }
                let named: HashSet<_> = model.iter().flat_map(|((_, h), m)| kept_blocks(m, *h)).collect();
                for n in 0..6 {
                    prop_assert_eq!(index.names(block(n)).unwrap(), named.contains(&block(n)));
                }
                prop_assert_eq!(index.versions(), model.len() as u64);
            }
        }
    }
}
