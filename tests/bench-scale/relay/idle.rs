//! What clients cost that are only connected.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use mesh_core::identity::NodeId;
use mesh_tests::lab::Namespace;
use quinn::{Endpoint, TokioRuntime};

use super::clients::{Control, endpoint_config, enter, identity};
use crate::procfs;

/// Clients that are counted.
pub(super) const CLIENTS: u64 = 500;
/// Clients before them, for what a relay allocates once.
const WARM_UP: u64 = 50;
/// Apart from the clients that carry load.
const FIRST: u64 = 1_000;

/// KiB of the relay's memory for one client.
pub(super) fn measure(
    pid: u32,
    control: &Control,
    ns: &Namespace,
    relay: &NodeId,
    at: SocketAddr,
) -> Result<f64> {
    let socket = ns.udp(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    control.block_on(async {
        let endpoint = Endpoint::new(endpoint_config(), None, socket, Arc::new(TokioRuntime))?;
        let mut clients = Vec::new();
        let mut before = procfs::memory(pid)?;
        for number in 0..WARM_UP + CLIENTS {
            if number == WARM_UP {
                before = procfs::memory(pid)?;
            }
            clients.push(enter(&endpoint, &identity(FIRST + number), relay, at).await?);
        }
        let after = procfs::memory(pid)?;
        Ok((after.resident - before.resident) / CLIENTS as f64)
    })
}
