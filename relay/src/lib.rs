//! A relay for meshd: QUIC for control, plain UDP for data, STUN.
//!
//! What it decides is in `mesh_core::relay::server`; here are the sockets, the TLS and the tasks around it. A client's
//! way in is [`client::connect`]; a server is a [`Relay`].

pub mod advertise;
pub mod client;
pub mod config;
mod connection;
mod keys;
pub mod logging;
pub mod metrics;
mod pump;
mod quic;
mod relay;
mod runs;
pub mod scrape;
mod shared;
mod sockets;
pub mod state;
pub mod tls;

pub use relay::{Observer, Relay};
pub use sockets::BindError;
