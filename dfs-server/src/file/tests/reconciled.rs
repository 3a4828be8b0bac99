//! What a server holds, compared with what the directory says of it.

use super::*;

#[tokio::test]
async fn a_version_whose_row_was_lost_is_indexed_again() {
    let bench = Bench::start(1, 1, 1).await;
    let file = bench.create("f").await;
    let entry = bench.write(&file, &content(400_000, 1)).await.unwrap();
    let what = VersionOf { ino: entry.attributes.ino, version: entry.attributes.version };
    let server = &bench.files[0].server;
    // As after a crash between the directory's commit and this server's own.
    let manifest = bench.client.manifest(&entry).await.unwrap();
    server
        .storage
        .index
        .remove(&[(what, manifest.hash())], u64::MAX, &|_, _| Some(index::Kept::new(Arc::new(manifest.clone()), manifest.hash())))
        .unwrap();
    assert!(bench.read_from(entry.layout.holders[0], &entry).await.unwrap() == content(400_000, 1));
    assert_eq!(server.storage.index.versions(), 1);
}

#[tokio::test]
async fn a_version_that_was_dropped_since_it_was_listed_stays_dropped() {
    let bench = Bench::start(1, 1, 1).await;
    let mut entry = bench.create("f").await;
    entry = bench.write(&entry, &content(400_000, 1)).await.unwrap();
    let (storage, manifest) = (&bench.files[0].server.storage, bench.client.manifest(&entry).await.unwrap());
    let claim = (VersionOf { ino: entry.attributes.ino, version: entry.attributes.version }, manifest.hash());
    // So that it could be made again from what is here.
    let kept = storage.hold(&Arc::new(upload::Upload::without_blocks(manifest.encode().into()).unwrap()));
    for seed in 2..4 {
        entry = bench.write(&entry, &content(400_000, seed)).await.unwrap();
    }
    until("dropped", async || !storage.index.has(claim).unwrap()).await;
    bench.files[0].server.compare(&[claim], Some(VersionOf { version: Version(0), ..claim.0 }), Some(claim.0)).await.unwrap();
    assert!(!storage.index.has(claim).unwrap());
    drop(kept);
}

#[tokio::test]
async fn a_file_of_more_versions_than_a_page_has_keeps_all_of_them() {
    let bench = Bench::keeping(2000, 1, 1, 1).await;
    let mut entry = bench.create("f").await;
    for n in 0..1010u32 {
        entry = bench.write(&entry, &n.to_le_bytes()).await.unwrap();
    }
    let server = &bench.files[0].server;
    server.storage.index.age();
    server.settle(entry.attributes.ino).await.unwrap();
    assert_eq!(server.storage.index.versions(), 1010);
}
