//! Runs random operations on one directory through several mounts, and checks that a
//! single file system could have answered them so; see `dfs_tests::history`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dfs_tests::Rng;
use dfs_tests::history::{Names, Run};

/// A stretch between two checks.
const STRETCH: Duration = Duration::from_secs(10);

/// Checks that what several mounts show of one directory is one file system: no stale, torn or lost content, names or attributes.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How long the clients work
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Chooses the operations [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Names of files that the clients share, 2 to 20; fewer, and they meet more often
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(2..=20))]
    names: u8,
    /// The same directory on different mounts, one client each
    #[arg(required = true, value_name = "DIR", num_args = 2..=8)]
    directories: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("histories: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// False where there was a violation, or a client saw errors that nobody ordered.
fn run(args: &Args) -> Result<bool> {
    for directory in &args.directories {
        ensure!(directory.is_dir(), "{} is no directory", directory.display());
    }
    let seed = args.seed.unwrap_or_else(|| Rng::announced("histories").next_u64() >> 32);
    let mounts: Vec<&Path> = args.directories.iter().map(PathBuf::as_path).collect();
    let name = format!("histories-{}", std::process::id());
    let directories = Run::shared(&mounts, &name).with_context(|| format!("making {name}"))?;
    let mut run = Run::new(&directories, Names::of_files(args.names), seed);
    let start = Instant::now();
    let mut violation = None;
    while violation.is_none() && start.elapsed() < Duration::from_secs(args.seconds) {
        let left = Duration::from_secs(args.seconds).saturating_sub(start.elapsed());
        violation = run.stretch(left.min(STRETCH), || {}).err();
    }
    println!("seed {seed}, {} clients, {} names: {}", directories.len(), args.names, run.stats);
    if let Some(violation) = violation {
        println!("VIOLATION: {violation}");
        return Ok(false);
    }
    std::fs::remove_dir_all(&directories[0]).ok();
    println!("no violation");
    Ok(true)
}
