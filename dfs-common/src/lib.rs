//! The vocabulary that servers and mounts share: ids, names, attributes, errors,
//! the wire contract of every role, and the typed clients that speak it.
//!
//! This crate knows neither a server's state nor a mount's; it holds what both
//! sides must agree on, so that a disagreement is a compile error.

#![warn(missing_docs)]

pub mod api;
pub mod attributes;
pub mod block;
pub mod clients;
pub mod config;
pub mod credentials;
pub mod error;
pub mod ids;
pub mod name;
pub mod patch;
pub mod transport;
pub mod tree;
pub mod user;
pub mod wire;
pub mod xattr;

pub use error::{Error, ErrorKind, Result};
