//! Buffers in the shape that the kernel's offloads want, in which packets are sealed and opened without being copied.
//!
//! [`SendBatch`] holds datagrams back to back, grouped into [`Run`]s that one `sendmsg` with UDP GSO can carry.
//! [`ReceiveBatch`] holds what one `recvmmsg` with UDP GRO brought, and after the engine has seen it, where in there the
//! inner packets lie.

mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub(crate) use receive::Inbox;
pub use receive::ReceiveBatch;
pub use send::{Run, SendBatch};

use crate::session::Kernel;

/// What one call of the engine produced for the data path.
#[derive(Debug)]
pub struct Batches {
    /// Datagrams for the mesh socket.
    pub send: SendBatch,
    /// QUIC datagrams with their senders, for the relay client's endpoint.
    pub quic: Vec<(SocketAddr, Vec<u8>)>,
}

impl Batches {
    /// Empty ones; datagrams will be sealed by `kernel`.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            send: SendBatch::new(kernel),
            quic: Vec::new(),
        }
    }
}
