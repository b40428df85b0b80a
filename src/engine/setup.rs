//! Networks and peers come and go with the configuration.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::metrics::PathChanges;
use super::spares::Owner;
use super::{
    Engine, Event, Network, NetworkIndex, NetworkSetup, Output, PeerSetup, RelayAction, RelayHandle,
};
use crate::identity::{RelayUrl, overlay_address};
use crate::limits;
use crate::nat::lifetime::Lifetime;
use crate::peer::{Peer, PeerIndex, prefixes};
use crate::relay::client::RelayClient;
use crate::routing::RoutingTable;
use crate::session::LocalKey;
use crate::time::Instant;
use crate::wire::relay::ClientMessage;

/// Why a network cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The index is in use.
    #[error("the network is running already")]
    Exists,
    /// The index is not in use.
    #[error("there is no such network")]
    Missing,
    /// More networks, peers or relays than [`limits`] allows.
    #[error("too many {what}: at most {limit} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are possible.
        limit: usize,
    },
    /// A peer is ourselves, or two peers have one key.
    #[error("peer {name:?} has the same key as {other}; every node needs a key of its own")]
    DuplicateKey {
        /// The later of the two.
        name: String,
        /// The other one.
        other: String,
    },
    /// Two peers claim one prefix.
    #[error("{prefix} of peer {name:?} belongs to another peer already; change one of them")]
    DuplicatePrefix {
        /// The later of the two.
        name: String,
        /// What both claim.
        prefix: IpNet,
    },
}

impl Engine {
    /// Runs a network.
    ///
    /// # Errors
    /// The setup contradicts itself or exceeds a limit; then nothing changes.
    pub fn add_network(
        &mut self,
        now: Instant,
        index: NetworkIndex,
        setup: NetworkSetup,
    ) -> Result<(), SetupError> {
        if self.networks.contains_key(&index) {
            return Err(SetupError::Exists);
        }
        if self.networks.len() >= limits::MAX_NETWORKS {
            return Err(SetupError::TooMany {
                what: "networks",
                limit: limits::MAX_NETWORKS,
            });
        }
        check(&setup)?;
        let network = Network {
            name: setup.name,
            id: setup.id,
            local: LocalKey::new(&setup.identity.wireguard_secret(), now),
            overlay: overlay_address(&setup.id, &setup.identity.id()),
            routes: RoutingTable::default(),
            by_key: BTreeMap::new(),
            by_wireguard_key: BTreeMap::new(),
            relays: Vec::new(),
            home: None,
            addresses: setup.addresses,
            mtu: setup.mtu,
            changes: PathChanges::default(),
        };
        self.networks.insert(index, network);
        self.port_mapper.set_wanted(true);
        self.join_lan(now);
        for peer in setup.peers {
            self.add_peer(index, peer);
        }
        for url in setup.relays {
            self.add_relay(now, index, url);
        }
        Ok(())
    }

    /// Applies a changed setup; sessions and paths of peers whose keys stay the same live on.
    ///
    /// # Errors
    /// As [`Self::add_network`]; then nothing changes.
    pub fn update_network(
        &mut self,
        now: Instant,
        index: NetworkIndex,
        setup: NetworkSetup,
    ) -> Result<(), SetupError> {
        let network = self.networks.get(&index).ok_or(SetupError::Missing)?;
        check(&setup)?;
        let local = LocalKey::new(&setup.identity.wireguard_secret(), now);
        if network.id != setup.id || network.local.public() != local.public() {
            self.remove_network(index);
            return self.add_network(now, index, setup);
        }
        if let Some(network) = self.networks.get_mut(&index) {
            network.addresses = setup.addresses;
            network.mtu = setup.mtu;
        }
        self.update_peers(index, setup.peers);
        self.update_relays(now, index, setup.relays);
        Ok(())
    }

    fn update_peers(&mut self, index: NetworkIndex, setups: Vec<PeerSetup>) {
        let Some(network) = self.networks.get_mut(&index) else {
            return;
        };
        network.routes = RoutingTable::default();
        let mut old = std::mem::take(&mut network.by_key);
        network.by_wireguard_key.clear();
        for setup in setups {
            match old.remove(&setup.key) {
                Some(peer) if self.peer_mut(peer).is_some_and(|peer| peer.update(&setup)) => {
                    self.link_peer(peer)
                }
                Some(peer) => {
                    self.drop_peer(peer);
                    self.add_peer(index, setup);
                }
                None => self.add_peer(index, setup),
            }
        }
        for peer in old.into_values() {
            self.drop_peer(peer);
        }
    }

    fn update_relays(&mut self, now: Instant, index: NetworkIndex, urls: Vec<RelayUrl>) {
        let Some(network) = self.networks.get(&index) else {
            return;
        };
        let known: Vec<(RelayHandle, RelayUrl)> = network
            .relays
            .iter()
            .filter_map(|handle| Some((*handle, self.relays.get(handle)?.url.clone())))
            .collect();
        for (handle, url) in &known {
            if !urls.contains(url) {
                self.drop_relay(now, *handle);
            }
        }
        for url in urls {
            if !known.iter().any(|(_, known)| *known == url) {
                self.add_relay(now, index, url);
            }
        }
    }

    /// Stops a network and forgets everything about it.
    pub fn remove_network(&mut self, index: NetworkIndex) {
        self.leave_lan(index);
        let Some(network) = self.networks.remove(&index) else {
            return;
        };
        for peer in network.by_key.into_values() {
            self.drop_peer(peer);
        }
        for handle in network.relays {
            self.relays.remove(&handle);
            self.channels.retain(|_, (relay, _)| *relay != handle);
            self.outputs
                .push_back(Output::Relay(handle, RelayAction::Hangup));
        }
        self.port_mapper.set_wanted(!self.networks.is_empty());
    }

    fn add_peer(&mut self, index: NetworkIndex, setup: PeerSetup) {
        let Some(id) = self.networks.get(&index).map(|network| network.id) else {
            return;
        };
        let entry = self.peers.vacant_entry();
        // Bounded by MAX_NETWORKS * MAX_PEERS = 2^20, see `check`.
        let peer_index = PeerIndex(u32::try_from(entry.key()).unwrap_or(u32::MAX));
        let peer = entry.insert(Peer::new(peer_index, index, &id, setup));
        peer.paths.set_lifetime(self.lifetimes.here());
        self.link_peer(peer_index);
    }

    /// Enters a peer into the tables of its network.
    fn link_peer(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get(index.0 as usize) else {
            return;
        };
        let Some(network) = self.networks.get_mut(&peer.network) else {
            return;
        };
        network.by_key.insert(peer.key, index);
        network
            .by_wireguard_key
            .insert(peer.key.to_wireguard(), index);
        for prefix in peer.prefixes() {
            network.routes.insert(prefix, index);
        }
    }

    fn drop_peer(&mut self, index: PeerIndex) {
        self.forget_attempt(index);
        self.lan.forget(index);
        for socket in self.spares.of(Owner::Peer(index)) {
            self.close_spare(socket);
        }
        let Some(mut peer) = self.peers.try_remove(index.0 as usize) else {
            return;
        };
        if let Some(session) = peer.session() {
            session.release(&mut self.indices);
        }
        if let Some(armed) = peer.armed {
            self.timers.remove(&(armed, index));
        }
        for ping in peer.pings {
            let (token, answer) = (ping.token, None);
            self.emit(Event::Pong { token, answer });
        }
        let closed = self
            .channels
            .extract_if(.., |_, (_, owner)| *owner == index);
        for ((_, channel), (relay, _)) in closed {
            let close = RelayAction::Send(ClientMessage::CloseChannel { channel });
            self.outputs.push_back(Output::Relay(relay, close));
        }
    }

    fn add_relay(&mut self, now: Instant, network: NetworkIndex, url: RelayUrl) {
        let handle = RelayHandle(self.next_relay);
        self.next_relay = self.next_relay.wrapping_add(1);
        let mut relay = RelayClient::new(handle, network, url, now);
        relay.set_keepalive(now, self.lifetimes.here().map(Lifetime::keepalive));
        self.relays.insert(handle, relay);
        if let Some(network) = self.networks.get_mut(&network) {
            network.relays.push(handle);
        }
    }

    fn drop_relay(&mut self, now: Instant, handle: RelayHandle) {
        self.relay_lost(now, handle);
        if let Some(relay) = self.relays.remove(&handle)
            && let Some(network) = self.networks.get_mut(&relay.network)
        {
            network.relays.retain(|other| *other != handle);
            self.choose_home(relay.network);
        }
        self.outputs
            .push_back(Output::Relay(handle, RelayAction::Hangup));
    }
}

/// What `config` cannot see because it takes the keys, and the bounds that everything else relies on.
fn check(setup: &NetworkSetup) -> Result<(), SetupError> {
    let too_many = |what, count: usize, limit: usize| {
        if count > limit {
            Err(SetupError::TooMany { what, limit })
        } else {
            Ok(())
        }
    };
    too_many("peers", setup.peers.len(), limits::MAX_PEERS)?;
    too_many("relays", setup.relays.len(), limits::MAX_RELAYS)?;
    let mut keys = BTreeMap::from([(setup.identity.id().to_wireguard(), None)]);
    let mut taken = BTreeSet::new();
    for peer in &setup.peers {
        if let Some(other) = keys.insert(peer.key.to_wireguard(), Some(&peer.name)) {
            let other = other.map_or("this host".to_owned(), |name| format!("peer {name:?}"));
            return Err(SetupError::DuplicateKey {
                name: peer.name.clone(),
                other,
            });
        }
        for prefix in prefixes(peer.overlay(&setup.id), &peer.addresses, &peer.routes) {
            if !taken.insert(prefix.trunc()) {
                return Err(SetupError::DuplicatePrefix {
                    name: peer.name.clone(),
                    prefix,
                });
            }
        }
    }
    Ok(())
}
