//! Renames in the way of one another, and under crashes: one state or the other, and always a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dfs_tests::{Cluster, Ending, Mount, Rng, Role, sys};

const DIRECTORIES: u64 = 24;

/// Every directory below `at` by its name. What moves meanwhile may be missed.
fn directories(at: &Path, found: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = fs::read_dir(at) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            // A directory on the move may be met again below itself.
            if found.insert(entry.file_name().into_string().unwrap(), path.clone()).is_none() {
                directories(&path, found);
            }
        }
    }
}

/// Walks all of `at`: each inode is reached by as many names as it says, directories by one.
fn check_tree(at: &Path) -> usize {
    let mut names: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut left = vec![at.to_owned()];
    while let Some(dir) = left.pop() {
        let meta = fs::symlink_metadata(&dir).unwrap();
        assert!(seen.insert(meta.ino()), "{} is reached twice", dir.display());
        let mut below = 0;
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                below += 1;
                left.push(path);
            } else {
                names.entry(meta.ino()).or_insert((0, meta.nlink())).0 += 1;
            }
        }
        assert_eq!(meta.nlink(), 2 + below, "links of {}", dir.display());
    }
    for (ino, (found, nlink)) in names {
        assert_eq!(found, nlink, "names of inode {ino}");
    }
    seen.len() - 1
}

/// Moves directories below one another until `end`; returns how often that was done, and how often refused as a loop.
fn shuffle(root: &Path, mut rng: Rng, end: Instant) -> (u32, u32) {
    let (mut moved, mut loops) = (0, 0);
    while Instant::now() < end {
        let mut found = BTreeMap::new();
        directories(root, &mut found);
        let paths: Vec<&PathBuf> = found.values().collect();
        if paths.len() < 2 {
            continue;
        }
        let (from, to) = (*rng.pick(&paths), *rng.pick(&paths));
        let name = from.file_name().unwrap();
        let done = match rng.below(4) {
            0 => sys::rename2(from, to, libc::RENAME_EXCHANGE),
            1 => fs::rename(from, root.join(name)),
            _ => fs::rename(from, to.join(name)),
        };
        match done.as_ref().map_err(io::Error::raw_os_error) {
            Ok(()) => moved += 1,
            Err(Some(libc::EINVAL)) => loops += 1,
            // Somebody was faster, or the path leads through what has moved.
            Err(Some(libc::ENOENT | libc::ESTALE | libc::ENOTEMPTY | libc::EEXIST | libc::ELOOP)) => {}
            Err(_) => panic!("{} to {}: {done:?}", from.display(), to.display()),
        }
    }
    (moved, loops)
}

#[test]
fn directories_that_are_moved_below_one_another_stay_a_tree() {
    let mut rng = Rng::announced("loops");
    let cluster = Cluster::small();
    let mounts = [cluster.mount(), cluster.mount()];
    for n in 0..DIRECTORIES {
        // Names are exchanged, so that a directory is known by what is in it.
        fs::create_dir(mounts[0].at(format!("d{n}"))).unwrap();
        fs::write(mounts[0].at(format!("d{n}/mark-{n}")), "").unwrap();
    }
    let end = Instant::now() + Duration::from_secs(5);
    let counts: Vec<(u32, u32)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|n| (mounts[n % 2].path(), Rng::new(rng.next_u64()))).collect();
        let workers: Vec<_> = workers.into_iter().map(|(root, rng)| scope.spawn(move || shuffle(root, rng, end))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let (moved, loops) = counts.iter().fold((0, 0), |sum, c| (sum.0 + c.0, sum.1 + c.1));
    println!("{moved} moves, {loops} refused");
    assert!(moved > 50 && loops > 0, "{moved} moves, {loops} refused: nothing was tested");
    for mount in mounts.iter().chain([&cluster.mount()]) {
        assert_eq!(check_tree(mount.path()) as u64, DIRECTORIES);
        let marks = mount.run("find . -name 'mark-*' | sed 's|.*/||' | sort | uniq | wc -l");
        assert_eq!(marks.trim(), DIRECTORIES.to_string());
    }
}

/// What one worker has had acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    exchanges: u64,
    replacements: u64,
    moves: u64,
}

fn prepare(mount: &Mount) {
    for (name, content) in [("a", "a"), ("b", "b"), ("saved", "0")] {
        fs::write(mount.at(name), content).unwrap();
    }
    for dir in ["x", "y", "x/d", "x/d/e"] {
        fs::create_dir(mount.at(dir)).unwrap();
    }
    fs::hard_link(mount.at("a"), mount.at("x/a")).unwrap();
}

/// Renames of all kinds, until one fails or `stop` is set.
fn rename_on(mount: &Path, done: &mut Acknowledged, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        sys::rename2(&mount.join("a"), &mount.join("b"), libc::RENAME_EXCHANGE)?;
        done.exchanges += 1;
        fs::write(mount.join("new"), (done.replacements + 1).to_string())?;
        fs::rename(mount.join("new"), mount.join("saved"))?;
        done.replacements += 1;
        let (from, to) = if done.moves.is_multiple_of(2) { ("x/d", "y/d") } else { ("y/d", "x/d") };
        fs::rename(mount.join(from), mount.join(to))?;
        done.moves += 1;
    }
    Ok(())
}

/// The state is the one that was acknowledged last, or the next; the counts go on from what is there.
fn check(mount: &Mount, done: &mut Acknowledged) {
    let read = |name: &str| fs::read_to_string(mount.at(name)).unwrap_or_else(|e| panic!("{name}: {e}\n{}", mount.log()));
    let pair = (read("a"), read("b"));
    assert!([("a", "b"), ("b", "a")].contains(&(&pair.0, &pair.1)), "{pair:?} after an exchange");
    let saved: u64 = read("saved").parse().expect("a number, whole");
    assert!(saved == done.replacements || saved == done.replacements + 1, "{saved} is saved, and {done:?}");
    let (x, y) = (mount.at("x/d/e").is_dir(), mount.at("y/d/e").is_dir());
    assert!(x != y, "the directory is in {} places", u8::from(x) + u8::from(y));
    let parity = |count: u64, other: bool| if (count % 2 == 1) == other { count } else { count + 1 };
    (done.exchanges, done.replacements, done.moves) = (parity(done.exchanges, pair.0 == "b"), saved, parity(done.moves, y));
    check_tree(mount.path());
}

#[test]
fn a_rename_is_whole_or_not_at_all_when_the_directory_service_dies() {
    let mut rng = Rng::announced("directory service");
    let mut cluster = Cluster::builder().start();
    let mount = cluster.mount();
    prepare(&mount);
    let mut done = Acknowledged::default();
    for round in 0..8 {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ending = Ending(&stop);
            let worker = scope.spawn(|| rename_on(mount.path(), &mut done, &stop));
            std::thread::sleep(Duration::from_micros(5_000 + rng.below(40_000)));
            cluster.kill(Role::Directory);
            cluster.restart(Role::Directory);
            drop(ending);
            worker.join().unwrap().unwrap_or_else(|e| panic!("round {round}: {e}\n{}", mount.log()));
        });
        let acknowledged = (done.exchanges, done.replacements, done.moves);
        check(&mount, &mut done);
        check(&cluster.mount(), &mut done);
        assert_eq!((done.exchanges, done.replacements, done.moves), acknowledged, "nothing failed, so nothing is unclear");
    }
    println!("{done:?}");
    cluster.assert_no_panics();
}

#[test]
fn a_rename_is_whole_or_not_at_all_when_the_mount_dies() {
    let mut rng = Rng::announced("mount");
    let cluster = Cluster::builder().lease_seconds(2).start();
    let (mut mount, other) = (cluster.mount(), cluster.mount());
    prepare(&mount);
    let mut done = Acknowledged::default();
    for round in 0..8 {
        let (stop, path, pid) = (AtomicBool::new(false), mount.path().to_owned(), mount.pid());
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| rename_on(&path, &mut done, &stop));
            std::thread::sleep(Duration::from_micros(5_000 + rng.below(40_000)));
            sys::signal(pid, libc::SIGKILL);
            let error = worker.join().unwrap().expect_err("the mount is dead");
            println!("round {round}: {error}");
        });
        mount.kill();
        mount.start().unwrap();
        check(&mount, &mut done);
        check(&other, &mut done);
    }
    println!("{done:?}");
}
