//! What programs expect of a local disk beyond the everyday: copies by reference, holes,
//! running programs, direct I/O, shared mappings, and refusals that make them fall back.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;

use dfs_tests::sys::errno;
use dfs_tests::{Cluster, Mount, Rng, shell, sys};

/// Of a new file, as `dfs-server` is run here.
const BLOCK: u64 = 256 << 10;

fn one() -> (Cluster, Mount) {
    let cluster = Cluster::small();
    let mount = cluster.mount();
    (cluster, mount)
}

fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect()
}

/// Bytes that the mount's driver has sent over the connections that it has now.
fn sent(mount: &Mount) -> u64 {
    let out = shell::output(Command::new("ss").args(["-tinpOH"]));
    assert!(out.code == 0, "this test counts bytes with ss(8): {}", out.text);
    let pid = format!("pid={},", mount.pid());
    let lines = out.text.lines().filter(|line| line.contains(&pid));
    lines.filter_map(|line| line.split_once("bytes_sent:")?.1.split(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn cp_sends_no_content() {
    let (cluster, m) = one();
    let content = noise(48 << 20, 1);
    let idle = sent(&m);
    fs::write(m.at("big"), &content[..content.len() - 999]).unwrap();
    let written = sent(&m);
    assert!(written - idle >= 48 << 20, "the measure sees what a write sends: {idle} {written}");
    m.run("cp big copy && cp copy again");
    let copied = sent(&m);
    assert!(copied.saturating_sub(written) < 256 << 10, "two copies have sent {} bytes", copied - written);
    let other = cluster.mount();
    for name in ["copy", "again"] {
        assert!(fs::read(other.at(name)).unwrap() == content[..content.len() - 999], "{name}");
        assert_eq!(fs::metadata(other.at(name)).unwrap().blocks(), fs::metadata(m.at("big")).unwrap().blocks());
    }
    // The copy is a file of its own.
    let copy = OpenOptions::new().write(true).open(m.at("copy")).unwrap();
    copy.write_all_at(b"changed", BLOCK).unwrap();
    sys::close(copy).unwrap();
    assert!(fs::read(other.at("big")).unwrap() == content[..content.len() - 999]);
}

#[test]
fn cp_sends_no_content_to_a_server_that_has_it() {
    // Any two of three servers have one in common with any other two.
    let cluster = Cluster::replicated();
    let m = cluster.mount();
    let content = noise(16 << 20, 6);
    fs::write(m.at("0"), &content).unwrap();
    for n in 1..4 {
        let before = sent(&m);
        m.run(&format!("cp {} {n}", n - 1));
        let after = sent(&m);
        assert!(after.saturating_sub(before) < 256 << 10, "copy {n} has sent {} bytes", after - before);
    }
    cluster.wait_replicated();
    let other = cluster.mount();
    for n in 1..4 {
        assert!(fs::read(other.at(n.to_string())).unwrap() == content, "copy {n}");
    }
}

#[test]
fn ranges_are_copied_as_they_are() {
    let (cluster, m) = one();
    let content = noise(5 * BLOCK + 4096, 2);
    fs::write(m.at("from"), &content).unwrap();
    let mut expected = noise(6 * BLOCK + 160, 3);
    fs::write(m.at("to"), &expected).unwrap();
    let from = OpenOptions::new().read(true).write(true).open(m.at("from")).unwrap();
    let to = OpenOptions::new().read(true).write(true).open(m.at("to")).unwrap();
    let mut copy = |a: u64, b: u64, len: u64| {
        let len = len.min((content.len() as u64).saturating_sub(a));
        assert_eq!(sys::copy_range((&from, a as i64), (&to, b as i64), len as usize).unwrap() as u64, len, "{a} {b} {len}");
        let end = (b + len) as usize;
        expected.resize(expected.len().max(end), 0);
        expected[b as usize..end].copy_from_slice(&content[a as usize..(a + len) as usize]);
        let mut now = vec![0; expected.len()];
        to.read_exact_at(&mut now, 0).unwrap();
        assert!(now == expected, "after {a} {b} {len}");
    };
    for (a, b, len) in
        [(0, BLOCK, 2 * BLOCK), (7, 9, 100), (BLOCK, 0, BLOCK + 1), (4 * BLOCK, 5 * BLOCK, u64::MAX >> 1), (3, 8 * BLOCK + 1, 2 * BLOCK), (0, 0, 0)]
    {
        copy(a, b, len);
    }
    sys::close(to).unwrap();
    let other = cluster.mount();
    assert!(fs::read(other.at("to")).unwrap() == expected);

    // Within one file, and of what is not yet published.
    from.write_all_at(b"new", 10).unwrap();
    assert_eq!(sys::copy_range((&from, 0), (&from, 8 * BLOCK as i64), (2 * BLOCK) as usize).unwrap() as u64, 2 * BLOCK);
    sys::close(from).unwrap();
    let mut expected = content.clone();
    expected[10..13].copy_from_slice(b"new");
    expected.resize((10 * BLOCK) as usize, 0);
    expected.copy_within(..(2 * BLOCK) as usize, (8 * BLOCK) as usize);
    assert!(fs::read(other.at("from")).unwrap() == expected);
    // Past the end there is nothing to copy, and a file open for reading is no target.
    let (a, b) = (File::open(m.at("from")).unwrap(), File::create(m.at("new")).unwrap());
    assert_eq!(sys::copy_range((&a, 11 * BLOCK as i64), (&b, 0), 100).unwrap(), 0);
    assert_eq!(errno(sys::copy_range((&b, 0), (&a, 0), 100)), libc::EBADF);
}

#[test]
fn holes_are_found_and_copied_as_holes() {
    let (_cluster, m) = one();
    let file = File::create(m.at("f")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&noise(BLOCK, 4), 3 << 30).unwrap();
    sys::close(file).unwrap();
    m.run("cp --sparse=auto f g");
    for name in ["f", "g"] {
        let file = File::open(m.at(name)).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.blocks() * 512), (1 << 40, BLOCK), "{name}");
        let found = |offset, whence| sys::seek(&file, offset, whence).unwrap() as u64;
        assert_eq!((found(0, libc::SEEK_DATA), found(0, libc::SEEK_HOLE)), (3 << 30, 0));
        assert_eq!((found((3 << 30) + 5, libc::SEEK_DATA), found(3 << 30, libc::SEEK_HOLE)), ((3 << 30) + 5, (3 << 30) + BLOCK));
        for (offset, whence) in [(4 << 30, libc::SEEK_DATA), (1 << 40, libc::SEEK_DATA), (1 << 40, libc::SEEK_HOLE), (-1, libc::SEEK_HOLE)] {
            assert_eq!(errno(sys::seek(&file, offset, whence)), libc::ENXIO, "{offset} {whence}");
        }
    }
}

#[test]
fn fallocate_does_what_it_can_and_refuses_the_rest() {
    let (_cluster, m) = one();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.at("f")).unwrap();
    file.write_all_at(&noise(3 * BLOCK, 5), 0).unwrap();
    sys::fallocate(&file, libc::FALLOC_FL_KEEP_SIZE, 0, 1 << 40).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3 * BLOCK);
    sys::fallocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, 2 * BLOCK as i64).unwrap();
    let mut middle = vec![1; 2 * BLOCK as usize];
    file.read_exact_at(&mut middle, 100).unwrap();
    assert!(middle.iter().all(|&b| b == 0));
    assert_eq!(file.metadata().unwrap().blocks() * 512, 2 * BLOCK, "a whole block is a hole now");
    sys::fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 3 * BLOCK as i64 - 10, 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3 * BLOCK + 10);
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_UNSHARE_RANGE] {
        assert_eq!(errno(sys::fallocate(&file, mode, 0, BLOCK as i64)), libc::EOPNOTSUPP, "mode {mode}");
    }
    sys::close(file).unwrap();
}

#[test]
fn a_truncation_behind_a_close_is_not_lost() {
    let (cluster, m) = one();
    let other = cluster.mount();
    // The driver hears of the last close while the next call is on its way.
    for round in 0..300 {
        let path = m.at(format!("f{}", round % 7));
        fs::write(&path, vec![b'x'; 5000 * (round % 2)]).unwrap();
        for size in [23_456, 1] {
            sys::truncate(&path, size as i64).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), size, "round {round}");
        }
        if round % 50 == 49 {
            assert_eq!(fs::read(other.at(format!("f{}", round % 7))).unwrap().len(), 1);
        }
    }
}

#[test]
fn a_running_program_is_busy() {
    let (_cluster, m) = one();
    m.run("cp /bin/sleep s; chmod 755 s");
    let mut running = Command::new(m.at("s")).arg("60").spawn().unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).open(m.at("s"))), libc::ETXTBSY);
    // It may be replaced, as package managers do it.
    m.run("cp /bin/true new; mv new s; ./s");
    running.kill().unwrap();
    running.wait().unwrap();
    fs::copy("/bin/true", m.at("t")).unwrap();
    let writing = OpenOptions::new().write(true).open(m.at("t")).unwrap();
    assert_eq!(errno(Command::new(m.at("t")).status()), libc::ETXTBSY);
    sys::close(writing).unwrap();
    assert!(Command::new(m.at("t")).status().unwrap().success());
}

#[test]
fn temporary_files_without_a_name_are_refused_so_that_programs_fall_back() {
    let (_cluster, m) = one();
    let open = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(m.path());
    assert_eq!(errno(open), libc::EOPNOTSUPP);
    // Python tries O_TMPFILE first.
    m.run("python3 -c 'import tempfile; f = tempfile.TemporaryFile(dir=\".\"); f.write(b\"x\"); f.seek(0); assert f.read() == b\"x\"'");
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
}

#[test]
fn direct_io_is_accepted() {
    let (cluster, m) = one();
    m.run("dd if=/dev/urandom of=f bs=64k count=20 oflag=direct status=none; dd if=f of=g bs=64k iflag=direct oflag=direct status=none; cmp f g");
    m.run("dd if=/dev/zero of=f bs=4k count=1 seek=3 conv=notrunc oflag=direct status=none; test $(stat -c %s f) = 1310720");
    let other = cluster.mount();
    other.run("cmp -i 16384 f g; cmp -n 4096 -i 12288:0 f /dev/zero");
}

#[test]
fn shared_mappings_are_one_memory() {
    let (cluster, m) = one();
    fs::write(m.at("f"), vec![b'a'; 100_000]).unwrap();
    fs::set_permissions(m.at("f"), PermissionsExt::from_mode(0o644)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(m.at("f")).unwrap();
    sys::write_mapped(&file, 100_000, 50_000, b"mapped").unwrap();
    let mut read = [0; 6];
    file.read_exact_at(&mut read, 50_000).unwrap();
    assert_eq!(&read, b"mapped", "read(2) sees a store");
    file.write_all_at(b"written", 60_000).unwrap();
    assert_eq!(&sys::read_mapped(&file, 100_000).unwrap()[60_000..60_007], b"written", "a mapping sees write(2)");
    // One process stores, another one reads, as databases do; fsync makes it a version.
    m.run("python3 - <<'END'\nimport mmap, os\nfd = os.open('f', os.O_RDWR)\na = mmap.mmap(fd, 100000)\nif os.fork() == 0:\n    b = mmap.mmap(fd, 100000)\n    b[:5] = b'child'\n    os._exit(0)\nos.wait()\nassert a[:5] == b'child'\na.flush()\nos.fsync(fd)\nEND");
    let other = cluster.mount();
    let there = fs::read(other.at("f")).unwrap();
    assert_eq!((&there[..5], &there[50_000..50_006], &there[60_000..60_007]), (&b"child"[..], &b"mapped"[..], &b"written"[..]));
    sys::close(file).unwrap();
}

#[test]
fn paths_of_4095_bytes_work_and_longer_ones_do_not() {
    let (cluster, m) = one();
    // Directories of 255 bytes until the rest fits into one name of at least two.
    let mut path = m.path().to_owned();
    let length = |path: &std::path::Path| path.as_os_str().len();
    while 4095 - length(&path) > 2 * 256 {
        path.push("d".repeat(255));
        fs::create_dir(&path).unwrap();
    }
    path.push("e".repeat((4095 - length(&path)) / 2));
    fs::create_dir(&path).unwrap();
    let rest = 4095 - length(&path) - 1;
    let (longest, longer) = (path.join("f".repeat(rest)), path.join("f".repeat(rest + 1)));
    assert_eq!(length(&longest), 4095);
    fs::write(&longest, "at the end").unwrap();
    assert_eq!(errno(fs::write(&longer, "")), libc::ENAMETOOLONG);
    assert_eq!(fs::read_to_string(&longest).unwrap(), "at the end");
    fs::rename(&longest, path.join("g".repeat(rest))).unwrap();
    assert_eq!(errno(fs::rename(path.join("g".repeat(rest)), &longer)), libc::ENAMETOOLONG);
    // Relative paths lead deeper than any path can say.
    let deeper = "import os
for n in range(40): os.mkdir('x' * 255); os.chdir('x' * 255)
open('bottom', 'w').write('deep')
assert open('bottom').read() == 'deep'
";
    m.run(&format!("mkdir deep; cd deep; python3 -c \"{deeper}\""));
    let other = cluster.mount();
    other.run("cd deep; for n in $(seq 40); do cd x*; done; test $(cat bottom) = deep");
    other.run("rm -r d*");
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
}

#[test]
fn names_of_255_arbitrary_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let (cluster, m) = one();
    let other = cluster.mount();
    let allowed: Vec<u8> = (1..=255).filter(|&b| b != b'/').collect();
    let mut rng = Rng::announced("names");
    let mut names: Vec<Vec<u8>> = (0..30).map(|_| (0..255).map(|_| allowed[rng.below(allowed.len() as u64) as usize]).collect()).collect();
    // Every byte that a name may hold, in one name, and alone but for the dot, which is a directory's own name.
    names.push(allowed.iter().copied().chain([b'x']).collect());
    names.extend(allowed.iter().filter(|&&b| b != b'.').map(|&b| vec![b]));
    names.sort();
    names.dedup();
    for (n, name) in names.iter().enumerate() {
        let name = OsStr::from_bytes(name);
        fs::write(m.at(name), n.to_string()).unwrap_or_else(|e| panic!("{name:?}: {e}"));
        fs::rename(m.at(name), m.at("moved")).unwrap();
        fs::rename(m.at("moved"), m.at(name)).unwrap();
    }
    for mount in [&m, &other] {
        let mut listed: Vec<Vec<u8>> = fs::read_dir(mount.path()).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
        listed.sort();
        assert!(listed == names);
        for (n, name) in names.iter().enumerate() {
            assert_eq!(fs::read_to_string(mount.at(OsStr::from_bytes(name))).unwrap(), n.to_string(), "{name:?}");
        }
    }
    for name in &names {
        fs::remove_file(other.at(OsStr::from_bytes(name))).unwrap();
    }
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 0);
}
