//! What two mounts promise each other: close-to-open, whole versions, names, orphans.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_common::ErrorKind;
use dfs_common::api::directory::{GetAttributes, Sessions, Status};
use dfs_common::ids::{InodeId, SessionId};
use dfs_tests::tree::{assert_same, listing};
use dfs_tests::wait::eventually;
use dfs_tests::{Cluster, Ending, Mount, Role, sys};

/// A cluster with `N` mounts.
fn mounts<const N: usize>() -> (Cluster, [Mount; N]) {
    let cluster = Cluster::small();
    let mounts = std::array::from_fn(|_| cluster.mount());
    (cluster, mounts)
}

fn put(path: &std::path::Path, content: &[u8]) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(content).unwrap();
    sys::close(file).unwrap();
}

fn append(path: &std::path::Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all(bytes).unwrap();
    sys::close(file).unwrap();
}

#[test]
fn an_open_after_a_close_elsewhere_reads_the_new_content() {
    let (_cluster, [a, b]) = mounts();
    put(&a.at("f"), b"first");
    assert_eq!(fs::read(b.at("f")).unwrap(), b"first");
    for round in 0..30 {
        let (from, to) = if round % 2 == 0 { (&b, &a) } else { (&a, &b) };
        let content = vec![b'0' + round as u8; 1 + 5_000 * round];
        put(&from.at("f"), &content);
        assert!(fs::read(to.at("f")).unwrap() == content, "round {round}: the other mount reads an old version");
    }
}

#[test]
fn names_made_on_one_mount_are_seen_on_the_other() {
    let (_cluster, [a, b]) = mounts();
    fs::create_dir(a.at("d")).unwrap();
    put(&a.at("d/x"), b"x");
    assert_eq!(fs::read(b.at("d/x")).unwrap(), b"x");
    fs::rename(b.at("d/x"), b.at("d/y")).unwrap();
    assert!(!a.at("d/x").exists(), "the old name is gone on the first mount");
    assert_eq!(fs::read(a.at("d/y")).unwrap(), b"x");
    fs::remove_file(a.at("d/y")).unwrap();
    assert!(!b.at("d/y").exists(), "the file is gone on the second mount");
    fs::remove_dir(b.at("d")).unwrap();
    assert!(!a.at("d").exists(), "the directory is gone on the first mount");
}

#[test]
fn a_tree_made_on_two_mounts_is_the_same_on_both() {
    let (_cluster, [a, b]) = mounts();
    let script = "for i in 1 2 3 4 5; do mkdir -p NAME/d$i/e; for j in 1 2 3 4 5 6; do echo $i $j > NAME/d$i/e/f$j; done; ln -s e NAME/d$i/l; ln NAME/d$i/e/f1 NAME/d$i/h; done";
    std::thread::scope(|scope| {
        scope.spawn(|| a.run(&script.replace("NAME", "left")));
        scope.spawn(|| b.run(&script.replace("NAME", "right")));
    });
    assert!(a.at("right/d5/h").exists() && b.at("left/d5/h").exists(), "both mounts list both trees");
    assert_same(&listing(a.path()), &listing(b.path()));
}

#[test]
fn a_reader_keeps_the_version_that_it_opened() {
    let (_cluster, [writer, reader]) = mounts();
    let content = |n: u8| vec![n; if n.is_multiple_of(2) { 700_000 } else { 150_000 }];
    put(&writer.at("f"), &content(0));
    for n in 1..8 {
        let mut old = File::open(reader.at("f")).unwrap();
        let mut head = vec![0; 1000];
        old.read_exact(&mut head).unwrap();
        put(&writer.at("f"), &content(n));
        // A later open of the same mount does not disturb the earlier one.
        assert!(fs::read(reader.at("f")).unwrap() == content(n), "version {n} is not what the next open reads");
        let mut rest = head;
        old.read_to_end(&mut rest).unwrap();
        assert!(rest == content(n - 1), "round {n}: the reader got {} bytes of {:?}", rest.len(), rest.first());
        let mut again = vec![0; 100];
        old.seek(SeekFrom::Start(0)).unwrap();
        old.read_exact(&mut again).unwrap();
        assert!(again == vec![n - 1; 100], "round {n}: reading again shows another version");
    }
}

#[test]
fn readers_beside_a_busy_writer_never_see_a_torn_file() {
    let (_cluster, [writer, reader]) = mounts();
    let version = |n: u32| {
        let mut body = n.to_le_bytes().repeat(1 + (n as usize * 7919) % 50_000);
        let hash = blake3::hash(&body);
        body.extend_from_slice(hash.as_bytes());
        body
    };
    put(&writer.at("f"), &version(0));
    let (done, count) = (AtomicBool::new(false), AtomicU32::new(0));
    let (mut written, start) = (0, Instant::now());
    std::thread::scope(|scope| {
        let ending = Ending(&done);
        let reads = scope.spawn(|| {
            let (mut reads, mut last) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::read(reader.at("f")).unwrap();
                assert!(bytes.len() > 32, "{} bytes after version {last} and {reads} reads", bytes.len());
                let (body, hash) = bytes.split_at(bytes.len() - 32);
                assert!(blake3::hash(body).as_bytes() == hash, "torn after {reads} reads: {} bytes", bytes.len());
                let n = u32::from_le_bytes(body[..4].try_into().unwrap());
                assert!(n >= last, "version {n} after version {last}");
                (reads, last) = (reads + 1, n);
                count.store(reads, Ordering::Relaxed);
            }
        });
        while (written < 60 || count.load(Ordering::Relaxed) < 20) && start.elapsed() < Duration::from_secs(20) && !reads.is_finished() {
            written += 1;
            put(&writer.at("f"), &version(written));
        }
        drop(ending);
        reads.join().unwrap();
    });
    let reads = count.into_inner();
    assert!(reads >= 20, "{reads} reads beside {written} writes in {:?}", start.elapsed());
    assert!(fs::read(reader.at("f")).unwrap() == version(written));
}

/// Attributes that are on their way to a kernel which is told meanwhile to forget them are not taken in. A reader that is seldom
/// scheduled meets that with every answer, and would go on with the size that the file had before.
#[test]
fn a_reader_who_is_rarely_scheduled_reads_all_there_is_beside_many_changes() {
    const READS: u32 = 800;
    let (_cluster, [reader, writer, changer]) = mounts();
    let (stop, published) = (AtomicBool::new(false), AtomicU64::new(0));
    let stopped = || stop.load(Ordering::Relaxed);
    // In the upper half the number of the file, in the lower one what it has at least.
    let file = || {
        let now = published.load(Ordering::SeqCst);
        (format!("f{}", now >> 32), now & u64::from(u32::MAX))
    };
    put(&writer.at("f0"), b"");
    std::thread::scope(|scope| {
        let _ending = Ending(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stopped() {
                    std::hint::spin_loop()
                }
            });
        }
        scope.spawn(|| {
            for number in 0.. {
                put(&writer.at(format!("f{number}")), b"");
                for size in (1..60).map(|n| n * 1000) {
                    if stopped() {
                        return;
                    }
                    append(&writer.at(format!("f{number}")), &[b'x'; 1000]);
                    published.store(number << 32 | size, Ordering::SeqCst);
                }
            }
        });
        for mode in 0o600..0o603 {
            let (changer, stopped, file) = (&changer, &stopped, &file);
            scope.spawn(move || {
                while !stopped() {
                    fs::set_permissions(changer.at(file().0), Permissions::from_mode(mode)).unwrap()
                }
            });
        }
        let reads = scope.spawn(|| {
            sys::run_last();
            let (mut buffer, sink) = (vec![0; 128 << 10], File::options().write(true).open("/dev/null").unwrap());
            for _ in 0..READS {
                let (name, least) = file();
                let file = File::open(reader.at(&name)).unwrap();
                // First the call that asks for nothing before it believes the length.
                for got in [sys::send_file(&file, &sink, buffer.len()).unwrap(), file.read_at(&mut buffer, 0).unwrap()] {
                    assert!(got as u64 >= least, "{got} bytes of {name}, which had {least} before it was opened");
                }
            }
        });
        reads.join().unwrap();
    });
}

#[test]
fn processes_of_one_mount_see_each_others_writes_at_once() {
    let (_cluster, [a]) = mounts();
    let mut writer = File::create(a.at("f")).unwrap();
    let reader = File::open(a.at("f")).unwrap();
    for n in 0..20_u8 {
        writer.write_all(&[n; 1000]).unwrap();
        let mut last = [0; 1000];
        reader.read_exact_at(&mut last, u64::from(n) * 1000).unwrap();
        assert_eq!(last, [n; 1000]);
        assert_eq!(fs::metadata(a.at("f")).unwrap().len(), (u64::from(n) + 1) * 1000);
    }
    sys::close(writer).unwrap();
}

#[test]
fn fsync_publishes_before_close() {
    let (_cluster, [a, b]) = mounts();
    let mut file = File::create(a.at("f")).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"synced");
    file.write_all(b" and closed").unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"synced");
    sys::close(file).unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"synced and closed");
}

#[test]
fn a_file_removed_elsewhere_stays_readable_while_it_is_open() {
    let (_cluster, [a, b]) = mounts();
    let content: Vec<u8> = (0..400_000_u32).map(|n| n as u8).collect();
    put(&a.at("f"), &content);
    let mut open = File::open(b.at("f")).unwrap();
    fs::remove_file(a.at("f")).unwrap();
    assert!(!b.at("f").exists(), "the name is gone");
    let mut got = Vec::new();
    open.read_to_end(&mut got).unwrap();
    assert!(got == content, "{} bytes of {}", got.len(), content.len());
}

/// A file that is opened on the second of two mounts, and of which hardly anything is there yet, stays whole when it is removed on the first one,
/// whatever happens in between; and it goes when it is closed.
fn stays_while_open(lease_seconds: u64, meanwhile: impl FnOnce(&mut Cluster, &Mount)) {
    let mut cluster = Cluster::builder().lease_seconds(lease_seconds).directory_args(&["--keep-removed", "0"]).start();
    let (a, b) = (cluster.mount(), cluster.mount());
    let content = dfs_tests::Rng::new(lease_seconds).bytes(8 << 20);
    put(&a.at("f"), &content);
    // The name is gone before, and another one leads to it.
    let mut open = File::open(b.at("f")).unwrap();
    fs::rename(a.at("f"), a.at("g")).unwrap();
    meanwhile(&mut cluster, &b);
    fs::remove_file(a.at("g")).unwrap();
    // Nobody but who has it open keeps it.
    eventually(60, "the mount that removed it has let go", || cluster.directory(&Status {}).unwrap().orphans == 1);
    let ino = open.metadata().unwrap().ino();
    let mut got = Vec::new();
    open.read_to_end(&mut got).unwrap();
    assert!(got == content, "{} bytes of {}", got.len(), content.len());
    drop(open);
    eventually(60, "it is gone", || cluster.directory(&GetAttributes { ino: InodeId(ino) }).is_err_and(|e| e.kind() == ErrorKind::NotFound));
}

#[test]
fn an_open_file_outlives_its_removal_elsewhere_and_goes_when_it_is_closed() {
    stays_while_open(30, |_, _| ());
}

#[test]
fn an_open_file_outlives_a_restart_of_the_directory_service_and_then_its_removal() {
    stays_while_open(3, |cluster, _| {
        cluster.kill(Role::Directory);
        cluster.restart(Role::Directory);
    });
}

#[test]
fn an_open_file_outlives_the_session_in_which_it_was_opened_and_then_its_removal() {
    stays_while_open(2, |cluster, mount| {
        let leased = |cluster: &Cluster| -> Vec<(SessionId, u64)> {
            let rows = cluster.directory(&Sessions {}).unwrap();
            rows.iter().filter(|row| row.client.pid as i32 == mount.pid()).map(|row| (row.session, row.leases)).collect()
        };
        let before = leased(cluster)[0].0;
        let stopped = mount.stop();
        eventually(60, "its session expires", || leased(cluster).is_empty());
        drop(stopped);
        eventually(60, "it has another one", || leased(cluster).iter().any(|row| row.0 != before));
        // Another name is looked up, so that it has claimed its leases.
        eventually(60, "leases are claimed", || fs::metadata(mount.at("g")).is_ok() && leased(cluster)[0].1 > 0);
    });
}

#[test]
fn a_file_replaced_by_rename_elsewhere_is_the_new_one_at_the_next_open() {
    let (_cluster, [a, b]) = mounts();
    put(&a.at("f"), b"old content");
    let old = File::open(b.at("f")).unwrap();
    put(&a.at("new"), b"replacement");
    fs::rename(a.at("new"), a.at("f")).unwrap();
    assert!(fs::read(b.at("f")).is_ok_and(|c| c == b"replacement"), "the next open reads the replacement");
    let mut bytes = vec![0; 11];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, b"old content");
}

/// The kernel forgets the inode of an old version, whose name leads to a newer one that is still in use.
#[test]
fn a_name_is_replaced_elsewhere_after_an_old_version_was_forgotten() {
    let (_cluster, [a, b]) = mounts();
    put(&a.at("f"), b"first");
    put(&a.at("g"), b"other");
    let mut old = File::open(b.at("f")).unwrap();
    put(&a.at("f"), b"second");
    let new = File::open(b.at("f")).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), fs::read(b.at("f")).unwrap().as_slice()), ("first", &b"second"[..]));
    drop(old);
    // What is unused goes; the name, and the node that it leads to, are in use.
    fs::write("/proc/sys/vm/drop_caches", "2").expect("as root");
    fs::rename(a.at("g"), a.at("f")).unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"other", "the name still leads to the file that was there");
    assert_eq!(fs::metadata(b.at("f")).unwrap().len(), 5);
    drop(new);
}

#[test]
fn mapped_stores_arrive_on_the_other_mount() {
    let (_cluster, [a, b]) = mounts();
    put(&a.at("f"), &vec![b'.'; 300_000]);
    let file = OpenOptions::new().read(true).write(true).open(a.at("f")).unwrap();
    sys::write_mapped(&file, 300_000, 123_456, b"mapped").unwrap();
    sys::close(file).unwrap();
    let got = fs::read(b.at("f")).unwrap();
    assert_eq!((got.len(), &got[123_456..123_462], got[123_462]), (300_000, &b"mapped"[..], b'.'));
    let file = File::open(b.at("f")).unwrap();
    assert!(sys::read_mapped(&file, 300_000).unwrap() == got);
}

#[test]
fn appends_by_processes_of_two_mounts_all_arrive() {
    let (_cluster, [a, b]) = mounts();
    put(&a.at("log"), b"");
    let log = |mount: &Mount, who: &str| (0..40).for_each(|n| append(&mount.at("log"), format!("{who} {n}\n").as_bytes()));
    std::thread::scope(|scope| {
        scope.spawn(|| log(&a, "a"));
        scope.spawn(|| log(&a, "A"));
        scope.spawn(|| log(&b, "b"));
    });
    let text = fs::read_to_string(b.at("log")).unwrap();
    for who in ["a", "A", "b"] {
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with(who)).collect();
        let expected: Vec<String> = (0..40).map(|n| format!("{who} {n}")).collect();
        assert_eq!(lines, expected);
    }
    assert_eq!(text.lines().count(), 120);
}

/// Until its exec a program that another thread starts has every descriptor, and closes it then.
#[test]
fn a_program_that_is_started_meanwhile_publishes_nothing() {
    let (_cluster, [a, b]) = mounts();
    put(&a.at("f"), b"before");
    let mut file = OpenOptions::new().write(true).truncate(true).open(a.at("f")).unwrap();
    let start = || assert!(std::process::Command::new("true").status().unwrap().success());
    start();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"before", "the empty file was published");
    file.write_all(b"half").unwrap();
    start();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"before", "half of the file was published");
    file.write_all(b" and half").unwrap();
    sys::close(file).unwrap();
    assert_eq!(fs::read(b.at("f")).unwrap(), b"half and half");
}

#[test]
fn two_clients_in_one_directory_do_not_wait_for_each_other_forever() {
    let (_cluster, [a, b]) = mounts();
    fs::create_dir(a.at("d")).unwrap();
    let churn = |mount: &Mount, who: &str| {
        for n in 0..60 {
            let (one, two) = (mount.at(format!("d/{who}{n}")), mount.at(format!("d/{who}{n}.renamed")));
            put(&one, b"x");
            fs::rename(&one, &two).unwrap();
            fs::read_dir(mount.at("d")).unwrap().for_each(|e| drop(e.unwrap()));
            fs::remove_file(&two).unwrap();
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&a, "a"));
        scope.spawn(|| churn(&b, "b"));
    });
    println!("240 changes a client took {:?}", start.elapsed());
    assert!(fs::read_dir(a.at("d")).unwrap().count() == 0 && fs::read_dir(b.at("d")).unwrap().count() == 0, "the directory is empty");
}

#[test]
fn attributes_set_on_one_mount_show_on_the_other() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (_cluster, [a, b]) = mounts();
    put(&a.at("f"), b"x");
    assert_eq!(fs::metadata(b.at("f")).unwrap().mode() & 0o777, 0o644);
    fs::set_permissions(a.at("f"), PermissionsExt::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(a.at("f"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(a.at("f"), PermissionsExt::from_mode(0o4751)).unwrap();
    sys::set_times(&a.at("f"), (1_111, 222), (1_600_000_000, 123_456_789)).unwrap();
    sys::set_xattr(&a.at("f"), "user.note", b"hello\0\xff", 0).unwrap();
    let shown = || {
        let m = fs::metadata(b.at("f")).unwrap();
        (m.mode() & 0o7777, m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec())
    };
    assert_eq!(shown(), (0o4751, 1234, 4321, 1_600_000_000, 123_456_789, 1_111, 222));
    assert_eq!(sys::get_xattr(&b.at("f"), "user.note").unwrap(), b"hello\0\xff");
}

/// A process in a directory, until it is dropped.
struct Settled(std::process::Child);

impl Settled {
    fn in_directory(directory: &std::path::Path) -> Self {
        use std::process::{Command, Stdio};
        Self(Command::new("cat").current_dir(directory).stdin(Stdio::piped()).spawn().unwrap())
    }

    /// Its current directory as the kernel has it, with " (deleted)" where getcwd fails.
    fn place(&self) -> std::path::PathBuf {
        fs::read_link(format!("/proc/{}/cwd", self.0.id())).unwrap()
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn a_current_directory_has_its_path_whatever_others_do_to_its_name() {
    let (_cluster, [a, b]) = mounts();
    fs::create_dir_all(a.at("work/inner")).unwrap();
    let (here, other) = (a.at("work"), a.at("elsewhere"));
    let path = |relative: &str| b.at(relative);
    let shell = Settled::in_directory(&b.at("work"));
    let inner = Settled::in_directory(&b.at("work/inner"));
    let there_and_back = || {
        fs::rename(&here, &other).unwrap();
        fs::rename(&other, &here).unwrap();
    };
    // Just after the kernel was told of the name, and when that is so long ago that all answers have arrived.
    for _ in 0..20 {
        assert!(b.at("work/inner").is_dir());
        there_and_back();
        assert_eq!((shell.place(), inner.place()), (path("work"), path("work/inner")));
    }
    std::thread::sleep(Duration::from_millis(1200));
    there_and_back();
    assert_eq!((shell.place(), inner.place()), (path("work"), path("work/inner")));
    // Where the name is absent, and then another directory's, that shows at once.
    fs::rename(&here, &other).unwrap();
    assert!(!b.at("work").exists() && b.at("elsewhere/inner").is_dir());
    assert_eq!((shell.place(), inner.place()), (path("elsewhere"), path("elsewhere/inner")));
    fs::create_dir(&here).unwrap();
    assert!(b.at("work").is_dir() && !b.at("work/inner").exists());
    // A directory that has just been made is looked up while its name's change is still being told of.
    for n in 0..100 {
        let (made, seen) = (a.at(format!("made-{n}")), format!("made-{n}"));
        assert!(!b.at(&seen).exists());
        fs::create_dir(&made).unwrap();
        let shell = Settled::in_directory(&b.at(&seen));
        put(&made.join("f"), b"");
        fs::set_permissions(&made, Permissions::from_mode(0o750)).unwrap();
        assert_eq!(shell.place(), path(&seen));
        drop(shell);
        fs::remove_dir_all(&made).unwrap();
        fs::create_dir(&made).unwrap();
        assert_eq!(Settled::in_directory(&b.at(&seen)).place(), path(&seen));
    }
}
