//! The client of the distributed file system: the FUSE driver `dfs-mount` and the
//! command line `dfs`, over the clients in dfs-common.

pub mod cache;
pub mod cli;
pub mod control;
pub mod driver;
pub mod failpoint;
pub mod fuse;
mod mountinfo;
mod recovered;
mod system;
mod turn;
pub mod vfs;
