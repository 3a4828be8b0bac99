//! Listings while entries come and go: telldir, seekdir, rewinddir, and what the kernel keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use dfs_common::api::directory::Status;
use dfs_tests::sys::DirectoryStream;
use dfs_tests::{Cluster, Mount, Rng, eventually};

/// Names that are there all the time.
const STABLE: usize = 3000;

fn stable() -> BTreeSet<Vec<u8>> {
    (0..STABLE).map(|n| format!("stable-{n}").into_bytes()).collect()
}

fn fill(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for name in stable() {
        fs::create_dir(dir.join(String::from_utf8(name).unwrap())).unwrap();
    }
}

/// What a whole listing must show: every stable name once, and no name twice.
#[track_caller]
fn check(seen: Vec<Vec<u8>>) {
    let mut counts: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for name in seen {
        *counts.entry(name).or_default() += 1;
    }
    let lost: Vec<_> = stable().into_iter().filter(|name| !counts.contains_key(name)).collect();
    let repeated: Vec<_> = counts.iter().filter(|(name, n)| **n > 1 && name.starts_with(b"stable")).collect();
    assert!(lost.is_empty() && repeated.is_empty(), "lost {lost:?}, repeated {repeated:?}");
}

/// Makes and removes names around the stable ones.
struct Traffic<'a> {
    dirs: &'a [&'a Path],
    rng: Rng,
    live: Vec<(usize, String)>,
    made: u32,
}

impl Traffic<'_> {
    fn go(&mut self, steps: usize) {
        for _ in 0..steps {
            if !self.live.is_empty() && self.rng.below(2) == 0 {
                let (dir, name) = self.live.swap_remove(self.rng.below(self.live.len() as u64) as usize);
                fs::remove_dir(self.dirs[dir].join(name)).unwrap();
            } else {
                // Before, between and behind the stable ones.
                let first = ["a", "stable-1", "stable-2", "z"][self.rng.below(4) as usize];
                let (dir, name) = (self.rng.below(self.dirs.len() as u64) as usize, format!("{first}-{}", self.made));
                self.made += 1;
                fs::create_dir(self.dirs[dir].join(&name)).unwrap();
                self.live.push((dir, name));
            }
        }
    }
}

#[test]
fn every_offset_stays_good_while_names_come_and_go() {
    let cluster = Cluster::small();
    let (m, other) = (cluster.mount(), cluster.mount());
    fill(&m.at("d"));
    let (here, there) = (m.at("d"), other.at("d"));
    let mut rng = Rng::announced("seekdir");
    let mut traffic = Traffic { dirs: &[&here, &there], rng: Rng::new(rng.next_u64()), live: Vec::new(), made: 0 };
    let mut stream = DirectoryStream::open(&here).unwrap();
    // Names in the order in which they were seen, each with the offset behind it.
    let (mut seen, mut offsets) = (Vec::new(), vec![]);
    while let Some((name, at)) = stream.read().unwrap() {
        seen.push(name);
        offsets.push(at);
        if rng.below(100) == 0 {
            traffic.go(5);
        }
    }
    check(seen.clone());
    for round in 0..40 {
        traffic.go(50);
        let from = rng.below(offsets.len() as u64) as usize;
        stream.seek(offsets[from]);
        let mut all: Vec<Vec<u8>> = seen[..=from].to_vec();
        while let Some((name, _)) = stream.read().unwrap() {
            all.push(name);
            if rng.below(500) == 0 {
                traffic.go(3);
            }
        }
        println!("round {round}: from {from} of {}", offsets.len());
        check(all);
    }
    stream.rewind();
    check(stream.read_all().unwrap());
}

#[test]
fn offsets_outlive_what_the_kernel_keeps_and_the_pages_they_are_of() {
    let cluster = Cluster::small();
    let (m, other) = (cluster.mount(), cluster.mount());
    fill(&m.at("d"));
    // The kernel keeps this listing, and gives it to the next stream.
    check(DirectoryStream::open(&m.at("d")).unwrap().read_all().unwrap());
    let mut stream = DirectoryStream::open(&m.at("d")).unwrap();
    let mut first = Vec::new();
    let mut half = 0;
    for _ in 0..STABLE / 2 {
        let (name, at) = stream.read().unwrap().unwrap();
        first.push(name);
        half = at;
    }
    let rest = stream.read_all().unwrap();
    stream.seek(half);
    assert!(stream.read_all().unwrap() == rest, "seekdir within what the kernel keeps");
    // So much grows within the pages that they are cut anew, for whoever starts.
    for n in 0..10_000 {
        fs::create_dir(other.at(format!("d/stable-1-{n}"))).unwrap();
    }
    let mut again = DirectoryStream::open(&m.at("d")).unwrap();
    for _ in 0..2 {
        let all = again.read_all().unwrap();
        assert_eq!(all.len(), STABLE + 10_000);
        check(all);
        again.rewind();
    }
    stream.seek(half);
    let mut all = first.clone();
    all.extend(stream.read_all().unwrap());
    check(all);
    for n in 0..10_000 {
        fs::remove_dir(m.at(format!("d/stable-1-{n}"))).unwrap();
    }
    stream.seek(half);
    first.extend(stream.read_all().unwrap());
    check(first);
}

#[test]
fn a_rewound_directory_shows_what_has_changed() {
    let cluster = Cluster::small();
    let (m, other) = (cluster.mount(), cluster.mount());
    fs::create_dir(m.at("d")).unwrap();
    let mut stream = DirectoryStream::open(&m.at("d")).unwrap();
    let mut expected = BTreeSet::new();
    for n in 0..300 {
        let by = if n % 2 == 0 { &m } else { &other };
        fs::write(by.at(format!("d/{n}")), "").unwrap();
        expected.insert(n.to_string().into_bytes());
        if n % 3 == 0 {
            let gone = (n / 2).to_string();
            if expected.remove(gone.as_bytes()) {
                fs::remove_file(other.at("d").join(&gone)).unwrap();
            }
        }
        stream.rewind();
        let seen: BTreeSet<Vec<u8>> = stream.read_all().unwrap().into_iter().collect();
        assert!(seen == expected, "after {n}: {} names instead of {}", seen.len(), expected.len());
    }
}

/// Sub-directories of the tree that is walked, and files in each.
const BRANCHES: usize = 30;
const LEAVES: usize = 5;
/// So many are listed ahead.
const AHEAD: u64 = 8;

fn plant(mount: &Mount) {
    fs::create_dir(mount.at("t")).unwrap();
    for branch in 0..BRANCHES {
        fs::create_dir(mount.at(format!("t/b{branch}"))).unwrap();
        for leaf in 0..LEAVES {
            fs::write(mount.at(format!("t/b{branch}/l{leaf}")), "green").unwrap();
        }
    }
}

/// Listings that the directory service was asked for.
fn lists(cluster: &Cluster) -> u64 {
    cluster.directory(&Status {}).unwrap().requests.get("/v1/directory/list").copied().unwrap_or_default()
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_tree_that_is_walked_is_listed_ahead_and_no_directory_twice() {
    let cluster = Cluster::small();
    plant(&cluster.mount());
    // In the order of the listing, and in that of names.
    for sorted in [false, true] {
        let walker = cluster.mount();
        let before = lists(&cluster);
        let mut branches = names(&walker.at("t"));
        assert_eq!((branches.len(), lists(&cluster) - before), (BRANCHES, 1));
        if sorted {
            branches.sort();
        }
        assert_eq!(names(&walker.at("t").join(&branches[0])).len(), LEAVES);
        eventually(30, "the next ones are listed before they are asked for", || lists(&cluster) - before == 2 + AHEAD);
        for branch in &branches {
            assert_eq!(names(&walker.at("t").join(branch)).len(), LEAVES, "{branch}");
        }
        assert_eq!(lists(&cluster) - before, 1 + BRANCHES as u64, "sorted: {sorted}");
    }
    // Who looks into one of them walks through none.
    let looker = cluster.mount();
    let before = lists(&cluster);
    let branches = names(&looker.at("t"));
    let lone = branches[1..].iter().find(|name| *name != "b0").unwrap();
    assert_eq!(names(&looker.at("t").join(lone)).len(), LEAVES);
    assert_eq!(names(&looker.at("t").join(lone)).len(), LEAVES);
    assert_eq!(lists(&cluster) - before, 2);
}

/// A tree of `levels`, each directory with nine more. Returns how many there are.
fn branch(directory: &Path, levels: u32) -> u64 {
    fs::create_dir(directory).unwrap();
    1 + if levels == 0 { 0 } else { (0..9).map(|n| branch(&directory.join(format!("b{n}")), levels - 1)).sum() }
}

fn walk(directory: &Path) -> u64 {
    let all = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    1 + all.map(|path| walk(&path)).sum::<u64>()
}

#[test]
fn what_was_listed_ahead_is_still_there_after_the_way_down() {
    let cluster = Cluster::small();
    let planted = branch(&cluster.mount().at("t"), 3);
    let walker = cluster.mount();
    let before = lists(&cluster);
    assert_eq!((walk(&walker.at("t")), lists(&cluster) - before), (planted, planted));
}

#[test]
fn a_large_directory_that_was_listed_ahead_is_listed_whole() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let mut sub = BTreeSet::new();
    for branch in ["a", "b", "c"] {
        fs::create_dir_all(mount.at(format!("t/{branch}"))).unwrap();
        for n in 0..1500 {
            fs::create_dir(mount.at(format!("t/{branch}/{n}"))).unwrap();
            sub.insert(n.to_string());
        }
    }
    let walker = cluster.mount();
    for branch in names(&walker.at("t")) {
        let listed = names(&walker.at("t").join(&branch));
        assert_eq!((listed.len(), listed.into_iter().collect::<BTreeSet<String>>()), (1500, sub.clone()), "{branch}");
    }
}

#[test]
fn what_has_changed_since_it_was_listed_ahead_shows() {
    let cluster = Cluster::small();
    let (writer, walker) = (cluster.mount(), cluster.mount());
    plant(&writer);
    let before = lists(&cluster);
    let branches = names(&walker.at("t"));
    names(&walker.at("t").join(&branches[0]));
    eventually(30, "the next ones are listed ahead", || lists(&cluster) - before == 2 + AHEAD);
    let at = |mount: &Mount, branch: usize, leaf: &str| mount.at("t").join(&branches[branch]).join(leaf);
    fs::write(at(&writer, 1, "new"), "").unwrap();
    fs::remove_file(at(&writer, 2, "l0")).unwrap();
    fs::rename(at(&writer, 3, "l0"), at(&writer, 4, "moved")).unwrap();
    fs::write(at(&writer, 5, "l0"), "longer than green").unwrap();
    fs::write(at(&walker, 6, "own"), "").unwrap();
    fs::remove_dir_all(writer.at("t").join(&branches[7])).unwrap();
    let listed = |branch: usize| names(&walker.at("t").join(&branches[branch])).into_iter().collect::<BTreeSet<String>>();
    let leaves = |less: &[&str], more: &[&str]| {
        let all = (0..LEAVES).map(|leaf| format!("l{leaf}")).filter(|leaf| !less.contains(&leaf.as_str()));
        all.chain(more.iter().map(|name| (*name).to_owned())).collect::<BTreeSet<String>>()
    };
    assert_eq!(listed(1), leaves(&[], &["new"]));
    assert_eq!(listed(2), leaves(&["l0"], &[]));
    assert_eq!((listed(3), listed(4)), (leaves(&["l0"], &[]), leaves(&[], &["moved"])));
    assert_eq!(listed(5), leaves(&[], &[]));
    assert_eq!(fs::read_to_string(at(&walker, 5, "l0")).unwrap(), "longer than green");
    assert_eq!(listed(6), leaves(&[], &["own"]));
    assert!(fs::read_dir(walker.at("t").join(&branches[7])).is_err());
    assert_eq!(listed(8), leaves(&[], &[]));
}
