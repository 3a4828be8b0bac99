//! Programs that ask much of a file system, on a mount: each is a script of
//! `scripts/conformance.d/programs`, which `scripts/conformance` runs on any mount point.
//! What it leaves behind must look the same on a second mount.

use std::fs;

use dfs_tests::process::checkout;
use dfs_tests::tree::{assert_same, listing};
use dfs_tests::{Cluster, shell};

fn run(name: &str) {
    let script = checkout().join("scripts/conformance.d/programs").join(format!("{name}.sh"));
    assert!(script.is_file(), "{} is missing", script.display());
    let cluster = Cluster::replicated();
    let mount = cluster.mount();
    // Some of the programs give up root.
    shell::run(cluster.dir(), "chmod 755 .");
    fs::create_dir(mount.at("work")).unwrap();
    shell::run(&mount.at("work"), &format!(". {}", script.display()));
    let other = cluster.mount();
    assert_same(&listing(mount.path()), &listing(other.path()));
    cluster.assert_no_panics();
}

#[test]
fn sqlite_with_four_writers_in_every_journal_mode() {
    run("sqlite");
}

#[test]
fn git_with_200_commits_gc_and_fsck() {
    run("git");
}

#[test]
fn rsync_finds_nothing_to_do_the_second_time() {
    run("rsync");
}

#[test]
fn tar_keeps_attributes_and_holes() {
    run("tar");
}

#[test]
fn find_deletes_while_files_are_made() {
    run("find_delete");
}

#[test]
fn flock_of_the_shell_keeps_processes_apart() {
    run("flock");
}

#[test]
fn office_programs_save() {
    run("office_save");
}

#[test]
fn pip_installs_a_wheel() {
    run("python_pip");
}

#[test]
fn autotools_build_check_and_distcheck() {
    run("make_check");
}

#[test]
fn cargo_builds_a_crate_of_this_project() {
    run("cargo_build");
}

#[test]
fn postgres_survives_the_death_of_its_processes() {
    run("postgres");
}

#[test]
fn every_program_has_its_test() {
    let this = fs::read_to_string(checkout().join("tests/tests/heavy_programs.rs")).unwrap();
    for entry in fs::read_dir(checkout().join("scripts/conformance.d/programs")).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(this.contains(&format!("run(\"{name}\")")), "no test runs {name}.sh");
    }
}
