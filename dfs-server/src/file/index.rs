//! Which versions this server holds, and how many of them name each block.
//!
//! Rows: `v` inode, version, manifest hash; `b` block hash; `d` for which rows are counted since
//! a row; `m` for the rest. Numbers
//! are big endian, so versions lie in order. Two manifests may claim one version until
//! the directory has said which one was published. A small manifest is part of its row,
//! a larger one is a block and counted like one.
//! A row may be counted *since* another one of its file: then it counts only
//! for the blocks that the other one lacks, so that a change of a large file costs what changed.
//! Its `d` row, under the other one's name, changes in the same batch, so that whoever removes a row
//! finds those that are counted since it without looking at all others of the file.
//! Invariant: a block's count is the number of version rows that count for it; both change in
//! one batch. Where a manifest cannot be read, counts stay too high: its blocks stay.

use std::collections::{BTreeMap, BTreeSet};
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
/// Of version rows that are counted since another one, as an older version wrote them: without a `d` row.
const FORMAT_SINCE: u8 = 2;
/// The same with their `d` row. Another format, so that an older version refuses what it would not keep in order.
const FORMAT_LISTED: u8 = 3;
/// Rows of one page while scanning.
const PAGE: usize = 1000;

/// One version here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    /// When the version was added, for the last time, in seconds since 1970: reconciling leaves young rows alone.
    pub(super) made: u64,
    /// The manifest's stored form, if it is small.
    pub(super) embedded: Option<Vec<u8>>,
    /// The version that it is counted since, and its manifest.
    #[serde(skip)]
    pub(super) since: Option<Other>,
}

/// Another version of the same file, and the manifest that claims it.
type Other = (Version, BlockHash);

/// What is kept by a row that is counted since another one.
#[derive(Clone, Debug)]
pub(super) struct Since {
    /// The other one, of the same file.
    pub(super) claim: Claim,
    /// What is kept that it lacks.
    pub(super) counted: BlockSet,
}

/// A row that is counted since another one, and what it keeps, if that can be read.
type Dependent = (Claim, Option<Kept>, Row);

/// Keys with their new values; `None` deletes.
type Changes = BTreeMap<Key, Option<Value>>;

/// A version and the manifest that claims it.
pub(super) type Claim = (VersionOf, BlockHash);

/// True where a manifest is stored in its row and not as a block.
pub(super) fn is_embedded(manifest: &Manifest) -> bool {
    manifest.blocks().len() <= MAX_EMBEDDED
}

/// The block that a manifest is, which its version keeps like those that it names.
fn own_block(manifest: &Manifest, hash: BlockHash) -> Option<BlockHash> {
    (!is_embedded(manifest)).then_some(hash)
}

/// The blocks that a version keeps: those it names, and the manifest where that is one.
pub(super) fn kept_blocks(manifest: &Manifest, hash: BlockHash) -> BlockSet {
    manifest.blocks().iter().map(|b| b.1).chain(own_block(manifest, hash)).collect()
}

/// The same of a version that is compared with others: of large files, without a set of all for each.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    manifest: Arc<Manifest>,
    hash: BlockHash,
}

impl Kept {
    /// By the version with `manifest`, which is called `hash`.
    pub(super) fn new(manifest: Arc<Manifest>, hash: BlockHash) -> Self {
        Self { manifest, hash }
    }

    /// What `base` lacks of it.
    fn since(&self, base: Option<&Self>) -> BlockSet {
        let Some(base) = base else { return kept_blocks(&self.manifest, self.hash) };
        let moved = self.manifest.unlike(&base.manifest).map(|row| row.1).chain(own_block(&self.manifest, self.hash));
        base.among(moved.collect::<Vec<_>>(), false).collect()
    }

    /// Those of `blocks` that are kept, or are not.
    pub(super) fn among<B>(&self, blocks: B, kept: bool) -> impl Iterator<Item = BlockHash> + use<'_, B>
    where
        B: IntoIterator<Item = BlockHash, IntoIter: ExactSizeIterator>,
    {
        let blocks = blocks.into_iter();
        let (own, names) = (own_block(&self.manifest, self.hash), self.manifest.names(blocks.len()));
        blocks.filter(move |hash| (own == Some(*hash) || names(hash)) == kept)
    }
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

/// The `d` row of `claim`, which is counted since `other`.
fn dependent_key(other: Other, claim: Claim) -> Vec<u8> {
    [dependents_key(claim.0.ino, other).as_slice(), &row_key(claim)[9..]].concat()
}

/// What the `d` rows of all that is counted since `other` begin with.
fn dependents_key(ino: InodeId, (version, manifest): Other) -> Vec<u8> {
    let mut key = row_key((VersionOf { ino, version }, manifest));
    key[0] = b'd';
    key
}

/// What is counted since `other`, from the key of its `d` row.
fn dependent_of(key: &[u8]) -> Result<Claim> {
    if key.len() != 89 {
        return Err(Error::new(ErrorKind::Corrupt, "index: a key of a wrong length"));
    }
    claim_of(&[&key[..9], &key[49..]].concat())
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
        Some(since) => postcard::to_extend(&(row, since), vec![FORMAT_LISTED]).expect("rows serialize"),
    }
}

fn decode_row(bytes: &[u8]) -> Result<Row> {
    match bytes.split_first() {
        Some((&(FORMAT_SINCE | FORMAT_LISTED), rest)) => {
            let parsed: Result<(Row, Other), _> = postcard::from_bytes(rest);
            let (row, since) = parsed.map_err(|e| Error::new(ErrorKind::Corrupt, format!("index: {e}")))?;
            Ok(Row { since: Some(since), ..row })
        }
        _ => decode(bytes),
    }
}

/// A row as it will be, and what the stored one is counted since.
struct Changed {
    row: Option<Row>,
    stored: Option<Other>,
}

/// Rows and counts as they will be, before they are committed together.
struct Pending<'a> {
    view: &'a dyn View,
    rows: BTreeMap<Claim, Changed>,
    /// What rows were counted since at some time of this batch, so that none is missed that is not stored yet.
    moved: BTreeMap<Claim, Vec<Claim>>,
    counts: BlockTable<i64>,
}

impl<'a> Pending<'a> {
    fn new(view: &'a dyn View) -> Self {
        Self { view, rows: BTreeMap::new(), moved: BTreeMap::new(), counts: BlockTable::default() }
    }

    fn row(&self, claim: Claim) -> Result<Option<Row>> {
        match self.rows.get(&claim) {
            Some(changed) => Ok(changed.row.clone()),
            None => self.view.get(&row_key(claim))?.map(|row| decode_row(&row)).transpose(),
        }
    }

    /// Replaces the row of `claim`, which was counted since `before`.
    fn set(&mut self, claim: Claim, before: Option<Other>, row: Option<Row>) {
        if let Some((version, manifest)) = row.as_ref().and_then(|row| row.since) {
            self.moved.entry((VersionOf { version, ..claim.0 }, manifest)).or_default().push(claim);
        }
        // What is stored shows in the first change only.
        let stored = self.rows.get(&claim).map_or(before, |changed| changed.stored);
        self.rows.insert(claim, Changed { row, stored });
    }

    fn count(&mut self, blocks: impl Iterator<Item = BlockHash>, by: i64) {
        for hash in blocks {
            *self.counts.entry(hash).or_default() += by;
        }
    }

    /// Rows that are counted since `claim`.
    fn dependents(&self, claim: Claim) -> Result<Vec<(Claim, Row)>> {
        let other = (claim.0.version, claim.1);
        let from = dependents_key(claim.0.ino, other);
        let to = [from.as_slice(), &[0xff; 41]].concat();
        let stored = self.view.scan(&from, &to, usize::MAX)?;
        let mut claims = stored.iter().map(|(key, _)| dependent_of(key)).collect::<Result<BTreeSet<Claim>>>()?;
        claims.extend(self.moved.get(&claim).into_iter().flatten());
        let mut found = Vec::new();
        for dependent in claims {
            found.extend(self.row(dependent)?.filter(|row| row.since == Some(other)).map(|row| (dependent, row)));
        }
        Ok(found)
    }

    /// Takes `claim` out; false where it is not there, or has to stay until more manifests can be read. `read` gives what a row
    /// keeps, if its manifest can be read.
    fn remove(&mut self, claim: Claim, read: &dyn Fn(Claim, &Row) -> Option<Kept>) -> Result<bool> {
        let Some(row) = self.row(claim)? else { return Ok(false) };
        let base = match row.since {
            None => Some(None),
            Some((version, hash)) => {
                let other = (VersionOf { version, ..claim.0 }, hash);
                self.row(other)?.and_then(|row| read(other, &row)).map(Some)
            }
        };
        let dependents = self.dependents(claim)?.into_iter().map(|(other, row)| (other, read(other, &row), row)).collect();
        let is_removed = match (read(claim, &row), base) {
            (Some(own), Some(base)) => {
                self.pass_on(claim, row.since, (&own, base.as_ref()), dependents);
                true
            }
            _ => self.give_up(claim, &row, dependents),
        };
        if is_removed {
            self.set(claim, row.since, None);
        }
        Ok(is_removed)
    }

    /// Counts `dependents` of `claim`, each with what it keeps, since what that one was counted since, and takes its counts back.
    fn pass_on(&mut self, claim: Claim, since: Option<Other>, (own, base): (&Kept, Option<&Kept>), dependents: Vec<Dependent>) {
        // One takes over what it keeps, which is nearly all: only the rest is counted at all.
        let heir = dependents.iter().position(|(_, kept, _)| kept.is_some());
        for (at, (other, kept, row)) in dependents.into_iter().enumerate() {
            match &kept {
                Some(kept) if heir == Some(at) => {
                    let lost = own.since(Some(kept));
                    match base {
                        Some(base) => self.count(base.among(lost, false), -1),
                        None => self.count(lost.into_iter(), -1),
                    }
                }
                Some(kept) => self.count(kept.among(own.since(base), true), 1),
                // It may need any of them.
                None => self.count(own.since(base).into_iter(), 1),
            }
            if let (Some(kept), Some(base)) = (&kept, base) {
                self.count(kept.among(base.since(Some(own)), true), -1);
            }
            self.set(other, Some((claim.0.version, claim.1)), Some(Row { since, ..row }));
        }
        if heir.is_none() {
            self.count(own.since(base).into_iter(), -1);
        }
    }

    /// The same where it is not known what `claim` counts for: that stays counted for good. Its `dependents` are counted as if they
    /// were alone, since they must not take back what others rely on, too. Where one of these cannot be read either, nothing is done.
    fn give_up(&mut self, claim: Claim, row: &Row, dependents: Vec<Dependent>) -> bool {
        let near = format!("a manifest near version {} of inode {} is unreadable", claim.0.version, claim.0.ino);
        if dependents.iter().any(|(_, kept, _)| kept.is_none()) {
            log::warn!("{near}, and one that is built on it: the version stays");
            return false;
        }
        for (other, kept, row) in dependents {
            self.count(kept.into_iter().flat_map(|kept| kept.since(None)), 1);
            self.set(other, Some((claim.0.version, claim.1)), Some(Row { since: None, ..row }));
        }
        if row.embedded.is_none() {
            log::warn!("{near}: its blocks stay");
            // Where the other one is the same, it counts for it.
            if row.since.is_none_or(|other| other.1 != claim.1) {
                self.count([claim.1].into_iter(), -1);
            }
        }
        true
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
        for (claim, Changed { row, stored }) in self.rows {
            let since = row.as_ref().and_then(|row| row.since);
            if since != stored {
                changes.extend(stored.map(|other| (dependent_key(other, claim), None)));
                changes.extend(since.map(|other| (dependent_key(other, claim), Some(Vec::new()))));
            }
            changes.insert(row_key(claim), row.as_ref().map(encode_row));
        }
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

/// The `d` rows that those of `rows` lack which an older version wrote.
fn list_dependents(rows: &[(Key, Value)]) -> Result<Changes> {
    let mut changes = Changes::new();
    for (key, value) in rows {
        let (claim, row) = (claim_of(key)?, decode_row(value)?);
        if let Some(other) = row.since.filter(|_| value.first() == Some(&FORMAT_SINCE)) {
            changes.insert(dependent_key(other, claim), Some(Vec::new()));
            changes.insert(key.clone(), Some(encode_row(&row)));
        }
    }
    Ok(changes)
}

impl Index {
    /// Over `store`; counts the versions once, and gives rows of an older version their `d` rows.
    pub(super) fn open(store: Arc<dyn Store>) -> Result<Self> {
        let index = Self { store, changing: Mutex::new(()), versions: AtomicU64::new(0) };
        let mut from = b"v".to_vec();
        loop {
            let rows = index.store.scan(&from, b"w", PAGE)?;
            index.versions.fetch_add(rows.len() as u64, Ordering::Relaxed);
            let changes = list_dependents(&rows)?;
            if !changes.is_empty() {
                index.store.commit(&Batch { changes, ..Batch::default() }, Durability::Process)?;
            }
            match rows.into_iter().nth(PAGE - 1) {
                Some((last, _)) => from = [last.as_slice(), &[0]].concat(),
                None => return Ok(index),
            }
        }
    }

    /// Commits the changes that `make` decides on, from rows that nobody changes meanwhile; returns what else it says.
    fn change<T>(&self, durability: Durability, make: impl FnOnce(&dyn View) -> Result<(Changes, T)>) -> Result<T> {
        let _changing = self.changing.lock();
        let (changes, answer) = make(&*self.store.snapshot())?;
        // What was there may wait for the disk, too.
        if !changes.is_empty() || durability == Durability::Disk {
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

    /// Adds a version, counted since another one where that is still there; false where it was there: then it is young again.
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
            if let Some(row) = pending.row(claim)? {
                if row.made < now {
                    pending.set(claim, row.since, Some(Row { made: now, ..row }));
                }
                return pending.finish().map(|(changes, _)| (changes, false));
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
            pending.set(claim, None, Some(Row { made: now, embedded, since }));
            pending.finish().map(|(changes, _)| (changes, true))
        })?;
        self.versions.fetch_add(u64::from(is_new), Ordering::Relaxed);
        Ok(is_new)
    }

    /// Removes versions in one batch; returns the blocks that no version names any more. `read` gives what a row keeps, if
    /// that can be read; rows that are not there, or were added after `latest`, are passed over.
    pub(super) fn remove(&self, claims: &[Claim], latest: u64, read: &dyn Fn(Claim, &Row) -> Option<Kept>) -> Result<Vec<BlockHash>> {
        let (free, gone) = self.change(Durability::Process, |view| {
            let (mut pending, mut gone) = (Pending::new(view), 0);
            for &claim in claims {
                if pending.row(claim)?.is_some_and(|row| row.made <= latest) {
                    gone += u64::from(pending.remove(claim, read)?);
                }
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
#[path = "index_tests.rs"]
mod tests;
