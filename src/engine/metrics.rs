//! What is counted and measured, in the form that monitoring wants: totals since the start, and what is just now.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    Drops, Engine, Network, NetworkIndex, PathKind, PathReason, PeerKey, PeerState, Traversal,
};
use crate::identity::RelayUrl;
use crate::limits;
use crate::path::agent::Change;
use crate::peer::Peer;
use crate::time::Instant;

/// Everything that the engine can tell a monitoring system.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The networks that run.
    pub networks: Vec<NetworkMetrics>,
    /// Peers that are left out of [`NetworkMetrics::peers`] because there are more than [`limits::METRICS_PEERS`].
    pub peers_omitted: usize,
    /// Packets dropped, by reason.
    pub drops: Drops,
    /// What was done to open direct paths.
    pub traversal: Traversal,
}

/// One network.
#[derive(Debug, Clone)]
pub struct NetworkMetrics {
    /// Which one.
    pub index: NetworkIndex,
    /// How many peers are in each state, in the order of [`PeerState::ALL`].
    pub peers_by_state: [usize; PeerState::ALL.len()],
    /// How often a peer's path became one of this kind, `None` for no path at all, for this reason.
    pub path_changes: BTreeMap<(Option<PathKind>, PathReason), u64>,
    /// How often a peer's path became a relay after a direct one.
    pub relay_fallbacks: u64,
    /// Its relays, in the order of the configuration.
    pub relays: Vec<RelayMetrics>,
    /// Its peers, by name; the last ones may be left out.
    pub peers: Vec<PeerMetrics>,
}

/// Our connection to a relay.
#[derive(Debug, Clone)]
pub struct RelayMetrics {
    /// Which relay.
    pub url: RelayUrl,
    /// It has welcomed us.
    pub connected: bool,
    /// First packets go to it.
    pub home: bool,
    /// Round trip time of STUN, once measured.
    pub rtt: Option<Duration>,
}

/// One peer.
#[derive(Debug, Clone)]
pub struct PeerMetrics {
    /// Its key.
    pub key: PeerKey,
    /// Its name, unique in the network.
    pub name: String,
    /// Kind and round trip time of its path.
    pub path: Option<(PathKind, Option<Duration>)>,
    /// How long each kind was its path, in the order of [`PathKind::ALL`].
    pub path_times: [Duration; PathKind::ALL.len()],
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Since the last completed WireGuard handshake.
    pub last_handshake: Option<Duration>,
}

/// How often the paths of a network's peers changed, and why. The number of entries is bounded by the types.
#[derive(Debug, Default)]
pub(super) struct PathChanges {
    by_reason: BTreeMap<(Option<PathKind>, PathReason), u64>,
    fallbacks: u64,
}

impl PathChanges {
    fn count(&mut self, change: Change) {
        let to = change.to.map(|key| key.kind());
        *self.by_reason.entry((to, change.reason)).or_default() += 1;
        let fell = (change.from, to) == (Some(PathKind::Direct), Some(PathKind::Relay));
        self.fallbacks += u64::from(fell);
    }
}

impl Engine {
    pub(super) fn count_change(&mut self, network: NetworkIndex, change: Change) {
        if let Some(network) = self.networks.get_mut(&network) {
            network.changes.count(change);
        }
    }

    /// What there is to monitor; of at most [`limits::METRICS_PEERS`] peers.
    pub fn metrics(&self, now: Instant) -> Metrics {
        let mut room = limits::METRICS_PEERS;
        let mut peers_omitted = 0;
        let networks = self.networks.iter();
        let networks = networks.map(|(index, network)| {
            let measured = self.network_metrics(now, *index, network, room);
            room -= measured.peers.len();
            peers_omitted += network.by_key.len() - measured.peers.len();
            measured
        });
        Metrics {
            networks: networks.collect(),
            peers_omitted,
            drops: self.drops,
            traversal: self.traversal,
        }
    }

    fn network_metrics(
        &self,
        now: Instant,
        index: NetworkIndex,
        network: &Network,
        room: usize,
    ) -> NetworkMetrics {
        let members = network.by_key.values().filter_map(|peer| self.peer(*peer));
        let mut members: Vec<&Peer> = members.collect();
        let mut peers_by_state = [0; PeerState::ALL.len()];
        for peer in &members {
            peers_by_state[peer.state(now) as usize] += 1;
        }
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let relays = network.relays.iter();
        let relays = relays.filter_map(|handle| self.relays.get(handle));
        NetworkMetrics {
            index,
            peers_by_state,
            path_changes: network.changes.by_reason.clone(),
            relay_fallbacks: network.changes.fallbacks,
            relays: relays
                .map(|relay| RelayMetrics {
                    url: relay.url.clone(),
                    connected: relay.ready().is_some(),
                    home: network.home == Some(relay.handle),
                    rtt: self.relay_rtt(relay.handle),
                })
                .collect(),
            peers: members
                .into_iter()
                .take(room)
                .map(|peer| peer_metrics(now, peer))
                .collect(),
        }
    }
}

fn peer_metrics(now: Instant, peer: &Peer) -> PeerMetrics {
    let path = peer.paths.current().filter(|_| peer.is_ready());
    PeerMetrics {
        key: peer.key,
        name: peer.name.clone(),
        path: path
            .filter(|path| path.route().is_some())
            .map(|path| (path.key.kind(), path.rtt())),
        path_times: PathKind::ALL.map(|kind| peer.paths.time_by(kind, now)),
        tx_bytes: peer.tx_bytes,
        rx_bytes: peer.rx_bytes,
        last_handshake: peer.last_handshake.map(|at| now.since(at)),
    }
}
