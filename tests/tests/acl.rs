//! Access control lists on a mount: setfacl and getfacl, what the kernel lets in, what
//! directories hand down, and the umask where they hand down nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use dfs_tests::{Cluster, Mount, shell, sys};

const ACCESS: &str = "system.posix_acl_access";

/// A mount that other users may reach.
fn one() -> (Cluster, Mount) {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    fs::set_permissions(mount.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for dir in mount.path().ancestors().skip(1).take_while(|d| d.starts_with(std::env::temp_dir()) && *d != std::env::temp_dir()) {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    (cluster, mount)
}

/// Whether user and group 65534, with the groups besides, can do it.
fn nobody_can(m: &Mount, groups: &str, script: &str) -> bool {
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups {groups}") };
    shell::attempt(m.path(), &format!("setpriv --reuid 65534 --regid 65534 {groups} bash -c '{script}'")).code == 0
}

#[test]
fn a_list_lets_in_whom_it_names_and_nobody_else() {
    let (cluster, m) = one();
    m.run("umask 077; echo secret > f; mkdir d; echo deep > d/f; chmod 644 d/f");
    assert!(!nobody_can(&m, "", "cat f"));
    m.run("setfacl -m u:65534:r f");
    assert!(nobody_can(&m, "", "cat f") && !nobody_can(&m, "", "echo x >> f"));
    m.run("setfacl -m u:65534:rw f");
    assert!(nobody_can(&m, "", "echo x >> f"));
    m.run("setfacl -m m::r f");
    assert!(!nobody_can(&m, "", "echo x >> f"), "the mask limits it");
    m.run("setfacl -b -m g:4321:r f");
    assert!(!nobody_can(&m, "", "cat f") && nobody_can(&m, "4321", "cat f"), "supplementary groups count");
    assert!(!nobody_can(&m, "", "cat d/f"));
    m.run("setfacl -m u:65534:x d");
    assert!(nobody_can(&m, "", "cat d/f") && !nobody_can(&m, "", "ls d"));
    assert!(!nobody_can(&m, "", "setfacl -m u:65534:rwx f"), "only the owner changes a list");

    let other = cluster.mount();
    assert_eq!(other.run("getfacl -cn f"), "user::rw-\ngroup::---\ngroup:4321:r--\nmask::r--\nother::---\n\n");
}

#[test]
fn list_and_mode_follow_each_other_as_on_a_local_disk() {
    let (_cluster, m) = one();
    let script = r#"
        show() { ls -ld "$@" | cut -c1-11; getfacl -cnE "$@"; }
        umask 022
        touch f; setfacl -m u:7:rw f; show f
        chmod 640 f; show f
        setfacl -m u::rwx,o::rx f; show f
        setfacl -n -m g::x f; show f
        setfacl -b f; show f
        setfacl -m u::rw,g::r,o::- f; show f
        setfacl -m u:7:rwx f; cp -p f g; show g
        exec 5>h; setfacl -m u:7:rwx h; show h; chmod 600 h; show h; echo x >&5; exec 5>&-; show h
        mkdir x; rsync -aA f g x/; show x/f x/g
        tar --acls -cf t f h; tar --acls -xf t -C x; show x/f x/h
        mkdir d; setfacl -d -m u:7:rwx d; setfacl -m g:9:rx d; show d; chmod 2751 d; mkdir -p d/e/f; show d d/e d/e/f
        (umask 077; touch d/k; show d/k; install -m 711 f d/i; show d/i); cp -a d dd; show dd dd/e dd/k
        setfacl -k d; touch d/l; show d d/l; setfacl -Rb d; show d d/e d/k
    "#;
    let local = tempfile::tempdir().unwrap();
    assert_eq!(m.run(script), shell::run(local.path(), script));
    assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7777, fs::metadata(local.path().join("f")).unwrap().mode() & 0o7777);
}

#[test]
fn a_list_that_says_what_a_mode_says_is_not_kept() {
    let (_cluster, m) = one();
    m.run("umask 022; touch f; setfacl -m u:7:rw f; setfacl -x u:7 f; setfacl -x m f; setfacl -m u::rw,g::r,o::- f");
    assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(sys::get_xattr(&m.at("f"), ACCESS).unwrap_err().raw_os_error(), Some(libc::ENODATA));
    assert!(sys::list_xattrs(&m.at("f")).unwrap().is_empty());
}

#[test]
fn default_lists_are_handed_down_and_the_umask_holds_elsewhere() {
    let (cluster, m) = one();
    m.run("umask 027; touch f; mkdir d; mkfifo p; test \"$(stat -c %a f d p | tr '\\n' ' ')\" = '640 750 640 '");
    m.run("mkdir e; setfacl -d -m u:65534:rwx,o::r e; umask 077; touch e/f; mkdir e/s; mkfifo e/p; ln -s f e/l");
    let other = cluster.mount();
    for mount in [&m, &other] {
        let acl = |what: &str| mount.run(&format!("getfacl -cnE {what} | tr '\\n' ' '"));
        assert_eq!(acl("e/f"), "user::rw- user:65534:rwx group::r-x mask::rw- other::r--  ");
        assert_eq!(acl("e/p"), acl("e/f"));
        let s = acl("e/s");
        assert!(s.contains("default:user:65534:rwx") && s.starts_with("user::rwx user:65534:rwx group::r-x mask::rwx other::r--"), "{s}");
    }
    m.run("setfacl -m o::x e");
    assert!(nobody_can(&m, "", "echo x > e/s/own && cat e/s/own"), "the directory's list lets nobody in");
    m.run("setfacl -k e; umask 022; touch e/plain; test \"$(stat -c %a e/plain)\" = 644");
    assert!(sys::list_xattrs(&m.at("e/plain")).unwrap().is_empty());
}

#[test]
fn lists_in_the_wrong_place_are_refused() {
    let (_cluster, m) = one();
    m.run("touch f; ln -s f l");
    let three =
        [&2u32.to_le_bytes()[..], &[1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255]].concat();
    let errno = |name: &str, path: &str, value: &[u8]| sys::set_xattr(&m.at(path), name, value, 0).unwrap_err().raw_os_error();
    assert_eq!(errno("system.posix_acl_default", "f", &three), Some(libc::EACCES));
    assert_eq!(errno(ACCESS, "l", &three), Some(libc::EOPNOTSUPP));
    assert_eq!(errno(ACCESS, "f", &three[..11]), Some(libc::EINVAL));
}

#[test]
fn a_new_list_ends_sgid_as_chmod_does() {
    let (_cluster, m) = one();
    m.run("touch f; chown 65534:4321 f; chmod 2755 f");
    assert!(nobody_can(&m, "4321", "setfacl -m u:7:r f"));
    assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7000, 0o2000, "in the group");
    assert!(nobody_can(&m, "", "setfacl -m u:8:r f"));
    assert_eq!(fs::metadata(m.at("f")).unwrap().mode() & 0o7000, 0);
}
