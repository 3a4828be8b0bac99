//! Which credentials each resource needs. What a user may do to a file is another question,
//! which the directory service decides by the file's permissions.

use super::Operation;
use super::directory::{
    Accessed, Fence, Heartbeat, HeldVersions, Link, Make, Place, Publish, RegisterServer, Remove, RemoveXattr, Rename, ReportCopy, SetAttributes,
    SetXattr, Undelete,
};
use super::file::{BLOCKS, COMMIT, Missing, REPLICATE};
use super::lock::{Acquire, Break};
use crate::wire::Method;

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Any token.
    Token,
    /// One that is not for reading only: the request changes something, or keeps others from changing it.
    Writing,
    /// The same, on behalf of root, where that is not somebody else by the token.
    Root,
    /// The cluster's own token: servers send this to each other.
    Cluster,
}

const WRITING: &[&str] = &[
    Make::PATH,
    Link::PATH,
    Remove::PATH,
    Rename::PATH,
    SetAttributes::PATH,
    Accessed::PATH,
    SetXattr::PATH,
    RemoveXattr::PATH,
    Undelete::PATH,
    Place::PATH,
    Acquire::PATH,
    Missing::PATH,
    COMMIT,
];

const CLUSTER: &[&str] = &[RegisterServer::PATH, Heartbeat::PATH, ReportCopy::PATH, HeldVersions::PATH, Publish::PATH, Fence::PATH, REPLICATE];

/// What a request for `path` with `method` needs; a resource that does not exist needs any token, to be told so.
pub fn needs(method: Method, path: &str) -> Needs {
    if path.starts_with(BLOCKS) {
        // Clients send blocks, and read content as that of a version.
        return if matches!(method, Method::Put | Method::Post) { Needs::Writing } else { Needs::Cluster };
    }
    match path {
        Break::PATH => Needs::Root,
        path if WRITING.contains(&path) => Needs::Writing,
        path if CLUSTER.contains(&path) => Needs::Cluster,
        _ => Needs::Token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{directory, file, lock};

    #[test]
    fn what_changes_something_needs_more_than_any_token() {
        let needs = |path: &str| needs(Method::Post, path);
        let open: Vec<&str> = [directory::PATHS, lock::PATHS, file::PATHS].concat().into_iter().filter(|path| needs(path) == Needs::Token).collect();
        // A new resource has to be looked at: does it belong here?
        #[rustfmt::skip]
        let known = [
            "open-session", "renew-session", "close-session", "claim-leases", "events", "waits", "sessions", "lookup", "get-attributes", "access",
            "resolve", "list", "read-link", "get-xattr", "list-xattrs", "statfs", "sync", "versions", "name-history", "removals", "servers", "status",
            "cancel", "release", "renew", "end", "recalls", "in-use", "take-over", "lock-range", "cancel-range", "unlock-range", "test-range", "locks",
            "ranges", "status", "status",
        ];
        let names: Vec<&str> = open.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, known);
        assert_eq!((needs(COMMIT), needs(REPLICATE), needs(Break::PATH)), (Needs::Writing, Needs::Cluster, Needs::Root));
        let block = format!("{BLOCKS}00");
        for (method, expected) in [(Method::Put, Needs::Writing), (Method::Post, Needs::Writing), (Method::Get, Needs::Cluster)] {
            assert_eq!(super::needs(method, &block), expected);
        }
    }
}
