//! What is kept of removed files, on a real cluster: they come back as they were.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use dfs_common::api::directory::{RemovalPage, Removals, Status};
use dfs_common::ids::ROOT;
use dfs_tests::tree::{assert_same, listing};
use dfs_tests::{Cluster, eventually, sys};

#[test]
fn a_removed_tree_comes_back_as_it_was() {
    let mut cluster = Cluster::replicated();
    let mount = cluster.mount();
    fs::create_dir_all(mount.at("top/a/b")).unwrap();
    for n in 0..30_u32 {
        let path = mount.at(format!("top/a/{}{n}", if n % 2 == 0 { "b/" } else { "" }));
        let file = fs::File::create(&path).unwrap();
        (&file).write_all(&vec![n as u8; 1000 * n as usize]).unwrap();
        sys::close(file).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + n % 8)).unwrap();
    }
    std::os::unix::fs::symlink("a/b/1", mount.at("top/link")).unwrap();
    std::os::unix::fs::chown(mount.at("top/a/1"), Some(77), Some(88)).unwrap();
    let before = listing(&mount.at("top"));
    fs::remove_dir_all(mount.at("top")).unwrap();
    assert!(!mount.at("top").exists());
    drop(mount);
    cluster.crash();
    cluster.dfs(&["undelete", "top"]);
    let mount = cluster.mount();
    assert_same(&before, &listing(&mount.at("top")));
    let status = cluster.directory(&Status {}).unwrap();
    assert_eq!((status.kept, status.orphans), (0, 0));
}

#[test]
fn a_file_comes_back_while_it_is_open() {
    let cluster = Cluster::small();
    let (one, two) = (cluster.mount(), cluster.mount());
    fs::write(one.at("f"), "content").unwrap();
    let mut open = fs::File::open(one.at("f")).unwrap();
    let ino = open.metadata().unwrap().ino();
    fs::remove_file(two.at("f")).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    cluster.dfs(&["undelete", "f"]);
    for mount in [&one, &two] {
        let meta = fs::metadata(mount.at("f")).unwrap();
        assert_eq!((meta.ino(), meta.nlink(), meta.len()), (ino, 1, 7));
        assert_eq!(fs::read_to_string(mount.at("f")).unwrap(), "content");
    }
    assert_eq!(open.metadata().unwrap().nlink(), 1);
    open.rewind().unwrap();
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    drop(open);
    // What was open as a removed file is released like any other: it stays.
    fs::write(one.at("f"), "new").unwrap();
    drop(one);
    assert_eq!(fs::read_to_string(two.at("f")).unwrap(), "new");
    assert_eq!(cluster.directory(&Status {}).unwrap().orphans, 0);
}

#[test]
fn without_history_what_is_removed_is_gone() {
    let cluster = Cluster::builder().all_in_one().directory_args(&["--keep-removed", "0"]).start();
    let mount = cluster.mount();
    fs::write(mount.at("f"), vec![1; 100_000]).unwrap();
    let used = || cluster.servers().unwrap()[0].used;
    eventually(20, "the content counts", || used() > 0);
    fs::remove_file(mount.at("f")).unwrap();
    let page = cluster.directory(&Removals { parent: ROOT, after: None, limit: 10 }).unwrap();
    assert_eq!(page, RemovalPage::default());
    eventually(60, "the content is gone", || used() == 0);
    assert_eq!(cluster.directory(&Status {}).unwrap().kept, 0);
}
