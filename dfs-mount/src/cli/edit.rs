//! `dfs edit`: a local copy in the user's editor under the file's write lock.
//!
//! Invariant: text that the user has changed is in the cluster or in a file that the
//! error message names; it is never thrown away.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::Ordering;

use dfs_common::ErrorKind;
use dfs_common::api::directory::{Remove, Resolved};
use dfs_common::block::Manifest;

use super::args::Edit;
use super::content::{download, last_component};
use super::failure::{At, Failure, Outcome};
use super::render;
use super::session::{Locked, Session};
use super::upload::{FileSource, publish};

pub(crate) async fn edit(session: &Session, arguments: &Edit) -> Outcome {
    let path = &arguments.path;
    let copy_name = last_component(path)?;
    let locked = session.lock(path, "dfs edit", arguments.waiting.wait).await?;
    let edited = under_lock(session, arguments, &locked, &copy_name).await;
    if locked.created && !matches!(edited, Ok(true)) {
        forget(session, arguments, &locked).await;
    }
    session.release(locked.entry.attributes.ino, locked.token).await;
    edited.at(path).map(|_| ())
}

/// True where a new version was published.
async fn under_lock(session: &Session, arguments: &Edit, locked: &Locked, name: &OsString) -> Outcome<bool> {
    let base = session.cluster.manifest(&locked.entry).await?;
    let directory = tempfile::Builder::new().prefix("dfs-edit-").tempdir()?;
    let copy = directory.path().join(name);
    download(session, &locked.entry, &copy).await?;
    // Compared with the copy, not with the version: a block of zeros may be stored or a hole.
    let before = scan(&copy, base.block_bits()).await?;
    let status = run_editor(session, &copy).await?;
    let source = scan(&copy, base.block_bits()).await?;
    let changed = source.manifest() != before.manifest();
    if !status.success() && !changed {
        return Err(Failure::new(ErrorKind::Invalid, format!("the editor ended with {status}; nothing was changed")));
    }
    if !changed {
        if !session.json {
            eprintln!("dfs: {}: unchanged", arguments.path.display());
        }
        return Ok(false);
    }
    let published = match status.success() {
        true => publish(session, locked, &source, Some(&base), false).await.map_err(Failure::from),
        false => Err(Failure::new(ErrorKind::Invalid, format!("the editor ended with {status}"))),
    };
    match published {
        Ok(entry) if session.json => render::json(&entry).map(|()| true),
        Ok(_) => Ok(true),
        Err(e) => {
            let kept = directory.keep().join(name);
            Err(e.with(&format!("; your text is kept in {}", kept.display())))
        }
    }
}

async fn scan(copy: &Path, block_bits: u8) -> Outcome<FileSource> {
    FileSource::scan(File::open(copy).at(copy)?, &Manifest::empty(block_bits), 0).await
}

/// Runs $VISUAL, $EDITOR or vi as a shell would, so that options in them work. Keyboard signals are the editor's meanwhile.
async fn run_editor(session: &Session, copy: &Path) -> Outcome<ExitStatus> {
    let chosen = ["VISUAL", "EDITOR"].iter().filter_map(std::env::var_os).find(|value| !value.is_empty());
    let mut script = chosen.unwrap_or_else(|| "vi".into());
    script.push(" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg("editor").arg(copy);
    session.deaf.store(true, Ordering::Relaxed);
    let ended = tokio::task::spawn_blocking(move || command.status()).await.expect("waiting does not panic");
    session.deaf.store(false, Ordering::Relaxed);
    Ok(ended?)
}

/// Removes the empty file that was made to have a lock on, where it is still that one.
async fn forget(session: &Session, arguments: &Edit, locked: &Locked) {
    let Ok(Resolved { parent, name: Some(name), entry: Some(entry) }) = session.resolve(&arguments.path, true).await else { return };
    if entry.attributes.ino == locked.entry.attributes.ino
        && let Err(e) = session.cluster.directory.call(&Remove { parent, name, directory: false }).await
    {
        log::warn!("removing the empty file again: {e}");
    }
}
