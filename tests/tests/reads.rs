//! Large files: served from the cache file by the kernel itself once they are complete,
//! and readable while they arrive.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use dfs_tests::cluster::Role;
use dfs_tests::proxy::{Direction, Mode};
use dfs_tests::{Cluster, Mount, Rng, eventually, sys};

const LARGE: usize = 3 << 20;

fn random(len: usize) -> Vec<u8> {
    let mut rng = Rng::announced("content");
    (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).take(len).collect()
}

/// Cache files that the mount's program has open.
fn open_cache_files(mount: &Mount) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap();
    let targets = descriptors.filter_map(|d| fs::read_link(d.unwrap().path()).ok());
    let folders = ["files", "writing"].map(|folder| mount.cache().join(folder));
    targets.filter(|target| folders.iter().any(|folder| target.starts_with(folder))).count()
}

/// Waits until all is closed: the kernel tells of that after close(2) has returned.
fn wait_closed(mount: &Mount) {
    eventually(10, "all is closed", || open_cache_files(mount) == 0);
}

/// A file that `mount` has in its cache, complete and closed.
fn cached(mount: &Mount, name: &str, content: &[u8]) {
    fs::write(mount.at(name), content).unwrap();
    assert!(fs::read(mount.at(name)).unwrap() == content);
    wait_closed(mount);
}

/// What `work` finds while the mount's program stands still: what it does must not pass through that. Where it does all the same,
/// it would wait for ever, and nobody could look at the process; so the program goes on after a while, and the test has failed.
fn while_stopped<T>(mount: &Mount, work: impl FnOnce() -> T) -> T {
    let stopped = mount.stop();
    let (done, is_done) = mpsc::channel();
    thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let in_time = is_done.recv_timeout(Duration::from_secs(20)).is_ok();
            drop(stopped);
            in_time
        });
        let result = work();
        done.send(()).unwrap();
        assert!(watch.join().unwrap(), "it waited for the mount's program");
        result
    })
}

fn read_at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn a_complete_file_is_read_and_mapped_without_the_mounts_program() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let content = random(LARGE);
    cached(&mount, "f", &content);
    let (first, second) = (File::open(mount.at("f")).unwrap(), File::open(mount.at("f")).unwrap());
    let (read, mapped) = while_stopped(&mount, || (read_at(&second, 0, LARGE), sys::read_mapped(&first, LARGE).unwrap()));
    assert!(read == content && mapped == content);
}

#[test]
fn a_mount_that_shall_not_or_cannot_serves_the_same_bytes() {
    let cluster = Cluster::small();
    let mount = cluster.mount_with("nopassthrough");
    let content = random(LARGE);
    cached(&mount, "f", &content);
    let file = File::open(mount.at("f")).unwrap();
    assert!(sys::read_mapped(&file, LARGE).unwrap() == content);
    fs::write(mount.at("f"), b"short").unwrap();
    assert_eq!(fs::read(mount.at("f")).unwrap(), b"short");
}

#[test]
fn who_writes_while_others_read_the_cache_file_is_seen_by_them_and_publishes() {
    let cluster = Cluster::small();
    let (mount, other) = (cluster.mount(), cluster.mount());
    let mut content = random(LARGE);
    cached(&mount, "f", &content);
    let reader = File::open(mount.at("f")).unwrap();
    let writer = OpenOptions::new().write(true).open(mount.at("f")).unwrap();
    writer.write_all_at(b"written", 1_000_000).unwrap();
    content[1_000_000..1_000_007].copy_from_slice(b"written");
    assert_eq!(read_at(&reader, 999_999, 9), content[999_999..1_000_008]);
    writer.write_all_at(b"and appended", LARGE as u64).unwrap();
    content.extend_from_slice(b"and appended");
    assert_eq!(read_at(&reader, LARGE as u64, 12), b"and appended");
    assert_eq!(writer.metadata().unwrap().len(), content.len() as u64);
    sys::close(writer).unwrap();
    assert!(fs::read(other.at("f")).unwrap() == content);
    assert!(fs::read(mount.at("f")).unwrap() == content);
    drop(reader);
    assert!(fs::read(mount.at("f")).unwrap() == content);
}

#[test]
fn stores_to_a_mapping_of_the_cache_file_are_published() {
    let cluster = Cluster::small();
    let (mount, other) = (cluster.mount(), cluster.mount());
    let mut content = random(LARGE);
    cached(&mount, "f", &content);
    let reader = File::open(mount.at("f")).unwrap();
    let writer = OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
    for (round, at) in [(1u8, 2_000_000), (2, 5), (3, LARGE - 9)] {
        let word = [b'0' + round; 9];
        sys::write_mapped(&writer, LARGE, at, &word).unwrap();
        content[at..at + 9].copy_from_slice(&word);
        assert_eq!(read_at(&reader, at as u64, 9), word);
        writer.sync_all().unwrap();
        assert!(fs::read(other.at("f")).unwrap() == content, "round {round}");
    }
    sys::write_mapped(&writer, LARGE, 77, b"at the end").unwrap();
    content[77..87].copy_from_slice(b"at the end");
    sys::close(writer).unwrap();
    assert!(fs::read(other.at("f")).unwrap() == content);
    drop(reader);
    assert!(fs::read(mount.at("f")).unwrap() == content);
}

#[test]
fn stores_to_a_mapping_of_the_cache_file_outlive_the_mounts_program() {
    let cluster = Cluster::small();
    let (mut mount, other) = (cluster.mount(), cluster.mount());
    let mut content = random(LARGE);
    cached(&mount, "f", &content);
    let reader = File::open(mount.at("f")).unwrap();
    let writer = OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
    sys::write_mapped(&writer, LARGE, 1_500_000, b"stored").unwrap();
    content[1_500_000..1_500_006].copy_from_slice(b"stored");
    mount.kill();
    drop((reader, writer));
    mount.start().unwrap();
    eventually(60, "what was stored is published", || fs::read(other.at("f")).unwrap() == content);
}

#[test]
fn a_new_version_from_elsewhere_is_another_file_for_who_has_the_old_one() {
    let cluster = Cluster::small();
    let (mount, other) = (cluster.mount(), cluster.mount());
    let (old, new) = (random(LARGE), random(LARGE + 1000));
    cached(&mount, "f", &old);
    let reader = File::open(mount.at("f")).unwrap();
    fs::write(other.at("f"), &new).unwrap();
    assert!(fs::read(mount.at("f")).unwrap() == new);
    assert!(read_at(&reader, 0, LARGE) == old);
    assert!(sys::read_mapped(&reader, LARGE).unwrap() == old);
    eventually(10, "only the old version is open", || open_cache_files(&mount) == 1);
    let again = File::open(mount.at("f")).unwrap();
    let (now, before) = while_stopped(&mount, || (read_at(&again, 0, new.len()), read_at(&reader, 0, LARGE)));
    assert!(now == new && before == old);
}

#[test]
fn suid_ends_also_where_others_read_the_cache_file() {
    let cluster = Cluster::small();
    let mount = cluster.mount_with("allow_other");
    cached(&mount, "f", &random(LARGE));
    fs::set_permissions(mount.at("f"), PermissionsExt::from_mode(0o4777)).unwrap();
    let _reader = File::open(mount.at("f")).unwrap();
    let path = mount.at("f");
    sys::as_user(1000, 1000, &[], || OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 0).unwrap());
    assert_eq!(fs::metadata(mount.at("f")).unwrap().mode() & 0o7777, 0o777);
    // CAP_CHOWN, in version 2 of the format.
    let capability: Vec<u8> = [0x0200_0001u32, 1, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    for user in [0, 1000] {
        sys::set_xattr(&path, "security.capability", &capability, 0).unwrap();
        sys::as_user(user, user, &[], || OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 0).unwrap());
        assert_eq!(sys::get_xattr(&path, "security.capability").unwrap_err().raw_os_error(), Some(libc::ENODATA), "user {user}");
    }
}

/// Bytes that the cache files below `directory` take up.
fn stored(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.filter_map(|e| e.metadata().ok().map(|m| if m.is_dir() { stored(&e.path()) } else { m.blocks() * 512 })).sum()
}

/// A cluster whose file server answers `delay` late, two mounts, and the content of a large file that the second one wrote.
fn slow_cluster(delay: Duration) -> (Cluster, Mount, Mount, Vec<u8>) {
    let cluster = Cluster::builder().proxied().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    let content = random(40 << 20);
    fs::write(other.at("f"), &content).unwrap();
    cluster.proxy(Role::File(0)).set(Direction::ToClient, Mode::Delay(delay, delay));
    (cluster, mount, other, content)
}

#[test]
fn a_large_file_is_read_while_it_arrives_the_wanted_range_first() {
    let (cluster, mount, _other, content) = slow_cluster(Duration::from_millis(300));
    let file = File::open(mount.at("f")).unwrap();
    let end = content.len() - 4096;
    assert!(read_at(&file, end as u64, 4096) == content[end..]);
    let here = stored(mount.cache());
    assert!(here < 20 << 20, "{here} bytes had to arrive before the last ones could be read");
    cluster.proxy(Role::File(0)).set(Direction::ToClient, Mode::Pass);
    eventually(60, "the rest arrives without being read", || stored(mount.cache()) >= content.len() as u64);
    assert!(read_at(&file, 0, content.len()) == content);
    // Complete by now: the next one who opens it, when nobody has it open, is served from the cache file.
    drop(file);
    wait_closed(&mount);
    let file = File::open(mount.at("f")).unwrap();
    assert!(while_stopped(&mount, || read_at(&file, 0, content.len())) == content);
}

#[test]
fn a_download_ends_with_the_last_close_and_goes_on_with_the_next_open() {
    let (cluster, mount, other, content) = slow_cluster(Duration::from_millis(200));
    let file = File::open(mount.at("f")).unwrap();
    assert!(read_at(&file, 5 << 20, 4096) == content[5 << 20..][..4096]);
    drop(file);
    // Another version, while what was asked for is still on its way.
    let newer = random(4 << 20);
    fs::write(other.at("f"), &newer).unwrap();
    assert!(fs::read(mount.at("f")).unwrap() == newer);
    cluster.proxy(Role::File(0)).set(Direction::ToClient, Mode::Pass);
    assert!(fs::read(mount.at("f")).unwrap() == newer);
    assert!(stored(mount.cache()) < 20 << 20, "what nobody read any more was fetched all the same");
}

#[test]
fn a_read_goes_on_where_the_server_was_away_for_a_while() {
    let (mut cluster, mount, _other, content) = slow_cluster(Duration::from_millis(100));
    let mut file = File::open(mount.at("f")).unwrap();
    let mut read = vec![0; 1 << 20];
    file.read_exact(&mut read).unwrap();
    cluster.kill(Role::File(0));
    cluster.restart(Role::File(0));
    cluster.proxy(Role::File(0)).set(Direction::ToClient, Mode::Pass);
    file.read_to_end(&mut read).unwrap();
    assert!(read == content);
}

/// Requests for the content of files so far.
fn fetches(cluster: &Cluster) -> u64 {
    cluster.proxy(Role::File(0)).requests().iter().filter(|(path, _)| path.ends_with("/data")).map(|(_, count)| count).sum()
}

#[test]
fn small_files_that_are_read_in_order_are_fetched_before_they_are_opened_and_once() {
    const FILES: usize = 60;
    let cluster = Cluster::builder().proxied().start();
    let (mount, other) = (cluster.mount(), cluster.mount());
    fs::create_dir(other.at("d")).unwrap();
    for n in 0..FILES {
        fs::write(other.at(format!("d/{n:03}")), format!("content of {n}")).unwrap();
    }
    assert_eq!(mount.run("ls -l d | wc -l").trim(), (FILES + 1).to_string());
    let read = |n: usize| assert_eq!(fs::read_to_string(mount.at(format!("d/{n:03}"))).unwrap(), format!("content of {n}"));
    read(40);
    assert_eq!(fetches(&cluster), 1, "nobody reads in order yet");
    (0..3).for_each(read);
    eventually(20, "the next ones are fetched", || fetches(&cluster) > 12);
    // One of them changes, and another one is replaced: what was fetched is not what is read.
    fs::write(other.at("d/007"), "changed").unwrap();
    assert_eq!(fs::read_to_string(mount.at("d/007")).unwrap(), "changed");
    fs::write(other.at("d/007"), "content of 7").unwrap();
    (3..FILES).for_each(read);
    let once = FILES as u64;
    assert!((once..=once + 4).contains(&fetches(&cluster)), "{} fetches of {FILES} files", fetches(&cluster));
}
