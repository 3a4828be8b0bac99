//! Attributes that a program sets in a file that it writes for the first time: they go with
//! the content in one step, and everybody sees them from the close on.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use dfs_common::api::directory::Status;
use dfs_tests::{Cluster, sys};

const SET: &str = "/v1/directory/set-attributes";
const ARCHIVED: i64 = 1_700_000_000;

fn create(at: &Path) -> File {
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(at).unwrap();
    file.write_all(b"content").unwrap();
    file
}

/// Mode, owner, group and times.
fn shown(at: &Path) -> (u32, u32, u32, i64, i64) {
    let of = fs::symlink_metadata(at).unwrap();
    (of.mode() & 0o7777, of.uid(), of.gid(), of.atime(), of.mtime())
}

/// Requests that only set attributes, so far.
fn requests(cluster: &Cluster) -> u64 {
    cluster.directory(&Status {}).unwrap().requests.get(SET).copied().unwrap_or_default()
}

#[test]
fn what_is_set_before_the_first_close_goes_with_the_content() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    let before = requests(&cluster);
    let file = create(&one.at("f"));
    let archived = SystemTime::UNIX_EPOCH + Duration::from_secs(ARCHIVED as u64);
    file.set_times(fs::FileTimes::new().set_accessed(archived + Duration::from_secs(1)).set_modified(archived)).unwrap();
    fchown(&file, Some(1000), Some(100)).unwrap();
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    let expected = (0o640, 1000, 100, ARCHIVED + 1, ARCHIVED);
    assert_eq!(shown(&one.at("f")), expected, "who sets it sees it");
    sys::close(file).unwrap();
    assert_eq!(requests(&cluster), before, "it took no request of its own");
    for mount in [&one, &two] {
        assert_eq!(shown(&mount.at("f")), expected);
        assert_eq!(fs::read(mount.at("f")).unwrap(), b"content");
    }
    let refused = sys::as_user(1001, 1001, &[], || fs::read(two.at("f")));
    assert_eq!(sys::errno(refused), libc::EACCES);
}

#[test]
fn fsync_takes_it_along_and_what_is_set_afterwards_goes_at_once() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    let mut file = create(&one.at("f"));
    file.set_permissions(Permissions::from_mode(0o644)).unwrap();
    file.sync_all().unwrap();
    assert_eq!(shown(&two.at("f")).0, 0o644);
    file.write_all(b" and more").unwrap();
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    assert_eq!(shown(&two.at("f")).0, 0o640, "the file is known to others");
    sys::close(file).unwrap();
    assert_eq!((shown(&two.at("f")).0, fs::read(two.at("f")).unwrap()), (0o640, b"content and more".to_vec()));
}

#[test]
fn a_file_without_content_has_its_attributes_at_once() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    let file = File::create_new(one.at("f")).unwrap();
    file.set_permissions(Permissions::from_mode(0o604)).unwrap();
    assert_eq!(shown(&two.at("f")).0, 0o604);
    drop(file);
}

#[test]
fn the_time_of_what_is_written_after_it_was_set_is_that_of_the_write() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    let mut file = create(&one.at("f"));
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(ARCHIVED as u64)).unwrap();
    file.write_all(b" and more").unwrap();
    sys::close(file).unwrap();
    let (here, there) = (shown(&one.at("f")).4, shown(&two.at("f")).4);
    assert_eq!(here, there);
    assert!(here > ARCHIVED + 1000, "{here}");
}

#[test]
fn several_users_set_attributes_of_one_new_file() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    fs::set_permissions(one.at(""), Permissions::from_mode(0o777)).unwrap();
    let path = one.at("f");
    let file = sys::as_user(1000, 100, &[], || {
        let file = create(&path);
        file.set_permissions(Permissions::from_mode(0o666)).unwrap();
        file
    });
    // Root gives it away while its owner still writes.
    chown(&path, Some(1001), Some(101)).unwrap();
    assert_eq!(shown(&path).0, 0o666);
    let refused = sys::as_user(1000, 100, &[], || fs::set_permissions(&path, Permissions::from_mode(0o777)));
    assert_eq!(sys::errno(refused), libc::EPERM);
    sys::as_user(1001, 101, &[], || fs::set_permissions(&path, Permissions::from_mode(0o622))).unwrap();
    sys::close(file).unwrap();
    for mount in [&one, &two] {
        let (mode, uid, gid, ..) = shown(&mount.at("f"));
        assert_eq!((mode, uid, gid), (0o622, 1001, 101));
        assert_eq!(fs::read(mount.at("f")).unwrap(), b"content");
    }
}

#[test]
fn what_was_removed_before_its_first_close_leaves_nothing() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let file = create(&mount.at("f"));
    file.set_permissions(Permissions::from_mode(0o604)).unwrap();
    fs::remove_file(mount.at("f")).unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o604);
    sys::close(file).unwrap();
    assert_eq!(fs::read_dir(mount.at("")).unwrap().count(), 0);
}
