//! What calls do on a mount is what they do on ext4, but for the differences that are listed.
//!
//! A program of `tests/probes` says what each of its calls does, a line each. It runs on ext4 and on a mount; what differs
//! must be exactly what `tests/probes/NAME.differences` lists, with the reason, and docs/SEMANTICS.md tells users.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dfs_tests::process::checkout;
use dfs_tests::shell::{self, output};
use dfs_tests::{Cluster, sys};

/// An ext4 in a file, mounted until it is dropped.
struct Ext4(PathBuf);

impl Ext4 {
    fn in_dir(dir: &Path) -> Self {
        shell::run(dir, "truncate -s 128M ext4.image; mkfs.ext4 -q -F -b 4096 ext4.image; mkdir ext4; mount -o loop ext4.image ext4");
        Self(dir.join("ext4"))
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        output(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn probes() -> PathBuf {
    checkout().join("tests/probes")
}

/// What the calls of `probe` do in a directory of its own below `point`.
fn results(probe: &str, point: &Path) -> BTreeMap<String, String> {
    let dir = point.join(probe);
    fs::create_dir(&dir).unwrap();
    let program = probes().join(format!("{probe}.py"));
    let out = shell::run(&dir, &format!("PYTHONDONTWRITEBYTECODE=1 python3 {}", program.display()));
    let mut results = BTreeMap::new();
    for line in out.lines() {
        let (name, result) = line.split_once('\t').unwrap_or_else(|| panic!("{probe}: no result in: {line}"));
        assert!(results.insert(name.to_owned(), result.to_owned()).is_none(), "{probe}: two results of '{name}'");
    }
    assert!(results.len() > 100, "{probe} has only {} results:\n{out}", results.len());
    results
}

/// The lines `NAME, tab, on ext4, tab, on a mount` of a list; each group of them stands below its reason.
fn listed(probe: &str) -> Vec<String> {
    let text = fs::read_to_string(probes().join(format!("{probe}.differences"))).unwrap();
    assert!(text.starts_with("# "), "a difference without a reason");
    let mut lines: Vec<String> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    lines.sort();
    lines
}

fn compare(probe: &str) {
    let cluster = Cluster::small();
    let mount = cluster.mount_with("suid,dev");
    // Users other than root get through to both.
    shell::run(cluster.dir(), "chmod 755 .");
    let ext4 = Ext4::in_dir(cluster.dir());
    let (expected, found) = (results(probe, &ext4.0), results(probe, mount.path()));
    assert!(expected.keys().eq(found.keys()), "the calls themselves differ: {:?}", expected.keys().filter(|k| !found.contains_key(*k)));
    let differing = expected.iter().filter(|(name, result)| found[*name] != **result);
    let mut differing: Vec<String> = differing.map(|(name, result)| format!("{name}\t{result}\t{}", found[name])).collect();
    differing.sort();
    let listed = listed(probe);
    let only = |these: &[String], others: &[String]| these.iter().filter(|l| !others.contains(l)).cloned().collect::<Vec<_>>().join("\n");
    let (new, gone) = (only(&differing, &listed), only(&listed, &differing));
    assert!(new.is_empty() && gone.is_empty(), "{probe}: name, on ext4, on a mount\nnot listed:\n{new}\nlisted, and no difference any more:\n{gone}");
    println!("{} results of {} are those of ext4", found.len() - listed.len(), found.len());
    cluster.assert_no_panics();
}

#[test]
fn extended_attributes_and_lists_are_those_of_ext4() {
    compare("xattrs");
}

#[test]
fn suid_and_sgid_end_as_on_ext4() {
    compare("privileges");
}

#[test]
fn calls_on_files_do_what_they_do_on_ext4() {
    compare("calls");
}

/// What is stored through a mapping belongs where it is mapped, whatever else the descriptor is for.
#[test]
fn a_mapping_of_a_file_that_is_appended_to_is_no_append() {
    let cluster = Cluster::small();
    let (m, other) = (cluster.mount(), cluster.mount());
    fs::write(m.at("log"), vec![b'a'; 10_000]).unwrap();
    let file = fs::OpenOptions::new().read(true).append(true).open(m.at("log")).unwrap();
    sys::write_mapped(&file, 10_000, 5_000, b"stored").unwrap();
    std::io::Write::write_all(&mut &file, b"appended").unwrap();
    sys::close(file).unwrap();
    let mut expected = vec![b'a'; 10_000];
    expected[5_000..5_006].copy_from_slice(b"stored");
    expected.extend_from_slice(b"appended");
    assert!(fs::read(other.at("log")).unwrap() == expected);
}

#[test]
fn nosuid_nodev_noexec_and_ro_hold() {
    let cluster = Cluster::small();
    let (m, strict) = (cluster.mount_with("suid,dev"), cluster.mount_with("nosuid,nodev,noexec"));
    shell::run(cluster.dir(), "chmod 755 .");
    m.run("cp /usr/bin/id id; chown 1234 id; chmod 4755 id; mknod null c 1 3; chmod 666 null; test $(./id -u) = 1234; echo x > null");
    let refused = |script: &str, says: &str| {
        let out = shell::attempt(strict.path(), script);
        assert!(out.code != 0 && out.text.contains(says), "{script}: {} {}", out.code, out.text);
    };
    refused("./id -u", "Permission denied");
    refused("echo x > null", "Permission denied");
    let nosuid = cluster.mount_with("nosuid");
    nosuid.run("test $(./id -u) = 0");
    let read_only = cluster.mount_with("ro");
    for script in ["echo x > new", "mkdir new", "rm id", "chmod 700 id", "mv id new", "setfattr -n user.x -v 1 id", "ln id new", "truncate -s 0 id"] {
        let out = shell::attempt(read_only.path(), script);
        assert!(out.code != 0 && out.text.contains("Read-only file system"), "{script}: {} {}", out.code, out.text);
    }
    read_only.run("cat id > /dev/null; ls -l");
}
