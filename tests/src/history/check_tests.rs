//! Hand-made histories, good and bad.

use super::super::record::{Call, Content, Piece, Shown};
use super::*;

const NAMES: Names = Names { files: 4, links: 2, directories: 2 };
const A: u8 = 0;
const B: u8 = 1;
const H: u8 = 4;
const D: u8 = 6;

fn done() -> Outcome {
    Outcome::Fine(Shown::Nothing)
}

fn op(client: u8, (start, end): (u64, u64), call: Call, outcome: Outcome) -> Operation {
    Operation { client, start, end, call, outcome }
}

fn piece(client: u8, sequence: u32) -> Piece {
    Piece { client, sequence }
}

/// Open, then close, of 100 bytes, by `client` within `at`.
fn write(client: u8, (start, end): (u64, u64), name: u8, sequence: u32) -> [Operation; 2] {
    let middle = (start + end) / 2;
    let close = Call::Close { piece: piece(client, sequence), bytes: 100, append: false };
    [op(client, (start, middle), Call::Open { name, append: false }, done()), op(client, (middle + 1, end), close, done())]
}

fn append(client: u8, (start, end): (u64, u64), name: u8, sequence: u32) -> [Operation; 2] {
    let [mut open, mut close] = write(client, (start, end), name, sequence);
    open.call = Call::Open { name, append: true };
    close.call = Call::Close { piece: piece(client, sequence), bytes: 100, append: true };
    [open, close]
}

fn read(client: u8, at: (u64, u64), name: u8, pieces: &[(u8, u32)]) -> Operation {
    let pieces: Vec<Piece> = pieces.iter().map(|&(c, s)| piece(c, s)).collect();
    let content = Content { bytes: 100 * pieces.len() as u64, pieces: pieces.into() };
    op(client, at, Call::Read { name }, Outcome::Fine(Shown::Content(content)))
}

fn stat(client: u8, at: (u64, u64), name: u8, mode: u32, links: u64, bytes: u64) -> Operation {
    op(client, at, Call::Stat { name }, Outcome::Fine(Shown::Attributes { number: 7, directory: false, mode, links, bytes }))
}

fn list(client: u8, at: (u64, u64), bits: u32) -> Operation {
    op(client, at, Call::List, Outcome::Fine(Shown::Listing(bits)))
}

fn check(parts: &[&[Operation]]) -> Result<(), Box<Violation>> {
    Checker::new(NAMES).extend(parts.concat())
}

#[track_caller]
fn good(parts: &[&[Operation]]) {
    check(parts).unwrap_or_else(|v| panic!("{v}"));
}

/// The operation that must be found is the last argument.
#[track_caller]
fn bad(parts: &[&[Operation]], found: &Operation) {
    let violation = check(&[parts.concat().as_slice(), std::slice::from_ref(found)].map(|p| p as &[Operation])).expect_err("it is wrong");
    assert_eq!(violation.operation, *found, "{violation}");
    assert!(violation.text.contains("client"), "{violation}");
}

#[test]
fn a_read_after_a_close_sees_it() {
    let first = write(0, (0, 10), A, 1);
    good(&[&first, &[read(1, (20, 30), A, &[(0, 1)])]]);
    bad(&[&first, &write(0, (11, 20), A, 2)], &read(1, (21, 30), A, &[(0, 1)]));
    bad(&[&first], &read(1, (21, 30), A, &[]));
    bad(&[&first], &op(1, (21, 30), Call::Read { name: A }, Outcome::Absent));
    bad(&[], &read(1, (21, 30), A, &[]));
}

#[test]
fn a_read_beside_a_close_sees_either() {
    let writes = [write(0, (0, 10), A, 1), write(0, (20, 40), A, 2)].concat();
    good(&[&writes, &[read(1, (25, 35), A, &[(0, 1)])]]);
    good(&[&writes, &[read(1, (25, 35), A, &[(0, 2)])]]);
    // But not first the new one and then the old one.
    bad(&[&writes, &[read(1, (31, 33), A, &[(0, 2)])]], &read(2, (34, 36), A, &[(0, 1)]));
    // Before the close is called, nobody sees its content.
    bad(&[&writes], &read(1, (21, 29), A, &[(0, 2)]));
}

#[test]
fn a_created_file_is_empty_until_its_close() {
    let first = write(0, (0, 10), A, 1);
    good(&[&first, &[read(1, (2, 3), A, &[])]]);
    good(&[&first, &[op(1, (2, 3), Call::Read { name: A }, Outcome::Absent), read(1, (4, 5), A, &[])]]);
    bad(&[&first], &op(1, (6, 7), Call::Read { name: A }, Outcome::Absent));
    // A file that was there keeps its content meanwhile.
    bad(&[&first, &write(0, (20, 40), A, 2)], &read(1, (31, 32), A, &[]));
}

#[test]
fn appends_that_get_lost_are_found() {
    let first = write(0, (0, 10), A, 1);
    let more = [append(1, (20, 30), A, 1), append(2, (31, 40), A, 1)].concat();
    good(&[&first, &more, &[read(3, (50, 60), A, &[(0, 1), (1, 1), (2, 1)])]]);
    bad(&[&first, &more], &read(3, (50, 60), A, &[(0, 1), (2, 1)]));
    bad(&[&first, &more], &read(3, (50, 60), A, &[(0, 1), (2, 1), (1, 1)]));
    bad(&[&first, &more], &stat(3, (50, 60), A, 0o644, 1, 200));
}

#[test]
fn names_come_and_go_at_once() {
    let first = write(0, (0, 10), A, 1);
    let renamed = op(0, (20, 30), Call::Rename { from: A, to: B }, done());
    good(&[&first, &[renamed.clone(), list(1, (21, 29), 1 << A), list(2, (31, 40), 1 << B)]]);
    bad(&[&first, std::slice::from_ref(&renamed)], &list(1, (31, 40), 1 << A));
    bad(&[&first, std::slice::from_ref(&renamed)], &list(1, (25, 26), 1 << A | 1 << B));
    bad(&[&first, std::slice::from_ref(&renamed)], &list(1, (25, 26), 0));
    bad(&[&first, std::slice::from_ref(&renamed)], &stat(1, (31, 40), A, 0o644, 1, 100));
    bad(&[&first, &[renamed, stat(1, (25, 26), B, 0o644, 1, 100)]], &read(2, (27, 28), A, &[(0, 1)]));
}

#[test]
fn one_of_two_removers_wins() {
    let first = write(0, (0, 10), A, 1);
    let unlink = |client, outcome| op(client, (20, 30), Call::Unlink { name: A }, outcome);
    good(&[&first, &[unlink(0, done()), unlink(1, Outcome::Absent)]]);
    assert!(check(&[&first, &[unlink(0, done()), unlink(1, done())]]).is_err());
    assert!(check(&[&first, &[unlink(0, Outcome::Absent), unlink(1, Outcome::Absent)]]).is_err());
}

#[test]
fn a_path_call_may_act_after_its_name_is_gone() {
    let first = write(0, (0, 10), A, 1);
    let chmod = op(1, (20, 60), Call::Chmod { name: A, mode: 0o600 }, done());
    let rest = [op(0, (21, 30), Call::Rename { from: A, to: B }, done()), stat(2, (31, 40), B, 0o644, 1, 100), stat(2, (61, 70), B, 0o600, 1, 100)];
    good(&[&first, std::slice::from_ref(&chmod), &rest]);
    // Resolved, removed: it has gone, or acts on what nobody sees any more.
    let remove = op(0, (21, 30), Call::Unlink { name: A }, done());
    good(&[&first, &[chmod.clone(), remove.clone()]]);
    good(&[&first, &[op(1, (20, 60), Call::GetXattr { name: A }, Outcome::Absent), remove.clone()]]);
    // But not once it was gone before.
    bad(&[&first, &[remove]], &op(1, (31, 60), Call::Chmod { name: A, mode: 0o600 }, done()));
    // And once done it is done.
    bad(&[&first, &[chmod]], &stat(2, (61, 70), A, 0o644, 1, 100));
}

#[test]
fn a_stat_may_show_what_is_written_to_a_file_after_its_name_is_gone() {
    let first = write(0, (0, 10), A, 1);
    let [open, mut close] = append(2, (20, 30), A, 1);
    (close.start, close.end) = (40, 45);
    let rest = [open, op(0, (31, 35), Call::Unlink { name: A }, done()), close];
    for bytes in [100, 200] {
        good(&[&first, &[stat(1, (11, 12), A, 0o644, 1, 100)], &rest, &[stat(1, (22, 60), A, 0o644, 0, bytes)]]);
        good(&[&first, &rest, &[stat(1, (22, 60), A, 0o644, 0, bytes)]]);
    }
    bad(&[&first, &rest], &stat(1, (22, 60), A, 0o644, 1, 200));
    bad(&[&first, &rest], &stat(1, (22, 60), A, 0o644, 0, 300));
    bad(&[&first, &rest], &stat(1, (36, 60), A, 0o644, 0, 200));
}

#[test]
fn links_share_everything() {
    let first = write(0, (0, 10), A, 1);
    let link = op(1, (11, 20), Call::Link { from: A, to: H }, done());
    let base = [first.to_vec(), vec![link]].concat();
    good(&[&base, &write(2, (21, 30), H, 1), &[read(1, (31, 40), A, &[(2, 1)]), stat(1, (41, 50), A, 0o644, 2, 100)]]);
    bad(&[&base, &write(2, (21, 30), H, 1)], &read(1, (31, 40), A, &[(0, 1)]));
    bad(&[&base], &stat(1, (31, 40), A, 0o644, 1, 100));
    bad(&[&base], &op(1, (31, 40), Call::Link { from: A, to: H }, done()));
    good(&[&base, &[op(1, (31, 40), Call::Link { from: A, to: H }, Outcome::Exists)]]);
    bad(
        &[&base, &[op(1, (31, 40), Call::SetXattr { name: H, value: 5 }, done())]],
        &op(2, (41, 50), Call::GetXattr { name: A }, Outcome::Fine(Shown::Xattr(0))),
    );
}

#[test]
fn an_inode_number_stands_for_one_file() {
    let first = write(0, (0, 10), A, 1);
    let replaced = [op(0, (30, 40), Call::Unlink { name: A }, done())];
    let second = write(0, (41, 50), A, 2);
    bad(
        &[
            &first,
            &[stat(1, (11, 20), A, 0o644, 1, 100)],
            &replaced,
            &second,
            &[stat(2, (51, 52), B, 0, 0, 0)][..0],
            &[op(1, (53, 54), Call::Link { from: A, to: H }, done())],
        ],
        &op(1, (60, 70), Call::Stat { name: H }, Outcome::Fine(Shown::Attributes { number: 7, directory: false, mode: 0o644, links: 1, bytes: 100 })),
    );
    let mut other = stat(2, (60, 70), A, 0o644, 1, 100);
    good(&[&first, &[stat(1, (11, 20), A, 0o644, 1, 100)], &[other.clone()]]);
    other.outcome = Outcome::Fine(Shown::Attributes { number: 8, directory: false, mode: 0o644, links: 1, bytes: 100 });
    bad(&[&first, &[stat(1, (11, 20), A, 0o644, 1, 100)]], &other);
}

#[test]
fn directories_are_made_once() {
    let make = |client, at, outcome| op(client, at, Call::MakeDir { name: D }, outcome);
    good(&[&[
        make(0, (0, 10), done()),
        make(1, (5, 9), Outcome::Exists),
        op(1, (11, 20), Call::RemoveDir { name: D }, done()),
        list(0, (21, 22), 0),
    ]]);
    assert!(check(&[&[make(0, (0, 10), done()), make(1, (5, 9), done())]]).is_err());
    bad(&[&[make(0, (0, 10), done())]], &op(1, (11, 20), Call::RemoveDir { name: D }, Outcome::Absent));
}

#[test]
fn an_unclear_outcome_happens_at_any_time_or_never() {
    let first = write(0, (0, 10), A, 1);
    let unclear = [op(1, (11, 20), Call::Unlink { name: A }, Outcome::Unknown(110))];
    good(&[&first, &unclear, &[list(2, (21, 30), 1 << A), list(2, (31, 40), 1 << A)]]);
    good(&[&first, &unclear, &[list(2, (21, 30), 1 << A), list(2, (31, 40), 0)]]);
    bad(&[&first, &unclear, &[list(2, (21, 30), 0)]], &list(2, (31, 40), 1 << A));
    let mut torn = write(1, (41, 50), A, 1);
    torn[1].outcome = Outcome::Unknown(5);
    good(&[&first, &torn, &write(1, (60, 70), B, 2), &[read(2, (80, 81), A, &[(0, 1)]), read(2, (82, 83), A, &[(1, 1)])]]);
    bad(&[&first, &torn, &[read(2, (82, 83), A, &[(1, 1)])]], &read(2, (84, 85), A, &[(0, 1)]));
    // An open whose result is unclear may have made its file, empty.
    let open = [op(3, (90, 95), Call::Open { name: B, append: false }, Outcome::Unknown(110))];
    good(&[&open, &[op(2, (96, 97), Call::Read { name: B }, Outcome::Absent), read(2, (98, 99), B, &[])]]);
}

#[test]
fn a_stale_answer_says_nothing_but_its_open_may_have_made_the_file() {
    let stale = |call| [op(1, (10, 20), call, Outcome::Stale)];
    good(&[&stale(Call::Open { name: A, append: false }), &[list(2, (30, 40), 1 << A)]]);
    good(&[&stale(Call::Open { name: A, append: false }), &[list(2, (30, 40), 0)]]);
    bad(&[&stale(Call::Open { name: A, append: false }), &[list(2, (30, 40), 0)]], &list(2, (50, 60), 1 << A));
    bad(&[&write(0, (0, 5), A, 1), &stale(Call::Unlink { name: A })], &list(2, (30, 40), 0));
}

#[test]
fn a_rename_of_what_another_one_moved_there_meanwhile_changes_nothing() {
    let first = write(0, (0, 10), A, 1);
    let both = [op(1, (20, 40), Call::Rename { from: A, to: B }, done()), op(2, (25, 35), Call::Rename { from: A, to: B }, done())];
    good(&[&first, &both, &[list(0, (50, 60), 1 << B)]]);
    bad(&[&first, &both], &list(0, (50, 60), 1 << A));
}

#[test]
fn what_cannot_be_is_said_at_once() {
    bad(&[], &op(1, (0, 1), Call::List, Outcome::Impossible("an entry that nobody made".into())));
}

#[test]
fn a_history_may_come_in_pieces() {
    let mut checker = Checker::new(NAMES);
    checker.extend(write(0, (0, 10), A, 1).to_vec()).unwrap();
    checker.extend(vec![op(1, (11, 20), Call::Unlink { name: A }, Outcome::Unknown(110))]).unwrap();
    checker.extend(vec![read(2, (30, 40), A, &[(0, 1)])]).unwrap();
    assert_eq!(checker.open_ends(), 1);
    checker.extend(vec![list(2, (50, 60), 0)]).unwrap();
    checker.extend(vec![read(2, (70, 80), A, &[(0, 1)])]).unwrap_err();
}

#[test]
fn many_clients_and_many_operations_are_checked_in_time() {
    // Eight clients that overlap all the time, each on a name of its own and on one that all share.
    let mut log = Vec::new();
    for round in 0..2_000_u64 {
        for client in 0..8_u8 {
            let at = round * 100 + u64::from(client);
            log.push(op(client, (at, at + 90), Call::Chmod { name: client % 4, mode: 0o600 }, Outcome::Absent));
        }
    }
    let start = std::time::Instant::now();
    let mut checker = Checker::new(NAMES);
    checker.extend(log).unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}, up to {} possibilities", start.elapsed(), checker.most());
}

/// What a call may be answered, the right thing among it where `shown` is what is so.
fn outcomes(call: &Call, sequence: u32) -> Vec<Outcome> {
    let pieces: Vec<Piece> = (0..3).flat_map(|c| (0..=sequence).map(move |s| piece(c, s))).collect();
    let contents = std::iter::once(Content::default())
        .chain(pieces.iter().map(|&p| Content::of(p, 100)))
        .chain(pieces.iter().flat_map(|&p| pieces.iter().map(move |&q| Content::of(p, 100).with(q, 100))));
    let mut all = match call {
        Call::Read { .. } => contents.map(|c| Outcome::Fine(Shown::Content(c))).collect(),
        Call::List => (0..1 << 7).map(|bits| Outcome::Fine(Shown::Listing(bits))).collect(),
        Call::GetXattr { .. } => (0..4).map(|value| Outcome::Fine(Shown::Xattr(value))).collect(),
        _ => vec![done()],
    };
    if !matches!(call, Call::List | Call::Close { .. }) {
        all.push(Outcome::Absent);
    }
    if matches!(call, Call::Link { .. } | Call::MakeDir { .. }) {
        all.push(Outcome::Exists);
    }
    all
}

fn random_call(rng: &mut crate::Rng) -> Call {
    let name = *rng.pick(&[A, B, H]);
    match rng.below(12) {
        0 => Call::Read { name },
        1 => Call::List,
        2 => Call::GetXattr { name },
        3 | 4 => Call::Open { name, append: false },
        5 => Call::Open { name, append: true },
        6 => Call::Unlink { name },
        7 | 8 => {
            if rng.one_in(2) {
                Call::Rename { from: A, to: B }
            } else {
                Call::Rename { from: B, to: A }
            }
        }
        9 => Call::Link { from: *rng.pick(&[A, B]), to: H },
        10 => Call::SetXattr { name, value: 1 + rng.below(3) as u32 },
        _ => {
            if rng.one_in(2) {
                Call::MakeDir { name: D }
            } else {
                Call::RemoveDir { name: D }
            }
        }
    }
}

/// A history that is right, of three clients that overlap: each operation happens at an instant of its own.
fn random_history(rng: &mut crate::Rng, count: u64) -> Vec<Operation> {
    let mut truth = Checker::new(NAMES);
    let (mut history, mut free, mut open) = (Vec::new(), [0_u64; 3], [None; 3]);
    for n in 1..=count {
        let client = rng.below(3) as u8;
        let (at, lower) = (n * 20, free[usize::from(client)]);
        if lower >= at {
            continue;
        }
        let sequence = n as u32 % 3;
        let call = match open[usize::from(client)].take() {
            Some(append) => Call::Close { piece: piece(client, sequence), bytes: 100, append },
            None => random_call(rng),
        };
        let right = outcomes(&call, 2).into_iter().find(|outcome| {
            let mut trial = Checker { configs: truth.configs.clone(), ..Checker::new(NAMES) };
            trial.last = truth.last;
            let fits = trial.extend(vec![op(client, (at, at), call.clone(), outcome.clone())]).is_ok();
            if fits {
                truth = trial;
            }
            fits
        });
        let Some(outcome) = right else { continue };
        if let (Call::Open { append, .. }, Outcome::Fine(_)) = (&call, &outcome) {
            open[usize::from(client)] = Some(*append);
        }
        let (start, end) = (at - rng.below((at - lower).min(90)), at + rng.below(90));
        free[usize::from(client)] = end;
        history.push(op(client, (start, end), call, outcome));
    }
    history
}

#[test]
fn right_histories_pass_and_leaving_out_what_does_not_matter_changes_no_verdict() {
    let (mut wrong, mut rng) = (0, crate::Rng::announced("histories"));
    for _ in 0..400 {
        let mut history = random_history(&mut rng, 24);
        Checker::new(NAMES).extend(history.clone()).unwrap_or_else(|v| panic!("this was made to be right: {v}"));
        let at = rng.below(history.len() as u64) as usize;
        let call = history[at].call.clone();
        if !matches!(call, Call::Open { .. }) {
            let others = outcomes(&call, 2);
            history[at].outcome = if rng.one_in(5) && !call.only_reads() { Outcome::Unknown(5) } else { rng.pick(&others).clone() };
        }
        let quick = Checker::new(NAMES).extend(history.clone());
        let thorough = Checker { exhaustive: true, ..Checker::new(NAMES) }.extend(history);
        assert_eq!(quick.as_ref().map_err(|v| &v.operation), thorough.as_ref().map_err(|v| &v.operation), "{quick:?}\n{thorough:?}");
        wrong += u32::from(quick.is_err());
    }
    println!("{wrong} of 400 were wrong");
    assert!(wrong > 40 && wrong < 360, "{wrong} of 400");
}

#[test]
fn an_open_that_took_long_may_have_found_what_came_late() {
    let late = op(0, (5, 100), Call::Open { name: A, append: false }, done());
    let close = op(0, (101, 110), Call::Close { piece: piece(0, 1), bytes: 185, append: false }, done());
    let first = write(1, (0, 4), A, 1);
    let gone = op(1, (10, 12), Call::Unlink { name: A }, done());
    let second = write(2, (20, 30), A, 1);
    let again = write(2, (40, 50), A, 2);
    let shown = stat(3, (120, 130), A, 0o644, 1, 185);
    good(&[&first, &[late.clone(), close.clone(), gone.clone()], &second, &again, std::slice::from_ref(&shown)]);
    let looks: Vec<Operation> = (0..5).map(|n| stat(3, (60 + 2 * n, 61 + 2 * n), A, 0o644, 1, 100)).collect();
    good(&[&first, &[late, close, gone], &second, &again, &looks, &[shown]]);
}
