//! The program that measures growth measures everything that it names, on small sizes.
//! What it finds on large ones is in docs/PERFORMANCE.md: times are no condition here.

use dfs_tests::growth::{Growth, Scale, measure, table};

#[track_caller]
fn complete(growth: Growth, sizes: &[u64], daemons: &[&str]) {
    let costs = measure(growth, &Scale::quick()).unwrap();
    println!("{}", table(&costs));
    for (at, cost) in costs.iter().enumerate() {
        assert_eq!(cost.size, sizes[at % sizes.len()], "{cost:?}");
        assert!(cost.clock > 0.0 && cost.work() > 0.0, "{cost:?}");
        assert_eq!(cost.processor.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), daemons, "{cost:?}");
    }
    assert!(costs.len() >= 3 * sizes.len() && costs.len().is_multiple_of(sizes.len()), "{costs:?}");
}

const DAEMONS: [&str; 4] = ["mount", "directory", "lock", "file"];

#[test]
fn every_size_of_a_directory_is_measured() {
    complete(Growth::Entries, &Scale::quick().entries, &DAEMONS);
}

#[test]
fn every_number_of_versions_is_measured() {
    complete(Growth::Versions, &Scale::quick().versions, &DAEMONS);
}

#[test]
fn every_number_of_sessions_is_measured() {
    complete(Growth::Sessions, &Scale::quick().sessions, &DAEMONS);
}
