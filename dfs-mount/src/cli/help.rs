//! Texts about the program itself: instructions, man pages, completions. No cluster is needed.

use std::path::Path;

use clap::CommandFactory;

use super::args::Arguments;
use super::failure::{At, Outcome};
use super::render;

/// What `dfs instructions` prints.
pub(crate) const INSTRUCTIONS: &str = "\
Files live in a cluster: a directory service knows the names, a lock service hands out
write locks, file servers hold the content. This program talks to them directly; a mount
(dfs-mount) shows the same files to every other program.

  list [PATH]          what is in a directory (ls; -l for details, -R for all below)
  show PATH            print a file (read, cat); PATH@3 is its version 3
  create PATH          make an empty file
  write PATH [FILE]    put a local file, or what you type, into PATH
  edit PATH            change it in your editor; nobody else can write meanwhile
  history PATH         its versions: every write makes a new one
  restore PATH@3       makes its version 3 the current one again
  undelete PATH        brings back what was removed; --list DIR shows what can be
  recover              what could not be published; recover show, restore, discard ID
  locks [PATH]         who writes, and who waits for that; locks break PATH
  why [PATH|PID]       what hangs, and whom it waits for
  mkdir, mv, ln, rm    as you know them
  status, servers      how the cluster is
  bench DIR [OTHER]    how fast everyday work is there (not in the shell)
  quit, bye            leave the shell

One writer at a time: write and edit take the file's write lock, first come first served,
and wait for it (--wait SECONDS). Readers never wait: they see the last complete version.
A new version is visible to everybody when the command has returned.

The directory service is named by --server or DFS_SERVER, the file with the cluster's
token by --token-file or DFS_TOKEN_FILE. Every command has --help and --json.
";

/// Writes `dfs.1`, a page for each command, and `dfs-mount.8`.
pub(crate) fn man(directory: &Path) -> Outcome {
    std::fs::create_dir_all(directory).at(directory)?;
    clap_mangen::generate_to(Arguments::command(), directory).at(directory)?;
    let page = directory.join("dfs-mount.8");
    let mut text = Vec::new();
    clap_mangen::Man::new(crate::driver::command()).section("8").render(&mut text)?;
    std::fs::write(&page, text).at(&page)
}

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "dfs", &mut script);
    render::text(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_command_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        super::man(directory.path()).unwrap();
        for page in ["dfs.1", "dfs-write.1", "dfs-history.1", "dfs-undelete.1", "dfs-recover-restore.1", "dfs-why.1", "dfs-bench.1", "dfs-mount.8"] {
            assert!(directory.path().join(page).exists(), "{page}");
        }
        let mount = std::fs::read_to_string(directory.path().join("dfs-mount.8")).unwrap();
        assert!(mount.contains("lock_wait"), "the mount options are in the page");
    }
}
