//! What creates and removals cost through the service, JSON and SQLite included. Run with
//! `cargo test --release -p dfs-server --lib directory::tests::bench -- --ignored --nocapture`.

use std::time::Instant;

use super::*;
use crate::store::SqliteStore;

const CREATES: usize = 20_000;

#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn creates_and_listings() {
    for (callers, config) in [(1, config()), (1, keeping()), (8, config()), (8, keeping())] {
        println!("removed files are kept for {:?}:", config.keep.removed);
        let dir = tempfile::tempdir().unwrap();
        let mut client = Client::with(config, Arc::new(SqliteStore::open(&dir.path().join("directory.sqlite")).unwrap()));
        let session = client.open_session().await;
        for server in ["a", "b", "c"] {
            client.register(server).await;
        }
        let parent = client.dir(ROOT, "d").await;
        let caller = |slot: u16| {
            let mut client = client.other();
            client.session = Some(session);
            async move {
                for i in 0..CREATES / callers {
                    let name = name(&format!("file-{slot}-{i:06}.txt"));
                    let make = Make::new(parent, name, FileKind::File, 0o644);
                    client.call_as(&make, Some(Replay { slot: slot + 1, sequence: i as u64 + 1 })).await.unwrap();
                }
            }
        };
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers as u16).map(|slot| tokio::spawn(caller(slot))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        let each = start.elapsed() / CREATES as u32;
        let commits = client.status().await.revision;
        println!("{callers} callers: {each:?} a create, {:.0} creates/s, {commits} commits", 1.0 / each.as_secs_f64());
        let start = Instant::now();
        for _ in 0..100 {
            let list = Request::new(Method::Post, List::PATH).json(&List { ino: parent, after: None, limit: 1000 });
            assert_eq!(client.directory.clone().handle(list).await.status, 200);
        }
        println!("a page of 1,000 entries: {:?}", start.elapsed() / 100);
        let (start, found) = (Instant::now(), name("file-0-000100.txt"));
        for _ in 0..CREATES {
            client.call(&Lookup { parent, name: found.clone() }).await.unwrap();
        }
        println!("a lookup: {:?}", start.elapsed() / CREATES as u32);
        let remover = |slot: u16| {
            let mut client = client.other();
            client.session = Some(session);
            async move {
                for i in 0..CREATES / callers {
                    let remove = Remove { parent, name: name(&format!("file-{slot}-{i:06}.txt")), directory: false };
                    client.call_as(&remove, Some(Replay { slot: slot + 1, sequence: (CREATES + i) as u64 + 1 })).await.unwrap();
                }
            }
        };
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers as u16).map(|slot| tokio::spawn(remover(slot))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        let each = start.elapsed() / CREATES as u32;
        println!("a removal: {each:?}, {:.0} removals/s", 1.0 / each.as_secs_f64());
    }
}
