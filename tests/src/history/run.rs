//! Several clients side by side, each a thread with a mount of its own, and the checker
//! over all they did. A run is a row of stretches: the clients work, stop, look at
//! everything once, and the log is checked; so memory stays bounded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::check::{Checker, Violation};
use super::client::Client;
use super::record::{Names, Operation, Outcome};
use crate::within;

/// A call that takes longer than this, when all is well again, hangs.
const HANGS: Duration = Duration::from_secs(100);

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Operations by word.
    pub counts: BTreeMap<&'static str, u64>,
    /// Those that ended in ESTALE, by word.
    pub stale: BTreeMap<&'static str, u64>,
    /// Unclear ones, by word and errno.
    pub unclear: BTreeMap<(&'static str, i32), u64>,
    /// The longest of each, in milliseconds.
    pub longest_ms: BTreeMap<&'static str, u64>,
    /// Time of the clients' work.
    pub worked: Duration,
    /// Time of the checker.
    pub checked: Duration,
}

impl Stats {
    fn add(&mut self, op: &Operation) {
        let word = op.call.word();
        *self.counts.entry(word).or_default() += 1;
        match op.outcome {
            Outcome::Stale => *self.stale.entry(word).or_default() += 1,
            Outcome::Unknown(errno) => *self.unclear.entry((word, errno)).or_default() += 1,
            _ => {}
        }
        let longest = self.longest_ms.entry(word).or_default();
        *longest = (*longest).max((op.end - op.start) / 1_000_000);
    }

    /// All operations.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} operations in {:.1} s, checked in {:.1} s: {:?}",
            self.total(),
            self.worked.as_secs_f64(),
            self.checked.as_secs_f64(),
            self.counts
        )?;
        write!(f, "longest (ms): {:?}; stale: {:?}; unclear: {:?}", self.longest_ms, self.stale, self.unclear)
    }
}

/// Clients, and what the checker knows of them.
#[derive(Debug)]
pub struct Run {
    clients: Vec<Client>,
    checker: Checker,
    /// Counts so far.
    pub stats: Stats,
}

impl Run {
    /// One client for each of `directories`, which are one and the same empty directory on different mounts.
    pub fn new(directories: &[PathBuf], names: Names, seed: u64) -> Self {
        let clock = Instant::now();
        let client = |(n, dir): (usize, &PathBuf)| Client::new(n as u8, dir.clone(), names, seed, clock);
        Self { clients: directories.iter().enumerate().map(client).collect(), checker: Checker::new(names), stats: Stats::default() }
    }

    /// The shared directory `name`, made on the first of `mounts`, as every one of them sees it.
    pub fn shared(mounts: &[&Path], name: &str) -> std::io::Result<Vec<PathBuf>> {
        let all: Vec<PathBuf> = mounts.iter().map(|m| m.join(name)).collect();
        std::fs::create_dir(&all[0])?;
        Ok(all)
    }

    /// Lets the clients work for `duration`, and for as long as `during`, which is called meanwhile, takes; then checks.
    ///
    /// Panics where a client does not come back.
    pub fn stretch(&mut self, duration: Duration, during: impl FnOnce()) -> Result<(), Box<Violation>> {
        let start = Instant::now();
        let (stop, barrier) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(self.clients.len())));
        let threads: Vec<JoinHandle<Client>> = self.clients.drain(..).map(|client| spawn(client, &stop, &barrier)).collect();
        during();
        within(duration.saturating_sub(start.elapsed()), || threads.iter().any(JoinHandle::is_finished));
        stop.store(true, Ordering::Relaxed);
        let all = within(HANGS, || threads.iter().all(JoinHandle::is_finished));
        let late: Vec<usize> = (0..threads.len()).filter(|&n| !threads[n].is_finished()).collect();
        assert!(all, "clients {late:?} did not come back within {HANGS:?}: a call hangs (or the others wait for a client that has panicked)");
        self.clients = threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).collect();
        self.stats.worked += start.elapsed();
        self.check()
    }

    fn check(&mut self) -> Result<(), Box<Violation>> {
        let log: Vec<Operation> = self.clients.iter_mut().flat_map(Client::take_log).collect();
        log.iter().for_each(|op| self.stats.add(op));
        let start = Instant::now();
        let kept = std::env::var_os("DFS_TEST_HISTORY").map(|path| (path, log.clone()));
        let result = self.checker.extend(log);
        if let (Err(_), Some((path, mut log))) = (&result, kept) {
            log.sort_by_key(|op| op.start);
            let lines: Vec<String> = log.iter().map(|op| format!("{op:?}\n")).collect();
            std::fs::write(path, lines.concat()).expect("DFS_TEST_HISTORY is a file");
        }
        self.stats.checked += start.elapsed();
        result
    }

    /// The most possibilities that the checker had at one time, and the operations that may still happen.
    pub fn ambiguity(&self) -> (usize, usize) {
        (self.checker.most(), self.checker.open_ends())
    }
}

fn spawn(mut client: Client, stop: &Arc<AtomicBool>, barrier: &Arc<Barrier>) -> JoinHandle<Client> {
    let (stop, barrier) = (Arc::clone(stop), Arc::clone(barrier));
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            client.step();
        }
        barrier.wait();
        client.audit();
        client
    })
}
