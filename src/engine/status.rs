//! What the engine tells about itself.

use std::net::{IpAddr, SocketAddr};

use super::{
    Drops, Engine, Event, NetcheckReport, Network, NetworkIndex, NetworkStatus, PeerStatus,
    RelayReport,
};
use crate::nat::lifetime::Lifetime;
use crate::peer::Peer;
use crate::time::Instant;

impl Engine {
    /// Every network with its peers, as `meshctl status` shows them.
    pub fn status(&self, now: Instant) -> Vec<NetworkStatus> {
        let networks = self.networks.iter();
        networks
            .map(|(index, network)| self.network_status(now, *index, network))
            .collect()
    }

    /// Dropped datagrams and packets by reason, since the start.
    pub fn drops(&self) -> Drops {
        self.drops
    }

    fn network_status(
        &self,
        now: Instant,
        index: NetworkIndex,
        network: &Network,
    ) -> NetworkStatus {
        let members = network.by_key.values().filter_map(|peer| self.peer(*peer));
        let mut peers: Vec<PeerStatus> = members.map(|peer| self.peer_status(now, peer)).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let home = network.home.and_then(|home| self.relays.get(&home));
        NetworkStatus {
            index,
            home_relay: home.map(|relay| relay.url.clone()),
            endpoints: self.public_endpoints(),
            peers,
            health: self.health(network),
        }
    }

    fn peer_status(&self, now: Instant, peer: &Peer) -> PeerStatus {
        let derived = peer.overlay.map(std::net::IpAddr::from);
        PeerStatus {
            key: peer.key,
            wireguard_key: peer.key.to_wireguard(),
            name: peer.name.clone(),
            addresses: derived
                .into_iter()
                .chain(peer.addresses.iter().copied())
                .collect(),
            routes: peer.routes.clone(),
            state: peer.state(now),
            path: self.path_status(now, peer).filter(|_| peer.is_ready()),
            tx_bytes: peer.tx_bytes,
            rx_bytes: peer.rx_bytes,
            last_handshake: peer.last_handshake.map(|at| now.since(at)),
            last_rx: peer.last_rx.map(|at| now.since(at)),
        }
    }

    /// Where others see us.
    fn public_endpoints(&self) -> Vec<SocketAddr> {
        let observed = self.relays.values().filter_map(|relay| relay.observed);
        let reflexive = self.prober.reflexive().chain(observed);
        let mut endpoints: Vec<SocketAddr> = reflexive.chain(self.offered_mappings()).collect();
        endpoints.sort();
        endpoints.dedup();
        endpoints
    }

    fn health(&self, network: &Network) -> Vec<String> {
        let mut lines = Vec::new();
        for relay in network
            .relays
            .iter()
            .filter_map(|handle| self.relays.get(handle))
        {
            if let Some(problem) = &relay.problem {
                lines.push(format!(
                    "relay {}:{}: {problem}",
                    relay.url.host, relay.url.port
                ));
            }
        }
        let lonely = network
            .by_key
            .values()
            .filter_map(|peer| self.peer(*peer))
            .filter(|peer| peer.endpoints.is_empty() && peer.node_id().is_some())
            .count();
        if network.relays.is_empty() && lonely > 0 {
            lines.push(format!(
                "{lonely} peers have no `endpoints` and network {:?} has no `relays`: outside our own local networks they can only call us; add a relay",
                network.name
            ));
        }
        lines
    }

    /// Our external IPv4 addresses, those of measurements and those of the mesh socket.
    fn outside(&self) -> Vec<IpAddr> {
        let reflexive = self.prober.reflexive().map(|address| address.ip());
        let measured = self.prober.findings().addresses.iter().copied();
        let mut addresses: Vec<IpAddr> =
            reflexive.chain(measured).filter(IpAddr::is_ipv4).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    pub(super) fn report_netcheck(&mut self, network: NetworkIndex, token: u64) {
        let relays = self
            .networks
            .get(&network)
            .map_or(&[][..], |network| &network.relays);
        let relays = relays
            .iter()
            .filter_map(|handle| self.relays.get(handle))
            .map(|relay| RelayReport {
                url: relay.url.clone(),
                rtt: self.relay_rtt(relay.handle),
            })
            .collect();
        let reflexive: Vec<SocketAddr> = self.prober.reflexive().collect();
        let report = NetcheckReport {
            udp: !reflexive.is_empty(),
            ipv4: reflexive.iter().find(|address| address.is_ipv4()).copied(),
            ipv6: reflexive.iter().find(|address| address.is_ipv6()).copied(),
            profile: self.nat_profile(),
            addresses: self.outside(),
            mapping_lifetime: self.lifetimes.here().map(Lifetime::at_least),
            ipv6_translated: self.prober.findings_v6().translated,
            ipv6_filtering: self.prober.findings_v6().profile.filtering,
            port_mapping: self.port_mapper.offers().into_iter().collect(),
            relays,
        };
        self.emit(Event::Netcheck { token, report });
    }
}
