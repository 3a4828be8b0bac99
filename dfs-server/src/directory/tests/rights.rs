//! Who may do what, as the service answers it; that the kernel says the same is shown end to end.

use dfs_common::user::{Limits, Origin, Squash, User};
use proptest::prelude::*;

use super::*;

fn user(uid: u32, gid: u32, groups: Option<&[u32]>) -> User {
    User { uid, gid, groups: groups.map(<[u32]>::to_vec) }
}

/// Only its own group is known of user 1000.
fn anna() -> User {
    user(1000, 100, None)
}

async fn call<O: Operation>(client: &Client, user: &User, operation: &O) -> Result<O::Reply> {
    let request = Request::new(Method::Post, O::PATH).json(operation).user(Some(user.clone()));
    client.directory.clone().handle(request).await.parse_json()
}

async fn refused<O: Operation>(client: &Client, user: &User, operation: &O) -> ErrorKind {
    match call(client, user, operation).await {
        Err(e) => e.kind(),
        Ok(_) => panic!("{} by {user} is not refused", O::PATH),
    }
}

/// Something new of `uid` and `gid` with `mode`.
async fn put(client: &Client, parent: InodeId, text: &str, kind: FileKind, mode: u32, (uid, gid): (u32, u32)) -> InodeId {
    let make = Make { uid, gid, ..Make::new(parent, name(text), kind, mode) };
    client.call(&make).await.unwrap().entry.attributes.ino
}

fn make(parent: InodeId, text: &str, kind: FileKind, mode: u32) -> Make {
    Make::new(parent, name(text), kind, mode)
}

#[tokio::test]
async fn what_a_user_makes_is_the_users_whatever_it_says() {
    let client = Client::new();
    let dir = put(&client, ROOT, "d", FileKind::Directory, 0o777, (0, 0)).await;
    let made = call(&client, &anna(), &make(dir, "f", FileKind::File, 0o4755)).await.unwrap().entry.attributes;
    assert_eq!((made.uid, made.gid, made.mode), (1000, 100, 0o4755));
    let root = user(0, 0, None);
    let given = Make { uid: 5, gid: 6, ..make(dir, "g", FileKind::File, 0o644) };
    let made = call(&client, &root, &given).await.unwrap().entry.attributes;
    assert_eq!((made.uid, made.gid), (5, 6));
    assert_eq!(refused(&client, &anna(), &make(dir, "null", FileKind::CharDevice, 0o666)).await, ErrorKind::NotPermitted);
    assert_eq!(refused(&client, &anna(), &make(ROOT, "x", FileKind::File, 0o666)).await, ErrorKind::Forbidden);
    assert_eq!(refused(&client, &anna(), &make(ROOT, "d", FileKind::File, 0o666)).await, ErrorKind::Exists);
}

#[tokio::test]
async fn sgid_is_for_members_and_who_does_not_say_is_asked() {
    let client = Client::new();
    let dir = put(&client, ROOT, "d", FileKind::Directory, 0o2777, (0, 200)).await;
    let new = |text: &str| make(dir, text, FileKind::File, 0o2775);
    assert_eq!(refused(&client, &anna(), &new("a")).await, ErrorKind::NotPermitted);
    let mode = |made: Made| (made.entry.attributes.gid, made.entry.attributes.mode);
    assert_eq!(mode(call(&client, &user(1000, 100, Some(&[])), &new("a")).await.unwrap()), (200, 0o775));
    let member = user(1000, 100, Some(&[200]));
    let made = call(&client, &member, &new("b")).await.unwrap();
    let ino = made.entry.attributes.ino;
    assert_eq!(mode(made), (200, 0o2775));
    let chmod = |mode| SetAttributes { mode: Some(mode), ..SetAttributes::none(ino) };
    call(&client, &member, &chmod(0o755)).await.unwrap();
    assert_eq!(refused(&client, &anna(), &chmod(0o2755)).await, ErrorKind::NotPermitted);
    let stripped = call(&client, &user(1000, 100, Some(&[])), &chmod(0o2755)).await.unwrap();
    assert_eq!(stripped.attributes.mode, 0o755);
    assert_eq!(call(&client, &member, &chmod(0o2755)).await.unwrap().attributes.mode, 0o2755);
}

#[tokio::test]
async fn groups_that_are_told_let_in_and_those_that_are_not_do_not() {
    let client = Client::new();
    let dir = put(&client, ROOT, "d", FileKind::Directory, 0o770, (0, 200)).await;
    assert_eq!(refused(&client, &anna(), &make(dir, "f", FileKind::File, 0o644)).await, ErrorKind::Forbidden);
    call(&client, &user(1000, 100, Some(&[7, 200])), &make(dir, "f", FileKind::File, 0o644)).await.unwrap();
    assert_eq!(refused(&client, &anna(), &Lookup { parent: dir, name: name("f") }).await, ErrorKind::Forbidden);
    assert_eq!(refused(&client, &anna(), &Lookup { parent: dir, name: name("none") }).await, ErrorKind::Forbidden);
    let path = |path: &[u8]| Resolve { path: Text(path.to_vec()), follow: true };
    assert_eq!(refused(&client, &anna(), &path(b"/d/f")).await, ErrorKind::Forbidden);
    assert_eq!(refused(&client, &anna(), &path(b"/d/../d/none")).await, ErrorKind::Forbidden);
    call(&client, &anna(), &path(b"/d")).await.unwrap();
    let member = user(1, 200, None);
    call(&client, &member, &path(b"/d/f")).await.unwrap();
}

#[tokio::test]
async fn times_of_this_moment_are_the_services_where_the_file_is_somebody_elses() {
    let client = Client::new();
    let ino = put(&client, ROOT, "f", FileKind::File, 0o666, (5, 5)).await;
    let set = |now| SetAttributes { mtime: Some(Timestamp(7)), now, ..SetAttributes::none(ino) };
    assert_eq!(refused(&client, &anna(), &set(false)).await, ErrorKind::NotPermitted);
    let touched = call(&client, &anna(), &set(true)).await.unwrap().attributes;
    assert!(touched.mtime.0 > 1_000_000_000_000_000_000, "{touched:?}");
    assert_eq!(call(&client, &user(5, 9, None), &set(true)).await.unwrap().attributes.mtime, Timestamp(7));
    client.call(&SetAttributes { mode: Some(0o644), ..SetAttributes::none(ino) }).await.unwrap();
    assert_eq!(refused(&client, &anna(), &set(true)).await, ErrorKind::Forbidden);
}

#[tokio::test]
async fn who_may_write_ends_suid_and_changes_nothing_else_of_the_mode() {
    let client = Client::new();
    let ino = put(&client, ROOT, "f", FileKind::File, 0o6776, (5, 5)).await;
    let chmod = |mode| SetAttributes { mode: Some(mode), ..SetAttributes::none(ino) };
    for other in [0o6775, 0o7776, 0o775, 0o777] {
        assert_eq!(refused(&client, &anna(), &chmod(other)).await, ErrorKind::NotPermitted, "{other:o}");
    }
    assert_eq!(call(&client, &anna(), &chmod(0o776)).await.unwrap().attributes.mode, 0o776);
}

#[tokio::test]
async fn publishing_is_for_the_owner_and_who_may_write() {
    let client = Client::new();
    let ino = put(&client, ROOT, "f", FileKind::File, 0o060, (5, 200)).await;
    let publish = Publish {
        ino,
        session: SessionId(1),
        token: Token(1),
        base: Version(0),
        manifest: BlockHash::of(b"x"),
        size: 1,
        stored: 1,
        mtime: Timestamp(1),
        holders: vec![ServerId(1)],
        missing: Vec::new(),
        durable: false,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    assert_eq!(refused(&client, &anna(), &publish).await, ErrorKind::Forbidden);
    let place = Place { ino, avoid: Vec::new() };
    assert_eq!(refused(&client, &anna(), &place).await, ErrorKind::Forbidden);
    // From here on it is the operation that has something against it: the server is not known.
    for fine in [user(5, 5, None), user(1, 200, None), user(1, 1, Some(&[200])), user(0, 0, None)] {
        assert_eq!(refused(&client, &fine, &publish).await, ErrorKind::Invalid);
        assert_eq!(refused(&client, &fine, &place).await, ErrorKind::Unavailable);
    }
    assert_eq!(refused(&client, &anna(), &Versions { ino }).await, ErrorKind::Forbidden);
    assert!(call(&client, &user(5, 5, None), &Versions { ino }).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_version_changes_attributes_in_the_same_step_or_nothing_changes() {
    let mut client = Client::new();
    client.open_session().await;
    let server = client.register("a").await;
    let ino = put(&client, ROOT, "f", FileKind::File, 0o666, (1000, 100)).await;
    let along = |set: SetAttributes| Publish { set: Some(set), ..client.version(ino, 0, &[server]) };
    let none = SetAttributes::none(ino);
    let chmod = along(SetAttributes { mode: Some(0o640), ..none.clone() });
    assert_eq!(refused(&client, &user(5, 5, None), &chmod).await, ErrorKind::NotPermitted, "who may write may not do that");
    assert_eq!(refused(&client, &anna(), &along(SetAttributes { uid: Some(5), ..none.clone() })).await, ErrorKind::NotPermitted);
    assert_eq!(refused(&client, &user(0, 0, None), &along(SetAttributes { ino: ROOT, ..none })).await, ErrorKind::Invalid);
    assert_eq!(client.attributes(ino).await.unwrap().attributes.version, Version(0));
    for _ in 0..2 {
        // The second is the first one again, whose answer was lost.
        let entry = call(&client, &anna(), &chmod).await.unwrap().attributes;
        assert_eq!((entry.version, entry.mode, entry.size, entry.mtime), (Version(1), 0o640, 100, Timestamp(1234)));
    }
}

#[tokio::test]
async fn what_was_removed_comes_back_by_its_owner_or_to_where_it_was() {
    let client = Client::with(keeping(), Arc::new(MemoryStore::default()));
    let shared = put(&client, ROOT, "shared", FileKind::Directory, 0o777, (0, 0)).await;
    let own = put(&client, ROOT, "own", FileKind::Directory, 0o755, (1000, 100)).await;
    let ino = put(&client, shared, "f", FileKind::File, 0o600, (5, 5)).await;
    call(&client, &anna(), &Remove { parent: shared, name: name("f"), directory: false }).await.unwrap();
    let back = |parent, text: &str| Undelete { ino, parent, name: name(text) };
    assert_eq!(refused(&client, &anna(), &back(own, "f")).await, ErrorKind::NotPermitted);
    assert_eq!(refused(&client, &anna(), &back(shared, "g")).await, ErrorKind::NotPermitted);
    assert_eq!(refused(&client, &user(5, 5, None), &back(own, "f")).await, ErrorKind::Forbidden);
    call(&client, &anna(), &back(shared, "f")).await.unwrap();
    let removals = Removals { parent: own, limit: 1, after: None };
    assert!(call(&client, &user(7, 7, None), &removals).await.unwrap().rows.is_empty());
    client.call(&SetAttributes { mode: Some(0o711), ..SetAttributes::none(own) }).await.unwrap();
    assert_eq!(refused(&client, &user(7, 7, None), &removals).await, ErrorKind::Forbidden);
    call(&client, &user(7, 7, None), &NameHistory { parent: own, name: name("f") }).await.unwrap();
}

#[tokio::test]
async fn a_mount_without_root_can_keep_what_it_could_not_publish() {
    let client = Client::new();
    let nobody = user(65_534, 65_534, Some(&[]));
    let recovered = dfs_common::ids::RECOVERED;
    let made = call(&client, &nobody, &make(recovered, "f.5.1", FileKind::File, 0o600)).await.unwrap().entry.attributes;
    assert_eq!((made.uid, made.mode), (65_534, 0o600));
    let describe = |ino, text| SetXattr { ino, name: name(text), value: Text(b"{}".to_vec()), mode: XattrMode::Set };
    call(&client, &nobody, &describe(made.ino, RECOVERED_XATTR)).await.unwrap();
    call(&client, &nobody, &Lookup { parent: recovered, name: name("f.5.1") }).await.unwrap();
    assert_eq!(refused(&client, &nobody, &describe(made.ino, "trusted.other")).await, ErrorKind::NotPermitted);
    assert_eq!(refused(&client, &anna(), &describe(made.ino, RECOVERED_XATTR)).await, ErrorKind::NotPermitted);
    assert_eq!(refused(&client, &nobody, &List { ino: recovered, after: None, limit: 1 }).await, ErrorKind::Forbidden);
    assert_eq!(refused(&client, &nobody, &make(recovered, "d", FileKind::Directory, 0o700)).await, ErrorKind::Forbidden);
    assert_eq!(refused(&client, &nobody, &Remove { parent: recovered, name: name("f.5.1"), directory: false }).await, ErrorKind::Forbidden);
}

#[tokio::test]
async fn names_of_trusted_attributes_are_roots_to_see() {
    let client = Client::new();
    let ino = put(&client, ROOT, "f", FileKind::File, 0o666, (1000, 100)).await;
    for text in ["trusted.a", "user.b"] {
        client.call(&SetXattr { ino, name: name(text), value: Text(b"v".to_vec()), mode: XattrMode::Set }).await.unwrap();
    }
    assert_eq!(call(&client, &anna(), &ListXattrs { ino }).await.unwrap(), [name("user.b")]);
    assert_eq!(call(&client, &user(0, 0, None), &ListXattrs { ino }).await.unwrap(), [name("trusted.a"), name("user.b")]);
    assert_eq!(refused(&client, &anna(), &GetXattr { ino, name: name("trusted.a") }).await, ErrorKind::NoAttribute);
}

#[tokio::test]
async fn a_client_is_told_who_its_root_is() {
    let client = Client::new();
    let open = OpenSession { host: "h".into(), pid: 1, program: "p".into(), mountpoint: String::new() };
    let squash = Some(Squash { uid: 9, gid: 8 });
    for origin in [Origin::Cluster, Origin::Client(Limits { read_only: true, squash })] {
        let mut request = Request::new(Method::Post, OpenSession::PATH).json(&open);
        request.origin = origin;
        let session: Session = client.directory.clone().handle(request).await.parse_json().unwrap();
        assert_eq!(session.squash, origin.limits().squash);
    }
}

/// One row of a list: tag, permissions, id.
type Rows = Vec<(u16, u16, u32)>;

/// The access check of acl(5), step by step; where the mode lets no group do anything, the list counts for nothing.
fn by_the_book(mode: u32, (uid, gid): (u32, u32), rows: Option<&Rows>, who: &User, wanted: u16) -> bool {
    let has = |permissions: u16| permissions & wanted == wanted;
    let bits = |shift: u32| (mode >> shift & 7) as u16;
    if who.uid == uid {
        return has(bits(6));
    }
    let Some(rows) = rows.filter(|_| mode & 0o070 != 0) else { return has(bits(if who.is_in(gid) { 3 } else { 0 })) };
    let mask = rows.iter().find(|row| row.0 == 16).map_or(7, |row| row.1);
    if let Some(row) = rows.iter().find(|row| row.0 == 2 && row.2 == who.uid) {
        return has(row.1 & mask);
    }
    let is_mine = |row: &&(u16, u16, u32)| (row.0 == 4 && who.is_in(gid)) || (row.0 == 8 && who.is_in(row.2));
    let mine: Vec<_> = rows.iter().filter(is_mine).collect();
    if mine.is_empty() { has(bits(0)) } else { mine.iter().any(|row| has(row.1)) && has(mask) }
}

fn rows() -> impl Strategy<Value = Rows> {
    let p = || 0u16..8;
    let named = prop::collection::vec((prop::bool::ANY, p(), 1u32..4), 0..4);
    (p(), p(), p(), p(), named).prop_map(|(owner, group, mask, others, named)| {
        let mut rows = vec![(1, owner, u32::MAX), (4, group, u32::MAX), (32, others, u32::MAX), (16, mask, u32::MAX)];
        rows.extend(named.into_iter().map(|(user, permissions, id)| (if user { 2 } else { 8 }, permissions, id)));
        rows.sort_by_key(|row| row.0);
        rows
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn access_is_as_the_book_says(
        mode in 0u32..0o1000, owner in (1u32..4, 1u32..4), list in prop::option::of(rows()),
        who in (1u32..4, 1u32..4, prop::collection::vec(1u32..4, 0..3)), wanted in 1u16..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let who = user(who.0, who.1, Some(&who.2));
        let (answer, mode) = runtime.block_on(async {
            let client = Client::new();
            let ino = put(&client, ROOT, "f", FileKind::File, mode, owner).await;
            if let Some(list) = &list {
                let bytes = list.iter().flat_map(|(tag, permissions, id)| [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
                let value = Text(2u32.to_le_bytes().into_iter().chain(bytes).collect());
                client.call(&SetXattr { ino, name: name("system.posix_acl_access"), value, mode: XattrMode::Set }).await.unwrap();
            }
            let access = Access { read: wanted & 4 != 0, write: wanted & 2 != 0, execute: wanted & 1 != 0, ..Access::nothing(ino) };
            let mode = client.call(&GetAttributes { ino }).await.unwrap().attributes.mode;
            (call(&client, &who, &access).await.is_ok(), mode)
        });
        prop_assert_eq!(answer, by_the_book(mode, owner, list.as_ref(), &who, wanted));
    }
}
