//! The rules of dependency and size, checked over the sources of this checkout.

use dfs_tests::process::checkout;
use dfs_tests::rules::{Broken, IMPURE, code, forbidden, names, sources, too_long};

/// Files whose logic must be a function of state, time and request. A folder stands for all below it.
const PURE: &[&str] = &[
    "dfs-server/src/lock/state",
    "dfs-server/src/directory/state",
    "dfs-mount/src/cache/map.rs",
    "dfs-mount/src/cache/copy.rs",
    "dfs-mount/src/cache/record.rs",
    "tests/src/history/check.rs",
    "tests/src/history/model.rs",
    "tests/src/history/record.rs",
    "tests/src/history/report.rs",
];

/// What may name the FUSE library: the mount's folder for it, and the file system that measures what it costs.
const FUSE: &[&str] = &["dfs-mount/src/fuse/", "dfs-mount/examples/fuse_floor.rs"];

fn check(rule: &str, broken: &[Broken]) {
    let lines: Vec<String> = broken.iter().map(|b| format!("{}:{} {}", b.file.display(), b.line, b.what)).collect();
    assert!(broken.is_empty(), "{rule}:\n{}", lines.join("\n"));
}

#[test]
fn pure_files_name_no_runtime_file_socket_clock_or_randomness() {
    let sources = sources(&checkout());
    for pure in PURE {
        assert!(sources.iter().any(|(file, _)| file.starts_with(pure)), "{pure} does not exist: the rule checks nothing");
    }
    let broken: Vec<Broken> =
        sources.iter().filter(|(file, _)| PURE.iter().any(|p| file.starts_with(p))).flat_map(|(file, text)| forbidden(file, text, IMPURE)).collect();
    check("pure files", &broken);
}

#[test]
fn only_one_folder_of_the_mount_names_the_fuse_crate() {
    let broken: Vec<Broken> = sources(&checkout())
        .iter()
        .filter(|(file, _)| !FUSE.iter().any(|may| file.starts_with(may)))
        .flat_map(|(file, text)| forbidden(file, text, &["fuser"]))
        .collect();
    check("fuser belongs in dfs-mount/src/fuse/", &broken);
}

#[test]
fn crates_know_only_what_is_below_them() {
    let mut broken = Vec::new();
    for (file, text) in sources(&checkout()) {
        let words: &[&str] = match file.components().next().and_then(|c| c.as_os_str().to_str()) {
            Some("dfs-common") => &["dfs_server", "dfs_mount", "dfs_tests"],
            Some("dfs-server") => &["dfs_mount", "dfs_tests"],
            Some("dfs-mount") => &["dfs_server", "dfs_tests"],
            _ => &[],
        };
        broken.extend(forbidden(&file, &text, words));
    }
    check("crates import downwards only", &broken);
    for (name, not) in [("dfs-common", &["dfs-server", "dfs-mount"][..]), ("dfs-server", &["dfs-mount"]), ("dfs-mount", &["dfs-server"])] {
        let manifest = std::fs::read_to_string(checkout().join(name).join("Cargo.toml")).unwrap();
        for other in not {
            assert!(!manifest.contains(other), "{name}/Cargo.toml names {other}");
        }
    }
}

#[test]
fn engines_and_http_crates_stay_behind_their_seams() {
    let allowed: &[(&str, &[&str])] = &[
        ("rusqlite", &["dfs-server/src/store"]),
        ("hyper", &["dfs-server/src/shell"]),
        ("httparse", &["dfs-common/src/transport"]),
        ("reqwest", &["dfs-common/src/transport"]),
    ];
    let mut broken = Vec::new();
    for (file, text) in sources(&checkout()) {
        for (word, places) in allowed {
            if !places.iter().any(|p| file.starts_with(p)) {
                broken.extend(forbidden(&file, &text, &[word]));
            }
        }
    }
    check("crates behind a seam", &broken);
}

#[test]
fn no_file_is_too_long() {
    let broken: Vec<Broken> = sources(&checkout()).iter().filter_map(|(file, text)| too_long(file, text)).collect();
    check("sizes", &broken);
}

#[test]
fn every_module_says_what_it_is() {
    let mut broken = Vec::new();
    for (file, text) in sources(&checkout()) {
        let named = file.components().any(|c| c.as_os_str() == "src");
        if named && !text.starts_with("//!") && code(&text).any(|(_, line)| names(&line, "fn") || names(&line, "struct")) {
            broken.push(Broken { file, line: 1, what: "does not open with what it owns".into() });
        }
    }
    check("module headers", &broken);
}
