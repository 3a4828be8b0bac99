//! Measures what one small file costs through a running cluster: create, then commit
//! 4 KiB, one after the other.
//!
//! `cargo run --release -p dfs-server --example commit_latency -- URL TOKEN_FILE [FILES]`

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use dfs_common::api::directory::{Make, OpenSession};
use dfs_common::attributes::{FileKind, Timestamp};
use dfs_common::clients::Cluster;
use dfs_common::clients::cluster::connect_http1;
use dfs_common::clients::commit::{InMemory, NewVersion};
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::{ROOT, Token};
use dfs_common::name::Name;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, url, token, rest @ ..] = args.as_slice() else { anyhow::bail!("usage: commit_latency URL TOKEN_FILE [FILES]") };
    let files: u32 = rest.first().map_or(Ok(5000), |n| n.parse()).context("FILES is a number")?;
    let client = OpenSession { host: "bench".into(), pid: std::process::id(), program: "commit_latency".into(), mountpoint: String::new() };
    let connect = connect_http1(&ClusterToken::read(Path::new(token))?);
    let cluster = Cluster::open(url, connect, client, Duration::from_secs(10)).await?;
    let directory = make(&cluster, &format!("bench-{}", cluster.id()), ROOT, FileKind::Directory).await?;
    let (mut creates, mut commits) = (Vec::new(), Vec::new());
    let mut content = vec![0u8; 4096];
    for n in 0..files {
        content[..4].copy_from_slice(&n.to_le_bytes());
        content[4..12].copy_from_slice(&cluster.id().0.to_le_bytes());
        let start = Instant::now();
        let file = make(&cluster, &format!("f{n}"), directory.attributes.ino, FileKind::File).await?;
        creates.push(start.elapsed());
        let source = InMemory { content: Bytes::copy_from_slice(&content), block_bits: cluster.session().block_bits };
        let manifest = source.manifest()?;
        let version = NewVersion {
            ino: file.attributes.ino,
            token: Token(1),
            base: file.attributes.version,
            base_manifest: None,
            manifest: &manifest,
            mtime: Timestamp(i64::from(n)),
            durable: false,
            interim: false,
            goes_on: false,
            set: None,
            make: None,
        };
        let start = Instant::now();
        cluster.commit(&version, &file.layout.placement, &source).await?;
        commits.push(start.elapsed());
    }
    report("create", &mut creates);
    report("commit", &mut commits);
    cluster.close().await?;
    Ok(())
}

async fn make(cluster: &Cluster, name: &str, parent: dfs_common::ids::InodeId, kind: FileKind) -> Result<dfs_common::attributes::Entry> {
    let name = Name::new(name.as_bytes())?;
    let make = Make::new(parent, name, kind, 0o755);
    Ok(cluster.directory.call(&make).await?.entry)
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    let mean = times.iter().sum::<Duration>().as_micros() / times.len() as u128;
    println!("{what}: mean {mean} us, median {} us, p90 {} us, p99 {} us", at(0.5), at(0.9), at(0.99));
}
