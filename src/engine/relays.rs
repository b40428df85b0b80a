//! Relay connections: dialling, channels to peers, and the choice of the home relay.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Engine, Event, NetworkIndex, Output, RelayAction, RelayEvent, RelayHandle};
use crate::batch::Batches;
use crate::identity::NodeId;
use crate::path::PathKey;
use crate::path::candidates::is_acceptable;
use crate::peer::PeerIndex;
use crate::relay::client::{Due, RelayClient};
use crate::time::Instant;
use crate::wire::relay::{ClientMessage, MAX_SENT_PACKET, PROTOCOL_VERSION, ServerMessage};

/// The home relay is left only for one that is nearer by this much and by a third.
const HOME_MARGIN: Duration = Duration::from_millis(10);

impl Engine {
    /// Takes what the shell reports about a relay connection.
    pub fn handle_relay(
        &mut self,
        now: Instant,
        handle: RelayHandle,
        event: RelayEvent,
        out: &mut Batches,
    ) {
        let Some(relay) = self.relays.get_mut(&handle) else {
            return;
        };
        match event {
            RelayEvent::Connected { remote } => {
                relay.connected(now, remote);
                self.greet_relay(now, handle);
            }
            RelayEvent::Message(message) => self.handle_relay_message(now, handle, message, out),
            RelayEvent::Closed { reason } => {
                let network = relay.network;
                let wanted = self.wants_relay(now, network);
                if let Some(relay) = self.relays.get_mut(&handle) {
                    relay.closed(now, reason, wanted, &mut self.rng);
                }
                self.relay_lost(now, handle);
            }
        }
    }

    /// Says hello, and at once what is wanted: the relay reads it in turn, and an answer that would have to be waited for is
    /// a round trip more without data.
    fn greet_relay(&mut self, now: Instant, handle: RelayHandle) {
        let Some(network) = self.relays.get(&handle).map(|relay| relay.network) else {
            return;
        };
        let version = PROTOCOL_VERSION;
        self.tell_relay(now, handle, ClientMessage::Hello { version });
        for index in self.peers_of(network) {
            if self.peer(index).is_some_and(|peer| peer.is_active(now)) {
                self.open_channel(now, index, handle, true);
            }
        }
    }

    fn handle_relay_message(
        &mut self,
        now: Instant,
        handle: RelayHandle,
        message: ServerMessage,
        out: &mut Batches,
    ) {
        let Some(relay) = self.relays.get_mut(&handle) else {
            return;
        };
        let network = relay.network;
        relay.heard();
        match message {
            ServerMessage::Welcome {
                observed,
                alternatives,
                ..
            } => {
                if relay.welcomed(now, observed, alternatives) {
                    self.relay_ready(now, network, out);
                }
            }
            ServerMessage::Refused { reason } => {
                relay.refused(now, reason);
                self.hang_up(now, handle);
            }
            ServerMessage::Replaced => {
                relay.replaced(now);
                self.hang_up(now, handle);
            }
            ServerMessage::Draining => {
                let wanted = self.wants_relay(now, network);
                let reason = "the relay is shutting down".to_owned();
                if let Some(relay) = self.relays.get_mut(&handle) {
                    relay.closed(now, reason, wanted, &mut self.rng);
                }
                self.hang_up(now, handle);
            }
            ServerMessage::Observed { addr } => {
                relay.observed = Some(addr);
                self.update_offer(now);
            }
            ServerMessage::Pong { nonce } => self.relay_answered(now, nonce),
            ServerMessage::Received { from, packet } => {
                // Whoever writes to us by the control stream has no channel; it takes both sides to use one.
                if let Some(index) = self.peer_of(network, from) {
                    self.open_channel(now, index, handle, true);
                }
                self.handle_relayed(now, network, PathKey::Relay(handle), from, packet, out);
            }
            ServerMessage::Channel {
                peer,
                channel,
                peer_addr,
            } => {
                self.channel_opened(now, handle, peer, channel, peer_addr, out);
            }
            ServerMessage::PeerGone { peer } => {
                if let Some(index) = self.peer_of(network, peer) {
                    self.channel_lost(handle, index);
                    self.update_path(now, index, out);
                    self.arm(now, index, None);
                }
            }
        }
    }

    fn peer_of(&self, network: NetworkIndex, peer: NodeId) -> Option<PeerIndex> {
        let key = super::PeerKey::Mesh(peer);
        self.networks.get(&network)?.by_key.get(&key).copied()
    }

    pub(super) fn tell_relay(&mut self, now: Instant, handle: RelayHandle, message: ClientMessage) {
        let held_up = |relay: &RelayClient| relay.is_held_up(now);
        // A ping may be there to tell that what was said before it has arrived.
        let in_turn = matches!(message, ClientMessage::Ping { .. });
        if !in_turn && message.may_be_hastened() && self.relays.get(&handle).is_some_and(held_up) {
            self.hasten(handle, message.clone());
        }
        self.outputs
            .push_back(Output::Relay(handle, RelayAction::Send(message)));
    }

    /// Says something past the control stream; see [`RelayAction::Hasten`].
    pub(super) fn hasten(&mut self, handle: RelayHandle, message: ClientMessage) {
        let hasten = RelayAction::Hasten(message);
        self.outputs.push_back(Output::Relay(handle, hasten));
    }

    fn hang_up(&mut self, now: Instant, handle: RelayHandle) {
        self.outputs
            .push_back(Output::Relay(handle, RelayAction::Hangup));
        self.relay_lost(now, handle);
    }

    /// A relay can be used: try again what had no way until now.
    fn relay_ready(&mut self, now: Instant, network: NetworkIndex, out: &mut Batches) {
        self.prober.request(now);
        self.choose_home(network);
        self.emit(Event::HealthChanged { network });
        for index in self.peers_of(network) {
            let Some(peer) = self.peer_mut(index) else {
                continue;
            };
            // A call that was made without a relay reached nobody.
            let waits = peer.punching.running.is_none() && peer.punching.next.is_some();
            if waits && peer.is_active(now) && !peer.paths.has_usable_direct(now) {
                peer.punching.next = Some(now);
                self.arm(now, index, Some(now));
            }
            let Some(peer) = self.peer_mut(index) else {
                continue;
            };
            if let Some(handshake) = &mut peer.handshake {
                handshake.hurry(now);
                self.service_peer(now, index, out);
            } else if peer.is_active(now) {
                for relay in self.ready_relays(network) {
                    self.open_channel(now, index, relay, true);
                }
            }
        }
    }

    /// A relay's connection is gone, and with it every path through it.
    pub(super) fn relay_lost(&mut self, now: Instant, handle: RelayHandle) {
        let Some(network) = self.relays.get(&handle).map(|relay| relay.network) else {
            return;
        };
        self.channels.retain(|_, (relay, _)| *relay != handle);
        for index in self.peers_of(network) {
            let key = PathKey::Relay(handle);
            if let Some(path) = self
                .peer_mut(index)
                .and_then(|peer| peer.paths.get_mut(key))
            {
                path.set_channel(None);
                self.arm(now, index, Some(now));
            }
            if let Some(peer) = self.peer_mut(index) {
                peer.punching.seen.remove(&handle);
            }
        }
        self.choose_home(network);
        self.emit(Event::HealthChanged { network });
    }

    pub(super) fn peers_of(&self, network: NetworkIndex) -> Vec<PeerIndex> {
        let network = self.networks.get(&network);
        network.map_or_else(Vec::new, |network| {
            network.by_key.values().copied().collect()
        })
    }

    pub(super) fn ready_relays(&self, network: NetworkIndex) -> Vec<RelayHandle> {
        let relays = self
            .networks
            .get(&network)
            .map_or(&[][..], |network| &network.relays);
        let ready = |handle: &&RelayHandle| {
            self.relays
                .get(handle)
                .is_some_and(|relay| relay.ready().is_some())
        };
        relays.iter().filter(ready).copied().collect()
    }

    /// Asks for a channel to a peer, unless there is one.
    pub(super) fn open_channel(
        &mut self,
        now: Instant,
        index: PeerIndex,
        relay: RelayHandle,
        urgent: bool,
    ) {
        let stands = |relay: &RelayClient| relay.remote().is_some();
        if !self.relays.get(&relay).is_some_and(stands) {
            return;
        }
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let Some(id) = peer.node_id() else { return };
        let ask = peer
            .paths
            .get_or_add(PathKey::Relay(relay), now)
            .is_some_and(|path| path.ask_for_channel(now, urgent));
        if ask {
            self.tell_relay(now, relay, ClientMessage::OpenChannel { peer: id });
        }
    }

    fn channel_opened(
        &mut self,
        now: Instant,
        handle: RelayHandle,
        peer: NodeId,
        channel: u32,
        peer_addr: Option<SocketAddr>,
        out: &mut Batches,
    ) {
        let Some(relay) = self.relays.get(&handle) else {
            return;
        };
        let Some(remote) = relay.ready() else { return };
        let Some(index) = self.peer_of(relay.network, peer) else {
            // Someone whom the relay admits and we do not know: no state for them.
            self.tell_relay(now, handle, ClientMessage::CloseChannel { channel });
            return;
        };
        self.channels
            .retain(|_, (relay, owner)| !(*relay == handle && *owner == index));
        self.channels.insert((remote, channel), (handle, index));
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        if let Some(path) = peer.paths.get_or_add(PathKey::Relay(handle), now) {
            path.set_channel(Some((remote, channel)));
        }
        let peer_addr = peer_addr.filter(|addr| is_acceptable(*addr));
        // What the relay has seen itself, and the only address that many ports may be tried at.
        peer.punching.observed = peer_addr.or(peer.punching.observed);
        if let Some(addr) = peer_addr {
            peer.punching.seen.insert(handle, addr);
        }
        if let Some(addr) = peer_addr
            && !peer.candidates.contains(&addr)
            && peer.candidates.len() < crate::limits::MAX_CANDIDATES
        {
            peer.candidates.push(addr);
        }
        self.service_peer(now, index, out);
    }

    fn channel_lost(&mut self, handle: RelayHandle, index: PeerIndex) {
        self.channels
            .retain(|_, (relay, owner)| !(*relay == handle && *owner == index));
        if let Some(path) = self
            .peer_mut(index)
            .and_then(|peer| peer.paths.get_mut(PathKey::Relay(handle)))
        {
            path.set_channel(None);
        }
        if let Some(peer) = self.peer_mut(index) {
            peer.punching.seen.remove(&handle);
        }
    }

    /// Sends a packet on the control stream. `false` if the relay is not there.
    pub(super) fn send_by_relay(
        &mut self,
        now: Instant,
        index: PeerIndex,
        relay: RelayHandle,
        packet: Vec<u8>,
    ) -> bool {
        let to = self.peer(index).and_then(|peer| peer.node_id());
        let ready = self
            .relays
            .get(&relay)
            .is_some_and(|relay| relay.ready().is_some());
        match to {
            Some(to) if ready && packet.len() <= MAX_SENT_PACKET => {
                self.tell_relay(now, relay, ClientMessage::Send { to, packet });
                true
            }
            _ => false,
        }
    }

    /// A relay's address asks who we are (a challenge), or says that it does not know us there (a rebind). Both are
    /// plain datagrams that anyone can forge, so the answer goes over the authenticated connection, and not too often.
    pub(super) fn relay_asks(&mut self, now: Instant, remote: SocketAddr, challenge: Option<u64>) {
        let asked = self
            .relays
            .values_mut()
            .filter(|relay| relay.remote() == Some(remote));
        let mut handles = Vec::new();
        for relay in asked {
            if relay.may_answer(now) {
                handles.push(relay.handle);
            }
        }
        if handles.is_empty() {
            self.drops.unknown_channel += 1;
        }
        for handle in handles {
            let nonce = challenge.unwrap_or_default();
            let message = match challenge {
                Some(_) => ClientMessage::ProveAddress { nonce },
                None => ClientMessage::Ping { nonce },
            };
            self.tell_relay(now, handle, message);
        }
    }

    pub(super) fn service_relays(&mut self, now: Instant) {
        let offline = self.is_offline();
        let handles: Vec<RelayHandle> = self.relays.keys().copied().collect();
        for handle in handles {
            let Some(relay) = self.relays.get_mut(&handle) else {
                continue;
            };
            if relay.deadline().is_none_or(|deadline| now < deadline) {
                continue;
            }
            if offline && relay.remote().is_none() {
                relay.put_off(now);
                self.outputs
                    .push_back(Output::Relay(handle, RelayAction::Hangup));
                continue;
            }
            let network = relay.network;
            let wanted = self.wants_relay(now, network);
            let Some(relay) = self.relays.get_mut(&handle) else {
                continue;
            };
            match relay.handle_timeout(now, wanted, &mut self.rng) {
                Due::Nothing => {}
                Due::Dial => {
                    let (network, url) = (relay.network, relay.url.clone());
                    let dial = RelayAction::Dial { network, url };
                    self.outputs.push_back(Output::Relay(handle, dial));
                }
                Due::Keep => {
                    let nonce = self.rng.u64();
                    self.tell_relay(now, handle, ClientMessage::Ping { nonce });
                }
                Due::GiveUp => self.hang_up(now, handle),
            }
        }
    }

    /// The nearest relay, with a bias for the present one.
    pub(super) fn choose_home(&mut self, index: NetworkIndex) {
        let ready = self.ready_relays(index);
        let rtt = |handle: RelayHandle| self.relay_rtt(handle).unwrap_or(Duration::MAX);
        let best = ready.iter().copied().min_by_key(|handle| rtt(*handle));
        let Some(network) = self.networks.get(&index) else {
            return;
        };
        let home = match (network.home.filter(|home| ready.contains(home)), best) {
            (Some(home), Some(best)) => {
                let (old, new) = (rtt(home), rtt(best));
                let nearer = old.saturating_sub(new) >= HOME_MARGIN && new <= old / 3 * 2;
                Some(if nearer { best } else { home })
            }
            (_, best) => best,
        };
        if let Some(network) = self.networks.get_mut(&index) {
            network.home = home;
        }
    }

    /// The home relay of a mesh peer's network.
    pub(super) fn home_relay_of(&self, index: PeerIndex) -> Option<RelayHandle> {
        let peer = self.peer(index)?;
        peer.node_id()?;
        self.networks.get(&peer.network)?.home
    }

    /// STUN round trip time of a relay.
    pub(super) fn relay_rtt(&self, handle: RelayHandle) -> Option<Duration> {
        self.prober.rtt(self.relays.get(&handle)?.ready()?)
    }
}
