//! One directory with very many entries: what an entry costs does not grow with their number, and memory stays bounded.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_tests::sys::DirectoryStream;
use dfs_tests::{Cluster, Mount, Role, process};

const MIB: u64 = 1 << 20;
/// The sizes at which costs are compared, as parts of the whole.
const STEPS: [usize; 2] = [10, 1];

fn name(n: usize) -> String {
    // In no order: as mail or caches have them.
    format!("{:08x}-{n}", (n as u32).wrapping_mul(0x9E37_79B1))
}

/// What one of many took, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Each {
    /// By the clock, and so by what else the machine does.
    clock: f64,
    /// Processor time of this process, the mount and the services.
    work: f64,
}

impl std::fmt::Display for Each {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} us ({:.1} us of processors)", self.clock, self.work)
    }
}

#[derive(Debug)]
struct Costs {
    entries: usize,
    create: Each,
    list: Each,
    stat: Each,
}

/// What `work` on each of `count` entries takes.
fn cost(cluster: &mut Cluster, mount: &Mount, count: usize, work: impl FnOnce()) -> Each {
    let mut pids = vec![std::process::id() as i32, mount.pid()];
    for role in cluster.roles() {
        pids.push(cluster.daemon(role).pid());
    }
    let used = || pids.iter().map(|pid| process::cpu_time(*pid)).sum::<Duration>();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    let (start, before) = (Instant::now(), used());
    work();
    Each { clock: each(start.elapsed()), work: each(used() - before) }
}

/// Makes the kernel read the directory anew.
fn change(dir: &Path) {
    fs::create_dir(dir.join("new")).unwrap();
    fs::remove_dir(dir.join("new")).unwrap();
}

/// With `to` entries, of which those from `from` on are new; `rounds` of listings.
fn measure(cluster: &mut Cluster, mount: &Mount, (from, to): (usize, usize), rounds: usize) -> Costs {
    let dir = mount.at("large");
    // The last tenth says what one costs now.
    let late = to - (to - from) / 10;
    (from..late).for_each(|n| drop(File::create(dir.join(name(n))).unwrap()));
    let create = cost(cluster, mount, to - late, || (late..to).for_each(|n| drop(File::create(dir.join(name(n))).unwrap())));
    let list = cost(cluster, mount, rounds * to, || {
        for _ in 0..rounds {
            change(&dir);
            assert_eq!(DirectoryStream::open(&dir).unwrap().read_all().unwrap().len(), to);
        }
    });
    let stat = cost(cluster, mount, rounds * to, || {
        for _ in 0..rounds {
            change(&dir);
            let files = fs::read_dir(&dir).unwrap().filter(|entry| entry.as_ref().unwrap().metadata().unwrap().is_file()).count();
            assert_eq!(files, to);
        }
    });
    Costs { entries: to, create, list, stat }
}

fn peaks(cluster: &mut Cluster, mount: &Mount) -> (u64, u64) {
    (mount.peak_rss() / MIB, process::peak_rss(cluster.daemon(Role::Directory).pid()) / MIB)
}

/// `DFS_TEST_ENTRIES` entries (20,000 unless set).
#[test]
fn one_directory_of_many_entries_costs_each_the_same() {
    let count = std::env::var("DFS_TEST_ENTRIES").map_or(20_000, |v| v.parse().expect("DFS_TEST_ENTRIES is a number"));
    let mut cluster = Cluster::builder().directory_args(&["--keep-removed", "0"]).start();
    let mount = cluster.mount();
    fs::create_dir(mount.at("large")).unwrap();
    let mut rows = Vec::new();
    let mut from = 0;
    for part in STEPS {
        let to = count / part;
        let row = measure(&mut cluster, &mount, (from, to), part);
        println!("{} entries: each create {}, list {}, list and stat {}", row.entries, row.create, row.list, row.stat);
        println!("peaks of mount and directory service: {:?} MiB", peaks(&mut cluster, &mount));
        rows.push(row);
        from = to;
    }
    let remove = cost(&mut cluster, &mount, count, || fs::remove_dir_all(mount.at("large")).unwrap());
    let (driver, directory) = peaks(&mut cluster, &mount);
    println!("each remove {remove}; peaks at the end: mount {driver} MiB, directory service {directory} MiB");
    let (first, last) = (&rows[0], &rows[STEPS.len() - 1]);
    // What grows with the number of entries would be ten times as much.
    for (what, before, after) in [("create", first.create, last.create), ("list", first.list, last.list), ("stat", first.stat, last.stat)] {
        assert!(after.work < 4.0 * before.work + 30.0, "{what}: {before} an entry at {}, {after} at {}", first.entries, last.entries);
    }
    assert!(driver < 200, "dfs-mount took {driver} MiB");
    assert!(directory < 300, "the directory service took {directory} MiB");
}
