//! What `dfs why` has found, for a person.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_common::api::directory::WaitRow;
use dfs_common::api::lock::{Owner, RangeRow};
use dfs_common::clients::steps::Target;
use dfs_common::ids::{InodeId, SessionId};
use dfs_common::name;

use super::failure::Outcome;
use super::why::Findings;
use super::{locks, render};
use crate::control::Report;
use crate::vfs::waits::{StepRow, WaitingRow};

pub(super) fn print(findings: &Findings, target: Option<&OsStr>) -> Outcome {
    let waits: Vec<Vec<String>> =
        findings.mounts.iter().flat_map(|mount| mount.waits.iter().map(move |wait| wait_columns(findings, mount, wait))).collect();
    let nothing = waits.is_empty()
        && findings.changes.is_empty()
        && findings.locks.iter().all(|lock| lock.queue.is_empty())
        && !findings.programs.iter().any(|lock| lock.waits);
    if nothing {
        let what = target.map(|target| format!(" for {}", name::encode(target.as_bytes()))).unwrap_or_default();
        render::text(&format!("nothing waits{what}\n"))?;
    }
    if !waits.is_empty() {
        render::table(&["MOUNT", "PID", "PROGRAM", "OPERATION", "FILE", "SINCE", "WAITS FOR"], &[1, 5], waits)?;
    }
    if !findings.changes.is_empty() {
        render::text("\nChanges that wait until clients have acknowledged them:\n")?;
        let rows = findings.changes.iter().map(|change| change_columns(findings, change)).collect();
        render::table(&["OPERATION", "INODES", "SINCE", "BY", "WAITS FOR"], &[2], rows)?;
    }
    if !findings.locks.is_empty() || !findings.programs.is_empty() {
        render::text("\nLocks:\n")?;
        locks::print(&findings.locks, &findings.programs)?;
    }
    for silent in &findings.silent {
        let verb = if silent.refused { "refuses" } else { "does not answer" };
        render::text(&format!("{} {verb}: {}\n", silent.who, silent.problem))?;
    }
    Ok(())
}

fn wait_columns(findings: &Findings, mount: &Report, wait: &WaitingRow) -> Vec<String> {
    let file = match (&wait.path, &wait.name, wait.ino) {
        (Some(path), ..) => path.clone(),
        (None, Some(name), Some(ino)) => format!("{name} in inode {ino}"),
        (None, _, Some(ino)) => format!("inode {ino}"),
        (None, ..) => String::new(),
    };
    let mut reasons: Vec<String> = wait.steps.iter().map(|step| reason(findings, mount, wait, step)).collect();
    // Blocks that are moved in parallel wait for the same.
    reasons.dedup();
    if reasons.is_empty() {
        reasons.push("nobody but the mount".to_owned());
    }
    if let Some(problem) = &wait.problem {
        reasons.push(format!("last problem: {problem}"));
    }
    let pid = if wait.pid == 0 { String::new() } else { wait.pid.to_string() };
    vec![mount.mountpoint.clone(), pid, wait.program.clone(), wait.operation.clone(), file, render::span(wait.since_ms), reasons.join("; ")]
}

fn reason(findings: &Findings, mount: &Report, wait: &WaitingRow, step: &StepRow) -> String {
    match &step.target {
        Target::Answer { server, resource } => {
            let tries = if step.tries > 1 { format!(", attempt {}", step.tries) } else { String::new() };
            let concerned = |change: &&WaitRow| {
                change.session == Some(mount.session) && change.operation == *resource && wait.ino.is_some_and(|ino| change.inodes.contains(&ino))
            };
            let held_up = findings.changes.iter().find(concerned).map(|change| format!(", which waits for {}", clients(findings, &change.waits_for)));
            format!("{server} to answer {resource}{tries}{}", held_up.unwrap_or_default())
        }
        Target::Lock { server, ino } => lock_reason(findings, server, *ino),
        Target::Here { what } => what.clone(),
    }
}

fn lock_reason(findings: &Findings, server: &str, ino: InodeId) -> String {
    let mine = |row: &&RangeRow| row.ino == ino;
    if findings.programs.iter().filter(mine).any(|row| row.waits)
        && let Some(holder) = findings.programs.iter().filter(mine).find(|row| !row.waits)
    {
        return format!("a program's lock, held by {} for {}", owner(&holder.process), render::span(holder.age_ms));
    }
    if let Some(row) = findings.locks.iter().find(|row| row.ino == ino) {
        return format!("the write lock, held by {} for {}, {} in line", owner(&row.holder.owner), render::span(row.holder.age_ms), row.queue.len());
    }
    let silent = findings.silent.iter().any(|silent| silent.who == server);
    format!("the write lock of inode {ino} from {server}{}", if silent { ", which does not answer" } else { "" })
}

fn owner(owner: &Owner) -> String {
    format!("{} (process {} on {})", owner.program, owner.pid, owner.host)
}

fn change_columns(findings: &Findings, change: &WaitRow) -> Vec<String> {
    let inodes: Vec<String> = change.inodes.iter().map(ToString::to_string).collect();
    let by = change.session.map_or_else(|| "no session".to_owned(), |session| client(findings, session));
    let operation = change.operation.rsplit('/').next().unwrap_or_default().to_owned();
    vec![operation, inodes.join(", "), render::span(change.since_ms), by, clients(findings, &change.waits_for)]
}

fn clients(findings: &Findings, sessions: &[SessionId]) -> String {
    if sessions.is_empty() {
        return "clients from before the restart of the service".to_owned();
    }
    sessions.iter().map(|&session| client(findings, session)).collect::<Vec<_>>().join("; ")
}

/// A client as a person finds it.
fn client(findings: &Findings, session: SessionId) -> String {
    match findings.sessions.iter().find(|row| row.session == session) {
        Some(row) => {
            let who = &row.client;
            let place = if who.mountpoint.is_empty() { String::new() } else { format!(", {}", who.mountpoint) };
            format!("session {session} ({}, process {} on {}{place}, heard {} ago)", who.program, who.pid, who.host, render::span(row.idle_ms))
        }
        None => format!("session {session}"),
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::api::directory::{OpenSession, SessionRow};
    use dfs_common::api::lock::{Holder, LockRow};
    use dfs_common::ids::Token;

    use super::*;
    use crate::cli::why::Silent;

    fn mount() -> Report {
        Report {
            source: "http://d:1".into(),
            lock_url: "http://l:1".into(),
            mountpoint: "/mnt".into(),
            session: SessionId(3),
            pid: 1,
            program: "dfs-mount".into(),
            believed_ms: 0,
            nodes: 1,
            open: 0,
            recovered: 0,
            set_aside: 0,
            uploaded: 0,
            waits: Vec::new(),
        }
    }

    fn wait(target: Target, tries: u32) -> WaitingRow {
        WaitingRow {
            operation: "open".into(),
            pid: 42,
            program: "vi".into(),
            thread: 42,
            ino: Some(InodeId(5)),
            name: None,
            path: Some("/f".into()),
            since_ms: 2000,
            steps: vec![StepRow { target, since_ms: 1500, tries }],
            problem: None,
        }
    }

    fn last_column(findings: &Findings, wait: &WaitingRow) -> String {
        wait_columns(findings, &mount(), wait).pop().unwrap()
    }

    #[test]
    fn a_lock_names_its_holder_or_who_does_not_tell() {
        let waiting = wait(Target::Lock { server: "http://l:1".into(), ino: InodeId(5) }, 1);
        let mut findings = Findings::default();
        assert_eq!(last_column(&findings, &waiting), "the write lock of inode 5 from http://l:1");
        findings.silent.push(Silent { who: "http://l:1".into(), refused: false, problem: "x".into() });
        assert_eq!(last_column(&findings, &waiting), "the write lock of inode 5 from http://l:1, which does not answer");
        let owner = Owner { host: "b".into(), pid: 7, program: "emacs".into() };
        let holder = Holder { session: SessionId(1), owner, token: Token(1), age_ms: 5000 };
        findings.locks.push(LockRow { ino: InodeId(5), holder, queue: Vec::new(), fencing: false });
        assert_eq!(last_column(&findings, &waiting), "the write lock, held by emacs (process 7 on b) for 5 s, 0 in line");
    }

    #[test]
    fn an_answer_names_who_holds_it_up() {
        let mut waiting = wait(Target::Answer { server: "http://d:1".into(), resource: "/v1/directory/remove".into() }, 3);
        waiting.problem = Some("refused".into());
        let mut findings = Findings::default();
        assert_eq!(last_column(&findings, &waiting), "http://d:1 to answer /v1/directory/remove, attempt 3; last problem: refused");
        findings.changes.push(WaitRow {
            operation: "/v1/directory/remove".into(),
            session: Some(SessionId(3)),
            inodes: vec![InodeId(5)],
            waits_for: vec![SessionId(8)],
            since_ms: 1,
        });
        let client = OpenSession { host: "b".into(), pid: 9, program: "dfs-mount 1".into(), mountpoint: "/m".into() };
        findings.sessions.push(SessionRow { session: SessionId(8), client, idle_ms: 4000, age_ms: 9000, leases: 1 });
        assert!(last_column(&findings, &waiting).contains("which waits for session 8 (dfs-mount 1, process 9 on b, /m, heard 4 s ago)"));
    }
}
