//! Whom a removed file waits for: every session that may have it open, however it came to know of it.
//!
//! Nobody is told of changes here, so that removals need not wait for the sessions of a test.

use futures_util::future::{BoxFuture, join};

use super::super::periodic::Rounds;
use super::events::Mount;
use super::*;
use crate::store::Durability;

fn quiet() -> Config {
    Config { invalidate: false, ..config() }
}

fn open(config: Config) -> Arc<Directory> {
    Directory::open(config, Arc::new(MemoryStore::default())).unwrap()
}

impl Mount {
    /// Whether the service asks this session if it has `ino` open.
    async fn is_asked(&self, ino: InodeId) -> bool {
        let renew = RenewSession { session: self.session(), released: Vec::new() };
        self.client.call(&renew).await.unwrap().orphans.contains(&ino)
    }

    async fn release(&self, ino: InodeId) {
        self.client.call(&RenewSession { session: self.session(), released: vec![ino] }).await.unwrap();
    }

    /// The same client in a session of its own, as after the old one has expired.
    async fn expire(&mut self) {
        let state = self.client.directory.clone();
        state.end_session(self.session(), super::super::state::End::Expired).await.unwrap();
        self.client.session = Mount::unclaimed(&state).await.client.session;
    }
}

#[tokio::test]
async fn a_removed_file_waits_for_those_who_were_told_of_it() {
    let directory = open(quiet());
    let (maker, reader, idle) = (Mount::new(&directory).await, Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = maker.client.file(ROOT, "f").await;
    reader.client.lookup(ROOT, "f").await.unwrap();
    idle.client.lookup(ROOT, "nothing").await.unwrap_err();
    idle.client.attributes(ROOT).await.unwrap();
    maker.client.remove(ROOT, "f", false).await.unwrap();
    assert_eq!((maker.is_asked(ino).await, reader.is_asked(ino).await, idle.is_asked(ino).await), (true, true, false));
    maker.release(ino).await;
    idle.release(ino).await;
    assert_eq!(reader.client.nlink(ino).await, 0);
    reader.release(ino).await;
    assert_eq!(kind(reader.client.attributes(ino).await), ErrorKind::NotFound);
    // Nobody who is there knows of it: it goes at once.
    let ino = idle.client.other().file(ROOT, "g").await;
    idle.client.other().remove(ROOT, "g", false).await.unwrap();
    assert_eq!(kind(reader.client.attributes(ino).await), ErrorKind::NotFound);
    assert_eq!(directory.tables.lock().orphans, 0);
}

/// A way to hear of `f`, inode `ino` in the root.
type Hear = for<'a> fn(&'a Client, InodeId, ServerId) -> BoxFuture<'a, ()>;

#[tokio::test]
async fn every_answer_counts_by_which_a_file_can_be_opened() {
    let ways: &[(&str, Hear)] = &[
        ("lookup", |c, _, _| Box::pin(async { drop(c.lookup(ROOT, "f").await.unwrap()) })),
        ("list", |c, _, _| Box::pin(async { drop(c.call(&List { ino: ROOT, after: None, limit: 10 }).await.unwrap()) })),
        ("get-attributes", |c, ino, _| Box::pin(async move { drop(c.attributes(ino).await.unwrap()) })),
        ("resolve", |c, _, _| Box::pin(async { drop(c.resolve("/f", true).await.unwrap()) })),
        ("versions", |c, ino, _| Box::pin(async move { drop(c.call(&Versions { ino }).await.unwrap()) })),
        ("place", |c, ino, _| Box::pin(async move { drop(c.call(&Place { ino, avoid: Vec::new() }).await.unwrap()) })),
        ("publish", |c, ino, server| Box::pin(async move { drop(c.call(&c.version(ino, 0, &[server])).await.unwrap()) })),
        ("set-attributes", |c, ino, _| Box::pin(async move { drop(c.call(&super::events::chmod(ino, 0o600)).await.unwrap()) })),
        ("list-xattrs", |c, ino, _| Box::pin(async move { drop(c.call(&ListXattrs { ino }).await.unwrap()) })),
        ("link", |c, ino, _| {
            Box::pin(async move {
                c.call(&Link { ino, parent: ROOT, name: name("l") }).await.unwrap();
                c.other().remove(ROOT, "l", false).await.unwrap();
            })
        }),
        ("rename", |c, _, _| {
            Box::pin(async {
                c.rename((ROOT, "f"), (ROOT, "g"), RenameMode::Replace).await.unwrap();
                c.other().rename((ROOT, "g"), (ROOT, "f"), RenameMode::Replace).await.unwrap();
            })
        }),
        ("exchange", |c, _, _| {
            Box::pin(async {
                c.other().file(ROOT, "g").await;
                c.rename((ROOT, "g"), (ROOT, "f"), RenameMode::Exchange).await.unwrap();
                c.other().rename((ROOT, "g"), (ROOT, "f"), RenameMode::Exchange).await.unwrap();
            })
        }),
        ("remove another name", |c, ino, _| {
            Box::pin(async move {
                c.other().call(&Link { ino, parent: ROOT, name: name("l") }).await.unwrap();
                c.remove(ROOT, "l", false).await.unwrap();
            })
        }),
    ];
    for (way, hear) in ways {
        let directory = open(quiet());
        let (told, untold) = (Mount::new(&directory).await, Mount::new(&directory).await);
        let nobody = told.client.other();
        let server = nobody.register("a").await;
        let ino = nobody.file(ROOT, "f").await;
        hear(&told.client, ino, server).await;
        nobody.remove(ROOT, "f", false).await.unwrap();
        assert_eq!((told.is_asked(ino).await, untold.is_asked(ino).await), (true, false), "{way}");
    }
}

#[tokio::test]
async fn the_past_tells_of_files_too() {
    let directory = open(Config { invalidate: false, ..keeping() });
    let (history, removals, maker, idle) =
        (Mount::new(&directory).await, Mount::new(&directory).await, Mount::new(&directory).await, Mount::new(&directory).await);
    let ino = maker.client.other().file(ROOT, "f").await;
    maker.client.other().remove(ROOT, "f", false).await.unwrap();
    assert_eq!(history.client.call(&NameHistory { parent: ROOT, name: name("f") }).await.unwrap().len(), 1);
    assert_eq!(removals.client.call(&Removals { parent: ROOT, after: None, limit: 10 }).await.unwrap().rows.len(), 1);
    maker.client.call(&Undelete { ino, parent: ROOT, name: name("f") }).await.unwrap();
    idle.client.other().remove(ROOT, "f", false).await.unwrap();
    for mount in [&history, &removals, &maker] {
        assert!(mount.is_asked(ino).await);
    }
    assert!(!idle.is_asked(ino).await);
}

#[tokio::test]
async fn it_is_the_file_that_counts_and_not_the_name_by_which_it_was_told() {
    let directory = open(quiet());
    let (told, untold) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let nobody = told.client.other();
    let ino = nobody.file(ROOT, "a").await;
    told.client.lookup(ROOT, "a").await.unwrap();
    nobody.rename((ROOT, "a"), (ROOT, "b"), RenameMode::Replace).await.unwrap();
    nobody.call(&Link { ino, parent: ROOT, name: name("c") }).await.unwrap();
    nobody.remove(ROOT, "b", false).await.unwrap();
    // The last name goes with a rename over it.
    nobody.file(ROOT, "d").await;
    nobody.rename((ROOT, "d"), (ROOT, "c"), RenameMode::Replace).await.unwrap();
    assert_eq!((told.is_asked(ino).await, untold.is_asked(ino).await), (true, false));
    let dir = nobody.dir(ROOT, "dir").await;
    told.client.call(&List { ino: dir, after: None, limit: 10 }).await.unwrap();
    nobody.remove(ROOT, "dir", true).await.unwrap();
    assert_eq!((told.is_asked(dir).await, untold.is_asked(dir).await), (true, false));
}

#[tokio::test]
async fn a_file_that_is_made_and_removed_in_one_commit_waits_for_its_maker() {
    let directory = open(quiet());
    let (maker, remover) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let before = directory.store.commit(&Default::default(), Durability::Process).unwrap();
    let (made, removed) = join(maker.client.make(ROOT, "f", FileKind::File), remover.client.remove(ROOT, "f", false)).await;
    let ino = made.unwrap().attributes.ino;
    assert_eq!(removed.unwrap().entry.attributes.ino, ino);
    assert_eq!(directory.store.commit(&Default::default(), Durability::Process).unwrap(), before + 2, "one commit, and this one");
    assert!(maker.is_asked(ino).await);
}

#[tokio::test]
async fn after_a_restart_everybody_from_before_may_know_of_all_that_was_there() {
    let store = Arc::new(MemoryStore::default());
    let again = || Directory::open(quiet(), store.clone()).unwrap();
    let old = again();
    let mut mounts = [Mount::new(&old).await, Mount::new(&old).await, Mount::unclaimed(&old).await];
    let nobody = Client { directory: old.clone(), session: None, sequence: AtomicU64::new(0) };
    let inos = [nobody.file(ROOT, "a").await, nobody.file(ROOT, "b").await];
    mounts[0].client.lookup(ROOT, "a").await.unwrap();
    drop(old);
    let new = again();
    let nobody = Client { directory: new.clone(), session: None, sequence: AtomicU64::new(0) };
    mounts.iter_mut().for_each(|mount| mount.client.directory = new.clone());
    nobody.remove(ROOT, "a", false).await.unwrap();
    for mount in &mut mounts {
        assert!(mount.is_asked(inos[0]).await, "before its claim");
        // Also one that looks as if it came from a client that begins.
        mount.claim(0, &[]).await;
    }
    nobody.remove(ROOT, "b", false).await.unwrap();
    let later = nobody.file(ROOT, "c").await;
    nobody.remove(ROOT, "c", false).await.unwrap();
    for mount in &mounts {
        assert!(mount.is_asked(inos[1]).await, "after its claim");
        assert!(!mount.is_asked(later).await, "what is made later is told anew");
    }
}

#[tokio::test]
async fn a_client_goes_on_in_another_session_with_what_it_knew() {
    let directory = open(quiet());
    let (mut mount, idle) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let nobody = mount.client.other();
    let inos = [nobody.file(ROOT, "a").await, nobody.file(ROOT, "b").await];
    mount.client.call(&List { ino: ROOT, after: None, limit: 10 }).await.unwrap();
    let ended = mount.client.other();
    let ended = Client { session: mount.client.session, ..ended };
    mount.expire().await;
    nobody.remove(ROOT, "a", false).await.unwrap();
    assert!(mount.is_asked(inos[0]).await, "it has not said yet what it knows");
    mount.claim(1, &[]).await;
    nobody.remove(ROOT, "b", false).await.unwrap();
    assert!(mount.is_asked(inos[1]).await);
    assert!(!idle.is_asked(inos[1]).await);
    // What is asked in the old session is answered, and may be opened in the new one.
    let late = nobody.file(ROOT, "c").await;
    ended.lookup(ROOT, "c").await.unwrap();
    nobody.remove(ROOT, "c", false).await.unwrap();
    assert!(mount.is_asked(late).await);
    let never = nobody.file(ROOT, "d").await;
    nobody.remove(ROOT, "d", false).await.unwrap();
    assert!(!mount.is_asked(never).await);
}

#[tokio::test]
async fn who_holds_no_leases_and_who_has_not_claimed_them_is_asked_about_everything() {
    let directory = open(quiet());
    let mut unclaimed = Mount::unclaimed(&directory).await;
    let mut without = Mount { client: unclaimed.client.other(), seen: 0 };
    without.client.open_session().await;
    let nobody = unclaimed.client.other();
    let ino = nobody.file(ROOT, "f").await;
    let early = nobody.file(ROOT, "g").await;
    unclaimed.client.lookup(ROOT, "g").await.unwrap();
    nobody.remove(ROOT, "f", false).await.unwrap();
    assert_eq!((unclaimed.is_asked(ino).await, without.is_asked(ino).await), (true, true));
    unclaimed.claim(0, &[]).await;
    nobody.remove(ROOT, "g", false).await.unwrap();
    assert!(unclaimed.is_asked(early).await, "what it was told before its claim");
}

#[tokio::test]
async fn an_orphan_of_a_session_that_ends_goes_by_itself() {
    let directory = open(quiet());
    let mut mount = Mount::new(&directory).await;
    let ino = mount.client.file(ROOT, "f").await;
    mount.client.remove(ROOT, "f", false).await.unwrap();
    mount.expire().await;
    directory.look(&mut Rounds::default()).await.unwrap();
    assert_eq!(kind(mount.client.attributes(ino).await), ErrorKind::NotFound);
    assert_eq!(directory.tables.lock().orphans, 0);
}

/// A file that three mounts know of, removed.
async fn known_to_three(directory: &Arc<Directory>) -> ([Mount; 3], InodeId) {
    let mounts = [Mount::new(directory).await, Mount::new(directory).await, Mount::new(directory).await];
    let ino = mounts[0].client.file(ROOT, "f").await;
    for mount in &mounts {
        mount.client.lookup(ROOT, "f").await.unwrap();
    }
    mounts[0].client.other().remove(ROOT, "f", false).await.unwrap();
    (mounts, ino)
}

#[tokio::test]
async fn of_many_who_let_go_only_the_last_one_is_written() {
    let store = Arc::new(MemoryStore::default());
    let directory = Directory::open(quiet(), store.clone()).unwrap();
    let (mut mounts, ino) = known_to_three(&directory).await;
    let revision = mounts[0].client.status().await.revision;
    for mount in &mounts[..2] {
        mount.release(ino).await;
        assert!(!mount.is_asked(ino).await);
    }
    assert_eq!(mounts[0].client.status().await.revision, revision);
    let again = Directory::open(quiet(), store.clone()).unwrap();
    mounts.iter_mut().for_each(|mount| mount.client.directory = again.clone());
    for mount in &mounts {
        assert!(mount.is_asked(ino).await, "after a restart everybody is");
        assert_eq!(mount.client.nlink(ino).await, 0);
        mount.release(ino).await;
    }
    assert_eq!(kind(mounts[0].client.attributes(ino).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_let_go_by_the_last_two_at_once_goes_a_little_later() {
    for config in [quiet(), Config { invalidate: false, ..keeping() }] {
        let directory = open(config);
        let ([one, two, three], ino) = known_to_three(&directory).await;
        three.release(ino).await;
        let revision = one.client.status().await.revision;
        join(one.release(ino), two.release(ino)).await;
        let kept = u64::from(directory.policy.keep.removed > Duration::ZERO);
        assert_eq!((one.client.status().await.revision, one.client.status().await.orphans), (revision, 1), "neither was the last");
        for _ in 0..2 {
            directory.look(&mut Rounds::default()).await.unwrap();
            let status = one.client.status().await;
            assert_eq!((status.revision, status.orphans, status.kept, status.inodes), (revision + 1, 0, kept, 2));
        }
        assert_eq!(one.client.attributes(ino).await.is_ok(), kept > 0);
    }
}

#[tokio::test]
async fn a_late_word_does_not_count_for_a_file_that_was_brought_back_and_removed_again() {
    let directory = open(Config { invalidate: false, ..keeping() });
    let ([one, two, three], ino) = known_to_three(&directory).await;
    one.release(ino).await;
    two.release(ino).await;
    let nobody = three.client.other();
    let before = nobody.status().await.revision;
    let undelete = Undelete { ino, parent: ROOT, name: name("f") };
    let (back, gone, ()) = tokio::join!(nobody.call(&undelete), nobody.remove(ROOT, "f", false), three.release(ino));
    back.unwrap();
    gone.unwrap();
    assert_eq!(nobody.status().await.revision, before + 1, "one commit");
    assert_eq!((one.is_asked(ino).await, two.is_asked(ino).await), (true, true));
    for mount in [&one, &two] {
        assert_eq!(nobody.status().await.orphans, 1);
        mount.release(ino).await;
    }
    let status = nobody.status().await;
    assert_eq!((status.orphans, status.kept, status.inodes), (0, 1, 2));
    // And it can be brought back once more.
    nobody.call(&undelete).await.unwrap();
    assert_eq!((nobody.status().await.kept, nobody.nlink(ino).await), (0, 1));
}
