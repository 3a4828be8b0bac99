//! Handles of files (name_to_handle_at, open_by_handle_at), as NFS servers and backup programs use them.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use dfs_tests::sys::{Handle, errno};
use dfs_tests::{Cluster, Mount};

fn read(mount: &Mount, handle: &Handle) -> std::io::Result<String> {
    let mut text = String::new();
    handle.open(&File::open(mount.path()).unwrap(), libc::O_RDONLY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// The kernel lets go of everything that it can.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").expect("as root");
}

fn handle(at: &Path) -> Handle {
    Handle::of(at).unwrap_or_else(|e| panic!("name_to_handle_at of {}: {e}", at.display()))
}

#[test]
fn a_handle_leads_to_its_file_by_whatever_name_and_however_long_ago() {
    let cluster = Cluster::small();
    let mut m = cluster.mount();
    fs::create_dir_all(m.at("d/e")).unwrap();
    fs::write(m.at("d/e/f"), "one").unwrap();
    let (file, dir) = (handle(&m.at("d/e/f")), handle(&m.at("d/e")));
    assert_eq!(read(&m, &file).unwrap(), "one");
    fs::rename(m.at("d/e"), m.at("moved")).unwrap();
    fs::rename(m.at("moved/f"), m.at("g")).unwrap();
    drop_caches();
    assert_eq!(read(&m, &file).unwrap(), "one");
    let opened = dir.open(&File::open(m.path()).unwrap(), libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    assert_eq!(fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened))).unwrap(), m.at("moved"));
    drop(opened);
    fs::write(cluster.mount().at("g"), "two, by another").unwrap();
    assert_eq!(read(&m, &file).unwrap(), "two, by another");
    m.unmount();
    m.start().unwrap();
    assert_eq!(read(&m, &file).unwrap(), "two, by another", "over a new mount");
    assert_eq!(read(&cluster.mount(), &file).unwrap(), "two, by another", "on another client");
}

#[test]
fn the_handle_of_a_removed_file_is_stale_and_leads_to_no_other() {
    let cluster = Cluster::small();
    let m = cluster.mount();
    let mut old = Vec::new();
    for n in 0..50 {
        let path = m.at(format!("f{n}"));
        fs::write(&path, "old").unwrap();
        old.push(handle(&path));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
    }
    for (n, handle) in old.iter().enumerate() {
        if n == 25 {
            drop_caches();
        }
        assert_eq!(errno(read(&m, handle)), libc::ESTALE, "file {n}");
    }
    assert_eq!(errno(read(&cluster.mount(), &old[0])), libc::ESTALE);
}

#[test]
fn a_handle_of_an_old_version_never_leads_to_another_file() {
    let cluster = Cluster::small();
    let (mut m, other) = (cluster.mount(), cluster.mount());
    fs::write(m.at("f"), "one").unwrap();
    let first = handle(&m.at("f"));
    let mut reader = File::open(m.at("f")).unwrap();
    fs::write(other.at("f"), "two").unwrap();
    // The name leads to a node of this mount's own now.
    assert_eq!(fs::read_to_string(m.at("f")).unwrap(), "two");
    let second = handle(&m.at("f"));
    assert!(matches!(read(&m, &first), Err(e) if e.raw_os_error() == Some(libc::ESTALE)), "the version is one that only its reader has");
    assert_eq!(read(&m, &second).unwrap(), "two");
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one");
    drop(reader);
    m.unmount();
    m.start().unwrap();
    // The same id may mean something else by now.
    fs::write(m.at("g"), "g").unwrap();
    let held = File::open(m.at("g")).unwrap();
    fs::write(other.at("g"), "other").unwrap();
    assert_eq!(fs::read_to_string(m.at("g")).unwrap(), "other");
    assert_eq!(errno(read(&m, &second)), libc::ESTALE);
    assert_eq!(read(&m, &first).unwrap(), "two");
    drop(held);
}
