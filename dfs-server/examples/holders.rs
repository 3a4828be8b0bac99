//! Measures what leases cost: the latency of a change that N sessions hold a lease on
//! and acknowledge, and the memory of the directory service per session and per lease.
//!
//! `cargo run --release -p dfs-server --example holders -- PATH-OF-DFS-SERVER [PORT]`
//!
//! Starts a directory service of its own for each measurement; the holders are protocol
//! clients of this process, each with its own connections.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dfs_common::api::directory::{ClaimLeases, Claimed, Events, GetAttributes, Make, OpenSession, SetAttributes, Status};
use dfs_common::attributes::FileKind;
use dfs_common::clients::Caller;
use dfs_common::credentials::ClusterToken;
use dfs_common::ids::{InodeId, ROOT, SessionId};
use dfs_common::name::Name;
use dfs_common::transport::Http1;
use futures_util::future::{join_all, try_join_all};
use tokio::task::JoinHandle;

const TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN: &str = "only-for-this-measurement";

/// A directory service in a process and a data directory of its own.
struct Daemon {
    child: Child,
    url: String,
    token: ClusterToken,
    _data: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    async fn start(binary: &Path, port: u16) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let file = data.path().join("token");
        std::fs::write(&file, TOKEN)?;
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let mut command = Command::new(binary);
        command.args(["directory", "--log-level", "warn", "--port", &port.to_string()]);
        command.arg("--data").arg(data.path().join("data")).arg("--token-file").arg(&file);
        let child = command.spawn().with_context(|| format!("{}", binary.display()))?;
        let daemon = Self { child, url: format!("http://127.0.0.1:{port}"), token: ClusterToken::read(&file)?, _data: data };
        // Retries until it listens.
        daemon.caller()?.call(&Status {}).await?;
        Ok(daemon)
    }

    fn caller(&self) -> Result<Caller> {
        Ok(Caller::new(Arc::new(Http1::new(&self.url, &self.token)?), TIMEOUT))
    }

    /// Resident memory in bytes.
    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    async fn session(&self) -> Result<Caller> {
        let caller = self.caller()?;
        let open = OpenSession { host: "bench".into(), pid: std::process::id(), program: "holders".into(), mountpoint: "/mnt".into() };
        caller.set_session(caller.call(&open).await?.session);
        Ok(caller)
    }

    /// A session that holds nothing yet and acknowledges what comes.
    async fn holder(&self) -> Result<(Arc<Caller>, JoinHandle<()>)> {
        let caller = Arc::new(self.session().await?);
        let claimed = claim(&caller, 0, Vec::new()).await?;
        let task = tokio::spawn(acknowledge(caller.clone(), id(&caller), claimed.event));
        Ok((caller, task))
    }
}

fn id(caller: &Caller) -> SessionId {
    caller.session().expect("it was opened")
}

async fn claim(caller: &Caller, revision: u64, held: Vec<InodeId>) -> Result<Claimed> {
    Ok(caller.call(&ClaimLeases { session: id(caller), revision, held }).await?)
}

async fn acknowledge(caller: Arc<Caller>, session: SessionId, mut after: u64) {
    while let Ok(batch) = caller.call(&Events { session, after, wait_ms: 30_000 }).await {
        after = batch.events.last().map_or(after, |event| event.number);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, binary, rest @ ..] = args.as_slice() else { anyhow::bail!("usage: holders PATH-OF-DFS-SERVER [PORT]") };
    let (binary, port) = (Path::new(binary), rest.first().map_or(Ok(21_900), |port| port.parse()).context("PORT is a number")?);
    raise_file_limit();
    println!("| holders | changes | median | p99 |\n|---|---|---|---|");
    for (count, changes) in [(0, 3000), (1, 3000), (20, 1000), (200, 300)] {
        let daemon = Daemon::start(binary, port).await?;
        print_latency(&count.to_string(), &mut latency(&daemon, count, changes).await?);
    }
    let daemon = Daemon::start(binary, port).await?;
    let _others = hold(&daemon, 10).await?;
    print_latency("0, and 1,000,000 leases on other files", &mut latency(&daemon, 0, 3000).await?);
    drop(daemon);
    println!("\n| held | memory | each |\n|---|---|---|");
    let daemon = Daemon::start(binary, port).await?;
    sessions(&daemon, 1000).await?;
    drop(daemon);
    for count in [1, 10] {
        leases(&Daemon::start(binary, port).await?, count).await?;
    }
    Ok(())
}

fn print_latency(holders: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!("| {holders} | {} | {} us | {} us |", times.len(), at(0.5), at(0.99));
}

/// The times of `changes` changes of one file on which `count` sessions hold a lease each time.
async fn latency(daemon: &Daemon, count: usize, changes: u32) -> Result<Vec<Duration>> {
    let writer = daemon.session().await?;
    let name = Name::new(b"held")?;
    let make = Make::new(ROOT, name, FileKind::File, 0o644);
    let ino = writer.call(&make).await?.entry.attributes.ino;
    let holders = try_join_all((0..count).map(|_| daemon.holder())).await?;
    let mut times = Vec::new();
    for n in 0..changes {
        try_join_all(holders.iter().map(async |(caller, _)| caller.call(&GetAttributes { ino }).await)).await?;
        let change = SetAttributes { mode: Some(n & 0o777), ..SetAttributes::none(ino) };
        let start = Instant::now();
        writer.call(&change).await?;
        times.push(start.elapsed());
    }
    let sent = writer.call(&Status {}).await?.events;
    anyhow::ensure!(sent == count as u64 * u64::from(changes), "{sent} events were sent");
    holders.into_iter().for_each(|(_, task)| task.abort());
    Ok(times)
}

/// The memory of `count` sessions, without and with a request for events that waits.
async fn sessions(daemon: &Daemon, count: usize) -> Result<()> {
    let before = daemon.memory()?;
    let mut claimed = Vec::new();
    let caller = daemon.caller()?;
    for _ in 0..count {
        let open = OpenSession { host: "bench".into(), pid: 1, program: "holders".into(), mountpoint: "/mnt".into() };
        let session = caller.call(&open).await?.session;
        let event = caller.call(&ClaimLeases { session, revision: 0, held: Vec::new() }).await?.event;
        claimed.push((session, event));
    }
    report(&format!("{count} sessions"), daemon.memory()? - before, count);
    let tasks = claimed.into_iter().map(|(session, event)| Ok(tokio::spawn(acknowledge(Arc::new(daemon.caller()?), session, event))));
    let tasks = tasks.collect::<Result<Vec<_>>>()?;
    // All of them wait once their requests are counted.
    while caller.call(&Status {}).await?.requests.get("/v1/directory/events").is_none_or(|waiting| *waiting < count as u64) {
        tokio::task::yield_now().await;
    }
    report(&format!("{count} sessions with a connection each"), daemon.memory()? - before, count);
    tasks.iter().for_each(JoinHandle::abort);
    join_all(tasks).await;
    Ok(())
}

/// `count` sessions, each with as many leases as one may hold.
async fn hold(daemon: &Daemon, count: usize) -> Result<Vec<Caller>> {
    let callers = try_join_all((0..count).map(|_| daemon.session())).await?;
    let revision = claim(&callers[0], 0, Vec::new()).await?.revision;
    for caller in &callers {
        let held = (0..ClaimLeases::MAX_HELD as u64).map(|n| InodeId(1000 + n)).collect();
        anyhow::ensure!(claim(caller, revision, held).await?.lost.is_empty(), "nothing has changed");
    }
    Ok(callers)
}

/// The memory of the leases of `count` sessions.
async fn leases(daemon: &Daemon, count: usize) -> Result<()> {
    let before = daemon.memory()?;
    let callers = hold(daemon, count).await?;
    let held = callers[0].call(&Status {}).await?.leases as usize;
    report(&format!("{held} leases of {count} session(s)"), daemon.memory()? - before, held);
    Ok(())
}

fn report(what: &str, bytes: u64, count: usize) {
    println!("| {what} | {:.1} MiB | {} bytes |", bytes as f64 / f64::from(1 << 20), bytes / count as u64);
}

/// A thousand sessions have a thousand connections.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(e) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        eprintln!("limit of open files: {e}");
    }
}
