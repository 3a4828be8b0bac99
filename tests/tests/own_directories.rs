//! A directory that only one mount uses is that mount's own: it makes files there without
//! asking, and tells of them later. Nobody can tell the difference.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Barrier;

use dfs_common::api::directory::Status;
use dfs_tests::{Cluster, Mount, Role, eventually, sys};

const MAKE: &str = "/v1/directory/make";

/// A directory in which `mount` makes files without asking.
fn own(cluster: &Cluster, mount: &Mount) {
    // Once all services know of each other.
    eventually(20, "a file is made without asking", || {
        fs::create_dir(mount.at("d")).unwrap();
        let before = asked(cluster);
        fs::write(mount.at("d/first"), "first").unwrap();
        let is_own = asked(cluster) == before;
        if !is_own {
            fs::remove_dir_all(mount.at("d")).unwrap();
        }
        is_own
    });
}

/// Requests to make something.
fn asked(cluster: &Cluster) -> u64 {
    cluster.directory(&Status {}).unwrap().requests.get(MAKE).copied().unwrap_or_default()
}

/// Makes a file, and leaves it open with something written.
fn begin(at: &Path) -> File {
    let mut file = File::create_new(at).unwrap();
    file.write_all(b"content").unwrap();
    file
}

fn names(at: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_small_file_costs_one_request_to_the_directory_service() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    own(&cluster, &mount);
    let before = asked(&cluster);
    for n in 0..100 {
        fs::write(mount.at(format!("d/{n}")), "content").unwrap();
    }
    assert!(asked(&cluster) - before <= 4, "numbers are reserved by the dozen");
}

#[test]
fn what_was_made_and_is_still_open_is_seen_by_others_however_they_look() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    for look in ["stat", "list", "stat of the directory", "path", "open", "remove", "mount that comes later"] {
        own(&cluster, &one);
        let before = fs::symlink_metadata(one.at("d")).unwrap();
        let file = begin(&one.at("d/f"));
        let after = fs::symlink_metadata(one.at("d")).unwrap();
        assert!(after.modified().unwrap() > before.modified().unwrap());
        match look {
            "stat" => assert_eq!(fs::symlink_metadata(two.at("d/f")).unwrap().len(), 0),
            "list" => assert_eq!(names(&two.at("d")), ["f", "first"]),
            "stat of the directory" => assert_eq!(fs::symlink_metadata(two.at("d")).unwrap().modified().unwrap(), after.modified().unwrap()),
            "path" => assert!(cluster.inode("d/f").0 > 0),
            "open" => assert_eq!(fs::read(two.at("d/f")).unwrap(), b""),
            "remove" => assert_eq!(fs::remove_dir(two.at("d")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty),
            _ => assert_eq!(names(&cluster.mount().at("d")), ["f", "first"]),
        }
        sys::close(file).unwrap();
        for mount in [&one, &two] {
            assert_eq!(fs::read(mount.at("d/f")).unwrap(), b"content", "{look}");
            assert_eq!(names(&mount.at("d")), ["f", "first"], "{look}");
        }
        assert_eq!(
            fs::symlink_metadata(one.at("d")).unwrap().modified().unwrap(),
            fs::symlink_metadata(two.at("d")).unwrap().modified().unwrap(),
            "{look}"
        );
        fs::remove_dir_all(two.at("d")).unwrap();
    }
}

#[test]
fn every_name_travels() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    own(&cluster, &one);
    let long = "\u{e9}".repeat(127);
    let mut expected: Vec<OsString> = ["\u{e9} \u{1f600}", "\n\t\u{7f}", "\"\\'", "-", &long].map(OsString::from).to_vec();
    expected.push(OsString::from_vec(vec![0xff, b'x', 0x80]));
    expected.iter().for_each(|name| sys::close(begin(&one.at("d").join(name))).unwrap());
    expected.push("first".into());
    expected.sort();
    let mut found: Vec<OsString> = fs::read_dir(two.at("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn of_two_who_make_the_same_name_one_succeeds() {
    let cluster = Cluster::small();
    let mounts = [cluster.mount(), cluster.mount()];
    let barrier = Barrier::new(2);
    fs::create_dir(mounts[0].at("d")).unwrap();
    let rounds = 300;
    let work = |mount: &Mount| {
        let mut won = Vec::new();
        for n in 0..rounds {
            // In turn with the other one, or alone: then the directory becomes this mount's own.
            if n % 3 == 0 {
                barrier.wait();
            }
            match File::create_new(mount.at(format!("d/{n}"))) {
                Ok(mut file) => {
                    file.write_all(mount.path().to_str().unwrap().as_bytes()).unwrap();
                    sys::close(file).unwrap();
                    won.push(n);
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::AlreadyExists),
            }
        }
        won
    };
    let won: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = mounts.iter().map(|mount| scope.spawn(move || work(mount))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = won.concat();
    all.sort_unstable();
    assert_eq!(all, (0..rounds).collect::<Vec<_>>(), "each name was made once");
    for (mount, won) in mounts.iter().zip(&won) {
        for n in won {
            for reader in &mounts {
                assert_eq!(fs::read_to_string(reader.at(format!("d/{n}"))).unwrap(), mount.path().to_str().unwrap());
            }
        }
    }
}

#[test]
fn names_change_while_the_file_is_open() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    own(&cluster, &one);
    let (renamed, linked, removed, replaced) = (begin(&one.at("d/a")), begin(&one.at("d/b")), begin(&one.at("d/c")), begin(&one.at("d/e")));
    fs::rename(one.at("d/a"), one.at("moved")).unwrap();
    fs::hard_link(one.at("d/b"), one.at("d/b2")).unwrap();
    fs::remove_file(one.at("d/c")).unwrap();
    fs::rename(one.at("d/first"), one.at("d/e")).unwrap();
    for file in [renamed, linked, removed, replaced] {
        sys::close(file).unwrap();
    }
    for mount in [&one, &two] {
        assert_eq!(names(&mount.at("d")), ["b", "b2", "e"]);
        for name in ["moved", "d/b", "d/b2"] {
            assert_eq!(fs::read(mount.at(name)).unwrap(), b"content", "{name}");
        }
        assert_eq!(fs::read(mount.at("d/e")).unwrap(), b"first");
    }
}

#[test]
fn names_are_changed_by_others_while_the_file_is_open() {
    for change in ["rename", "remove", "replace"] {
        let cluster = Cluster::small();
        let (one, two) = (cluster.mount(), cluster.mount());
        own(&cluster, &one);
        let file = begin(&one.at("d/f"));
        // The first mount has to tell of it now, and keeps the name.
        assert_eq!(names(&two.at("d")), ["f", "first"]);
        let expected: &[&str] = match change {
            "rename" => fs::rename(two.at("d/f"), two.at("d/g")).map(|()| &["first", "g"][..]),
            "remove" => fs::remove_file(two.at("d/f")).map(|()| &["first"][..]),
            _ => fs::rename(two.at("d/first"), two.at("d/f")).map(|()| &["f"][..]),
        }
        .unwrap();
        let inode = |mount: &Mount| fs::symlink_metadata(mount.at("d/f")).map(|of| of.ino()).map_err(|e| e.kind());
        assert_eq!(inode(&one), inode(&two), "{change}");
        for mount in [&one, &two] {
            assert_eq!(names(&mount.at("d")), expected, "{change}");
        }
        sys::close(file).unwrap();
    }
}

#[test]
fn what_new_files_get_from_their_directory_is_as_it_was_set_last() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    own(&cluster, &one);
    std::os::unix::fs::chown(one.at("d"), None, Some(77)).unwrap();
    fs::set_permissions(one.at("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    sys::close(begin(&one.at("d/f"))).unwrap();
    assert_eq!(fs::symlink_metadata(two.at("d/f")).unwrap().gid(), 77);
}

#[test]
fn a_file_is_its_makers_whoever_closes_it_first() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    own(&cluster, &one);
    fs::set_permissions(one.at("d"), fs::Permissions::from_mode(0o777)).unwrap();
    // The change of the directory has ended that it was the mount's own.
    (0..4).for_each(|n| fs::write(one.at(format!("d/{n}")), "x").unwrap());
    let file = sys::as_user(1000, 100, &[], || {
        let file = begin(&one.at("d/f"));
        file.set_permissions(fs::Permissions::from_mode(0o666)).unwrap();
        file
    });
    sys::as_user(1001, 101, &[], || {
        let mut other = OpenOptions::new().append(true).open(one.at("d/f")).unwrap();
        other.write_all(b" and more").unwrap();
        sys::close(other).unwrap();
    });
    sys::close(file).unwrap();
    for mount in [&one, &two] {
        let of = fs::symlink_metadata(mount.at("d/f")).unwrap();
        assert_eq!((of.uid(), of.gid(), of.mode() & 0o7777), (1000, 100, 0o666));
        assert_eq!(fs::read(mount.at("d/f")).unwrap(), b"content and more");
    }
}

#[test]
fn a_file_that_stays_open_is_told_of_soon() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    own(&cluster, &mount);
    let before = cluster.directory(&Status {}).unwrap().inodes;
    let file = begin(&mount.at("d/f"));
    eventually(10, "the directory service knows it", || cluster.directory(&Status {}).unwrap().inodes == before + 1);
    sys::close(file).unwrap();
    assert_eq!(cluster.directory(&Status {}).unwrap().inodes, before + 1);
}

#[test]
fn a_killed_mount_publishes_what_was_written_and_keeps_what_was_closed() {
    let cluster = Cluster::small();
    let (mut one, two) = (cluster.mount(), cluster.mount());
    own(&cluster, &one);
    File::create_new(one.at("d/empty")).unwrap();
    let file = begin(&one.at("d/f"));
    one.kill();
    drop(file);
    one.start().unwrap();
    for mount in [&one, &two] {
        eventually(20, "what was written is published", || fs::read(mount.at("d/f")).is_ok_and(|content| content == b"content"));
        assert_eq!(names(&mount.at("d")), ["empty", "f", "first"]);
    }
}

#[test]
fn what_is_made_while_services_are_away_is_there_when_they_are_back() {
    for role in [Role::Directory, Role::Lock, Role::File(0)] {
        let mut cluster = Cluster::builder().file_servers(1).start();
        let (one, two) = (cluster.mount(), cluster.mount());
        own(&cluster, &one);
        let file = begin(&one.at("d/f"));
        cluster.kill(role);
        let closing = std::thread::spawn(move || sys::close(file));
        cluster.restart(role);
        closing.join().unwrap().unwrap_or_else(|e| panic!("{role:?}: {e}"));
        for mount in [&one, &two] {
            assert_eq!(fs::read(mount.at("d/f")).unwrap(), b"content", "{role:?}");
            assert_eq!(names(&mount.at("d")), ["f", "first"], "{role:?}");
        }
    }
}

#[test]
fn another_file_server_takes_what_the_chosen_one_cannot() {
    let mut cluster = Cluster::builder().file_servers(2).copies(1).start();
    let (one, two) = (cluster.mount(), cluster.mount());
    own(&cluster, &one);
    cluster.kill(Role::File(1));
    for n in 0..6 {
        sys::close(begin(&one.at(format!("d/{n}")))).unwrap();
    }
    let mut expected: Vec<String> = (0..6).map(|n| n.to_string()).collect();
    expected.push("first".to_owned());
    assert_eq!(names(&two.at("d")), expected);
    (0..6).for_each(|n| assert_eq!(fs::read(two.at(format!("d/{n}"))).unwrap(), b"content"));
}

#[test]
fn who_was_stopped_past_the_lease_publishes_unless_the_name_is_taken() {
    for taken in [false, true] {
        let cluster = Cluster::builder().lease_seconds(2).start();
        let (one, two) = (cluster.mount(), cluster.mount());
        own(&cluster, &one);
        let file = begin(&one.at("d/f"));
        let stopped = one.stop();
        // Waits for the lease of the one that is stopped.
        assert_eq!(names(&two.at("d")), ["first"]);
        if taken {
            fs::write(two.at("d/f"), "of the other").unwrap();
        }
        drop(stopped);
        let closed = sys::close(file);
        assert_eq!(closed.is_err(), taken, "{closed:?}\n{}", one.log());
        let expected: &[u8] = if taken { b"of the other" } else { b"content" };
        for mount in [&one, &two] {
            eventually(10, "the name leads to one file", || fs::read(mount.at("d/f")).is_ok_and(|content| content == expected));
        }
        if taken {
            let recovered = || dfs_tests::recovered::recoverable(&cluster);
            eventually(10, "the other content is recoverable", || recovered().iter().any(|r| r.content == b"content"));
        }
        cluster.assert_no_panics();
    }
}
