//! The `dfs` command line: every job a person or a script does without a mount.
//!
//! It owns arguments, output and exit codes; it has no private server calls, everything
//! goes through the clients in dfs-common. One run is one session, which ends with it.
//!
//! `args` says what may be typed, `session` holds what the commands of a run share, and
//! there is one file per family of commands.

mod args;
mod bench;
mod content;
mod edit;
mod failure;
mod help;
mod locks;
mod ls;
mod names;
mod past;
mod progress;
mod reasons;
mod recover;
mod render;
mod session;
mod shell;
mod status;
mod upload;
mod why;

use std::process::ExitCode;

use clap::Parser;
use dfs_common::ErrorKind;
use dfs_common::clients::behalf::Behalf;

use args::{Arguments, Command};
use failure::{Failure, Outcome};
use session::Session;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let Arguments { globals, command } = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("DFS_LOG", "error")).init();
    let local = match &command {
        Command::Man(man) => Some(help::man(&man.directory)),
        Command::Completions(completions) => Some(help::completions(completions.shell)),
        Command::Instructions => Some(render::text(help::INSTRUCTIONS)),
        Command::Bench(arguments) => Some(bench::bench(&globals, arguments)),
        _ => None,
    };
    let code = match local {
        Some(outcome) => outcome.map_or_else(|e| fail(&e, globals.json), |()| 0),
        None => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let code = match Behalf::of_this_process() {
                    Some(user) => runtime.block_on(user.scope(in_session(&globals, &command))),
                    None => fail(&Failure::new(ErrorKind::Internal, "/proc/self/status does not say who runs this"), globals.json),
                };
                // A thread that waits for the keyboard must not hold up the end.
                runtime.shutdown_background();
                code
            }
            Err(e) => fail(&e.into(), globals.json),
        },
    };
    ExitCode::from(code)
}

fn fail(failure: &Failure, json: bool) -> u8 {
    failure.print(json);
    failure.exit_code()
}

/// Opens a session, carries out `command`, and gives everything back, also when interrupted.
async fn in_session(globals: &args::Globals, command: &Command) -> u8 {
    // It must work where no session can be opened.
    if let Command::Why(arguments) = command {
        return why::why(globals, arguments).await.map_or_else(|e| fail(&e, globals.json), |()| 0);
    }
    let session = match Session::open(globals).await {
        Ok(session) => session,
        Err(e) => return fail(&e, globals.json),
    };
    let outcome = match command {
        // The shell handles interrupts itself: they end a command, not the run.
        Command::Shell => shell::shell(&session).await,
        command => tokio::select! {
            outcome = execute(&session, command) => outcome,
            _ = session.interrupted() => {
                session.abandon().await;
                Err(Failure::new(ErrorKind::Interrupted, "interrupted"))
            }
        },
    };
    if let Err(e) = outcome {
        session.report(&e);
    }
    session.close().await;
    session.take_exit()
}

/// One command, for a run or for a line of the shell.
async fn execute(session: &Session, command: &Command) -> Outcome {
    match command {
        Command::Ls(arguments) => ls::ls(session, arguments).await,
        Command::Stat(arguments) => ls::stat(session, arguments).await,
        Command::Read(arguments) => content::read(session, arguments).await,
        Command::Write(arguments) => content::write(session, arguments).await,
        Command::Create(arguments) => names::create(session, arguments).await,
        Command::Edit(arguments) => edit::edit(session, arguments).await,
        Command::Rm(arguments) => names::rm(session, arguments).await,
        Command::Mkdir(arguments) => names::mkdir(session, arguments).await,
        Command::Mv(arguments) => names::mv(session, arguments).await,
        Command::Ln(arguments) => names::ln(session, arguments).await,
        Command::Locks(arguments) => locks::locks(session, arguments).await,
        Command::Status(arguments) => status::status(session, arguments).await,
        Command::Sessions => status::sessions(session).await,
        Command::Servers => status::servers(session).await,
        Command::Why(arguments) => why::why(&session.globals, arguments).await,
        Command::History(arguments) => past::history(session, arguments).await,
        Command::Restore(arguments) => past::restore(session, arguments).await,
        Command::Undelete(arguments) => past::undelete(session, arguments).await,
        Command::Recover(arguments) => recover::recover(session, arguments).await,
        Command::Man(arguments) => help::man(&arguments.directory),
        Command::Completions(arguments) => help::completions(arguments.shell),
        Command::Instructions => render::text(help::INSTRUCTIONS),
        // It would hold up the session.
        Command::Bench(_) => Err(Failure::new(ErrorKind::Invalid, "a benchmark runs outside of the shell: dfs bench")),
        Command::Shell => Err(Failure::new(ErrorKind::Invalid, "a shell runs no shell")),
    }
}
