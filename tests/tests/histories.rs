//! Four mounts at a time are one file system: whatever their clients do and see on one
//! shared directory, some order of all operations explains it. And the checker that says
//! so finds what is wrong where invalidation is switched off.

use std::path::Path;
use std::time::Duration;

use dfs_tests::history::{Names, Run};
use dfs_tests::{Cluster, Mount, Rng};

/// Of work, between two checks.
const STRETCH: Duration = Duration::from_secs(8);

fn run_on(mounts: &[Mount], names: Names, seed: u64) -> Run {
    let paths: Vec<&Path> = mounts.iter().map(Mount::path).collect();
    Run::new(&Run::shared(&paths, "shared").unwrap(), names, seed)
}

/// `stretches` on four mounts of `cluster`: nothing is found, and nothing fails.
#[track_caller]
fn one_file_system(cluster: &Cluster, names: Names, stretches: u32, options: &str) {
    let seed = Rng::announced("histories").next_u64() >> 32;
    let mounts: Vec<Mount> = (0..4).map(|_| cluster.mount_with(options)).collect();
    let mut run = run_on(&mounts, names, seed);
    for _ in 0..stretches {
        run.stretch(STRETCH, || {}).unwrap_or_else(|v| panic!("seed {seed}: {v}\n{}", run.stats));
    }
    let (most, _) = run.ambiguity();
    println!("seed {seed}: up to {most} possibilities; {}", run.stats);
    assert!(run.stats.unclear.is_empty(), "errors that nobody ordered: {}", run.stats);
    assert!(run.stats.total() > 200 * u64::from(stretches), "too little was done: {}", run.stats);
    cluster.assert_no_panics();
}

#[test]
fn four_mounts_of_one_process() {
    one_file_system(&Cluster::small(), Names::of_files(6), 4, "");
}

#[test]
fn four_mounts_of_a_replicated_cluster() {
    one_file_system(&Cluster::replicated(), Names::of_files(10), 4, "");
}

#[test]
fn four_mounts_that_always_meet_at_the_same_two_names() {
    let names = Names { files: 2, links: 1, directories: 1 };
    one_file_system(&Cluster::small(), names, 4, "");
}

#[test]
fn four_mounts_with_hardly_any_cache() {
    one_file_system(&Cluster::small(), Names::of_files(6), 3, "cache_size=1M");
}

/// A new directory is its maker's own until others come.
#[test]
fn four_mounts_that_meet_in_new_directories() {
    const BEGINNING: Duration = Duration::from_millis(150);
    let mut rng = Rng::announced("beginnings");
    let cluster = Cluster::small();
    let mounts: Vec<Mount> = (0..4).map(|_| cluster.mount()).collect();
    let paths: Vec<&Path> = mounts.iter().map(Mount::path).collect();
    for round in 0..100 {
        let seed = rng.next_u64() >> 32;
        let mut run = Run::new(&Run::shared(&paths, &format!("shared-{round}")).unwrap(), Names::of_files(6), seed);
        run.stretch(BEGINNING, || {}).unwrap_or_else(|v| panic!("round {round}, seed {seed}: {v}\n{}", run.stats));
        assert!(run.stats.unclear.is_empty(), "errors that nobody ordered: {}", run.stats);
    }
    cluster.assert_no_panics();
}

/// The proof that the tests above can fail.
#[test]
fn without_invalidation_the_checker_finds_what_is_stale() {
    let seed = Rng::announced("histories").next_u64() >> 32;
    let cluster = Cluster::builder().all_in_one().directory_args(&["--without-invalidation"]).start();
    let mounts: Vec<Mount> = (0..4).map(|_| cluster.mount()).collect();
    let mut run = run_on(&mounts, Names::of_files(6), seed);
    let found = (0..10).find_map(|_| run.stretch(Duration::from_secs(2), || {}).err());
    let violation = found.unwrap_or_else(|| panic!("seed {seed}: nothing is found although nobody is told of changes: {}", run.stats));
    println!("{violation}");
    let names = violation.operation.call.names();
    assert!(names != 0 && violation.text.contains("just before"), "{violation}");
}
