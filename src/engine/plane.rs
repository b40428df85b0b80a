//! The packet path: from TUN to the peer's current path, and from a path to TUN.
//!
//! Per packet: no lock, no allocation, no log line. What does not fit is dropped and counted by reason.
//! Packets of one session that arrive together are opened together, see [`super::opening`].

use std::net::SocketAddr;

use super::opening::Group;
use super::{Engine, NetworkIndex, Output, RelayAction, SocketId};
use crate::batch::{Batches, Inbox, ReceiveBatch, SendBatch};
use crate::identity::{NodeId, overlay_address};
use crate::limits;
use crate::offload::{SuperPacket, clamp_mss, opens_tcp};
use crate::path::{PathKey, Route};
use crate::peer::{Peer, PeerIndex};
use crate::rate::Rate;
use crate::session::{Admitted, Context, HandshakeError, Refused, number};
use crate::time::Instant;
use crate::wire::control::NEXT_HEADER;
use crate::wire::icmp::packet_too_big;
use crate::wire::ip::IpHeader;
use crate::wire::relay::{ClientMessage, FRAME_HEADER, Frame, parse_frame, write_data_header};
use crate::wire::{Protocol, classify};

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) path: PathKey,
    /// What cookies are bound to: the sender's address, or through a relay, where no address can be seen, the overlay
    /// address of the sender that the relay authenticated, with port 0.
    pub(super) source: SocketAddr,
    /// Who sent it, as the relay says.
    sender: Option<NodeId>,
}

/// What a datagram turned out to be.
enum Datagram {
    /// It has been dealt with, or dropped.
    Done,
    /// A message of WireGuard.
    Direct,
    /// The same in a relay's frame.
    Framed,
}

impl Engine {
    /// Takes what one receive brought. The inner packets stay where they are; see [`ReceiveBatch::write`].
    pub fn handle_udp(&mut self, now: Instant, received: &mut ReceiveBatch, out: &mut Batches) {
        let socket = received.socket();
        let (messages, mut inbox) = received.split();
        let mut group = Group::default();
        for message in messages {
            let direct = Arrival {
                path: PathKey::Direct(socket, message.remote),
                source: message.remote,
                sender: None,
            };
            // What the frames of this message come by, and on which channel.
            let mut channel = None;
            let mut end = message.range.start;
            while end < message.range.end {
                let start = end;
                end = message.range.end.min(start + message.stride.max(1));
                let datagram = &inbox.storage[start..end];
                let (arrival, offset) =
                    match self.tell(now, (socket, message.remote), datagram, &mut channel, out) {
                        Datagram::Direct => (&direct, 0),
                        Datagram::Framed => match &channel {
                            Some((_, arrival)) => (arrival, FRAME_HEADER),
                            None => continue,
                        },
                        Datagram::Done => continue,
                    };
                let range = start + offset..end;
                if group.takes(&arrival.path, &inbox.storage[range.clone()]) {
                    group.add(range);
                } else {
                    self.open(now, &mut group, &mut inbox, out);
                    self.handle_wireguard(now, arrival, range, &mut group, &inbox, out);
                }
            }
        }
        self.open(now, &mut group, &mut inbox, out);
    }

    /// Tells what a datagram is, and deals with it unless it is a peer's.
    #[inline]
    fn tell(
        &mut self,
        now: Instant,
        (socket, remote): (SocketId, SocketAddr),
        datagram: &[u8],
        channel: &mut Option<(u32, Arrival)>,
        out: &mut Batches,
    ) -> Datagram {
        let protocol = classify(datagram);
        // Relay frames and QUIC belong to the mesh socket, and nothing to one that was closed meanwhile.
        let spare = socket != SocketId::MESH;
        let wanted = matches!(protocol, Protocol::WireGuard | Protocol::Stun);
        if spare && !(wanted && self.spares.contains(socket)) {
            self.drops.unknown_protocol += 1;
            return Datagram::Done;
        }
        match protocol {
            Protocol::WireGuard => return Datagram::Direct,
            Protocol::RelayFrame => {
                if self.handle_frame(now, remote, datagram, channel) {
                    return Datagram::Framed;
                }
            }
            Protocol::Stun => self.handle_stun(now, socket, remote, datagram),
            Protocol::Quic if out.quic.len() < limits::MAX_QUIC_BATCH => {
                out.quic.push((remote, datagram.to_vec()));
            }
            Protocol::Quic | Protocol::Unknown => self.drops.unknown_protocol += 1,
        }
        Datagram::Done
    }

    /// Takes what this host sends into the overlay.
    pub fn handle_tun(
        &mut self,
        now: Instant,
        network: NetworkIndex,
        packet: &SuperPacket<'_>,
        out: &mut Batches,
    ) {
        let Some(header) = IpHeader::parse(packet.bytes()) else {
            self.drops.malformed += 1;
            return;
        };
        if header.protocol == NEXT_HEADER && header.source.is_ipv6() {
            self.drops.forged_control += 1;
            return;
        }
        let Some(network) = self.networks.get_mut(&network) else {
            return;
        };
        let Some(index) = network.routes.lookup(header.destination) else {
            self.drops.no_route += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        peer.last_data = Some(now);
        // Hosts behind us do not know the overlay's MTU; this one is told by its routes.
        let clamp = packet.count() == 1
            && opens_tcp(&header, packet.bytes())
            && !network.is_own(header.source);
        match seal(now, peer, packet, clamp, &mut out.send) {
            Sealed::All => {}
            Sealed::TooBig(mtu) => return self.refuse_too_big(now, index, packet, mtu),
            Sealed::But(dropped) => self.drops.queue_full += dropped as u64,
            Sealed::NoSession => {
                for at in 0..packet.count() {
                    let mut segment = vec![0; packet.length(at)];
                    packet.write(at, &mut segment);
                    if !peer.queue.push(segment) {
                        self.drops.queue_full += 1;
                    }
                }
                self.want_session(now, index, out);
                return;
            }
        }
        self.look_soon(now, index);
    }

    /// Says that a packet is too large for the path to its peer, as a router does.
    fn refuse_too_big(
        &mut self,
        now: Instant,
        index: PeerIndex,
        packet: &SuperPacket<'_>,
        mtu: u16,
    ) {
        self.drops.too_big += packet.count() as u64;
        let Some(network) = self.peer(index).map(|peer| peer.network) else {
            return;
        };
        let rate = Rate::new(limits::TOO_BIG_PER_SECOND, limits::TOO_BIG_PER_SECOND);
        if !self.too_big.take(now, rate, 1) {
            return;
        }
        if let Some(packet) = packet_too_big(packet.bytes(), mtu) {
            self.outputs.push_back(Output::Packet { network, packet });
        }
    }

    /// True if a frame is data with a message of WireGuard inside; then `last` becomes its channel, and what comes by that.
    #[inline]
    fn handle_frame(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        datagram: &[u8],
        last: &mut Option<(u32, Arrival)>,
    ) -> bool {
        match parse_frame(datagram) {
            Ok(Frame::Data { channel, packet }) => {
                if classify(packet) != Protocol::WireGuard {
                    self.drops.malformed += 1;
                    return false;
                }
                if last.is_none_or(|(number, _)| number != channel) {
                    let arrival = self.channel_arrival(remote, channel);
                    *last = arrival.map(|arrival| (channel, arrival));
                }
                return last.is_some();
            }
            Ok(Frame::Rebind { .. }) => self.relay_asks(now, remote, None),
            Ok(Frame::Challenge { nonce }) => self.relay_asks(now, remote, Some(nonce)),
            Err(_) => self.drops.unknown_protocol += 1,
        }
        false
    }

    fn channel_arrival(&mut self, remote: SocketAddr, channel: u32) -> Option<Arrival> {
        let Some((relay, index)) = self.channels.get(&(remote, channel)).copied() else {
            self.drops.unknown_channel += 1;
            return None;
        };
        let peer = self.peer(index)?;
        Some(Arrival {
            path: PathKey::Relay(relay),
            source: (peer.overlay?, 0).into(),
            sender: Some(peer.node_id()?),
        })
    }

    /// A packet that a relay passed on for a peer that has no channel yet.
    pub(super) fn handle_relayed(
        &mut self,
        now: Instant,
        index: NetworkIndex,
        path: PathKey,
        from: NodeId,
        packet: Vec<u8>,
        out: &mut Batches,
    ) {
        let Some(network) = self.networks.get(&index) else {
            return;
        };
        if classify(&packet) != Protocol::WireGuard {
            self.drops.malformed += 1;
            return;
        }
        let arrival = Arrival {
            path,
            source: (overlay_address(&network.id, &from), 0).into(),
            sender: Some(from),
        };
        let mut received = ReceiveBatch::of(SocketId::MESH, arrival.source, &packet, packet.len());
        let (_, mut inbox) = received.split();
        let mut group = Group::default();
        self.handle_wireguard(now, &arrival, 0..packet.len(), &mut group, &inbox, out);
        self.open(now, &mut group, &mut inbox, out);
        received.write(|network, storage, ranges| {
            for range in ranges {
                let packet = storage[range.clone()].to_vec();
                self.outputs.push_back(Output::Packet { network, packet });
            }
        });
    }

    /// Takes a message that no group is open for.
    fn handle_wireguard(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        range: std::ops::Range<usize>,
        group: &mut Group,
        inbox: &Inbox<'_>,
        out: &mut Batches,
    ) {
        let message = &inbox.storage[range.clone()];
        // `classify` has checked type and length.
        match message[0] {
            1 => self.handle_initiation(now, *arrival, message),
            2 => self.handle_response(now, *arrival, message, out),
            3 => self.handle_cookie(now, message),
            _ => {
                self.begin(now, arrival.path, message, group);
                group.add(range);
            }
        }
    }

    fn handle_initiation(&mut self, now: Instant, arrival: Arrival, message: &[u8]) {
        let Self {
            networks,
            peers,
            indices,
            rng,
            ..
        } = self;
        for network in networks.values_mut() {
            let introduction = match network.local.admit(arrival.source, message, now, rng) {
                Ok(Admitted::Initiation(introduction)) => introduction,
                Ok(Admitted::Cookie(reply)) => return self.turn_away(arrival, Some(&reply)),
                Err(Refused::Overloaded) => return self.turn_away(arrival, None),
                Ok(Admitted::Response) | Err(Refused::NotOurs) => continue,
            };
            let Some(index) = network.by_wireguard_key.get(&introduction.remote).copied() else {
                continue;
            };
            let Some(peer) = peers.get_mut(index.0 as usize) else {
                continue;
            };
            if peer.node_id().is_none() && matches!(arrival.path, PathKey::Relay(_)) {
                self.drops.wrong_source += 1; // relays carry nothing for stock WireGuard peers: someone replays there
                return;
            }
            let local = &network.local;
            let Some(session) = peer.session_or_new(local) else {
                continue;
            };
            let mut context = Context {
                local,
                indices,
                rng,
                now,
            };
            match session.accept_initiation(&mut context, introduction, message) {
                Ok(answer) => {
                    self.accepted_initiation(
                        now,
                        arrival.path,
                        index,
                        answer.to_vec(),
                        message.len(),
                    );
                }
                Err(error) => self.count_handshake_error(error),
            }
            return;
        }
        self.drops.unknown_session += 1;
    }

    fn handle_response(
        &mut self,
        now: Instant,
        arrival: Arrival,
        message: &[u8],
        out: &mut Batches,
    ) {
        let index = number(message, 8).and_then(|receiver| self.indices.get(receiver));
        let Self {
            networks,
            peers,
            indices,
            rng,
            ..
        } = self;
        let peer = index.and_then(|index| peers.get_mut(index.0 as usize));
        let Some(peer) = peer else {
            self.drops.unknown_session += 1;
            return;
        };
        let Some(network) = networks.get_mut(&peer.network) else {
            return;
        };
        match network.local.admit(arrival.source, message, now, rng) {
            Ok(Admitted::Response) => {}
            Ok(Admitted::Cookie(reply)) => return self.turn_away(arrival, Some(&reply)),
            Err(Refused::Overloaded) => return self.turn_away(arrival, None),
            _ => {
                self.drops.unauthentic += 1;
                return;
            }
        }
        let (index, local) = (peer.index, &network.local);
        let mut context = Context {
            local,
            indices,
            rng,
            now,
        };
        let Some(session) = peer.session() else {
            return;
        };
        match session.accept_response(&mut context, message) {
            Ok(()) => self.established(now, arrival.path, index, message.len(), out),
            Err(error) => self.count_handshake_error(error),
        }
    }

    fn handle_cookie(&mut self, now: Instant, message: &[u8]) {
        let index = number(message, 4).and_then(|receiver| self.indices.get(receiver));
        let session = index
            .and_then(|index| self.peer_mut(index))
            .and_then(Peer::session);
        match session.map(|session| session.accept_cookie(now, message)) {
            Some(Ok(())) => {}
            Some(Err(error)) => self.count_handshake_error(error),
            None => self.drops.unknown_session += 1,
        }
    }

    fn count_handshake_error(&mut self, error: HandshakeError) {
        match error {
            HandshakeError::Replayed => self.drops.replayed += 1,
            HandshakeError::Unknown => self.drops.unknown_session += 1,
            HandshakeError::Unauthentic => self.drops.unauthentic += 1,
        }
    }

    /// There are too many handshakes; a cookie is how this one gets in next time.
    fn turn_away(&mut self, arrival: Arrival, cookie: Option<&[u8; 64]>) {
        self.drops.rate_limited += 1;
        if let Some(cookie) = cookie {
            self.send_cookie(arrival, cookie);
        }
    }

    /// Back the way that the handshake message came; nothing is remembered of it.
    fn send_cookie(&mut self, arrival: Arrival, reply: &[u8; 64]) {
        let packet = reply.to_vec();
        let output = match (arrival.path, arrival.sender) {
            (PathKey::Direct(socket, remote), _) => Output::Datagram {
                socket,
                remote,
                ttl: None,
                payload: packet,
            },
            (PathKey::Relay(relay), Some(to)) => {
                Output::Relay(relay, RelayAction::Send(ClientMessage::Send { to, packet }))
            }
            (PathKey::Relay(_), None) => return,
        };
        self.outputs.push_back(output);
    }

    /// Sends what waited for a session, as far as there is room.
    pub(super) fn flush_queue(&mut self, now: Instant, index: PeerIndex, out: &mut Batches) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        if peer.queue.is_empty() || !peer.is_ready() || peer.paths.route().is_none() {
            return;
        }
        for packet in peer.queue.take() {
            match seal(
                now,
                peer,
                &SuperPacket::whole(&packet),
                false,
                &mut out.send,
            ) {
                Sealed::All => {}
                // Its sender tries again, and is told then.
                Sealed::TooBig(_) => self.drops.too_big += 1,
                _ => self.drops.queue_full += 1,
            }
        }
    }

    /// Sends a sealed message on one path. `false` if the path leads nowhere now.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        index: PeerIndex,
        key: PathKey,
        sealed: Vec<u8>,
        ttl: Option<u8>,
    ) -> bool {
        if self.is_cut_off() {
            return false;
        }
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return false;
        };
        match key {
            PathKey::Direct(socket, remote) => {
                let payload = sealed;
                self.outputs.push_back(Output::Datagram {
                    socket,
                    remote,
                    ttl,
                    payload,
                });
                true
            }
            PathKey::Relay(relay) => match peer.paths.get(key).and_then(crate::path::Path::route) {
                Some(Route {
                    socket,
                    remote,
                    channel: Some(channel),
                    ..
                }) => {
                    let mut payload = vec![0; FRAME_HEADER];
                    write_data_header(&mut payload, channel);
                    payload.extend_from_slice(&sealed);
                    let ttl = None;
                    self.outputs.push_back(Output::Datagram {
                        socket,
                        remote,
                        ttl,
                        payload,
                    });
                    true
                }
                _ => self.send_by_relay(now, index, relay, sealed),
            },
        }
    }
}

/// What became of a packet that was to be sealed.
enum Sealed {
    All,
    /// So many of its segments found no room.
    But(usize),
    /// The path carries only packets of so many bytes.
    TooBig(u16),
    /// There is no session, or no path.
    NoSession,
}

/// Puts a packet's segments into the batch for the peer's current path; `clamp` is for one that starts a connection.
#[inline]
fn seal(
    now: Instant,
    peer: &mut Peer,
    packet: &SuperPacket<'_>,
    clamp: bool,
    batch: &mut SendBatch,
) -> Sealed {
    let (session, paths) = peer.session_and_paths();
    let Some((path, mut copies)) = paths.current_mut() else {
        return Sealed::NoSession;
    };
    let Some(route) = path.route() else {
        return Sealed::NoSession;
    };
    let count = packet.count();
    if packet.length(0) > usize::from(route.mtu) {
        return Sealed::TooBig(route.mtu);
    }
    let sealing = session.and_then(|session| session.reserve(now, count as u64, true));
    let Some(sealing) = sealing else {
        return Sealed::NoSession;
    };
    let (mut bytes, mut dropped) = (0, 0);
    for at in 0..count {
        let length = packet.length(at);
        if batch.push(&route, &sealing, at as u64, length, |out| {
            packet.write(at, out);
            if clamp {
                clamp_mss(out, route.mtu);
            }
        }) {
            bytes += length as u64;
            if let Some(copies) = &mut copies
                && copies.budget.take(now, length as u64)
            {
                batch.repeat(&copies.route);
            }
        } else {
            dropped += 1;
        }
    }
    let last = sealing.counter + count as u64 - 1;
    path.sent_data(now, sealing.receiver, last, count as u32);
    peer.tx_bytes += bytes;
    if dropped == 0 {
        Sealed::All
    } else {
        Sealed::But(dropped)
    }
}
