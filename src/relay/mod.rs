//! Relays: what a server decides, and what its client does.

pub(crate) mod client;
pub mod server;
