//! The kernel's table of mounts, as far as it names mounts of this driver. Pure: it is
//! given the text of /proc/self/mountinfo, so that nobody touches a mount that may hang.

use std::path::{Component, Path, PathBuf};

/// The type of this driver's mounts.
const KIND: &str = "fuse.dfs-mount";

/// One mount of this driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The kernel's number of the mount.
    pub(crate) id: u64,
    /// MAJOR:MINOR of its file system: the same for bind mounts of it, and of no other one.
    pub(crate) device: String,
    /// Which part of the file system is shown there.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) mountpoint: PathBuf,
    /// The directory service's URL.
    pub(crate) source: String,
    /// Who mounted it.
    pub(crate) user: Option<u32>,
}

fn fields(line: &str) -> Option<(Row, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let [id, _parent, device, root, mountpoint, ..] = left.as_slice() else { return None };
    let mut right = right.split(' ');
    let (kind, source, options) = (right.next()?, right.next()?, right.next().unwrap_or(""));
    let user = options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    let row = Row {
        id: id.parse().ok()?,
        device: (*device).to_owned(),
        root: unescape(root).into(),
        mountpoint: unescape(mountpoint).into(),
        source: unescape(source),
        user,
    };
    Some((row, kind))
}

/// This driver's mounts, in the order in which they were made.
pub(crate) fn ours(text: &str) -> Vec<Row> {
    text.lines().filter_map(fields).filter(|(_, kind)| *kind == KIND).map(|(row, _)| row).collect()
}

/// This driver's mount at `mountpoint`, if it is the topmost one there.
pub(crate) fn topmost(text: &str, mountpoint: &Path) -> Option<Row> {
    let (row, kind) = text.lines().filter_map(fields).rfind(|(row, _)| row.mountpoint == mountpoint)?;
    (kind == KIND).then_some(row)
}

/// The mount that holds `path`, which is absolute, and the path inside of its file system.
pub(crate) fn holder(text: &str, path: &Path) -> Option<(Row, PathBuf)> {
    let path = normal(path);
    let (row, _) = innermost(text, &path).filter(|(_, kind)| *kind == KIND)?;
    let inside = row.root.join(path.strip_prefix(&row.mountpoint).unwrap_or(Path::new("")));
    Some((row, inside))
}

/// The type of the file system that holds `path`, which is absolute, as in "ext4" or "fuse.sshfs".
pub(crate) fn kind<'a>(text: &'a str, path: &Path) -> Option<&'a str> {
    innermost(text, &normal(path)).map(|(_, kind)| kind)
}

/// The mount, of whatever type, that holds `path`.
fn innermost<'a>(text: &'a str, path: &Path) -> Option<(Row, &'a str)> {
    let all: Vec<(Row, &str)> = text.lines().filter_map(fields).collect();
    let longest = all.iter().filter(|(row, _)| path.starts_with(&row.mountpoint)).map(|(row, _)| row.mountpoint.as_os_str().len()).max()?;
    all.into_iter().rfind(|(row, _)| path.starts_with(&row.mountpoint) && row.mountpoint.as_os_str().len() == longest)
}

/// `path` without `.` and `..`, by its letters alone: symlinks are not looked at.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")].iter().fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
36 22 0:40 / /mnt/a\\040b rw shared:1 - fuse.dfs-mount http://h:1 rw,user_id=1000,group_id=1000
37 22 0:41 / /x rw - fuse.dfs-mount s rw
38 22 0:42 / /x rw - tmpfs t rw
39 22 0:40 /sub /bind rw - fuse.dfs-mount http://h:1 rw,user_id=1000
40 36 0:43 / /mnt/a\\040b/other rw - tmpfs t rw
";

    #[test]
    fn the_topmost_mount_counts() {
        let row = topmost(TEXT, Path::new("/mnt/a b")).unwrap();
        assert_eq!((row.id, row.device.as_str(), row.source.as_str(), row.user), (36, "0:40", "http://h:1", Some(1000)));
        assert_eq!(topmost(TEXT, Path::new("/x")), None);
        assert_eq!(ours(TEXT).iter().map(|r| r.id).collect::<Vec<_>>(), [36, 37, 39]);
    }

    #[test]
    fn a_path_belongs_to_the_innermost_mount() {
        let inside = |path: &str| holder(TEXT, Path::new(path)).map(|(row, inside)| (row.id, inside.display().to_string()));
        assert_eq!(inside("/mnt/a b/d/./f"), Some((36, "/d/f".to_owned())));
        assert_eq!(inside("/mnt/a b/d/../../a b"), Some((36, "/".to_owned())));
        assert_eq!(inside("/bind/f"), Some((39, "/sub/f".to_owned())));
        assert_eq!(inside("/mnt/a b/other/f"), None);
        assert_eq!((inside("/etc/passwd"), inside("/x/f")), (None, None));
        let kinds = ["/etc", "/x/f", "/mnt/a b/f", "/mnt/a b/../b"].map(|path| kind(TEXT, Path::new(path)));
        assert_eq!(kinds, [Some("ext4"), Some("tmpfs"), Some("fuse.dfs-mount"), Some("ext4")]);
    }
}
