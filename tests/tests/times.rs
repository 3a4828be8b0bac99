//! Times: one clock for all clients, last accesses, and when a file was made.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dfs_tests::clock::wrong_clock;
use dfs_tests::sys::{self, OMIT};
use dfs_tests::{Cluster, Mount, eventually};

/// How far a time on the mount is from this machine's, which is that of the directory service.
fn off(path: &Path) -> Duration {
    let time = fs::symlink_metadata(path).unwrap().modified().unwrap();
    let now = SystemTime::now();
    now.duration_since(time).unwrap_or_else(|e| e.duration())
}

fn atime(path: &Path) -> (i64, i64) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.atime(), meta.atime_nsec())
}

const MAKEFILE: &str = "all: a.o b.o\n%.o: %.c\n\tcat $< > $@\n\techo $< >> log\n";

/// What make(1) has made anew in `mount`.
fn make(mount: &Mount) -> Vec<String> {
    let out = mount.run("rm -f log; touch log; make 2>&1");
    assert!(!out.contains("skew") && !out.contains("in the future"), "{out}");
    let mut made: Vec<String> = fs::read_to_string(mount.at("log")).unwrap().lines().map(ToOwned::to_owned).collect();
    made.sort();
    made
}

#[test]
fn make_builds_what_is_out_of_date_whatever_the_clients_clocks_say() {
    let dir = tempfile::tempdir().unwrap();
    let clock = dir.path().join("clock");
    fs::write(&clock, "+3600").unwrap();
    let cluster = Cluster::small();
    let (right, wrong) = (cluster.mount(), cluster.mount_in("", &wrong_clock(&clock)));
    fs::write(right.at("Makefile"), MAKEFILE).unwrap();
    for source in ["a.c", "b.c"] {
        fs::write(wrong.at(source), "1").unwrap();
        assert!(off(&wrong.at(source)) < Duration::from_secs(1), "{source} is {:?} off", off(&wrong.at(source)));
    }
    assert_eq!(make(&right), ["a.c", "b.c"]);
    assert!(make(&wrong).is_empty() && make(&right).is_empty());
    // Somebody sets the clock while it is mounted.
    for (offset, source) in [("-7200", "a.c"), ("+100000", "b.c"), ("+0", "a.c"), ("-3000", "b.c")] {
        fs::write(&clock, offset).unwrap();
        OpenOptions::new().append(true).open(wrong.at(source)).unwrap().write_all(b"2").unwrap();
        assert!(off(&wrong.at(source)) < Duration::from_secs(1), "with {offset} {source} is {:?} off", off(&wrong.at(source)));
        assert_eq!(make(&right), [source], "with {offset}");
        assert!(make(&wrong).is_empty(), "with {offset}");
        wrong.run(&format!("touch {source} new-{offset}; mkdir dir-{offset}; ln -s x link-{offset}"));
        for name in [source, &format!("new-{offset}"), &format!("dir-{offset}"), &format!("link-{offset}")] {
            assert!(off(&wrong.at(name)) < Duration::from_secs(1), "with {offset} {name} is {:?} off", off(&wrong.at(name)));
        }
        assert_eq!(make(&wrong), [source], "with {offset}");
        assert!(make(&right).is_empty(), "with {offset}");
    }
    sys::set_times(&wrong.at("a.c"), OMIT, (1_000_000_007, 5)).unwrap();
    let set = fs::metadata(right.at("a.c")).unwrap();
    assert_eq!((set.mtime(), set.mtime_nsec()), (1_000_000_007, 5), "what is set by hand stays as it is");
}

#[test]
fn accesses_are_seen_here_at_once_and_elsewhere_soon() {
    let cluster = Cluster::builder().lease_seconds(2).start();
    let (m, other) = (cluster.mount(), cluster.mount());
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), "x").unwrap();
    let before = fs::metadata(m.at("d/f")).unwrap();
    let (file, dir) = (atime(&m.at("d/f")), atime(&m.at("d")));
    fs::read(m.at("d/f")).unwrap();
    assert_eq!(fs::read_dir(m.at("d")).unwrap().count(), 1);
    let (read, listed) = (atime(&m.at("d/f")), atime(&m.at("d")));
    assert!(read > file && listed > dir);
    let after = fs::metadata(m.at("d/f")).unwrap();
    assert_eq!((before.ctime(), before.ctime_nsec(), before.mtime_nsec()), (after.ctime(), after.ctime_nsec(), after.mtime_nsec()));
    // Nobody is told: the other mount sees it as soon as it asks.
    eventually(10, "the access is seen by a mount that asks", || atime(&cluster.mount().at("d/f")) == read);
    assert!(atime(&cluster.mount().at("d")) == listed);
    // What is set by hand is not undone by what was on its way, and a write changes nothing.
    fs::write(m.at("d/g"), "x").unwrap();
    fs::read(m.at("d/g")).unwrap();
    sys::set_times(&m.at("d/g"), (1_000_000_000, 7), OMIT).unwrap();
    assert_eq!(atime(&m.at("d/g")), (1_000_000_000, 7));
    OpenOptions::new().append(true).open(m.at("d/f")).unwrap().write_all(b"y").unwrap();
    assert_eq!(atime(&m.at("d/f")), read);
    drop(m);
    assert_eq!(atime(&other.at("d/g")), (1_000_000_000, 7));
    assert_eq!(atime(&cluster.mount().at("d/f")), read);
}

#[test]
fn the_end_of_a_mount_keeps_its_accesses() {
    let cluster = Cluster::small();
    let mut m = cluster.mount();
    fs::write(m.at("f"), "x").unwrap();
    fs::read(m.at("f")).unwrap();
    let read = atime(&m.at("f"));
    m.unmount();
    assert_eq!(atime(&cluster.mount().at("f")), read);
}

#[test]
fn accesses_are_not_noted_where_nobody_wants_them() {
    let cluster = Cluster::small();
    let m = cluster.mount();
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), "x").unwrap();
    let before = (atime(&m.at("d/f")), atime(&m.at("d")));
    for options in ["noatime", "ro"] {
        let quiet = cluster.mount_with(options);
        fs::read(quiet.at("d/f")).unwrap();
        fs::read_dir(quiet.at("d")).unwrap().count();
        assert_eq!((atime(&quiet.at("d/f")), atime(&quiet.at("d"))), before, "{options}");
    }
    let files = cluster.mount_with("nodiratime");
    fs::read_dir(files.at("d")).unwrap().count();
    assert_eq!(atime(&files.at("d")), before.1);
    drop(OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(files.at("d/f")).unwrap());
    drop(OpenOptions::new().write(true).open(files.at("d/f")).unwrap());
    assert_eq!(atime(&files.at("d/f")), before.0);
    drop(File::open(files.at("d/f")).unwrap());
    assert!(atime(&files.at("d/f")) > before.0);
}

#[test]
fn the_time_of_birth_stays_and_is_shown() {
    let cluster = Cluster::small();
    let m = cluster.mount();
    let born = || {
        let text = cluster.dfs(&["--json", "stat", "/f"]);
        let entry: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        entry["crtime"].as_i64().unwrap_or_else(|| panic!("no crtime in {entry}"))
    };
    fs::write(m.at("f"), "x").unwrap();
    let first = born();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as i64;
    assert!((now - first).abs() < 5_000_000_000, "{first} is not now");
    fs::write(m.at("f"), "y").unwrap();
    sys::set_times(&m.at("f"), (1, 0), (1, 0)).unwrap();
    fs::rename(m.at("f"), m.at("g")).unwrap();
    fs::rename(m.at("g"), m.at("f")).unwrap();
    assert_eq!(born(), first);
    // The FUSE library has no answer for statx(2) that holds it.
    assert!(fs::metadata(m.at("f")).unwrap().created().is_err());
}
