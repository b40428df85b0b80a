//! What time makes happen for a peer: WireGuard's timers, handshakes, hellos, probes, and the choice of its path.

use super::{Engine, Event, PathReason, PathStatus, PongInfo, SocketId};
use crate::batch::Batches;
use crate::limits;
use crate::path::agent::Change;
use crate::path::mtu::MtuBounds;
use crate::path::{Path, PathKey};
use crate::peer::handshake::Handshake;
use crate::peer::{Peer, PeerIndex};
use crate::session::{Context, number};
use crate::time::Instant;
use crate::wire::control::{Control, VERSION};

impl Engine {
    /// Does everything that is due for one peer, and arms its next turn.
    pub(super) fn service_peer(&mut self, now: Instant, index: PeerIndex, out: &mut Batches) {
        self.service_session(now, index);
        self.service_channels(now, index);
        self.service_pings(now, index);
        self.service_handshake(now, index);
        self.service_hello(now, index);
        self.service_paths(now, index);
        self.service_alive(now, index);
        self.update_path(now, index, out);
        self.service_punch(now, index);
        self.service_spares(now, index);
        self.service_lan_wish(now, index);
        self.arm(now, index, None);
    }

    /// WireGuard's own timers.
    fn service_session(&mut self, now: Instant, index: PeerIndex) {
        let Self { peers, indices, .. } = self;
        let Some(peer) = peers.get_mut(index.0 as usize) else {
            return;
        };
        let Some(session) = peer.session() else {
            return;
        };
        let due = session.handle_timeout(now, indices);
        if due.handshake && peer.handshake.is_none() {
            peer.handshake = Some(Handshake::new(now));
        }
        if due.keepalive {
            self.send_keepalive(now, index, None);
        }
    }

    /// Sends an empty packet on one path, or on the current one.
    fn send_keepalive(&mut self, now: Instant, index: PeerIndex, path: Option<PathKey>) {
        let (kernel, out) = (self.kernel, &mut self.scratch[..]);
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let Some(key) = path.or_else(|| peer.paths.current().map(|path| path.key)) else {
            return;
        };
        let sealed = peer
            .session()
            .and_then(|session| session.seal(now, kernel, &[], out));
        if let Some(length) = sealed {
            let message = self.scratch[..length].to_vec();
            self.transmit(now, index, key, message, None);
        }
    }

    /// A peer in use has a channel through every relay that is ready, so that any failure leaves somewhere to go.
    fn service_channels(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer(index) else { return };
        if !peer.is_active(now) || !peer.is_ready() {
            return;
        }
        for relay in self.ready_relays(peer.network) {
            self.open_channel(now, index, relay, false);
        }
    }

    /// There is something to say to a peer that has no session, or no path: see to it that it gets one.
    pub(super) fn want_session(&mut self, now: Instant, index: PeerIndex, out: &mut Batches) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let needed = !peer.is_ready() || peer.paths.route().is_none();
        if needed && peer.handshake.is_none() {
            peer.handshake = Some(Handshake::new(now));
            self.service_peer(now, index, out);
        } else if peer.armed.is_none() {
            self.arm(now, index, Some(now));
        }
    }

    fn service_handshake(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let unreachable = !peer.is_ready() || peer.paths.route().is_none();
        // The peer may have restarted: then it answers nothing that is sealed with the old keys, on any path.
        let dead = peer.is_active(now) && peer.paths.current_failed();
        if peer.handshake.is_none() && (!peer.pings.is_empty() && unreachable || dead) {
            peer.handshake = Some(Handshake::new(now));
        }
        let rtt = peer.paths.current().and_then(Path::rtt);
        let Some(handshake) = &mut peer.handshake else {
            return;
        };
        if handshake.is_over(now) {
            peer.handshake = None;
            peer.queue.take();
            return;
        }
        if !handshake.poll(now, rtt) {
            return;
        }
        let Some(network) = self.networks.get(&peer.network) else {
            return;
        };
        let unix = self.unix + now.since_boot();
        let local = &network.local;
        let (indices, rng) = (&mut self.indices, &mut self.rng);
        let mut context = Context {
            local,
            indices,
            rng,
            now,
        };
        let message = peer
            .session_or_new(local)
            .and_then(|session| session.initiate(&mut context, unix));
        if let Some(message) = message {
            self.send_initiation(now, index, &message);
        }
    }

    /// Sends an initiation on every way that may lead to the peer; the first answer shows one that does.
    ///
    /// The same bytes go everywhere: the peer takes them once, and refuses the copies by their time stamp.
    fn send_initiation(&mut self, now: Instant, index: PeerIndex, message: &[u8]) {
        for key in self.initiation_paths(now, index) {
            if let Some(peer) = self.peer_mut(index)
                && peer.paths.get_or_add(key, now).is_none()
            {
                continue;
            }
            match key {
                PathKey::Direct(..) => {
                    self.transmit(now, index, key, message.to_vec(), None);
                }
                PathKey::Relay(relay) => {
                    self.open_channel(now, index, relay, true);
                    self.send_by_relay(now, index, relay, message.to_vec());
                }
            }
        }
    }

    fn initiation_paths(&self, now: Instant, index: PeerIndex) -> Vec<PathKey> {
        let Some(peer) = self.peer(index) else {
            return Vec::new();
        };
        let Some(network) = self.networks.get(&peer.network) else {
            return Vec::new();
        };
        let first = peer
            .handshake
            .as_ref()
            .is_none_or(|handshake| handshake.attempts() <= 1);
        let mut keys: Vec<PathKey> = Vec::new();
        let current = peer.paths.current().filter(|path| path.is_usable(now));
        keys.extend(current.map(|path| path.key));
        let direct = matches!(keys.first(), Some(PathKey::Direct(..)));
        if first && direct {
            return keys;
        }
        let endpoints = peer.endpoints.iter().take(limits::MAX_ENDPOINTS);
        keys.extend(endpoints.map(|endpoint| PathKey::direct(*endpoint)));
        keys.extend(peer.hints.live(now).map(PathKey::direct));
        let lately = peer.paths.iter().filter(|path| path.is_proven(now));
        keys.extend(lately.map(|path| path.key));
        // A stock WireGuard peer, or one that no relay reaches, may be just where it was last.
        keys.extend(peer.paths.current().map(|path| path.key));
        if peer.node_id().is_some() {
            let ready = self.ready_relays(peer.network).into_iter();
            let wanted =
                ready.filter(|relay| !first || network.home.is_none_or(|home| home == *relay));
            keys.extend(wanted.map(PathKey::Relay));
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// The peer's initiation was accepted: answer on the way that it came by. Nothing is proven yet.
    pub(super) fn accepted_initiation(
        &mut self,
        now: Instant,
        key: PathKey,
        index: PeerIndex,
        response: Vec<u8>,
        bytes: usize,
    ) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        peer.last_handshake = Some(now);
        peer.awaiting_confirmation = number(&response, 4).map(|session| (key, session));
        if peer.node_id().is_some() {
            peer.hello.start(now);
        }
        let Some(path) = peer.paths.get_or_add(key, now) else {
            return;
        };
        path.received(now, bytes);
        if !path.may_answer(now, response.len()) {
            return;
        }
        match key {
            PathKey::Direct(..) => {
                // The initiation's other copies are refused as replays. If nothing gets back on this way, which won by
                // being the shortest, the answer would be lost on every attempt.
                let home = if path.is_proven(now) {
                    None
                } else {
                    self.home_relay_of(index)
                };
                if let Some(relay) = home {
                    self.send_by_relay(now, index, relay, response.clone());
                }
                self.transmit(now, index, key, response, None);
            }
            PathKey::Relay(relay) => {
                self.send_by_relay(now, index, relay, response);
            }
        }
        self.arm(now, index, None);
    }

    /// Our initiation was answered: there is a session, and the path of the answer works both ways.
    pub(super) fn established(
        &mut self,
        now: Instant,
        key: PathKey,
        index: PeerIndex,
        bytes: usize,
        out: &mut Batches,
    ) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        peer.last_handshake = Some(now);
        peer.last_rx = Some(now);
        peer.handshake = None;
        peer.awaiting_confirmation = None;
        if peer.node_id().is_some() {
            peer.hello.start(now);
        }
        if let Some(path) = peer.paths.get_or_add(key, now) {
            path.received(now, bytes);
            path.prove(now);
        }
        if peer.node_id().is_none() {
            let reason = PathReason::HandshakeAnswered;
            if let Some(change) = peer.paths.set_current(Some(key), reason, now) {
                self.path_changed(now, index, change);
            }
        }
        // Our first packet with the new keys tells the peer that its answer arrived.
        self.send_keepalive(now, index, Some(key));
        self.service_peer(now, index, out);
    }

    /// An authentic packet of the session with this number (our receiver index) arrived on a path.
    pub(super) fn authenticated(
        &mut self,
        now: Instant,
        key: PathKey,
        index: PeerIndex,
        session: u32,
        bytes: usize,
        out: &mut Batches,
    ) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        peer.last_rx = Some(now);
        let stock = peer.node_id().is_none();
        // Of the very session that we answered for: packets of the one before say nothing about our response.
        let confirmed = peer
            .awaiting_confirmation
            .take_if(|(_, awaited)| *awaited == session)
            .map(|(path, _)| path);
        let Some(path) = peer.paths.get_or_add(key, now) else {
            return;
        };
        path.received(now, bytes);
        // The first packet on a session that we answered for shows that our response arrived there.
        let proven = stock || confirmed == Some(key);
        if proven {
            path.prove(now);
        }
        if confirmed.is_some() {
            peer.handshake = None;
        }
        if stock
            && peer
                .paths
                .current()
                .is_none_or(|current| current.key != key)
        {
            // A stock WireGuard peer has one path: where its last authentic packet came from.
            let reason = PathReason::PeerMoved;
            if let Some(change) = peer.paths.set_current(Some(key), reason, now) {
                self.path_changed(now, index, change);
            }
        }
        if !proven {
            self.heard_elsewhere(now, index, key);
        }
        if confirmed.is_some() {
            self.service_peer(now, index, out);
        } else {
            self.look_soon(now, index);
        }
    }

    fn service_hello(&mut self, now: Instant, index: PeerIndex) {
        let instance = self.instance;
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        if !peer.is_ready() || peer.paths.current().is_none() || !peer.hello.poll(now) {
            return;
        }
        let reply = false;
        let hello = Control::Hello {
            version: VERSION,
            instance,
            reply,
        };
        self.send_control(now, index, None, &hello, None);
    }

    /// Sends pings that waited for the peer's hello, and gives up those whose time is over.
    pub(super) fn service_pings(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let speaks =
            peer.hello.instance.is_some() && peer.is_ready() && peer.paths.route().is_some();
        let mut over = Vec::new();
        peer.pings.retain(|ping| {
            let waits = now < ping.deadline;
            if !waits {
                over.push(ping.token);
            }
            waits
        });
        let unsent: Vec<u64> = peer
            .pings
            .iter()
            .filter(|ping| speaks && !ping.sent)
            .map(|ping| ping.nonce)
            .collect();
        for token in over {
            self.emit(Event::Pong {
                token,
                answer: None,
            });
        }
        for token in unsent {
            let sent = self.send_control(now, index, None, &Control::Ping { token }, None);
            if let Some(peer) = self.peer_mut(index)
                && let Some(ping) = peer.pings.iter_mut().find(|ping| ping.nonce == token)
            {
                ping.sent = sent;
                // Whether the path carries it is to be noticed as with data.
                peer.paths.check_current(now);
            }
        }
    }

    /// The answer to a ping.
    pub(super) fn pong(&mut self, now: Instant, key: PathKey, index: PeerIndex, nonce: u64) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let Some(at) = peer.pings.iter().position(|ping| ping.nonce == nonce) else {
            return;
        };
        let ping = peer.pings.swap_remove(at);
        let via = match key {
            PathKey::Direct(_, remote) => remote.to_string(),
            PathKey::Relay(relay) => self.relays.get(&relay).map_or_else(String::new, |relay| {
                format!("{}:{}", relay.url.host, relay.url.port)
            }),
        };
        let answer = Some(PongInfo {
            rtt: now.since(ping.started),
            kind: key.kind(),
            via,
        });
        self.emit(Event::Pong {
            token: ping.token,
            answer,
        });
    }

    fn service_paths(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let using = peer.uses(now);
        let orders = peer.paths.handle_timeout(now, using, &mut self.rng);
        peer.paths.update_copies(now);
        let doubtful = peer.paths.current().filter(|path| path.is_in_doubt());
        let doubtful = doubtful.map(|path| path.key);
        for order in orders {
            self.send_probe(now, index, order.key, order.transaction);
        }
        // Is it the relay, or the peer behind it?
        if let Some(PathKey::Relay(relay)) = doubtful {
            self.ask_relay(now, relay);
        }
        self.probe_mtu(now, index);
    }

    /// Sends padded probes that are due, and tells of what the current path has been found to carry.
    fn probe_mtu(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let Some(network) = self.networks.get(&peer.network) else {
            return;
        };
        let bounds = MtuBounds {
            link: self.link_mtu,
            cap: network.mtu,
        };
        let using = peer.uses(now);
        let probes = peer.paths.mtu_probes(now, using, bounds, &mut self.rng);
        for (key, probe) in probes {
            let id = self.path_id(index, key);
            let probe = Control::probe(probe.transaction, id, probe.size);
            self.send_control(now, index, Some(key), &probe, None);
        }
    }

    /// By what number the peer knows a path.
    fn path_id(&self, index: PeerIndex, key: PathKey) -> u8 {
        let path = self.peer(index).and_then(|peer| peer.paths.get(key));
        path.map_or(0, |path| path.id)
    }

    /// Tells of a change of what packets to the peer may have.
    fn report_mtu(&mut self, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let Some(mtu) = peer.paths.route().map(|route| route.mtu) else {
            return;
        };
        if std::mem::replace(&mut peer.reported_mtu, mtu) == mtu {
            return;
        }
        let event = Event::MtuChanged {
            network: peer.network,
            peer: peer.key,
            mtu,
        };
        self.emit(event);
    }

    pub(super) fn send_probe(
        &mut self,
        now: Instant,
        index: PeerIndex,
        key: PathKey,
        transaction: u64,
    ) {
        let path = self
            .peer_mut(index)
            .and_then(|peer| peer.paths.get_mut(key));
        let path = path.map_or(0, |path| {
            path.probe_sent(transaction, now);
            path.id
        });
        let probe = Control::probe(transaction, path, 0);
        self.send_control(now, index, Some(key), &probe, None);
    }

    /// Tells the peer which of its data has arrived, if that is due.
    fn service_alive(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        if !peer.uses(now).probes {
            return;
        }
        let Some(reports) = peer.paths.poll_alive(now) else {
            return;
        };
        let others = peer.paths.alive_ways(now);
        let alive = Control::Alive(reports);
        self.send_control(now, index, None, &alive, None);
        for key in others.into_iter().flatten() {
            self.send_control(now, index, Some(key), &alive, None);
        }
    }

    /// Chooses the peer's path anew, and sends what waited for one.
    pub(super) fn update_path(&mut self, now: Instant, index: PeerIndex, out: &mut Batches) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        if let Some(change) = peer.paths.choose(now) {
            self.path_changed(now, index, change);
        }
        self.report_mtu(index);
        self.flush_queue(now, index, out);
    }

    fn path_changed(&mut self, now: Instant, index: PeerIndex, change: Change) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        match change.to {
            Some(PathKey::Direct(..)) if peer.paths.has_usable_direct(now) => {
                peer.punching.failed = 0;
                peer.punching.next = None;
            }
            // A direct path is wanted again, at once if the peer is in use.
            _ if peer.hello.instance.is_some() => peer.punching.next = Some(now),
            _ => {}
        }
        let (network, key, name) = (peer.network, peer.key, peer.name.clone());
        self.count_change(network, change);
        let path = self
            .peer(index)
            .and_then(|peer| self.path_status(now, peer));
        self.emit(Event::PathChanged {
            network,
            peer: key,
            name,
            path,
            reason: change.reason.as_str(),
        });
    }

    /// The peer's current path for people.
    pub(super) fn path_status(&self, now: Instant, peer: &Peer) -> Option<PathStatus> {
        let path = peer.paths.current()?;
        let (socket, relay) = match path.key {
            PathKey::Direct(socket, _) => (socket, None),
            PathKey::Relay(relay) => (SocketId::MESH, Some(self.relays.get(&relay)?.url.clone())),
        };
        let remote = path.route()?.remote;
        Some(PathStatus {
            kind: path.key.kind(),
            local_port: self.local_port(socket, remote.is_ipv4()),
            remote,
            relay,
            rtt: path.rtt(),
            mtu: path.mtu.effective(),
            age: now.since(peer.paths.since()),
            reason: peer.paths.reason(),
        })
    }
}
