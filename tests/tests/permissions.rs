//! Who may do what: the kernel and the directory service give the same answer to every user,
//! and what a token for clients takes away.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use dfs_common::api::Operation;
use dfs_common::api::directory::*;
use dfs_common::api::file::VERSIONS;
use dfs_common::api::lock::Break;
use dfs_common::attributes::{Entry, FileKind, Timestamp};
use dfs_common::ids::InodeId;
use dfs_common::name::{Name, Text};
use dfs_common::{ErrorKind, Result};
use dfs_tests::cluster::Builder;
use dfs_tests::{Cluster, Mount, Role, eventually, http, shell, sys};

/// Who nobody is to servers that do not trust a client's root.
const NOBODY: u32 = 65_534;
const READ_BY_1002: [u8; 44] = *b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xea\x03\0\0\x04\0\x00\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// A mount that other users may reach.
fn open_to_all(mount: Mount) -> Mount {
    fs::set_permissions(mount.path(), PermissionsExt::from_mode(0o755)).ok();
    for dir in mount.path().ancestors().skip(1).take_while(|d| d.starts_with(std::env::temp_dir()) && *d != std::env::temp_dir()) {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    mount
}

fn small() -> Builder {
    Cluster::builder().all_in_one()
}

/// A user with its groups.
#[derive(Clone, Copy, Debug)]
struct Who {
    uid: u32,
    gid: u32,
    groups: &'static [u32],
}

impl Who {
    fn header(self) -> String {
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        format!("dfs-user: {}:{}:{}\r\n", self.uid, self.gid, groups.join(","))
    }

    fn does<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        sys::as_user(self.uid, self.gid, self.groups, work)
    }

    /// Runs a script in `dir`; its output and exit code.
    fn runs(self, dir: &Path, script: &str) -> shell::Output {
        self.does(|| shell::attempt(dir, script))
    }
}

const OWNER: Who = Who { uid: 1000, gid: 100, groups: &[] };
const STRANGER: Who = Who { uid: 1001, gid: 101, groups: &[] };
const MEMBER: Who = Who { uid: 1001, gid: 101, groups: &[101, 200] };
const PRIMARY: Who = Who { uid: 1003, gid: 200, groups: &[] };
const LISTED: Who = Who { uid: 1002, gid: 102, groups: &[102, 300] };
const ROOT: Who = Who { uid: 0, gid: 0, groups: &[] };

/// A directory to try things in: name, mode, owner, group; with `f` (mode, of the same owner), a directory `d`, and a fifo `p`.
const PLACES: &[(&str, u32, u32, u32, u32)] = &[
    ("own", 0o755, 1000, 100, 0o640),
    ("group", 0o770, 0, 200, 0o660),
    ("groupless", 0o707, 0, 200, 0o606),
    ("sticky", 0o1777, 0, 0, 0o644),
    ("hers", 0o1777, 1000, 100, 0o666),
    ("closed", 0o700, 0, 0, 0o666),
    ("searched", 0o711, 0, 0, 0o604),
    ("listed", 0o744, 0, 0, 0o666),
    ("lists", 0o770, 0, 0, 0o600),
    ("sgid", 0o2777, 0, 200, 0o664),
];

/// Makes the place `name` in `dir` anew.
fn furnish(dir: &Path, &(name, mode, uid, gid, file): &(&str, u32, u32, u32, u32)) {
    let place = dir.join(name);
    if place.exists() {
        fs::remove_dir_all(&place).unwrap();
    }
    fs::create_dir(&place).unwrap();
    let of = |path: &Path, mode| {
        chown(path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    fs::write(place.join("f"), "content").unwrap();
    sys::set_xattr(&place.join("f"), "user.u", b"1", 0).unwrap();
    sys::set_xattr(&place.join("f"), "trusted.t", b"1", 0).unwrap();
    fs::create_dir(place.join("d")).unwrap();
    sys::mknod(&place.join("p"), libc::S_IFIFO | 0o666, 0).unwrap();
    of(&place.join("f"), file);
    of(&place.join("d"), 0o755);
    if name == "lists" {
        sys::set_xattr(&place.join("f"), "system.posix_acl_access", &READ_BY_1002, 0).unwrap();
        let mut list = READ_BY_1002;
        list[14] = 7;
        list[30] = 5;
        sys::set_xattr(&place, "system.posix_acl_access", &list, 0).unwrap();
    } else {
        of(&place, mode);
    }
}

/// One question to the kernel and to the service.
struct Case {
    what: &'static str,
    kernel: fn(&Path, Who) -> io::Result<()>,
    server: fn(&Server<'_>) -> Result<()>,
}

/// The directory service as a user without a mount sees it, in one place.
struct Server<'a> {
    cluster: &'a Cluster,
    who: Who,
    place: String,
}

impl Server<'_> {
    fn call<O: Operation>(&self, operation: &O) -> Result<O::Reply> {
        http::call_as(self.cluster.url(Role::Directory), self.cluster.token(), &self.who.header(), operation)
    }

    fn at(&self, path: &str) -> Result<Entry> {
        let path = Text(format!("{}/{path}", self.place).into_bytes());
        self.call(&Resolve { path, follow: true })?.entry.ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn ino(&self, path: &str) -> Result<InodeId> {
        self.at(path).map(|entry| entry.attributes.ino)
    }

    fn make(&self, name: &str, kind: FileKind, mode: u32) -> Result<()> {
        let Who { uid, gid, .. } = self.who;
        let parent = self.ino("")?;
        self.call(&Make { uid, gid, ..Make::new(parent, new_name(name), kind, mode) }).map(|_| ())
    }

    fn rename(&self, name: &str, new_parent: &str, new: &str, mode: RenameMode) -> Result<()> {
        let (parent, new_parent) = (self.ino("")?, self.ino(new_parent)?);
        self.call(&Rename { parent, name: new_name(name), new_parent, new_name: new_name(new), mode }).map(|_| ())
    }

    fn set(&self, path: &str, set: impl FnOnce(&mut SetAttributes)) -> Result<()> {
        let mut change = SetAttributes::none(self.ino(path)?);
        set(&mut change);
        self.call(&change).map(|_| ())
    }

    fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        let ino = self.ino(path)?;
        self.call(&SetXattr { ino, name: new_name(name), value: Text(value.to_vec()), mode: XattrMode::Set }).map(|_| ())
    }

    fn get_xattr(&self, path: &str, name: &str) -> Result<()> {
        let ino = self.ino(path)?;
        self.call(&GetXattr { ino, name: new_name(name) }).map(|_| ())
    }
}

fn new_name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn remove(s: &Server<'_>, name: &str, directory: bool) -> Result<()> {
    s.call(&Remove { parent: s.ino("")?, name: new_name(name), directory }).map(|_| ())
}

const NOW: (i64, i64) = (0, libc::UTIME_NOW);

macro_rules! cases {
    ($($what:literal: |$dir:ident, $who:tt| $kernel:expr, |$s:ident| $server:expr;)*) => {
        const CASES: &[Case] = &[$(Case { what: $what, kernel: |$dir, $who| $kernel, server: |$s| $server },)*];
    };
}

cases! {
    "stat": |d, _| fs::metadata(d.join("f")).map(|_| ()), |s| s.at("f").map(|_| ());
    "stat of nothing": |d, _| fs::metadata(d.join("none")).map(|_| ()), |s| s.at("none").map(|_| ());
    "list": |d, _| fs::read_dir(d).map(|_| ()), |s| s.call(&List { ino: s.ino("")?, after: None, limit: 10 }).map(|_| ());
    "read": |d, _| File::open(d.join("f")).map(|_| ()), |s| s.call(&Access::read(s.ino("f")?)).map(|_| ());
    "write": |d, _| OpenOptions::new().write(true).open(d.join("f")).map(|_| ()), |s| s.call(&Access::write(s.ino("f")?)).map(|_| ());
    "create": |d, _| File::create_new(d.join("new")).map(|_| ()), |s| s.make("new", FileKind::File, 0o644);
    "mkdir": |d, _| fs::create_dir(d.join("new")), |s| s.make("new", FileKind::Directory, 0o755);
    "mkdir of what is there": |d, _| fs::create_dir(d.join("f")), |s| s.make("f", FileKind::Directory, 0o755);
    "a device": |d, _| sys::mknod(&d.join("new"), libc::S_IFCHR | 0o600, 0x103), |s| s.make("new", FileKind::CharDevice, 0o600);
    "unlink": |d, _| fs::remove_file(d.join("f")), |s| remove(s, "f", false);
    "unlink of nothing": |d, _| fs::remove_file(d.join("none")), |s| remove(s, "none", false);
    "rmdir": |d, _| fs::remove_dir(d.join("d")), |s| remove(s, "d", true);
    "rmdir of a file": |d, _| fs::remove_dir(d.join("f")), |s| remove(s, "f", true);
    "rename": |d, _| fs::rename(d.join("f"), d.join("new")), |s| s.rename("f", "", "new", RenameMode::Replace);
    "rename over": |d, _| fs::rename(d.join("p"), d.join("f")), |s| s.rename("p", "", "f", RenameMode::Replace);
    "rename without replacing": |d, _| sys::rename2(&d.join("f"), &d.join("p"), libc::RENAME_NOREPLACE),
        |s| s.rename("f", "", "p", RenameMode::NoReplace);
    "rename away": |d, _| fs::rename(d.join("f"), d.join("../free/f")), |s| s.rename("f", "../free", "f", RenameMode::Replace);
    "move a directory": |d, _| fs::rename(d.join("d"), d.join("../free/d")), |s| s.rename("d", "../free", "d", RenameMode::Replace);
    "exchange": |d, _| sys::rename2(&d.join("f"), &d.join("../free/there"), libc::RENAME_EXCHANGE),
        |s| s.rename("f", "../free", "there", RenameMode::Exchange);
    "chmod": |d, _| fs::set_permissions(d.join("f"), PermissionsExt::from_mode(0o600)), |s| s.set("f", |c| c.mode = Some(0o600));
    "chown": |d, w| chown(d.join("f"), Some(w.uid), None), |s| { let uid = s.who.uid; s.set("f", |c| c.uid = Some(uid)) };
    "give away": |d, _| chown(d.join("f"), Some(4321), None), |s| s.set("f", |c| c.uid = Some(4321));
    "chgrp": |d, _| chown(d.join("f"), None, Some(200)), |s| s.set("f", |c| c.gid = Some(200));
    "touch": |d, _| sys::set_times(&d.join("f"), NOW, NOW),
        |s| s.set("f", |c| (c.atime, c.mtime, c.now) = (Some(Timestamp(1)), Some(Timestamp(1)), true));
    "set a time": |d, _| sys::set_times(&d.join("f"), sys::OMIT, (5, 5)), |s| s.set("f", |c| c.mtime = Some(Timestamp(5)));
    "set user.": |d, _| sys::set_xattr(&d.join("f"), "user.x", b"1", 0), |s| s.set_xattr("f", "user.x", b"1");
    "set user. of a directory": |d, _| sys::set_xattr(d, "user.x", b"1", 0), |s| s.set_xattr("", "user.x", b"1");
    "set user. of a fifo": |d, _| sys::set_xattr(&d.join("p"), "user.x", b"1", 0), |s| s.set_xattr("p", "user.x", b"1");
    "get user.": |d, _| sys::get_xattr(&d.join("f"), "user.u").map(|_| ()), |s| s.get_xattr("f", "user.u");
    "set trusted.": |d, _| sys::set_xattr(&d.join("f"), "trusted.x", b"1", 0), |s| s.set_xattr("f", "trusted.x", b"1");
    "get trusted.": |d, _| sys::get_xattr(&d.join("f"), "trusted.t").map(|_| ()), |s| s.get_xattr("f", "trusted.t");
    "set a list": |d, _| sys::set_xattr(&d.join("f"), "system.posix_acl_access", &READ_BY_1002, 0),
        |s| s.set_xattr("f", "system.posix_acl_access", &READ_BY_1002);
    "remove an attribute": |d, _| sys::remove_xattr(&d.join("f"), "user.u"),
        |s| s.call(&RemoveXattr { ino: s.ino("f")?, name: new_name("user.u") }).map(|_| ());
    "set sgid": |d, _| fs::set_permissions(d.join("f"), PermissionsExt::from_mode(0o2755)), |s| s.set("f", |c| c.mode = Some(0o2755));
}

#[test]
fn the_kernel_and_the_server_answer_alike() {
    let cluster = small().start();
    let m = open_to_all(cluster.mount());
    let trees = ["kernel", "server"].map(|name| m.at(name));
    for tree in &trees {
        fs::create_dir(tree).unwrap();
        PLACES.iter().for_each(|place| furnish(tree, place));
    }
    let free = |tree: &Path| furnish(tree, &("free", 0o777, 0, 0, 0o666));
    trees.iter().for_each(|tree| free(tree));
    trees.iter().for_each(|tree| fs::write(tree.join("free/there"), "").unwrap());
    let mut refused = 0;
    for who in [OWNER, STRANGER, MEMBER, PRIMARY, LISTED, ROOT] {
        for place in PLACES {
            for case in CASES {
                let by_kernel = who.does(|| (case.kernel)(&trees[0].join(place.0), who)).err().and_then(|e| e.raw_os_error());
                let server = Server { cluster: &cluster, who, place: format!("/server/{}", place.0) };
                let by_server = (case.server)(&server);
                let errno = by_server.as_ref().err().map(|e| e.kind().errno());
                assert_eq!(by_kernel, errno, "{} in {} by {who:?}: the kernel, then the server: {by_server:?}", case.what, place.0);
                refused += u32::from(errno.is_some());
                if errno.is_none() {
                    for tree in &trees {
                        let shown = |path: &str| fs::symlink_metadata(tree.join(path)).map(|a| (a.mode(), a.uid(), a.gid())).ok();
                        let (ours, others) = (shown(&format!("{}/f", place.0)), shown(&format!("{}/new", place.0)));
                        let of = |path| fs::symlink_metadata(trees[0].join(place.0).join(path)).map(|a| (a.mode(), a.uid(), a.gid())).ok();
                        assert_eq!((ours, others), (of("f"), of("new")), "after {} in {} by {who:?}", case.what, place.0);
                    }
                    for tree in &trees {
                        furnish(tree, place);
                        free(tree);
                        fs::write(tree.join("free/there"), "").unwrap();
                    }
                }
            }
        }
    }
    assert!(refused > 500, "only {refused} refusals");
}

/// `dfs` as `who`, with the token at `token`.
fn dfs(cluster: &Cluster, token: &Path, who: Who, arguments: &str) -> shell::Output {
    let dfs = dfs_tests::process::binary("dfs");
    let command = format!("{} --server {} --token-file {} {arguments}", dfs.display(), cluster.source(), token.display());
    who.runs(Path::new("/"), &command)
}

/// A copy of a token that everybody in these tests may read: the group decides, as others must not.
fn shared_token(file: &Path, who: Who) -> PathBuf {
    let copy = file.with_extension(format!("of-{}", who.uid));
    fs::copy(file, &copy).unwrap();
    chown(&copy, Some(who.uid), Some(who.gid)).unwrap();
    copy
}

fn owner_of(path: &Path) -> (u32, u32, u32) {
    let a = fs::symlink_metadata(path).unwrap();
    (a.uid(), a.gid(), a.mode() & 0o7777)
}

#[test]
fn the_command_line_has_the_rights_of_who_runs_it() {
    let cluster = small().start();
    let m = open_to_all(cluster.mount());
    m.run("mkdir -m 755 home; echo secret > home/s; chmod 600 home/s; echo hello > home/r; mkdir -m 2770 team; chgrp 200 team; mkdir -m 1777 tmp; touch tmp/f");
    m.run("mkdir -m 700 closed; echo x > closed/f; mkdir -m 755 mine; chown 1001:101 mine");
    let (stranger, root) = (shared_token(cluster.token_file(), STRANGER), cluster.token_file());
    let by = |who: Who, arguments: &str| dfs(&cluster, &stranger, who, arguments);
    assert_eq!(by(STRANGER, "read /home/r").text, "hello\n");
    for refused in [
        "read /home/s",
        "write /home/r /dev/null",
        "write /home/new /dev/null",
        "read /closed/f",
        "ls /closed",
        "stat /closed/f",
        "mkdir /home/d",
        "rm /home/r",
        "rm /tmp/f",
        "mv /home/r /tmp/r",
        "ln /home/r /home/l",
        "create /team/new",
        "history /home/s",
        "undelete --list /closed",
        "recover list",
    ] {
        let out = by(STRANGER, refused);
        assert!(out.code != 0 && (out.text.contains("permi") || out.text.contains("sticky") || out.text.contains("root")), "{refused}: {out:?}");
    }
    let out = by(MEMBER, "create /team/new");
    assert_eq!((out.code, owner_of(&m.at("team/new"))), (0, (1001, 200, 0o644)), "{out:?}");
    let out = by(MEMBER, "mkdir /team/dir");
    assert_eq!((out.code, owner_of(&m.at("team/dir"))), (0, (1001, 200, 0o2755)), "{out:?}");
    let script =
        "umask 007; dfs mkdir /mine/d; dfs create /mine/f; echo own | dfs write /mine/f; dfs rm /mine/f; dfs undelete /mine/f; dfs read /mine/f";
    let programs = dfs_tests::process::binary("dfs").parent().unwrap().display().to_string();
    let environment = format!("export PATH={programs}:$PATH DFS_SERVER={} DFS_TOKEN_FILE={};", cluster.source(), stranger.display());
    assert_eq!(STRANGER.runs(Path::new("/"), &format!("{environment}{script}")).text, "own\n");
    assert_eq!((owner_of(&m.at("mine/f")), owner_of(&m.at("mine/d"))), ((1001, 101, 0o660), (1001, 101, 0o770)));
    assert_eq!(dfs(&cluster, root, ROOT, "read /home/s").text, "secret\n");
    assert!(shell::attempt(m.path(), "cat .dfs/history/home/s/1").code == 0 && STRANGER.runs(m.path(), "cat .dfs/history/home/s/1").code != 0);
}

#[test]
fn supplementary_groups_count_on_a_mount_and_at_the_server() {
    let cluster = small().start();
    let (m, other) = (open_to_all(cluster.mount()), open_to_all(cluster.mount()));
    m.run("mkdir -m 770 team; chgrp 200 team; touch team/f; chgrp 200 team/f; chmod 660 team/f; mkdir -m 2775 sgid; chgrp 200 sgid");
    let script = "set -e; umask 002; echo x >> team/f; mkdir team/d; mv team/d team/e; rmdir team/e; ln team/f team/l; rm team/l; touch team/f; truncate -s 1 team/f;
        setfattr -n user.a -v b team/f; touch sgid/f; mkdir sgid/d; cp team/f sgid/g; cp team/f sgid/copy; chmod 2775 sgid/f";
    for mount in [&m, &other] {
        let out = MEMBER.runs(mount.path(), &format!("{script}; echo done; rm -r sgid/*"));
        assert_eq!((out.code, out.text.as_str()), (0, "done\n"), "{}", cluster.logs());
        assert_ne!(STRANGER.runs(mount.path(), "echo x >> team/f").code, 0);
    }
    let script = "set -e; umask 002; touch sgid/f; mkdir sgid/d; chmod 2775 sgid/f";
    assert_eq!(MEMBER.runs(m.path(), script).code, 0);
    assert_eq!((owner_of(&other.at("sgid/f")), owner_of(&other.at("sgid/d"))), ((1001, 200, 0o2775), (1001, 200, 0o2775)));
    // Who opened it is in the group, who closes it last is not.
    let script = "exec 5>>team/f; echo more >&5; setpriv --reuid 1001 --regid 101 --clear-groups sleep 0.1 & exec 5>&-; wait";
    assert_eq!(MEMBER.runs(m.path(), script).code, 0);
    eventually(10, "it is published", || fs::read_to_string(other.at("team/f")).unwrap().ends_with("more\n"));
}

#[test]
fn who_has_a_file_open_may_write_it_though_its_mode_changes() {
    let cluster = small().start();
    let (m, other) = (open_to_all(cluster.mount()), cluster.mount());
    m.run("mkdir -m 777 d");
    let write = |file: File| {
        io::Write::write_all(&mut &file, b"written").unwrap();
        sys::close(file)
    };
    // Its owner may, as on NFS.
    let closed = OWNER.does(|| {
        let file = File::create(m.at("d/own")).unwrap();
        fs::set_permissions(m.at("d/own"), PermissionsExt::from_mode(0o400)).unwrap();
        write(file)
    });
    assert!(closed.is_ok() && fs::read(other.at("d/own")).unwrap() == b"written");
    // Made with a mode that lets nobody write.
    assert_eq!(OWNER.runs(m.path(), "umask 777; echo made > d/made").code, 0);
    assert_eq!(fs::read(other.at("d/made")).unwrap(), b"made\n");
    // Somebody else whose permission is taken away loses it at the server, and what was written is kept.
    m.run("echo old > d/shared; chmod 666 d/shared");
    let file = STRANGER.does(|| OpenOptions::new().write(true).truncate(true).open(m.at("d/shared")).unwrap());
    other.run("chmod 600 d/shared");
    let closed = STRANGER.does(|| write(file));
    assert_eq!(closed.unwrap_err().raw_os_error(), Some(libc::EACCES));
    eventually(20, "it is a recoverable version", || cluster.dfs(&["recover", "list"]).contains("shared"));
    assert_eq!(fs::read(other.at("d/shared")).unwrap(), b"old\n");
}

#[test]
fn a_write_by_a_member_of_the_group_ends_suid() {
    let cluster = small().start();
    let m = open_to_all(cluster.mount());
    m.run("touch f g; chgrp 200 f g; chmod 4770 f; chmod 4777 g");
    for (who, file) in [(MEMBER, "f"), (STRANGER, "g")] {
        assert_eq!(who.runs(m.path(), &format!("echo x >> {file}")).text, "");
        assert_eq!(owner_of(&m.at(file)).2 & 0o7000, 0, "{file}");
    }
    assert_eq!(MEMBER.runs(m.path(), "touch f").text, "");
}

#[test]
fn without_allow_other_nobody_else_gets_in() {
    let cluster = small().start();
    let at = cluster.dir().join("private");
    fs::create_dir(&at).unwrap();
    let options = format!("token_file={},cache_dir={}", cluster.token_file().display(), cluster.dir().join("private.cache").display());
    let command = format!("{} {} {} -o {options}", dfs_tests::process::binary("dfs-mount").display(), cluster.source(), at.display());
    shell::run(cluster.dir(), &command);
    let m = at.clone();
    fs::set_permissions(&at, PermissionsExt::from_mode(0o777)).unwrap();
    fs::set_permissions(cluster.dir(), PermissionsExt::from_mode(0o755)).unwrap();
    let seen = STRANGER.does(|| fs::read_dir(&m).map(|_| ()).err().and_then(|e| e.raw_os_error()));
    shell::run(cluster.dir(), &format!("touch {0}/root; umount {0}", at.display()));
    assert_eq!(seen, Some(libc::EACCES));
}

#[test]
fn a_squashed_root_is_nobody() {
    let cluster = small().client_token("root_squash").start();
    let trusted = open_to_all(cluster.mount());
    trusted.run("umask 022; mkdir -m 777 all; echo secret > all/s; chmod 600 all/s; echo open > all/o; mkdir -m 700 closed; echo x > closed/f; mkdir -m 755 home; chown 1000:100 home");
    trusted.run("echo her own > home/h; chmod 600 home/h; chown 1000:100 home/h; mkdir -m 1777 tmp; echo x > tmp/root");
    let squashed = open_to_all(cluster.mount_with(&format!("token_file={}", cluster.client_token_file(0).display())));
    let refused = |script: &str| {
        let out = shell::attempt(squashed.path(), script);
        assert!(out.code != 0 && (out.text.contains("Permission denied") || out.text.contains("not permitted")), "{script}: {out:?}");
    };
    squashed.run("echo made > all/new; mkdir all/d; ln -s x all/l; cat all/o; echo more >> all/new; mv all/new all/n2; rmdir all/d");
    assert_eq!((owner_of(&trusted.at("all/n2")), owner_of(&trusted.at("all/l"))), ((NOBODY, NOBODY, 0o644), (NOBODY, NOBODY, 0o777)));
    assert_eq!(fs::read_to_string(trusted.at("all/n2")).unwrap(), "made\nmore\n");
    for script in [
        "cat all/s",
        "cat home/h",
        "ls closed",
        "cat closed/f",
        "echo x > all/s",
        "echo x >> all/o",
        "truncate -s 0 all/o",
        "chown 0 all/n2",
        "chown 0 all/o",
        "chmod 777 all/o",
        "touch -d @1 all/o",
        "touch home/new",
        "rm -f tmp/root",
        "mknod all/null c 1 3",
        "setfattr -n trusted.x -v 1 all/n2",
        "mkdir top",
        "setfacl -m u:0:rwx all/o",
        "cat .dfs/history/all/s/1",
    ] {
        refused(script);
    }
    // Once others have brought it into this mount's cache, too.
    assert_eq!(OWNER.runs(squashed.path(), "cat home/h").text, "her own\n");
    refused("cat home/h");
    assert_eq!(OWNER.runs(squashed.path(), "set -e; echo new > home/n; mkdir home/d; chmod 700 home/d; cat home/n").text, "new\n");
    assert_eq!(owner_of(&trusted.at("home/n")), (1000, 100, 0o644));
    // With the bare token content is nobody's either.
    let (ino, url) = (cluster.inode("/all/s"), cluster.servers().unwrap()[0].url.clone());
    let get = |token: &str, user: &str| {
        let target = format!("{VERSIONS}{ino}/1/data");
        http::exchange(&url, &http::request("GET", &target, token, user, b"")).unwrap().status
    };
    assert_eq!((get(cluster.token(), ""), get(&cluster.client_token(0), "")), (200, 403));
    assert_eq!(get(&cluster.client_token(0), "dfs-user: 0:0\r\n"), 403);
    let file = cluster.client_token_file(0);
    let out = dfs(&cluster, &file, ROOT, "read /all/s");
    assert!(out.code != 0 && out.text.contains("permissions"), "{out:?}");
    assert_eq!(dfs(&cluster, &file, ROOT, "read /all/o").text, "open\n");
    assert_ne!(dfs(&cluster, &file, ROOT, "locks break /all/o").code, 0);
    cluster.assert_no_panics();
}

#[test]
fn a_squashed_client_brings_back_what_a_crash_left() {
    let cluster = Cluster::builder().lease_seconds(4).client_token("root_squash,anonuid=99,anongid=98").start();
    let trusted = open_to_all(cluster.mount());
    trusted.run("mkdir -m 755 home; chown 1000:100 home; mkdir -m 777 all");
    let mut squashed = open_to_all(cluster.mount_with(&format!("token_file={}", cluster.client_token_file(0).display())));
    squashed.run("echo x > all/root");
    assert_eq!(owner_of(&trusted.at("all/root")), (99, 98, 0o644));
    let path = squashed.at("home/f");
    let dirty = OWNER.does(|| {
        fs::write(&path, "first").unwrap();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        io::Write::write_all(&mut &file, b" and second").unwrap();
        file
    });
    squashed.kill();
    drop(dirty);
    squashed.start().unwrap();
    eventually(30, "it is published", || fs::read_to_string(trusted.at("home/f")).unwrap() == "first and second");
    // What others have overtaken becomes a recoverable version.
    let path = squashed.at("home/g");
    let dirty = OWNER.does(|| {
        fs::write(&path, "old").unwrap();
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        io::Write::write_all(&mut &file, b" and lost").unwrap();
        file
    });
    squashed.kill();
    drop(dirty);
    eventually(30, "the lock passes on", || shell::attempt(trusted.path(), "echo new > home/g").code == 0);
    squashed.start().unwrap();
    eventually(60, "it is a recoverable version", || cluster.dfs(&["recover", "list"]).contains("home/g"));
    assert_eq!(fs::read_to_string(trusted.at("home/g")).unwrap(), "new\n");
}

#[test]
fn a_token_for_reading_changes_nothing() {
    let cluster = small().client_token("ro").client_token("").start();
    let m = cluster.mount();
    m.run("echo x > f; mkdir d; echo y > d/g");
    let reading = cluster.mount_with(&format!("token_file={}", cluster.client_token_file(0).display()));
    assert_eq!(reading.run("cat f d/g; ls | tr '\\n' ' '; flock -s f echo locked"), "x\ny\nd f locked\n");
    for script in [
        "echo z > f",
        "echo z >> f",
        "rm f",
        "mkdir e",
        "mv f g",
        "ln f g",
        "chmod 600 f",
        "touch f",
        "truncate -s 0 f",
        "setfattr -n user.a -v b f",
        "touch new",
    ] {
        let out = shell::attempt(reading.path(), script);
        assert!(out.code != 0 && out.text.contains("Read-only file system"), "{script}: {out:?}");
    }
    m.run("echo seen > f");
    assert_eq!(reading.run("cat f"), "seen\n");
    let (ro, plain) = (cluster.client_token(0), cluster.client_token(1));
    let url = cluster.url(Role::Directory);
    let rename = Rename {
        parent: dfs_common::ids::ROOT,
        name: new_name("f"),
        new_parent: dfs_common::ids::ROOT,
        new_name: new_name("g"),
        mode: RenameMode::Replace,
    };
    assert_eq!(http::call(url, &ro, &rename).unwrap_err().kind(), ErrorKind::ReadOnly);
    let broken = Break { ino: cluster.inode("/f"), token: None, fresh: None };
    assert_eq!(http::call(url, &ro, &broken).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(http::call(url, &plain, &broken).unwrap_err().kind(), ErrorKind::NotFound, "nobody holds it");
    assert_eq!(http::call_as(url, &plain, &OWNER.header(), &broken).unwrap_err().kind(), ErrorKind::NotPermitted);
    http::call(url, &plain, &rename).unwrap();
    let fence = Fence { ino: InodeId(1), token: dfs_common::ids::Token(u64::MAX) };
    assert_eq!(http::call(url, &plain, &fence).unwrap_err().kind(), ErrorKind::Forbidden);
}

#[test]
fn an_unsquashed_client_token_is_as_good_as_the_clusters_for_a_mount() {
    let cluster = Cluster::builder().file_servers(2).copies(2).client_token("").start();
    let m = open_to_all(cluster.mount_with(&format!("token_file={}", cluster.client_token_file(0).display())));
    m.run("umask 022; echo a > a; chmod 600 a; chown 1000:100 a; mkdir -m 2775 d; chgrp 200 d; dd if=/dev/urandom of=d/big bs=1M count=3 status=none; cmp d/big d/big; cat a");
    cluster.wait_replicated();
    assert_eq!(owner_of(&m.at("d/big")), (0, 200, 0o644));
    assert_eq!(STRANGER.runs(m.path(), "cat a").code, 1);
    let mut again = cluster.mount();
    again.run("cmp d/big d/big; cat a");
    again.unmount();
}
