//! Listings while entries come and go: telldir, seekdir, rewinddir, and what the kernel keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use dfs_tests::sys::DirectoryStream;
use dfs_tests::{Cluster, Rng};

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
