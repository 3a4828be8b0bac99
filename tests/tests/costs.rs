//! What everyday operations cost, counted and never timed: requests to each service, of the
//! kernel to the mount, waits for a disk, system calls. More than what the table says is a
//! regression; bytes on the wire are in `wire.rs`, what costs no request at all in `round_trips.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use dfs_tests::costs::{Counter, DAEMONS, PerUnit};
use dfs_tests::{Cluster, Mount, Rng, sys};

/// What one operation costs, as it was measured (release build); see [`exceeded`] for the room that is left. What a daemon does by the clock is not in it.
/// In this order: requests to directory, lock and file service; FUSE requests; waits for a disk by mount,
/// directory, lock and file service; system calls of the same four. Whoever lowers a cost lowers its number here.
const LIMITS: &[(&str, PerUnit)] = &[
    ("create, write 4 KiB, close", each([1.0, 0.0, 1.0], 6.0, [0.0, 0.0, 0.0, 0.0], [24.0, 7.5, 0.0, 14.5])),
    ("rename", each([1.0, 0.0, 0.0], 3.0, [0.0, 0.0, 0.0, 0.0], [9.5, 7.2, 0.0, 0.0])),
    ("chmod", each([1.0, 0.0, 0.0], 1.0, [0.0, 0.0, 0.0, 0.0], [5.7, 5.2, 0.0, 0.0])),
    ("unlink", each([1.0, 0.0, 0.0], 3.0, [0.0, 0.0, 0.0, 0.0], [14.0, 8.5, 0.0, 0.0])),
    ("open, read, close, cached", each([0.0, 0.0, 0.0], 3.0, [0.0, 0.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0])),
    ("stat, cached", each([0.0, 0.0, 0.0], 0.0, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])),
    ("list, cached, an entry", each([0.0, 0.0, 0.0], 0.0, [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])),
    ("open for writing, close", each([0.0, 0.0, 0.0], 3.0, [0.0, 0.0, 0.0, 0.0], [12.0, 0.0, 0.0, 0.0])),
    ("write 16 KiB, fsync, rename over the old file", each([2.0, 0.0, 1.0], 12.0, [0.0, 1.0, 0.0, 1.0], [40.0, 14.5, 1.0, 16.0])),
    ("append 4 KiB to a large file, close", each([1.0, 0.0, 1.0], 4.0, [0.0, 0.0, 0.0, 0.0], [19.5, 7.5, 0.0, 24.5])),
    ("overwrite 4 KiB in a large file, close", each([1.0, 0.0, 1.0], 4.0, [0.0, 0.0, 0.0, 0.0], [19.5, 7.5, 0.0, 24.5])),
    ("the same where an old version goes", each([1.0, 0.0, 1.0], 4.0, [0.0, 0.0, 0.0, 0.0], [19.5, 8.0, 0.0, 47.0])),
    ("extract a tree, a file", each([1.1, 0.0, 1.0], 8.2, [0.0, 0.0, 0.0, 0.0], [31.0, 8.5, 0.0, 17.5])),
    ("remove a tree, a file", each([1.2, 0.0, 0.0], 3.8, [0.0, 0.0, 0.0, 0.0], [13.0, 8.0, 1.0, 0.0])),
    ("list, not cached, an entry", each([0.0, 0.0, 0.0], 0.1, [0.0, 0.0, 0.0, 0.0], [0.4, 0.2, 0.0, 0.0])),
    ("list and read in order, not cached, a file", each([0.0, 0.0, 1.0], 5.1, [0.0, 0.0, 0.0, 0.0], [24.0, 0.0, 0.0, 10.0])),
];

/// Requests of 100 operations may be so many more: the end of what came before, or a lookup again.
const FEW: f64 = 0.07;
/// How often a daemon waits, and how much it finds then, depends on who is faster: system calls may be so many times as many, and …
const TIMES: f64 = 1.2;
/// … so many more.
const MORE: f64 = 1.0;
/// In a second a daemon waits so often for a disk whatever it is asked: what was written is flushed once, a few files at a time.
const SYNCS_A_SECOND: f64 = 10.0;
/// So many system calls belong to that, to heartbeats and renewals.
const CALLS_A_SECOND: f64 = 400.0;

/// Operations of a row.
const COUNT: u64 = 100;
/// Bytes of a small file, and of a change.
const PAGE: usize = 4096;
/// Bytes of a large file.
const LARGE: usize = 64 << 20;
/// Versions of a file that the cluster keeps; more than a row makes twice.
const KEPT: u64 = 2 * COUNT + 20;

const fn each(requests: [f64; 3], fuse: f64, syncs: [f64; 4], calls: [f64; 4]) -> PerUnit {
    PerUnit { requests, fuse, syncs, calls }
}

/// In what `measured` is more than `limit` and its room, where a unit took so many `seconds`.
fn exceeded(measured: &PerUnit, limit: &PerUnit, seconds: f64) -> Vec<String> {
    let mut out = Vec::new();
    let mut check = |what: String, measured: f64, limit: f64, most: f64| {
        if measured > most {
            out.push(format!("{what}: {measured:.2}, and {limit} with some room is {most:.2}"));
        }
    };
    for (at, service) in DAEMONS[1..].iter().enumerate() {
        check(format!("requests to the {service} service"), measured.requests[at], limit.requests[at], limit.requests[at] + FEW);
    }
    check("FUSE requests".to_owned(), measured.fuse, limit.fuse, limit.fuse + FEW);
    for (at, daemon) in DAEMONS.iter().enumerate() {
        check(format!("waits of {daemon} for a disk"), measured.syncs[at], limit.syncs[at], limit.syncs[at] + FEW + SYNCS_A_SECOND * seconds);
        let calls = limit.calls[at] * TIMES + MORE + CALLS_A_SECOND * seconds;
        check(format!("system calls of {daemon}"), measured.calls[at], limit.calls[at], calls);
    }
    out
}

/// Rows that were counted, and what was wrong with them.
struct Rows<'a> {
    counter: Counter<'a>,
    wrong: Vec<String>,
}

impl<'a> Rows<'a> {
    fn new(cluster: &'a mut Cluster, mount: &Mount) -> Self {
        Self { counter: Counter::new(cluster, mount), wrong: Vec::new() }
    }

    /// Does `work` twice, and counts the second time.
    fn row(&mut self, name: &str, units: u64, mut work: impl FnMut(u64)) {
        work(0);
        self.once(name, units, || work(1));
    }

    /// Does `work`, and counts.
    fn once(&mut self, name: &str, units: u64, work: impl FnOnce()) {
        let start = Instant::now();
        let counts = self.counter.count(work);
        let seconds = start.elapsed().as_secs_f64() / units as f64;
        let measured = counts.per(units);
        let PerUnit { requests, fuse, syncs, calls } = measured;
        println!("    (\"{name}\", each({requests:.1?}, {fuse:.1}, {syncs:.1?}, {calls:.1?})),\n{counts}");
        let limit = LIMITS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no limit is written down for {name}"));
        let wrong = exceeded(&measured, &limit.1, seconds);
        if !wrong.is_empty() {
            self.wrong.push(format!("{name}:\n  {}\n{counts}", wrong.join("\n  ")));
        }
    }

    #[track_caller]
    fn end(self) {
        assert!(self.wrong.is_empty(), "costs have risen\n{}", self.wrong.join("\n"));
    }
}

fn cluster() -> Cluster {
    Cluster::builder().directory_args(&["--keep-versions", &KEPT.to_string()]).proxied().start()
}

fn page(number: u64) -> Vec<u8> {
    Rng::new(number).bytes(PAGE)
}

fn write(path: &Path, content: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    sys::close(file).unwrap();
}

fn name(number: u64) -> String {
    format!("f{number:03}")
}

/// Makes [`COUNT`] small files in a new directory.
fn make_files(directory: &Path) {
    fs::create_dir(directory).unwrap();
    (0..COUNT).for_each(|n| write(&directory.join(name(n)), &page(n)));
}

fn list(directory: &Path) {
    assert_eq!(fs::read_dir(directory).unwrap().count() as u64, COUNT);
}

fn read_all(directory: &Path) {
    (0..COUNT).for_each(|n| assert!(fs::read(directory.join(name(n))).unwrap() == page(n)));
}

#[test]
fn small_files_cost_no_more_than_they_did() {
    let mut cluster = cluster();
    let mount = cluster.mount();
    let (new, old) = (mount.at("new"), mount.at("old"));
    fs::create_dir(&new).unwrap();
    make_files(&old);
    let mut rows = Rows::new(&mut cluster, &mount);
    let paths = |round: u64, suffix: &str| (0..COUNT).map(|n| new.join(format!("{round}-{n}{suffix}"))).collect::<Vec<_>>();
    rows.row("create, write 4 KiB, close", COUNT, |round| {
        paths(round, "").iter().zip(round * COUNT..).for_each(|(path, n)| write(path, &page(1000 + n)));
    });
    rows.row("rename", COUNT, |round| paths(round, "").iter().zip(paths(round, "r")).for_each(|(from, to)| fs::rename(from, to).unwrap()));
    rows.row("chmod", COUNT, |round| {
        let mode = 0o600 + round as u32;
        paths(1, "r").iter().for_each(|path| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap());
    });
    rows.row("unlink", COUNT, |round| paths(round, "r").iter().for_each(|path| fs::remove_file(path).unwrap()));
    // What is written goes past the kernel's page cache: the first read fetches it, and makes the time of access unknown to the kernel.
    read_all(&old);
    rows.row("open, read, close, cached", COUNT, |_| read_all(&old));
    rows.row("stat, cached", COUNT, |_| (0..COUNT).for_each(|n| assert_eq!(fs::metadata(old.join(name(n))).unwrap().len(), PAGE as u64)));
    rows.row("list, cached, an entry", COUNT, |_| list(&old));
    rows.row("open for writing, close", COUNT, |_| {
        (0..COUNT).for_each(|n| sys::close(OpenOptions::new().append(true).open(old.join(name(n))).unwrap()).unwrap());
    });
    rows.row("write 16 KiB, fsync, rename over the old file", COUNT, |round| {
        for n in 0..COUNT {
            let mut file = File::create_new(new.join("temporary")).unwrap();
            file.write_all(&Rng::new(round * COUNT + n).bytes(16 << 10)).unwrap();
            file.sync_all().unwrap();
            sys::close(file).unwrap();
            fs::rename(new.join("temporary"), new.join("saved")).unwrap();
        }
    });
    rows.end();
}

#[test]
fn changes_of_a_large_file_cost_no_more_than_they_did() {
    let mut cluster = cluster();
    let mount = cluster.mount();
    let [append, overwrite] = ["append", "overwrite"].map(|name| mount.at(name));
    for path in [&append, &overwrite] {
        write(path, &Rng::new(7).bytes(LARGE));
    }
    let mut rows = Rows::new(&mut cluster, &mount);
    let change = |n: u64| {
        let file = OpenOptions::new().write(true).open(&overwrite).unwrap();
        file.write_all_at(&page(n), LARGE as u64 / 2).unwrap();
        sys::close(file).unwrap();
    };
    rows.row("append 4 KiB to a large file, close", COUNT, |round| {
        for n in 0..COUNT {
            let mut file = OpenOptions::new().append(true).open(&append).unwrap();
            file.write_all(&page(round * COUNT + n)).unwrap();
            sys::close(file).unwrap();
        }
    });
    rows.row("overwrite 4 KiB in a large file, close", COUNT, |round| (0..COUNT).for_each(|n| change(round * COUNT + n)));
    // From here on each new version makes an old one go.
    (2 * COUNT..KEPT).for_each(change);
    rows.row("the same where an old version goes", COUNT, |round| (0..COUNT).for_each(|n| change((round + 3) * COUNT + n)));
    rows.end();
}

/// As tar(1) does: each file made, written, given its time and mode, closed.
fn extract(root: &Path) {
    fs::create_dir(root).unwrap();
    for directory in (0..10).map(|n| root.join(n.to_string())) {
        fs::create_dir(&directory).unwrap();
        for n in 0..COUNT / 10 {
            let mut file = OpenOptions::new().write(true).create_new(true).open(directory.join(name(n))).unwrap();
            file.write_all(&page(n)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
            sys::close(file).unwrap();
        }
    }
}

#[test]
fn trees_cost_no_more_than_they_did() {
    let mut cluster = cluster();
    let mount = cluster.mount();
    let mut rows = Rows::new(&mut cluster, &mount);
    let root = |round: u64| mount.at(format!("tree-{round}"));
    rows.row("extract a tree, a file", COUNT, |round| extract(&root(round)));
    rows.row("remove a tree, a file", COUNT, |round| fs::remove_dir_all(root(round)).unwrap());
    rows.end();
}

#[test]
fn what_is_not_cached_costs_no_more_than_it_did() {
    let mut cluster = cluster();
    let writer = cluster.mount();
    ["a", "b", "c"].iter().for_each(|name| make_files(&writer.at(name)));
    let reader = cluster.mount();
    let mut rows = Rows::new(&mut cluster, &reader);
    // What the first of all reads costs does not count.
    list(&reader.at("a"));
    rows.once("list, not cached, an entry", COUNT, || list(&reader.at("b")));
    rows.once("list and read in order, not cached, a file", COUNT, || {
        list(&reader.at("c"));
        read_all(&reader.at("c"));
    });
    rows.end();
}

#[test]
fn a_write_that_asks_for_disks_waits_for_them() {
    let mut cluster = cluster();
    let mount = cluster.mount();
    let (new, read) = (mount.at("new"), mount.at("read"));
    write(&read, &Rng::new(7).bytes(1 << 20));
    let counter = Counter::new(&mut cluster, &mount);
    let synced = |what: &str, work: &mut dyn FnMut()| {
        let counts = counter.count(work);
        let [_, directory, _, file] = counts.per(1).syncs;
        assert!(directory >= 1.0 && file >= 1.0, "{what}:\n{counts}");
    };
    let _reader = File::open(&read).unwrap();
    for path in [&new, &read] {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        synced("RWF_DSYNC", &mut || assert_eq!(sys::write_durably(&file, 0, &page(1)).unwrap(), PAGE));
        sys::close(file).unwrap();
        for flag in [libc::O_DSYNC, libc::O_SYNC] {
            let mut file = OpenOptions::new().append(true).custom_flags(flag).open(path).unwrap();
            synced("O_DSYNC", &mut || file.write_all(&page(2)).unwrap());
            sys::close(file).unwrap();
        }
    }
}

#[test]
fn one_more_of_anything_is_noticed() {
    for (name, limit) in LIMITS {
        assert_eq!(exceeded(limit, limit, 0.0), Vec::<String>::new(), "{name}");
        for at in 0..3 {
            let (mut asked, mut synced) = (*limit, *limit);
            asked.requests[at] += 1.0;
            synced.syncs[at] += 1.0;
            assert!(exceeded(&asked, limit, 0.0).len() == 1 && exceeded(&synced, limit, 0.0).len() == 1, "{name}");
        }
        let mut more = *limit;
        more.fuse += 1.0;
        more.calls = more.calls.map(|calls| calls * 1.25 + 1.5);
        assert_eq!(exceeded(&more, limit, 0.0).len(), 5, "{name}");
    }
}
