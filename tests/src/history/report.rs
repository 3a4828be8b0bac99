//! Words for people: an operation as one line, a violation as a page.

use std::collections::{HashSet, VecDeque};

use super::model::{Config, Id};
use super::record::{Call, Content, Names, Operation, Outcome, Shown};

/// Possibilities that are described.
const SHOWN: usize = 4;
/// Earlier operations that are shown.
const EARLIER: usize = 30;

/// A file's content as who wrote it.
pub fn content(content: &Content) -> String {
    let pieces: Vec<String> = content.pieces.iter().map(|p| format!("{}:{}", p.client, p.sequence)).collect();
    format!("{} bytes [{}]", content.bytes, pieces.join(" "))
}

fn listing(names: &Names, bits: u32) -> String {
    let all: Vec<String> = (0..names.count()).filter(|n| bits & 1 << n != 0).map(|n| names.text(n)).collect();
    format!("{{{}}}", all.join(" "))
}

fn call(names: &Names, call: &Call) -> String {
    let word = call.word();
    match call {
        Call::List => word.into(),
        Call::Close { piece, bytes, .. } => format!("{word} of {}:{}, {bytes} bytes", piece.client, piece.sequence),
        Call::Rename { from, to } | Call::Link { from, to } => format!("{word} {} {}", names.text(*from), names.text(*to)),
        Call::Chmod { name, mode } => format!("{word} {} {mode:o}", names.text(*name)),
        Call::SetXattr { name, value } => format!("{word} {} = {value}", names.text(*name)),
        Call::Stat { name }
        | Call::Read { name }
        | Call::Open { name, .. }
        | Call::Unlink { name }
        | Call::GetXattr { name }
        | Call::MakeDir { name }
        | Call::RemoveDir { name } => format!("{word} {}", names.text(*name)),
    }
}

fn outcome(names: &Names, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Fine(Shown::Nothing) => "done".into(),
        Outcome::Fine(Shown::Attributes { number, directory: true, .. }) => format!("a directory, number {number}"),
        Outcome::Fine(Shown::Attributes { number, mode, links, bytes, .. }) => {
            format!("number {number}, mode {mode:o}, {links} links, {bytes} bytes")
        }
        Outcome::Fine(Shown::Content(it)) => content(it),
        Outcome::Fine(Shown::Listing(bits)) => listing(names, *bits),
        Outcome::Fine(Shown::Xattr(0)) => "no such attribute".into(),
        Outcome::Fine(Shown::Xattr(value)) => format!("value {value}"),
        Outcome::Absent => "ENOENT".into(),
        Outcome::Exists => "EEXIST".into(),
        Outcome::Stale => "ESTALE".into(),
        Outcome::Unknown(errno) => format!("error {errno}: may happen later, or never"),
        Outcome::Impossible(what) => what.clone(),
    }
}

fn milliseconds(ns: u64) -> String {
    format!("{}.{:06}", ns / 1_000_000, ns % 1_000_000)
}

/// One line.
pub fn operation(names: &Names, id: Id, op: &Operation) -> String {
    let (start, end) = (milliseconds(op.start), milliseconds(op.end));
    format!("#{id} client {} [{start} .. {end} ms] {} -> {}", op.client, call(names, &op.call), outcome(names, &op.outcome))
}

/// The names that an operation is about; a close is about what its client opened last.
fn about(op: &Operation, recent: &VecDeque<(Id, Operation)>) -> u32 {
    match op.call {
        Call::Close { .. } => {
            let opened = |o: &Operation| o.client == op.client && o.end <= op.start && matches!(o.call, Call::Open { .. });
            recent.iter().rev().find(|(_, o)| opened(o)).map_or(0, |(_, o)| o.call.names())
        }
        _ => op.call.names(),
    }
}

/// The page about `op`; `recent` are operations that have returned, `pending` those that have not.
pub fn violation(
    names: &Names,
    (id, op, why): (Id, &Operation, &str),
    configs: &HashSet<Config>,
    recent: &VecDeque<(Id, Operation)>,
    pending: &[(Id, &Operation)],
) -> String {
    let bits = about(op, recent);
    let mut out = format!("{}\n", operation(names, id, op));
    out += if why.is_empty() { "no file system could have answered this; just before, there was" } else { why };
    out += "\n";
    for (n, config) in configs.iter().take(SHOWN).enumerate() {
        out += &format!("  possibility {} of {}: names {}\n", n + 1, configs.len(), listing(names, config.listing()));
        if op.call != Call::List {
            (0..names.count()).filter(|n| bits & 1 << n != 0).for_each(|n| out += &format!("    {}: {}\n", names.text(n), config.describe(n)));
        }
    }
    out += "the last operations there that returned before:\n";
    let concerns = |o: &Operation| about(o, recent) & bits != 0;
    let mut lines: Vec<String> = recent
        .iter()
        .rev()
        .filter(|(i, o)| *i != id && concerns(o) && (op.call != Call::List || !o.call.only_reads()))
        .take(EARLIER)
        .map(|(i, o)| operation(names, *i, o))
        .collect();
    lines.reverse();
    lines.iter().for_each(|line| out += &format!("  {line}\n"));
    out += "under way then:\n";
    pending.iter().filter(|(i, o)| *i != id && concerns(o)).for_each(|(i, o)| out += &format!("  {}\n", operation(names, *i, o)));
    out
}
