//! What is cached costs no request: counted by proxies before every service, and again
//! by the directory service itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_common::api::Operation;
use dfs_common::api::directory::{List, Sessions, Status};
use dfs_tests::costs::is_work;
use dfs_tests::{Cluster, Mount, Role, eventually};

type Counts = BTreeMap<String, u64>;

const FILES: usize = 1_000;
const LEASE: u64 = 4;

/// Requests of the mounts so far, by service and path.
fn asked(cluster: &Cluster) -> Counts {
    let mut all = Counts::new();
    for (role, proxy) in cluster.roles().into_iter().zip(cluster.proxies()) {
        for (path, count) in proxy.requests() {
            if is_work(&path) {
                all.insert(format!("{role:?} {path}"), count);
            }
        }
    }
    let status = cluster.directory(&Status {}).unwrap();
    for (path, count) in status.requests {
        if is_work(&path) {
            all.insert(format!("counted by the directory {path}"), count);
        }
    }
    all
}

/// A mount that logs what [`given_up`] counts.
fn mount(cluster: &Cluster) -> Mount {
    cluster.mount_in("", &[("DFS_LOG".into(), "dfs_mount::vfs::directories=debug".into())])
}

/// How often the kernel had to ask again for a listing that `mount` said it may keep. A kernel that is short of memory, or that
/// gives some back to its host, drops pages of it like those of any file: the listing is asked for twice then, for the rest of
/// it and, with the next one, for all of it.
fn given_up(mount: &Mount) -> u64 {
    mount.log().matches("no longer has all of the listing").count() as u64
}

/// What `work` makes the mounts ask, but for what the kernel of `mount` had given up.
fn costs(cluster: &Cluster, mount: &Mount, work: impl FnOnce()) -> Counts {
    let (before, given_up_before) = (asked(cluster), given_up(mount));
    work();
    let mut after = asked(cluster);
    let again = given_up(mount) - given_up_before;
    assert!(again <= 8, "the kernel gave up listings again and again: {again}");
    after.retain(|path, count| {
        *count -= before.get(path).copied().unwrap_or_default().min(*count);
        if path.ends_with(List::PATH) {
            *count = count.saturating_sub(again);
        }
        *count > 0
    });
    after
}

#[track_caller]
fn free(cluster: &Cluster, mount: &Mount, what: &str, work: impl FnOnce()) {
    let start = Instant::now();
    let cost = costs(cluster, mount, work);
    println!("{what}: {cost:?} in {:?}", start.elapsed());
    assert!(cost.is_empty(), "{what} asked the servers: {cost:?}");
}

fn cluster() -> Cluster {
    Cluster::builder().lease_seconds(LEASE).proxied().start()
}

fn file(mount: &Mount, n: usize) -> std::path::PathBuf {
    mount.at(format!("d/f{n}"))
}

fn make_files(mount: &Mount) {
    fs::create_dir(mount.at("d")).unwrap();
    for n in 0..FILES {
        fs::write(file(mount, n), format!("content of {n}\n").repeat(1 + n % 500)).unwrap();
    }
}

fn stat_all(mount: &Mount) {
    for n in 0..FILES {
        assert!(fs::symlink_metadata(file(mount, n)).unwrap().len() > 0);
    }
}

fn read_all(mount: &Mount) {
    for n in 0..FILES {
        assert!(fs::read_to_string(file(mount, n)).unwrap().starts_with(&format!("content of {n}\n")));
    }
}

fn list(mount: &Mount, times: usize) {
    for _ in 0..times {
        assert_eq!(fs::read_dir(mount.at("d")).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n.as_encoded_bytes()[0] == b'f').count(), FILES);
    }
}

fn miss(mount: &Mount) {
    for n in 0..FILES {
        assert!(!mount.at(format!("d/missing{}", n % 10)).exists());
    }
}

/// Everything once or twice, so that it is cached.
fn warm(mount: &Mount) {
    for _ in 0..2 {
        stat_all(mount);
        read_all(mount);
        list(mount, 2);
        miss(mount);
    }
}

#[track_caller]
fn all_free(cluster: &Cluster, mount: &Mount, when: &str) {
    free(cluster, mount, &format!("{when}: 1,000 stats"), || stat_all(mount));
    free(cluster, mount, &format!("{when}: 1,000 times open, read, close"), || read_all(mount));
    free(cluster, mount, &format!("{when}: 100 listings of 1,000 files"), || list(mount, 100));
    free(cluster, mount, &format!("{when}: 1,000 times a missing name"), || miss(mount));
}

#[test]
fn what_is_cached_costs_no_request() {
    let cluster = cluster();
    let (writer, reader) = (mount(&cluster), mount(&cluster));
    make_files(&writer);
    let cost = costs(&cluster, &reader, || warm(&reader));
    println!("the first time: {cost:?}");
    assert!(cost.values().sum::<u64>() > FILES as u64, "the proxies count: {cost:?}");
    all_free(&cluster, &reader, "at once");
    // Whatever the kernel was told to believe for a while: the lease is what counts, and it goes on.
    let start = Instant::now();
    free(&cluster, &reader, "for two leases: stats and listings", || {
        while start.elapsed() < Duration::from_secs(2 * LEASE) {
            stat_all(&reader);
            list(&reader, 1);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    all_free(&cluster, &reader, "two leases later");
    // What the kernel gives back is asked for again, and kept again.
    let before = given_up(&reader);
    fs::write("/proc/sys/vm/drop_caches", "1").expect("as root");
    free(&cluster, &reader, "without the kernel's pages: 100 listings", || list(&reader, 100));
    assert!(given_up(&reader) > before, "listings are pages");
    // The one who wrote it all knows it as well.
    warm(&writer);
    all_free(&cluster, &writer, "on the mount that wrote");
}

#[test]
fn a_change_elsewhere_costs_what_changed_and_no_more() {
    let cluster = cluster();
    let (writer, reader) = (mount(&cluster), mount(&cluster));
    make_files(&writer);
    warm(&reader);
    let most = |what: &str, most: u64, change: &dyn Fn()| {
        change();
        let cost = costs(&cluster, &reader, || {
            stat_all(&reader);
            read_all(&reader);
            list(&reader, 1);
            miss(&reader);
        });
        println!("after {what}: {cost:?}");
        // Each is counted twice at the directory: before it and by it.
        assert!(cost.values().sum::<u64>() <= 2 * most, "after {what}: {cost:?}");
        all_free(&cluster, &reader, what);
    };
    most("one close", 8, &|| fs::write(file(&writer, 7), "content of 7\nnew").unwrap());
    most("one chmod", 4, &|| fs::set_permissions(file(&writer, 8), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap());
    most("one rename there and back", 12, &|| {
        fs::rename(file(&writer, 9), writer.at("d/other")).unwrap();
        fs::rename(writer.at("d/other"), file(&writer, 9)).unwrap();
    });
    assert_eq!(fs::read_to_string(file(&reader, 7)).unwrap(), "content of 7\nnew");
}

#[test]
fn after_a_restart_only_what_changed_is_asked_again() {
    let mut cluster = cluster();
    let reader = mount(&cluster);
    make_files(&reader);
    warm(&reader);
    let held = cluster.directory(&Status {}).unwrap().leases;
    assert!(held >= FILES as u64, "{held} leases on {FILES} files");
    cluster.kill(Role::Directory);
    cluster.restart(Role::Directory);
    let rows = || cluster.directory(&Sessions {}).unwrap();
    eventually(20, "the leases are claimed again", || rows().iter().map(|r| r.leases).sum::<u64>() >= FILES as u64);
    all_free(&cluster, &reader, "after a restart");
}

#[test]
fn git_status_of_a_clean_tree_costs_nothing() {
    let cluster = cluster();
    let mount = mount(&cluster);
    // Older than the index: else git reads content again, as it cannot tell whether it has changed since.
    mount.run(
        "mkdir tree && cd tree && for d in $(seq 20); do mkdir d$d; for f in $(seq 50); do echo $d $f > d$d/f$f; done; done
         find . -type f -exec touch -d '1 hour ago' {} +
         git init -q . && git -c user.name=t -c user.email=t@t add . && git -c user.name=t -c user.email=t@t commit -qm all",
    );
    let tree = mount.at("tree");
    let status = |options: &str| {
        let out = dfs_tests::shell::run(Path::new(&tree), &format!("git {options} status --porcelain"));
        assert_eq!(out, "");
    };
    // The first ones write what they found into the index.
    (0..3).for_each(|_| status(""));
    status("--no-optional-locks");
    free(&cluster, &mount, "git status", || status("--no-optional-locks"));
    // By default it also takes the index's lock, a file that it creates and removes: that, and nothing for the 1,000 files.
    let cost = costs(&cluster, &mount, || status(""));
    println!("git status with its lock: {cost:?}");
    assert!(cost.values().sum::<u64>() <= 16, "{cost:?}");
}
