//! Daemons as child processes: started with a log, signalled by pid, ended on drop.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::sys;
use crate::wait::{eventually, within};

/// Where the binaries of this build are; `DFS_TEST_BINARIES` names another directory.
///
/// Panics where one is missing: a suite that tests nothing must not pass.
pub fn binary(name: &str) -> PathBuf {
    let path = binaries().join(name);
    assert!(path.is_file(), "{} is missing: build the workspace first (cargo build --workspace, with the profile of this test)", path.display());
    path
}

/// The directory of [`binary`].
pub fn binaries() -> PathBuf {
    if let Some(dir) = std::env::var_os("DFS_TEST_BINARIES") {
        return PathBuf::from(dir);
    }
    let program = std::env::current_exe().expect("a program has a path");
    let dir = program.parent().expect("a program is in a directory");
    // A test is TARGET/PROFILE/deps/test-hash, a program of this crate TARGET/PROFILE/program.
    if dir.ends_with("deps") { dir.parent().expect("tests run from the target directory") } else { dir }.to_owned()
}

/// The root of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a member of the workspace").to_owned()
}

/// A port on 127.0.0.1 that nobody listens on, below the range that outgoing connections use,
/// so that it is still free when a killed daemon wants it back.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` such ports in a row, none of which this process gives out again before it has given out all others.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u16 = 22_000;
    const COUNT: u16 = 9_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 90) as u16 * 100;
    for _ in 0..COUNT {
        let at = start.wrapping_add(NEXT.fetch_add(count, Ordering::Relaxed)) % COUNT;
        let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if at + count <= COUNT && (FIRST + at..FIRST + at + count).all(is_free) {
            return FIRST + at;
        }
    }
    panic!("no free port");
}

/// `program` with these limits of descriptors, (soft, hard), if any.
pub fn with_descriptors(program: &Path, limits: Option<(u32, u32)>) -> Command {
    match limits {
        Some((soft, hard)) => {
            let mut command = Command::new("prlimit");
            command.arg(format!("--nofile={soft}:{hard}")).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// How many descriptors the process `pid` has.
pub fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// One daemon, running or not.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    log: PathBuf,
    environment: Vec<(String, String)>,
    descriptors: Option<u32>,
    /// Of a child that was not waited for.
    pid: Option<i32>,
}

impl Daemon {
    /// Not started yet. Its output is appended to `DIR/NAME.log`.
    pub fn new(name: &str, program: PathBuf, args: Vec<OsString>, dir: &Path) -> Self {
        Self { name: name.to_owned(), program, args, log: dir.join(format!("{name}.log")), environment: Vec::new(), descriptors: None, pid: None }
    }

    /// With these variables, from the next start on.
    pub fn set_environment(&mut self, environment: &[(String, String)]) {
        self.environment = environment.to_vec();
    }

    /// With so many descriptors at the most, from the next start on.
    pub fn set_descriptors(&mut self, descriptors: Option<u32>) {
        self.descriptors = descriptors;
    }

    /// Starts it.
    pub fn start(&mut self) {
        assert!(self.pid.is_none(), "{} runs already", self.name);
        let mut command = with_descriptors(&self.program, self.descriptors.map(|n| (n, n)));
        command.args(&self.args).stdin(Stdio::null()).env("RUST_BACKTRACE", "1").envs(self.environment.iter().cloned());
        let log = self.log.clone();
        let started = sys::apart(move || {
            let log = File::options().create(true).append(true).open(log)?;
            let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
            // It may have a descriptor, whose number is another file's elsewhere.
            Ok::<_, io::Error>(ManuallyDrop::new(child).id() as i32)
        });
        self.pid = Some(started.unwrap_or_else(|e| panic!("{}: {e}", self.program.display())));
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid.unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// False once it has ended by itself.
    pub fn alive(&self) -> bool {
        self.pid.is_some_and(|pid| !sys::has_ended(pid))
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(pid) = self.pid.take() {
            sys::signal(pid, libc::SIGKILL);
            sys::wait(pid);
        }
    }

    /// SIGTERM; its exit status, or a panic when it is still there after 20 s.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.pid();
        sys::signal(pid, libc::SIGTERM);
        let ended = within(Duration::from_secs(20), || sys::has_ended(pid));
        assert!(ended, "{} does not end on SIGTERM\n{}", self.name, self.log_tail(30));
        self.pid = None;
        sys::wait(pid)
    }

    /// It stands still until what is returned is dropped.
    #[must_use]
    pub fn stop(&self) -> Stopped {
        Stopped::new(self.pid())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All it has said.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// The last lines of its log, for messages.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.name, &self.log(), lines)
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        rss(self.pid())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last `lines` of `text` below a headline.
pub fn tail(name: &str, text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    format!("---- {name}\n{}\n", all[from..].join("\n"))
}

/// A process that stands still until this is dropped. A test that fails meanwhile has files to close, which would wait for it for ever:
/// so this has to be dropped before the files that it serves.
#[derive(Debug)]
pub struct Stopped(i32);

impl Stopped {
    /// SIGSTOP, and waits until each of its threads has stopped: where the processors are busy they go on working for a while.
    /// One that waits inside the kernel and takes no signals there (D) stops before it runs again. A mount's may wait there for
    /// what only the mount ends.
    pub fn new(pid: i32) -> Self {
        let stopped = Self(pid);
        sys::signal(pid, libc::SIGSTOP);
        eventually(10, "it stands still", || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|e| panic!("process {pid}: {e}"));
            // Some may have ended since.
            let states: Vec<char> = threads.flatten().filter_map(|thread| state_of(&thread.path())).collect();
            // The first that stops tells the others to.
            states.contains(&'T') && states.iter().all(|state| ['T', 'D'].contains(state))
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        sys::signal(self.0, libc::SIGCONT);
    }
}

/// What a thread is doing, as a letter of proc(5); `None` where it has ended.
fn state_of(thread: &Path) -> Option<char> {
    let status = std::fs::read_to_string(thread.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("State:\t"))?.chars().next()
}

/// Resident memory of a process in bytes.
pub fn rss(pid: i32) -> u64 {
    status_kib(pid, "VmRSS:")
}

/// The highest resident memory that a process ever had, in bytes.
pub fn peak_rss(pid: i32) -> u64 {
    status_kib(pid, "VmHWM:")
}

/// Processor time that a process has taken, in user and kernel mode.
pub fn cpu_time(pid: i32) -> std::time::Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_else(|e| panic!("process {pid}: {e}"));
    // Behind the name, which may hold anything; Linux counts in hundredths of a second for everybody.
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ').collect();
    let ticks: u64 = [fields[11], fields[12]].iter().map(|f| f.parse::<u64>().expect("a number of ticks")).sum();
    std::time::Duration::from_millis(ticks * 10)
}

fn status_kib(pid: i32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|e| panic!("process {pid}: {e}"));
    let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("process {pid} has no {key}"));
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
    kib << 10
}

/// The process whose command line holds `argument` as one whole argument and whose program is `program`.
pub fn find(program: &str, argument: &Path) -> Option<i32> {
    use std::os::unix::ffi::OsStrExt;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = line.split(|&b| b == 0);
        let first = words.next().unwrap_or_default();
        if Path::new(std::ffi::OsStr::from_bytes(first)).file_name() == Some(program.as_ref()) && words.any(|w| w == argument.as_os_str().as_bytes())
        {
            return Some(pid);
        }
    }
    None
}
