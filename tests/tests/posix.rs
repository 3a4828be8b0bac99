//! What one mount promises programs: POSIX, as a local disk.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use dfs_tests::sys::errno;
use dfs_tests::{Cluster, Mount, eventually, shell, sys};

fn one() -> (Cluster, Mount) {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    (cluster, mount)
}

#[test]
fn unlinked_and_replaced_files_live_while_they_are_open() {
    let (_cluster, m) = one();
    fs::write(m.at("f"), "old").unwrap();
    let mut open = OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap();
    fs::remove_file(m.at("f")).unwrap();
    assert!(!m.at("f").exists());
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    open.seek(SeekFrom::End(0)).unwrap();
    open.write_all(b" and more").unwrap();
    open.rewind().unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old and more");
    sys::close(open).unwrap();

    fs::write(m.at("g"), "one").unwrap();
    fs::write(m.at("h"), "two").unwrap();
    let mut open = File::open(m.at("g")).unwrap();
    fs::rename(m.at("h"), m.at("g")).unwrap();
    text.clear();
    open.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), fs::read_to_string(m.at("g")).unwrap().as_str()), ("one", "two"));
}

#[test]
fn hard_links_are_one_file() {
    let (_cluster, m) = one();
    fs::write(m.at("a"), "x").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    fs::hard_link(m.at("a"), m.at("d/b")).unwrap();
    let (a, b) = (fs::metadata(m.at("a")).unwrap(), fs::metadata(m.at("d/b")).unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::write(m.at("d/b"), "longer").unwrap();
    assert_eq!(fs::read_to_string(m.at("a")).unwrap(), "longer");
    fs::remove_file(m.at("a")).unwrap();
    assert_eq!(fs::metadata(m.at("d/b")).unwrap().nlink(), 1);
    assert_eq!(fs::read_to_string(m.at("d/b")).unwrap(), "longer");
    assert_eq!(errno(fs::hard_link(m.at("d"), m.at("e"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(m.at("d/b"), m.at("d/b"))), libc::EEXIST);
}

#[test]
fn symlinks_and_their_limits() {
    let (_cluster, m) = one();
    fs::create_dir(m.at("d")).unwrap();
    fs::write(m.at("d/f"), "through").unwrap();
    symlink("d", m.at("l")).unwrap();
    symlink("../d/f", m.at("d/up")).unwrap();
    assert_eq!(fs::read_to_string(m.at("l/up")).unwrap(), "through");
    assert_eq!(fs::symlink_metadata(m.at("d/up")).unwrap().len(), 6);
    symlink("loop", m.at("loop")).unwrap();
    assert_eq!(errno(fs::read(m.at("loop"))), libc::ELOOP);
    let long = "t/".repeat(2047) + "x";
    symlink(&long, m.at("long")).unwrap();
    assert_eq!(fs::read_link(m.at("long")).unwrap(), Path::new(&long));
    assert_eq!(errno(symlink(long + "y", m.at("longer"))), libc::ENAMETOOLONG);
    let strange = OsStr::from_bytes(b"\xff\xfe\n%41");
    symlink(strange, m.at("strange")).unwrap();
    assert_eq!(fs::read_link(m.at("strange")).unwrap().as_os_str(), strange);
}

#[test]
fn names_are_bytes_of_up_to_255() {
    let (_cluster, m) = one();
    let names: Vec<Vec<u8>> = vec![
        vec![b'x'; 255],
        "ü".repeat(127).into_bytes(),
        b"\xff\xfe\x80".to_vec(),
        b"new\nline and\ttab".to_vec(),
        b"%41%zz".to_vec(),
        b" ".to_vec(),
        b"...".to_vec(),
        b"-rf *".to_vec(),
        b"\"quoted\\".to_vec(),
    ];
    for (n, name) in names.iter().enumerate() {
        fs::write(m.at(OsStr::from_bytes(name)), n.to_string()).unwrap();
    }
    let mut listed: Vec<Vec<u8>> = fs::read_dir(m.path()).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
    listed.sort();
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(listed, expected);
    for (n, name) in names.iter().enumerate() {
        assert_eq!(fs::read_to_string(m.at(OsStr::from_bytes(name))).unwrap(), n.to_string());
    }
    assert_eq!(errno(fs::write(m.at("x".repeat(256)), "")), libc::ENAMETOOLONG);
}

#[test]
fn deep_paths() {
    let (_cluster, m) = one();
    let mut path = m.path().to_owned();
    for level in 0..60 {
        path.push(format!("level-{level}"));
        fs::create_dir(&path).unwrap();
    }
    fs::write(path.join("f"), "deep").unwrap();
    assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "deep");
    fs::rename(m.at("level-0"), m.at("moved")).unwrap();
    assert!(!path.join("f").exists());
    fs::remove_dir_all(m.at("moved")).unwrap();
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
}

#[test]
fn rename_flags_and_refusals() {
    let (_cluster, m) = one();
    fs::write(m.at("a"), "a").unwrap();
    fs::create_dir_all(m.at("d/e")).unwrap();
    fs::write(m.at("d/b"), "b").unwrap();
    assert_eq!(errno(sys::rename2(&m.at("a"), &m.at("d/b"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    sys::rename2(&m.at("a"), &m.at("c"), libc::RENAME_NOREPLACE).unwrap();
    sys::rename2(&m.at("c"), &m.at("d"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(m.at("d")).unwrap(), "a");
    assert_eq!(fs::read_to_string(m.at("c/b")).unwrap(), "b");
    assert_eq!(errno(sys::rename2(&m.at("c"), &m.at("none"), libc::RENAME_EXCHANGE)), libc::ENOENT);
    assert_eq!(errno(fs::rename(m.at("c"), m.at("c/e/c"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(m.at("c/e"), m.at("d"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(m.at("d"), m.at("c"))), libc::EISDIR);
    fs::create_dir(m.at("empty")).unwrap();
    assert_eq!(errno(fs::rename(m.at("empty"), m.at("c"))), libc::ENOTEMPTY);
    fs::rename(m.at("c"), m.at("empty")).unwrap();
    assert_eq!(fs::metadata(m.at("empty")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(m.path()).unwrap().nlink(), 3);
}

#[test]
fn extended_attributes() {
    let (_cluster, m) = one();
    fs::write(m.at("f"), "").unwrap();
    let f = m.at("f");
    sys::set_xattr(&f, "user.a", b"1", 0).unwrap();
    sys::set_xattr(&f, "user.empty", b"", libc::XATTR_CREATE).unwrap();
    sys::set_xattr(&f, "trusted.t", &[0xff; 60_000], 0).unwrap();
    assert_eq!(sys::list_xattrs(&f).unwrap(), ["trusted.t", "user.a", "user.empty"]);
    assert_eq!(sys::get_xattr(&f, "user.empty").unwrap(), b"");
    assert_eq!(sys::get_xattr(&f, "trusted.t").unwrap(), [0xff; 60_000]);
    assert_eq!(errno(sys::set_xattr(&f, "user.a", b"2", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(sys::set_xattr(&f, "user.b", b"2", libc::XATTR_REPLACE)), libc::ENODATA);
    sys::set_xattr(&f, "user.a", b"2", libc::XATTR_REPLACE).unwrap();
    assert_eq!(sys::get_xattr(&f, "user.a").unwrap(), b"2");
    sys::remove_xattr(&f, "user.a").unwrap();
    assert_eq!(errno(sys::get_xattr(&f, "user.a")), libc::ENODATA);
    assert_eq!(errno(sys::remove_xattr(&f, "user.a")), libc::ENODATA);
}

#[test]
fn sparse_files_stay_sparse() {
    let (cluster, m) = one();
    let file = File::create(m.at("f")).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", 3 << 30).unwrap();
    sys::close(file).unwrap();
    let meta = fs::metadata(m.at("f")).unwrap();
    assert_eq!(meta.len(), (3 << 30) + 3);
    assert!(meta.blocks() * 512 < 4 << 20, "{} bytes are stored", meta.blocks() * 512);
    let other = cluster.mount();
    let file = File::open(other.at("f")).unwrap();
    let mut bytes = [1; 5];
    file.read_exact_at(&mut bytes, 1 << 30).unwrap();
    assert_eq!(bytes, [0; 5]);
    let mut end = [0; 3];
    file.read_exact_at(&mut end, 3 << 30).unwrap();
    assert_eq!(&end, b"end");
    let data = sys::seek(&file, 1 << 30, libc::SEEK_DATA).unwrap();
    assert!((1 << 30..=3 << 30).contains(&data), "SEEK_DATA says {data}");
    assert_eq!(sys::seek(&file, 3 << 30, libc::SEEK_HOLE).unwrap(), (3 << 30) + 3);
}

#[test]
fn truncation_both_ways() {
    let (cluster, m) = one();
    let other = cluster.mount();
    fs::write(m.at("f"), vec![b'x'; 300_000]).unwrap();
    let file = OpenOptions::new().write(true).open(m.at("f")).unwrap();
    file.set_len(100_000).unwrap();
    file.set_len(200_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 200_000);
    sys::close(file).unwrap();
    let mut expected = vec![b'x'; 100_000];
    expected.resize(200_000, 0);
    assert!(fs::read(other.at("f")).unwrap() == expected);
    shell::run(m.path(), "truncate -s 70000 f");
    assert!(fs::read(other.at("f")).unwrap() == expected[..70_000]);
    let file = OpenOptions::new().write(true).truncate(true).open(m.at("f")).unwrap();
    sys::close(file).unwrap();
    let left = fs::read(other.at("f")).unwrap().len();
    assert_eq!(left, 0, "the truncation is not published when close returns");
}

#[test]
fn fallocate_makes_room() {
    let (_cluster, m) = one();
    let file = File::create(m.at("f")).unwrap();
    match sys::fallocate(&file, 0, 0, 100_000) {
        Ok(()) => assert_eq!(file.metadata().unwrap().len(), 100_000),
        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EOPNOTSUPP), "{e}"),
    }
    sys::close(file).unwrap();
}

#[test]
fn two_processes_append_whole_lines() {
    let (_cluster, m) = one();
    m.run("for p in 1 2 3; do (for i in $(seq 200); do echo \"process $p line $i\"; done >> log) & done; wait; test $(wc -l < log) = 600; for p in 1 2 3; do test $(grep -c \"^process $p line [0-9]*$\" log) = 200; done");
}

#[test]
fn modes_owners_and_times() {
    let (_cluster, m) = one();
    fs::write(m.at("f"), "x").unwrap();
    let path = m.at("f");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o6755)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode(), 0o106_755);
    chown(&path, Some(1000), Some(1001)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 1001));
    sys::set_times(&path, (-5, 999_999_999), (1_700_000_000, 123_456_789)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()), (-5, 999_999_999, 1_700_000_000, 123_456_789));
    sys::set_times(&path, (7, 8), sys::OMIT).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()), (7, 8, 1_700_000_000, 123_456_789));
    // Times set on an open file that was written survive its close.
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"new").unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 42);
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    sys::close(file).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_500_000_000, 42));
}

#[test]
fn a_write_moves_mtime_and_ctime_and_a_read_moves_atime_as_relatime_does() {
    let (_cluster, m) = one();
    fs::write(m.at("f"), "x").unwrap();
    let times = || {
        let meta = fs::metadata(m.at("f")).unwrap();
        ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()), (meta.atime(), meta.atime_nsec()))
    };
    let before = times();
    fs::read(m.at("f")).unwrap();
    let read = times();
    assert!((read.0, read.1) == (before.0, before.1) && read.2 > before.2, "{before:?} {read:?}");
    fs::read(m.at("f")).unwrap();
    assert_eq!(times(), read, "it was read since it was changed");
    let mut file = OpenOptions::new().append(true).open(m.at("f")).unwrap();
    file.write_all(b"y").unwrap();
    sys::close(file).unwrap();
    let after = times();
    assert!(after.0 > before.0 && after.1 > before.1 && after.2 == read.2, "{before:?} {after:?}");
    fs::read(m.at("f")).unwrap();
    assert!(times().2 > read.2);
    fs::set_permissions(m.at("f"), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(times().0, after.0);
    assert!(times().1 > after.1);
}

#[test]
fn special_files() {
    let (_cluster, m) = one();
    sys::mknod(&m.at("pipe"), libc::S_IFIFO | 0o640, 0).unwrap();
    sys::mknod(&m.at("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
    sys::mknod(&m.at("disk"), libc::S_IFBLK | 0o600, libc::makedev(7, 200)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(m.at("socket")).unwrap();
    let kind = |name: &str| fs::metadata(m.at(name)).unwrap().file_type();
    assert!(kind("pipe").is_fifo() && kind("null").is_char_device() && kind("disk").is_block_device() && kind("socket").is_socket());
    assert_eq!(fs::metadata(m.at("null")).unwrap().rdev(), libc::makedev(1, 3));
    m.run("echo through > pipe & test \"$(cat pipe)\" = through; wait");
}

#[test]
fn exclusive_creation_has_one_winner() {
    let (cluster, a) = one();
    let b = cluster.mount();
    for round in 0..10 {
        let create = |mount: &Mount| OpenOptions::new().write(true).create_new(true).open(mount.at(format!("f{round}")));
        let (one, two) = std::thread::scope(|scope| {
            let other = scope.spawn(|| create(&b));
            (create(&a), other.join().unwrap())
        });
        let (winners, losers): (Vec<_>, Vec<_>) = [one, two].into_iter().partition(Result::is_ok);
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(losers[0].as_ref().unwrap_err().kind(), ErrorKind::AlreadyExists);
    }
}

#[test]
fn permissions_are_checked_for_other_users() {
    let (_cluster, m) = one();
    fs::set_permissions(m.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for dir in m.path().ancestors().skip(1).take_while(|d| d.starts_with(std::env::temp_dir()) && *d != std::env::temp_dir()) {
        fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    m.run("echo secret > private; chmod 600 private; echo open > public; chmod 644 public; mkdir -m 1777 tmp; echo mine > tmp/root");
    let nobody = |script: &str| shell::attempt(m.path(), &format!("setpriv --reuid 65534 --regid 65534 --clear-groups bash -c '{script}'"));
    assert_eq!(nobody("cat public").text, "open\n");
    for refused in ["cat private", "echo x > public", "touch new", "rm -f tmp/root", "chmod 777 public"] {
        assert_ne!(nobody(refused).code, 0, "nobody may: {refused}");
    }
    assert_eq!(nobody("echo x > tmp/own && cat tmp/own").text, "x\n");
    assert_eq!(fs::metadata(m.at("tmp/own")).unwrap().uid(), 65_534);
}

#[test]
fn set_group_id_directories_hand_down_their_group() {
    let (_cluster, m) = one();
    m.run("mkdir d; chgrp 1234 d; chmod 2775 d; touch d/f; mkdir d/e; test $(stat -c %g d/f) = 1234; test \"$(stat -c '%g %a' d/e)\" = '1234 2755'");
}

#[test]
fn statfs_shows_the_cluster() {
    let (_cluster, m) = one();
    let before = sys::statvfs(m.path()).unwrap();
    assert!(before.f_blocks > 0 && before.f_bavail > 0 && before.f_bavail <= before.f_blocks && before.f_namemax == 255);
    for n in 0..20 {
        fs::write(m.at(n.to_string()), "x").unwrap();
    }
    eventually(5, "inodes are counted", || {
        let after = sys::statvfs(m.path()).unwrap();
        after.f_files - after.f_ffree >= before.f_files - before.f_ffree + 20
    });
}

#[test]
fn errors_of_ordinary_mistakes() {
    let (_cluster, m) = one();
    fs::write(m.at("f"), "x").unwrap();
    fs::create_dir(m.at("d")).unwrap();
    assert_eq!(errno(fs::read(m.at("none"))), libc::ENOENT);
    assert_eq!(errno(fs::read(m.at("f/x"))), libc::ENOTDIR);
    assert_eq!(errno(fs::read(m.at("d"))), libc::EISDIR);
    assert_eq!(errno(OpenOptions::new().write(true).open(m.at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_file(m.at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(m.at("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::create_dir(m.at("d"))), libc::EEXIST);
    fs::write(m.at("d/f"), "x").unwrap();
    assert_eq!(errno(fs::remove_dir(m.at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(m.at("f"))), libc::ENOTDIR);
    assert_eq!(errno(OpenOptions::new().write(true).open(m.at("f")).unwrap().set_len(i64::MAX as u64)), libc::EFBIG);
}

#[test]
fn a_big_directory_is_listed_whole_and_can_be_emptied_while_it_is_read() {
    let (_cluster, m) = one();
    m.run("mkdir d; cd d; seq -f 'name-%05g' 3000 | xargs touch");
    let mut names: Vec<_> = fs::read_dir(m.at("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3000);
    for entry in fs::read_dir(m.at("d")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(m.at("d")).unwrap().count(), 0);
}
