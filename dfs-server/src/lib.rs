//! The daemons of the file system, one folder a role.

pub mod store;
