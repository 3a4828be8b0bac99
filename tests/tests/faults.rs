//! Daemons that die: what users notice, and that nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use dfs_common::api::directory::{Lookup, Versions};
use dfs_common::ids::ROOT;
use dfs_common::name::Name;
use dfs_tests::tree::{assert_same, listing};
use dfs_tests::{Cluster, Mount, Rng, Role, eventually, shell, sys, within};

type Files = BTreeMap<String, Vec<u8>>;

/// Writes `count` files of many sizes, a few of several blocks.
fn write_files(mount: &Mount, prefix: &str, count: u64, rng: &mut Rng, files: &mut Files) {
    for n in 0..count {
        let size = if n % 10 == 0 { 1_500_000 + rng.below(500_000) } else { rng.below(20_000) };
        let (name, content) = (format!("{prefix}{n}"), rng.bytes(size as usize));
        let mut file = fs::File::create(mount.at(&name)).unwrap();
        file.write_all(&content).unwrap();
        sys::close(file).unwrap_or_else(|e| panic!("close of {name}: {e}"));
        files.insert(name, content);
    }
}

fn check_files(mount: &Mount, files: &Files) {
    for (name, content) in files {
        let got = fs::read(mount.at(name)).unwrap_or_else(|e| panic!("{name}: {e}\n{}", mount.log()));
        assert!(got == *content, "{name}: {} bytes instead of {}", got.len(), content.len());
    }
}

/// Reads every file from each of its holders by itself.
fn check_every_copy(cluster: &Cluster, files: &Files, copies: usize) {
    let rows = cluster.servers().unwrap();
    for (name, content) in files {
        let entry = cluster.directory(&Lookup { parent: ROOT, name: Name::new(name.as_bytes()).unwrap() }).unwrap();
        assert_eq!(entry.layout.holders.len(), copies, "holders of {name}");
        for holder in &entry.layout.holders {
            let url = &rows.iter().find(|r| r.server == *holder).unwrap().url;
            let target = format!("/v1/file/versions/{}/{}/data", entry.attributes.ino, entry.attributes.version);
            let reply = dfs_tests::http::exchange(url, &dfs_tests::http::request("GET", &target, cluster.token(), "", b"")).unwrap();
            assert!(reply.status == 200 && reply.body == *content, "{name} on server {holder}: status {}, {} bytes", reply.status, reply.body.len());
        }
    }
}

#[test]
fn any_one_file_server_may_die() {
    let mut rng = Rng::announced("file servers");
    let mut cluster = Cluster::replicated();
    let mut files = Files::new();
    let first = cluster.mount();
    write_files(&first, "before-", 30, &mut rng, &mut files);
    for dead in 0..3 {
        cluster.kill(Role::File(dead));
        let start = Instant::now();
        let fresh = cluster.mount();
        check_files(&fresh, &files);
        println!("server {dead} dead: {} files read with an empty cache in {:?}", files.len(), start.elapsed());
        let start = Instant::now();
        write_files(&first, &format!("without-{dead}-"), 20, &mut rng, &mut files);
        println!("server {dead} dead: 20 files written in {:?}", start.elapsed());
        // Old files too: also those whose primary is the dead one.
        for (name, content) in files.iter_mut().take(10) {
            content.extend_from_slice(b"changed");
            let mut file = OpenOptions::new().append(true).open(first.at(name)).unwrap();
            file.write_all(b"changed").unwrap();
            sys::close(file).unwrap_or_else(|e| panic!("close of {name}: {e}\n{}", first.log()));
        }
        check_files(&fresh, &files);
        cluster.restart(Role::File(dead));
        cluster.wait_replicated();
    }
    check_every_copy(&cluster, &files, 2);
    cluster.assert_no_panics();
}

/// A tree of files, links and directories as a tar archive.
fn archive(cluster: &Cluster) -> (std::path::PathBuf, std::path::PathBuf) {
    let (tree, tar) = (cluster.dir().join("tree"), cluster.dir().join("tree.tar"));
    fs::create_dir(&tree).unwrap();
    let script = "for d in $(seq 25); do mkdir -p d$d/sub; for f in $(seq 30); do seq $d $((d * f * 3)) > d$d/f$f; done; ln -s ../f1 d$d/sub/link; ln d$d/f2 d$d/sub/hard; chmod 640 d$d/f3; done; head -c 3000000 /dev/urandom > big; tar --format=posix -cf ../tree.tar .";
    shell::run(&tree, script);
    (tree, tar)
}

fn untar_while_dying(role: Role) {
    let mut cluster = Cluster::builder().file_servers(2).copies(2).start();
    let mount = cluster.mount();
    let (tree, tar) = archive(&cluster);
    fs::create_dir(mount.at("out")).unwrap();
    let out = mount.at("out");
    std::thread::scope(|scope| {
        let untar = scope.spawn(|| shell::run(&out, &format!("tar xpf {}", tar.display())));
        for point in ["d5", "d12", "d20"] {
            eventually(60, "the untar gets on", || untar.is_finished() || out.join(point).exists());
            cluster.kill(role);
            cluster.restart(role);
        }
        untar.join().unwrap();
    });
    assert_same(&listing(&tree), &listing(&out));
    let other = cluster.mount();
    assert_same(&listing(&tree), &listing(&other.at("out")));
    cluster.assert_no_panics();
}

#[test]
fn an_untar_goes_on_after_the_directory_service_died() {
    untar_while_dying(Role::Directory);
}

#[test]
fn an_untar_goes_on_after_the_lock_service_died() {
    untar_while_dying(Role::Lock);
}

#[test]
fn a_restart_of_everything_loses_nothing_that_was_acknowledged() {
    let mut rng = Rng::announced("crash");
    let mut cluster = Cluster::replicated();
    let mut files = Files::new();
    let mount = cluster.mount();
    write_files(&mount, "f", 40, &mut rng, &mut files);
    for round in 0..3 {
        mount.run("echo again >> f1");
        files.get_mut("f1").unwrap().extend_from_slice(b"again\n");
        let versions = || cluster.directory(&Versions { ino: cluster.inode("f1") }).unwrap().last().unwrap().version;
        let (version, token) = (versions(), cluster.lock(&dfs_common::api::lock::Status {}).unwrap().last_token);
        let sessions = cluster.directory(&dfs_common::api::directory::Sessions {}).unwrap();
        cluster.crash();
        check_files(&mount, &files);
        check_files(&cluster.mount(), &files);
        mount.run(&format!("echo round {round} > new{round}"));
        // The mount may have kept its lock; another one's is a new grant.
        cluster.mount().run("echo more >> f1");
        files.insert(format!("new{round}"), format!("round {round}\n").into_bytes());
        files.get_mut("f1").unwrap().extend_from_slice(b"more\n");
        let after = cluster.directory(&Versions { ino: cluster.inode("f1") }).unwrap().last().unwrap().version;
        assert!(after > version, "version {after:?} after {version:?}");
        let after = cluster.lock(&dfs_common::api::lock::Status {}).unwrap().last_token;
        assert!(after > token, "token {after:?} after {token:?}");
        assert!(!sessions.is_empty());
    }
    check_files(&mount, &files);
    cluster.wait_replicated();
    check_every_copy(&cluster, &files, 2);
}

#[test]
fn a_clean_stop_drains_and_exits_with_0() {
    let mut cluster = Cluster::replicated();
    let mount = cluster.mount();
    mount.run("for i in $(seq 30); do echo $i > f$i; done");
    for role in cluster.roles() {
        let status = cluster.terminate(role);
        assert!(status.success(), "{role:?}: {status}");
    }
    for role in cluster.roles() {
        cluster.daemon(role).start();
    }
    cluster.wait_ready();
    assert_eq!(mount.run("cat f30").trim(), "30");
    assert_eq!(cluster.mount().run("cat f* | wc -l").trim(), "30");
}

#[test]
fn close_reports_that_nothing_could_be_stored_and_the_data_stays() {
    let mut cluster = Cluster::builder().start();
    let mount = cluster.mount_with("timeout=2");
    fs::write(mount.at("f"), "old").unwrap();
    let mut file = OpenOptions::new().write(true).truncate(true).open(mount.at("f")).unwrap();
    file.write_all(b"new content").unwrap();
    cluster.kill(Role::File(0));
    let start = Instant::now();
    let error = sys::close(file).expect_err("nobody has the bytes");
    println!("close failed after {:?}: {error}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "new content", "the mount keeps what it could not store");
    cluster.restart(Role::File(0));
    // The next close that succeeds publishes it.
    let published = || {
        let file = OpenOptions::new().append(true).open(mount.at("f"));
        file.is_ok_and(|f| sys::close(f).is_ok())
    };
    assert!(within(Duration::from_secs(20), published), "closing never succeeds again\n{}", mount.log());
    let other = cluster.mount();
    eventually(20, "the other mount reads it", || fs::read_to_string(other.at("f")).is_ok_and(|t| t == "new content"));
}

#[test]
fn a_killed_mount_leaves_the_cluster_usable_and_can_come_back() {
    let cluster = Cluster::builder().lease_seconds(2).start();
    let (mut a, b) = (cluster.mount(), cluster.mount());
    a.run("echo kept > kept; echo x > f");
    let mut open = OpenOptions::new().write(true).open(a.at("f")).unwrap();
    open.write_all(b"never closed").unwrap();
    a.kill();
    drop(open);
    assert_eq!(b.run("cat kept").trim(), "kept");
    b.run("echo other > f");
    a.start().unwrap();
    assert_eq!(a.run("cat f").trim(), "other");
}
