//! Running programs in tests: bounded in time, with their output in the message when they fail.

use std::io::{self, Read, Seek};
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::sys;
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

/// Runs `command`, which is left empty, to its end; panics where that takes more than five minutes. It inherits no open file.
pub fn output(command: &mut Command) -> Output {
    let command = mem::replace(command, Command::new(""));
    let shown = format!("{command:?}");
    let work = move || ends(command);
    // A thread that is another user has to start its programs by itself: they are whoever starts them.
    let (status, text) = if sys::is_root() { sys::apart(work) } else { work() }.unwrap_or_else(|e| panic!("{shown}: {e}"));
    let Some(status) = status else { panic!("{shown} still runs after {} s\n{text}", LIMIT.as_secs()) };
    Output { code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)), text }
}

/// What it ended with, unless it had to be killed, and its output.
fn ends(mut command: Command) -> io::Result<(Option<ExitStatus>, String)> {
    let mut capture = tempfile::tempfile()?;
    let mut child = command.stdin(Stdio::null()).stdout(capture.try_clone()?).stderr(capture.try_clone()?).spawn()?;
    let mut status = Ok(None);
    let ended = within(LIMIT, || {
        status = child.try_wait();
        !matches!(status, Ok(None))
    });
    if !ended {
        child.kill().ok();
    }
    let mut text = Vec::new();
    capture.rewind()?;
    capture.read_to_end(&mut text)?;
    Ok((status?, String::from_utf8_lossy(&text).into_owned()))
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
