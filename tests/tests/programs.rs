//! Programs that people use, on a mount: what they leave behind is checked, on a second
//! mount too.

use std::fs;
use std::path::Path;

use dfs_tests::tree::{assert_same, listing};
use dfs_tests::{Cluster, Mount, eventually, shell};

fn one() -> (Cluster, Mount) {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    (cluster, mount)
}

/// Panics with a sentence where a program is not installed.
fn need(programs: &[&str]) {
    for program in programs {
        let found = shell::attempt(Path::new("/"), &format!("command -v {program}")).code == 0;
        assert!(found, "this suite needs '{program}' (scripts/test installs it)");
    }
}

/// Both mounts show the same, read with an empty cache.
fn same_elsewhere(cluster: &Cluster, mount: &Mount) {
    let other = cluster.mount();
    assert_same(&listing(mount.path()), &listing(other.path()));
}

#[test]
fn cat_cp_mv_ln_sed_and_friends() {
    let (cluster, m) = one();
    m.run(
        "echo one > a; echo two > b; cat a b > c; test \"$(cat c)\" = $'one\\ntwo'
         mkdir d; cp -a a b c d/; chmod 640 d/a; touch -d '2001-02-03 04:05:06.789' d/b; ln -s a d/l; ln d/c d/hard
         cp -a d e; diff -r d e; test $(stat -c %a e/a) = 640; test \"$(stat -c %y d/b)\" = \"$(stat -c %y e/b)\"
         test $(stat -c %i e/c) = $(stat -c %i e/hard); test \"$(readlink e/l)\" = a
         mv e f; mv f/a f/z; test ! -e e; test \"$(cat f/z)\" = one
         sed -i 's/two/three/' f/b; grep -q three f/b; sed -i.bak 's/three/four/' f/b; grep -q three f/b.bak
         sort -r c -o c; test \"$(head -1 c)\" = two; tee -a c < a; test $(wc -l < c) = 3
         dd if=/dev/zero of=z bs=1M count=3 status=none; dd if=/dev/urandom of=z bs=4k seek=100 count=3 conv=notrunc status=none; test $(stat -c %s z) = 3145728
         find . -name 'b*' | sort | tr '\\n' ' ' | grep -c './b ./d/b ./f/b ./f/b.bak'
         shred -u z; test ! -e z; split -b 3 c part-; cat part-* | cmp - c; rm -r d; install -m 755 a bin; ./bin 2>/dev/null || true",
    );
    same_elsewhere(&cluster, &m);
}

#[test]
fn tar_rsync_and_zip() {
    need(&["rsync", "tar", "xz"]);
    let (cluster, m) = one();
    let tree = cluster.dir().join("tree");
    fs::create_dir(&tree).unwrap();
    // rsync leaves the time of what is not a file alone where it differs within a second only: nothing here is of this second.
    shell::run(
        &tree,
        "for d in a b c; do mkdir -p $d/sub; for f in $(seq 40); do seq $((f * 50)) > $d/f$f; done; done
         ln -s ../a b/link; ln a/f1 c/hard; chmod 600 a/f2; chmod 1777 b; chown 12:34 a/f3; touch -d '1999-12-31 23:59:59.123456789' a/f4
         truncate -s 5M c/sparse; mkfifo c/pipe; touch -h -d '2020-01-02' */sub b/link c/pipe
         touch -d '2020-01-01' a b c .",
    );
    m.run(&format!("tar --format=posix -C {0} -cf - . | tar -xpf - ; cd ..", tree.display()));
    assert_same(&listing(&tree), &listing(m.path()));
    m.run("tar -cJf /tmp/dfs-test-$$.tar.xz . && tar -tJf /tmp/dfs-test-$$.tar.xz | grep -c c/hard; rm /tmp/dfs-test-$$.tar.xz");
    m.run(&format!("mkdir copy && rsync -aHS --numeric-ids {}/ copy/", tree.display()));
    assert_same(&listing(&tree), &listing(&m.at("copy")));
    let changes = m.run(&format!("rsync -aHS --numeric-ids -i {}/ copy/", tree.display()));
    assert_eq!(changes, "", "rsync finds something to do");
    shell::run(&tree, "echo more >> a/f7; rm b/f9; mv c/f1 c/g1");
    // Deleting in a directory moves its time after rsync has set it: on any file system.
    m.run(&format!("rsync -aHS --numeric-ids --delete --inplace {0}/ copy/; for d in a b c .; do touch -r {0}/$d copy/$d; done", tree.display()));
    assert_same(&listing(&tree), &listing(&m.at("copy")));
    same_elsewhere(&cluster, &m);
}

#[test]
fn git() {
    need(&["git"]);
    let (cluster, m) = one();
    m.run(
        "export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
         git init -q repo; cd repo
         for i in $(seq 15); do mkdir -p d$i; seq $((i * 100)) > d$i/f; git add .; git commit -qm \"commit $i\"; done
         git checkout -qb side HEAD~5; echo side > side; git add .; git commit -qm side; git checkout -q -; git merge -q side -m merge
         git gc -q --aggressive --prune=now; git fsck --strict; git status --porcelain | wc -l | grep -cx 0
         cd ..; git clone -q repo clone; git -C clone fsck --strict; test \"$(git -C clone rev-parse HEAD)\" = \"$(git -C repo rev-parse HEAD)\"
         diff -r --exclude=.git repo clone; git -C clone stash list; git -C clone worktree add -q ../tree side; test -f tree/side",
    );
    let other = cluster.mount();
    other.run("git -c safe.directory='*' -C repo fsck --strict; git -c safe.directory='*' -C repo status --porcelain | wc -l | grep -cx 0; git -c safe.directory='*' -C repo log --oneline | wc -l | grep -cx 17");
    assert_same(&listing(m.path()), &listing(other.path()));
}

#[test]
fn python_venv() {
    need(&["python3"]);
    let (cluster, m) = one();
    m.run(
        "unset PYTHONDONTWRITEBYTECODE
         python3 -m venv --without-pip env; . env/bin/activate
         mkdir pkg; echo 'def f(): return 42' > pkg/__init__.py
         test $(python -c 'import pkg; print(pkg.f())') = 42; ls pkg/__pycache__/*.pyc
         python -c 'import shelve\nwith shelve.open(\"db\") as d: d[\"k\"] = [1, 2]'
         python -c 'import tempfile, os\nwith tempfile.TemporaryDirectory(dir=\".\") as d: open(os.path.join(d, \"x\"), \"w\").write(\"y\")'
         python -c 'import sys; assert sys.prefix != sys.base_prefix'",
    );
    same_elsewhere(&cluster, &m);
}

#[test]
fn sqlite3() {
    need(&["sqlite3"]);
    let (cluster, m) = one();
    m.run(
        "sqlite3 db 'create table t(a integer primary key, b text); begin; with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000) insert into t select i, hex(randomblob(20)) from n; commit;'
         for i in $(seq 20); do sqlite3 db \"insert into t(b) values('single $i')\"; done
         sqlite3 db 'delete from t where a % 3 = 0; vacuum;'
         test \"$(sqlite3 db 'pragma integrity_check')\" = ok
         sqlite3 wal 'pragma journal_mode=wal; create table t(a); insert into t values(1); insert into t values(2);'
         test \"$(sqlite3 wal 'select sum(a) from t')\" = 3",
    );
    let other = cluster.mount();
    let query = "sqlite3 -readonly db 'select count(*), sum(length(b)) from t'";
    assert_eq!(m.run(query), other.run(query));
    assert_eq!(other.run("sqlite3 db 'pragma integrity_check; insert into t(b) values(\"elsewhere\"); select changes();'"), "ok\n1\n");
    assert!(m.run("sqlite3 db 'select count(*) from t where b = \"elsewhere\"'") == "1\n", "the insert is seen");
}

/// Starts `program` in a terminal of its own, types `keys` (tmux names), and waits for its end.
fn in_terminal(m: &Mount, name: &str, program: &str, ready: &str, keys: &[&str]) {
    let socket = format!("dfs-test-{}-{name}", std::process::id());
    let tmux = |args: &str| shell::attempt(m.path(), &format!("tmux -f /dev/null -L {socket} {args}"));
    let started = tmux(&format!("new-session -d -x 100 -y 30 'TERM=screen {program}'"));
    assert_eq!(started.code, 0, "tmux: {}", started.text);
    let screen = || tmux("capture-pane -p").text;
    eventually(20, &format!("{program} shows '{ready}'"), || screen().contains(ready));
    for key in keys {
        let sent = tmux(&format!("send-keys {key}"));
        assert_eq!(sent.code, 0, "tmux: {}", sent.text);
    }
    eventually(20, &format!("{program} ends\n{}", screen()), || tmux("has-session").code != 0);
}

#[test]
fn vim() {
    need(&["vim", "tmux"]);
    let (cluster, m) = one();
    m.run("printf 'alpha\\nbeta\\n' > f; vim -es -u NONE -c '%s/alpha/gamma/' -c wq f; test \"$(head -1 f)\" = gamma");
    m.run("vim -es -u NONE -c 'set backup writebackup backupskip= backupcopy=yes' -c '%s/beta/delta/' -c wq f; grep -q delta f; test \"$(cat f~ | tail -1)\" = beta; rm f~");
    in_terminal(&m, "vim", "vim -u NONE f", "gamma", &["o", "typed", "Escape", ":wq", "Enter"]);
    assert_eq!(m.run("cat f"), "gamma\ntyped\ndelta\n");
    assert!(m.run("ls -A").trim() == "f", "vim leaves nothing behind: {}", m.run("ls -A"));
    same_elsewhere(&cluster, &m);
}

#[test]
fn nano() {
    need(&["nano", "tmux"]);
    let (cluster, m) = one();
    m.run("echo first > f");
    in_terminal(&m, "nano", "nano -I f", "first", &["typed", "Enter", "C-o", "Enter", "C-x"]);
    assert_eq!(m.run("cat f"), "typed\nfirst\n");
    same_elsewhere(&cluster, &m);
}

#[test]
fn a_program_runs_from_the_mount_and_is_replaced_while_it_runs() {
    need(&["gcc"]);
    let (_cluster, m) = one();
    m.run(
        "printf '#include <stdio.h>\\n#include <unistd.h>\\nint main(void) { printf(\"%%s\\\\n\", V); fflush(stdout); getchar(); return 7; }\\n' > p.c
         gcc -DV='\"one\"' -o p p.c; gcc -DV='\"two\"' -o new p.c
         mkfifo in; ./p < in > out & exec 3> in
         for i in $(seq 500); do grep -q one out && break; done
         mv new p; echo > /proc/self/fd/3; code=0; wait || code=$?
         test \"$(echo | ./p || true)\" = two",
    );
}
