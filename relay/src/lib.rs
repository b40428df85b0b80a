//! A relay for meshd: QUIC for control, plain UDP for data, STUN.

pub mod client;
pub mod config;
mod keys;
pub mod tls;
