//! What a name held before, over all files that had it (editors save by writing another
//! file and renaming it), and directories as they are and were.

use serde::Serialize;

use super::Cluster;
use crate::api::directory::{GetAttributes, List, NameHistory, PageEntry, PastRow, RemovalPage, Removals, VersionRow, Versions};
use crate::attributes::{Entry, FileKind};
use crate::ids::{InodeId, Version};
use crate::name::Name;
use crate::{ErrorKind, Result};

/// Names that one request lists.
const PAGE: u32 = 1000;

/// One kept version of what a name held.
#[derive(Clone, Debug, Serialize)]
pub struct Save {
    /// The version's number; for a file that has the name no more the inode's number before it, as in `41.3`.
    pub id: String,
    /// The file.
    pub ino: InodeId,
    /// It is what the name holds now.
    pub current: bool,
    /// The version.
    #[serde(flatten)]
    pub row: VersionRow,
}

impl Cluster {
    /// Every kept version of what `name` in `parent` held, oldest first; `entry` is what it leads to now.
    pub async fn saves(&self, parent: InodeId, name: &Name, entry: Option<&Entry>) -> Result<Vec<Save>> {
        let current = entry.map(|entry| entry.attributes.ino);
        let mut files: Vec<(InodeId, Version)> = Vec::new();
        if let Some(entry) = entry.filter(|entry| entry.attributes.kind == FileKind::File) {
            files.push((entry.attributes.ino, entry.attributes.version));
        }
        let past = self.directory.call(&NameHistory { parent, name: name.clone() }).await?;
        for row in past.iter().filter(|row| row.entry.attributes.kind == FileKind::File) {
            // The newest row of each file is the first one.
            if !files.iter().any(|(ino, _)| *ino == row.entry.attributes.ino) {
                files.push((row.entry.attributes.ino, row.version));
            }
        }
        let mut saves = Vec::new();
        for (ino, until) in files {
            let rows = match self.directory.call(&Versions { ino }).await {
                // It went while we looked.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                // An earlier file of that name need not be this user's to read.
                Err(e) if e.kind() == ErrorKind::Forbidden && current != Some(ino) => continue,
                rows => rows?,
            };
            for row in rows.into_iter().filter(|row| row.version <= until) {
                let id = if current == Some(ino) { row.version.to_string() } else { format!("{ino}.{}", row.version) };
                saves.push(Save { id, ino, current: current == Some(ino) && row.version == until, row });
            }
        }
        saves.sort_by_key(|save| (save.row.published, save.ino, save.row.version));
        Ok(saves)
    }

    /// A kept version as something that can be read.
    pub async fn saved(&self, save: &Save) -> Result<Entry> {
        let mut entry = self.directory.call(&GetAttributes { ino: save.ino }).await?;
        let attributes = &mut entry.attributes;
        (attributes.version, attributes.size, attributes.mtime) = (save.row.version, save.row.size, save.row.mtime);
        // How many of its bytes are holes is not known.
        attributes.stored = save.row.size;
        entry.layout.holders.clone_from(&save.row.holders);
        entry.layout.manifest = Some(save.row.manifest);
        self.learn(&entry).await?;
        Ok(entry)
    }

    /// What is in the directory `ino`, in order of names.
    pub async fn entries(&self, ino: InodeId) -> Result<Vec<PageEntry>> {
        let mut all: Vec<PageEntry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.name.clone());
            let page = self.directory.call(&List { ino, after, limit: PAGE }).await?;
            let end = page.end || page.entries.is_empty();
            all.extend(page.entries);
            if end {
                return Ok(all);
            }
        }
    }

    /// What was removed from the directory `parent` and is still kept, in order of names.
    pub async fn removals(&self, parent: InodeId) -> Result<Vec<PastRow>> {
        let mut all: Vec<PastRow> = Vec::new();
        loop {
            let after = all.last().map(|row| row.name.clone());
            let RemovalPage { rows, more } = self.directory.call(&Removals { parent, after, limit: PAGE }).await?;
            let end = !more || rows.is_empty();
            all.extend(rows);
            if end {
                return Ok(all);
            }
        }
    }
}
