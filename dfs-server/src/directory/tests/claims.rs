//! Claiming leases: at first, after a restart, after an end; and what a session that has
//! expired is still told.

use super::super::periodic::Rounds;
use super::events::{Mount, at, chmod, directory, start};
use super::*;

fn again(store: &Arc<MemoryStore>) -> Arc<Directory> {
    Directory::open(config(), store.clone()).unwrap()
}

/// The same client at another start of the service.
fn moved(mount: Mount, directory: &Arc<Directory>) -> Mount {
    let client = Client { directory: directory.clone(), session: mount.client.session, sequence: mount.client.sequence };
    Mount { client, seen: mount.seen }
}

#[tokio::test(start_paused = true)]
async fn requests_for_events_are_checked() {
    let directory = directory();
    let mut mount = Mount::unclaimed(&directory).await;
    assert_eq!(kind(mount.ask(0).await), ErrorKind::Unclaimed);
    assert_eq!(mount.leased(&GetAttributes { ino: ROOT }).await.1, None, "no lease without a claim");
    mount.claim(0, &[]).await;
    assert!(mount.seen > 1 << 32 && mount.seen < 1 << 53);
    mount.seen += 1;
    assert_eq!(kind(mount.ask(0).await), ErrorKind::Invalid);
    mount.seen -= 1;
    assert_eq!(kind(mount.ask(Events::MAX_WAIT_MS + 1).await), ErrorKind::Invalid);
    let mut without = mount.client.other();
    let session = without.open_session().await;
    assert_eq!(kind(without.call(&ClaimLeases { session, revision: 0, held: Vec::new() }).await), ErrorKind::Invalid);
    let unknown = ClaimLeases { session: SessionId(99), revision: 0, held: Vec::new() };
    assert_eq!(kind(without.call(&unknown).await), ErrorKind::SessionExpired);
    let many = ClaimLeases { session: mount.session(), revision: 0, held: vec![ROOT; ClaimLeases::MAX_HELD + 1] };
    assert_eq!(kind(mount.client.call(&many).await), ErrorKind::TooBig);
    mount.client.call(&CloseSession { session: mount.session() }).await.unwrap();
    assert_eq!(kind(mount.ask(0).await), ErrorKind::SessionExpired);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_events_ends_in_time_by_a_newer_one_or_with_its_session() {
    let directory = directory();
    let mount = Mount::new(&directory).await;
    let start = tokio::time::Instant::now();
    assert_eq!(mount.ask(700).await.unwrap().events, []);
    assert_eq!(start.elapsed().as_millis(), 700);
    let older = tokio::spawn(mount.ask(50_000));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let newer = tokio::spawn(mount.ask(50_000));
    assert_eq!(older.await.unwrap().unwrap().events, []);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(!newer.is_finished());
    mount.client.call(&CloseSession { session: mount.session() }).await.unwrap();
    assert_eq!(kind(newer.await.unwrap()), ErrorKind::SessionExpired);
    let last = Mount::new(&directory).await;
    let waits = tokio::spawn(last.ask(50_000));
    tokio::time::sleep(Duration::from_millis(1)).await;
    directory.leasing.stop();
    assert_eq!(kind(waits.await.unwrap()), ErrorKind::Unavailable, "a service that stops lets go");
}

#[tokio::test(start_paused = true)]
async fn a_claim_loses_what_has_changed_since_and_nothing_else() {
    let directory = directory();
    let mut mount = Mount::new(&directory).await;
    let nobody = mount.client.other();
    let (a, b, c) = (nobody.file(ROOT, "a").await, nobody.file(ROOT, "b").await, nobody.file(ROOT, "c").await);
    let revision = nobody.status().await.revision;
    nobody.call(&chmod(b, 0o600)).await.unwrap();
    let claimed = mount.claim(revision, &[a, b, c]).await;
    assert_eq!((claimed.lost, claimed.revision), (vec![b], revision + 1));
    assert_eq!(nobody.status().await.leases, 2);
    assert_eq!(mount.claim(revision - 1, &[ROOT, c]).await.lost, [ROOT, c], "made with the last revision");
    assert_eq!(nobody.status().await.leases, 0, "what is not named is given up");
    assert_eq!(mount.claim(0, &[a]).await.lost, [a], "from before anything is known");
}

#[tokio::test(start_paused = true)]
async fn what_is_about_to_change_is_lost_and_the_claim_is_acknowledged_by_the_next_request() {
    let directory = directory();
    let mut mount = Mount::new(&directory).await;
    let nobody = mount.client.other();
    let ino = nobody.file(ROOT, "a").await;
    mount.stat(ino).await;
    let revision = nobody.status().await.revision;
    let change = start(&nobody, chmod(ino, 0o600)).await;
    assert_eq!(mount.claim(revision, &[ino]).await.lost, [ino]);
    assert!(change.waits().await, "the client may not have seen the answer yet");
    mount.acknowledge().await;
    change.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_changes_wait_for_claims_and_reads_do_not() {
    let store = Arc::new(MemoryStore::default());
    let old = again(&store);
    let (first, second) = (Mount::new(&old).await, Mount::new(&old).await);
    let nobody = first.client.other();
    let ino = nobody.file(ROOT, "f").await;
    first.stat(ino).await;
    let new = again(&store);
    let (mut first, mut second) = (moved(first, &new), moved(second, &new));
    let nobody = first.client.other();
    let change = start(&nobody, chmod(ino, 0o600)).await;
    assert_eq!(nobody.call(&Waits {}).await.unwrap()[0].waits_for, []);
    let before = first.seen;
    assert_eq!(kind(first.ask(0).await), ErrorKind::Unclaimed);
    let claimed = first.claim(1, &[ino]).await;
    assert_eq!(claimed.lost, [], "what it held is true: nothing was changed meanwhile");
    assert!(claimed.event > before, "numbers go on above those of the last start");
    assert!(change.waits().await);
    second.claim(1, &[]).await;
    assert_eq!(at(&first.events().await), [(ino, None, true)]);
    first.acknowledge().await;
    change.end().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_changes_wait_half_a_lease_at_most() {
    let store = Arc::new(MemoryStore::default());
    let old = again(&store);
    let mount = Mount::new(&old).await;
    let ino = mount.client.other().file(ROOT, "f").await;
    let other = mount.client.other().file(ROOT, "g").await;
    let new = again(&store);
    let begin = tokio::time::Instant::now();
    let mut mount = moved(mount, &new);
    let nobody = mount.client.other();
    mount.client.attributes(ino).await.unwrap();
    nobody.call(&chmod(ino, 0o600)).await.unwrap();
    assert_eq!(begin.elapsed(), config().lease / 2);
    assert_eq!(mount.claim(1, &[ino, other]).await.lost, [ino], "it comes late, and has lost what was changed meanwhile");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_sessions_that_hold_no_leases_or_end() {
    let store = Arc::new(MemoryStore::default());
    let old = again(&store);
    let mount = Mount::new(&old).await;
    let mut without = mount.client.other();
    without.open_session().await;
    let new = again(&store);
    let begin = tokio::time::Instant::now();
    let mount = moved(mount, &new);
    let nobody = mount.client.other();
    let change = start(&nobody, chmod(ROOT, 0o700)).await;
    mount.client.call(&CloseSession { session: mount.session() }).await.unwrap();
    change.end().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn too_many_leases_are_recalled_oldest_first() {
    let directory = directory();
    let mut mount = Mount::new(&directory).await;
    let nobody = mount.client.other();
    let first = nobody.file(ROOT, "f").await;
    let revision = nobody.status().await.revision;
    let held: Vec<InodeId> = (0..ClaimLeases::MAX_HELD as u64).map(|n| InodeId(first.0 + n)).collect();
    assert_eq!(mount.claim(revision, &held).await.lost, []);
    mount.stat(first).await;
    assert_eq!(nobody.status().await.events, 0);
    assert!(!mount.stat(ROOT).await.nothing);
    let events = mount.events().await;
    assert_eq!(events.len(), Events::MAX_EVENTS);
    assert_eq!(at(&events[..1]), [(InodeId(first.0 + 1), None, true)], "the one used last is not the oldest");
    let rest = mount.events().await;
    mount.acknowledge().await;
    let recalled = (events.len() + rest.len()) as u64;
    assert_eq!(nobody.status().await.leases, ClaimLeases::MAX_HELD as u64 + 1 - recalled);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expired_is_told_what_it_did_and_that_it_did_no_more() {
    let store = Arc::new(MemoryStore::default());
    let mut client = Client::with(config(), store.clone());
    client.open_session().await;
    let make = |text| Make::new(ROOT, name(text), FileKind::File, 0);
    let replay = |sequence| Some(Replay { slot: 3, sequence });
    let made = client.call_as(&make("a"), replay(1)).await.unwrap();
    tokio::time::advance(config().lease + Duration::from_secs(1)).await;
    client.directory.look(&mut Rounds::default()).await.unwrap();
    assert_eq!(client.status().await.sessions, 0);
    for _ in 0..2 {
        assert_eq!(client.call_as(&make("a"), replay(1)).await.unwrap(), made);
        assert_eq!(kind(client.call_as(&make("b"), replay(2)).await), ErrorKind::SessionExpired);
        assert_eq!(kind(client.call_as(&make("b"), Some(Replay { slot: 4, sequence: 1 })).await), ErrorKind::SessionExpired);
        // And a restart changes nothing of it.
        client = Client { session: client.session, ..Client::with(config(), store.clone()) };
    }
    assert_eq!(kind(client.lookup(ROOT, "b").await), ErrorKind::NotFound);
    client.directory.forget_expired_before(Timestamp(i64::MAX)).await.unwrap();
    assert_eq!(kind(client.call_as(&make("a"), replay(1)).await), ErrorKind::SessionExpired);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_closed_leaves_no_replies() {
    let mut client = Client::new();
    let session = client.open_session().await;
    let make = Make::new(ROOT, name("a"), FileKind::File, 0);
    let replay = Some(Replay { slot: 0, sequence: 1 });
    client.call_as(&make, replay).await.unwrap();
    client.call(&CloseSession { session }).await.unwrap();
    assert_eq!(kind(client.call_as(&make, replay).await), ErrorKind::SessionExpired);
}
