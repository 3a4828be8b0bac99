//! What /proc says of the processes that ask.

use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

/// How far back a process is asked for those who started it.
const GENERATIONS: u32 = 16;

/// For so long nobody looks again which process and program a thread belongs to; no number is used for another thread that soon.
const REMEMBERED: Duration = Duration::from_millis(250);
/// So many threads are remembered.
const THREADS: NonZeroUsize = NonZeroUsize::new(256).expect("not 0");

/// The threads that asked last: a program that writes many files asks for each of them.
#[derive(Debug)]
pub(super) struct Processes(Mutex<LruCache<u32, Seen>>);

#[derive(Debug)]
struct Seen {
    at: Instant,
    process: u32,
    program: Arc<str>,
}

impl Default for Processes {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(THREADS)))
    }
}

impl Processes {
    /// The process behind a thread and its program, as they were a moment ago; for no thread, nobody.
    pub(super) fn of(&self, thread: u32) -> (u32, Arc<str>) {
        if thread == 0 {
            return (0, "".into());
        }
        if let Some(seen) = self.0.lock().get(&thread)
            && seen.at.elapsed() < REMEMBERED
        {
            return (seen.process, seen.program.clone());
        }
        let (process, program) = process_of(thread);
        let program: Arc<str> = program.into();
        self.0.lock().put(thread, Seen { at: Instant::now(), process, program: program.clone() });
        (process, program)
    }
}

/// Whether `process` was started by one of those that `is_one` accepts, or by their children.
pub(super) fn is_descendant(process: u32, is_one: impl Fn(u32) -> bool) -> bool {
    let mut at = process;
    for _ in 0..GENERATIONS {
        let Some(parent) = parent_of(at).filter(|parent| *parent > 1) else { return false };
        if is_one(parent) {
            return true;
        }
        at = parent;
    }
    false
}

/// The beginning of a thread's /proc status.
fn status_of(thread: u32) -> String {
    // The first lines hold what is asked for; reading on costs as much as a request.
    let mut buffer = [0; 256];
    let read = std::fs::File::open(format!("/proc/{thread}/status")).and_then(|mut file| file.read(&mut buffer)).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

fn value_of<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// The process behind a thread and its program, for whoever asks who holds a lock.
pub(super) fn process_of(thread: u32) -> (u32, String) {
    let status = status_of(thread);
    let process = value_of(&status, "Tgid:").and_then(|id| id.parse().ok()).unwrap_or(thread);
    (process, value_of(&status, "Name:").unwrap_or("").chars().take(64).collect())
}

fn parent_of(process: u32) -> Option<u32> {
    value_of(&status_of(process), "PPid:").and_then(|id| id.parse().ok())
}

/// The program that a process runs.
pub(super) fn program_of(process: u32) -> String {
    if process == 0 { String::new() } else { process_of(process).1 }
}
