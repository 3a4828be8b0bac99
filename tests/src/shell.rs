//! Running programs in tests: bounded in time, with their output in the message when they fail.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::wait::within;

/// The longest that a script may run.
const LIMIT: Duration = Duration::from_secs(300);

/// What a program did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128 + signal where one ended it.
    pub code: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

/// Runs `script` in bash (-e, -u, pipefail) in `dir`.
pub fn attempt(dir: &Path, script: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(dir);
    command.env("HOME", dir).env("LC_ALL", "C.UTF-8").env("GIT_CONFIG_NOSYSTEM", "1");
    output(&mut command)
}

/// Runs `command` to its end; panics where that takes more than five minutes.
pub fn output(command: &mut Command) -> Output {
    use std::os::unix::process::ExitStatusExt;
    let mut capture = tempfile::tempfile().expect("temporary file");
    let clone = |f: &File| Stdio::from(f.try_clone().expect("descriptor"));
    let mut child = command.stdin(Stdio::null()).stdout(clone(&capture)).stderr(clone(&capture)).spawn().expect("program starts");
    let mut status = None;
    let ended = within(LIMIT, || {
        status = child.try_wait().expect("wait for a child");
        status.is_some()
    });
    if !ended {
        child.kill().ok();
    }
    let mut text = Vec::new();
    std::io::Seek::rewind(&mut capture).expect("rewind");
    capture.read_to_end(&mut text).expect("output");
    let text = String::from_utf8_lossy(&text).into_owned();
    let Some(status) = status else { panic!("{command:?} still runs after {} s\n{text}", LIMIT.as_secs()) };
    Output { code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)), text }
}

/// Runs `script` as [`attempt`] does; its output, or a panic that shows it.
#[track_caller]
pub fn run(dir: &Path, script: &str) -> String {
    let out = attempt(dir, script);
    assert!(out.code == 0, "exit code {} of:\n{script}\n---- output\n{}", out.code, tail(&out.text));
    out.text
}

/// The last 4,000 bytes or so.
fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(4000);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
