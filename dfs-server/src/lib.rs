//! The daemons of the file system, one folder a role.

pub mod directory;
pub mod file;
pub mod lock;
pub mod shell;
pub mod store;
