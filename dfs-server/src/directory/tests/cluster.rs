//! File servers, placement, versions and missing copies.

use super::super::Pin;
use super::super::periodic::Rounds;
use super::*;

#[tokio::test]
async fn the_same_data_directory_keeps_its_id() {
    let client = Client::new();
    let (a, b) = (client.register("a").await, client.register("b").await);
    assert_ne!(a, b);
    assert_eq!(client.register("a").await, a);
    let row =
        |text: &str, store: &str| RegisterServer { name: text.to_owned(), store: store.to_owned(), url: "http://x".to_owned(), capacity: 1, used: 0 };
    assert_eq!(kind(client.call(&row("a", &"0".repeat(32))).await), ErrorKind::Exists);
    assert_eq!(kind(client.call(&row("", &"0".repeat(32))).await), ErrorKind::Invalid);
    assert_eq!(kind(client.call(&row("c", "zz")).await), ErrorKind::Invalid);
    assert_eq!(kind(client.call(&Heartbeat { server: ServerId(9), capacity: 0, used: 0, dropped: vec![] }).await), ErrorKind::NotFound);
}

#[tokio::test]
async fn new_files_spread_over_equal_servers() {
    let client = Client::new();
    for server in ["a", "b", "c"] {
        client.register(server).await;
    }
    let mut counts = std::collections::BTreeMap::new();
    for i in 0..60 {
        let entry = client.make(ROOT, &i.to_string(), FileKind::File).await.unwrap();
        assert_eq!(entry.layout.placement.len(), 2);
        *counts.entry(entry.layout.placement[0]).or_insert(0) += 1;
    }
    assert!(counts.len() == 3 && counts.values().all(|&n| (10..=30).contains(&n)), "primaries: {counts:?}");
}

#[tokio::test]
async fn full_servers_come_last_and_less_used_ones_first() {
    let client = Client::new();
    let servers = [client.register("a").await, client.register("b").await, client.register("c").await];
    let gib = 1u64 << 30;
    for (server, used) in servers.into_iter().zip([100 * gib - (10 << 20), 50 * gib, 10 * gib]) {
        client.call(&Heartbeat { server, capacity: 100 * gib, used, dropped: vec![] }).await.unwrap();
    }
    let entry = client.make(ROOT, "f", FileKind::File).await.unwrap();
    assert_eq!(entry.layout.placement, [servers[2], servers[1]]);
    let space = client.call(&StatFs {}).await.unwrap();
    // The second copy of what goes to the third server has its place on the two others.
    assert_eq!((space.capacity, space.available), (150 * gib, 50 * gib + (10 << 20)));
}

#[tokio::test]
async fn a_pin_holds_for_its_subtree() {
    let pins = vec![
        Pin { path: "/a".to_owned(), servers: vec!["one".to_owned()] },
        Pin { path: "/a/b".to_owned(), servers: vec!["two".to_owned(), "three".to_owned()] },
    ];
    let client = Client::with(Config { pins, ..config() }, Arc::new(MemoryStore::default()));
    let ids = [client.register("one").await, client.register("two").await, client.register("three").await];
    let a = client.dir(ROOT, "a").await;
    let b = client.dir(a, "b").await;
    let deep = client.dir(b, "deep").await;
    for _ in 0..3 {
        let (in_a, in_deep) = (client.make(a, "f", FileKind::File).await.unwrap(), client.make(deep, "f", FileKind::File).await.unwrap());
        assert_eq!(in_a.layout.placement, [ids[0]]);
        assert!(in_deep.layout.placement.len() == 2 && !in_deep.layout.placement.contains(&ids[0]));
        let place = Place { ino: in_a.attributes.ino, avoid: vec![ids[0]] };
        assert_eq!(kind(client.call(&place).await), ErrorKind::Unavailable);
        client.remove(a, "f", false).await.unwrap();
        client.remove(deep, "f", false).await.unwrap();
    }
}

#[tokio::test]
async fn publishing_checks_base_and_token_and_may_be_repeated() {
    let mut client = Client::new();
    client.open_session().await;
    let (a, b) = (client.register("a").await, client.register("b").await);
    let ino = client.file(ROOT, "f").await;
    let first = client.version(ino, 0, &[a, b]);
    let entry = client.call(&first).await.unwrap();
    assert_eq!((entry.attributes.version, entry.attributes.size, entry.attributes.stored), (Version(1), 100, 50));
    assert_eq!((entry.attributes.mtime, entry.layout.holders.clone()), (Timestamp(1234), vec![a, b]));
    assert_eq!(client.call(&first).await.unwrap(), entry);
    assert_eq!(client.call(&Publish { durable: true, ..first.clone() }).await.unwrap(), entry);
    assert_eq!(kind(client.call(&Publish { token: Token(9), ..first.clone() }).await), ErrorKind::Conflict);
    client.call(&Publish { token: Token(9), ..client.version(ino, 1, &[a]) }).await.unwrap();
    assert_eq!(kind(client.call(&Publish { token: Token(8), ..client.version(ino, 2, &[a]) }).await), ErrorKind::Fenced);
    let good = Publish { token: Token(9), ..client.version(ino, 2, &[a]) };
    for (bad, expected) in [
        (Publish { holders: vec![], ..good.clone() }, ErrorKind::Invalid),
        (Publish { holders: vec![ServerId(99)], ..good.clone() }, ErrorKind::Invalid),
        (Publish { session: SessionId(99), ..good.clone() }, ErrorKind::SessionExpired),
        (Publish { ino: ROOT, ..good.clone() }, ErrorKind::IsDirectory),
    ] {
        assert_eq!(kind(client.call(&bad).await), expected);
    }
    let rows = client.call(&Versions { ino }).await.unwrap();
    assert_eq!(rows.iter().map(|r| r.version.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((rows[0].by.as_str(), rows[0].holders.clone()), ("here test[7]", vec![a, b]));
}

#[tokio::test]
async fn old_versions_and_freed_files_become_orders_to_drop() {
    let mut client = Client::new();
    let session = client.open_session().await;
    let (a, b) = (client.register("a").await, client.register("b").await);
    let ino = client.file(ROOT, "f").await;
    for base in 0..5 {
        client.call(&client.version(ino, base, &[a, b])).await.unwrap();
    }
    let what = |version| VersionOf { ino, version: Version(version) };
    assert_eq!(client.call(&Versions { ino }).await.unwrap().len(), 3);
    assert_eq!(client.heartbeat(a).await.drop, [what(1), what(2)]);
    let held = client.call(&HeldVersions { server: b, after: Some(what(3)), ino: None }).await.unwrap();
    assert_eq!((held.versions.iter().map(|v| v.0).collect::<Vec<_>>(), held.next), (vec![what(4), what(5)], None));
    client.call(&Heartbeat { server: a, capacity: 1, used: 1, dropped: vec![what(1), what(2), what(77)] }).await.unwrap();
    assert_eq!(client.heartbeat(a).await.drop, []);
    assert_eq!(client.heartbeat(b).await.drop.len(), 2);
    client.remove(ROOT, "f", false).await.unwrap();
    client.call(&client.version(ino, 5, &[a])).await.unwrap();
    assert_eq!(client.heartbeat(a).await.drop, [what(3)], "an orphan can be written");
    client.call(&RenewSession { session, released: vec![ino] }).await.unwrap();
    assert_eq!(client.heartbeat(a).await.drop, [what(3), what(4), what(5), what(6)]);
    let left = client.call(&HeldVersions { server: a, after: None, ino: Some(ino) }).await.unwrap();
    assert_eq!(left, HeldPage::default());
}

#[tokio::test]
async fn a_missing_copy_is_ordered_from_the_server_that_should_have_it() {
    let mut client = Client::new();
    client.open_session().await;
    let [a, b, c] = [client.register("a").await, client.register("b").await, client.register("c").await];
    let ino = client.file(ROOT, "f").await;
    let publish = Publish { missing: vec![b], ..client.version(ino, 0, &[a]) };
    client.call(&publish).await.unwrap();
    assert_eq!(client.status().await.under_replicated, 1);
    assert_eq!((client.heartbeat(a).await.copy, client.heartbeat(c).await.copy), (vec![], vec![]));
    let what = VersionOf { ino, version: Version(1) };
    let order = CopyOrder { what, manifest: publish.manifest, from: vec![a] };
    assert_eq!(client.heartbeat(b).await.copy, [order]);
    client.call(&ReportCopy { server: b, what }).await.unwrap();
    assert_eq!(client.attributes(ino).await.unwrap().layout.holders, [a, b]);
    assert_eq!((client.status().await.under_replicated, client.heartbeat(b).await.copy), (0, vec![]));
    let stale = VersionOf { ino, version: Version(9) };
    client.call(&ReportCopy { server: b, what: stale }).await.unwrap();
    assert_eq!(client.heartbeat(b).await.drop, [stale], "nobody asked for that copy");
}

/// Lets `seconds` pass while `alive` send heartbeats.
async fn pass(client: &Client, rounds: &mut Rounds, seconds: u64, alive: &[ServerId]) {
    for _ in 0..seconds {
        tokio::time::advance(Duration::from_secs(1)).await;
        for &server in alive {
            client.heartbeat(server).await;
        }
        client.lookup(ROOT, "nothing").await.unwrap_err();
        client.directory.look(rounds).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn copies_of_a_dead_server_are_made_elsewhere() {
    let mut client = Client::new();
    client.open_session().await;
    let [a, b, c] = [client.register("a").await, client.register("b").await, client.register("c").await];
    let ino = client.file(ROOT, "f").await;
    client.call(&client.version(ino, 0, &[a, b])).await.unwrap();
    let mut rounds = Rounds::default();
    pass(&client, &mut rounds, 5, &[a, c]).await;
    let states: Vec<Liveness> = client.call(&Servers {}).await.unwrap().iter().map(|r| r.state).collect();
    assert_eq!(states, [Liveness::Alive, Liveness::Suspect, Liveness::Alive]);
    assert!(!client.make(ROOT, "g", FileKind::File).await.unwrap().layout.placement.contains(&b));
    assert_eq!(client.heartbeat(c).await.copy, [], "it may be back in a moment");
    pass(&client, &mut rounds, 8, &[a, c]).await;
    assert_eq!(client.status().await.under_replicated, 1);
    let order = client.heartbeat(c).await.copy;
    assert_eq!((order.len(), order[0].from.clone()), (1, vec![a]));
    client.call(&ReportCopy { server: c, what: order[0].what }).await.unwrap();
    let entry = client.attributes(ino).await.unwrap();
    assert_eq!((entry.layout.placement, client.status().await.under_replicated), (vec![a, c], 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_returns_needs_no_copy() {
    let mut client = Client::new();
    client.open_session().await;
    let (a, b) = (client.register("a").await, client.register("b").await);
    let ino = client.file(ROOT, "f").await;
    client.call(&client.version(ino, 0, &[a, b])).await.unwrap();
    let mut rounds = Rounds::default();
    pass(&client, &mut rounds, 13, &[a]).await;
    assert_eq!(client.status().await.under_replicated, 1);
    pass(&client, &mut rounds, 3, &[a, b]).await;
    assert_eq!(client.status().await.under_replicated, 0);
}

#[tokio::test]
async fn another_primary_must_hold_the_current_version() {
    let mut client = Client::new();
    client.open_session().await;
    let [a, b, c] = [client.register("a").await, client.register("b").await, client.register("c").await];
    let ino = client.file(ROOT, "f").await;
    let place = |avoid: &[ServerId]| Place { ino, avoid: avoid.to_vec() };
    assert_eq!(client.call(&place(&[a, b])).await.unwrap().layout.placement, [c]);
    client.call(&client.version(ino, 0, &[a, b])).await.unwrap();
    assert_eq!(client.call(&place(&[])).await.unwrap().layout.placement, [a, b]);
    assert_eq!(client.call(&place(&[a])).await.unwrap().layout.placement, [b, c]);
    assert_eq!(kind(client.call(&place(&[a, b])).await), ErrorKind::Unavailable);
    assert_eq!(kind(client.call(&Place { ino: ROOT, avoid: vec![] }).await), ErrorKind::Invalid);
}
