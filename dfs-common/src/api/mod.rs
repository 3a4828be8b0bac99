//! The wire contract, one file a role. Every operation is a type: its fields are the
//! JSON body, [`Operation::PATH`] the resource (always POST), [`Operation::Reply`] the answer.
//!
//! docs/PROTOCOL.md shows each with an example.

pub mod directory;
pub mod file;
pub mod lock;
pub mod needs;

use serde::{Serialize, de::DeserializeOwned};

/// A JSON operation of a role.
pub trait Operation: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The resource.
    const PATH: &'static str;
    /// True where the operation changes state, so that it carries a [`crate::wire::Replay`] when it belongs to a session.
    const MUTATES: bool;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned + Send;
}

/// An operation whose answer also travels in a form for programs, where the request asks for that ([`crate::wire::PACKED`]).
pub trait Packed: Operation {
    /// The answer in that form.
    fn pack(reply: &Self::Reply) -> Vec<u8>;

    /// The answer of that form; `Corrupt` where it is none.
    fn unpack(bytes: &[u8]) -> crate::Result<Self::Reply>;
}

/// An answer without content: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Done {}

macro_rules! operations {
    ($($name:ident => $path:literal, $mutates:literal, $reply:ty;)*) => {
        $(impl $crate::api::Operation for $name {
            const PATH: &'static str = $path;
            const MUTATES: bool = $mutates;
            type Reply = $reply;
        })*
        /// Every resource of this role that takes POST, for tests and documents.
        pub const PATHS: &[&str] = &[$($path,)*];
    };
}
pub(crate) use operations;
