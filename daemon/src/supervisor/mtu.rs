//! Tells the kernel what the path to each peer carries, by the MTU of the peer's routes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::engine::{NetworkIndex, PeerKey};
use mesh_core::limits;
use tokio::sync::Notify;

use super::Supervisor;
use super::network::{Host, Network};
use crate::netlink::routes::RouteMtu;

/// MTUs of a network's peers, in bytes of an inner packet.
pub(super) type Mtus = BTreeMap<PeerKey, u16>;

/// The newest MTU of each peer that the kernel has not been told. As many as there are peers at most, so none gets lost.
#[derive(Clone, Default)]
pub(super) struct Changes {
    pending: Arc<Mutex<BTreeMap<NetworkIndex, Mtus>>>,
    added: Arc<Notify>,
}

impl Changes {
    pub(super) fn add(&self, network: NetworkIndex, peer: PeerKey, mtu: u16) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.entry(network).or_default().insert(peer, mtu);
        drop(pending);
        self.added.notify_one();
    }

    /// Waits for changes and takes them. Nothing is lost when the future is dropped.
    pub(super) async fn take(&self) -> BTreeMap<NetworkIndex, Mtus> {
        self.added.notified().await;
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Supervisor {
    pub(super) async fn set_mtus(&mut self, mut changes: BTreeMap<NetworkIndex, Mtus>) {
        for network in &mut self.networks {
            if let Some(mtus) = changes.remove(&network.index) {
                network.set_mtus(&self.host, mtus).await;
            }
        }
    }
}

impl Network {
    /// For routes whose path carries `path` bytes.
    pub(super) fn route_mtu(&self, path: u16) -> RouteMtu {
        RouteMtu {
            path,
            device: self.config.mtu,
        }
    }

    async fn set_mtus(&mut self, host: &Host, mtus: Mtus) {
        if self.interface().is_none() {
            return; // it went down in the meantime
        }
        for (peer, mtu) in mtus {
            self.mtus.insert(peer, mtu);
            self.set_mtu(host, peer, mtu).await;
        }
    }

    /// After the routes have been made anew.
    pub(super) async fn set_all_mtus(&mut self, host: &Host) {
        let here = |peer: &PeerKey| self.config.peers.iter().any(|other| other.key == *peer);
        let mtus: Mtus = std::mem::take(&mut self.mtus)
            .into_iter()
            .filter(|(peer, mtu)| here(peer) && *mtu != limits::INNER_MTU)
            .collect();
        self.set_mtus(host, mtus).await;
    }

    async fn set_mtu(&self, host: &Host, key: PeerKey, mtu: u16) {
        let (Some(interface), Some(peer)) = (
            self.interface(),
            self.config.peers.iter().find(|peer| peer.key == key),
        ) else {
            return;
        };
        let routes = interface.plan.routes_to(interface.link, &self.config, peer);
        let set = host.netlink.set_route_mtu(routes, self.route_mtu(mtu));
        match set.await {
            Ok(()) => {
                tracing::debug!(network = self.name(), peer = %peer.name, mtu, "MTU of the path")
            }
            // Packets that are too large are refused by ICMP messages all the same.
            Err(error) => {
                tracing::warn!(%error, network = self.name(), "the peer's routes keep their MTU")
            }
        }
    }
}
