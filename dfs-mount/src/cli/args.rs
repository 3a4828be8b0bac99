//! What may stand on the command line of `dfs`, and nothing else: `dfs shell`, the man
//! pages and the completions read the same definition.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::bench;

/// Where a directory service on the same machine listens.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:7400";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failure; 2 wrong usage; 3 no such file, directory or version; \
4 the file's write lock is taken by somebody else; 130 interrupted.\n\
Paths start at the root of the cluster; a leading slash is optional.\n\
Everything is done with the permissions of who runs this.";

/// The command line of the distributed file system: every job a person or a script does without a mount.
#[derive(Debug, Parser)]
#[command(name = "dfs", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Globals {
    /// The directory service
    #[arg(long, global = true, env = "DFS_SERVER", value_name = "URL", default_value = DEFAULT_SERVER)]
    pub(crate) server: String,
    /// File with the cluster's token, or one for clients, readable by its owner only
    #[arg(long, global = true, env = "DFS_TOKEN_FILE", value_name = "FILE", default_value = "/etc/dfs/token")]
    pub(crate) token_file: PathBuf,
    /// Print the structures of the API as JSON; errors too, on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How long to go on trying when a server does not answer
    #[arg(long, global = true, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// List directories
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show what is known of a file: attributes, version, servers
    Stat(OnePath),
    /// Print a file, or one of its kept versions
    #[command(visible_aliases = ["cat", "show"])]
    Read(Read),
    /// Create or replace a file
    Write(Write),
    /// Create an empty file; it is an error if the name is taken
    Create(Create),
    /// Edit a file in $VISUAL, $EDITOR or vi, holding its write lock
    Edit(Edit),
    /// Remove files, and directories with -r
    Rm(Rm),
    /// Create directories
    Mkdir(Mkdir),
    /// Rename, or move into a directory
    Mv(Mv),
    /// Give a file another name, or make a symbolic link
    Ln(Ln),
    /// Show who holds and who waits for locks, or take a write lock from its holder
    Locks(Locks),
    /// Show what waits, for what, and since when
    Why(Why),
    /// Show how the cluster is: every role, space, sessions, missing copies
    Status(Status),
    /// List clients
    Sessions,
    /// List file servers
    Servers,
    /// List the kept versions of what a path holds and held
    History(OnePath),
    /// Make a kept version the current one again
    Restore(Restore),
    /// Bring back what was removed, directories with everything that was removed with them
    Undelete(Undelete),
    /// List, look at, restore or discard content that could not be published
    Recover(Recover),
    /// Measure everyday work in directories, of a mount or not, and compare them
    Bench(Bench),
    /// Type commands one after the other in one session
    Shell,
    /// Explain how to work with this program
    Instructions,
    /// Write man pages into a directory
    Man(Man),
    /// Print a completion script for a shell
    Completions(Completions),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct OnePath {
    /// A path in the cluster
    pub(crate) path: OsString,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Ls {
    /// Directories or files
    #[arg(default_value = "/")]
    pub(crate) paths: Vec<OsString>,
    /// Long form: mode, links, owner, group, size, time
    #[arg(short)]
    pub(crate) long: bool,
    /// Names that begin with a dot, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Everything below, too
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Read {
    /// The file; PATH@7 is its version 7, PATH@41.3 version 3 of an earlier file of that name
    #[arg(value_name = "PATH[@VERSION]")]
    pub(crate) path: OsString,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Start at this byte
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) offset: u64,
    /// At most this many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) length: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Waiting {
    /// How long to wait for the write lock; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) wait: Duration,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Write {
    /// The file in the cluster
    pub(crate) path: OsString,
    /// Where the content is; - or nothing: standard input
    pub(crate) file: Option<PathBuf>,
    /// Add at the end instead of replacing
    #[arg(long)]
    pub(crate) append: bool,
    /// Wait until the disks of all copies have it
    #[arg(long)]
    pub(crate) sync: bool,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Create {
    /// New files
    #[arg(required = true)]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Edit {
    /// The file; it is created if there is none
    pub(crate) path: OsString,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Rm {
    /// What to remove
    #[arg(required = true)]
    pub(crate) paths: Vec<OsString>,
    /// Directories with everything below
    #[arg(short, long, visible_short_alias = 'R')]
    pub(crate) recursive: bool,
    /// No error where there is nothing to remove
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Mkdir {
    /// New directories
    #[arg(required = true)]
    pub(crate) paths: Vec<OsString>,
    /// Missing parents too, and no error where it exists
    #[arg(short, long)]
    pub(crate) parents: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Mv {
    /// What to move, then where to: a new name or an existing directory
    #[arg(required = true, num_args = 2.., value_name = "SOURCE TARGET")]
    pub(crate) paths: Vec<OsString>,
    /// Never replace an existing target
    #[arg(short = 'n', long, conflicts_with = "exchange")]
    pub(crate) no_replace: bool,
    /// Swap the two names
    #[arg(long)]
    pub(crate) exchange: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Ln {
    /// What the link leads to
    pub(crate) target: OsString,
    /// The new name, or a directory for it
    pub(crate) link: OsString,
    /// A symbolic link
    #[arg(short, long)]
    pub(crate) symbolic: bool,
}

#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Locks {
    /// Only this file's
    pub(crate) path: Option<OsString>,
    #[command(subcommand)]
    pub(crate) command: Option<LockCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Take a file's write lock from its holder, whose changes become a recoverable version
    Break(OnePath),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Restore {
    /// The version, as dfs history lists it
    #[arg(value_name = "PATH@VERSION")]
    pub(crate) path: OsString,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Undelete {
    /// What was removed; with --list, the directory
    #[arg(required_unless_present = "list")]
    pub(crate) paths: Vec<OsString>,
    /// Only list what was removed from a directory and is still kept
    #[arg(long, conflicts_with_all = ["to", "all"])]
    pub(crate) list: bool,
    /// Bring it back under this name instead of its own
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<OsString>,
    /// Bring back all that was ever removed from a directory, not only in the hour before it was removed itself
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Recover {
    #[command(subcommand)]
    pub(crate) command: Option<RecoverCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RecoverCommand {
    /// List what could not be published
    List,
    /// Print the content
    Show(RecoverShow),
    /// Make it the next version of its file, which is created if it is gone; the current version stays in the history
    Restore(RecoverRestore),
    /// Delete it
    Discard(RecoverIds),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RecoverShow {
    /// Which one, as listed
    pub(crate) id: OsString,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RecoverRestore {
    /// Which one, as listed
    pub(crate) id: OsString,
    /// Into this file instead of its own
    #[arg(long, value_name = "PATH")]
    pub(crate) to: Option<OsString>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RecoverIds {
    /// Which ones, as listed
    #[arg(required = true)]
    pub(crate) ids: Vec<OsString>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Asks the mounts of this machine (as root, or as who mounted them) and the services. It touches no mount\n\
and needs no service, so it works when everything else hangs.")]
pub(crate) struct Why {
    /// Only this file or directory (below a mount, or in the cluster), or this process (a number)
    #[arg(value_name = "PATH|PID")]
    pub(crate) target: Option<OsString>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Status {
    /// Fail unless the lock service and at least this many file servers answer
    #[arg(long, value_name = "SERVERS")]
    pub(crate) expect: Option<usize>,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Needs no cluster. Works in a new directory below each DIR, which is removed at the end, and compares all that it reads\n\
with what it wrote. The directories take turns, workload by workload. What cannot be made cold is skipped, and the reason is printed.")]
pub(crate) struct Bench {
    /// Where to work; the first is compared with each of the others
    #[arg(value_name = "DIR", required_unless_present = "list")]
    pub(crate) directories: Vec<PathBuf>,
    /// Only list the workloads
    #[arg(long)]
    pub(crate) list: bool,
    /// Only these workloads
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(bench::names()), hide_possible_values = true)]
    pub(crate) only: Vec<String>,
    /// How often each is done; the median counts [default: 5, with --quick 1]
    #[arg(long, value_name = "N", value_parser = rounds)]
    pub(crate) rounds: Option<usize>,
    /// The size of the large file, which is held in memory, too: 1M to 4G, whole MiB [default: 256M, with --quick 4M]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<u64>,
    /// Few and small files, to see that everything works
    #[arg(long)]
    pub(crate) quick: bool,
    /// Run this by sh before each workload that must find nothing cached, with the directory in $DIR
    #[arg(long, value_name = "COMMAND")]
    pub(crate) cold: Option<String>,
    /// Also count the processor time and memory of these daemons, which serve the first DIR; FILE holds the pid as its first word
    #[arg(long, value_name = "NAME=PID|NAME=FILE", value_delimiter = ',')]
    pub(crate) pids: Vec<bench::Process>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Man {
    /// The directory for the pages
    pub(crate) directory: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Seconds with a fraction, up to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || "expected seconds, 0 to 86400".to_owned();
    let seconds: f64 = text.parse().map_err(|_| bad())?;
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(bad());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// 1 to 1000.
fn rounds(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rounds| (1..=1000).contains(rounds)).ok_or_else(|| "expected a number, 1 to 1000".to_owned())
}

/// 1M to 4G in whole MiB, as in 64M; returns bytes.
fn size(text: &str) -> Result<u64, String> {
    let bad = || "expected a size as in 64M, 1M to 4G".to_owned();
    let unit = text.chars().last().ok_or_else(bad)?;
    let shift = match unit {
        'M' | 'm' => 20,
        'G' | 'g' => 30,
        _ => return Err(bad()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).filter(|bytes| (1 << 20..=4 << 30).contains(bytes)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["-1", "x", "86401", "NaN", "inf"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_rounds_are_bounded() {
        assert_eq!((size("1M"), size("2g"), rounds("3")), (Ok(1 << 20), Ok(2 << 30), Ok(3)));
        for bad in ["", "M", "0M", "5G", "4096", "1K", "-1M", "99999999999999999999G", "1\u{b5}"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert!(rounds("0").is_err() && rounds("1001").is_err());
    }

    #[test]
    fn a_benchmark_wants_a_directory_and_known_workloads() {
        let parsed = |words: &[&str]| Arguments::try_parse_from(["dfs", "bench"].iter().chain(words)).is_ok();
        assert!(parsed(&["--list"]) && parsed(&["a", "b", "--only", "create,stat", "--pids", "x=1,y=/f"]));
        assert!(!parsed(&[]) && !parsed(&["a", "--only", "nothing"]) && !parsed(&["a", "--pids", "1"]));
    }

    #[test]
    fn moving_wants_two_names() {
        assert!(Arguments::try_parse_from(["dfs", "mv", "a"]).is_err());
        assert!(Arguments::try_parse_from(["dfs", "mv", "a", "b"]).is_ok());
    }
}
