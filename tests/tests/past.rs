//! Old versions and removed files: read, listed, and brought back, by command and on the mount.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use dfs_tests::tree::{assert_same, hash, listing};
use dfs_tests::{Cluster, Mount, Role, eventually, shell, sys};

fn one() -> (Cluster, Mount) {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    (cluster, mount)
}

/// The identifiers of the kept versions of a path, oldest first.
fn versions(cluster: &Cluster, path: &str) -> Vec<String> {
    let rows: serde_json::Value = serde_json::from_str(&cluster.dfs(&["history", path, "--json"])).unwrap();
    rows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// vim saves by renaming the old file away, or in place: the history of the path has every save either way.
#[test]
fn fifty_saves_by_vim_are_each_readable() {
    for (name, how) in [("renamed", "no"), ("in-place", "yes")] {
        let (cluster, m) = one();
        m.run(&format!(
            "for n in $(seq 50); do vim -es -u NONE -c 'set backupcopy={how}' -c '%d' -c \"call setline(1, ['save', '$n'])\" -c wq {name}; done"
        ));
        let ids = versions(&cluster, name);
        assert_eq!(ids.len(), 50, "{ids:?}");
        let shown = m.at(".dfs/history").join(name);
        for (n, id) in (1..).zip(&ids) {
            let wanted = format!("save\n{n}\n");
            assert_eq!(cluster.dfs(&["read", &format!("{name}@{id}")]), wanted);
            assert_eq!(fs::read_to_string(shown.join(id)).unwrap(), wanted);
        }
        cluster.dfs(&["restore", &format!("{name}@{}", ids[9])]);
        assert_eq!(fs::read_to_string(m.at(name)).unwrap(), "save\n10\n");
        assert_eq!(versions(&cluster, name).len(), 51, "the version that was replaced is kept");
    }
}

#[test]
fn a_removed_tree_comes_back_with_one_command() {
    let (cluster, m) = one();
    m.run(
        "mkdir -p t/a/b t/empty; for n in $(seq 30); do seq $n > t/a/f$n; done; head -c 700000 /dev/urandom > t/a/b/big; ln -s ../x t/link; mkfifo t/pipe
         : > t/a/nothing; chmod 600 t/a/f1; chmod 2750 t/a; chown 12:34 t/a/f2; setfattr -n user.color -v blue t/a/f3; touch -d '2001-02-03 04:05:06.7' t/a/f4
         touch -d '2002-02-02' t/a/b t/a t/empty; touch -d '2003-03-03' t",
    );
    let before = listing(&m.at("t"));
    let (mode, mtime) = fs::metadata(m.at("t")).map(|d| (d.mode(), d.mtime())).unwrap();
    m.run("rm -r t");
    assert!(!m.at("t").exists());
    assert_same(
        &before.keys().map(|p| (p.clone(), String::new())).collect(),
        &listing(&m.at(".dfs/trash/t")).into_keys().map(|p| (p, String::new())).collect(),
    );
    cluster.dfs(&["undelete", "t"]);
    assert_same(&before, &listing(&m.at("t")));
    assert_eq!(fs::metadata(m.at("t")).map(|d| (d.mode(), d.mtime())).unwrap(), (mode, mtime));
    assert_eq!(sys::get_xattr(&m.at("t/a/f3"), "user.color").unwrap(), b"blue");
    // On a client that never saw it, too.
    assert_same(&before, &listing(&cluster.mount().at("t")));
}

#[test]
fn a_removed_file_is_read_listed_and_restored_under_another_name() {
    let (cluster, m) = one();
    m.run("mkdir d; echo one > d/f; echo two > d/f; rm d/f; echo other > d/f; rm d/f; echo third > d/f");
    assert!(cluster.dfs(&["undelete", "--list", "d"]).lines().count() <= 1, "the name leads somewhere again");
    let taken = cluster.try_dfs(&["undelete", "d/f"]);
    assert!(taken.code == 1 && taken.text.contains("--to"), "{}", taken.text);
    cluster.dfs(&["undelete", "d/f", "--to", "d/old"]);
    assert_eq!(fs::read_to_string(m.at("d/old")).unwrap(), "other\n");
    let contents: Vec<String> = versions(&cluster, "d/f").iter().map(|id| cluster.dfs(&["read", &format!("d/f@{id}")])).collect();
    assert_eq!(contents, ["one\n", "two\n", "other\n", "third\n"]);
    let none = cluster.try_dfs(&["undelete", "d/never"]);
    assert!(none.code == 3, "{}", none.text);
}

#[test]
fn the_past_is_hidden_and_read_only() {
    let (cluster, m) = one();
    m.run("mkdir d; echo 1 > d/f; echo 2 > d/f; echo gone > d/g; rm d/g; echo top > top");
    assert_eq!(m.run("ls -A; find . | sort"), "d\ntop\n.\n./d\n./d/f\n./top\n");
    assert_eq!(
        m.run("ls .dfs; ls .dfs/history/d; ls .dfs/history/d/f; cat .dfs/history/d/f/1; cat .dfs/trash/d/g"),
        "history\nrecovered\ntrash\nf\ng\n1\n2\n1\ngone\n"
    );
    let refused = |result: std::io::Result<()>| assert_eq!(sys::errno(result), libc::EROFS);
    refused(fs::write(m.at(".dfs/history/d/f/1"), "x"));
    refused(fs::write(m.at(".dfs/trash/new"), "x"));
    refused(fs::remove_file(m.at(".dfs/trash/d/g")));
    refused(fs::create_dir(m.at(".dfs/history/new")));
    refused(fs::rename(m.at(".dfs/trash/d/g"), m.at("g")));
    refused(fs::rename(m.at("top"), m.at(".dfs/trash/top")));
    refused(fs::hard_link(m.at(".dfs/trash/d/g"), m.at("g")));
    refused(sys::set_xattr(&m.at(".dfs/trash/d/g"), "user.x", b"x", 0));
    m.run("! touch .dfs/trash/d/g 2>/dev/null; cp .dfs/trash/d/g back; test $(cat back) = gone; cp -r .dfs/history/d/f versions; ls versions | wc -l; ls -l .dfs/trash/d");
    assert_eq!(fs::read_to_string(m.at(".dfs/history/d/g").join(&versions(&cluster, "d/g")[0])).unwrap(), "gone\n");
}

#[test]
fn a_large_old_version_is_read_whole() {
    let (cluster, m) = one();
    m.run("head -c 5000003 /dev/urandom > f");
    let before = hash(&m.at("f"));
    let mut file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.write_all(b"changed").unwrap();
    sys::close(file).unwrap();
    assert_ne!(hash(&m.at("f")), before);
    assert_eq!(hash(&m.at(".dfs/history/f/1")), before);
    assert_eq!(hash(&cluster.mount().at(".dfs/history/f/1")), before);
}

/// Versions that only an fsync made go when the same writer publishes the next.
#[test]
fn fsyncs_of_one_writer_leave_one_version() {
    let (cluster, m) = one();
    let mut file = fs::File::create(m.at("f")).unwrap();
    for n in 0..5 {
        writeln!(file, "{n}").unwrap();
        file.sync_all().unwrap();
    }
    sys::close(file).unwrap();
    let ids = versions(&cluster, "f");
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(cluster.dfs(&["read", &format!("f@{}", ids[0])]), "0\n1\n2\n3\n4\n");
}

#[test]
fn what_is_not_to_be_kept_goes_and_history_survives_a_restart() {
    let mut cluster = Cluster::builder().directory_args(&["--keep-versions", "3", "--keep-removed", "2s"]).start();
    let m = cluster.mount();
    m.run("for n in $(seq 6); do echo $n > f; done; echo x > g; rm g");
    assert_eq!(versions(&cluster, "f"), ["4", "5", "6"]);
    cluster.kill(Role::Directory);
    cluster.restart(Role::Directory);
    assert_eq!(versions(&cluster, "f"), ["4", "5", "6"]);
    eventually(20, "the removed file is gone for good", || cluster.try_dfs(&["undelete", "g"]).code == 3);
    assert!(shell::attempt(m.path(), "cat .dfs/trash/g").code != 0);
}
