//! What the cluster says of its space: df, st_blocks, files that are mostly holes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use dfs_tests::disk::SmallDisk;
use dfs_tests::{Cluster, Mount, Rng, Role, eventually, sys};

const MIB: u64 = 1 << 20;
/// Each server keeps some of its disk for its own notes.
const SLACK: u64 = 12 * MIB;

/// Bytes of the whole, and those that a user may still write.
fn df(at: &Path) -> (u64, u64) {
    let fs = sys::statvfs(at).unwrap();
    assert_eq!((fs.f_bfree, fs.f_namemax), (fs.f_bavail, 255));
    (fs.f_blocks * fs.f_frsize, fs.f_bavail * fs.f_frsize)
}

#[track_caller]
fn becomes(mount: &Mount, what: &str, expected: impl Fn() -> u64) {
    let mut last = (0, 0);
    let right = dfs_tests::within(std::time::Duration::from_secs(20), || {
        last = (df(mount.path()).1, expected());
        last.0.abs_diff(last.1) <= SLACK
    });
    assert!(right, "{what}: the mount says {} MiB, the disks {} MiB", last.0 / MIB, last.1 / MIB);
}

#[test]
fn df_says_what_can_be_written_in_two_copies() {
    let disks = [SmallDisk::new(64), SmallDisk::new(64), SmallDisk::new(256)];
    let mut builder = Cluster::builder().file_servers(3).copies(2);
    for (at, disk) in disks.iter().enumerate() {
        builder = builder.file_data(at, disk.path());
    }
    let mut cluster = builder.start();
    let mount = cluster.mount();
    let free = |at: usize| df(disks[at].path()).1;
    // The large disk can only have one copy of what the others have the second of.
    becomes(&mount, "two small disks and a large one", || free(0) + free(1));
    let all = df(mount.path()).0;
    assert!(all.abs_diff(128 * MIB) < SLACK, "{} MiB in all", all / MIB);
    let mut rng = Rng::announced("df");
    for n in 0..8 {
        fs::write(mount.at(n.to_string()), rng.bytes(2 * MIB as usize)).unwrap();
    }
    becomes(&mount, "with 16 MiB in two copies", || (free(0) + free(1)).min((free(0) + free(1) + free(2)) / 2));
    // One disk is filled by something else.
    let mut junk = File::create(disks[0].path().join("junk")).unwrap();
    while junk.write_all(&[7; MIB as usize]).is_ok() {}
    becomes(&mount, "with a full disk", || free(1).min(free(2)));
    cluster.kill(Role::File(1));
    becomes(&mount, "with a full disk and a dead server", || 0);
    fs::remove_file(disks[0].path().join("junk")).unwrap();
    becomes(&mount, "with a dead server", || free(0).min(free(2)));
    cluster.restart(Role::File(1));
    becomes(&mount, "with all of them again", || (free(0) + free(1)).min((free(0) + free(1) + free(2)) / 2));
}

#[test]
fn a_file_of_a_tebibyte_with_nothing_in_it_takes_nothing() {
    let cluster = Cluster::small();
    let (m, other) = (cluster.mount(), cluster.mount());
    let before = df(m.path()).1;
    let file = File::create(m.at("f")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"x", (1 << 40) - 1).unwrap();
    sys::close(file).unwrap();
    for mount in [&m, &other] {
        let meta = fs::metadata(mount.at("f")).unwrap();
        assert_eq!(meta.len(), 1 << 40);
        assert!((1..=MIB / 512).contains(&meta.blocks()), "{} blocks", meta.blocks());
        let (mut byte, file) = ([0], File::open(mount.at("f")).unwrap());
        file.read_exact_at(&mut byte, (1 << 40) - 1).unwrap();
        assert_eq!(&byte, b"x");
        file.read_exact_at(&mut byte, 1 << 39).unwrap();
        assert_eq!(byte, [0]);
    }
    assert!(before.saturating_sub(df(m.path()).1) < 100 * MIB, "others use this disk too, but not 1 TiB");
    let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.set_len(0).unwrap();
    sys::close(file).unwrap();
    assert_eq!(fs::metadata(other.at("f")).unwrap().blocks(), 0);
}

#[test]
fn blocks_are_those_that_are_stored() {
    let cluster = Cluster::small();
    let m = cluster.mount();
    let content = Rng::announced("blocks").bytes(3 * MIB as usize + 5);
    fs::write(m.at("full"), &content).unwrap();
    assert_eq!(fs::metadata(m.at("full")).unwrap().blocks(), (3 * MIB + 5).div_ceil(512));
    let file = File::create(m.at("half")).unwrap();
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(&content[..MIB as usize], MIB).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), MIB / 512, "also while it is open");
    sys::close(file).unwrap();
    eventually(5, "the holes are not counted", || fs::metadata(m.at("half")).unwrap().blocks() == MIB / 512);
}
