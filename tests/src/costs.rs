//! What work costs in things that can be counted, whatever else the machine does: requests
//! to each service, requests of the kernel to the mount, system calls of each daemon and
//! those among them that wait for a disk.

use std::collections::BTreeMap;
use std::fmt;

use dfs_common::api::directory::Status;

use crate::trace::{Asked, Trace};
use crate::{Cluster, Mount, Role, eventually};

/// What a session costs by itself, however little its client does.
pub const STANDING: &[&str] = &[
    "/v1/directory/events",
    "/v1/directory/renew-session",
    "/v1/directory/claim-leases",
    "/v1/directory/accessed",
    "/v1/lock/renew",
    "/v1/lock/recalls",
];
/// What only servers and tests ask.
pub const OTHERS: &[&str] = &["status", "sessions", "servers", "waits", "heartbeat", "held-versions", "report-copy", "register-server", "resolve"];

/// Whether a request for `path` is due to what somebody does on a mount.
pub fn is_work(path: &str) -> bool {
    !STANDING.iter().any(|standing| path.ends_with(standing)) && !OTHERS.iter().any(|other| path.ends_with(other))
}

/// System calls that say how busy the machine is: threads that wait for each other.
const WAITS: &[i64] = &[libc::SYS_futex, libc::SYS_sched_yield];

/// System calls that wait for a disk.
pub const SYNCS: &[i64] = &[libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync_file_range, libc::SYS_sync, libc::SYS_msync];

/// Who is looked at, in the order of the numbers in [`PerUnit`].
pub const DAEMONS: [&str; 4] = ["mount", "directory", "lock", "file"];

/// Threads that take what has gathered to a database and to the disk, when it is time to: many calls at once, in whichever row they fall.
const BY_THE_CLOCK: &[&str] = &["mover", "flusher"];

/// Counts of one cluster, in which each role is one process, and one of its mounts.
#[derive(Debug)]
pub struct Counter<'a> {
    cluster: &'a Cluster,
    /// As [`DAEMONS`].
    pids: [i32; 4],
    trace: Trace,
}

/// Everything that was counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By service and resource.
    pub requests: BTreeMap<(&'static str, String), u64>,
    /// As [`DAEMONS`].
    pub daemons: [Asked; 4],
}

/// What one unit of work costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerUnit {
    /// Requests that were answered by the directory service (also those of the file server), the lock service and the file server.
    pub requests: [f64; 3],
    /// Requests of the kernel that the mount has read.
    pub fuse: f64,
    /// System calls that wait for a disk, of [`DAEMONS`].
    pub syncs: [f64; 4],
    /// Other system calls but those of threads that wait for each other, of [`DAEMONS`].
    pub calls: [f64; 4],
}

impl<'a> Counter<'a> {
    /// Begins to count, once the file server has ended its start. The cluster must be `proxied`, with one file server.
    pub fn new(cluster: &'a mut Cluster, mount: &Mount) -> Self {
        eventually(60, "the file server has looked through its blocks", || {
            cluster.daemon(Role::File(0)).log().contains("what earlier processes left here is looked through")
        });
        let pids = [mount.pid(), cluster.daemon(Role::Directory).pid(), cluster.daemon(Role::Lock).pid(), cluster.daemon(Role::File(0)).pid()];
        Self { cluster, pids, trace: Trace::begin(&pids, BY_THE_CLOCK) }
    }

    /// Everything so far.
    fn now(&self) -> Counts {
        let mut requests = BTreeMap::new();
        // It counts itself, whoever asks; the others are counted on their way.
        for (path, count) in self.cluster.directory(&Status {}).expect("the directory service answers").requests {
            requests.insert(("directory", path), count);
        }
        for (name, role) in [("lock", Role::Lock), ("file", Role::File(0))] {
            requests.extend(self.cluster.proxy(role).requests().into_iter().map(|(path, count)| ((name, path), count)));
        }
        requests.retain(|(_, path), _| is_work(path));
        Counts { requests, daemons: self.pids.map(|pid| self.trace.asked(pid)) }
    }

    /// What `work` costs.
    pub fn count(&self, work: impl FnOnce()) -> Counts {
        let before = self.now();
        work();
        let mut after = self.now();
        for (key, count) in &before.requests {
            *after.requests.entry(key.clone()).or_default() -= count;
        }
        after.requests.retain(|_, count| *count > 0);
        for (after, before) in after.daemons.iter_mut().zip(&before.daemons) {
            *after = after.since(before);
        }
        after
    }
}

impl Counts {
    /// For one of `units` of work.
    pub fn per(&self, units: u64) -> PerUnit {
        let each = |count: u64| count as f64 / units as f64;
        let requests = |service: &str| self.requests.iter().filter(|((name, _), _)| *name == service).map(|(_, count)| count).sum();
        PerUnit {
            requests: ["directory", "lock", "file"].map(|service| each(requests(service))),
            fuse: each(self.daemons[0].fuse.values().sum()),
            syncs: [0, 1, 2, 3].map(|at| each(self.daemons[at].of(SYNCS))),
            calls: [0, 1, 2, 3].map(|at| each(self.daemons[at].all() - self.daemons[at].of(WAITS))),
        }
    }
}

/// Names of what is counted, for a person.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((service, path), count) in &self.requests {
            writeln!(f, "  {service} {path}: {count}")?;
        }
        let fuse: Vec<String> = self.daemons[0].fuse.iter().map(|(number, count)| format!("{} {count}", operation(*number))).collect();
        writeln!(f, "  FUSE: {}", fuse.join(", "))?;
        for (name, asked) in DAEMONS.iter().zip(&self.daemons) {
            let mut calls: Vec<(&i64, &u64)> = asked.calls.iter().collect();
            calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let calls: Vec<String> = calls.into_iter().map(|(number, count)| format!("{} {count}", call(*number))).collect();
            writeln!(f, "  {name}: {}", calls.join(", "))?;
        }
        Ok(())
    }
}

/// The kernel's name of a FUSE operation (`enum fuse_opcode`), or its number.
fn operation(number: u32) -> String {
    let name = match number {
        1 => "LOOKUP",
        2 => "FORGET",
        3 => "GETATTR",
        4 => "SETATTR",
        9 => "MKDIR",
        10 => "UNLINK",
        11 => "RMDIR",
        12 => "RENAME",
        14 => "OPEN",
        15 => "READ",
        16 => "WRITE",
        18 => "RELEASE",
        20 => "FSYNC",
        22 => "GETXATTR",
        25 => "FLUSH",
        27 => "OPENDIR",
        28 => "READDIR",
        29 => "RELEASEDIR",
        34 => "ACCESS",
        35 => "CREATE",
        42 => "BATCH_FORGET",
        44 => "READDIRPLUS",
        45 => "RENAME2",
        52 => "STATX",
        number => return format!("operation {number}"),
    };
    name.to_owned()
}

/// The name of a system call that daemons often make, or its number.
fn call(number: i64) -> String {
    const NAMES: &[(i64, &str)] = &[
        (libc::SYS_read, "read"),
        (libc::SYS_write, "write"),
        (libc::SYS_readv, "readv"),
        (libc::SYS_writev, "writev"),
        (libc::SYS_pread64, "pread"),
        (libc::SYS_pwrite64, "pwrite"),
        (libc::SYS_futex, "futex"),
        (libc::SYS_epoll_pwait, "epoll_pwait"),
        (libc::SYS_epoll_ctl, "epoll_ctl"),
        (libc::SYS_recvfrom, "recvfrom"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_close, "close"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_statx, "statx"),
        (libc::SYS_newfstatat, "newfstatat"),
        (libc::SYS_unlinkat, "unlinkat"),
        (libc::SYS_linkat, "linkat"),
        (libc::SYS_renameat2, "renameat2"),
        (libc::SYS_ftruncate, "ftruncate"),
        (libc::SYS_fallocate, "fallocate"),
        (libc::SYS_lseek, "lseek"),
        (libc::SYS_utimensat, "utimensat"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_munmap, "munmap"),
        (libc::SYS_madvise, "madvise"),
        (libc::SYS_clock_nanosleep, "clock_nanosleep"),
        (libc::SYS_fsync, "fsync"),
        (libc::SYS_fdatasync, "fdatasync"),
        (libc::SYS_copy_file_range, "copy_file_range"),
    ];
    #[cfg(target_arch = "x86_64")]
    const OLDER: &[(i64, &str)] = &[
        (libc::SYS_epoll_wait, "epoll_wait"),
        (libc::SYS_unlink, "unlink"),
        (libc::SYS_rename, "rename"),
        (libc::SYS_link, "link"),
        (libc::SYS_mkdir, "mkdir"),
        (libc::SYS_stat, "stat"),
        (libc::SYS_lstat, "lstat"),
        (libc::SYS_access, "access"),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    const OLDER: &[(i64, &str)] = &[];
    NAMES.iter().chain(OLDER).find(|(known, _)| *known == number).map_or_else(|| format!("call {number}"), |(_, name)| (*name).to_owned())
}
