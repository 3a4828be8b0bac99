//! The daemon: reads flags and configuration, starts a role, prints an error once.
//!
//! Exit codes: 0 after a clean stop, 1 where the role failed, 2 where it was told something that makes no sense.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use dfs_common::{ErrorKind, Result};
use dfs_server::cli::{Cli, Command, Common};
use dfs_server::{all, daemon};

const FAILED: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Directory(args) => {
            role(args.with_file(), |a| &a.common, |a| a.settings(), |(place, config)| daemon::block_on(all::run_directory(place, config)))
        }
        Command::Lock(args) => role(
            args.with_file(),
            |a| &a.common,
            |a| a.settings(),
            |(place, config, directory)| daemon::block_on(all::run_lock(place, config, &directory)),
        ),
        Command::File(args) => role(
            args.with_file(),
            |a| &a.common,
            |a| a.settings(),
            |(place, settings, directory)| daemon::block_on(all::run_file(place, settings, &directory)),
        ),
        Command::All(args) => role(args.with_file(), |a| &a.common, |a| a.settings(), |settings| daemon::block_on(all::run_all(settings))),
        Command::Man { directory } => std::fs::create_dir_all(&directory)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory))
            .map_err(|e| (FAILED, format!("man pages in {}: {e}", directory.display()))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("dfs-server: {message}");
            ExitCode::from(code)
        }
    }
}

/// Settles the settings, starts the log, runs the role.
fn role<A, S>(
    args: Result<A>,
    common: impl Fn(&A) -> &Common,
    settings: impl Fn(&A) -> Result<S>,
    run: impl FnOnce(S) -> Result<()>,
) -> Result<(), (u8, String)> {
    let usage = |e: dfs_common::Error| (USAGE, e.to_string());
    let args = args.map_err(usage)?;
    let level = common(&args).level().map_err(usage)?;
    let settings = settings(&args).map_err(usage)?;
    env_logger::Builder::new().filter_level(level).init();
    run(settings).map_err(|e| (if e.kind() == ErrorKind::Invalid { USAGE } else { FAILED }, e.to_string()))
}
