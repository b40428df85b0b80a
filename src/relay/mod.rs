//! Relays: what a server decides, and what its client does.

pub mod server;
