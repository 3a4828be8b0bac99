//! One writer at a time, first come first served across the cluster.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfs_common::api::lock;
use dfs_common::ids::{InodeId, SessionId};
use dfs_tests::{Cluster, Mount, Role, eventually, sys, within};

fn writer(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn with_file<const N: usize>() -> (Cluster, [Mount; N]) {
    let cluster = Cluster::builder().start();
    let mounts: [Mount; N] = std::array::from_fn(|_| cluster.mount());
    fs::write(mounts[0].at("f"), "start\n").unwrap();
    (cluster, mounts)
}

#[test]
fn four_clients_write_in_the_order_of_their_opens() {
    let (cluster, mounts) = with_file::<5>();
    let holder = writer(&mounts[4].at("f"));
    let released = Mutex::new(Instant::now());
    let order = Mutex::new(Vec::new());
    let waits = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (n, mount) in mounts[..4].iter().enumerate() {
            let (released, order, waits) = (&released, &order, &waits);
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).open(mount.at("f")).unwrap();
                waits.lock().unwrap().push(released.lock().unwrap().elapsed());
                order.lock().unwrap().push(n);
                file.write_all(format!("client {n}\n").as_bytes()).unwrap();
                *released.lock().unwrap() = Instant::now();
                sys::close(file).unwrap();
            });
            eventually(10, "the client stands in the queue", || cluster.waiters("f") == n + 1);
        }
        assert!(order.lock().unwrap().is_empty(), "somebody got in while the lock was held");
        *released.lock().unwrap() = Instant::now();
        sys::close(holder).unwrap();
    });
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    assert_eq!(fs::read_to_string(mounts[4].at("f")).unwrap(), "start\nclient 0\nclient 1\nclient 2\nclient 3\n");
    let waits = waits.lock().unwrap();
    println!("from the close before (commit included) to the open: {waits:?}");
    assert!(waits.iter().all(|w| *w < Duration::from_millis(500)), "handing over takes too long: {waits:?}");
}

#[test]
fn readers_are_never_blocked_by_a_writer() {
    let (_cluster, [a, b]) = with_file();
    let mut file = writer(&a.at("f"));
    file.write_all(b"half a new version").unwrap();
    let start = Instant::now();
    assert_eq!(fs::read_to_string(b.at("f")).unwrap(), "start\n");
    let mut same_mount = String::new();
    File::open(a.at("f")).unwrap().read_to_string(&mut same_mount).unwrap();
    assert_eq!(same_mount, "half a new version");
    assert!(start.elapsed() < Duration::from_secs(2), "reading took {:?}", start.elapsed());
    sys::close(file).unwrap();
    assert_eq!(fs::read_to_string(b.at("f")).unwrap(), "half a new version");
}

#[test]
fn processes_of_one_mount_share_its_lock() {
    let (cluster, [a]) = with_file();
    let first = writer(&a.at("f"));
    let second = writer(&a.at("f"));
    assert_eq!(cluster.waiters("f"), 0);
    sys::close(first).unwrap();
    sys::close(second).unwrap();
}

/// Once another client waits, further processes of the holder's mount are behind it. The holder itself is not, nor is
/// what it starts: they would wait for themselves.
#[test]
fn a_mount_does_not_pass_its_lock_on_to_itself_while_others_wait() {
    let (cluster, [a, b]) = with_file();
    let order = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let holder = writer(&a.at("f"));
        scope.spawn(|| {
            let file = writer(&b.at("f"));
            order.lock().unwrap().push("the other client");
            sys::close(file).unwrap();
        });
        eventually(10, "the other client waits", || cluster.waiters("f") == 1);
        sys::close(writer(&a.at("f"))).unwrap();
        let child = Command::new("sh").arg("-c").arg(format!("echo child >> {}", a.at("f").display())).status().unwrap();
        assert!(child.success(), "a child of the holder's process shares its lock");
        // Started by somebody else: systemd, init or whoever adopts it.
        let out = format!("setsid -f sh -c 'exec 9>> {}; echo stranger >> {}'", a.at("f").display(), cluster.dir().join("order").display());
        assert!(Command::new("sh").arg("-c").arg(out).status().unwrap().success());
        eventually(10, "the stranger waits, too", || cluster.waiters("f") == 2);
        sys::close(holder).unwrap();
        eventually(10, "the stranger had its turn", || cluster.dir().join("order").exists());
        assert_eq!(*order.lock().unwrap(), ["the other client"]);
    });
}

#[test]
fn nonblocking_opens_say_that_they_would_wait() {
    let (cluster, [a, b]) = with_file();
    let file = writer(&a.at("f"));
    let error = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(b.at("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EWOULDBLOCK));
    assert_eq!(cluster.waiters("f"), 0, "a refused open leaves nothing in the queue");
    sys::close(file).unwrap();
    let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(b.at("f"));
    eventually(2, "it is free again", || open().is_ok());
}

#[test]
fn lock_wait_bounds_the_wait() {
    let (cluster, [a]) = with_file();
    let b = cluster.mount_with("lock_wait=1");
    let file = writer(&a.at("f"));
    let start = Instant::now();
    let error = OpenOptions::new().write(true).open(b.at("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    let took = start.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(cluster.waiters("f"), 0);
    sys::close(file).unwrap();
}

/// The administrator's rule for a subtree; a mount that was told how long to wait does that.
#[test]
fn how_long_to_wait_can_be_set_for_a_subtree() {
    let cluster = Cluster::builder().directory_args(&["--lock-wait", "/at once=0", "--lock-wait", "/at once/patient=1"]).start();
    let (a, b, told) = (cluster.mount(), cluster.mount(), cluster.mount_with("lock_wait=1.5"));
    fs::create_dir_all(a.at("at once/patient")).unwrap();
    let refused = |mount: &Mount, name: &str, least: u64, most: u64| {
        fs::write(a.at(name), "x").unwrap();
        let file = writer(&a.at(name));
        let start = Instant::now();
        let error = OpenOptions::new().write(true).open(mount.at(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{name}");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(least) && took < Duration::from_millis(most), "{name}: {took:?}");
        sys::close(file).unwrap();
    };
    refused(&b, "at once/f", 0, 500);
    refused(&b, "at once/patient/f", 950, 1450);
    refused(&told, "at once/f", 1450, 3000);
    refused(&told, "f", 1450, 3000);
}

#[test]
fn a_signal_ends_a_waiting_open() {
    let (cluster, [a, b]) = with_file();
    let file = writer(&a.at("f"));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        // Whoever started the tests in the background may have had SIGINT ignored, and that is inherited.
        let mut child = Command::new("env")
            .args(["--default-signal", "dd", "if=/dev/zero"])
            .arg(format!("of={}", b.at("f").display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually(10, "dd waits for the lock", || cluster.waiters("f") == 1);
        let start = Instant::now();
        sys::signal(child.id() as i32, signal);
        let mut status = None;
        let ended = within(Duration::from_secs(5), || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "signal {signal} does not end the wait\n{}", b.log());
        assert_eq!(status.unwrap().signal(), Some(signal));
        println!("signal {signal} ended the wait after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(1));
        eventually(2, "its place in the queue is gone", || cluster.waiters("f") == 0);
    }
    sys::close(file).unwrap();
    drop(writer(&b.at("f")));
}

#[test]
fn a_vanished_holder_loses_its_lock_when_its_lease_ends() {
    let cluster = Cluster::builder().lease_seconds(2).start();
    let (mut a, b) = (cluster.mount(), cluster.mount());
    fs::write(a.at("f"), "start\n").unwrap();
    let file = writer(&a.at("f"));
    let _stopped = a.stop();
    let start = Instant::now();
    let second = writer(&b.at("f"));
    println!("the next in line had it after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(8));
    sys::close(second).unwrap();
    a.kill();
    drop(file);
}

#[test]
fn locks_and_tokens_survive_a_restart_of_the_lock_service() {
    let (mut cluster, [a, b]) = with_file();
    let mut file = writer(&a.at("f"));
    let before = cluster.lock(&lock::Status {}).unwrap().last_token;
    std::thread::scope(|scope| {
        let path = b.at("f");
        let waiting = scope.spawn(move || {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"second\n").unwrap();
            sys::close(file).unwrap();
        });
        eventually(10, "the second writer waits", || cluster.waiters("f") == 1);
        cluster.kill(Role::Lock);
        cluster.restart(Role::Lock);
        eventually(10, "holder and queue are back", || cluster.waiters("f") == 1);
        assert!(!waiting.is_finished(), "the restart gave the lock away");
        file.write_all(b"first\n").unwrap();
        sys::close(file).unwrap();
        waiting.join().unwrap();
    });
    assert_eq!(fs::read_to_string(a.at("f")).unwrap(), "first\nsecond\n");
    let after = cluster.lock(&lock::Status {}).unwrap().last_token;
    assert!(after > before, "token {after} after {before}");
}

#[test]
fn who_holds_a_lock_can_be_seen() {
    let (cluster, [a, b]) = with_file();
    let file = writer(&a.at("f"));
    let mut child = Command::new("dd").arg("if=/dev/null").arg(format!("of={}", b.at("f").display())).stderr(Stdio::null()).spawn().unwrap();
    eventually(10, "dd waits for the lock", || cluster.waiters("f") == 1);
    let rows = cluster.lock(&lock::Locks { ino: Some(cluster.inode("f")) }).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].holder.owner.pid, std::process::id());
    assert_eq!(rows[0].queue[0].owner.program, "dd");
    let shown = cluster.dfs(&["locks"]);
    assert!(shown.contains("dd") && shown.contains(&std::process::id().to_string()), "dfs locks:\n{shown}");
    sys::close(file).unwrap();
    assert!(child.wait().unwrap().success());
}

/// What a client of its own asks for, beside all mounts.
fn acquire(ino: InodeId, session: u64, wait_ms: u64) -> lock::Acquire {
    let owner = lock::Owner { host: "h".into(), pid: session as u32, program: "test".into() };
    lock::Acquire { session: SessionId(session), ino, request: 1, owner, wait_ms, unaware: false, fresh: None }
}

fn lock_range(ino: InodeId, number: u64, (first, last): (u64, u64), wait_ms: u64) -> lock::LockRange {
    let owner = lock::RangeOwner { session: SessionId(1000), family: lock::Family::Posix, number };
    let process = lock::Owner { host: "h".into(), pid: number as u32, program: "test".into() };
    lock::LockRange { ino, owner, span: lock::Span { first, last }, mode: lock::Mode::Exclusive, request: first, process, wait_ms }
}

#[test]
fn sixteen_waiters_have_their_turns_in_order() {
    let cluster = Cluster::builder().start();
    let ino = InodeId(1 << 40);
    let first = cluster.lock(&acquire(ino, 1, 0)).unwrap().token;
    let waiting = || cluster.lock(&lock::Status {}).unwrap().waiters;
    let order = Mutex::new(Vec::new());
    let released = Mutex::new(Instant::now());
    let mut waits = std::thread::scope(|scope| {
        let threads: Vec<_> = (2..18)
            .map(|session| {
                let (cluster, order, released) = (&cluster, &order, &released);
                let thread = scope.spawn(move || {
                    let token = cluster.lock(&acquire(ino, session, 20_000)).unwrap().token;
                    let took = released.lock().unwrap().elapsed();
                    order.lock().unwrap().push(session);
                    *released.lock().unwrap() = Instant::now();
                    cluster.lock(&lock::Release { session: SessionId(session), ino, token }).unwrap();
                    took
                });
                eventually(10, "the session stands in line", || waiting() == session - 1);
                thread
            })
            .collect();
        *released.lock().unwrap() = Instant::now();
        cluster.lock(&lock::Release { session: SessionId(1), ino, token: first }).unwrap();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(*order.lock().unwrap(), (2..18).collect::<Vec<_>>());
    waits.sort();
    println!("from the release before to the grant: median {:?}, longest {:?}", waits[8], waits[15]);
}

#[test]
fn a_broken_lock_goes_to_the_next_in_line() {
    let cluster = Cluster::builder().start();
    let ino = InodeId(1 << 40);
    let first = cluster.lock(&acquire(ino, 1, 0)).unwrap().token;
    let other = cluster.lock(&acquire(InodeId(ino.0 + 1), 1, 0)).unwrap().token;
    std::thread::scope(|scope| {
        let next = scope.spawn(|| cluster.lock(&acquire(ino, 2, 20_000)).unwrap().token);
        eventually(10, "the second session stands in line", || cluster.lock(&lock::Status {}).unwrap().waiters == 1);
        cluster.lock(&lock::Break { ino, token: Some(first), fresh: None }).unwrap();
        assert!(next.join().unwrap() > first);
    });
    cluster.lock(&lock::Break { ino, token: Some(first), fresh: None }).unwrap();
    cluster.lock(&lock::Release { session: SessionId(1), ino, token: first }).unwrap();
    let rows = cluster.lock(&lock::Locks::default()).unwrap();
    let held: Vec<_> = rows.iter().map(|row| row.holder.session).collect();
    assert_eq!(held, [SessionId(2), SessionId(1)], "who had it keeps its other locks, and takes nothing from its successor");
    assert!(rows[1].holder.token == other && rows.iter().all(|row| !row.fencing));
}

#[test]
fn the_lock_of_a_lost_holder_waits_for_the_directory_service() {
    let mut cluster = Cluster::builder().lease_seconds(1).start();
    let ino = InodeId(1 << 40);
    let first = cluster.lock(&acquire(ino, 1, 0)).unwrap().token;
    cluster.kill(Role::Directory);
    eventually(10, "the holder is lost", || cluster.lock(&lock::Status {}).unwrap().fencing == 1);
    let refused = cluster.lock(&acquire(ino, 2, 500)).unwrap_err();
    assert_eq!(refused.kind(), dfs_common::ErrorKind::Busy);
    cluster.kill(Role::Lock);
    cluster.start_alone(Role::Lock);
    eventually(10, "fencing goes on", || cluster.lock(&lock::Status {}).is_ok_and(|status| status.fencing == 1));
    assert_eq!(cluster.lock(&acquire(ino, 2, 0)).unwrap_err().kind(), dfs_common::ErrorKind::WouldBlock);
    cluster.restart(Role::Directory);
    assert!(cluster.lock(&acquire(ino, 2, 20_000)).unwrap().token > first);
}

#[test]
fn locks_on_ranges_survive_a_restart_and_circles_of_them_are_refused() {
    let mut cluster = Cluster::builder().start();
    let ino = InodeId(1 << 40);
    cluster.lock(&lock_range(ino, 1, (0, 9), 0)).unwrap();
    cluster.lock(&lock_range(ino, 2, (20, 29), 0)).unwrap();
    cluster.kill(Role::Lock);
    cluster.restart(Role::Lock);
    let wanted = lock_range(ino, 2, (5, 5), 20_000);
    let test = lock::TestRange { ino, owner: wanted.owner, span: wanted.span, mode: lock::Mode::Shared };
    let found = cluster.lock(&test).unwrap().lock.expect("the lock of process 1 is back");
    assert_eq!((found.process.pid, found.span), (1, lock::Span { first: 0, last: 9 }));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cluster.lock(&wanted));
        eventually(10, "the second one waits", || cluster.lock(&lock::Status {}).unwrap().range_waiters == 1);
        let circle = cluster.lock(&lock_range(ino, 1, (25, 25), 20_000)).unwrap_err();
        assert_eq!(circle.kind(), dfs_common::ErrorKind::Deadlock, "{circle}");
        let unlock = lock::UnlockRange { ino, owner: lock_range(ino, 1, (0, 9), 0).owner, span: lock::Span::ALL };
        cluster.lock(&unlock).unwrap();
        waiting.join().unwrap().unwrap();
    });
    cluster.lock(&lock::End { session: SessionId(1000) }).unwrap();
    assert_eq!(cluster.lock(&lock::Ranges::default()).unwrap(), []);
}
