//! What processes ask the kernel for: system calls by number, and what the kernel's FUSE
//! asks a mount, by operation. Counted by tracing them (ptrace), which makes them slower and
//! changes nothing else.
//!
//! It knows nothing of files and requests; who uses it says what a number means.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::sys::{self, At, Traced, wait_traced};

/// Wakes the thread that traces: nobody minds it, and it is never delivered.
const WAKE: i32 = libc::SIGWINCH;

/// Numbers of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// System calls begun, by number.
    pub calls: BTreeMap<i64, u64>,
    /// Requests that it has read from /dev/fuse, by the kernel's number of the operation.
    pub fuse: BTreeMap<u32, u64>,
}

impl Asked {
    /// All system calls.
    pub fn all(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Of these.
    pub fn of(&self, calls: &[i64]) -> u64 {
        calls.iter().filter_map(|call| self.calls.get(call)).sum()
    }

    /// What has come since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        fn less<K: Ord + Copy>(now: &BTreeMap<K, u64>, before: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
            now.iter().map(|(key, count)| (*key, count - before.get(key).copied().unwrap_or_default())).filter(|(_, count)| *count > 0).collect()
        }
        Self { calls: less(&self.calls, &before.calls), fuse: less(&self.fuse, &before.fuse) }
    }
}

#[derive(Debug)]
struct Shared {
    /// By process.
    counts: Mutex<BTreeMap<i32, Asked>>,
    ends: AtomicBool,
}

/// Processes that are traced, until it is dropped.
#[derive(Debug)]
pub struct Trace {
    pids: Vec<i32>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Trace {
    /// Begins with all threads but those that are called as in `but`; needs the right to trace them. Panics where one cannot be traced.
    pub fn begin(pids: &[i32], but: &'static [&'static str]) -> Self {
        let shared = Arc::new(Shared { counts: Mutex::default(), ends: AtomicBool::new(false) });
        let (says, begun) = channel();
        let (tracing, of) = (Arc::clone(&shared), pids.to_vec());
        let thread = std::thread::spawn(move || Tracer::new(&of, &tracing, but).run(&says));
        let this = Self { pids: pids.to_vec(), shared, thread: Some(thread) };
        begun.recv().expect("every process can be traced");
        this
    }

    /// The numbers of `pid` so far.
    pub fn asked(&self, pid: i32) -> Asked {
        let counts = self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&pid).cloned().unwrap_or_default()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // Any of them that still lives.
        self.pids.iter().for_each(|pid| sys::signal(*pid, WAKE));
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// One traced process.
#[derive(Debug)]
struct Process {
    pid: i32,
    memory: File,
    /// Its descriptors of /dev/fuse.
    fuse: BTreeSet<u64>,
}

impl Process {
    fn new(pid: i32) -> Self {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap_or_else(|e| panic!("process {pid}: {e}"));
        let is_fuse = |path: &Path| std::fs::read_link(path).is_ok_and(|to| to == Path::new("/dev/fuse"));
        let number = |path: &Path| path.file_name()?.to_str()?.parse().ok();
        let fuse = descriptors.flatten().map(|entry| entry.path()).filter(|path| is_fuse(path)).filter_map(|path| number(&path)).collect();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap_or_else(|e| panic!("the memory of process {pid}: {e}"));
        Self { pid, memory, fuse }
    }

    /// The operation of the request at `address`: the second word of `fuse_in_header`.
    fn operation(&self, address: u64) -> Option<u32> {
        let mut word = [0; 4];
        self.memory.read_exact_at(&mut word, address + 4).ok()?;
        Some(u32::from_ne_bytes(word))
    }
}

/// The state of the thread that traces.
#[derive(Debug)]
struct Tracer<'a> {
    shared: &'a Shared,
    processes: Vec<Process>,
    /// Names of threads that are left alone.
    but: &'static [&'static str],
    /// Which process a thread is of, and the read of a FUSE request that it is in: where to.
    threads: BTreeMap<Traced, (usize, Option<u64>)>,
}

impl<'a> Tracer<'a> {
    fn new(pids: &[i32], shared: &'a Shared, but: &'static [&'static str]) -> Self {
        Self { shared, processes: pids.iter().map(|pid| Process::new(*pid)).collect(), but, threads: BTreeMap::new() }
    }

    /// All threads, those too that are started meanwhile.
    fn begin(&mut self) {
        for at in 0..self.processes.len() {
            let tasks = format!("/proc/{}/task", self.processes[at].pid);
            loop {
                let known = self.threads.len();
                for entry in std::fs::read_dir(&tasks).unwrap_or_else(|e| panic!("{tasks}: {e}")).flatten() {
                    let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                    let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                    if self.threads.contains_key(&Traced(thread)) || self.but.contains(&name.trim_end()) {
                        continue;
                    }
                    match Traced::begin(thread) {
                        Ok(traced) => drop(self.threads.insert(traced, (at, None))),
                        // It has ended, or a traced one has started it.
                        Err(e) if Path::new(&format!("{tasks}/{thread}")).exists() && e.raw_os_error() != Some(libc::EPERM) => {
                            panic!("thread {thread} cannot be traced: {e}")
                        }
                        Err(_) => {}
                    }
                }
                if self.threads.len() == known {
                    break;
                }
            }
            assert!(self.threads.values().any(|(of, _)| *of == at), "process {} cannot be traced", self.processes[at].pid);
        }
    }

    fn run(mut self, says: &Sender<()>) {
        self.begin();
        let _ = says.send(());
        let mut ending = false;
        while let Ok(Some((thread, status))) = wait_traced() {
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.threads.remove(&thread);
            } else if libc::WIFSTOPPED(status) {
                let signal = self.stopped(thread, status);
                // One that was killed meanwhile reports its end next.
                if self.shared.ends.load(Ordering::SeqCst) {
                    self.threads.remove(&thread);
                    let _ = thread.end(signal.unwrap_or(0));
                } else {
                    let _ = signal.map_or_else(|| thread.listen(), |signal| thread.go_on(signal));
                }
            }
            if self.shared.ends.load(Ordering::SeqCst) && !ending {
                ending = true;
                self.threads.keys().for_each(|thread| drop(thread.stop()));
            }
            if ending && self.threads.is_empty() {
                return;
            }
        }
    }

    /// Takes note of why it has stopped. The signal to go on with, `None` where it is to stay stopped.
    fn stopped(&mut self, thread: Traced, status: i32) -> Option<i32> {
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => {
                self.count(thread);
                Some(0)
            }
            0 if signal == WAKE => Some(0),
            0 => Some(signal),
            libc::PTRACE_EVENT_STOP if matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => None,
            // A new thread, or one that has started one.
            _ => Some(0),
        }
    }

    fn count(&mut self, thread: Traced) {
        let at = self.process_of(thread);
        let Some((at, reading)) = at.and_then(|at| Some((at, &mut self.threads.get_mut(&thread)?.1))) else { return };
        let process = &self.processes[at];
        let counts = || self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match thread.call() {
            Ok(At::Entry(call, arguments)) => {
                let call = call as i64;
                *reading = (call == libc::SYS_read && process.fuse.contains(&arguments[0])).then_some(arguments[1]);
                *counts().entry(process.pid).or_default().calls.entry(call).or_default() += 1;
            }
            Ok(At::Exit(result)) => {
                let operation = reading.take().filter(|_| result > 0).and_then(|address| process.operation(address));
                if let Some(operation) = operation {
                    *counts().entry(process.pid).or_default().fuse.entry(operation).or_default() += 1;
                }
            }
            Ok(At::Elsewhere) | Err(_) => {}
        }
    }

    /// Which process `thread` is of; one that has just been started is not known yet.
    fn process_of(&mut self, thread: Traced) -> Option<usize> {
        if let Some((at, _)) = self.threads.get(&thread) {
            return Some(*at);
        }
        let at = self.processes.iter().position(|process| Path::new(&format!("/proc/{}/task/{}", process.pid, thread.0)).exists())?;
        self.threads.insert(thread, (at, None));
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::within;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn calls_of_a_process_are_counted_and_it_goes_on() {
        // Each line that it reads is written back.
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut exchange = || {
            use std::io::{Read, Write};
            to.write_all(b"x").unwrap();
            from.read_exact(&mut [0]).unwrap();
        };
        exchange();
        let trace = Trace::begin(&[pid], &[]);
        exchange();
        let before = trace.asked(pid);
        (0..10).for_each(|_| exchange());
        let after = trace.asked(pid).since(&before);
        assert_eq!(after.of(&[libc::SYS_write]), 10, "{after:?}");
        assert!((9..=11).contains(&after.of(&[libc::SYS_read])) && after.all() <= 22 && after.fuse.is_empty(), "{after:?}");
        drop(trace);
        exchange();
        let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(within(Duration::from_secs(5), || status().contains("TracerPid:\t0\n")), "{}", status());
        drop(to);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_process_that_is_killed_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let trace = Trace::begin(&[child.id() as i32], &[]);
        child.kill().unwrap();
        drop(trace);
        child.wait().ok();
        assert!(!crate::mount::running(child.id() as i32));
    }
}
