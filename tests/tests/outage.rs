//! A directory service that goes away: calls wait for it, within the mount's limit, and
//! everything goes on when it returns; what was written meanwhile is there once.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfs_common::api::file::COMMIT;
use dfs_tests::{Cluster, Ending, Mount, Rng, Role, eventually, sys, within};

/// Adds a line to a log, as `echo … >> log` does. An open that is stale has done nothing, and the kernel repeats it once only: so it is
/// repeated here.
fn append(log: &Path, line: &str) -> std::io::Result<()> {
    let mut tries = 0..10;
    let mut file = loop {
        match OpenOptions::new().append(true).create(true).open(log) {
            Err(e) if e.raw_os_error() == Some(libc::ESTALE) && tries.next().is_some() => println!("{}: {e}", log.display()),
            other => break other?,
        }
    };
    let written = file.write_all(line.as_bytes());
    let closed = sys::close(file);
    written.and(closed)
}

#[test]
fn a_log_written_through_outages_has_every_record_once() {
    const TIMEOUT: u64 = 30;
    let mut rng = Rng::announced("outage");
    let mut cluster = Cluster::builder().lease_seconds(3).start();
    let mounts: Vec<Mount> = (0..2).map(|_| cluster.mount_with(&format!("timeout={TIMEOUT}"))).collect();
    let (stop, written) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let longest: Vec<Duration> = std::thread::scope(|scope| {
        let ending = Ending(&stop);
        let writers: Vec<_> = mounts
            .iter()
            .zip(&written)
            .enumerate()
            .map(|(who, (mount, count))| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut longest = Duration::ZERO;
                    while !stop.load(Ordering::Relaxed) {
                        let n = count.load(Ordering::Relaxed);
                        let start = Instant::now();
                        append(&mount.at("log"), &format!("{who} {n}\n")).unwrap_or_else(|e| panic!("record {n} of {who}: {e}\n{}", mount.log()));
                        longest = longest.max(start.elapsed());
                        count.store(n + 1, Ordering::Relaxed);
                    }
                    longest
                })
            })
            .collect();
        for round in 0..6 {
            let before = written[round % 2].load(Ordering::Relaxed);
            let goes_on = within(Duration::from_secs(TIMEOUT), || {
                written[round % 2].load(Ordering::Relaxed) >= before + 10 || writers.iter().any(|w| w.is_finished())
            });
            assert!(goes_on, "round {round}: nothing is written any more");
            cluster.kill(Role::Directory);
            // The last ones for longer than a lease.
            std::thread::sleep(Duration::from_millis(if round < 4 { rng.below(2_000) } else { 5_000 }));
            cluster.restart(Role::Directory);
        }
        let before = written[0].load(Ordering::Relaxed);
        within(Duration::from_secs(TIMEOUT), || written[0].load(Ordering::Relaxed) > before + 10 || writers.iter().any(|w| w.is_finished()));
        drop(ending);
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    println!("{written:?} records, the longest call took {longest:?}");
    assert!(longest.iter().all(|l| *l < Duration::from_secs(TIMEOUT + 5)), "{longest:?}");
    for reader in [&mounts[0], &mounts[1], &cluster.mount()] {
        let text = fs::read_to_string(reader.at("log")).unwrap();
        for (who, count) in written.iter().enumerate() {
            let got: Vec<&str> = text.lines().filter(|l| l.starts_with(&format!("{who} "))).collect();
            let wanted: Vec<String> = (0..count.load(Ordering::Relaxed)).map(|n| format!("{who} {n}")).collect();
            let first = got.iter().zip(&wanted).position(|(a, b)| a != b);
            assert!(got == wanted, "writer {who}: {} records of {}, the first wrong one at {first:?}", got.len(), wanted.len());
        }
        assert_eq!(text.lines().count() as u64, written.iter().map(|c| c.load(Ordering::Relaxed)).sum::<u64>());
    }
    cluster.assert_no_panics();
}

#[test]
fn changes_whose_answer_got_lost_have_their_true_result() {
    let cluster = Cluster::builder().lease_seconds(3).proxied().start();
    let mount = cluster.mount();
    let directory = cluster.proxy(Role::Directory);
    for n in 0..20 {
        let (one, two, dir) = (mount.at(format!("f{n}")), mount.at(format!("g{n}")), mount.at(format!("d{n}")));
        let exclusive = || OpenOptions::new().write(true).create_new(true).open(&one).and_then(sys::close);
        let steps: [(&str, &dyn Fn() -> std::io::Result<()>); 7] = [
            ("make", &exclusive),
            ("set-attributes", &|| fs::set_permissions(&one, std::os::unix::fs::PermissionsExt::from_mode(0o600))),
            ("link", &|| fs::hard_link(&one, mount.at("hard")).and_then(|()| fs::remove_file(mount.at("hard")))),
            ("rename", &|| fs::rename(&one, &two)),
            ("remove", &|| fs::remove_file(&two)),
            ("make", &|| fs::create_dir(&dir)),
            ("remove", &|| fs::remove_dir(&dir)),
        ];
        for (request, step) in steps {
            directory.lose_answer_to(&format!("POST /v1/directory/{request}"));
            step().unwrap_or_else(|e| panic!("{request} number {n}: {e}\n{}", mount.log()));
            assert!(directory.has_lost(), "no {request} was sent");
        }
    }
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    let requests = directory.requests();
    // Four in each round beside the link's remove, and each of them twice.
    let sent: u64 = ["make", "rename", "link"].iter().filter_map(|what| requests.get(&format!("POST /v1/directory/{what}"))).sum();
    assert!(sent >= 2 * 4 * 20, "{sent} requests: {requests:?}");
}

#[test]
fn a_close_whose_answer_got_lost_is_published_once() {
    let cluster = Cluster::builder().proxied().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    let (server, mut text) = (cluster.proxy(Role::File(0)), String::new());
    for n in 0..20 {
        text += &format!("record {n}\n");
        server.lose_answer_to(&format!("POST {COMMIT}"));
        append(&mount.at("log"), &format!("record {n}\n")).unwrap_or_else(|e| panic!("record {n}: {e}\n{}", mount.log()));
        assert!(server.has_lost(), "nothing was sent");
        assert_eq!(fs::read_to_string(other.at("log")).unwrap(), text);
    }
    cluster.assert_no_panics();
}

#[test]
fn calls_return_in_time_when_the_server_is_gone_and_work_when_it_is_back() {
    const TIMEOUT: u64 = 3;
    let mut cluster = Cluster::builder().lease_seconds(3).start();
    let mount = cluster.mount_with(&format!("timeout={TIMEOUT}"));
    mount.run("mkdir d; echo one > d/f; echo two > d/g");
    let file = |name: &str| mount.at(format!("d/{name}"));
    let limit = Duration::from_secs(3 * TIMEOUT);
    cluster.kill(Role::Directory);
    let calls: [(&str, &dyn Fn() -> std::io::Result<()>); 7] = [
        ("create", &|| fs::File::create(file("new")).and_then(sys::close)),
        ("mkdir", &|| fs::create_dir(file("sub"))),
        ("rename", &|| fs::rename(file("f"), file("h"))),
        ("unlink", &|| fs::remove_file(file("g"))),
        ("chmod", &|| fs::set_permissions(file("f"), std::os::unix::fs::PermissionsExt::from_mode(0o600))),
        ("append", &|| append(&file("f"), "more\n")),
        ("a name never looked up", &|| fs::symlink_metadata(file("never")).map(drop)),
    ];
    for (what, call) in calls {
        let start = Instant::now();
        let error = call().expect_err("nobody is there");
        println!("{what}: {error} after {:?}", start.elapsed());
        assert!(matches!(error.raw_os_error(), Some(libc::ETIMEDOUT | libc::EIO)), "{what}: {error}");
        assert!(start.elapsed() < limit, "{what} took {:?}", start.elapsed());
    }
    // The lease is over by now: nothing is believed that could have changed.
    let start = Instant::now();
    let error = fs::symlink_metadata(file("f")).expect_err("the lease is over");
    assert!(start.elapsed() < limit && matches!(error.raw_os_error(), Some(libc::ETIMEDOUT | libc::EIO)), "{error} after {:?}", start.elapsed());
    let address = cluster.source().trim_start_matches("http://").to_owned();
    assert!(mount.log().contains(&address), "the log does not say who did not answer:\n{}", mount.log());
    cluster.restart(Role::Directory);
    eventually(20, "a stat works again", || fs::symlink_metadata(file("f")).is_ok());
    let text = fs::read_to_string(file("f")).unwrap();
    assert!(text.starts_with("one\n") && text.lines().count() <= 2, "{text:?}");
    eventually(20, "changes work again", || append(&file("log"), "x\n").is_ok());
    mount.run("echo three > d/i; mv d/i d/j; cat d/j; rm d/j");
    assert_eq!(fs::read_to_string(cluster.mount().at("d/log")).unwrap().lines().last(), Some("x"));
    cluster.assert_no_panics();
}

#[test]
fn a_stopped_server_is_as_good_as_none() {
    let mut cluster = Cluster::builder().lease_seconds(3).start();
    let mount = cluster.mount_with("timeout=3");
    mount.run("echo one > f");
    let stopped = cluster.daemon(Role::Directory).stop();
    let start = Instant::now();
    let error = fs::File::create(mount.at("g")).expect_err("nobody answers");
    println!("{error} after {:?}", start.elapsed());
    assert!(
        matches!(error.raw_os_error(), Some(libc::ETIMEDOUT | libc::EIO)) && start.elapsed() < Duration::from_secs(9),
        "{error} after {:?}",
        start.elapsed()
    );
    drop(stopped);
    eventually(20, "all works again", || fs::read_to_string(mount.at("f")).is_ok_and(|t| t == "one\n") && append(&mount.at("h"), "x").is_ok());
}
