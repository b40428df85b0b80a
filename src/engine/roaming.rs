//! What happens when the network around this host changes, or when a peer has moved.
//!
//! Nothing is known to be broken then, but everything may be: each path is probed at once from where we are now, data in
//! doubt goes a second way meanwhile, relays are asked or dialled without waiting, and the peers are told our new
//! addresses on every way that may lead to them.

use std::net::IpAddr;

use super::{Engine, HostAddress, PeerIndex, RelayHandle};
use crate::path::PathKey;
use crate::peer::Peer;
use crate::relay::client::RelayClient;
use crate::time::Instant;
use crate::wire::control::Control;
use crate::wire::relay::ClientMessage;

impl Engine {
    /// Tells which addresses this host has, and the ports of the mesh sockets.
    ///
    /// To be called after every change of the network around us, also if the addresses are the same as before: another
    /// default route, or a link that is back, changes where packets go.
    pub fn set_local_addresses(
        &mut self,
        now: Instant,
        host: &[HostAddress],
        port_v4: Option<u16>,
        port_v6: Option<u16>,
    ) {
        let overlay = |ip: IpAddr| self.networks.values().any(|network| network.covers(ip));
        let mut host: Vec<HostAddress> = host
            .iter()
            .filter(|address| !overlay(address.ip))
            .copied()
            .collect();
        host.sort();
        host.dedup();
        let ports = (port_v4, port_v6);
        // A bridge of containers that comes or goes changes what we offer, and no path.
        let only_bridges =
            self.host != host && self.ports == ports && real(&self.host).eq(real(&host));
        self.was_online |= real(&host).next().is_some();
        self.link_mtu = host.iter().map(|address| address.mtu).max().unwrap_or(0);
        self.host = host;
        self.ports = ports;
        if !only_bridges {
            self.network_changed(now);
        }
    }

    /// This host, or this process, was not running for a while: as after a change of the network, everything may be
    /// different, and peers and relays may have given us up.
    pub fn resumed(&mut self, now: Instant) {
        self.network_changed(now);
    }

    fn network_changed(&mut self, now: Instant) {
        self.reset_prober(now);
        self.forget_lifetime(now);
        self.abandon_attempt(now);
        self.lan.network_changed(now, &mut self.rng);
        let handles: Vec<RelayHandle> = self.relays.keys().copied().collect();
        for handle in handles {
            if let Some(relay) = self.relays.get_mut(&handle) {
                relay.observed = None;
                relay.hurry(now);
                relay.forget_question();
            }
            // Shows the relay our new address, if it is one, and us whether the connection still stands.
            self.ask_relay(now, handle);
        }
        let families = [true, false].map(|v4| self.has_family(v4));
        let peers: Vec<PeerIndex> = self.peers.iter().map(|(_, peer)| peer.index).collect();
        for index in peers {
            let Some(peer) = self.peer_mut(index) else {
                continue;
            };
            peer.paths
                .doubt_all(now, |ip| families[usize::from(ip.is_ipv6())]);
            if peer.is_active(now) {
                peer.punching.failed = 0;
                peer.punching.running = None;
                peer.punching.next = Some(now);
                if let Some(handshake) = &mut peer.handshake {
                    handshake.hurry(now);
                }
                self.arm(now, index, Some(now));
            }
        }
    }

    /// Our address as others see it may have changed, or what is known of our NAT: peers that are being called have to
    /// know.
    pub(super) fn update_offer(&mut self, now: Instant) {
        let offer = (self.own_candidates(false), self.nat_profile());
        if self.offered == offer {
            return;
        }
        self.offered = offer;
        let wanting = |peer: &&Peer| {
            let wanted = peer.uses(now).active && peer.uses(now).probes;
            wanted && !peer.paths.has_usable_direct(now)
        };
        let peers = self.peers.iter().map(|(_, peer)| peer).filter(wanting);
        let peers: Vec<PeerIndex> = peers.map(|peer| peer.index).collect();
        for index in peers {
            self.offer_again(now, index);
        }
    }

    /// Repeats the call that is under way, or makes the next one without waiting any longer.
    fn offer_again(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let punching = &mut peer.punching;
        if punching.running.is_some() || punching.called.is_some() {
            let round = punching.round;
            self.send_call(now, index, round, false, None);
        } else if punching.failed > 0 {
            punching.next = Some(now);
        }
        self.reconsider(now, index);
        self.arm(now, index, None);
    }

    /// True if packets of a family can leave, as far as is known.
    fn has_family(&self, v4: bool) -> bool {
        let mut real = real(&self.host).peekable();
        // A host that told no addresses may still have some.
        real.peek().is_none() || real.any(|ip| ip.is_ipv4() == v4)
    }

    /// True while this host has no way out, as far as is known: it had one, and all that is left are virtual interfaces.
    pub(super) fn is_offline(&self) -> bool {
        self.was_online && real(&self.host).next().is_none()
    }

    /// True while this host has no address at all, and had some. Nothing should be sent then: each packet would only keep
    /// the kernel asking for a router that is not there, a second at a time, and that second would still be running when
    /// the link is back.
    pub fn is_cut_off(&self) -> bool {
        self.is_offline() && self.host.is_empty()
    }

    /// Asks a relay whether it is still there; it is given up if it does not answer. Not while nothing can get out: the
    /// connection may outlive the pause, and to make a new one takes several times as long as to go on with it.
    pub(super) fn ask_relay(&mut self, now: Instant, handle: RelayHandle) {
        if self.is_offline() {
            return;
        }
        let rtt = self.relay_rtt(handle);
        let asks = |relay: &mut RelayClient| relay.ask(now, rtt);
        if self.relays.get_mut(&handle).is_some_and(asks) {
            let nonce = self.rng.u64();
            self.hasten(handle, ClientMessage::Ping { nonce });
            self.tell_relay(now, handle, ClientMessage::Ping { nonce });
        }
    }

    /// True if some peer needs a relay now: it is in use, and no direct path leads to it.
    pub(super) fn wants_relay(&self, now: Instant, network: super::NetworkIndex) -> bool {
        self.peers_of(network).into_iter().any(|index| {
            self.peer(index).is_some_and(|peer| {
                peer.is_active(now)
                    && peer.node_id().is_some()
                    && !peer.paths.has_usable_direct(now)
            })
        })
    }

    /// Sends a message on the path in use; if that is in doubt, through every relay as well, and over the control
    /// connections: a relay forwards no data from an address of ours that it has not confirmed yet. `false` if there is no
    /// way at all.
    pub(super) fn send_anyhow(
        &mut self,
        now: Instant,
        index: PeerIndex,
        message: &Control,
    ) -> bool {
        let Some(peer) = self.peer(index) else {
            return false;
        };
        let doubtful = peer
            .paths
            .current()
            .is_none_or(|path| path.is_doubted() || !path.is_usable(now));
        let network = peer.network;
        let mut sent = self.send_control(now, index, None, message, None);
        if doubtful {
            for relay in self.ready_relays(network) {
                if let Some(sealed) = self.seal_control(now, index, message) {
                    sent |= self.send_by_relay(now, index, relay, sealed);
                }
            }
        }
        sent
    }

    /// The peer wants a new direct path, or sends from somewhere else: the one in use may be of no use any more.
    pub(super) fn peer_may_have_moved(&mut self, now: Instant, index: PeerIndex) {
        if let Some(peer) = self.peer_mut(index)
            && peer.is_active(now)
            && peer.uses(now).probes
        {
            peer.paths.doubt_direct(now);
        }
    }

    /// Authentic packets come from an address that is no proven path: if a direct path is in use, the peer's NAT has
    /// given it another address, or the peer has moved.
    pub(super) fn heard_elsewhere(&mut self, now: Instant, index: PeerIndex, key: PathKey) {
        let Some(peer) = self.peer(index) else { return };
        let moved = matches!(key, PathKey::Direct(..))
            && peer.uses(now).probes
            && peer.punching.running.is_none()
            && peer
                .paths
                .get(key)
                .is_some_and(|path| !path.is_proven(now) && !path.was_probed_lately(now))
            && peer.paths.current().is_some_and(|current| {
                matches!(current.key, PathKey::Direct(..)) && current.key != key
            });
        if moved {
            self.peer_may_have_moved(now, index);
            self.check_path(now, index, key);
        }
    }
}

/// Addresses that paths may start from.
fn real(host: &[HostAddress]) -> impl Iterator<Item = IpAddr> {
    let real = host.iter().filter(|address| !address.virtual_interface);
    real.map(|address| address.ip)
}
