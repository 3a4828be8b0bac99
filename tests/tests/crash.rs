//! Clients that die, at every point at which it could matter: what was acknowledged is
//! there, what was written is published or recoverable, and nothing is torn.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dfs_common::api::directory::{CloseSession, Sessions};
use dfs_common::api::lock::End;
use dfs_tests::crash::{BLOCK, Work};
use dfs_tests::mount::running;
use dfs_tests::process::{binary, checkout};
use dfs_tests::recovered::recoverable;
use dfs_tests::rules::sources;
use dfs_tests::{Cluster, Mount, Role, eventually, shell, sys, within};

/// Points that only a mount comes to that finds what a crash left.
const OF_RECOVERY: [&str; 3] = ["recovery.", "aside.", "compact."];

/// Every point's name, from its source.
fn points() -> Vec<String> {
    let text = fs::read_to_string(checkout().join("dfs-mount/src/failpoint.rs")).unwrap();
    let list = text.split_once("POINTS: &[&str] = &[").unwrap().1.split_once("];").unwrap().0;
    let points: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(points.len() >= 20, "{points:?}");
    points
}

fn kill_at(point: &str) -> [(String, String); 1] {
    [("DFS_TEST_KILL_AT".into(), point.into())]
}

fn is_of_recovery(point: &str) -> bool {
    OF_RECOVERY.iter().any(|prefix| point.starts_with(prefix))
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().flatten().map(|f| f.path()).collect()
}

/// Whether the driver has ended by itself, within a while.
fn dies(mount: &Mount) -> bool {
    within(Duration::from_secs(5), || !running(mount.pid()))
}

#[test]
fn every_point_is_somewhere_in_the_code_and_every_one_there_is_known() {
    let mut reached = Vec::new();
    for (file, text) in sources(&checkout()) {
        if file.starts_with("dfs-mount/src") {
            reached.extend(text.split("failpoint::reach(\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
        }
    }
    reached.sort();
    reached.dedup();
    let mut points = points();
    points.sort();
    assert_eq!(reached, points);
}

#[test]
fn a_mount_that_dies_anywhere_loses_nothing_that_was_acknowledged_or_written() {
    let start = Instant::now();
    let cluster = Cluster::small();
    let witness = cluster.mount();
    let mut deaths = 0;
    for point in points().iter().filter(|p| !is_of_recovery(p)) {
        // The first time, and later, in the midst of something else.
        for (nth, must) in [(1, true), (3, false)] {
            let point = format!("{point}@{nth}");
            let mut work = Work::prepare(witness.path(), &point);
            let mut mount = cluster.mount_in("", &kill_at(&point));
            let done = work.run(mount.path());
            let died = if done.is_err() || must { dies(&mount) } else { within(Duration::from_millis(300), || !running(mount.pid())) };
            assert!(died || !must, "{point} was not reached: {done:?}");
            assert!(died || done.is_ok(), "{point}: {done:?} from a mount that lives\n{}", mount.log());
            deaths += u32::from(died);
            mount.kill();
            mount.set_environment(&[]);
            mount.start().unwrap_or_else(|e| panic!("{point}: {e}\n{}", mount.log()));
            for (root, who) in [(mount.path(), "the mount that died"), (witness.path(), "another mount")] {
                work.check(root, &format!("{who} after {point}\n{}", mount.log()));
            }
            for kept in ["writing", "recovered"] {
                assert_eq!(files_below(&mount.cache().join(kept)), [] as [PathBuf; 0], "{point}: {kept}\n{}", mount.log());
            }
            mount.run("echo goes on > afterwards");
        }
    }
    assert!(recoverable(&cluster).is_empty(), "nobody else wrote, so all could be published");
    println!("{deaths} deaths in {:?}", start.elapsed());
    cluster.assert_no_panics();
}

/// Kills `mount` and ends its session, as if its lease were over: others go on at once.
fn kill_and_expire(cluster: &Cluster, mount: &mut Mount) {
    mount.kill();
    let mountpoint = mount.path().display().to_string();
    for row in cluster.directory(&Sessions {}).unwrap().iter().filter(|row| row.client.mountpoint == mountpoint) {
        cluster.lock(&End { session: row.session }).unwrap();
        cluster.directory(&CloseSession { session: row.session }).unwrap();
    }
}

#[test]
fn a_mount_that_dies_while_it_recovers_recovers_all_the_same() {
    let start = Instant::now();
    let cluster = Cluster::small();
    let other = cluster.mount();
    let base: Vec<u8> = (0..2 * BLOCK + 500).map(|n| (n / 7) as u8).collect();
    let mut deaths = 0;
    for point in points().iter().filter(|p| is_of_recovery(p)) {
        let dir = point.replace('.', "-");
        fs::create_dir(other.at(&dir)).unwrap();
        for name in ["edited", "contended"] {
            fs::write(other.at(&dir).join(name), &base).unwrap();
        }
        let mut mount = cluster.mount();
        let open = |name: &str| OpenOptions::new().write(true).open(mount.at(&dir).join(name)).unwrap();
        let (edited, contended) = (open("edited"), open("contended"));
        // In blocks that are not here: the others stay missing.
        edited.write_all_at(b"mine", 10).unwrap();
        edited.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_234_567)).unwrap();
        contended.write_all_at(b"mine", BLOCK as u64 + 10).unwrap();
        kill_and_expire(&cluster, &mut mount);
        drop((edited, contended));
        fs::write(other.at(&dir).join("contended"), "theirs").unwrap();

        mount.set_environment(&kill_at(point));
        let started = mount.start();
        assert!(started.is_err() || dies(&mount), "{point} was not reached\n{}", mount.log());
        deaths += 1;
        mount.kill();
        mount.set_environment(&[]);
        mount.start().unwrap_or_else(|e| panic!("{point}: {e}\n{}", mount.log()));

        let mut expected = base.clone();
        expected[10..14].copy_from_slice(b"mine");
        for root in [mount.path(), other.path()] {
            assert!(fs::read(root.join(&dir).join("edited")).unwrap() == expected, "{point}\n{}", mount.log());
            assert_eq!(fs::read_to_string(root.join(&dir).join("contended")).unwrap(), "theirs", "{point}");
            let modified = fs::metadata(root.join(&dir).join("edited")).unwrap().modified().unwrap();
            assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_234_567, "{point}");
        }
        eventually(10, "what could not be published is a recoverable version", || files_below(&mount.cache().join("recovered")).is_empty());
        let mut mine = base.clone();
        mine[BLOCK + 10..BLOCK + 14].copy_from_slice(b"mine");
        let path = format!("/{dir}/contended");
        let found: Vec<_> = recoverable(&cluster).into_iter().filter(|r| r.description["path"] == path.as_str()).collect();
        assert_eq!(found.len(), 1, "{point}: {found:?}\n{}", mount.log());
        assert!(found[0].content == mine && found[0].description["size"] == mine.len(), "{point}: {:?}", found[0].description);
        assert!(found[0].name.starts_with("contended."), "{}", found[0].name);
    }
    println!("{deaths} deaths in {:?}", start.elapsed());
    assert_eq!(recoverable(&cluster).len(), deaths);
    cluster.assert_no_panics();
}

#[test]
fn a_holder_stopped_past_its_lease_gets_estale_and_its_content_is_recoverable() {
    let cluster = Cluster::builder().lease_seconds(2).start();
    let (first, second) = (cluster.mount(), cluster.mount());
    first.run("echo before > f; chmod 640 f");
    let mut held = OpenOptions::new().write(true).truncate(true).open(first.at("f")).unwrap();
    held.write_all(b"of the holder").unwrap();
    let stopped = first.stop();
    fs::write(second.at("f"), "of the other\n").unwrap();
    drop(stopped);
    assert_eq!(sys::errno(held.sync_all()), libc::ESTALE, "{}", first.log());
    for mount in [&first, &second] {
        assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "of the other\n", "an open after the refusal");
    }
    assert_eq!(sys::errno(held.write_all(b"more")), libc::ESTALE);
    assert_eq!(sys::errno(sys::close(held)), libc::ESTALE);
    eventually(10, "the content is recoverable", || recoverable(&cluster).iter().any(|r| !r.description.is_null()));
    let found = recoverable(&cluster);
    assert_eq!(found.len(), 1);
    assert_eq!(String::from_utf8_lossy(&found[0].content), "of the holder");
    let description = &found[0].description;
    assert_eq!((&description["path"], &description["mode"]), (&"/f".into(), &0o640.into()), "{description}");
    first.run("echo again >> f; test $(wc -l < f) = 2");
    assert_eq!(second.run("tail -1 f").trim(), "again");
    cluster.assert_no_panics();
}

/// A file system of its own on a file, mounted at `at`.
fn mount_image(image: &Path, at: &Path) {
    let script = format!("mkdir -p {1}; mount -o loop {0} {1}", image.display(), at.display());
    shell::run(Path::new("/"), &script);
}

#[test]
fn a_power_cut_of_the_client_tears_nothing() {
    for synced in [false, true] {
        let cluster = Cluster::builder().all_in_one().lease_seconds(2).start();
        let image = cluster.dir().join("disk");
        let cache = cluster.dir().join("power.cache");
        shell::run(cluster.dir(), "truncate -s 96M disk; mkfs.ext4 -q -F disk");
        mount_image(&image, &cache);
        let witness = cluster.mount();
        let base = vec![7; 3 * BLOCK];
        fs::write(witness.at("open"), &base).unwrap();
        let mut work = Work::prepare(witness.path(), "work");
        let mut mount = Mount::new(&cluster, "power", "").unwrap();
        let open = OpenOptions::new().write(true).open(mount.at("open")).unwrap();
        open.write_all_at(&[8; BLOCK], 1000).unwrap();
        if synced {
            // A part of it reaches the disk. No other process does it: that would close what it inherits, and so publish.
            sys::sync_file_system(&File::open(&cache).unwrap()).unwrap();
        }
        open.write_all_at(&[9; BLOCK], 2 * BLOCK as u64 + 1000).unwrap();
        work.run(mount.path()).unwrap();
        mount.kill();
        // What the page cache of the mounted image holds is lost with it.
        fs::copy(&image, cluster.dir().join("after")).unwrap();
        drop(open);
        shell::run(cluster.dir(), &format!("umount {}", cache.display()));
        mount_image(&cluster.dir().join("after"), &cache);
        mount.set_environment(&[("DFS_TEST_BOOT_ID".into(), "the next one".into())]);
        mount.start().unwrap_or_else(|e| panic!("{e}\n{}", mount.log()));
        for root in [mount.path(), witness.path()] {
            work.check(root, "after a power cut");
            assert!(fs::read(root.join("open")).unwrap() == base, "what may lack a part is not published");
        }
        mount.run("echo goes on > afterwards; cat afterwards open > /dev/null");
        eventually(10, "what was left is uploaded", || files_below(&cache.join("recovered")).is_empty());
        let kept = recoverable(&cluster);
        println!("synced: {synced}, kept: {:?}", kept.iter().map(|r| &r.description).collect::<Vec<_>>());
        assert!(!synced || kept.iter().any(|r| r.content.get(1000..1000 + BLOCK) == Some(&[8; BLOCK][..])), "what had reached the disk is kept");
        mount.unmount();
        shell::run(cluster.dir(), &format!("umount {}", cache.display()));
        cluster.assert_no_panics();
    }
}

#[test]
fn what_could_not_be_uploaded_at_the_end_is_published_by_the_next_mount() {
    let mut cluster = Cluster::builder().start();
    let mut mount = cluster.mount_with("timeout=1");
    mount.run("echo before > f");
    for end in ["umount", "SIGTERM"] {
        let mut file = File::create(mount.at("f")).unwrap();
        file.write_all(end.as_bytes()).unwrap();
        cluster.kill(Role::File(0));
        sys::close(file).expect_err("nobody takes it");
        if end == "umount" {
            mount.unmount();
        } else {
            mount.signal(libc::SIGTERM);
            assert!(within(Duration::from_secs(20), || !running(mount.pid())), "{}", mount.log());
        }
        assert!(mount.log().contains("/f (inode"), "the log says what is kept: {}", mount.log());
        cluster.restart(Role::File(0));
        mount.start().unwrap();
        assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), end, "{}", mount.log());
        assert_eq!(fs::read_to_string(cluster.mount().at("f")).unwrap(), end);
    }
    assert!(recoverable(&cluster).is_empty());
    cluster.assert_no_panics();
}

#[test]
fn a_file_that_was_removed_meanwhile_is_recoverable() {
    let cluster = Cluster::small();
    let (mut mount, other) = (cluster.mount(), cluster.mount());
    mount.run("mkdir d; echo before > d/f; echo same > d/unchanged");
    let open = |name: &str| OpenOptions::new().append(true).open(mount.at(name)).unwrap();
    let (mut file, unchanged) = (open("d/f"), open("d/unchanged"));
    file.write_all(b"behind").unwrap();
    // What its own program removed ends with that, as on a local disk.
    let mut temporary = File::create(mount.at("temporary")).unwrap();
    fs::remove_file(mount.at("temporary")).unwrap();
    temporary.write_all(b"of no use").unwrap();
    kill_and_expire(&cluster, &mut mount);
    drop((file, unchanged, temporary));
    other.run("rm -r d");
    mount.start().unwrap();
    eventually(10, "it is recoverable", || recoverable(&cluster).iter().any(|r| !r.description.is_null()));
    let found = recoverable(&cluster);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(String::from_utf8_lossy(&found[0].content), "before\nbehind", "{:?}", found[0].description);
    cluster.assert_no_panics();
}

#[test]
fn a_second_mount_of_one_cache_directory_says_so() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let at = cluster.dir().join("second");
    fs::create_dir(&at).unwrap();
    let options = format!("token_file={},cache_dir={}", cluster.token_file().display(), mount.cache().display());
    let out = shell::output(Command::new(binary("dfs-mount")).arg(cluster.source()).arg(&at).arg("-o").arg(options));
    assert_eq!(out.code, 32, "{}", out.text);
    assert!(out.text.contains("used by another mount"), "{}", out.text);
    mount.run("echo works > f; cat f");
}
