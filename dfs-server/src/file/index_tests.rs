//! The index: counts against a model, and what rows keep.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::store::memory::MemoryStore;

impl Index {
    /// Makes every version an old one.
    pub(crate) fn age(&self) {
        let rows = self.store.scan(b"v", b"w", usize::MAX).unwrap().into_iter();
        let aged = rows.map(|(key, row)| (key, Some(encode_row(&Row { made: 0, ..decode_row(&row).unwrap() }))));
        self.store.commit(&Batch { changes: aged.collect(), ..Batch::default() }, Durability::Process).unwrap();
    }
}

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

fn kept(m: &Manifest, hash: BlockHash) -> Kept {
    Kept::new(Arc::new(m.clone()), hash)
}

fn add(index: &Index, what: VersionOf, m: &Manifest) -> bool {
    index.add((what, m.hash()), (m, &m.encode()), None, 1, Durability::Process).unwrap()
}

fn remove(index: &Index, what: VersionOf, m: &Manifest) -> BTreeSet<BlockHash> {
    index.remove(&[(what, m.hash())], u64::MAX, &|_, _| Some(kept(m, m.hash()))).unwrap().into_iter().collect()
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
    /// Some of the rows become those of an older version, and the index is opened again.
    Open(Vec<bool>),
}

/// Makes rows those of an older version, as far as `which` says, going round.
fn make_old(store: &dyn Store, which: &[bool]) {
    let mut changes = Changes::new();
    for ((key, value), is_old) in store.scan(b"v", b"w", usize::MAX).unwrap().into_iter().zip(which.iter().cycle()) {
        let (claim, row) = (claim_of(&key).unwrap(), decode_row(&value).unwrap());
        if let Some(other) = row.since.filter(|_| *is_old) {
            changes.insert(dependent_key(other, claim), None);
            changes.insert(key, Some([&[FORMAT_SINCE], &value[1..]].concat()));
        }
    }
    store.commit(&Batch { changes, ..Batch::default() }, Durability::Process).unwrap();
}

/// Every row that is counted since another one, which is there, has its `d` row, and there are no others.
fn assert_listed(store: &dyn Store) {
    let rows = store.scan(b"v", b"w", usize::MAX).unwrap();
    let rows: BTreeMap<Claim, Row> = rows.iter().map(|(key, value)| (claim_of(key).unwrap(), decode_row(value).unwrap())).collect();
    let since = |(claim, row): (&Claim, &Row)| row.since.map(|other| (other, *claim));
    let expected: BTreeSet<Key> = rows.iter().filter_map(since).map(|(other, claim)| dependent_key(other, claim)).collect();
    let listed: BTreeSet<Key> = store.scan(b"d", b"e", usize::MAX).unwrap().into_iter().map(|row| row.0).collect();
    assert_eq!(listed, expected);
    for ((version, manifest), claim) in rows.iter().filter_map(since) {
        assert!(rows.contains_key(&(VersionOf { version, ..claim.0 }, manifest)), "what {claim:?} is counted since is there");
    }
}

/// How many rows count for each block, from the rows alone.
fn counted(store: &dyn Store, model: &BTreeMap<Claim, Manifest>) -> BTreeMap<BlockHash, u64> {
    let mut counts = BTreeMap::new();
    for (key, value) in store.scan(b"v", b"w", usize::MAX).unwrap() {
        let (claim, row) = (claim_of(&key).unwrap(), decode_row(&value).unwrap());
        let kept = |claim: Claim| kept_blocks(&model[&claim], claim.1);
        let base = row.since.map_or_else(BlockSet::default, |(version, hash)| kept((VersionOf { version, ..claim.0 }, hash)));
        kept(claim).difference(&base).for_each(|hash| *counts.entry(*hash).or_default() += 1);
    }
    counts
}

fn any_step() -> impl Strategy<Value = Step> {
    let blocks = proptest::collection::vec(0u8..6, 0..7);
    let add = (1u64..4, 1u64..6, blocks, proptest::option::of(any::<prop::sample::Index>())).prop_map(|(i, v, b, since)| Step::Add(i, v, b, since));
    let remove = proptest::collection::vec(any::<prop::sample::Index>(), 1..4).prop_map(Step::Remove);
    let open = proptest::collection::vec(any::<bool>(), 1..5).prop_map(Step::Open);
    prop_oneof![8 => add, 6 => remove, 2 => any::<prop::sample::Index>().prop_map(Step::Damage), 1 => open]
}

proptest! {
    #[test]
    fn counts_follow_the_rows(steps in proptest::collection::vec(any_step(), 1..60), damages in any::<bool>()) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let mut index = Index::open(store.clone()).unwrap();
        let mut model: BTreeMap<Claim, Manifest> = BTreeMap::new();
        let mut damaged: BlockSet = BlockSet::default();
        for step in steps {
            let at = |place: &prop::sample::Index| model.keys().nth(place.index(model.len().max(1))).copied();
            match step {
                Step::Add(ino, version, blocks, since) => {
                    let m = manifest(&blocks);
                    let claim = (what(ino, version), m.hash());
                    // Since any other version of the same file: one that is copied here may come after those that were built on it.
                    let since = since.and_then(|place| at(&place)).filter(|other| other.0.ino == claim.0.ino && *other != claim);
                    let since = since.map(|other| since_of(claim, &m, other, &model[&other]));
                    let new = !model.contains_key(&claim);
                    prop_assert_eq!(index.add(claim, (&m, &m.encode()), since, 1, Durability::Process).unwrap(), new);
                    model.insert(claim, m);
                }
                Step::Remove(places) => {
                    let claims: Vec<Claim> = places.iter().filter_map(at).collect();
                    let read = |claim: Claim, _: &Row| (!damaged.contains(&claim.1)).then(|| kept(&model[&claim], claim.1));
                    let free = index.remove(&claims, u64::MAX, &read).unwrap();
                    for claim in claims {
                        // What lies between versions that cannot be read stays.
                        if damages && index.has(claim).unwrap() {
                            continue;
                        }
                        model.remove(&claim);
                    }
                    let named: BlockSet = model.iter().flat_map(|((_, h), m)| kept_blocks(m, *h)).collect();
                    prop_assert!(free.iter().all(|hash| !named.contains(hash)), "a block that is named is not free");
                }
                Step::Damage(place) if damages => damaged.extend(at(&place).map(|claim| claim.1)),
                Step::Damage(_) => {}
                Step::Open(which) => {
                    make_old(&*store, &which);
                    index = Index::open(store.clone()).unwrap();
                }
            }
            assert_listed(&*store);
            let named: BlockSet = model.iter().flat_map(|((_, h), m)| kept_blocks(m, *h)).collect();
            for n in 0..6 {
                let (has, should) = (index.names(block(n)).unwrap(), named.contains(&block(n)));
                // With what cannot be read blocks stay; they never go.
                prop_assert!(has == should || (has && damages), "block {n}: {has} instead of {should}");
            }
            if !damages {
                let stored = store.scan(b"b", b"c", usize::MAX).unwrap();
                let counts: BTreeMap<BlockHash, u64> =
                    stored.iter().map(|(key, row)| (BlockHash(key[1..].try_into().unwrap()), decode(row).unwrap())).collect();
                prop_assert_eq!(counts, counted(&*store, &model));
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
    let read = |claim: Claim, _: &Row| versions.iter().find(|m| m.hash() == claim.1).map(|m| kept(m, claim.1));
    let free = |n: usize| index.remove(&[claim(n)], u64::MAX, &read).unwrap().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(free(1), [block(9), claim(1).1].into());
    assert_eq!(index.claims(claim(2).0).unwrap()[0].1.since, Some((Version(1), claim(0).1)));
    assert_eq!(free(0), [block(5), claim(0).1].into());
    assert_eq!(free(2), [1, 2, 3, 4, 8].map(block).into_iter().chain([claim(2).1]).collect());
}

/// A version, and two that are counted since it.
fn with_two_dependents() -> (Index, [(Claim, Manifest); 3]) {
    let index = Index::open(Arc::new(MemoryStore::default())).unwrap();
    let versions = [(1, &[0, 1][..]), (2, &[2, 1, 0]), (2, &[0])].map(|(version, blocks)| {
        let m = manifest(blocks);
        ((what(1, version), m.hash()), m)
    });
    for (n, (claim, m)) in versions.iter().enumerate() {
        let since = (n > 0).then(|| since_of(*claim, m, versions[0].0, &versions[0].1));
        assert!(index.add(*claim, (m, &m.encode()), since, 1, Durability::Process).unwrap());
    }
    (index, versions)
}

#[test]
fn what_is_counted_since_an_unreadable_version_takes_nothing_from_others() {
    let (index, versions) = with_two_dependents();
    let read = |claim: Claim, _: &Row| versions[1..].iter().find(|v| v.0 == claim).map(|(_, m)| kept(m, claim.1));
    for claim in [versions[0].0, versions[2].0] {
        assert!(index.remove(&[claim], u64::MAX, &read).unwrap().is_empty(), "the other version has them");
    }
    assert!([0, 1, 2].into_iter().all(|n| index.names(block(n)).unwrap()));
    assert_eq!(index.remove(&[versions[1].0], u64::MAX, &read).unwrap(), [], "what could not be read counts for good");
    assert_eq!(index.versions(), 0);
}

#[test]
fn a_version_between_unreadable_ones_stays_until_they_can_be_read() {
    let (index, versions) = with_two_dependents();
    let claim = versions[0].0;
    assert!(index.remove(&[claim], u64::MAX, &|_, _| None).unwrap().is_empty());
    assert_eq!((index.has(claim).unwrap(), index.versions()), (true, 3));
    let read = |claim: Claim, _: &Row| versions.iter().find(|v| v.0 == claim).map(|(_, m)| kept(m, claim.1));
    let free = index.remove(&versions.each_ref().map(|v| v.0), u64::MAX, &read).unwrap().into_iter().collect::<BTreeSet<_>>();
    assert_eq!((free, index.versions()), ([0, 1, 2].map(block).into(), 0));
}

/// Counts the rows that are read.
#[derive(Debug, Default)]
struct Reads {
    store: MemoryStore,
    rows: AtomicU64,
}

impl View for Reads {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.rows.fetch_add(1, Ordering::Relaxed);
        self.store.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        let rows = self.store.scan(from, to, limit)?;
        self.rows.fetch_add(1 + rows.len() as u64, Ordering::Relaxed);
        Ok(rows)
    }
}

impl Store for Reads {
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<u64> {
        self.store.commit(batch, durability)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        Box::new(self)
    }
}

#[test]
fn what_a_removal_reads_does_not_grow_with_the_versions() {
    let read_by = |versions: u64| {
        let store = Arc::new(Reads::default());
        let index = Index::open(store.clone()).unwrap();
        let manifests: Vec<Manifest> = (1..=versions).map(|n| manifest(&[n as u8, 1, 2, 3, (n >> 8) as u8])).collect();
        let claim = |n: usize| (what(1, n as u64 + 1), manifests[n].hash());
        for (n, m) in manifests.iter().enumerate() {
            let since = n.checked_sub(1).map(|before| since_of(claim(n), m, claim(before), &manifests[before]));
            assert!(index.add(claim(n), (m, &m.encode()), since, 1, Durability::Process).unwrap());
        }
        let read = |(what, hash): Claim, _: &Row| Some(kept(&manifests[what.version.0 as usize - 1], hash));
        let before = store.rows.load(Ordering::Relaxed);
        index.remove(&[claim(0)], u64::MAX, &read).unwrap();
        let rows = store.rows.load(Ordering::Relaxed) - before;
        assert_listed(&*store);
        rows
    };
    let few = read_by(3);
    assert!(few < 20, "{few} rows");
    assert_eq!(read_by(3000), few);
}
