//! Sessions, orphans, replays and group commit.

use super::super::periodic::Rounds;
use super::*;

#[tokio::test]
async fn a_retry_gets_the_first_answer() {
    let mut client = Client::new();
    client.open_session().await;
    let make = Make::new(ROOT, name("a"), FileKind::File, 0);
    let replay = |slot, sequence| Some(Replay { slot, sequence });
    let first = client.call_as(&make, replay(1, 5)).await.unwrap();
    assert_eq!(client.call_as(&make, replay(1, 5)).await.unwrap(), first);
    assert_eq!(kind(client.call_as(&make, replay(1, 4)).await), ErrorKind::Invalid);
    assert_eq!(kind(client.call_as(&make, replay(1, 6)).await), ErrorKind::Exists);
    client.remove(ROOT, "a", false).await.unwrap();
    assert_eq!(kind(client.call_as(&make, replay(1, 6)).await), ErrorKind::Exists, "an error is an answer, too");
    client.call_as(&make, replay(2, 1)).await.unwrap();
    let other = client.other();
    assert_eq!(kind(other.call_as(&make, replay(1, 5)).await), ErrorKind::Invalid, "a replay needs a session");
}

#[tokio::test]
async fn an_error_that_may_pass_is_tried_again() {
    let mut client = Client::new();
    client.open_session().await;
    let ino = client.file(ROOT, "f").await;
    let place = Place { ino, avoid: Vec::new() };
    let replay = Some(Replay { slot: 3, sequence: 1 });
    assert_eq!(kind(client.call_as(&place, replay).await), ErrorKind::Unavailable);
    let server = client.register("a").await;
    assert_eq!(client.call_as(&place, replay).await.unwrap().layout.placement, [server]);
}

#[tokio::test]
async fn a_mutation_of_an_unknown_session_is_refused() {
    let mut client = Client::new();
    client.session = Some(SessionId(77));
    assert_eq!(kind(client.make(ROOT, "a", FileKind::File).await), ErrorKind::SessionExpired);
    assert_eq!(kind(client.call(&RenewSession { session: SessionId(77), released: Vec::new() }).await), ErrorKind::SessionExpired);
    client.call(&CloseSession { session: SessionId(77) }).await.unwrap();
}

#[tokio::test]
async fn waiting_mutations_share_a_commit_and_do_not_share_failures() {
    let client = Client::new();
    let before = client.status().await.revision;
    let names = ["a", "b", "a", "c"];
    let results = futures_util::future::join_all(names.map(|n| client.make(ROOT, n, FileKind::File))).await;
    let failed: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, false]);
    assert_eq!(client.status().await.revision, before + 1);
    let mut inos: Vec<_> = results.into_iter().flatten().map(|e| e.attributes.ino).collect();
    inos.dedup();
    assert_eq!(inos.len(), 3);
}

#[tokio::test]
async fn callers_that_keep_coming_keep_sharing_commits() {
    let client = Client::new();
    let before = client.status().await.revision;
    let caller = async |n: usize| {
        for i in 0..50 {
            client.file(ROOT, &format!("{n}-{i}")).await;
        }
    };
    let tasks: futures_util::stream::FuturesUnordered<_> = (0..8).map(caller).collect();
    futures_util::StreamExt::count(tasks).await;
    let commits = client.status().await.revision - before;
    assert!(commits <= 100, "400 creates of 8 callers took {commits} commits");
}

#[tokio::test]
async fn an_orphan_lives_until_every_session_of_its_time_has_let_go() {
    let mut one = Client::new();
    let mut two = one.other();
    let (first, second) = (one.open_session().await, two.open_session().await);
    let ino = one.file(ROOT, "f").await;
    one.remove(ROOT, "f", false).await.unwrap();
    let mut late = one.other();
    let third = late.open_session().await;
    let renew = |session, released: &[InodeId]| RenewSession { session, released: released.to_vec() };
    assert_eq!(one.call(&renew(first, &[])).await.unwrap().orphans, [ino]);
    assert_eq!(late.call(&renew(third, &[])).await.unwrap().orphans, []);
    one.call(&SetAttributes { uid: Some(9), ..SetAttributes::none(ino) }).await.unwrap();
    assert_eq!(one.call(&renew(first, &[ino])).await.unwrap().orphans, []);
    one.call(&renew(first, &[ino, ino, InodeId(999)])).await.unwrap();
    assert_eq!(two.nlink(ino).await, 0);
    assert_eq!(two.status().await.orphans, 1);
    two.call(&CloseSession { session: second }).await.unwrap();
    assert_eq!(kind(one.attributes(ino).await), ErrorKind::NotFound);
    let status = one.status().await;
    assert_eq!((status.orphans, status.inodes, status.sessions), (0, 2, 2));
}

#[tokio::test]
async fn many_orphans_come_in_rounds_even_if_the_first_stay_open() {
    let mut client = Client::new();
    let session = client.open_session().await;
    let count = Renewed::MAX_ORPHANS + 10;
    for i in 0..count {
        client.file(ROOT, &i.to_string()).await;
        client.remove(ROOT, &i.to_string(), false).await.unwrap();
    }
    let renew = RenewSession { session, released: Vec::new() };
    let (first, rest) = (client.call(&renew).await.unwrap(), client.call(&renew).await.unwrap());
    assert_eq!((first.orphans.len(), first.more, rest.orphans.len(), rest.more), (1000, true, 10, false));
    assert_eq!(client.call(&renew).await.unwrap().orphans, first.orphans, "and round again");
    client.call(&CloseSession { session }).await.unwrap();
    assert_eq!(client.status().await.orphans, 10, "a commit releases so many");
    client.directory.look(&mut Rounds::default()).await.unwrap();
    let status = client.status().await;
    assert_eq!((status.orphans, status.inodes), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_silent_session_expires_and_any_request_keeps_it() {
    let mut client = Client::new();
    let mut silent = client.other();
    client.open_session().await;
    let gone = silent.open_session().await;
    silent.file(ROOT, "f").await;
    client.remove(ROOT, "f", false).await.unwrap();
    let mut rounds = Rounds::default();
    for _ in 0..40 {
        tokio::time::advance(Duration::from_secs(1)).await;
        client.lookup(ROOT, "nothing").await.unwrap_err();
        client.directory.look(&mut rounds).await.unwrap();
    }
    let sessions = client.call(&Sessions {}).await.unwrap();
    assert_eq!(sessions.iter().map(|s| s.session).collect::<Vec<_>>(), [client.session.unwrap()]);
    assert_eq!(kind(silent.call(&RenewSession { session: gone, released: Vec::new() }).await), ErrorKind::SessionExpired);
    assert_eq!(kind(silent.make(ROOT, "g", FileKind::File).await), ErrorKind::SessionExpired);
    assert_eq!(client.status().await.orphans, 1, "the other session still has it");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stood_still_blames_nobody() {
    let mut client = Client::new();
    client.open_session().await;
    let server = client.register("a").await;
    let mut rounds = Rounds::default();
    client.directory.look(&mut rounds).await.unwrap();
    tokio::time::advance(Duration::from_secs(3600)).await;
    client.directory.look(&mut rounds).await.unwrap();
    assert_eq!(client.status().await.sessions, 1);
    let rows = client.call(&Servers {}).await.unwrap();
    assert_eq!((rows[0].server, rows[0].state), (server, Liveness::Alive));
}
