//! What git costs in a tree: adding and committing everything, cloning, looking for changes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use super::meter::{Meter, go_on};
use super::place::{Ended, Place};
use super::tree::{Tree, extract_new};

/// Nothing of the user's, and nothing that runs later on its own.
const CONFIGURATION: &str = "[user]\nname = bench\nemail = bench@localhost\n[safe]\ndirectory = *\n[gc]\nauto = 0\n[maintenance]\nauto = false\n\
[init]\ndefaultBranch = main\n[core]\nautocrlf = false\nfsmonitor = false\n";

/// A repository of a tree, all of it committed.
#[derive(Debug)]
pub(super) struct Repository {
    tree: Tree,
    /// Outside of what is measured.
    configuration: NamedTempFile,
}

impl Repository {
    fn new(place: &mut Place) -> io::Result<Self> {
        let configuration = NamedTempFile::new()?;
        fs::write(configuration.path(), CONFIGURATION)?;
        Ok(Self { tree: extract_new(place, "repository", &mut Meter::default())?, configuration })
    }

    fn git(&self, arguments: &[&str], directory: &Path) -> io::Result<String> {
        go_on()?;
        let mut git = Command::new("git");
        git.args(arguments).current_dir(directory).stdin(Stdio::null());
        git.env("GIT_CONFIG_GLOBAL", self.configuration.path()).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        let output = git.output()?;
        go_on()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("git {} ended with {}: {}", arguments.join(" "), output.status, said.trim())))
    }

    fn commit(&self) -> io::Result<()> {
        self.git(&["init", "-q", "."], &self.tree.root)?;
        self.git(&["add", "."], &self.tree.root)?;
        self.git(&["commit", "-q", "-m", "all"], &self.tree.root).map(drop)
    }

    /// True where git finds that something is not as it was committed.
    fn is_changed(&self, root: &Path) -> io::Result<bool> {
        self.git(&["status", "--porcelain"], root).map(|listed| !listed.is_empty())
    }

    fn check(&self, root: &Path) -> io::Result<()> {
        if self.is_changed(root)? {
            return Err(super::content::wrong("git finds changes where there are none"));
        }
        self.tree.check(root)
    }
}

fn is_there() -> Result<(), Ended> {
    match Command::new("git").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Ended::Skipped("there is no git program".to_owned())),
    }
}

/// Makes a tree that is not a repository yet.
pub(super) fn prepare(place: &mut Place) -> Result<(), Ended> {
    is_there()?;
    if let Some(old) = place.repository.take() {
        fs::remove_dir_all(old.tree.root)?;
    }
    place.repository = Some(Repository::new(place)?);
    Ok(())
}

/// Makes a repository, and lets git look at all of it.
pub(super) fn warm(place: &mut Place) -> Result<(), Ended> {
    is_there()?;
    let repository = match place.repository.take() {
        Some(repository) => repository,
        None => {
            let repository = Repository::new(place)?;
            repository.commit()?;
            repository
        }
    };
    repository.check(&repository.tree.root)?;
    place.repository = Some(repository);
    Ok(())
}

fn taken(place: &mut Place) -> io::Result<Repository> {
    place.repository.take().ok_or_else(|| io::Error::other("there is no repository"))
}

pub(super) fn commit(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let repository = taken(place)?;
    meter.section(repository.tree.count(), || repository.commit())?;
    repository.git(&["fsck", "--no-progress"], &repository.tree.root)?;
    repository.check(&repository.tree.root)?;
    place.repository = Some(repository);
    Ok(())
}

pub(super) fn clone(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let repository = taken(place)?;
    let to: PathBuf = place.fresh("clone");
    let (from, target) = (repository.tree.root.to_string_lossy(), to.to_string_lossy());
    meter.section(repository.tree.count(), || repository.git(&["clone", "-q", &from, &target], Path::new("/")))?;
    repository.check(&to)?;
    fs::remove_dir_all(to)?;
    place.repository = Some(repository);
    Ok(())
}

pub(super) fn status(place: &mut Place, meter: &mut Meter) -> io::Result<()> {
    let repository = taken(place)?;
    let mut is_changed = false;
    meter.operations(place.scale.status, |_| repository.is_changed(&repository.tree.root).map(|changed| is_changed |= changed))?;
    if is_changed {
        return Err(super::content::wrong("git finds changes where there are none"));
    }
    place.repository = Some(repository);
    Ok(())
}
