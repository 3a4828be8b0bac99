//! What a change of a file costs on the wire: bytes, counted by proxies before every
//! service. A change costs what was changed, not what it was changed in.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use dfs_common::api::file;
use dfs_tests::proxy::Direction::{ToClient, ToServer};
use dfs_tests::{Cluster, Mount, Rng, Role, http, sys};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Of a file that is large: so many blocks that its manifest is large, too.
const LARGE: u64 = 64 * MIB;
/// Requests, answers and headers of one change, those of other services too, and what a session costs by itself meanwhile.
const OVERHEAD: u64 = 8 * KIB;

/// Bytes so far: (to all services, from them).
fn wire(cluster: &Cluster) -> (u64, u64) {
    cluster.proxies().fold((0, 0), |sum, proxy| (sum.0 + proxy.bytes(ToServer), sum.1 + proxy.bytes(ToClient)))
}

/// Carries out `work`, which may send and receive so many bytes; with what it says it is.
#[track_caller]
fn costs(cluster: &Cluster, what: &str, (to, from): (u64, u64), work: impl FnOnce()) {
    let before = wire(cluster);
    work();
    let after = wire(cluster);
    let (sent, received) = (after.0 - before.0, after.1 - before.1);
    println!("{what}: {sent} bytes sent, {received} received");
    assert!(sent <= to && received <= from, "{what}: {sent} bytes sent, {received} received, of {to} and {from}");
}

fn write_at(mount: &Mount, name: &str, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(mount.at(name)).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    sys::close(file).unwrap();
}

fn append(mount: &Mount, name: &str, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(mount.at(name)).unwrap();
    file.write_all(bytes).unwrap();
    sys::close(file).unwrap();
}

/// The same changes of `content` and of the file `name`, each with its cost; `copies` of what is sent travel.
fn change(cluster: &Cluster, mount: &Mount, name: &str, content: &mut Vec<u8>, copies: u64) {
    let little = Rng::announced("little").bytes(4096);
    let changed = (copies * (4 * KIB + OVERHEAD), OVERHEAD);
    let middle = content.len() / 2 + 777;
    costs(cluster, "4 KiB in the middle", changed, || write_at(mount, name, middle as u64, &little));
    content[middle..middle + 4096].copy_from_slice(&little);
    costs(cluster, "4 KiB at the end", changed, || append(mount, name, &little));
    content.extend_from_slice(&little);
    costs(cluster, "100 bytes cut off", changed, || {
        let file = OpenOptions::new().write(true).open(mount.at(name)).unwrap();
        file.set_len(content.len() as u64 - 100).unwrap();
        sys::close(file).unwrap();
    });
    content.truncate(content.len() - 100);
    costs(cluster, "a byte in each of 8 blocks", (copies * (9 * KIB + OVERHEAD), OVERHEAD), || {
        let file = OpenOptions::new().write(true).open(mount.at(name)).unwrap();
        for block in 0..8 {
            file.write_all_at(b"x", block * MIB + 5).unwrap();
        }
        sys::close(file).unwrap();
    });
    (0..8).for_each(|block| content[block * MIB as usize + 5] = b'x');
    costs(cluster, "4 KiB in each of 40 blocks", (copies * (2 * 160 * KIB + OVERHEAD), 4 * OVERHEAD), || {
        let file = OpenOptions::new().write(true).open(mount.at(name)).unwrap();
        for block in 0..40 {
            file.write_all_at(&little, block * MIB + 9).unwrap();
        }
        sys::close(file).unwrap();
    });
    for block in 0..40 {
        content[block * MIB as usize + 9..][..4096].copy_from_slice(&little);
    }
}

#[test]
fn a_change_of_a_large_file_costs_what_was_changed() {
    let cluster = Cluster::builder().proxied().start();
    let mount = cluster.mount();
    let mut content = Rng::announced("large").bytes(LARGE as usize + 1000);
    costs(&cluster, "a large file", (LARGE + MIB, MIB), || fs::write(mount.at("f"), &content).unwrap());
    change(&cluster, &mount, "f", &mut content, 1);
    let other = cluster.mount();
    assert!(fs::read(other.at("f")).unwrap() == content);
}

#[test]
fn replicas_get_what_was_changed_too() {
    let cluster = Cluster::builder().file_servers(2).copies(2).proxied().start();
    let mount = cluster.mount();
    let mut content = Rng::announced("replicas").bytes(LARGE as usize + 1000);
    fs::write(mount.at("f"), &content).unwrap();
    cluster.wait_replicated();
    change(&cluster, &mount, "f", &mut content, 2);
    let other = cluster.mount();
    assert!(fs::read(other.at("f")).unwrap() == content);
}

#[test]
fn what_is_not_here_is_fetched_by_the_block() {
    let cluster = Cluster::builder().proxied().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    let mut content = Rng::announced("cold").bytes(LARGE as usize + 1000);
    fs::write(mount.at("f"), &content).unwrap();
    let little = [7; 4096];
    // The manifest, and the two blocks.
    let cost = (2 * (4 * KIB + OVERHEAD), 2 * 256 * KIB + 2 * OVERHEAD);
    costs(&cluster, "4 KiB in the middle and at the end, of a file that is not cached", cost, || {
        write_at(&other, "f", 9 * MIB + 1, &little);
        append(&other, "f", &little);
    });
    content[9 * MIB as usize + 1..][..4096].copy_from_slice(&little);
    content.extend_from_slice(&little);
    assert!(fs::read(other.at("f")).unwrap() == content);
    assert!(fs::read(mount.at("f")).unwrap() == content);
}

#[test]
fn small_files_and_copies_cost_no_more_than_they_hold() {
    let cluster = Cluster::builder().proxied().start();
    let mount = cluster.mount();
    let mut content = Rng::announced("small").bytes(200 * KIB as usize);
    costs(&cluster, "a new file of 4 KiB", (4 * KIB + OVERHEAD, OVERHEAD), || fs::write(mount.at("new"), &content[..4096]).unwrap());
    costs(&cluster, "a new file of 200 KiB", (200 * KIB + OVERHEAD, OVERHEAD), || fs::write(mount.at("f"), &content).unwrap());
    costs(&cluster, "4 KiB of it", (4 * KIB + OVERHEAD, OVERHEAD), || write_at(&mount, "f", 50_000, &[1; 4096]));
    content[50_000..54_096].fill(1);
    costs(&cluster, "4 KiB in a hole", (4 * KIB + OVERHEAD, OVERHEAD), || {
        let file = File::create(mount.at("hole")).unwrap();
        file.set_len(MIB).unwrap();
        file.write_all_at(&[1; 4096], 300_000).unwrap();
        sys::close(file).unwrap();
    });
    fs::write(mount.at("large"), vec![5; 20 * MIB as usize]).unwrap();
    costs(&cluster, "cp", (3 * OVERHEAD, 3 * OVERHEAD), || {
        mount.run("cp large copy");
    });
    let other = cluster.mount();
    assert!(fs::read(other.at("f")).unwrap() == content);
    assert!(fs::read(other.at("copy")).unwrap() == vec![5; 20 * MIB as usize]);
    let hole = fs::read(other.at("hole")).unwrap();
    assert!(hole[300_000..304_096].iter().all(|&b| b == 1) && hole.iter().filter(|&&b| b != 0).count() == 4096 && hole.len() == MIB as usize);
}

/// Bytes that were sent to the one file server.
fn stored(cluster: &Cluster) -> u64 {
    cluster.proxy(Role::File(0)).bytes(ToServer)
}

#[test]
fn what_a_program_writes_is_sent_while_it_writes_and_once() {
    let cluster = Cluster::builder().proxied().start();
    let mount = cluster.mount();
    let content = Rng::announced("ahead").bytes(LARGE as usize);
    let idle = stored(&cluster);
    let mut file = File::create(mount.at("f")).unwrap();
    for piece in content.chunks(100_000) {
        file.write_all(piece).unwrap();
    }
    // All but the last four blocks of 256 KiB, and the answers with them: what is under way at a close goes once more, with the commit.
    let blocks = || http::call(cluster.url(Role::File(0)), cluster.token(), &file::Status {}).unwrap().blocks;
    dfs_tests::eventually(20, "most of it is there before it is closed", || {
        stored(&cluster) - idle > LARGE - 4 * MIB && blocks() >= LARGE / (256 * KIB) - 4
    });
    // What is changed behind the writer's back is not published as it was.
    file.write_all_at(b"changed", 10 * MIB).unwrap();
    sys::close(file).unwrap();
    let all = stored(&cluster) - idle;
    assert!(all < LARGE + MIB, "{all} bytes were sent");
    let mut expected = content;
    expected[10 * MIB as usize..][..7].copy_from_slice(b"changed");
    let other = cluster.mount();
    assert!(fs::read(other.at("f")).unwrap() == expected);
}

#[test]
fn who_writes_here_and_there_or_what_nobody_will_see_sends_nothing_ahead() {
    let cluster = Cluster::builder().proxied().start();
    let mount = cluster.mount();
    let mut rng = Rng::announced("here and there");
    let content = rng.bytes(16 * MIB as usize);
    let idle = stored(&cluster);
    let file = File::create(mount.at("random")).unwrap();
    for _ in 0..4_000 {
        let at = rng.below(4096) as usize * 4096;
        file.write_all_at(&content[at..at + 4096], at as u64).unwrap();
    }
    let removed = File::create(mount.at("removed")).unwrap();
    fs::remove_file(mount.at("removed")).unwrap();
    removed.write_all_at(&content, 0).unwrap();
    drop(removed);
    // A writer from front to back comes after them in the queue.
    let fence = File::create(mount.at("fence")).unwrap();
    fence.write_all_at(&content, 0).unwrap();
    dfs_tests::eventually(20, "the fence is sent", || stored(&cluster) - idle > 12 * MIB);
    let sent = stored(&cluster) - idle;
    assert!(sent < 16 * MIB + OVERHEAD, "{sent} bytes were sent ahead");
    sys::close(fence).unwrap();
    sys::close(file).unwrap();
}
