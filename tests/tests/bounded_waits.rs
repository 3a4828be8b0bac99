//! Nothing hangs for ever: with a service stopped, killed or unreachable, every call ends
//! within the mount's timeout and says so; what waits is seen by `dfs why`, and can be
//! interrupted; when the service is back, so is everything else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dfs_tests::process::Stopped;
use dfs_tests::proxy::{Direction, Mode};
use dfs_tests::{Cluster, Mount, Role, eventually, shell, sys, within};
use serde_json::Value;

/// The mounts' timeout, and how late a call may be on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(4);

/// How a service goes away.
#[derive(Clone, Copy, Debug)]
enum Away {
    Stopped,
    Killed,
    Unreachable,
}

impl Away {
    /// What it returns is for [`Away::end`].
    #[must_use]
    fn begin(self, cluster: &mut Cluster, role: Role) -> Option<Stopped> {
        match self {
            Away::Stopped => return Some(cluster.daemon(role).stop()),
            Away::Killed => cluster.kill(role),
            Away::Unreachable => cluster.proxy(role).set_both(Mode::Swallow),
        }
        None
    }

    fn end(self, stopped: Option<Stopped>, cluster: &mut Cluster, role: Role) {
        match self {
            Away::Stopped => drop(stopped),
            Away::Killed => cluster.restart(role),
            Away::Unreachable => cluster.proxy(role).set_both(Mode::Pass),
        }
    }
}

/// Carries out `call`, which must not take longer than the timeout, and fail as waits end.
#[track_caller]
fn ends<T>(what: &str, mount: &Mount, call: impl FnOnce() -> io::Result<T>) {
    let start = Instant::now();
    let result = call();
    let took = start.elapsed();
    println!("{what}: {took:?}, {:?}", result.as_ref().err());
    assert!(took < TIMEOUT + SLACK, "{what} took {took:?}\n{}", mount.log());
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ETIMEDOUT | libc::EIO)) => {}
        Err(e) => panic!("{what}: {e}\n{}", mount.log()),
        Ok(_) => panic!("{what} cannot have worked\n{}", mount.log()),
    }
}

fn writer(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// A file that is open with changes that nobody else sees yet.
fn unpublished(path: &Path) -> File {
    let mut file = writer(path).unwrap();
    file.write_all(b"unpublished").unwrap();
    file
}

fn prepared(cluster: &Cluster) -> Mount {
    let mount = cluster.mount_with(&format!("timeout={}", TIMEOUT.as_secs()));
    let other = cluster.mount();
    other.run("mkdir d e; for f in a b c f g h i; do head -c 100000 /dev/urandom > $f; done; ln -s ../f d/link; setfattr -n user.x -v y f");
    mount.run("ls -l > /dev/null; cat c > /dev/null");
    mount
}

fn without_the_directory_service(away: Away) {
    let mut cluster = Cluster::builder().proxied().start();
    let mount = prepared(&cluster);
    let (dirty, synced) = (unpublished(&mount.at("f")), unpublished(&mount.at("g")));
    let at = |name: &str| mount.at(name);
    let stopped = away.begin(&mut cluster, Role::Directory);
    ends("mkdir", &mount, || fs::create_dir(at("new")));
    ends("create", &mount, || File::create(at("d/new")));
    ends("rename", &mount, || fs::rename(at("a"), at("a2")));
    ends("unlink", &mount, || fs::remove_file(at("b")));
    ends("rmdir", &mount, || fs::remove_dir(at("e")));
    ends("symlink", &mount, || std::os::unix::fs::symlink("x", at("e/l")));
    ends("chmod", &mount, || fs::set_permissions(at("c"), std::os::unix::fs::PermissionsExt::from_mode(0o600)));
    ends("stat", &mount, || fs::metadata(at("d/never")));
    ends("readlink", &mount, || fs::read_link(at("d/link")));
    ends("getxattr", &mount, || sys::get_xattr(&at("f"), "user.x"));
    ends("statfs", &mount, || sys::statvfs(mount.path()));
    ends("readdir", &mount, || fs::read_dir(at("d"))?.next().unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EIO))));
    if matches!(away, Away::Unreachable) {
        // The file server reaches it, and publishes.
        synced.sync_all().unwrap();
        sys::close(dirty).unwrap();
    } else {
        ends("fsync", &mount, || synced.sync_all());
        ends("close", &mount, || sys::close(dirty));
    }
    let url = cluster.source().to_owned();
    assert!(mount.log().contains(&format!("{url} did not answer")), "the log does not name {url}\n{}", mount.log());
    away.end(stopped, &mut cluster, Role::Directory);
    eventually(30, "everything works again", || fs::metadata(at("d/never")).is_err_and(|e| e.kind() == io::ErrorKind::NotFound));
    drop(synced);
    eventually(30, "what was written is published", || {
        fs::read(at("g")).is_ok_and(|text| text.starts_with(b"unpublished")) && fs::write(at("after"), "x").is_ok()
    });
    let fresh = cluster.mount();
    eventually(30, "others see it", || fs::read(fresh.at("f")).is_ok_and(|text| text.starts_with(b"unpublished")));
    cluster.assert_no_panics();
}

#[test]
fn calls_end_when_the_directory_service_is_stopped() {
    without_the_directory_service(Away::Stopped);
}

#[test]
fn calls_end_when_the_directory_service_is_killed() {
    without_the_directory_service(Away::Killed);
}

#[test]
fn calls_end_when_the_directory_service_is_unreachable() {
    without_the_directory_service(Away::Unreachable);
}

fn without_the_file_server(away: Away) {
    let mut cluster = Cluster::builder().proxied().start();
    let mount = prepared(&cluster);
    let dirty = unpublished(&mount.at("f"));
    let stopped = away.begin(&mut cluster, Role::File(0));
    // Every one of them waits for the same download; they end together and not one after the other.
    std::thread::scope(|scope| {
        for n in 0..5 {
            let mount = &mount;
            scope.spawn(move || ends(&format!("open {n}"), mount, || fs::read(mount.at("h"))));
        }
    });
    assert_eq!(fs::read(mount.at("c")).map(|text| text.len()).ok(), Some(100_000), "what is cached is read");
    ends("fsync", &mount, || dirty.sync_all());
    ends("close", &mount, || sys::close(dirty));
    let url = cluster.proxy(Role::File(0)).url();
    assert!(mount.log().lines().any(|line| line.contains(" ERROR ") && line.contains(url)), "the log does not name {url}\n{}", mount.log());
    away.end(stopped, &mut cluster, Role::File(0));
    eventually(30, "reading works again", || fs::read(mount.at("h")).is_ok());
    let fresh = cluster.mount();
    eventually(30, "what was written is published", || fs::read(fresh.at("f")).is_ok_and(|text| text.starts_with(b"unpublished")));
    cluster.assert_no_panics();
}

#[test]
fn calls_end_when_a_file_server_is_stopped() {
    without_the_file_server(Away::Stopped);
}

#[test]
fn calls_end_when_a_file_server_is_killed() {
    without_the_file_server(Away::Killed);
}

#[test]
fn calls_end_when_a_file_server_is_unreachable() {
    without_the_file_server(Away::Unreachable);
}

fn without_the_lock_service(away: Away) {
    let mut cluster = Cluster::builder().proxied().start();
    let (mount, other) = (prepared(&cluster), cluster.mount());
    let held = writer(&mount.at("f")).unwrap();
    let foreign = writer(&other.at("i")).unwrap();
    let stopped = std::thread::scope(|scope| {
        let in_line = scope.spawn(|| {
            let result = writer(&mount.at("i"));
            (Instant::now(), result)
        });
        eventually(10, "it stands in line", || cluster.waiters("i") == 1);
        let stopped = away.begin(&mut cluster, Role::Lock);
        let start = Instant::now();
        ends("open for writing", &mount, || writer(&mount.at("g")));
        let (at, result) = in_line.join().unwrap();
        println!("the one in line: {:?} after {:?}", result, at - start);
        assert!(matches!(result.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT | libc::EIO)));
        assert!(at - start < TIMEOUT + SLACK, "{}", mount.log());
        stopped
    });
    // What nobody uses is given back after a while, which fails now.
    sys::close(held).unwrap();
    assert!(fs::read(mount.at("a")).is_ok(), "reading needs no lock");
    eventually(30, "the log says so", || mount.log().contains("was not given back"));
    away.end(stopped, &mut cluster, Role::Lock);
    eventually(30, "the lock is given back", || OpenOptions::new().append(true).open(other.at("f")).is_ok());
    drop(foreign);
    eventually(30, "no place or lock is left behind", || cluster.lock(&dfs_common::api::lock::Locks::default()).is_ok_and(|rows| rows.is_empty()));
    assert!(writer(&mount.at("i")).is_ok() && writer(&mount.at("g")).is_ok());
    cluster.assert_no_panics();
}

#[test]
fn calls_end_when_the_lock_service_is_stopped() {
    without_the_lock_service(Away::Stopped);
}

#[test]
fn calls_end_when_the_lock_service_is_killed() {
    without_the_lock_service(Away::Killed);
}

#[test]
fn calls_end_when_the_lock_service_is_unreachable() {
    without_the_lock_service(Away::Unreachable);
}

/// What `dfs why` says of `target`.
fn why(cluster: &Cluster, target: &str) -> Value {
    let text = cluster.dfs(&["--json", "why", target]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn waits(findings: &Value) -> Vec<&Value> {
    findings["mounts"].as_array().unwrap().iter().flat_map(|mount| mount["waits"].as_array().unwrap()).collect()
}

fn spawn(program: &str, args: &[&str]) -> Child {
    // Whoever started the tests in the background may have had SIGINT ignored, and that is inherited.
    Command::new("env")
        .args(["--default-signal", program])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits for the end of a program.
fn ended(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    within(limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status
}

#[test]
fn why_names_the_holder_of_a_lock() {
    let cluster = Cluster::builder().start();
    let (a, b) = (cluster.mount(), cluster.mount());
    a.run("mkdir d; echo start > d/f");
    let path = b.at("d/f").display().to_string();
    assert!(waits(&why(&cluster, &path)).is_empty());
    assert!(cluster.dfs(&["why", &path]).starts_with("nothing waits for "));
    let holder = writer(&a.at("d/f")).unwrap();
    let mut waiting = spawn("dd", &["if=/dev/null", &format!("of={path}"), "conv=notrunc"]);
    eventually(10, "it stands in line", || cluster.waiters("d/f") == 1);
    let pid = waiting.id();
    let inode = cluster.inode("d/f").0;
    for target in [path.clone(), pid.to_string(), b.path().display().to_string()] {
        let findings = why(&cluster, &target);
        let rows = waits(&findings);
        assert_eq!(rows.len(), 1, "{target}: {findings}");
        let row = rows[0];
        assert_eq!((row["operation"].as_str(), row["pid"].as_u64(), row["program"].as_str()), (Some("open"), Some(u64::from(pid)), Some("dd")));
        assert_eq!((row["ino"].as_u64(), row["path"].as_str()), (Some(inode), Some("/d/f")), "{findings}");
        assert_eq!(row["steps"][0]["lock"]["ino"].as_u64(), Some(inode), "{findings}");
    }
    let lock = &why(&cluster, &path)["locks"][0];
    assert_eq!(lock["holder"]["owner"]["pid"].as_u64(), Some(u64::from(std::process::id())), "{lock}");
    assert_eq!(lock["queue"][0]["owner"]["pid"].as_u64(), Some(u64::from(pid)), "{lock}");
    let text = cluster.dfs(&["why", &path]);
    println!("{text}");
    assert!(text.contains("the write lock, held by") && text.contains("waiting, 1."), "{text}");
    assert!(waits(&why(&cluster, &a.path().display().to_string())).is_empty(), "the other mount has nothing to do with it");
    sys::close(holder).unwrap();
    assert!(ended(&mut waiting, Duration::from_secs(10)).is_some_and(|status| status.success()));
    eventually(10, "nothing waits any more", || waits(&why(&cluster, &path)).is_empty());
}

#[test]
fn why_works_without_the_services_and_a_wait_can_be_interrupted() {
    let mut cluster = Cluster::builder().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    // A directory that this mount has made itself is known to be empty.
    other.run("mkdir d");
    mount.run("stat d");
    let path = mount.at("d/never").display().to_string();
    let stopped = cluster.daemon(Role::Directory).stop();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let mut stat = spawn("stat", &[&path]);
        let start = Instant::now();
        let mut findings = Value::Null;
        eventually(15, "the wait is seen", || {
            findings = why(&cluster, &stat.id().to_string());
            !waits(&findings).is_empty()
        });
        let row = waits(&findings)[0];
        // When the lease is over, it begins with the root.
        assert!(row["path"] == "/d/never" && row["operation"] == "lookup" || row["operation"] == "getattr", "{findings}");
        let step = &row["steps"][0]["answer"];
        assert_eq!(step["server"].as_str(), Some(cluster.source()), "{findings}");
        assert!(step["resource"].as_str().unwrap().starts_with("/v1/directory/"), "{findings}");
        let silent = findings["silent"].as_array().unwrap();
        assert!(silent.iter().any(|s| s["who"].as_str() == Some(cluster.source())), "{findings}");
        println!("why took {:?} without the directory service", start.elapsed());
        if signal == libc::SIGINT {
            println!("{}", cluster.dfs(&["why", &path]));
        }
        sys::signal(stat.id() as i32, signal);
        let status = ended(&mut stat, Duration::from_secs(5)).expect("a signal ends the wait");
        assert_eq!(status.signal(), Some(signal), "{status}");
    }
    let start = Instant::now();
    let text = cluster.dfs(&["why", &mount.path().display().to_string()]);
    assert!(text.contains(&format!("{} does not answer", cluster.source())), "{text}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop(stopped);
    assert!(!fs::exists(mount.at("d/never")).unwrap());
}

#[test]
fn a_download_can_be_interrupted() {
    let mut cluster = Cluster::builder().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    other.run("head -c 3000000 /dev/urandom > big");
    mount.run("stat big > /dev/null");
    let stopped = cluster.daemon(Role::File(0)).stop();
    for write in [false, true] {
        let path = mount.at("big").display().to_string();
        let mut program = if write { spawn("dd", &["if=/dev/null", &format!("of={path}"), "conv=notrunc"]) } else { spawn("cat", &[&path]) };
        eventually(10, "it waits", || {
            waits(&why(&cluster, &program.id().to_string())).iter().any(|row| !row["steps"].as_array().unwrap().is_empty())
        });
        sys::signal(program.id() as i32, libc::SIGINT);
        let status = ended(&mut program, Duration::from_secs(5)).expect("a signal ends the wait");
        assert_eq!(status.signal(), Some(libc::SIGINT), "{status}");
    }
    drop(stopped);
    let mut text = Vec::new();
    File::open(mount.at("big")).unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text, fs::read(other.at("big")).unwrap());
    eventually(30, "no lock is left behind", || cluster.lock(&dfs_common::api::lock::Locks::default()).is_ok_and(|rows| rows.is_empty()));
}

#[test]
fn downloads_that_were_given_up_leave_one_cache_file() {
    let cluster = Cluster::builder().proxied().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    other.run("head -c 3000000 /dev/urandom > big");
    mount.run("stat big > /dev/null");
    let slow = Duration::from_secs(2);
    cluster.proxy(Role::File(0)).set(Direction::ToClient, Mode::Delay(slow, slow));
    let path = mount.at("big").display().to_string();
    for _ in 0..3 {
        let mut cat = spawn("cat", &[&path]);
        eventually(20, "blocks are on their way", || {
            let findings = why(&cluster, &path);
            let steps = waits(&findings).into_iter().flat_map(|row| row["steps"].as_array().unwrap().clone()).collect::<Vec<_>>();
            steps.iter().any(|step| step["answer"]["resource"].as_str().is_some_and(|resource| resource.ends_with("/data")))
        });
        sys::signal(cat.id() as i32, libc::SIGINT);
        let status = ended(&mut cat, Duration::from_secs(5)).expect("a signal ends the wait");
        assert_eq!(status.signal(), Some(libc::SIGINT), "{status}");
    }
    let left = || shell::run(mount.cache(), "find . -type f -size +1000k");
    eventually(10, "one cache file is left", || left().lines().count() == 1);
    cluster.proxy(Role::File(0)).set(Direction::ToClient, Mode::Pass);
    assert_eq!(fs::read(mount.at("big")).unwrap(), fs::read(other.at("big")).unwrap());
}

#[test]
fn only_root_and_who_mounted_may_ask() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let why = |prefix: &[&str]| {
        let mut command = Command::new(prefix.first().map_or_else(|| dfs_tests::process::binary("dfs").into_os_string(), Into::into));
        if !prefix.is_empty() {
            // As nobody, who reads neither the checkout's binaries nor the token: both are handed over.
            command.args(&prefix[1..]).arg(dfs_tests::process::binary("dfs"));
        }
        command.arg("--token-file").arg(cluster.token_file()).args(["--json", "why"]).arg(mount.path());
        shell::output(&mut command).text
    };
    let asked = why(&[]);
    assert!(asked.contains(&format!("\"pid\":{}", mount.pid())), "{asked}");
    let refused = why(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    assert!(refused.contains("only root and who mounted it may ask"), "{refused}");
}

#[test]
fn why_names_the_client_whose_acknowledgement_is_missing() {
    let cluster = Cluster::builder().lease_seconds(20).start();
    let (a, b) = (cluster.mount(), cluster.mount());
    a.run("echo start > f");
    b.run("cat f");
    let stopped = b.stop();
    let path = a.at("f").display().to_string();
    let mut chmod = spawn("chmod", &["600", &path]);
    let inode = cluster.inode("f").0;
    let mut findings = Value::Null;
    eventually(10, "the change waits", || {
        findings = why(&cluster, &path);
        findings["changes"].as_array().is_some_and(|changes| !changes.is_empty())
    });
    let change = &findings["changes"][0];
    assert_eq!((change["operation"].as_str(), change["inodes"][0].as_u64()), (Some("/v1/directory/set-attributes"), Some(inode)), "{findings}");
    let text = cluster.dfs(&["why", &path]);
    println!("{text}");
    assert!(text.contains(&format!("which waits for session {}", change["waits_for"][0])), "{text}");
    assert!(text.contains(&format!("process {} on", b.pid())), "{text}");
    drop(stopped);
    assert!(ended(&mut chmod, Duration::from_secs(30)).is_some_and(|status| status.success()));
    eventually(10, "nothing waits any more", || why(&cluster, &path)["changes"].as_array().unwrap().is_empty());
}
