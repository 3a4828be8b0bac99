//! Files that their session made before the service heard of them: told of with their first version, or by themselves.

use dfs_common::user::User;

use super::super::state::keys;
use super::super::state::records::{Record, Reserved};
use super::events::Mount;
use super::exclusive::{alone, birth, directory, make, reserving};
use super::*;
use crate::store::{Batch, Durability};

/// The first version of what `make` says, with the birth in it.
fn version(client: &Client, make: &Make, holders: &[ServerId]) -> Publish {
    let ino = make.birth.unwrap().ino;
    Publish { make: Some(make.clone()), ..client.version(ino, 0, holders) }
}

async fn call<O: Operation>(client: &Client, user: &User, operation: &O) -> Result<O::Reply> {
    let request = Request::new(Method::Post, O::PATH).json(operation).session(client.session).user(Some(user.clone()));
    client.directory.clone().handle(request).await.parse_json()
}

/// User 1000, who is in no other group.
fn anna() -> User {
    User { uid: 1000, gid: 100, groups: Some(Vec::new()) }
}

const SERVER: ServerId = ServerId(1);

#[tokio::test(start_paused = true)]
async fn a_first_version_makes_its_file() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let before = owner.client.status().await;
    let set = SetAttributes { mode: Some(0o600), ..SetAttributes::none(reserved.first) };
    let publish = Publish { set: Some(set), ..version(&owner.client, &birth(dir, "f", &reserved, 0), &[SERVER]) };
    let entry = owner.client.call(&publish).await.unwrap();
    let after = owner.client.status().await;
    assert_eq!((after.revision, after.inodes), (before.revision + 1, before.inodes + 1), "in one step");
    let attributes = &entry.attributes;
    assert_eq!((attributes.ino, attributes.version, attributes.size, attributes.mode), (reserved.first, Version(1), 100, 0o600));
    assert_eq!((entry.layout.placement.as_slice(), entry.layout.holders.as_slice()), (&[SERVER][..], &[SERVER][..]));
    assert_eq!(owner.client.lookup(dir, "f").await.unwrap(), entry);
    // As after a lost answer.
    assert_eq!(owner.client.call(&publish).await.unwrap(), entry);
    assert_eq!(owner.client.status().await.inodes, after.inodes);
    // The next version may say it again, and needs not.
    let next = Publish { make: publish.make.clone(), ..owner.client.version(reserved.first, 1, &[SERVER]) };
    assert_eq!(owner.client.call(&next).await.unwrap().attributes.version, Version(2));
    assert_eq!(owner.client.call(&Versions { ino: reserved.first }).await.unwrap().len(), 2);
    assert_eq!(kind(owner.client.call(&publish).await), ErrorKind::Fenced, "that is history");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_refused_makes_no_file() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let before = owner.client.status().await;
    let make = birth(dir, "f", &reserved, 0);
    let good = version(&owner.client, &make, &[SERVER]);
    let refused = [
        (ErrorKind::Invalid, Publish { holders: Vec::new(), ..good.clone() }),
        (ErrorKind::Invalid, Publish { holders: vec![ServerId(9)], ..good.clone() }),
        (ErrorKind::Conflict, Publish { base: Version(1), ..good.clone() }),
        (ErrorKind::Invalid, Publish { base: Version(u64::MAX), ..good.clone() }),
        (ErrorKind::SessionExpired, Publish { session: SessionId(999), ..good.clone() }),
        (ErrorKind::Invalid, Publish { set: Some(SetAttributes::none(dir)), ..good.clone() }),
        (ErrorKind::Fenced, Publish { token: Token(0), make: Some(Make { lock: true, ..make.clone() }), ..good.clone() }),
        (ErrorKind::Invalid, Publish { make: Some(birth(dir, "f", &reserved, 1)), ..good.clone() }),
        (ErrorKind::Invalid, Publish { make: Some(Make { birth: None, ..make.clone() }), ..good.clone() }),
        (ErrorKind::Invalid, Publish { make: Some(Make { reserve: 1, ..make.clone() }), ..good.clone() }),
        (ErrorKind::Invalid, Publish { make: Some(Make { kind: FileKind::Directory, ..make.clone() }), ..good.clone() }),
        (ErrorKind::NotFound, Publish { make: Some(Make { parent: InodeId(999), ..make.clone() }), ..good.clone() }),
        (ErrorKind::NotFound, Publish { make: None, ..good.clone() }),
    ];
    for (expected, publish) in refused {
        assert_eq!(kind(owner.client.call(&publish).await), expected, "{publish:?}");
    }
    let after = owner.client.status().await;
    assert_eq!((after.revision, after.inodes), (before.revision, before.inodes));
    // And the number is still good.
    owner.client.call(&good).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_birth_that_is_told_again_changes_nothing() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let make = birth(dir, "f", &reserved, 3);
    let first = owner.client.call(&make).await.unwrap();
    assert_eq!(first.entry.attributes.ino, InodeId(reserved.first.0 + 3));
    let status = owner.client.status().await;
    assert_eq!(owner.client.call(&make).await.unwrap(), first);
    let publish = version(&owner.client, &make, &[SERVER]);
    assert_eq!(owner.client.call(&publish).await.unwrap().attributes.version, Version(1));
    let again = owner.client.call(&make).await.unwrap();
    assert_eq!((again.entry.attributes.version, again.directory), (Version(1), first.directory));
    assert_eq!(owner.client.status().await.inodes, status.inodes);
    // Wherever it is by now.
    owner.client.rename((dir, "f"), (ROOT, "g"), RenameMode::NoReplace).await.unwrap();
    assert_eq!(owner.client.call(&make).await.unwrap().entry.attributes.ino, first.entry.attributes.ino);
    assert_eq!(kind(owner.client.lookup(dir, "f").await), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_does_not_come_back() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let all: Vec<Make> = (0..8).map(|at| birth(dir, "f", &reserved, at)).collect();
    for make in &all {
        owner.client.call(make).await.unwrap();
        owner.client.remove(dir, "f", false).await.unwrap();
        let orphans = vec![make.birth.unwrap().ino];
        owner.client.call(&RenewSession { session: owner.session(), released: orphans }).await.unwrap();
    }
    // Also where no number is left of the reservation.
    for make in &all {
        assert_eq!(kind(owner.client.call(make).await), ErrorKind::NotFound);
        assert_eq!(kind(owner.client.call(&version(&owner.client, make, &[SERVER])).await), ErrorKind::NotFound);
    }
    assert_eq!(owner.client.call(&List { ino: dir, after: None, limit: 10 }).await.unwrap().entries, []);
}

#[tokio::test(start_paused = true)]
async fn numbers_that_were_not_reserved_are_refused() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let other = owner.client.dir(ROOT, "e").await;
    let good = birth(dir, "f", &reserved, 0);
    let with = |ino: u64, first: u64| Make { birth: Some(Birth { ino: InodeId(ino), first: InodeId(first), at: Timestamp(0) }), ..good.clone() };
    let first = reserved.first.0;
    let unknown = [
        with(first + 8, first),
        with(first + 63, first),
        with(first + 64, first),
        with(first - 1, first),
        with(first + 1, first + 1),
        with(first + 100, first + 100),
        with(u64::MAX, u64::MAX),
        with(0, 0),
        with(u64::MAX, 0),
        Make { parent: other, ..good.clone() },
        Make { kind: FileKind::Directory, ..good.clone() },
        Make { kind: FileKind::Fifo, ..good.clone() },
        Make { kind: FileKind::Symlink, target: Some(Text(b"t".to_vec())), ..good.clone() },
    ];
    for make in unknown {
        assert_eq!(kind(owner.client.call(&make).await), ErrorKind::Invalid, "{make:?}");
    }
    owner.client.call(&good).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_taken_meanwhile_is_not_replaced() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let taken = owner.client.file(dir, "f").await;
    let make = birth(dir, "f", &reserved, 0);
    assert_eq!(kind(owner.client.call(&make).await), ErrorKind::Exists);
    assert_eq!(kind(owner.client.call(&version(&owner.client, &make, &[SERVER])).await), ErrorKind::Exists);
    assert_eq!(owner.client.lookup(dir, "f").await.unwrap().attributes.ino, taken);
    let other = Make { name: name("g"), ..make };
    owner.client.call(&other).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn times_are_those_of_the_birth_within_reason() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let made = owner.client.attributes(dir).await.unwrap().attributes;
    let told = async |at: u64, time: i64| {
        let mut make = birth(dir, &at.to_string(), &reserved, at);
        make.birth.as_mut().unwrap().at = Timestamp(time);
        owner.client.call(&make).await.unwrap()
    };
    for (at, before) in [(0, 0), (1, i64::MIN), (2, made.crtime.0 - 1)] {
        let Made { entry, directory, .. } = told(at, before).await;
        let times = &entry.attributes;
        assert_eq!([times.atime, times.mtime, times.ctime, times.crtime], [made.crtime; 4], "not before the reservation");
        assert_eq!((directory.mtime, directory.ctime), (made.mtime, made.ctime));
    }
    let between = told(3, made.crtime.0 + 1).await;
    assert_eq!((between.entry.attributes.crtime.0, between.directory.mtime.0), (made.crtime.0 + 1, made.crtime.0 + 1));
    let late = told(4, i64::MAX).await;
    let now = owner.client.call(&RenewSession { session: owner.session(), released: Vec::new() }).await.unwrap().now;
    assert!(late.entry.attributes.crtime > between.entry.attributes.crtime && late.entry.attributes.crtime <= now);
    assert_eq!(late.directory.mtime, late.entry.attributes.crtime);
    // Told later than what was made after it: the directory's time does not go back.
    assert_eq!(told(5, made.crtime.0 + 2).await.directory.mtime, late.directory.mtime);
    // Where it was set to a time to come, any change sets it back.
    let to_come = SetAttributes { mtime: Some(Timestamp(i64::MAX)), ..SetAttributes::none(dir) };
    owner.client.call(&to_come).await.unwrap();
    assert_eq!(told(6, made.crtime.0 + 3).await.directory.mtime, Timestamp(made.crtime.0 + 3));
}

#[tokio::test(start_paused = true)]
async fn a_birth_comes_with_its_lock_and_may_reserve_more() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    let make = Make { lock: true, reserve: 8, ..birth(dir, "f", &reserved, 0) };
    let (made, exclusive) = reserving(&owner, &make).await;
    assert_eq!(made.entry.layout.fresh, Some(owner.session()));
    let more = made.reserved.unwrap();
    assert_eq!((exclusive, more.placements.len()), (Some(dir), 8));
    assert!(more.first.0 >= reserved.first.0 + 8);
    owner.client.call(&birth(dir, "g", &more, 7)).await.unwrap();
    // In a version it is the session's that the version names, whoever sends it.
    let make = Make { lock: true, ..birth(dir, "h", &reserved, 1) };
    let publish = Publish { token: Token::FRESH, ..version(&owner.client, &make, &[SERVER]) };
    let primary = Client { session: None, ..owner.client.other() };
    assert_eq!(primary.call(&publish).await.unwrap().layout.fresh, Some(owner.session()));
    let unlocked = version(&owner.client, &birth(dir, "i", &reserved, 2), &[SERVER]);
    assert_eq!(primary.call(&unlocked).await.unwrap().layout.fresh, None);
}

#[tokio::test(start_paused = true)]
async fn users_tell_of_what_they_may_make() {
    let directory = directory().await;
    let owner = Mount::new(&directory).await;
    let open = Make { mode: 0o777, ..make(ROOT, "d", FileKind::Directory, 8) };
    let closed = make(ROOT, "e", FileKind::Directory, 8);
    let ((open, _), (closed, _)) = (reserving(&owner, &open).await, reserving(&owner, &closed).await);
    let (dir, reserved) = (open.entry.attributes.ino, open.reserved.unwrap());
    let publish = |make: &Make| version(&owner.client, make, &[SERVER]);
    let set = |ino: InodeId, set: SetAttributes| Some(SetAttributes { ino, ..set });
    let none = || SetAttributes::none(ROOT);
    // Its own, whatever it says.
    let make = Make { uid: 5, gid: 6, ..birth(dir, "f", &reserved, 0) };
    let own = Publish { set: set(reserved.first, SetAttributes { mode: Some(0o604), mtime: Some(Timestamp(7)), ..none() }), ..publish(&make) };
    let made = call(&owner.client, &anna(), &own).await.unwrap().attributes;
    assert_eq!((made.uid, made.gid, made.mode, made.mtime), (1000, 100, 0o604, Timestamp(7)));
    let next = birth(dir, "g", &reserved, 1);
    let ino = next.birth.unwrap().ino;
    for refused in
        [SetAttributes { uid: Some(0), ..none() }, SetAttributes { gid: Some(0), ..none() }, SetAttributes { mode: Some(0o2755), ..none() }]
    {
        let publish = Publish { set: set(ino, refused), ..publish(&next) };
        assert_eq!(kind(call(&owner.client, &anna(), &publish).await), ErrorKind::NotPermitted, "{publish:?}");
    }
    let elsewhere = birth(closed.entry.attributes.ino, "f", &closed.reserved.unwrap(), 0);
    assert_eq!(kind(call(&owner.client, &anna(), &publish(&elsewhere)).await), ErrorKind::Forbidden);
    assert_eq!(kind(call(&owner.client, &anna(), &elsewhere).await), ErrorKind::Forbidden);
    assert_eq!(kind(owner.client.lookup(closed.entry.attributes.ino, "f").await), ErrorKind::NotFound);
    // Numbers of a directory where it may do nothing are worth nothing where it may.
    let stolen = Make { parent: dir, name: name("stolen"), ..elsewhere };
    assert_eq!(kind(call(&owner.client, &anna(), &stolen).await), ErrorKind::Invalid);
    // Once it is there it is a file as any other.
    owner.client.call(&next).await.unwrap();
    assert_eq!(kind(call(&owner.client, &anna(), &publish(&next)).await), ErrorKind::Forbidden);
    let root = User { uid: 0, gid: 0, groups: None };
    let make = Make { uid: 5, gid: 6, ..birth(dir, "h", &reserved, 2) };
    let given = Publish { set: set(make.birth.unwrap().ino, SetAttributes { uid: Some(7), ..none() }), ..publish(&make) };
    let made = call(&owner.client, &root, &given).await.unwrap().attributes;
    assert_eq!((made.uid, made.gid), (7, 6));
}

#[tokio::test(start_paused = true)]
async fn reservations_survive_restarts_and_the_end_of_their_session() {
    let store = Arc::new(MemoryStore::default());
    let old = super::exclusive::on(&store).await;
    let (owner, dir, reserved) = alone(&old, "d").await;
    let told = birth(dir, "told", &reserved, 0);
    owner.client.call(&told).await.unwrap();
    owner.client.call(&CloseSession { session: owner.session() }).await.unwrap();
    let directory = Directory::open(config(), store).unwrap();
    let again = Mount::new(&directory).await;
    let inodes = again.client.status().await.inodes;
    again.client.call(&told).await.unwrap();
    assert_eq!(again.client.status().await.inodes, inodes);
    let make = birth(dir, "f", &reserved, 1);
    let entry = again.client.call(&version(&again.client, &make, &[SERVER])).await.unwrap();
    assert_eq!((entry.attributes.ino.0, again.client.status().await.inodes), (reserved.first.0 + 1, inodes + 1));
    // Nobody else ever gets these numbers.
    assert!(again.client.file(dir, "new").await.0 >= reserved.first.0 + 8);
}

#[tokio::test(start_paused = true)]
async fn who_holds_the_directory_is_told_of_births() {
    let directory = directory().await;
    let (mut owner, dir, reserved) = alone(&directory, "d").await;
    let mut reader = Mount::new(&directory).await;
    let read = super::events::start(&reader.client, List { ino: dir, after: None, limit: 10 }).await;
    owner.events().await;
    owner.acknowledge().await;
    assert_eq!(read.end().await.unwrap().entries, []);
    let publish = version(&owner.client, &birth(dir, "f", &reserved, 0), &[SERVER]);
    let late = super::events::start(&owner.client.other(), publish).await;
    assert_eq!(super::events::at(&reader.events().await), [(dir, Some("f".to_owned()), false)]);
    reader.acknowledge().await;
    late.end().await.unwrap();
    reader.client.lookup(dir, "f").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn reservations_from_long_ago_go_a_few_at_a_time() {
    let directory = directory().await;
    let owner = Mount::new(&directory).await;
    for n in 0..10 {
        owner.client.file(ROOT, &n.to_string()).await;
    }
    let now = owner.client.call(&RenewSession { session: owner.session(), released: Vec::new() }).await.unwrap().now;
    let day = 24 * 3600 * 1_000_000_000;
    let row = |first: u64, days: i64| {
        let row = Reserved { at: Timestamp(now.0 - days * day), parent: ROOT, count: 1, left: u64::from(first.is_multiple_of(2)) };
        (keys::reserved(InodeId(first)), Some(row.encode()))
    };
    let changes = (1..=6).map(|first| row(first, 8)).chain([row(7, 6)]).collect();
    directory.store.commit(&Batch { changes, ..Batch::default() }, Durability::Process).unwrap();
    let left = || (1..=7).filter(|first| directory.store.snapshot().get(&keys::reserved(InodeId(*first))).unwrap().is_some()).count();
    assert_eq!(left(), 7);
    for (text, expected) in [("a", 3), ("b", 1), ("c", 1)] {
        let (made, _) = reserving(&owner, &make(ROOT, text, FileKind::Directory, 8)).await;
        assert_eq!(left(), expected);
        // What is new stays.
        owner.client.call(&birth(made.entry.attributes.ino, "f", &made.reserved.unwrap(), 0)).await.unwrap();
    }
}
