//! Translates requests to the file server's operations; decides nothing.

use std::sync::Arc;

use dfs_common::api::directory::VersionOf;
use dfs_common::api::file::{BLOCKS, COMMIT, Commit, Missing, REPLICATE, Replicate, Status, VERSIONS};
use dfs_common::api::{Done, Operation};
use dfs_common::block::BlockHash;
use dfs_common::ids::{InodeId, ServerId, Version};
use dfs_common::wire::{Method, Request, Response, Service};
use dfs_common::{Error, ErrorKind, Result};
use futures_util::future::{BoxFuture, FutureExt};

use super::FileServer;
use super::blocks::Check;

/// The most servers in a `replicas` parameter.
const MAX_REPLICAS: usize = 16;

impl Service for FileServer {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        async move { Response::from(self.answer(request).await) }.boxed()
    }
}

impl FileServer {
    async fn answer(self: Arc<Self>, request: Request) -> Result<Response> {
        if let Some(session) = request.session {
            self.storage.renew(session);
        }
        let path = request.path.clone();
        if let Some(name) = path.strip_prefix(BLOCKS) {
            let hash = name.parse()?;
            return match request.method {
                Method::Get => self.block(hash).await.map(|bytes| Response::bytes(200, bytes)),
                Method::Put | Method::Post => self.put_block_request(hash, request).await.map(done),
                _ => Err(wrong_method(&path, "GET, PUT and POST")),
            };
        }
        if let Some(rest) = path.strip_prefix(VERSIONS) {
            let (what, part) = version_path(rest)?;
            self.admit_reader(&request, what.ino).await?;
            return match (request.method, part) {
                (Method::Get, Part::Manifest) => {
                    let with_start = flag(&request, "start")?;
                    self.manifest_bytes(what, with_start).await.map(|bytes| Response::bytes(200, bytes))
                }
                (Method::Get, Part::Data) => {
                    let check = if flag(&request, "unchecked")? { Check::Length } else { Check::Hash };
                    self.data(what, request.range.as_deref(), check).await
                }
                _ => Err(wrong_method(&path, "GET")),
            };
        }
        if ![COMMIT, REPLICATE, Missing::PATH, Status::PATH].contains(&path.as_str()) {
            return Err(Error::new(ErrorKind::NotFound, "no such resource of a file server"));
        }
        if request.method != Method::Post {
            return Err(wrong_method(&path, "POST"));
        }
        match path.as_str() {
            COMMIT => {
                let meta: Commit = request.parse_meta()?;
                same_session(&request, meta.session)?;
                self.commit(meta, request.body, request.user).await
            }
            REPLICATE => {
                let meta: Replicate = request.parse_meta()?;
                self.replicate(meta, request.body).await.map(done)
            }
            Missing::PATH => {
                let missing: Missing = request.parse_json()?;
                same_session(&request, missing.session)?;
                self.missing(missing).await.map(|answer| Response::json(&answer))
            }
            _ => request.parse_json::<Status>().map(|_| Response::json(&self.status())),
        }
    }

    async fn put_block_request(self: Arc<Self>, hash: BlockHash, request: Request) -> Result<()> {
        let replicas = match request.query_value("replicas") {
            Some(list) => servers(list)?,
            None if request.query.is_empty() => Vec::new(),
            None => return Err(Error::new(ErrorKind::Invalid, "the only parameter here is replicas=ID,ID")),
        };
        self.put_block(hash, (request.method, request.body), request.session, &replicas).await
    }
}

enum Part {
    Manifest,
    Data,
}

/// `INO/VERSION/manifest` or `INO/VERSION/data`.
fn version_path(path: &str) -> Result<(VersionOf, Part)> {
    let mut parts = path.split('/');
    let mut number = || parts.next().and_then(|text| text.parse::<u64>().ok());
    let parsed = number().zip(number());
    let part = match (parts.next(), parts.next()) {
        (Some("manifest"), None) => Some(Part::Manifest),
        (Some("data"), None) => Some(Part::Data),
        _ => None,
    };
    match (parsed, part) {
        (Some((ino, version)), Some(part)) => Ok((VersionOf { ino: InodeId(ino), version: Version(version) }, part)),
        _ => Err(Error::new(ErrorKind::NotFound, format!("{VERSIONS}INO/VERSION/ is followed by manifest or data"))),
    }
}

fn servers(list: &str) -> Result<Vec<ServerId>> {
    let parsed: Result<Vec<ServerId>, _> = list.split(',').map(str::parse).collect();
    match parsed {
        Ok(servers) if servers.len() <= MAX_REPLICAS => Ok(servers),
        _ => Err(Error::new(ErrorKind::Invalid, format!("replicas: at most {MAX_REPLICAS} numbers with commas between"))),
    }
}

fn same_session(request: &Request, session: dfs_common::ids::SessionId) -> Result<()> {
    match request.session {
        Some(header) if header != session => {
            Err(Error::new(ErrorKind::Invalid, format!("the request speaks for session {session}, its header for session {header}")))
        }
        _ => Ok(()),
    }
}

/// True for `name=1` in the query, false without it.
fn flag(request: &Request, name: &str) -> Result<bool> {
    match request.query_value(name) {
        None => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(Error::new(ErrorKind::Invalid, format!("{name}={other}: expected {name}=1"))),
    }
}

fn wrong_method(path: &str, right: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{path} takes {right}"))
}

fn done(_: ()) -> Response {
    Response::json(&Done {})
}
