//! `dfs recover`: content that could not be published, kept in the cluster until somebody
//! restores or discards it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use dfs_common::ErrorKind;
use dfs_common::api::directory::{GetXattr, Lookup, Remove};
use dfs_common::attributes::Entry;
use dfs_common::ids::RECOVERED;
use dfs_common::name::{self, Name};
use serde::Serialize;

use super::args::{self, RecoverCommand, RecoverRestore, RecoverShow};
use super::content::{download, print};
use super::failure::{At, Failure, Outcome};
use super::past::republish;
use super::render;
use super::session::Session;
use crate::recovered::{Description, XATTR};

/// A recoverable version.
#[derive(Serialize)]
struct Row {
    id: String,
    /// Of what has arrived.
    stored: u64,
    /// What its client says of it; absent while it has not yet sent everything.
    #[serde(flatten)]
    description: Option<Description>,
}

pub(crate) async fn recover(session: &Session, arguments: &args::Recover) -> Outcome {
    match &arguments.command {
        None | Some(RecoverCommand::List) => list(session).await,
        Some(RecoverCommand::Show(arguments)) => show(session, arguments).await,
        Some(RecoverCommand::Restore(arguments)) => restore(session, arguments).await,
        Some(RecoverCommand::Discard(arguments)) => {
            for id in &arguments.ids {
                if let Err(e) = discard(session, id).await {
                    session.report(&e);
                }
            }
            Ok(())
        }
    }
}

async fn list(session: &Session) -> Outcome {
    let mut rows = Vec::new();
    for found in session.cluster.entries(RECOVERED).await? {
        let description = description(session, &found.entry).await?;
        rows.push(Row { id: found.name.to_string(), stored: found.entry.attributes.size, description });
    }
    if session.json {
        return render::json(&rows);
    }
    let columns = rows.into_iter().map(|row| match row.description {
        Some(said) => vec![row.id, said.size.to_string(), render::full_time(said.time), said.host, said.path, said.reason],
        None => vec![row.id, row.stored.to_string(), String::new(), String::new(), String::new(), "it is still being uploaded".to_owned()],
    });
    render::table(&["ID", "SIZE", "WHEN", "HOST", "PATH", "REASON"], &[1], columns.collect())
}

async fn description(session: &Session, entry: &Entry) -> Outcome<Option<Description>> {
    let name = Name::new(XATTR.as_bytes())?;
    match session.cluster.directory.call(&GetXattr { ino: entry.attributes.ino, name }).await {
        Ok(value) => Ok(serde_json::from_slice(&value.0).ok()),
        Err(e) if matches!(e.kind(), ErrorKind::NoAttribute | ErrorKind::NotFound) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The bytes behind a name as it is shown.
fn decoded(shown: &str) -> dfs_common::Result<Vec<u8>> {
    name::decode(shown).ok_or_else(|| dfs_common::Error::new(ErrorKind::Invalid, "a bad %XX escape"))
}

async fn find(session: &Session, id: &OsStr) -> Outcome<(Name, Entry)> {
    let name = Name::new(&decoded(&id.to_string_lossy()).at(id)?).at(id)?;
    match session.cluster.directory.call(&Lookup { parent: RECOVERED, name: name.clone() }).await {
        Ok(entry) => {
            session.cluster.learn(&entry).await?;
            Ok((name, entry))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(Failure::new(ErrorKind::NotFound, "no such recoverable version; dfs recover lists them").at(id))
        }
        Err(e) => Err(e).at(id),
    }
}

async fn show(session: &Session, arguments: &RecoverShow) -> Outcome {
    let (_, entry) = find(session, &arguments.id).await?;
    match &arguments.output {
        Some(file) => download(session, &entry, file).await,
        None => print(session, &entry).await,
    }
    .at(&arguments.id)
}

async fn restore(session: &Session, arguments: &RecoverRestore) -> Outcome {
    let (name, entry) = find(session, &arguments.id).await?;
    let path = match &arguments.to {
        Some(path) => path.clone(),
        None => {
            let said = description(session, &entry).await?;
            let path = said.map(|said| said.path).filter(|path| path.starts_with('/'));
            let path =
                path.ok_or_else(|| Failure::new(ErrorKind::Invalid, "where it belongs is not known: choose a file with --to").at(&arguments.id))?;
            OsString::from_vec(decoded(&path).at(&arguments.id)?)
        }
    };
    let published = republish(session, &entry, &path, arguments.waiting.wait).await?;
    session.cluster.directory.call(&Remove { parent: RECOVERED, name, directory: false }).await.at(&arguments.id)?;
    if session.json { render::json(&published) } else { Ok(()) }
}

async fn discard(session: &Session, id: &OsString) -> Outcome {
    let (name, _) = find(session, id).await?;
    session.cluster.directory.call(&Remove { parent: RECOVERED, name, directory: false }).await.at(id)?;
    Ok(())
}
