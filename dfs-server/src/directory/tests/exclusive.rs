//! Directories that a session has to itself: who gets one, and who waits until it has told what it made there.

use std::future::Future;

use super::events::{Mount, at, chmod, start};
use super::*;

/// The first new inode.
const DIR: InodeId = InodeId(3);

/// A service with a live file server.
pub(super) async fn directory() -> Arc<Directory> {
    on(&Arc::new(MemoryStore::default())).await
}

/// The same on a store that others go on with.
pub(super) async fn on(store: &Arc<MemoryStore>) -> Arc<Directory> {
    let directory = Directory::open(config(), store.clone()).unwrap();
    Client { directory: directory.clone(), session: None, sequence: AtomicU64::new(0) }.register("s").await;
    directory
}

pub(super) fn make(parent: InodeId, text: &str, kind: FileKind, reserve: u32) -> Make {
    Make { reserve, ..Make::new(parent, name(text), kind, 0o755) }
}

/// Makes what it says; the reservation, and the directory that the mount has to itself now.
pub(super) async fn reserving(mount: &Mount, make: &Make) -> (Made, Option<InodeId>) {
    let (made, granted) = mount.leased(make).await;
    (made.unwrap(), granted.and_then(|granted| granted.exclusive))
}

/// The birth of number `at` of the reservation, as file `text`.
pub(super) fn birth(parent: InodeId, text: &str, reserved: &Reservation, at: u64) -> Make {
    let birth = Birth { ino: InodeId(reserved.first.0 + at), first: reserved.first, at: Timestamp(i64::MAX) };
    Make { mode: 0o644, birth: Some(birth), ..make(parent, text, FileKind::File, 0) }
}

/// A mount with a new directory `text` in the root to itself.
pub(super) async fn alone(directory: &Arc<Directory>, text: &str) -> (Mount, InodeId, Reservation) {
    let owner = Mount::new(directory).await;
    let (made, exclusive) = reserving(&owner, &make(ROOT, text, FileKind::Directory, 8)).await;
    let ino = made.entry.attributes.ino;
    assert_eq!(exclusive, Some(ino));
    (owner, ino, made.reserved.unwrap())
}

/// Tells of file `text` before it acknowledges the event that asks for that.
async fn tell(owner: &mut Mount, dir: InodeId, reserved: &Reservation, at: u64, text: &str) {
    let events = owner.events().await;
    assert!(events.iter().any(|event| event.ino == dir), "{events:?}");
    // Who waits for the owner does not keep it from telling.
    owner.client.call(&birth(dir, text, reserved, at)).await.unwrap();
    owner.acknowledge().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_directory_is_its_makers_alone() {
    let directory = directory().await;
    let owner = Mount::new(&directory).await;
    let (made, exclusive) = reserving(&owner, &make(ROOT, "d", FileKind::Directory, 5)).await;
    let reserved = made.reserved.unwrap();
    assert_eq!((exclusive, reserved.placements.len()), (Some(made.entry.attributes.ino), 5));
    assert!(reserved.placements.iter().all(|placement| placement.len() == 1));
    assert!(reserved.first > made.entry.attributes.ino);
    let next = owner.client.file(ROOT, "f").await;
    assert_eq!(next.0, reserved.first.0 + 5, "these numbers are nobody else's");
}

#[tokio::test(start_paused = true)]
async fn a_new_file_brings_its_directory() {
    let directory = directory().await;
    let owner = Mount::new(&directory).await;
    let dir = owner.client.dir(ROOT, "d").await;
    let (made, exclusive) = reserving(&owner, &make(dir, "f", FileKind::File, 64)).await;
    assert_eq!((exclusive, made.reserved.unwrap().placements.len()), (Some(dir), 64));
    let (made, exclusive) = reserving(&owner, &make(dir, "g", FileKind::File, u32::MAX)).await;
    assert_eq!((exclusive, made.reserved.unwrap().placements.len()), (Some(dir), 64), "there is a limit");
    let (made, exclusive) = reserving(&owner, &make(dir, "h", FileKind::File, 0)).await;
    assert_eq!((made.reserved, exclusive), (None, None), "it was not asked for");
    let (made, exclusive) = reserving(&owner, &make(dir, "fifo", FileKind::Fifo, 8)).await;
    assert_eq!((made.reserved, exclusive), (None, None), "only files and directories");
}

#[tokio::test(start_paused = true)]
async fn only_a_mount_gets_a_directory_to_itself() {
    let directory = directory().await;
    let mut client = Client { directory: directory.clone(), session: None, sequence: AtomicU64::new(0) };
    let owner = Mount::new(&directory).await;
    let nobody = Mount { client: owner.client.other(), seen: 0 };
    assert_eq!(reserving(&nobody, &make(ROOT, "a", FileKind::Directory, 8)).await.1, None);
    client.open_session().await;
    assert_eq!(reserving(&Mount { client, seen: 0 }, &make(ROOT, "b", FileKind::Directory, 8)).await.1, None);
    let unclaimed = Mount::unclaimed(&directory).await;
    assert_eq!(reserving(&unclaimed, &make(ROOT, "c", FileKind::Directory, 8)).await.1, None);
}

#[tokio::test(start_paused = true)]
async fn not_where_another_holds_a_lease_until_that_is_over() {
    let directory = directory().await;
    let (owner, mut holder) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let dir = owner.client.dir(ROOT, "d").await;
    holder.stat(dir).await;
    let change = start(&owner.client, make(dir, "f", FileKind::File, 8)).await;
    assert_eq!(at(&holder.events().await), [(dir, Some("f".to_owned()), false)]);
    holder.acknowledge().await;
    change.end().await.unwrap();
    // Its lease on a directory outlives the event, so nobody has that to itself.
    assert_eq!(reserve_in_turn(&owner, &mut holder, dir, "g").await, None);
    holder.client.call(&CloseSession { session: holder.session() }).await.unwrap();
    assert_eq!(reserving(&owner, &make(dir, "h", FileKind::File, 8)).await.1, Some(dir));
}

/// Makes a file while `holder` acknowledges.
async fn reserve_in_turn(owner: &Mount, holder: &mut Mount, dir: InodeId, text: &str) -> Option<InodeId> {
    let make = make(dir, text, FileKind::File, 8);
    let acknowledge = async {
        holder.events().await;
        holder.acknowledge().await;
    };
    futures_util::future::join(reserving(owner, &make), acknowledge).await.0.1
}

#[tokio::test(start_paused = true)]
async fn not_where_files_are_not_only_their_makers() {
    let directory = directory().await;
    let owner = Mount::new(&directory).await;
    let sgid = Make { mode: 0o2755, ..make(ROOT, "sgid", FileKind::Directory, 8) };
    let (made, exclusive) = reserving(&owner, &sgid).await;
    assert_eq!((made.reserved, exclusive), (None, None));
    let sgid = made.entry.attributes.ino;
    assert_eq!(reserving(&owner, &make(sgid, "f", FileKind::File, 8)).await.1, None);
    assert_eq!(reserving(&owner, &make(sgid, "inherits", FileKind::Directory, 8)).await.1, None);
    let listed = owner.client.dir(ROOT, "listed").await;
    // Version 2, and rows of tag, permissions and id.
    let rows = [(1_u16, 7_u16, u32::MAX), (4, 5, u32::MAX), (32, 0, u32::MAX)];
    let rows = rows.iter().flat_map(|(tag, bits, id)| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
    let value = Text(2_u32.to_le_bytes().into_iter().chain(rows).collect());
    owner.client.call(&SetXattr { ino: listed, name: name("system.posix_acl_default"), value, mode: XattrMode::Set }).await.unwrap();
    assert_eq!(reserving(&owner, &make(listed, "f", FileKind::File, 8)).await.1, None);
    assert_eq!(reserving(&owner, &make(listed, "inherits", FileKind::Directory, 8)).await.1, None);
}

#[tokio::test(start_paused = true)]
async fn not_where_no_file_server_is_alive() {
    let directory = super::events::directory();
    let owner = Mount::new(&directory).await;
    let (made, exclusive) = reserving(&owner, &make(ROOT, "a", FileKind::Directory, 8)).await;
    assert_eq!((made.reserved, exclusive), (None, None));
    owner.client.register("s").await;
    assert!(reserving(&owner, &make(ROOT, "b", FileKind::Directory, 8)).await.1.is_some());
    tokio::time::advance(Duration::from_secs(3600)).await;
    owner.client.call(&RenewSession { session: owner.session(), released: Vec::new() }).await.unwrap();
    assert_eq!(reserving(&owner, &make(ROOT, "c", FileKind::Directory, 8)).await.1, None);
}

#[tokio::test(start_paused = true)]
async fn not_while_somebody_waits_to_see_or_change_the_directory() {
    let directory = directory().await;
    let (mut owner, dir, _) = alone(&directory, "d").await;
    let nobody = owner.client.other();
    let change = start(&nobody, chmod(dir, 0o700)).await;
    let read = start(&nobody, GetAttributes { ino: dir }).await;
    assert_eq!(reserving(&owner, &make(dir, "f", FileKind::File, 8)).await.1, None);
    owner.events().await;
    owner.acknowledge().await;
    change.end().await.unwrap();
    read.end().await.unwrap();
    assert_eq!(reserving(&owner, &make(dir, "g", FileKind::File, 8)).await.1, Some(dir), "nobody waits any more");
}

/// Asks, with the owner silent at first, and returns the answer that comes when the owner has told of file `new`.
async fn told<O: Operation>(reader: &Client, what: O) -> O::Reply
where
    O::Reply: 'static,
{
    let directory = reader.directory.clone();
    let (mut owner, dir, reserved) = alone(&directory, "d").await;
    assert_eq!(dir, DIR, "the requests name it");
    let read = start(reader, what).await;
    assert!(read.waits().await);
    let waits = reader.call(&Waits {}).await.unwrap();
    assert_eq!((waits.len(), waits[0].waits_for.as_slice()), (1, &[owner.session()][..]));
    tell(&mut owner, dir, &reserved, 0, "new").await;
    read.end().await.unwrap()
}

async fn all_kinds_of_readers<O: Operation, F: Future<Output = ()>>(what: impl Fn() -> O, check: impl Fn(O::Reply) -> F)
where
    O::Reply: 'static,
{
    let of = async || directory().await;
    check(told(&Mount::new(&of().await).await.client, what()).await).await;
    check(told(&Mount::unclaimed(&of().await).await.client, what()).await).await;
    check(told(&Client { directory: of().await, session: None, sequence: AtomicU64::new(0) }, what()).await).await;
}

#[tokio::test(start_paused = true)]
async fn lookup_list_attributes_and_paths_wait_for_what_the_owner_made() {
    all_kinds_of_readers(|| Lookup { parent: DIR, name: name("new") }, async |found| assert_eq!(found.attributes.mode, 0o644)).await;
    let listed = async |page: Page| assert_eq!(page.entries.len(), 1);
    all_kinds_of_readers(|| List { ino: DIR, after: None, limit: 10 }, listed).await;
    let is_later = async |entry: Entry| assert!(entry.attributes.mtime > entry.attributes.crtime, "{entry:?}");
    all_kinds_of_readers(|| GetAttributes { ino: DIR }, is_later).await;
    let path = |path: &str| Resolve { path: Text(path.as_bytes().to_vec()), follow: true };
    all_kinds_of_readers(|| path("/d/new"), async |found| assert!(found.entry.is_some())).await;
}

#[tokio::test(start_paused = true)]
async fn names_that_lead_to_the_directory_tell_its_attributes() {
    let is_later = async |entry: Entry| assert!(entry.attributes.mtime > entry.attributes.crtime, "{entry:?}");
    all_kinds_of_readers(|| Lookup { parent: ROOT, name: name("d") }, is_later).await;
    let listed = async |mut page: Page| is_later(page.entries.remove(0).entry).await;
    all_kinds_of_readers(|| List { ino: ROOT, after: None, limit: 10 }, listed).await;
    for path in ["/d", "/d/../d/"] {
        let path = || Resolve { path: Text(path.as_bytes().to_vec()), follow: true };
        all_kinds_of_readers(path, async |found| is_later(found.entry.unwrap()).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_beside_the_directory_is_told_at_once() {
    let directory = directory().await;
    let reader = Mount::new(&directory).await;
    let beside = reader.client.other().dir(ROOT, "e").await;
    let (owner, dir, _) = alone(&directory, "d").await;
    let below = owner.client.dir(dir, "below").await;
    reader.client.attributes(ROOT).await.unwrap();
    reader.client.lookup(ROOT, "e").await.unwrap();
    reader.client.file(beside, "f").await;
    reader.client.attributes(below).await.unwrap();
    reader.client.resolve("/d/below/none", true).await.unwrap();
    assert_eq!(reader.client.status().await.events, 0);
}

#[tokio::test(start_paused = true)]
async fn the_owner_never_waits_for_itself() {
    let directory = directory().await;
    let (owner, dir, reserved) = alone(&directory, "d").await;
    owner.client.attributes(dir).await.unwrap();
    assert_eq!(kind(owner.client.lookup(dir, "new").await), ErrorKind::NotFound);
    owner.client.lookup(ROOT, "d").await.unwrap();
    owner.client.call(&birth(dir, "new", &reserved, 0)).await.unwrap();
    assert_eq!(owner.client.call(&List { ino: dir, after: None, limit: 10 }).await.unwrap().entries.len(), 1);
    owner.client.resolve("/d/new", true).await.unwrap();
    owner.client.call(&chmod(dir, 0o700)).await.unwrap();
    owner.client.file(dir, "another").await;
    // And neither while somebody else does.
    let read = start(&owner.client.other(), GetAttributes { ino: dir }).await;
    owner.client.attributes(dir).await.unwrap();
    owner.client.call(&birth(dir, "newer", &reserved, 1)).await.unwrap();
    assert!(read.waits().await);
    assert_eq!(owner.client.status().await.events, 1);
}

#[tokio::test(start_paused = true)]
async fn changes_by_others_see_what_the_owner_made() {
    let change = async |what: &str, expected: ErrorKind| {
        let directory = directory().await;
        let other = Client { directory: directory.clone(), session: None, sequence: AtomicU64::new(0) };
        let file = other.file(ROOT, "f").await;
        let (mut owner, dir, reserved) = alone(&directory, "d").await;
        macro_rules! refused {
            ($operation:expr) => {{
                let waiting = start(&other, $operation).await;
                assert!(waiting.waits().await, "{what}");
                tell(&mut owner, dir, &reserved, 0, "new").await;
                assert_eq!(kind(waiting.end().await), expected, "{what}");
            }};
        }
        let mode = RenameMode::NoReplace;
        match what {
            "make" => refused!(make(dir, "new", FileKind::File, 0)),
            "link" => refused!(Link { ino: file, parent: dir, name: name("new") }),
            "rename" => refused!(Rename { parent: ROOT, name: name("f"), new_parent: dir, new_name: name("new"), mode }),
            _ => refused!(Remove { parent: ROOT, name: name("d"), directory: true }),
        }
    };
    for what in ["make", "link", "rename"] {
        change(what, ErrorKind::Exists).await;
    }
    change("remove", ErrorKind::NotEmpty).await;
}

#[tokio::test(start_paused = true)]
async fn two_readers_at_once_each_get_what_the_owner_made() {
    let directory = directory().await;
    let (mut owner, dir, reserved) = alone(&directory, "d").await;
    let (one, two) = (Mount::new(&directory).await, Mount::new(&directory).await);
    let first = start(&one.client, Lookup { parent: dir, name: name("new") }).await;
    let second = start(&two.client, List { ino: dir, after: None, limit: 10 }).await;
    let events = owner.events().await;
    assert_eq!(at(&events), [(dir, None, false), (dir, None, false)]);
    owner.client.call(&birth(dir, "new", &reserved, 0)).await.unwrap();
    owner.acknowledge().await;
    let found = first.end().await.unwrap().attributes;
    assert_eq!(second.end().await.unwrap().entries[0].entry.attributes, found);
    // Both hold leases now; it is nobody's alone.
    assert_eq!(one.stat(dir).await.except, []);
    assert_eq!(one.client.call(&Sessions {}).await.unwrap().iter().filter(|row| row.leases > 0).count(), 3);
    assert_eq!(one.client.call(&Waits {}).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_gives_up_leaves_nothing_blocked() {
    let directory = directory().await;
    let (mut owner, dir, _) = alone(&directory, "d").await;
    let nobody = owner.client.other();
    let read = start(&nobody, GetAttributes { ino: dir }).await;
    read.give_up().await;
    assert_eq!(nobody.call(&Waits {}).await.unwrap(), []);
    assert_eq!(owner.stat(dir).await.except, []);
    assert_eq!(reserving(&owner, &make(dir, "f", FileKind::File, 8)).await.1, None, "the event is on its way");
    let again = start(&nobody, GetAttributes { ino: dir }).await;
    again.give_up().await;
    assert_eq!(at(&owner.events().await), [(dir, None, false), (dir, None, false)]);
    owner.acknowledge().await;
    nobody.attributes(dir).await.unwrap();
    assert_eq!(reserving(&owner, &make(dir, "g", FileKind::File, 8)).await.1, Some(dir));
    let read = start(&nobody, GetAttributes { ino: dir }).await;
    assert!(read.waits().await);
}

/// A reader that waits for the owner of a directory goes on when `end` has happened.
async fn reader_goes_on(end: impl AsyncFnOnce(&mut Mount, InodeId)) {
    let directory = directory().await;
    let (mut owner, dir, _) = alone(&directory, "d").await;
    let nobody = owner.client.other();
    let read = start(&nobody, Lookup { parent: dir, name: name("new") }).await;
    assert!(read.waits().await);
    end(&mut owner, dir).await;
    assert_eq!(kind(read.end().await), ErrorKind::NotFound, "what was not told is not there");
    nobody.attributes(dir).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_owner_lets_readers_go_on() {
    reader_goes_on(async |owner, _| {
        owner.client.call(&CloseSession { session: owner.session() }).await.unwrap();
    })
    .await;
    reader_goes_on(async |owner, _| {
        owner.claim(0, &[]).await;
        owner.acknowledge().await;
    })
    .await;
    reader_goes_on(async |owner, _| {
        owner.events().await;
        owner.acknowledge().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_or_deaf_owner_delays_readers_by_a_lease() {
    for renews in [false, true] {
        let directory = directory().await;
        let (_stop, stopped) = tokio::sync::watch::channel(false);
        let (owner, dir, _) = alone(&directory, "d").await;
        tokio::spawn(directory.clone().run(stopped));
        let nobody = owner.client.other();
        let renew = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if renews {
                    let _ = owner.client.call(&RenewSession { session: owner.session(), released: Vec::new() }).await;
                }
            }
        };
        let limit = tokio::time::timeout(config().lease + Duration::from_secs(2), async {
            tokio::select! {
                read = nobody.attributes(dir) => read.unwrap(),
                () = renew => unreachable!(),
            }
        });
        limit.await.expect("a lease is the limit");
        assert_eq!(kind(owner.ask(0).await), ErrorKind::SessionExpired);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_service_ends_it() {
    let store = Arc::new(MemoryStore::default());
    let old = on(&store).await;
    let (owner, dir, reserved) = alone(&old, "d").await;
    let nobody = owner.client.other();
    let read = start(&nobody, GetAttributes { ino: dir }).await;
    old.leasing.stop();
    assert_eq!(kind(read.end().await), ErrorKind::Unavailable, "ask the next one");
    let new = Directory::open(config(), store).unwrap();
    let nobody = Client { directory: new.clone(), ..nobody };
    nobody.attributes(dir).await.unwrap();
    // What the owner made it tells as soon as it has claimed.
    let mut owner = Mount { client: Client { directory: new, ..owner.client }, ..owner };
    assert_eq!(kind(owner.ask(0).await), ErrorKind::Unclaimed);
    assert_eq!(owner.claim(0, &[dir]).await.lost, []);
    owner.client.call(&birth(dir, "new", &reserved, 0)).await.unwrap();
    nobody.lookup(dir, "new").await.unwrap();
    assert_eq!(reserving(&owner, &make(dir, "g", FileKind::File, 8)).await.1, Some(dir));
}
