//! What a restart must not change, on SQLite; what the disk has before others are told.

use parking_lot::Mutex;

use super::*;
use crate::store::{Batch, Durability, Key, SqliteStore, Value, View};

/// In memory; it knows whether a disk would have everything.
#[derive(Debug, Default)]
struct Watched {
    inner: MemoryStore,
    durability: Mutex<Durability>,
}

impl View for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.inner.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>> {
        self.inner.scan(from, to, limit)
    }
}

impl Store for Watched {
    fn commit(&self, batch: &Batch, durability: Durability) -> Result<u64> {
        *self.durability.lock() = durability;
        self.inner.commit(batch, durability)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        self.inner.snapshot()
    }
}

#[tokio::test]
async fn a_version_is_ordered_to_be_dropped_when_the_disk_knows_that_it_is_not_alive() {
    let store = Arc::new(Watched::default());
    let mut client = Client::with(config(), store.clone());
    client.open_session().await;
    let server = client.register("a").await;
    let ino = client.file(ROOT, "f").await;
    for base in 0..4 {
        client.call(&client.version(ino, base, &[server])).await.unwrap();
        let dropped = client.heartbeat(server).await.drop;
        let expected = if base == 3 { (vec![VersionOf { ino, version: Version(1) }], Durability::Disk) } else { (Vec::new(), Durability::Process) };
        assert_eq!((dropped, *store.durability.lock()), expected);
    }
}

fn open(dir: &tempfile::TempDir) -> Client {
    Client::with(config(), Arc::new(SqliteStore::open(&dir.path().join("directory.sqlite")).unwrap()))
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = open(&dir);
    let session = client.open_session().await;
    let server = client.register("a").await;
    let sub = client.dir(ROOT, "d").await;
    let ino = client.file(sub, "f").await;
    client.call(&Publish { durable: true, ..client.version(ino, 0, &[server]) }).await.unwrap();
    let gone = client.file(ROOT, "gone").await;
    client.remove(ROOT, "gone", false).await.unwrap();
    let make = Make::new(ROOT, name("r"), FileKind::File, 0);
    let replay = Some(Replay { slot: 9, sequence: 1 });
    let made = client.call_as(&make, replay).await.unwrap();
    client.call(&Sync {}).await.unwrap();
    let before = client.status().await;
    let (root, file) = (client.attributes(ROOT).await.unwrap(), client.attributes(ino).await.unwrap());
    drop(client);

    let mut client = open(&dir);
    client.session = Some(session);
    let after = client.status().await;
    assert_eq!(after.cluster, before.cluster);
    assert!(after.revision > before.revision);
    let numbers = |s: &DirectoryStatus| (s.inodes, s.orphans, s.sessions, s.under_replicated);
    assert_eq!(numbers(&after), numbers(&before));
    assert_eq!(numbers(&after), (6, 1, 1, 1));
    assert_eq!((client.attributes(ROOT).await.unwrap(), client.attributes(ino).await.unwrap()), (root, file));
    assert_eq!(client.call_as(&make, replay).await.unwrap(), made);
    assert_eq!(client.call(&RenewSession { session, released: Vec::new() }).await.unwrap().orphans, [gone]);
    assert_eq!(client.register("a").await, server);
    let new = client.call_as(&Make { name: name("n"), ..make }, Some(Replay { slot: 9, sequence: 2 })).await.unwrap();
    assert!(new.entry.attributes.ino > made.entry.attributes.ino, "numbers are never used twice");
    let mut other = client.other();
    assert!(other.open_session().await > session);
}
