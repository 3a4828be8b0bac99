//! Measures what operations cost while directories, histories and the number of sessions
//! grow, on daemons of its own; see `dfs_tests::growth`.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use dfs_tests::growth::{FLAT, Growth, Scale, grown, measure, table};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    Entries,
    Versions,
    Sessions,
}

/// Prints what operations cost in directories of many entries, on files of many versions, and among many sessions.
/// Needs root, and the programs of this build beside it (or in `DFS_TEST_BINARIES`); data goes to `TMPDIR`.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Only what depends on these
    #[arg(long, value_delimiter = ',', default_values = ["entries", "versions", "sessions"])]
    only: Vec<What>,
    /// Entries of directories
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000])]
    entries: Vec<u64>,
    /// Versions of files
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 10_000])]
    versions: Vec<u64>,
    /// Idle sessions besides those that are measured
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000])]
    sessions: Vec<u64>,
    /// Lease of the sessions
    #[arg(long, default_value_t = 30)]
    lease_seconds: u64,
    /// Rounds, each of every size in turn
    #[arg(long, default_value_t = 15)]
    rounds: u64,
    /// Operations of one size in one round
    #[arg(long, default_value_t = 40)]
    each: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Args { entries, versions, sessions, lease_seconds, rounds, each, .. } = args;
    let scale = Scale { entries, versions, sessions, lease_seconds, rounds, each };
    let mut code = ExitCode::SUCCESS;
    for what in &args.only {
        let growth = match what {
            What::Entries => Growth::Entries,
            What::Versions => Growth::Versions,
            What::Sessions => Growth::Sessions,
        };
        match measure(growth, &scale) {
            Ok(costs) => {
                println!("{}", table(&costs));
                for (cost, times) in grown(&costs) {
                    println!(
                        "NOT FLAT: {} with {} {}: {times:.2} times the processor time, at most {FLAT} are wanted",
                        cost.operation, cost.size, cost.of
                    );
                }
            }
            Err(e) => {
                eprintln!("growth: {growth:?}: {e:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
