//! What /proc says of the processes that ask.

use std::io::Read;

/// How far back a process is asked for those who started it.
const GENERATIONS: u32 = 16;

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
