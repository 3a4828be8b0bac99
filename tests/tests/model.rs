//! Random operations on a naive model, a local directory and mounts: all agree.

use dfs_tests::model::{Model, Op, Outcome, apply, dump};
use dfs_tests::{Cluster, Mount, Rng};

/// `count` operations, each on a mount that `choose` picks; the state of every mount is compared now and then.
fn agree(mounts: &[&Mount], count: usize, rng: &mut Rng) {
    let local = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut history = Vec::new();
    for step in 0..count {
        let op = Op::random(rng);
        let mount = rng.pick(mounts);
        let (wanted, disk, got) = (model.apply(&op), apply(local.path(), &op), patient(mount, &op));
        history.push(format!("{step} on {}: {} -> {wanted:?}", mount.path().file_name().unwrap().display(), short(&op)));
        let last = || history[history.len().saturating_sub(25)..].join("\n");
        assert_eq!(wanted, disk, "the model is wrong\n{}", last());
        assert_eq!(wanted, got, "the mount differs at\n{}", last());
        if step % 400 == 399 || step + 1 == count {
            let state = dump(|op| model.apply(op));
            for mount in mounts {
                assert_eq!(dump(|op| apply(mount.path(), op)), state, "state after\n{}", last());
            }
        }
    }
}

/// As [`apply`], but a rename may say ESTALE once: the kernel refuses to look up, while it holds the locks of a rename
/// between directories, a directory that it knows under another name because another mount has moved it
/// (`__d_unalias` in fs/dcache.c; NFS has the same). Any other look-up puts that right.
fn patient(mount: &Mount, op: &Op) -> Outcome {
    match (apply(mount.path(), op), op) {
        (Outcome::Failed(libc::ESTALE), Op::Rename { from, to, .. }) => {
            for path in [from, to] {
                apply(mount.path(), &Op::Stat { path: path.clone() });
            }
            apply(mount.path(), op)
        }
        (outcome, _) => outcome,
    }
}

/// An operation without its bytes.
fn short(op: &Op) -> String {
    match op {
        Op::Create { path, content } => format!("Create {path} of {}", content.len()),
        Op::WriteAt { path, offset, bytes } => format!("WriteAt {path} {offset} + {}", bytes.len()),
        Op::Append { path, bytes } => format!("Append {path} {}", bytes.len()),
        other => format!("{other:?}"),
    }
}

#[test]
fn one_mount_agrees_with_the_model_and_the_local_disk() {
    let cluster = Cluster::small();
    agree(&[&cluster.mount()], 4000, &mut Rng::announced("one mount"));
}

#[test]
fn two_mounts_in_turn_agree_with_the_model() {
    let cluster = Cluster::builder().file_servers(2).copies(2).start();
    let (a, b) = (cluster.mount(), cluster.mount());
    agree(&[&a, &b], 2500, &mut Rng::announced("two mounts"));
}

#[test]
fn a_small_cache_changes_nothing() {
    let cluster = Cluster::small();
    let mount = cluster.mount_with("cache_size=1M");
    agree(&[&mount], 1500, &mut Rng::announced("small cache"));
}
