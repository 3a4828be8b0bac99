//! Many clients that do what an idle mount does: each has a session and a few leases,
//! waits for events, and renews its session at both services.

use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_common::api::directory::{ClaimLeases, Events, List, Lookup, OpenSession, Sessions};
use dfs_common::attributes::FileKind;
use dfs_common::clients::Cluster as Client;
use dfs_common::clients::cluster::connect_http1;
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::ROOT;
use dfs_common::name::Name;
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::{Cluster, bulk, sys};

/// Files on which every session holds a lease, besides that on their directory and the root.
const LEASED: u64 = 5;
const DIRECTORY: &str = "leased";
/// Two connections each, and those of the program itself.
const DESCRIPTORS_EACH: u64 = 4;

/// So many sessions, until it is dropped.
#[derive(Debug)]
pub(super) struct Crowd {
    ends: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Crowd {
    /// Opens `count` sessions of `cluster`; all of them hold their leases afterwards.
    pub(super) fn join(cluster: &Cluster, count: u64) -> Result<Self> {
        sys::want_descriptors(1000 + DESCRIPTORS_EACH * count)?;
        let (ends, ended) = watch::channel(false);
        let (says, ready) = channel();
        let (url, token) = (cluster.source().to_owned(), ClusterToken::new(cluster.token())?);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, async {
                let clients = open(&url, &token, count).await?;
                let _ = says.send(());
                // At all times, as clients that were not started together.
                let phase = |number: usize| (number as f64 + 0.5) / count as f64;
                let start = |(number, (client, after))| tokio::task::spawn_local(idle(client, after, phase(number), ended.clone()));
                let idle: Vec<_> = clients.into_iter().enumerate().map(start).collect();
                for session in idle {
                    session.await??;
                }
                Ok(())
            })
        });
        let mut crowd = Self { ends, thread: Some(thread) };
        crowd.wait(&ready)?;
        let rows = cluster.directory(&Sessions {})?;
        let holding = rows.iter().filter(|row| row.leases >= LEASED).count() as u64;
        ensure!(holding >= count, "{holding} of {count} sessions hold leases");
        Ok(crowd)
    }

    fn wait(&mut self, ready: &Receiver<()>) -> Result<()> {
        // The sender is gone where opening them failed.
        if ready.recv().is_ok() { Ok(()) } else { self.end().context("opening sessions") }
    }

    fn end(&mut self) -> Result<()> {
        let _ = self.ends.send(true);
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            eprintln!("a session ended: {e:#}");
        }
    }
}

/// Sessions with leases, each with the number of its last event.
async fn open(url: &str, token: &ClusterToken, count: u64) -> Result<Vec<(Rc<Client>, u64)>> {
    let mut clients = Vec::new();
    for number in 0..count {
        let mountpoint = format!("/mnt/{number}");
        let who = OpenSession { host: "growth".into(), pid: std::process::id(), program: "growth".into(), mountpoint };
        let client = Client::open(url, connect_http1(token), who, Duration::from_secs(60)).await?;
        let claim = ClaimLeases { session: client.id(), revision: 0, held: Vec::new() };
        let claimed = client.directory.call(&claim).await?;
        if number == 0 {
            let directory = client.directory.call(&bulk::make(ROOT, DIRECTORY, FileKind::Directory, 0o755)).await?.entry.attributes.ino;
            for file in 0..LEASED {
                client.directory.call(&bulk::make(directory, &file.to_string(), FileKind::File, 0o644)).await?;
            }
        }
        let lookup = Lookup { parent: ROOT, name: Name::new(DIRECTORY.as_bytes())? };
        let directory = client.directory.call(&lookup).await?.attributes.ino;
        client.directory.call(&List { ino: directory, after: None, limit: List::MAX_LIMIT }).await?;
        client.renew(Vec::new()).await?;
        clients.push((Rc::new(client), claimed.event));
    }
    Ok(clients)
}

/// As a mount that nobody uses; its first waits are shorter, by `phase` of 0 to 1.
async fn idle(client: Rc<Client>, mut after: u64, phase: f64, mut ended: watch::Receiver<bool>) -> Result<()> {
    let lease = Duration::from_millis(client.session().lease_ms);
    let mut share = phase;
    let renewing = Rc::clone(&client);
    let events = async {
        loop {
            let wait_ms = ((lease / 6).mul_f64(share).as_millis() as u64).max(1);
            share = 1.0;
            let wait = Events { session: client.id(), after, wait_ms };
            let batch = client.directory.call_within(&wait, lease).await?;
            after = batch.events.iter().map(|event| event.number).max().unwrap_or(after);
        }
    };
    let renewals = async {
        tokio::time::sleep((lease / 3).mul_f64(phase)).await;
        let mut closed = Vec::new();
        loop {
            // It has nothing open of what was removed, and says so.
            let renewed = renewing.renew(std::mem::take(&mut closed)).await?;
            closed = renewed.orphans;
            if closed.is_empty() {
                tokio::time::sleep(lease / 3).await;
            }
        }
    };
    let result: Result<()> = tokio::select! {
        result = events => result,
        result = renewals => result,
        _ = ended.wait_for(|ended| *ended) => Ok(()),
    };
    result
}
