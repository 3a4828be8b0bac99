//! What is kept of the past, and for how long.

use dfs_common::api::Done;
use dfs_common::ids::RECOVERED;

use super::super::keeping::Rounds;
use super::super::state::{self, Change, Limits, Policy, keys};
use super::super::writer::{Reply, Terms};
use super::events::{Mount, at, start};
use super::*;
use crate::store::{Batch, Durability, SqliteStore};

const HOUR: Duration = Duration::from_secs(3600);

/// Removed files are kept for an hour, and something else.
fn and(change: impl FnOnce(&mut Keep)) -> Config {
    let mut config = keeping();
    change(&mut config.keep);
    config
}

/// A client with a session, and a file server.
async fn client() -> (Client, ServerId) {
    let mut client = Client::with(keeping(), Arc::new(MemoryStore::default()));
    client.open_session().await;
    let server = client.register("a").await;
    (client, server)
}

impl Client {
    async fn past(&self, parent: InodeId, text: &str) -> Vec<PastRow> {
        self.call(&NameHistory { parent, name: name(text) }).await.unwrap()
    }

    async fn removed(&self, parent: InodeId) -> Vec<String> {
        let page = self.call(&Removals { parent, after: None, limit: Removals::MAX_LIMIT }).await.unwrap();
        page.rows.iter().map(|row| row.name.to_string()).collect()
    }

    async fn undelete(&self, ino: InodeId, parent: InodeId, text: &str) -> Result<Made> {
        self.call(&Undelete { ino, parent, name: name(text) }).await
    }

    async fn published(&self, parent: InodeId, text: &str, server: ServerId) -> InodeId {
        let ino = self.file(parent, text).await;
        self.call(&self.version(ino, 0, &[server])).await.unwrap();
        ino
    }

    async fn kept_versions(&self, ino: InodeId) -> Vec<u64> {
        self.call(&Versions { ino }).await.unwrap().iter().map(|row| row.version.0).collect()
    }

    /// Does something at a time of the test's own, in seconds.
    async fn at(&self, seconds: i64, act: impl Fn(&mut Change<'_>) -> Result<()> + Send + 'static) {
        let act = move |change: &mut Change<'_>| {
            change.now.wall = Timestamp::from_parts(seconds, 0);
            act(change).map(|()| Reply::default())
        };
        self.directory.submit(Terms::default(), act).await.unwrap();
    }

    async fn remove_at(&self, seconds: i64, text: &str) {
        let remove = Remove { parent: ROOT, name: name(text), directory: false };
        self.at(seconds, move |change| state::remove(change, &remove).map(|_| ())).await;
    }

    async fn publish_at(&self, seconds: i64, publish: Publish) {
        self.at(seconds, move |change| state::publish(change, &publish).map(|_| ())).await;
    }

    /// What is over its time goes, at that time.
    async fn expire_at(&self, seconds: i64, policy: Policy) {
        let limits = Limits::new(&policy, Timestamp::from_parts(seconds, 0));
        while state::is_due(&*self.directory.store.snapshot(), &limits).unwrap() {
            self.at(seconds, move |change| state::expire(change, &limits)).await;
        }
    }

    fn policy(&self) -> Policy {
        self.directory.policy.clone()
    }
}

#[tokio::test]
async fn a_fence_refuses_older_tokens_and_nothing_else() {
    let (client, server) = client().await;
    let ino = client.published(ROOT, "f", server).await;
    let fence = |token| Fence { ino, token: Token(token) };
    assert_eq!(client.call(&fence(7)).await.unwrap(), Done {});
    client.call(&fence(3)).await.unwrap();
    let publish = |token| Publish { token: Token(token), ..client.version(ino, 1, &[server]) };
    assert_eq!(kind(client.call(&publish(6)).await), ErrorKind::Fenced);
    assert_eq!(kind(client.call(&Publish { base: Version(0), ..publish(7) }).await), ErrorKind::Conflict);
    assert_eq!(client.call(&publish(7)).await.unwrap().attributes.version, Version(2));
    client.call(&fence(9)).await.unwrap();
    assert_eq!(client.call(&publish(7)).await.unwrap().attributes.version, Version(2), "its answer had been lost");
    client.call(&Fence { ino: InodeId(999), token: Token(1) }).await.unwrap();
}

#[tokio::test]
async fn the_recovered_directory_is_one_like_others_without_a_name() {
    let (client, _) = client().await;
    let attributes = client.attributes(RECOVERED).await.unwrap().attributes;
    assert_eq!((attributes.mode, attributes.uid, attributes.nlink), (0o700, 0, 2));
    let ino = client.file(RECOVERED, "f").await;
    assert_eq!(ino, InodeId(3), "numbers begin behind it");
    assert_eq!(client.lookup(RECOVERED, "f").await.unwrap().attributes.ino, ino);
    assert!(client.call(&List { ino: ROOT, after: None, limit: 9 }).await.unwrap().entries.is_empty());
    let dir = client.dir(ROOT, "d").await;
    client.rename((RECOVERED, "f"), (dir, "g"), RenameMode::Replace).await.unwrap();
    client.rename((ROOT, "d"), (RECOVERED, "d"), RenameMode::Replace).await.unwrap();
    assert_eq!(kind(client.rename((RECOVERED, "d"), (dir, "d"), RenameMode::Replace).await), ErrorKind::Invalid);
    assert_eq!(client.nlink(RECOVERED).await, 3);
    client.remove(dir, "g", false).await.unwrap();
    client.remove(RECOVERED, "d", true).await.unwrap();
    assert_eq!((client.removed(RECOVERED).await, client.removed(dir).await), (vec!["d".to_owned()], vec!["g".to_owned()]));
    assert_eq!(kind(client.undelete(RECOVERED, ROOT, "r").await), ErrorKind::NotFound);
    assert_eq!(kind(client.call(&Link { ino: RECOVERED, parent: ROOT, name: name("r") }).await), ErrorKind::NotPermitted);
}

#[tokio::test]
async fn an_older_database_gets_a_recovered_directory_unless_the_number_is_taken() {
    let (client, _) = client().await;
    let store = client.directory.store.clone();
    let set = |value| {
        let changes = std::collections::BTreeMap::from([(keys::inode(RECOVERED), value)]);
        store.commit(&Batch { changes, ..Batch::default() }, Durability::Process).unwrap();
    };
    set(None);
    let again = Client::with(keeping(), store.clone());
    assert_eq!(again.attributes(RECOVERED).await.unwrap().attributes.mode, 0o700);
    let other = client.dir(ROOT, "d").await;
    set(store.get(&keys::inode(other)).unwrap());
    let message = Directory::open(keeping(), store.clone()).unwrap_err().to_string();
    assert!(message.contains("reserved for recovered files"), "{message}");
}

#[tokio::test]
async fn every_way_of_losing_a_name_is_known_by_that_name() {
    let (client, server) = client().await;
    let (one, two) = (client.published(ROOT, "a", server).await, client.published(ROOT, "b", server).await);
    let before = client.attributes(ROOT).await.unwrap().attributes.mtime;
    client.rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace).await.unwrap();
    let (a, b) = (client.past(ROOT, "a").await, client.past(ROOT, "b").await);
    assert_eq!((a.len(), b.len()), (1, 1));
    assert_eq!((a[0].entry.attributes.ino, a[0].entry.attributes.nlink, a[0].version), (one, 1, Version(1)));
    assert_eq!((b[0].entry.attributes.ino, b[0].entry.attributes.nlink, b[0].name.clone()), (two, 0, name("b")));
    assert_eq!((a[0].parent_mtime, b[0].parent_mtime, b[0].by.as_str()), (before, before, "here test[7]"));
    assert_eq!(client.removed(ROOT).await, Vec::<String>::new(), "one was renamed, the other's name is taken");
    let three = client.published(ROOT, "c", server).await;
    client.rename((ROOT, "b"), (ROOT, "c"), RenameMode::Exchange).await.unwrap();
    let inos = |rows: Vec<PastRow>| rows.iter().map(|row| row.entry.attributes.ino).collect::<Vec<_>>();
    assert_eq!((inos(client.past(ROOT, "b").await), inos(client.past(ROOT, "c").await)), (vec![one, two], vec![three]));
    client.remove(ROOT, "b", false).await.unwrap();
    client.remove(ROOT, "c", false).await.unwrap();
    assert_eq!(inos(client.past(ROOT, "b").await), [three, one, two]);
    assert_eq!(client.removed(ROOT).await, ["b", "c"]);
    // Of what has no content, and of directories, only removals are noted.
    client.make(ROOT, "l", FileKind::Symlink).await.unwrap();
    client.dir(ROOT, "d").await;
    for (from, to, directory) in [("l", "m", false), ("d", "e", true)] {
        client.rename((ROOT, from), (ROOT, to), RenameMode::Replace).await.unwrap();
        client.remove(ROOT, to, directory).await.unwrap();
        assert_eq!((client.past(ROOT, from).await.len(), client.past(ROOT, to).await.len()), (0, 1));
    }
    assert_eq!(kind(client.call(&NameHistory { parent: one, name: name("x") }).await), ErrorKind::NotDirectory);
}

#[tokio::test]
async fn a_removed_file_is_kept_as_it_was_and_comes_back_so() {
    let (mut client, server) = client().await;
    let session = client.session.unwrap();
    let ino = client.published(ROOT, "f", server).await;
    let xattr = SetXattr { ino, name: name("user.x"), value: Text(b"v".to_vec()), mode: XattrMode::Set };
    client.call(&xattr).await.unwrap();
    let before = client.attributes(ino).await.unwrap();
    client.remove(ROOT, "f", false).await.unwrap();
    client.call(&CloseSession { session }).await.unwrap();
    let status = client.status().await;
    assert_eq!((status.inodes, status.orphans, status.kept), (2, 0, 1));
    client.open_session().await;
    assert_eq!((client.kept_versions(ino).await, client.heartbeat(server).await.drop), (vec![1], vec![]));
    assert_eq!(client.call(&GetXattr { ino, name: name("user.x") }).await.unwrap(), Text(b"v".to_vec()));
    assert_eq!(kind(client.call(&Link { ino, parent: ROOT, name: name("l") }).await), ErrorKind::NotFound);
    client.file(ROOT, "taken").await;
    assert_eq!(kind(client.undelete(ino, ROOT, "taken").await), ErrorKind::Exists);
    let made = client.undelete(ino, ROOT, "back").await.unwrap();
    let (was, is) = (before.attributes, made.entry.attributes);
    assert_eq!(is, Attributes { ctime: is.ctime, ..was });
    assert_eq!(client.lookup(ROOT, "back").await.unwrap().layout, before.layout);
    assert_eq!(kind(client.undelete(ino, ROOT, "twice").await), ErrorKind::NotFound);
    let status = client.status().await;
    assert_eq!((status.inodes, status.orphans, status.kept), (4, 0, 0));
    client.forget_the_past().await;
    assert_eq!((client.nlink(ino).await, client.past(ROOT, "f").await.len()), (1, 0));
}

#[tokio::test]
async fn a_file_that_is_still_open_comes_back_and_may_be_removed_again() {
    let (client, server) = client().await;
    let session = client.session.unwrap();
    let ino = client.published(ROOT, "f", server).await;
    let renew = |released: &[InodeId]| RenewSession { session, released: released.to_vec() };
    client.remove(ROOT, "f", false).await.unwrap();
    assert_eq!(client.call(&renew(&[])).await.unwrap().orphans, [ino]);
    client.undelete(ino, ROOT, "f").await.unwrap();
    assert_eq!((client.status().await.orphans, client.status().await.kept), (0, 0));
    assert_eq!(client.call(&renew(&[ino])).await.unwrap().orphans, [], "that it is released late does no harm");
    assert_eq!(client.nlink(ino).await, 1);
    client.remove(ROOT, "f", false).await.unwrap();
    assert_eq!(client.call(&renew(&[])).await.unwrap().orphans, [ino]);
    assert_eq!(client.call(&renew(&[ino, ino])).await.unwrap().orphans, []);
    let status = client.status().await;
    assert_eq!((status.inodes, status.orphans, status.kept), (2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_has_a_removed_file_open_is_told_that_it_has_a_name_again() {
    let (client, _) = client().await;
    let mut mount = Mount::new(&client.directory).await;
    let ino = mount.client.file(ROOT, "f").await;
    mount.client.remove(ROOT, "f", false).await.unwrap();
    mount.leased(&Lookup { parent: ROOT, name: name("f") }).await.0.unwrap_err();
    mount.stat(ino).await;
    let waiting = start(&client, Undelete { ino, parent: ROOT, name: name("f") }).await;
    assert_eq!(at(&mount.events().await), [(ROOT, Some("f".to_owned()), false), (ino, None, true)]);
    mount.acknowledge().await;
    assert_eq!(waiting.end().await.unwrap().entry.attributes.nlink, 1);
    let renewed = client.call(&RenewSession { session: mount.session(), released: Vec::new() }).await.unwrap();
    assert_eq!((renewed.orphans, mount.client.nlink(ino).await), (vec![], 1));
}

#[tokio::test]
async fn a_removed_tree_comes_back_from_the_top() {
    let (client, server) = client().await;
    let top = client.dir(ROOT, "top").await;
    let sub = client.dir(top, "sub").await;
    let file = client.published(sub, "f", server).await;
    client.remove(sub, "f", false).await.unwrap();
    let mtime = client.attributes(top).await.unwrap().attributes.mtime;
    client.remove(top, "sub", true).await.unwrap();
    client.remove(ROOT, "top", true).await.unwrap();
    assert_eq!(kind(client.undelete(file, sub, "f").await), ErrorKind::NotFound, "its directory is gone");
    client.undelete(top, ROOT, "top").await.unwrap();
    let page = client.call(&Removals { parent: top, after: None, limit: 9 }).await.unwrap();
    assert_eq!((page.rows[0].entry.attributes.ino, page.rows[0].parent_mtime, page.more), (sub, mtime, false));
    assert_eq!(client.undelete(sub, top, "sub").await.unwrap().directory.nlink, 3);
    assert_eq!(client.undelete(file, sub, "f").await.unwrap().entry.attributes.nlink, 1);
    assert_eq!((client.nlink(ROOT).await, client.nlink(top).await, client.nlink(sub).await), (3, 3, 2));
    assert_eq!(client.resolve("/top/sub/f", false).await.unwrap().entry.unwrap().attributes.ino, file);
    let page = client.call(&List { ino: sub, after: None, limit: 9 }).await.unwrap();
    assert_eq!(page.parent, top);
}

#[tokio::test]
async fn what_is_kept_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Client::with(keeping(), Arc::new(SqliteStore::open(&dir.path().join("directory.sqlite")).unwrap()));
    let mut client = open();
    client.open_session().await;
    let server = client.register("a").await;
    let (gone, open_file) = (client.published(ROOT, "gone", server).await, client.published(ROOT, "open", server).await);
    client.remove(ROOT, "gone", false).await.unwrap();
    client.remove(ROOT, "open", false).await.unwrap();
    client.call(&RenewSession { session: client.session.unwrap(), released: vec![gone] }).await.unwrap();
    let numbers = |s: DirectoryStatus| (s.inodes, s.orphans, s.kept);
    assert_eq!(numbers(client.status().await), (3, 1, 1));
    let rows = client.past(ROOT, "gone").await;
    let session = client.session;
    drop(client);
    let mut client = open();
    client.session = session;
    client.sequence.store(1000, Ordering::Relaxed);
    assert_eq!(numbers(client.status().await), (3, 1, 1));
    assert_eq!(client.past(ROOT, "gone").await, rows);
    client.undelete(gone, ROOT, "gone").await.unwrap();
    client.undelete(open_file, ROOT, "open").await.unwrap();
    client.remove(ROOT, "gone", false).await.unwrap();
    let again = client.past(ROOT, "gone").await;
    assert_eq!((again.len(), &again[1].until), (2, &rows[0].until), "the newest first, also across a restart");
}

#[tokio::test]
async fn removed_files_go_after_their_time_and_not_before() {
    let (client, server) = client().await;
    let (old, young, open) =
        (client.published(ROOT, "old", server).await, client.published(ROOT, "young", server).await, client.published(ROOT, "open", server).await);
    for (seconds, name) in [(1000, "old"), (1000, "open"), (2000, "young")] {
        client.remove_at(seconds, name).await;
    }
    client.call(&RenewSession { session: client.session.unwrap(), released: vec![old, young] }).await.unwrap();
    client.expire_at(4599, client.policy()).await;
    assert_eq!(client.removed(ROOT).await, ["old", "open", "young"]);
    client.expire_at(4600, client.policy()).await;
    assert_eq!(client.removed(ROOT).await, ["young"]);
    assert_eq!(kind(client.attributes(old).await), ErrorKind::NotFound);
    assert_eq!(client.heartbeat(server).await.drop, [VersionOf { ino: old, version: Version(1) }]);
    assert_eq!((client.nlink(open).await, client.nlink(young).await), (0, 0), "one is open, the other young");
    assert_eq!(kind(client.undelete(open, ROOT, "open").await), ErrorKind::NotFound);
    client.call(&RenewSession { session: client.session.unwrap(), released: vec![open] }).await.unwrap();
    assert_eq!(kind(client.attributes(open).await), ErrorKind::NotFound);
    let status = client.status().await;
    assert_eq!((status.inodes, status.orphans, status.kept), (2, 0, 1));
}

#[tokio::test]
async fn a_version_of_a_writer_that_goes_on_is_dropped_for_its_next() {
    let (client, server) = client().await;
    let ino = client.file(ROOT, "f").await;
    let publish = |base, token, interim| Publish { token: Token(token), interim, goes_on: true, ..client.version(ino, base, &[server]) };
    for (base, token, interim) in [(0, 5, true), (1, 5, true)] {
        client.call(&publish(base, token, interim)).await.unwrap();
    }
    let rows = client.call(&Versions { ino }).await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.version.0, row.interim)).collect::<Vec<_>>(), [(2, true)]);
    client.call(&publish(2, 5, false)).await.unwrap();
    assert_eq!(client.kept_versions(ino).await, [3]);
    assert_eq!(client.heartbeat(server).await.drop.iter().map(|what| what.version.0).collect::<Vec<_>>(), [1, 2]);
    // Another writer's, or one that was closed, stays.
    client.call(&publish(3, 6, true)).await.unwrap();
    client.call(&publish(4, 7, false)).await.unwrap();
    assert_eq!(client.kept_versions(ino).await, [3, 4, 5]);
    client.call(&publish(5, 7, true)).await.unwrap();
    client.call(&Publish { goes_on: false, ..publish(6, 7, true) }).await.unwrap();
    assert_eq!(client.kept_versions(ino).await, [5, 6, 7]);
}

#[tokio::test]
async fn versions_are_counted_and_go_by_age_and_the_current_one_stays() {
    let (mut client, server) = client().await;
    client.restart(and(|keep| keep.versions_for = HOUR));
    let ino = client.file(ROOT, "f").await;
    for (base, interim) in [(0, false), (1, true), (2, false), (3, false)] {
        client.publish_at(100 * (base as i64 + 1), Publish { token: Token(1), interim, goes_on: true, ..client.version(ino, base, &[server]) }).await;
    }
    assert_eq!(client.kept_versions(ino).await, [1, 3, 4], "numbers that are missing do not count");
    client.publish_at(500, Publish { token: Token(1), ..client.version(ino, 4, &[server]) }).await;
    assert_eq!(client.kept_versions(ino).await, [3, 4, 5]);
    client.expire_at(4000, client.policy()).await;
    assert_eq!(client.kept_versions(ino).await, [3, 4, 5]);
    client.expire_at(4001, client.policy()).await;
    assert_eq!(client.kept_versions(ino).await, [4, 5]);
    client.expire_at(1_000_000, client.policy()).await;
    assert_eq!(client.kept_versions(ino).await, [5]);
    let (from, to) = keys::table(b'w');
    assert!(client.directory.store.scan(&from, &to, 9).unwrap().is_empty());
}

#[tokio::test]
async fn where_many_versions_are_kept_not_every_publish_counts_them() {
    let (mut client, server) = client().await;
    for (kept, shared_by, last) in [(33, 4, 68), (1025, 64, 1152)] {
        client.restart(and(|keep| keep.versions = kept as u32));
        let ino = client.file(ROOT, &format!("f{kept}")).await;
        let mut most = 0;
        for base in 0..last {
            client.publish_at(100, Publish { token: Token(1), ..client.version(ino, base, &[server]) }).await;
            if base > kept - 5 {
                most = most.max(client.kept_versions(ino).await.len());
            }
        }
        assert_eq!(most as u64, kept + shared_by - 1, "one publish in {shared_by} counts");
        assert_eq!(client.kept_versions(ino).await, (last - kept + 1..=last).collect::<Vec<u64>>());
    }
}

#[tokio::test]
async fn a_server_short_of_space_gets_back_what_history_takes_there_the_oldest_first() {
    let (mut client, server) = client().await;
    client.restart(and(|keep| keep.free_percent = 10));
    let other = client.register("b").await;
    let mut rounds = Rounds::default();
    let mut files = Vec::new();
    for (text, holder) in [("one", server), ("elsewhere", other), ("two", server), ("live", server)] {
        let ino = client.file(ROOT, text).await;
        for base in 0..2 {
            let publish = Publish { size: 40 << 20, stored: 1, ..client.version(ino, base, &[holder]) };
            client.call(&publish).await.unwrap();
        }
        files.push(ino);
    }
    for text in ["one", "elsewhere", "two"] {
        client.remove(ROOT, text, false).await.unwrap();
    }
    client.call(&RenewSession { session: client.session.unwrap(), released: files[..3].to_vec() }).await.unwrap();
    let beat = |used: u64, dropped: Vec<VersionOf>| Heartbeat { server, capacity: 1000 << 20, used: used << 20, dropped };
    client.call(&beat(899, Vec::new())).await.unwrap();
    client.directory.tidy(&mut rounds).await.unwrap();
    assert_eq!(client.removed(ROOT).await, ["elsewhere", "one", "two"]);
    // 80 MiB are wanted: the oldest file gives them, and nothing more goes before that is done.
    client.call(&beat(980, Vec::new())).await.unwrap();
    for _ in 0..3 {
        client.directory.tidy(&mut rounds).await.unwrap();
        assert_eq!(client.removed(ROOT).await, ["elsewhere", "two"]);
    }
    let drop = client.heartbeat_as(&beat(980, Vec::new())).await.drop;
    assert_eq!(drop, [1, 2].map(|version| VersionOf { ino: files[0], version: Version(version) }));
    // It was not enough: the next one, then old versions, never a current one.
    let drop = client.relieved(&mut rounds, &beat(980, drop)).await;
    assert_eq!((drop.len(), client.removed(ROOT).await), (2, vec!["elsewhere".to_owned()]));
    let drop = client.relieved(&mut rounds, &beat(990, drop)).await;
    assert_eq!((drop, client.kept_versions(files[3]).await), (vec![VersionOf { ino: files[3], version: Version(1) }], vec![2]));
    assert_eq!(client.relieved(&mut rounds, &beat(990, vec![VersionOf { ino: files[3], version: Version(1) }])).await, []);
    assert_eq!((client.kept_versions(files[1]).await, client.kept_versions(files[3]).await), (vec![1, 2], vec![2]));
}

impl Client {
    async fn heartbeat_as(&self, beat: &Heartbeat) -> Orders {
        self.call(beat).await.unwrap()
    }

    /// What a server is ordered to drop after a heartbeat and a look.
    async fn relieved(&self, rounds: &mut Rounds, beat: &Heartbeat) -> Vec<VersionOf> {
        self.heartbeat_as(beat).await;
        self.directory.tidy(rounds).await.unwrap();
        self.heartbeat_as(&Heartbeat { dropped: Vec::new(), ..beat.clone() }).await.drop
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_file_that_was_open_when_space_was_looked_for_is_found_later() {
    let (mut client, server) = client().await;
    client.restart(and(|keep| keep.free_percent = 10));
    let ino = client.published(ROOT, "f", server).await;
    client.remove(ROOT, "f", false).await.unwrap();
    let beat = Heartbeat { server, capacity: 1000, used: 1000, dropped: Vec::new() };
    let mut rounds = Rounds::default();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(client.relieved(&mut rounds, &beat).await, []);
    client.call(&RenewSession { session: client.session.unwrap(), released: vec![ino] }).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..2 {
        client.relieved(&mut rounds, &beat).await;
    }
    assert_eq!(client.heartbeat_as(&beat).await.drop, [VersionOf { ino, version: Version(1) }]);
}

#[tokio::test]
async fn recovered_files_are_removed_after_their_time_and_kept_like_others() {
    let (mut client, server) = client().await;
    let ino = client.published(RECOVERED, "f", server).await;
    client.dir(RECOVERED, "d").await;
    client.restart(and(|keep| keep.recovered = HOUR));
    client.directory.tidy(&mut Rounds::default()).await.unwrap();
    assert_eq!(client.nlink(ino).await, 1);
    client.restart(and(|keep| keep.recovered = Duration::from_nanos(1)));
    client.directory.tidy(&mut Rounds::default()).await.unwrap();
    assert_eq!(client.removed(RECOVERED).await, ["f"]);
    assert_eq!(client.past(RECOVERED, "f").await[0].by, "", "nobody did it");
    client.undelete(ino, ROOT, "back").await.unwrap();
    client.lookup(RECOVERED, "d").await.unwrap();
}

#[tokio::test]
async fn removals_are_found_among_any_number_of_names_that_lead_somewhere_again() {
    let (client, server) = client().await;
    client.published(ROOT, "busy", server).await;
    for i in 0..2500 {
        client.published(ROOT, "new", server).await;
        client.rename((ROOT, "new"), (ROOT, "busy"), RenameMode::Replace).await.unwrap();
        if i % 500 == 0 {
            client.file(ROOT, &format!("gone-{i}")).await;
            client.remove(ROOT, &format!("gone-{i}"), false).await.unwrap();
        }
    }
    client.file(ROOT, "z").await;
    client.remove(ROOT, "z", false).await.unwrap();
    assert_eq!(client.removed(ROOT).await, ["gone-0", "gone-1000", "gone-1500", "gone-2000", "gone-500", "z"]);
    let page = client.call(&Removals { parent: ROOT, after: Some(name("gone-1500")), limit: 2 }).await.unwrap();
    assert_eq!((page.rows[1].name.clone(), page.more), (name("gone-500"), true));
    assert_eq!(client.past(ROOT, "busy").await.len(), NameHistory::MAX_ROWS);
    for limit in [0, Removals::MAX_LIMIT + 1] {
        assert_eq!(kind(client.call(&Removals { parent: ROOT, after: None, limit }).await), ErrorKind::Invalid);
    }
}
