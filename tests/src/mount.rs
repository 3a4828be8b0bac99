//! A mount: dfs-mount run as mount(8) runs it, with a cache of its own; unmounted and
//! ended on drop.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Cluster;
use crate::process::{Stopped, binary, find, peak_rss, rss, with_descriptors};
use crate::shell;
use crate::sys;
use crate::wait::within;

/// One mount.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    cache: PathBuf,
    log: PathBuf,
    pid: i32,
    options: String,
    source: String,
    environment: Vec<(String, String)>,
    descriptors: Option<(u32, u32)>,
}

impl Mount {
    /// Mounts `cluster` at a fresh directory called `name`; the error is what dfs-mount printed.
    pub fn new(cluster: &Cluster, name: &str, options: &str) -> Result<Self> {
        Self::of(cluster, name, cluster.source(), options, &[])
    }

    /// The same with these limits of descriptors: (soft, hard).
    pub fn limited(cluster: &Cluster, name: &str, descriptors: (u32, u32)) -> Result<Self> {
        let mut mount = Self::prepared(cluster, name, cluster.source(), "", &[])?;
        mount.descriptors = Some(descriptors);
        mount.start()?;
        Ok(mount)
    }

    /// The same from `source`, with these variables.
    pub fn of(cluster: &Cluster, name: &str, source: &str, options: &str, environment: &[(String, String)]) -> Result<Self> {
        let mut mount = Self::prepared(cluster, name, source, options, environment)?;
        mount.start()?;
        Ok(mount)
    }

    fn prepared(cluster: &Cluster, name: &str, source: &str, options: &str, environment: &[(String, String)]) -> Result<Self> {
        let dir = cluster.dir();
        let (path, cache, log) = (dir.join(name), dir.join(format!("{name}.cache")), dir.join(format!("{name}.log")));
        std::fs::create_dir_all(&path)?;
        std::fs::create_dir_all(&cache)?;
        let mut all = format!("token_file={},cache_dir={},log_file={},allow_other", cluster.token_file().display(), cache.display(), log.display());
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        let (source, environment) = (source.to_owned(), environment.to_vec());
        Ok(Self { path, cache, log, pid: 0, options: all, source, environment, descriptors: None })
    }

    /// Mounts again after [`Mount::kill`] or [`Mount::unmount`], with the same cache.
    pub fn start(&mut self) -> Result<()> {
        let mut command = with_descriptors(&binary("dfs-mount"), self.descriptors);
        command.arg(&self.source).arg(&self.path).arg("-o").arg(&self.options).envs(self.environment.iter().cloned());
        let out = shell::output(command.stdin(Stdio::null()));
        if out.code != 0 {
            bail!("exit code {}: {}", out.code, out.text);
        }
        // The program exits 0 once the mount is ready, so this is no wait.
        if !is_mounted(&self.path) {
            bail!("dfs-mount says that it is ready, but {} is not mounted: {}", self.path.display(), out.text);
        }
        self.pid = find("dfs-mount", &self.path).context("no dfs-mount process has this mount point")?;
        Ok(())
    }

    /// With these variables, from the next start on.
    pub fn set_environment(&mut self, environment: &[(String, String)]) {
        self.environment = environment.to_vec();
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path below it.
    pub fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// Its cache directory.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The driver's process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Resident memory of the driver in bytes.
    pub fn rss(&self) -> u64 {
        rss(self.pid)
    }

    /// The most resident memory that it ever had.
    pub fn peak_rss(&self) -> u64 {
        peak_rss(self.pid)
    }

    /// Sends a signal to the driver.
    pub fn signal(&self, signal: i32) {
        sys::signal(self.pid, signal);
    }

    /// The driver stands still until what is returned is dropped.
    #[must_use]
    pub fn stop(&self) -> Stopped {
        Stopped::new(self.pid)
    }

    /// Runs a script in the mount's root; panics with its output where it fails.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        shell::run(&self.path, script)
    }

    /// umount(8), and waits until the driver has ended.
    #[track_caller]
    pub fn unmount(&mut self) {
        let out = shell::output(Command::new("umount").arg(&self.path));
        assert!(out.code == 0, "umount: {}", out.text);
        let ended = within(Duration::from_secs(20), || !running(self.pid));
        assert!(ended, "the driver still runs after umount\n{}", self.log());
    }

    /// kill -9 of the driver; the dead mount is taken away.
    pub fn kill(&mut self) {
        sys::signal(self.pid, libc::SIGKILL);
        within(Duration::from_secs(10), || !running(self.pid));
        shell::output(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// True while something is mounted exactly at `path`.
pub fn is_mounted(path: &Path) -> bool {
    let wanted = path.to_str().expect("a path of a test is text");
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == Some(wanted))
}

/// Mount points below `dir`.
pub fn mounted_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).filter(|p| p.starts_with(dir)).collect()
}

/// True while a process exists and is no zombie.
pub fn running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(&self.path) {
            let gone = shell::output(Command::new("umount").arg(&self.path)).code == 0;
            if !gone {
                shell::output(Command::new("umount").arg("-l").arg(&self.path));
            }
        }
        if self.pid > 0 && !within(Duration::from_secs(10), || !running(self.pid)) {
            sys::signal(self.pid, libc::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("{}", crate::process::tail(&self.path.display().to_string(), &self.log(), 40));
        }
    }
}
