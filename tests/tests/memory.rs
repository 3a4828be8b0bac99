//! Memory stays bounded: many files, and one large file.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

use dfs_tests::{Cluster, Mount, Role, bulk, process, sys};

const MIB: u64 = 1 << 20;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |v| v.parse().unwrap_or_else(|e| panic!("{variable}={v}: {e}")))
}

/// Lists every directory, stats and reads every file.
fn read_all(mount: &Mount, count: u64) -> u64 {
    let mut seen = 0;
    for dir in std::fs::read_dir(mount.at("bulk")).unwrap() {
        for entry in std::fs::read_dir(dir.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            let number: u64 = path.file_name().unwrap().to_str().unwrap()[1..].parse().unwrap();
            assert!(number < count);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(text, format!("content of {number}\n"));
            seen += 1;
        }
    }
    seen
}

/// `DFS_TEST_FILES` files (100,000 unless set).
#[test]
fn many_files_listed_and_read_through_one_mount() {
    let count = number("DFS_TEST_FILES", 100_000);
    let mut cluster = Cluster::builder().start();
    let start = Instant::now();
    bulk::fill(&cluster, count as u32, 16).unwrap();
    println!("{count} files created in {:?}", start.elapsed());
    let mount = cluster.mount();
    let start = Instant::now();
    let listed = mount.run("ls -lR bulk | grep -c ^-");
    println!("listed with ls -lR in {:?}, {} MiB", start.elapsed(), mount.rss() / MIB);
    assert_eq!(listed.trim(), count.to_string());
    let start = Instant::now();
    assert_eq!(read_all(&mount, count), count);
    let (driver, directory) = (mount.peak_rss(), process::peak_rss(cluster.daemon(Role::Directory).pid()));
    println!("read in {:?}; peaks: mount {} MiB, directory {} MiB", start.elapsed(), driver / MIB, directory / MIB);
    assert!(driver < 200 * MIB, "dfs-mount took {} MiB", driver / MIB);
    assert!(directory < 300 * MIB, "the directory service took {} MiB", directory / MIB);
}

/// Bytes that differ from place to place, cheaply: the number of each eight-byte word, turned.
fn fill(buffer: &mut [u8], offset: u64) {
    for (word, n) in buffer.chunks_exact_mut(8).zip(offset / 8..) {
        word.copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    }
}

/// A file of `DFS_TEST_GIB` GiB (4 unless set).
#[test]
fn one_large_file_written_and_read() {
    let size = number("DFS_TEST_GIB", 4) << 30;
    let mut cluster = Cluster::builder().start();
    let mount = cluster.mount();
    let mut buffer = vec![0; MIB as usize];
    let start = Instant::now();
    let mut file = File::create(mount.at("large")).unwrap();
    for offset in (0..size).step_by(buffer.len()) {
        fill(&mut buffer, offset);
        file.write_all(&buffer).unwrap();
    }
    println!("written in {:?}", start.elapsed());
    sys::close(file).unwrap();
    println!("closed after {:?}", start.elapsed());
    let writing = mount.peak_rss();
    drop(mount);
    let mount = cluster.mount();
    let start = Instant::now();
    let mut file = File::open(mount.at("large")).unwrap();
    let mut wanted = buffer.clone();
    for offset in (0..size).step_by(buffer.len()) {
        file.read_exact(&mut buffer).unwrap_or_else(|e| panic!("at {offset}: {e}\n{}", mount.log()));
        fill(&mut wanted, offset);
        assert!(buffer == wanted, "wrong bytes at {offset}");
    }
    assert_eq!(file.read(&mut buffer).unwrap(), 0);
    println!("read with an empty cache in {:?}", start.elapsed());
    let mut peaks: Vec<(String, u64)> = vec![("dfs-mount, writing".into(), writing), ("dfs-mount, reading".into(), mount.peak_rss())];
    for role in [Role::Directory, Role::Lock, Role::File(0)] {
        peaks.push((format!("{role:?}"), process::peak_rss(cluster.daemon(role).pid())));
    }
    println!("peaks: {:?}", peaks.iter().map(|(n, b)| format!("{n} {} MiB", b / MIB)).collect::<Vec<_>>());
    for (name, peak) in peaks {
        assert!(peak < 200 * MIB, "{name} took {} MiB", peak / MIB);
    }
}
