//! A tree as a list of lines that two mounts, or a mount and a disk, must agree on.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a listing says about each path below the root.
pub type Listing = BTreeMap<PathBuf, String>;

/// Type, mode, owner, size, mtime in nanoseconds, link group, content hash or target of everything below `root`.
///
/// Hard links show as the first path of their group, so that inode numbers need not agree.
pub fn listing(root: &Path) -> Listing {
    let mut out = Listing::new();
    let mut groups: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let mut names: Vec<PathBuf> = std::fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|e| e.unwrap_or_else(|e| panic!("{}: {e}", dir.display())).path())
            .collect();
        names.sort();
        for path in names {
            let meta = std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let relative = path.strip_prefix(root).expect("below the root").to_owned();
            let mut line = format!("{:o} {}:{} {}.{:09}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec());
            let kind = meta.file_type();
            if kind.is_dir() {
                line += &format!(" links={}", meta.nlink());
                pending.push(path);
            } else if kind.is_symlink() {
                line += &format!(" -> {}", std::fs::read_link(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).display());
            } else if kind.is_file() {
                let first = groups.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.clone());
                line += &format!(" size={} links={} same={} {}", meta.len(), meta.nlink(), first.display(), hash(&path));
            } else if kind.is_char_device() || kind.is_block_device() {
                line += &format!(" rdev={}", meta.rdev());
            }
            out.insert(relative, line);
        }
    }
    out
}

/// BLAKE3 of a file's content, read with read(2).
pub fn hash(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finalize().to_hex().to_string(),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) => panic!("{}: {e}", path.display()),
        };
    }
}

/// Panics with the first differences unless both are the same.
#[track_caller]
pub fn assert_same(left: &Listing, right: &Listing) {
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys().filter(|p| !left.contains_key(*p))) {
        let (a, b) = (left.get(path), right.get(path));
        if a != b {
            differences.push(format!("{}\n  left:  {}\n  right: {}", path.display(), a.map_or("(absent)", |s| s), b.map_or("(absent)", |s| s)));
        }
    }
    let shown = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} paths differ, of {}; the first:\n{shown}", differences.len(), left.len());
}
