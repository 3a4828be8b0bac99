//! What every engine must do, run against each of them.

use std::collections::BTreeMap;

use dfs_common::ErrorKind;
use proptest::prelude::*;

use super::memory::MemoryStore;
use super::overlay::Overlay;
use super::sqlite::SqliteStore;
use super::{Batch, Durability, Key, Store, Value, View};

/// One thing that happens to a store and to a plain map beside it.
#[derive(Clone, Debug)]
enum Step {
    Commit {
        changes: BTreeMap<Key, Option<Value>>,
        right_expectation: bool,
        durable: bool,
    },
    Get(Key),
    Scan(Key, Key, usize),
    /// A scan of two layers of pending changes above the store.
    ScanPending(BTreeMap<Key, Option<Value>>, BTreeMap<Key, Option<Value>>, usize),
}

/// Few different keys, so that they meet.
fn key() -> impl Strategy<Value = Key> {
    proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(127), Just(255)], 0..4)
}

fn changes() -> impl Strategy<Value = BTreeMap<Key, Option<Value>>> {
    proptest::collection::btree_map(key(), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)), 0..8)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (changes(), prop::bool::weighted(0.8), prop::bool::weighted(0.1))
            .prop_map(|(changes, right_expectation, durable)| Step::Commit { changes, right_expectation, durable }),
        1 => key().prop_map(Step::Get),
        1 => (key(), key(), 0usize..9).prop_map(|(from, to, limit)| Step::Scan(from, to, limit)),
        1 => (changes(), changes(), 0usize..20).prop_map(|(a, b, limit)| Step::ScanPending(a, b, limit)),
    ]
}

fn scan_map(map: &BTreeMap<Key, Value>, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Value)> {
    map.iter().filter(|(k, _)| *k >= from && *k < to).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn apply(map: &mut BTreeMap<Key, Value>, changes: &BTreeMap<Key, Option<Value>>) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// Does `steps` to `store`, which must be as `model`, and to `model`.
fn agree(store: &dyn Store, model: &mut BTreeMap<Key, Value>, revision: &mut u64, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Commit { changes, right_expectation, durable } => {
                let mut expected: BTreeMap<_, _> = changes.keys().map(|k| (k.clone(), model.get(k).cloned())).collect();
                if !right_expectation {
                    expected.insert(b"never".to_vec(), Some(b"there".to_vec()));
                }
                let durability = if *durable { Durability::Disk } else { Durability::Process };
                let result = store.commit(&Batch { changes: changes.clone(), expected }, durability);
                if *right_expectation {
                    let next = result.unwrap();
                    assert!(next > *revision, "revision {next} after {revision}");
                    *revision = next;
                    apply(model, changes);
                } else {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::Conflict);
                }
            }
            Step::Get(key) => {
                assert_eq!(store.get(key).unwrap().as_ref(), model.get(key));
                assert_eq!(store.snapshot().get(key).unwrap().as_ref(), model.get(key));
            }
            Step::Scan(from, to, limit) => {
                let expected = scan_map(model, from, to, *limit);
                assert_eq!(store.scan(from, to, *limit).unwrap(), expected);
                assert_eq!(store.snapshot().scan(from, to, *limit).unwrap(), expected);
            }
            Step::ScanPending(first, second, limit) => {
                let mut merged = model.clone();
                apply(&mut merged, first);
                apply(&mut merged, second);
                let mut lower = Overlay::new(store);
                lower.absorb(first.clone());
                let mut upper = Overlay::new(&lower);
                upper.absorb(second.clone());
                let (from, to) = (vec![0], vec![255]);
                assert_eq!(upper.scan(&from, &to, *limit).unwrap(), scan_map(&merged, &from, &to, *limit));
                for key in first.keys().chain(second.keys()) {
                    assert_eq!(upper.get(key).unwrap().as_ref(), merged.get(key));
                }
            }
        }
    }
    assert_eq!(store.scan(&[], &[255; 8], usize::MAX).unwrap(), scan_map(model, &vec![], &vec![255; 8], usize::MAX));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_memory_engine_is_a_map(steps in proptest::collection::vec(step(), 0..40)) {
        agree(&MemoryStore::default(), &mut BTreeMap::new(), &mut 0, &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_sqlite_engine_is_a_map_that_survives(sessions in proptest::collection::vec(proptest::collection::vec(step(), 0..20), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let (mut model, mut revision) = (BTreeMap::new(), 0);
        for steps in &sessions {
            let store = SqliteStore::open(&dir.path().join("kv.sqlite")).unwrap();
            agree(&store, &mut model, &mut revision, steps);
            // What another process would find, had this one been killed now.
            let killed = tempfile::tempdir().unwrap();
            store.copy_files(killed.path());
            let store = SqliteStore::open(&killed.path().join("kv.sqlite")).unwrap();
            agree(&store, &mut model.clone(), &mut revision.clone(), &[]);
        }
    }
}

#[test]
fn a_database_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.message().contains("in use by another process"), "{error}");
    drop(store);
    SqliteStore::open(&path).unwrap();
}

#[test]
fn what_is_no_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv.sqlite");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert_eq!(SqliteStore::open(&path).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(SqliteStore::open(&dir.path().join("missing/kv.sqlite")).is_err());
}

#[test]
fn every_revision_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv.sqlite");
    let mut last = 0;
    for durability in [Durability::Process, Durability::Disk, Durability::Process] {
        let store = SqliteStore::open(&path).unwrap();
        let revision = store.commit(&Batch::default(), durability).unwrap();
        assert!(revision > last, "{revision} after {last}");
        last = revision;
    }
}

#[test]
fn commits_reach_the_database_while_they_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv.sqlite");
    let store = SqliteStore::open(&path).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut n = 0u32;
    // Moved, and then checkpointed from SQLite's own log to the file.
    while std::fs::metadata(&path).unwrap().len() < 100 * 4096 {
        assert!(std::time::Instant::now() < deadline, "nothing has come after {n} commits");
        n += 1;
        let changes = BTreeMap::from([(n.to_be_bytes().to_vec(), Some(vec![1; 1000]))]);
        store.commit(&Batch { changes, expected: BTreeMap::new() }, Durability::Process).unwrap();
    }
    assert_eq!(store.scan(&[], &[255; 8], usize::MAX).unwrap().len(), n as usize);
    drop(store);
    let rows: u32 = rusqlite::Connection::open(&path).unwrap().query_row("SELECT count(*) FROM kv", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, n, "after a clean end the database has everything");
}
