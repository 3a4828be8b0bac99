//! The daemons of the file system, one folder a role.

pub mod lock;
pub mod shell;
pub mod store;
