//! flock(2) and fcntl(2) across clients, and the programs that depend on them.

use std::fs::{self, File, OpenOptions};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dfs_common::api::lock::{RangeRow, Ranges};
use dfs_tests::{Cluster, Mount, Role, eventually, shell, sys};
use libc::{F_RDLCK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN};

fn with_file() -> (Cluster, Mount, Mount) {
    let cluster = Cluster::small();
    let (a, b) = (cluster.mount(), cluster.mount());
    fs::write(a.at("f"), "0123456789").unwrap();
    (cluster, a, b)
}

fn reader(mount: &Mount) -> File {
    File::open(mount.at("f")).unwrap()
}

fn rows(cluster: &Cluster) -> Vec<RangeRow> {
    cluster.lock(&Ranges { ino: None }).unwrap()
}

/// A process on `mount` that takes an exclusive flock of `f` and sleeps.
fn holder(cluster: &Cluster, mount: &Mount) -> Child {
    let child = Command::new("flock").arg(mount.at("f")).args(["sleep", "1000"]).stdout(Stdio::null()).spawn().unwrap();
    eventually(10, "the lock is taken", || rows(cluster).iter().any(|row| row.process.program == "flock"));
    child
}

#[test]
fn flock_excludes_across_clients() {
    let (_cluster, a, b) = with_file();
    let (one, two) = (reader(&a), reader(&b));
    sys::flock(&one, LOCK_SH).unwrap();
    sys::flock(&two, LOCK_SH | LOCK_NB).unwrap();
    assert_eq!(sys::errno(sys::flock(&two, LOCK_EX | LOCK_NB)), libc::EWOULDBLOCK);
    // As on a local file system, the refused conversion has cost the old lock, or not: either way the other one's is free to go.
    sys::flock(&one, LOCK_UN).unwrap();
    sys::flock(&two, LOCK_EX | LOCK_NB).unwrap();
    assert_eq!(sys::errno(sys::flock(&one, LOCK_SH | LOCK_NB)), libc::EWOULDBLOCK);
    // Another descriptor of the same process on the same mount is another owner.
    assert_eq!(sys::errno(sys::flock(&reader(&b), LOCK_SH | LOCK_NB)), libc::EWOULDBLOCK);
}

#[test]
fn a_waiting_flock_is_granted_when_the_holder_closes() {
    let (cluster, a, b) = with_file();
    let held = reader(&a);
    sys::flock(&held, LOCK_EX).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let file = reader(&b);
            sys::flock(&file, LOCK_EX).unwrap();
            Instant::now()
        });
        eventually(10, "somebody waits", || rows(&cluster).iter().any(|row| row.waits));
        let closed = Instant::now();
        sys::close(held).unwrap();
        let took = waiter.join().unwrap().saturating_duration_since(closed);
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
    eventually(5, "nothing is left", || rows(&cluster).is_empty());
}

#[test]
fn locks_end_with_their_process() {
    let (cluster, a, b) = with_file();
    let mut child = holder(&cluster, &a);
    let file = reader(&b);
    assert_eq!(sys::errno(sys::flock(&file, LOCK_EX | LOCK_NB)), libc::EWOULDBLOCK);
    // flock(1) and the program that it runs share the descriptor.
    shell::run(b.path(), &format!("pkill -KILL -P {0}; kill -KILL {0} 2>/dev/null || true", child.id()));
    child.wait().unwrap();
    eventually(5, "the lock is free", || sys::flock(&file, LOCK_EX | LOCK_NB).is_ok());
}

#[test]
fn locks_end_with_their_client() {
    let cluster = Cluster::builder().lease_seconds(3).start();
    let (mut a, b) = (cluster.mount(), cluster.mount());
    fs::write(a.at("f"), "").unwrap();
    let mut child = holder(&cluster, &a);
    let file = reader(&b);
    let start = Instant::now();
    a.kill();
    sys::flock(&file, LOCK_EX).unwrap();
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    shell::attempt(b.path(), &format!("pkill -KILL -P {0}; kill -KILL {0}", child.id()));
    child.wait().unwrap();
}

#[test]
fn a_signal_ends_a_waiting_lock() {
    let (cluster, a, b) = with_file();
    let held = reader(&a);
    sys::flock(&held, LOCK_EX).unwrap();
    let mut child = Command::new("env").args(["--default-signal", "flock"]).arg(b.at("f")).arg("true").spawn().unwrap();
    eventually(10, "flock waits", || rows(&cluster).iter().any(|row| row.waits));
    sys::signal(child.id() as i32, libc::SIGTERM);
    assert!(!child.wait().unwrap().success());
    eventually(5, "its place is given up", || !rows(&cluster).iter().any(|row| row.waits));
    sys::close(held).unwrap();
    sys::flock(&reader(&a), LOCK_EX | LOCK_NB).unwrap();
}

#[test]
fn fcntl_ranges_split_merge_and_name_the_holder() {
    let (_cluster, a, b) = with_file();
    let (one, two) = (OpenOptions::new().read(true).write(true).open(a.at("f")).unwrap(), reader(&b));
    sys::lock_range(&one, F_WRLCK, 0, 10, false).unwrap();
    sys::lock_range(&one, F_UNLCK, 4, 2, false).unwrap();
    let me = std::process::id() as i32;
    assert_eq!(sys::test_range(&two, F_RDLCK, 0, 0).unwrap(), Some((F_WRLCK, 0, 4, me)));
    assert_eq!(sys::test_range(&two, F_RDLCK, 4, 2).unwrap(), None);
    sys::lock_range(&two, F_RDLCK, 4, 2, false).unwrap();
    assert_eq!(sys::errno(sys::lock_range(&two, F_RDLCK, 3, 1, false)), libc::EAGAIN);
    assert_eq!(sys::errno(sys::lock_range(&one, F_WRLCK, 5, 1, false)), libc::EAGAIN);
    assert_eq!(sys::test_range(&one, F_WRLCK, 0, 0).unwrap(), Some((F_RDLCK, 4, 2, me)));
    // Closing any descriptor of the file ends all locks of the process on it.
    sys::close(reader(&a)).unwrap();
    sys::lock_range(&two, F_RDLCK, 0, 0, false).unwrap();
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    let (_cluster, a, b) = with_file();
    let (one, two) = (OpenOptions::new().read(true).write(true).open(a.at("f")).unwrap(), reader(&b));
    sys::flock(&one, LOCK_EX).unwrap();
    sys::lock_range(&one, F_WRLCK, 0, 0, false).unwrap();
    sys::lock_range(&one, F_UNLCK, 0, 0, false).unwrap();
    sys::lock_range(&two, F_RDLCK, 0, 0, false).unwrap();
    assert_eq!(sys::errno(sys::flock(&two, LOCK_SH | LOCK_NB)), libc::EWOULDBLOCK);
}

#[test]
fn a_circle_of_waits_is_refused() {
    let (cluster, a, b) = with_file();
    fs::write(a.at("g"), "").unwrap();
    // As fcntl locks belong to processes, the other side is one of its own.
    let script = "import fcntl, sys\nf, g = open(sys.argv[1]), open(sys.argv[2])\nfcntl.lockf(g, fcntl.LOCK_SH)\nprint('ready', flush=True)\nfcntl.lockf(f, fcntl.LOCK_SH)\nprint('both')";
    let f = OpenOptions::new().read(true).write(true).open(a.at("f")).unwrap();
    sys::lock_range(&f, F_WRLCK, 0, 0, false).unwrap();
    let child = Command::new("python3").args(["-c", script]).arg(b.at("f")).arg(b.at("g")).stdout(Stdio::piped()).spawn().unwrap();
    eventually(20, "it waits for f", || rows(&cluster).iter().any(|row| row.waits));
    let g = OpenOptions::new().read(true).write(true).open(a.at("g")).unwrap();
    assert_eq!(sys::errno(sys::lock_range(&g, F_WRLCK, 0, 0, true)), libc::EDEADLK);
    sys::lock_range(&f, F_UNLCK, 0, 0, false).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"ready\nboth\n");
}

#[test]
fn locks_survive_a_restart_of_the_lock_service() {
    let mut cluster = Cluster::builder().start();
    let (a, b) = (cluster.mount(), cluster.mount());
    fs::write(a.at("f"), "").unwrap();
    let (one, two) = (reader(&a), reader(&b));
    sys::flock(&one, LOCK_EX).unwrap();
    cluster.kill(Role::Lock);
    cluster.restart(Role::Lock);
    assert_eq!(sys::errno(sys::flock(&two, LOCK_EX | LOCK_NB)), libc::EWOULDBLOCK);
    sys::flock(&one, LOCK_UN).unwrap();
    sys::flock(&two, LOCK_EX | LOCK_NB).unwrap();
}

#[test]
fn locks_are_shown() {
    let (cluster, a, b) = with_file();
    let mut child = holder(&cluster, &a);
    let mut waiter = Command::new("flock").arg(b.at("f")).arg("true").spawn().unwrap();
    eventually(10, "flock waits", || rows(&cluster).iter().any(|row| row.waits));
    let shown = cluster.dfs(&["locks", "f"]);
    assert!(shown.contains("flock exclusive") && shown.contains("held") && shown.contains("waiting"), "{shown}");
    let path = b.at("f");
    let why = || cluster.dfs(&["why", path.to_str().unwrap()]);
    // What takes shorter than a moment is not listed.
    eventually(5, "dfs why explains the wait", || why().contains("a program's lock, held by flock"));
    shell::attempt(b.path(), &format!("pkill -KILL -P {0}; kill -KILL {0}", child.id()));
    child.wait().unwrap();
    assert!(waiter.wait().unwrap().success());
}

/// What is written under a lock is seen by who gets the lock next and opens the file.
#[test]
fn unlocking_publishes_what_was_written() {
    let (_cluster, a, b) = with_file();
    let mut one = OpenOptions::new().read(true).write(true).open(a.at("f")).unwrap();
    sys::lock_range(&one, F_WRLCK, 0, 0, true).unwrap();
    std::io::Write::write_all(&mut one, b"abc").unwrap();
    sys::lock_range(&one, F_UNLCK, 0, 0, false).unwrap();
    assert_eq!(fs::read_to_string(b.at("f")).unwrap(), "abc3456789");
}

#[test]
fn sqlite_from_two_clients_keeps_its_database_intact() {
    let cluster = Cluster::small();
    let mounts = [cluster.mount(), cluster.mount()];
    mounts[0].run("sqlite3 db 'pragma journal_mode=delete; create table t(client, n)'");
    // A connection has the file open for writing, so the clients take turns by connections.
    let insert = |client: usize, mount: &Mount| {
        for run in 0..50 {
            let statements: String = (0..20).map(|n| format!("insert into t values({client}, {});", run * 20 + n)).collect();
            mount.run(&format!("sqlite3 -bail -cmd '.timeout 60000' db '{statements}'"));
        }
    };
    std::thread::scope(|scope| {
        for (client, mount) in mounts.iter().enumerate() {
            scope.spawn(move || insert(client, mount));
        }
    });
    for mount in &mounts {
        assert_eq!(mount.run("sqlite3 db 'pragma integrity_check; select client, count(distinct n) from t group by client'"), "ok\n0|1000\n1|1000\n");
    }
}

#[test]
fn git_from_two_clients_never_corrupts_a_repository() {
    let cluster = Cluster::small();
    let mounts = [cluster.mount(), cluster.mount()];
    mounts[0].run(
        "git init -q r; cd r; git config user.name t; git config user.email t@t; git config gc.auto 20; echo 0 > f; git add f; git commit -qm 0",
    );
    std::thread::scope(|scope| {
        for (client, mount) in mounts.iter().enumerate() {
            scope.spawn(move || {
                // git refuses where the other one has its lock: it is asked again. The file grows, since git takes one of the same size
                // for the same if it was written again in the second in which the other one wrote the index, just before that.
                mount.run(&format!(
                    "cd r; for n in $(seq 25); do
                       echo $n >> file-{client}
                       for try in $(seq 500); do git add file-{client} 2>/dev/null && git commit -qm 'client {client} commit '$n -- file-{client} 2>/dev/null && break; done
                     done"
                ));
            });
        }
    });
    for mount in &mounts {
        mount.run("cd r; git fsck --full --strict 2>&1 | { ! grep -E 'error|missing|corrupt|broken'; }; git status --porcelain");
        for client in 0..2 {
            let commits = mount.run(&format!("cd r; git log --format=%s | grep -c 'client {client}'"));
            assert_eq!(commits.trim(), "25", "commits of client {client}");
        }
    }
}
