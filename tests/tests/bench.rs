//! `dfs bench` on a mount and on a local directory: every workload runs, nothing stays behind,
//! whatever ends it, and what cannot be measured is said.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use dfs_tests::mount::{Mount, running};
use dfs_tests::process::binary;
use dfs_tests::shell::{self, Output};
use dfs_tests::{Cluster, eventually, sys};
use serde_json::Value;

/// Without any service to ask, as none is needed.
fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("dfs"));
    command.args(["--server", "http://127.0.0.1:9", "--token-file", "/none", "bench"]).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    shell::output(&mut bench(arguments))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn empty(path: &Path) -> bool {
    std::fs::read_dir(path).unwrap().next().is_none()
}

fn names(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn every_workload_on_a_mount_and_on_a_local_directory() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let local = tempfile::tempdir().unwrap();
    let listed: Value = serde_json::from_str(&run(&["--list", "--json"]).text).unwrap();
    let watched = format!("mount={}", mount.pid());
    let out = run(&[text(mount.path()), text(local.path()), "--quick", "--size", "1M", "--json", "--cold", "true", "--pids", &watched]);
    assert_eq!(out.code, 0, "{}", out.text);
    let report: Value = serde_json::from_str(&out.text).unwrap();
    assert_eq!(names(&report["rows"]), names(&listed), "every row is there");
    assert!(names(&listed).len() > 20);
    for row in report["rows"].as_array().unwrap() {
        for result in row["results"].as_array().unwrap() {
            let is_skipped = result["skipped"].as_str().is_some_and(|reason| reason.contains("no git"));
            assert!(is_skipped || result["median"].as_f64().is_some_and(|value| value > 0.0), "{row:#}");
        }
        let watched = &row["results"][0];
        let counts =
            watched["processor_us"]["mount"].is_number() && watched["peak_memory_bytes"]["mount"].as_u64().is_some_and(|bytes| bytes > 1 << 20);
        assert!(counts || watched["skipped"].is_string(), "{row:#}");
    }
    assert_eq!(report["directories"][0]["file_system"], "fuse.dfs-mount");
    let peaks = report["rows"].as_array().unwrap().iter().filter_map(|row| row["results"][0]["peak_memory_bytes"]["mount"].as_u64());
    assert_eq!(report["processes"][0]["peak_memory_bytes"].as_u64(), peaks.max());
    assert!(empty(mount.path()) && empty(local.path()), "nothing is left behind");
}

#[test]
fn what_a_mount_has_cached_is_never_called_cold() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    let out = run(&[text(mount.path()), "--quick", "--size", "1M", "--only", "cold-read,cold-first,cold-find,cold-files,stat"]);
    assert_eq!(out.code, 0, "{}", out.text);
    assert_eq!(out.text.matches(" skipped\n").count(), 4, "{}", out.text);
    assert!(out.text.contains("fuse.dfs-mount file system has caches"), "{}", out.text);
}

/// Starts a run that waits in its cold command, and ends both by `signal`, as a terminal does.
fn interrupted(mount: &Mount, signal: i32) {
    let waits = mount.cache().join("waits");
    let cold = format!("echo $$ > {}; exec sleep 60", waits.display());
    let mut child =
        bench(&[text(mount.path()), "--quick", "--only", "cold-find", "--cold", &cold]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let number = || std::fs::read_to_string(&waits).ok()?.strip_suffix('\n')?.parse().ok();
    eventually(20, "the cold command runs", || number().is_some());
    let sleep: i32 = number().unwrap();
    std::fs::remove_file(&waits).unwrap();
    assert!(!empty(mount.path()), "it has made its files");
    sys::signal(child.id() as i32, signal);
    sys::signal(sleep, signal);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!running(sleep) && empty(mount.path()), "nothing is left behind");
}

#[test]
fn an_interrupted_run_cleans_up() {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    interrupted(&mount, libc::SIGINT);
    interrupted(&mount, libc::SIGTERM);
}

#[test]
fn a_failure_is_in_the_result_and_in_the_exit_code() {
    let local = tempfile::tempdir().unwrap();
    let out = run(&[text(local.path()), "--quick", "--only", "cold-find,stat", "--json", "--cold", "echo no power >&2; false"]);
    assert_eq!(out.code, 1, "{}", out.text);
    let report: Value = serde_json::Deserializer::from_str(&out.text).into_iter().next().unwrap().unwrap();
    let results: BTreeSet<(&str, bool)> =
        names(&report["rows"]).into_iter().zip([0, 1].map(|row| report["rows"][row]["results"][0]["failed"].is_string())).collect();
    assert_eq!(results, BTreeSet::from([("stat", false), ("cold-find", true)]), "{}", out.text);
    assert!(out.text.contains("no power") && out.text.contains("1 of the workloads failed"), "{}", out.text);
    assert!(empty(local.path()), "nothing is left behind");
}

#[test]
fn a_corrupted_byte_is_found() {
    let local = tempfile::tempdir().unwrap();
    // The command has its moment between writing and reading.
    let corrupt = "printf X | dd of=$(echo $DIR/dfs-bench-*/small-*/d00/f0003) bs=1 seek=7 conv=notrunc";
    let out = run(&[text(local.path()), "--quick", "--only", "cold-files", "--cold", corrupt]);
    assert_eq!(out.code, 1, "{}", out.text);
    assert!(out.text.contains("/d00/f0003: WRONG DATA: byte 7 is 0x58"), "{}", out.text);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let local = tempfile::tempdir().unwrap();
    let missing = local.path().join("missing");
    for (arguments, code, said) in [
        (&[text(&missing)][..], 1, "missing"),
        (&["/proc"], 1, "/proc"),
        (&[text(local.path()), text(&missing)], 1, "missing"),
        (&[text(local.path()), "--pids", "x=999999999"], 1, "process x"),
        (&[text(local.path()), "--only", "nothing"], 2, "nothing"),
        (&[text(local.path()), "--size", "7"], 2, "64M"),
        (&[], 2, "DIR"),
    ] {
        let out = run(arguments);
        assert!(out.code == code && out.text.contains(said), "{arguments:?}: {} {}", out.code, out.text);
        assert!(empty(local.path()), "{arguments:?} leaves something behind");
    }
}
