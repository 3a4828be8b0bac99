//! Which versions this server holds, and how many of them name each block.
//!
//! Rows: `v` inode, version, manifest hash; `b` block hash; `m` for the rest. Numbers
//! are big endian, so versions lie in order. Two manifests may claim one version until
//! the directory has said which one was published. A small manifest is part of its row,
//! a larger one is a block and counted like one.
//! A row may be counted *since* another one of its file, which is there: then it counts only
//! for the blocks that the other one lacks, so that a change of a large file costs what changed.
//! Invariant: a block's count is the number of version rows that count for it; both change in
//! one batch. Where a manifest cannot be read, counts stay too high: its blocks stay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dfs_common::api::directory::VersionOf;
use dfs_common::block::{BlockHash, BlockSet, BlockTable, Manifest};
use dfs_common::ids::{InodeId, Version};
use dfs_common::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::{Batch, Durability, Key, Store, Value, View};

/// Manifests of up to this many blocks lie in their version's row.
const MAX_EMBEDDED: usize = 4;
const FORMAT: u8 = 1;
/// Of version rows that are counted since another one.
const FORMAT_SINCE: u8 = 2;
/// Rows of one page while scanning.
const PAGE: usize = 1000;

/// One version here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    /// When the row was made, in seconds since 1970: reconciling leaves young rows alone.
    pub(super) made: u64,
    /// The manifest's stored form, if it is small.
    pub(super) embedded: Option<Vec<u8>>,
    /// The version that it is counted since, and its manifest.
    #[serde(skip)]
    pub(super) since: Option<(Version, BlockHash)>,
}

/// What is kept by a row that is counted since another one.
#[derive(Clone, Debug)]
pub(super) struct Since {
    /// The other one, of the same file.
    pub(super) claim: Claim,
    /// What is kept that it lacks.
    pub(super) counted: BlockSet,
}

/// Keys with their new values; `None` deletes.
type Changes = BTreeMap<Key, Option<Value>>;

/// A version and the manifest that claims it.
pub(super) type Claim = (VersionOf, BlockHash);

/// True where a manifest is stored in its row and not as a block.
pub(super) fn is_embedded(manifest: &Manifest) -> bool {
    manifest.blocks().len() <= MAX_EMBEDDED
}

/// The blocks that a version keeps: those it names, and the manifest where that is one.
pub(super) fn kept_blocks(manifest: &Manifest, hash: BlockHash) -> BlockSet {
    let own = (!is_embedded(manifest)).then_some(hash);
    manifest.blocks().iter().map(|b| b.1).chain(own).collect()
}

/// The rows.
#[derive(Debug)]
pub(super) struct Index {
    store: Arc<dyn Store>,
    /// Held from reading to committing what follows from it.
    changing: Mutex<()>,
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

fn encode_row(row: &Row) -> Vec<u8> {
    match row.since {
        None => encode(row),
        Some(since) => postcard::to_extend(&(row, since), vec![FORMAT_SINCE]).expect("rows serialize"),
    }
}

fn decode_row(bytes: &[u8]) -> Result<Row> {
    match bytes.split_first() {
        Some((&FORMAT_SINCE, rest)) => {
            let parsed: Result<(Row, (Version, BlockHash)), _> = postcard::from_bytes(rest);
            let (row, since) = parsed.map_err(|e| Error::new(ErrorKind::Corrupt, format!("index: {e}")))?;
            Ok(Row { since: Some(since), ..row })
        }
        _ => decode(bytes),
    }
}

/// Rows and counts as they will be, before they are committed together.
struct Pending<'a> {
    view: &'a dyn View,
    rows: BTreeMap<Claim, Option<Row>>,
    counts: BlockTable<i64>,
}

impl<'a> Pending<'a> {
    fn new(view: &'a dyn View) -> Self {
        Self { view, rows: BTreeMap::new(), counts: BlockTable::default() }
    }

    fn row(&self, claim: Claim) -> Result<Option<Row>> {
        match self.rows.get(&claim) {
            Some(row) => Ok(row.clone()),
            None => self.view.get(&row_key(claim))?.map(|row| decode_row(&row)).transpose(),
        }
    }

    fn count(&mut self, blocks: impl Iterator<Item = BlockHash>, by: i64) {
        for hash in blocks {
            *self.counts.entry(hash).or_default() += by;
        }
    }

    /// Rows that are counted since `claim`.
    fn dependents(&self, claim: Claim) -> Result<Vec<(Claim, Row)>> {
        let last = VersionOf { version: Version(u64::MAX), ..claim.0 };
        let (mut found, mut after) = (Vec::new(), Some(claim));
        while after.is_some() {
            let page = page(self.view, after, Some(last))?;
            after = (page.len() == PAGE).then(|| page[PAGE - 1].0);
            for (other, _) in page {
                found.extend(self.row(other)?.filter(|row| row.since == Some((claim.0.version, claim.1))).map(|row| (other, row)));
            }
        }
        Ok(found)
    }

    /// Takes `claim` out; false where it is not there. `read` gives what a row keeps, if its manifest can be read.
    fn remove(&mut self, claim: Claim, read: &dyn Fn(Claim, &Row) -> Option<BlockSet>) -> Result<bool> {
        let Some(row) = self.row(claim)? else { return Ok(false) };
        let base = match row.since {
            None => Some(BlockSet::default()),
            Some((version, hash)) => {
                let other = (VersionOf { version, ..claim.0 }, hash);
                self.row(other)?.and_then(|row| read(other, &row))
            }
        };
        let own = read(claim, &row);
        let counted: Option<BlockSet> = own.as_ref().zip(base.as_ref()).map(|(own, base)| own.difference(base).copied().collect());
        let mut is_known = counted.is_some();
        for (other, mut dependent) in self.dependents(claim)? {
            // From here on it is counted since what this one was counted since.
            match (read(other, &dependent), &own, &counted, &base) {
                (Some(blocks), Some(own), Some(counted), Some(base)) => {
                    self.count(blocks.intersection(counted).copied(), 1);
                    self.count(blocks.intersection(base).filter(|hash| !own.contains(hash)).copied(), -1);
                }
                // What it does not count for stays counted by this one, for good.
                _ => is_known = false,
            }
            dependent.since = row.since;
            self.rows.insert(other, Some(dependent));
        }
        match counted.filter(|_| is_known) {
            Some(counted) => self.count(counted.into_iter(), -1),
            None if row.embedded.is_none() => {
                log::warn!("a manifest near version {} of inode {} is unreadable: its blocks stay", claim.0.version, claim.0.ino);
                self.count([claim.1].into_iter(), -1);
            }
            None => {}
        }
        self.rows.insert(claim, None);
        Ok(true)
    }

    /// What it changes, and the blocks that no row counts for any more.
    fn finish(self) -> Result<(Changes, Vec<BlockHash>)> {
        let (mut changes, mut free) = (Changes::new(), Vec::new());
        for (hash, by) in self.counts.into_iter().filter(|(_, by)| *by != 0) {
            let left = count(self.view, hash)?.saturating_add_signed(by);
            changes.insert(count_key(hash), (left > 0).then(|| encode(&left)));
            if left == 0 {
                free.push(hash);
            }
        }
        changes.extend(self.rows.into_iter().map(|(claim, row)| (row_key(claim), row.as_ref().map(encode_row))));
        Ok((changes, free))
    }
}

fn page(view: &dyn View, after: Option<Claim>, last: Option<VersionOf>) -> Result<Vec<(Claim, Row)>> {
    let from = after.map_or(b"v".to_vec(), |claim| [row_key(claim).as_slice(), &[0]].concat());
    let to = last.map_or(b"w".to_vec(), |what| [version_key(what).as_slice(), &[0xff; 33]].concat());
    if from >= to {
        return Ok(Vec::new());
    }
    let rows = view.scan(&from, &to, PAGE)?;
    rows.iter().map(|(key, value)| Ok((claim_of(key)?, decode_row(value)?))).collect()
}

fn count(view: &dyn View, hash: BlockHash) -> Result<u64> {
    view.get(&count_key(hash))?.map_or(Ok(0), |row| decode(&row))
}

impl Index {
    /// Over `store`; counts the versions once.
    pub(super) fn open(store: Arc<dyn Store>) -> Result<Self> {
        let index = Self { store, changing: Mutex::new(()), versions: AtomicU64::new(0) };
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

    /// Commits the changes that `make` decides on, from rows that nobody changes meanwhile; returns what else it says.
    fn change<T>(&self, durability: Durability, make: impl FnOnce(&dyn View) -> Result<(Changes, T)>) -> Result<T> {
        let _changing = self.changing.lock();
        let (changes, answer) = make(&*self.store.snapshot())?;
        if !changes.is_empty() {
            self.store.commit(&Batch { changes, ..Batch::default() }, durability)?;
        }
        Ok(answer)
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
        rows.iter().map(|(key, value)| Ok((claim_of(key)?.1, decode_row(value)?))).collect()
    }

    /// One page of rows in order, behind `after` and not behind `last`.
    pub(super) fn page(&self, after: Option<Claim>, last: Option<VersionOf>) -> Result<Vec<(Claim, Row)>> {
        page(&*self.store, after, last)
    }

    /// Adds a version, counted since another one where that is still there; false where it was there.
    pub(super) fn add(
        &self,
        claim: Claim,
        (manifest, encoded): (&Manifest, &[u8]),
        since: Option<Since>,
        now: u64,
        durability: Durability,
    ) -> Result<bool> {
        let is_new = self.change(durability, |view| {
            let mut pending = Pending::new(view);
            if pending.row(claim)?.is_some() {
                return Ok((Changes::new(), false));
            }
            let since = match since {
                Some(since) if pending.row(since.claim)?.is_some() => Some(since),
                _ => None,
            };
            let embedded = is_embedded(manifest).then(|| encoded.to_vec());
            let (since, counted) = match since {
                Some(Since { claim, counted }) => (Some((claim.0.version, claim.1)), counted),
                None => (None, kept_blocks(manifest, claim.1)),
            };
            pending.count(counted.into_iter(), 1);
            pending.rows.insert(claim, Some(Row { made: now, embedded, since }));
            pending.finish().map(|(changes, _)| (changes, true))
        })?;
        self.versions.fetch_add(u64::from(is_new), Ordering::Relaxed);
        Ok(is_new)
    }

    /// Removes versions in one batch; returns the blocks that no version names any more. `read` gives what a row keeps, if
    /// that can be read; rows that are not there are passed over.
    pub(super) fn remove(&self, claims: &[Claim], read: &dyn Fn(Claim, &Row) -> Option<BlockSet>) -> Result<Vec<BlockHash>> {
        let (free, gone) = self.change(Durability::Process, |view| {
            let (mut pending, mut gone) = (Pending::new(view), 0);
            for &claim in claims {
                gone += u64::from(pending.remove(claim, read)?);
            }
            pending.finish().map(|(changes, free)| (changes, (free, gone)))
        })?;
        self.versions.fetch_sub(gone, Ordering::Relaxed);
        Ok(free)
    }

    /// Whether this version with this manifest is here.
    pub(super) fn has(&self, claim: Claim) -> Result<bool> {
        self.store.get(&row_key(claim)).map(|row| row.is_some())
    }

    /// True where a version names the block.
    pub(super) fn names(&self, hash: BlockHash) -> Result<bool> {
        Ok(count(&*self.store, hash)? > 0)
    }

    /// Returns when the disk has every row; others wait meanwhile.
    pub(super) fn sync(&self) -> Result<()> {
        self.store.commit(&Batch::default(), Durability::Disk).map(|_| ())
    }

    /// A setting of this data directory.
    pub(super) fn setting(&self, name: &str) -> Result<Option<String>> {
        self.store.get(format!("m{name}").as_bytes())?.map(|row| decode(&row)).transpose()
    }

    /// Stores a setting.
    pub(super) fn set(&self, name: &str, value: &str) -> Result<()> {
        let changes = Changes::from([(format!("m{name}").into_bytes(), Some(encode(&value)))]);
        self.change(Durability::Disk, |_| Ok((changes, ())))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        index.add((what, m.hash()), (m, &m.encode()), None, 1, Durability::Process).unwrap()
    }

    fn remove(index: &Index, what: VersionOf, m: &Manifest) -> BTreeSet<BlockHash> {
        index.remove(&[(what, m.hash())], &|_, _| Some(kept_blocks(m, m.hash()))).unwrap().into_iter().collect()
    }

    fn since_of(claim: Claim, m: &Manifest, other: Claim, base: &Manifest) -> Since {
        Since { claim: other, counted: kept_blocks(m, claim.1).difference(&kept_blocks(base, other.1)).copied().collect() }
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

    /// A step with the files 1 to 3: adds a version, since another one (by its place among those that are there), or removes some.
    #[derive(Clone, Debug)]
    enum Step {
        Add(u64, u64, Vec<u8>, Option<prop::sample::Index>),
        Remove(Vec<prop::sample::Index>),
        /// A manifest becomes unreadable.
        Damage(prop::sample::Index),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let blocks = proptest::collection::vec(0u8..6, 0..7);
        let add =
            (1u64..4, 1u64..6, blocks, proptest::option::of(any::<prop::sample::Index>())).prop_map(|(i, v, b, since)| Step::Add(i, v, b, since));
        let remove = proptest::collection::vec(any::<prop::sample::Index>(), 1..4).prop_map(Step::Remove);
        prop_oneof![4 => add, 3 => remove, 1 => any::<prop::sample::Index>().prop_map(Step::Damage)]
    }

    proptest! {
        #[test]
        fn counts_follow_the_rows(steps in proptest::collection::vec(any_step(), 1..60), damages in any::<bool>()) {
            let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
            let mut model: BTreeMap<Claim, Manifest> = BTreeMap::new();
            let mut damaged: BlockSet = BlockSet::default();
            for step in steps {
                let at = |place: &prop::sample::Index| model.keys().nth(place.index(model.len().max(1))).copied();
                match step {
                    Step::Add(ino, version, blocks, since) => {
                        let m = manifest(&blocks);
                        let claim = (what(ino, version), m.hash());
                        // Since whatever was there once and may be gone: an earlier version of the same file.
                        let since = since.and_then(|place| at(&place)).filter(|other| other.0.ino == claim.0.ino && other.0.version < claim.0.version);
                        let since = since.map(|other| since_of(claim, &m, other, &model[&other]));
                        let new = !model.contains_key(&claim);
                        prop_assert_eq!(index.add(claim, (&m, &m.encode()), since, 1, Durability::Process).unwrap(), new);
                        model.insert(claim, m);
                    }
                    Step::Remove(places) => {
                        let claims: Vec<Claim> = places.iter().filter_map(at).collect();
                        let read = |claim: Claim, _: &Row| (!damaged.contains(&claim.1)).then(|| kept_blocks(&model[&claim], claim.1));
                        let free = index.remove(&claims, &read).unwrap();
                        for claim in claims {
                            model.remove(&claim);
                        }
                        let named: BlockSet = model.iter().flat_map(|((_, h), m)| kept_blocks(m, *h)).collect();
                        prop_assert!(free.iter().all(|hash| !named.contains(hash)), "a block that is named is not free");
                    }
                    Step::Damage(place) if damages => damaged.extend(at(&place).map(|claim| claim.1)),
                    Step::Damage(_) => {}
                }
                let named: BlockSet = model.iter().flat_map(|((_, h), m)| kept_blocks(m, *h)).collect();
                for n in 0..6 {
                    let (has, should) = (index.names(block(n)).unwrap(), named.contains(&block(n)));
                    // With what cannot be read blocks stay; they never go.
                    prop_assert!(has == should || (has && damages), "block {n}: {has} instead of {should}");
                }
                prop_assert_eq!(index.versions(), model.len() as u64);
            }
        }
    }

    #[test]
    fn a_change_counts_for_what_changed_and_outlives_what_it_is_counted_since() {
        let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
        let versions = [manifest(&[1, 2, 3, 4, 5]), manifest(&[1, 2, 9, 4, 5]), manifest(&[1, 2, 3, 4, 8])];
        let claim = |n: usize| (what(1, n as u64 + 1), versions[n].hash());
        for (n, m) in versions.iter().enumerate() {
            let since = n.checked_sub(1).map(|before| since_of(claim(n), m, claim(before), &versions[before]));
            assert!(index.add(claim(n), (m, &m.encode()), since, 1, Durability::Process).unwrap());
        }
        assert_eq!(
            (count(&*index.store, block(1)).unwrap(), count(&*index.store, block(3)).unwrap(), count(&*index.store, block(9)).unwrap()),
            (1, 2, 1)
        );
        let read = |claim: Claim, _: &Row| versions.iter().find(|m| m.hash() == claim.1).map(|m| kept_blocks(m, claim.1));
        let free = |n: usize| index.remove(&[claim(n)], &read).unwrap().into_iter().collect::<BTreeSet<_>>();
        assert_eq!(free(1), [block(9), claim(1).1].into());
        assert_eq!(index.claims(claim(2).0).unwrap()[0].1.since, Some((Version(1), claim(0).1)));
        assert_eq!(free(0), [block(5), claim(0).1].into());
        assert_eq!(free(2), [1, 2, 3, 4, 8].map(block).into_iter().chain([claim(2).1]).collect());
    }
}
