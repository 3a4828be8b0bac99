//! Small disks, which tests fill.

use std::path::Path;
use std::process::Command;

use crate::shell::output;

/// A small file system in memory, gone with the test.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Of so many MiB.
    pub fn new(mib: u32) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let out = output(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(dir.path()));
        assert_eq!(out.code, 0, "{}", out.text);
        Self(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        output(Command::new("umount").arg("-l").arg(self.path()));
    }
}
