//! Many files through the API, without a mount: what a test about size starts from.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use dfs_common::api::directory::Make;
use dfs_common::attributes::{Entry, FileKind, Timestamp};
use dfs_common::clients::commit::{InMemory, NewVersion};
use dfs_common::clients::{Cluster as Client, WriteLock};
use dfs_common::ids::{InodeId, ROOT};
use dfs_common::name::Name;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::Cluster;

/// A request for a new entry that belongs to root.
pub fn make(parent: InodeId, name: &str, kind: FileKind, mode: u32) -> Make {
    Make::new(parent, Name::new(name.as_bytes()).expect("a name"), kind, mode)
}

/// Creates a file with content through `client`; its write lock is given back.
pub async fn write(client: &Client, parent: InodeId, name: &str, content: Bytes) -> Result<Entry> {
    let entry = client.directory.call(&make(parent, name, FileKind::File, 0o644)).await.context("make")?.entry;
    replace(client, &entry, content).await
}

/// Publishes `content` as the next version of `entry`.
pub async fn replace(client: &Client, entry: &Entry, content: Bytes) -> Result<Entry> {
    client.learn(entry).await?;
    let ino = entry.attributes.ino;
    let lock = WriteLock { ino, request: client.next_lock_request(), pid: std::process::id(), program: "dfs-tests", fresh: entry.layout.fresh };
    let token = client.acquire_lock(lock, Some(Duration::from_secs(30)), false).await.context("lock")?;
    let source = InMemory { content, block_bits: client.session().block_bits };
    let manifest = source.manifest()?;
    let new = NewVersion {
        ino,
        token,
        base: entry.attributes.version,
        base_manifest: None,
        manifest: &manifest,
        mtime: Timestamp::from_system_time(std::time::SystemTime::now()),
        durable: false,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    let published = client.commit(&new, &entry.layout.placement, &source).await.map(|published| published.0).context("commit");
    client.release_lock(ino, token).await.context("release")?;
    published
}

/// Creates `count` small files in directories of 1,000, with `parallel` requests under way.
/// File N is `bulk/D/fN` with the content `content of N` and a newline.
pub fn fill(cluster: &Cluster, count: u32, parallel: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = cluster.client(Duration::from_secs(60)).await?;
        let top = client.directory.call(&make(ROOT, "bulk", FileKind::Directory, 0o755)).await?.entry;
        let mut dirs = Vec::new();
        for d in 0..count.div_ceil(1000) {
            let dir = client.directory.call(&make(top.attributes.ino, &d.to_string(), FileKind::Directory, 0o755)).await?.entry;
            dirs.push(dir.attributes.ino);
        }
        let writes = (0..count).map(|n| {
            let (client, parent) = (&client, dirs[(n / 1000) as usize]);
            async move { write(client, parent, &format!("f{n}"), format!("content of {n}\n").into()).await.map(drop) }
        });
        stream::iter(writes).buffer_unordered(parallel as usize).try_collect::<()>().await?;
        client.close().await?;
        anyhow::Ok(())
    })
}
