//! The client of the distributed file system: the FUSE driver `dfs-mount` and the
//! command line `dfs`, over the clients in dfs-common.

pub mod cache;
pub mod cli;
pub mod driver;
pub mod fuse;
mod system;
pub mod vfs;
