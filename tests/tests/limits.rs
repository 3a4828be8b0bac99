//! Full disks, wrong options, wrong configuration: a clear error, and nothing lost.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dfs_common::api::directory::{Status, Versions};
use dfs_tests::disk::SmallDisk;
use dfs_tests::process::binary;
use dfs_tests::shell::{Output, output};
use dfs_tests::{Cluster, Mount, Rng, Role, eventually, sys};

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    sys::close(file)
}

#[test]
fn a_full_file_server_is_enospc_at_close_and_loses_nothing() {
    let disk = SmallDisk::new(48);
    let cluster = Cluster::builder().file_data(0, disk.path()).start();
    let mount = cluster.mount_with("timeout=10");
    let mut rng = Rng::announced("disk full");
    let mut kept: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let error = loop {
        let (name, content) = (PathBuf::from(format!("f{}", kept.len())), rng.bytes(3 << 20));
        match write(&mount.at(&name), &content) {
            Ok(()) => kept.push((name, content)),
            Err(e) => break e,
        }
        assert!(kept.len() < 30, "90 MiB fit on a disk of 48");
    };
    println!("{} files of 3 MiB, then: {error}", kept.len());
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}\n{}", mount.log());
    assert!(kept.len() >= 8, "only {} files", kept.len());
    let check = |kept: &[(PathBuf, Vec<u8>)]| {
        let fresh = cluster.mount();
        for (name, content) in kept {
            assert!(fs::read(fresh.at(name)).unwrap_or_else(|e| panic!("{}: {e}", name.display())) == *content, "{} is damaged", name.display());
        }
    };
    check(&kept);
    // An existing file that cannot be replaced keeps its old content for everybody else.
    let bigger = rng.bytes(9 << 20);
    assert_eq!(write(&mount.at("f0"), &bigger).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    check(&kept);
    // Deleting makes room again.
    for (name, _) in kept.drain(2..6) {
        fs::remove_file(mount.at(name)).unwrap();
    }
    let content = rng.bytes(3 << 20);
    eventually(40, "there is room again", || write(&mount.at("after"), &content).is_ok());
    kept.push(("after".into(), content));
    check(&kept);
    cluster.assert_no_panics();
}

#[test]
fn a_full_directory_service_refuses_and_loses_nothing() {
    let disk = SmallDisk::new(24);
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let mut cluster = Cluster::builder().directory_data(disk.path()).start();
    // The other one is there before: a service without any room opens no session.
    let (mount, other) = (cluster.mount_with("timeout=10"), cluster.mount());
    // A symlink's target lies in the directory service.
    let target = |n: usize| format!("{n:06}/{}", "x/".repeat(2000));
    let link = |n: usize| std::os::unix::fs::symlink(target(n), mount.at(format!("l{n}")));
    let mut count = 0;
    let error = loop {
        match link(count) {
            Ok(()) => count += 1,
            Err(e) => break e,
        }
        assert!(count < 8000, "32 MB fit on a disk of 24 MiB");
    };
    println!("{count} symlinks, then: {error}");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}\n{}", mount.log());
    assert!(count >= 500, "only {count} symlinks");
    let check = |mount: &Mount, count: usize| {
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), count);
        for n in 0..count {
            assert_eq!(fs::read_link(mount.at(format!("l{n}"))).unwrap().to_str(), Some(&*target(n)), "l{n}");
        }
    };
    check(&other, count);
    fs::remove_file(&ballast).unwrap();
    eventually(40, "there is room again", || link(count).is_ok());
    cluster.kill(Role::Directory);
    cluster.restart(Role::Directory);
    check(&cluster.mount(), count + 1);
    cluster.assert_no_panics();
}

#[test]
fn what_was_removed_gives_way_to_what_is_written() {
    let disk = SmallDisk::new(64);
    let cluster = Cluster::builder().file_data(0, disk.path()).start();
    let mount = cluster.mount_with("timeout=10");
    let mut rng = Rng::announced("history on a small disk");
    // Three times the disk goes through it, half of it as files that are removed, half as old versions of one.
    for n in 0..32 {
        let content = rng.bytes(3 << 20);
        eventually(40, "there is room for a file", || write(&mount.at("temporary"), &content).is_ok());
        fs::remove_file(mount.at("temporary")).unwrap();
        let content = rng.bytes(3 << 20);
        eventually(40, "there is room for a version", || write(&mount.at("saved"), &content).is_ok());
        assert!(fs::read(mount.at("saved")).unwrap() == content, "version {n}");
    }
    let removed = cluster.directory(&Status {}).unwrap().kept;
    let versions = cluster.directory(&Versions { ino: cluster.inode("/saved") }).unwrap().len();
    println!("{removed} removed files and {versions} versions are left");
    assert!(removed + versions as u64 >= 4, "what there is room for stays");
    cluster.assert_no_panics();
}

#[test]
fn a_full_server_is_passed_over_for_one_with_room() {
    let disk = SmallDisk::new(24);
    let cluster = Cluster::builder().file_servers(2).copies(1).file_data(0, disk.path()).start();
    let mount = cluster.mount();
    let mut rng = Rng::announced("one full server");
    let contents: Vec<Vec<u8>> = (0..30).map(|_| rng.bytes(2 << 20)).collect();
    for (n, content) in contents.iter().enumerate() {
        write(&mount.at(n.to_string()), content).unwrap_or_else(|e| panic!("file {n}: {e}\n{}", mount.log()));
    }
    let fresh = cluster.mount();
    for (n, content) in contents.iter().enumerate() {
        assert!(fs::read(fresh.at(n.to_string())).unwrap() == *content, "file {n}");
    }
}

fn refused(program: &str, args: &[&str], says: &[&str]) -> Output {
    let out = output(Command::new(binary(program)).args(args).env_remove("DFS_TOKEN_FILE"));
    assert_ne!(out.code, 0, "{program} {args:?} was accepted");
    for word in says {
        assert!(out.text.contains(word), "{program} {args:?} does not say '{word}': {}", out.text);
    }
    assert!(!out.text.contains("panicked"), "{}", out.text);
    out
}

#[test]
fn unknown_flags_and_keys_name_the_nearest_known_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    for (role, key, near) in [("directory", "prot", "port"), ("lock", "dta", "data"), ("file", "directori", "directory"), ("all", "copeis", "copies")]
    {
        fs::write(&config, format!("{key} = 1\n")).unwrap();
        refused("dfs-server", &[role, "--config", config.to_str().unwrap()], &[key, near]);
        refused("dfs-server", &[role, &format!("--{key}"), "1"], &[key, near]);
    }
    refused("dfs-server", &["directry"], &["directory"]);
    refused("dfs", &["statsu"], &["status"]);
    refused("dfs", &["ls", "--jsno"], &["json"]);
}

#[test]
fn a_mount_refuses_what_it_does_not_understand() {
    let cluster = Cluster::small();
    let mountpoint = cluster.dir().join("point");
    fs::create_dir(&mountpoint).unwrap();
    let (point, token) = (mountpoint.to_str().unwrap(), format!("token_file={}", cluster.token_file().display()));
    let mount = |source: &str, point: &str, options: &str, says: &[&str]| {
        let out = refused("dfs-mount", &[source, point, "-o", options], says);
        assert_eq!(out.code, 32, "mount(8) expects 32: {}", out.text);
        assert!(!dfs_tests::mount::is_mounted(&mountpoint));
    };
    let source = cluster.source();
    mount(source, point, &format!("{token},cache_sise=1G"), &["cache_sise", "cache_size"]);
    mount(source, point, &format!("{token},lokc_wait=1"), &["lokc_wait", "lock_wait"]);
    mount(source, point, &format!("{token},cache_size=lots"), &["cache_size"]);
    mount(source, point, "token_file=/nowhere/token", &["/nowhere/token"]);
    mount("http://127.0.0.1:1", point, &format!("{token},timeout=1"), &["127.0.0.1:1"]);
    mount("nonsense", point, &format!("{token},timeout=1"), &["nonsense"]);
    mount(source, "/nowhere/point", &token, &["/nowhere/point"]);
    let wrong = cluster.dir().join("wrong");
    fs::write(&wrong, "0123456789abcdef-wrong").unwrap();
    dfs_tests::shell::run(cluster.dir(), "chmod 644 wrong");
    mount(source, point, &format!("token_file={}", wrong.display()), &["chmod 600"]);
    dfs_tests::shell::run(cluster.dir(), "chmod 600 wrong");
    mount(source, point, &format!("token_file={},timeout=2", wrong.display()), &["credentials"]);
}

#[test]
fn a_server_refuses_what_it_cannot_work_with() {
    let cluster = Cluster::small();
    let (dir, token) = (cluster.dir().join("other"), cluster.token_file().to_str().unwrap().to_owned());
    let data = dir.to_str().unwrap().to_owned();
    refused("dfs-server", &["directory", "--data", &data, "--port", "0"], &["token"]);
    let port = cluster.source().rsplit_once(':').unwrap().1.to_owned();
    refused("dfs-server", &["directory", "--data", &data, "--token-file", &token, "--lock-url", "http://127.0.0.1:1", "--port", &port], &[&port]);
    let used = cluster.dir().join("all");
    let port = dfs_tests::process::free_port().to_string();
    refused("dfs-server", &["all", "--data", used.to_str().unwrap(), "--token-file", &token, "--port", &port], &["all"]);
}
