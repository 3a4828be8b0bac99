//! How each role is put together, alone or all in one process: data directories,
//! listeners, and who reaches whom (in one process without a socket).

use std::path::Path;
use std::sync::Arc;

use dfs_common::clients::cluster::connect_http1;
use dfs_common::credentials::ClusterToken;
use dfs_common::transport::{Http1, InProcess, Transport};
use dfs_common::wire::Service;
use dfs_common::{Error, ErrorKind, Result};

use crate::cli::{AllSettings, FileSettings, Place, reachable, url};
use crate::daemon::{Roles, listen};
use crate::directory::{self, Directory};
use crate::file::{self, FileServer};
use crate::lock::{self, LockService};
use crate::shell::Router;
use crate::store::Store;
use crate::store::sqlite::SqliteStore;

/// Distance from the port of `all` to that of its first file server, where there are several.
const FIRST_FILE_PORT: u16 = 10;

/// Runs a directory service.
pub async fn run_directory(place: Place, config: directory::Config) -> Result<()> {
    let (listener, _) = listen(&place.host, place.port).await?;
    let directory = Directory::open(config, open_store(&place.data, "directory.db")?)?;
    let mut roles = Roles::new(place.credentials);
    roles.work(|stop| directory.clone().run(stop));
    roles.serve(listener, directory);
    roles.until_stopped().await
}

/// Runs the lock service of the cluster whose directory is at `directory`.
pub async fn run_lock(place: Place, config: lock::Config, directory: &str) -> Result<()> {
    let transport = Http1::new(directory, place.credentials.cluster())?;
    let (listener, _) = listen(&place.host, place.port).await?;
    let lock = LockService::open(&config, open_store(&place.data, "lock.db")?, Arc::new(transport))?;
    let mut roles = Roles::new(place.credentials);
    roles.work(|stop| lock.clone().run(stop));
    roles.serve(listener, lock);
    roles.until_stopped().await
}

/// Runs a file server of the cluster whose directory is at `directory`.
pub async fn run_file(place: Place, settings: FileSettings, directory: &str) -> Result<()> {
    let transport = Http1::new(directory, place.credentials.cluster())?;
    let (listener, port) = listen(&place.host, place.port).await?;
    let server = open_file(&place, &settings, &place.data, port, Arc::new(transport))?;
    let mut roles = Roles::new(place.credentials);
    roles.work(|stop| server.clone().run(stop));
    roles.serve(listener, server);
    roles.until_stopped().await
}

/// Runs every role in this process.
pub async fn run_all(settings: AllSettings) -> Result<()> {
    let AllSettings { place, mut directory, lock, file, file_servers } = settings;
    let (listener, port) = listen(&place.host, place.port).await?;
    directory.lock_url = match &file.advertise {
        Some(url) => url.clone(),
        None => reachable(&place.host, port, "--advertise")?,
    };
    let directory = Directory::open(directory, open_store(&place.data.join("directory"), "directory.db")?)?;
    let reach_directory = || Arc::new(InProcess::new(directory.clone(), "directory service"));
    let lock = LockService::open(&lock, open_store(&place.data.join("lock"), "lock.db")?, reach_directory())?;
    let mut roles = Roles::new(place.credentials.clone());
    let mut router = Router::default().route("/v1/directory/", directory.clone()).route("/v1/lock/", lock.clone());
    roles.work(|stop| directory.clone().run(stop));
    roles.work(|stop| lock.run(stop));
    for number in 1..=file_servers {
        let name = format!("file-{number}");
        let data = place.data.join(&name);
        let own_listener = match file_servers {
            1 => None,
            _ => Some(listen(&place.host, file_port(place.port, number)?).await?),
        };
        let file_port = own_listener.as_ref().map_or(port, |l| l.1);
        let own = FileSettings { name: Some(name), advertise: with_port(file.advertise.as_deref(), file_port)?, ..file.clone() };
        let server = open_file(&place, &own, &data, file_port, reach_directory())?;
        roles.work(|stop| server.clone().run(stop));
        match own_listener {
            Some((listener, _)) => roles.serve(listener, server),
            None => router = router.route("/v1/file/", server),
        }
    }
    roles.serve(listener, Arc::new(router) as Arc<dyn Service>);
    roles.until_stopped().await
}

fn file_port(base: u16, number: u16) -> Result<u16> {
    if base == 0 {
        return Ok(0);
    }
    let port = base.checked_add(FIRST_FILE_PORT - 1 + number);
    port.ok_or_else(|| Error::new(ErrorKind::Invalid, format!("--port {base} leaves no ports for the file servers")))
}

/// `advertised` with another port.
fn with_port(advertised: Option<&str>, port: u16) -> Result<Option<String>> {
    let Some(url) = advertised else { return Ok(None) };
    let (host, _) = url.trim_end_matches('/').rsplit_once(':').ok_or_else(|| Error::new(ErrorKind::Invalid, format!("'{url}' has no port")))?;
    Ok(Some(format!("{host}:{port}")))
}

fn open_file(place: &Place, settings: &FileSettings, data: &Path, port: u16, directory: Arc<dyn Transport>) -> Result<Arc<FileServer>> {
    let config = file::Config {
        name: settings.name.clone().unwrap_or_else(|| default_name(port)),
        url: advertised(settings, place, port)?,
        data: data.to_owned(),
        capacity: settings.capacity,
        min_copies: settings.min_copies,
        always_sync: settings.always_sync,
    };
    FileServer::open(config, open_store(data, "index.db")?, directory, connect_http1(place.credentials.cluster()))
}

fn advertised(settings: &FileSettings, place: &Place, port: u16) -> Result<String> {
    let Some(given) = &settings.advertise else { return Ok(url(&place.host, port)) };
    check_url(given, place.credentials.cluster())?;
    Ok(given.clone())
}

/// Whether clients will be able to use `url`.
fn check_url(url: &str, token: &ClusterToken) -> Result<()> {
    Http1::new(url, token).map(|_| ())
}

fn default_name(port: u16) -> String {
    let system = rustix::system::uname();
    format!("{}-{port}", system.nodename().to_string_lossy())
}

fn open_store(data: &Path, name: &str) -> Result<Arc<dyn Store>> {
    std::fs::create_dir_all(data).map_err(|e| Error::from_io(&e, format!("data directory {}", data.display())))?;
    Ok(Arc::new(SqliteStore::open(&data.join(name))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_of_several_file_servers() {
        assert_eq!((file_port(7400, 1).unwrap(), file_port(7400, 3).unwrap(), file_port(0, 3).unwrap()), (7410, 7412, 0));
        assert!(file_port(65_530, 1).is_err());
        assert_eq!(with_port(Some("http://host:7400/"), 7410).unwrap().as_deref(), Some("http://host:7410"));
        assert_eq!(with_port(None, 1).unwrap(), None);
    }
}
