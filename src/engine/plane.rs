//! The packet path: from TUN to the peer's current path, and from a path to TUN.
//!
//! Per packet: no lock, no allocation, no log line. What does not fit is dropped and counted by reason.

use std::net::{IpAddr, SocketAddr};

use super::{Engine, NetworkIndex, Output, RelayAction};
use crate::batch::{Batches, SendBatch};
use crate::identity::{NodeId, overlay_address};
use crate::limits;
use crate::path::{PathKey, Route};
use crate::peer::{Peer, PeerIndex};
use crate::session::{Admitted, OpenError, Opened, Refused};
use crate::time::Instant;
use crate::wire::control::NEXT_HEADER;
use crate::wire::ip::IpHeader;
use crate::wire::relay::{ClientMessage, FRAME_HEADER, Frame, parse_frame, write_data_header};
use crate::wire::{Protocol, classify, stun};

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) path: PathKey,
    /// What cookies and handshake limits are bound to: the sender's address, or through a relay, where no address can
    /// be seen, the overlay address of the sender that the relay authenticated.
    pub(super) source: IpAddr,
    /// Who sent it, as the relay says.
    sender: Option<NodeId>,
}

impl Engine {
    /// Takes one buffer of datagrams from one sender: `stride` bytes each, the last may be shorter (UDP GRO).
    pub fn handle_udp(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        data: &[u8],
        stride: usize,
        out: &mut Batches,
    ) {
        for datagram in data.chunks(stride.max(1)) {
            match classify(datagram) {
                Protocol::WireGuard => {
                    let arrival = Arrival {
                        path: PathKey::Direct(remote),
                        source: remote.ip(),
                        sender: None,
                    };
                    self.handle_wireguard(now, arrival, datagram, out);
                }
                Protocol::RelayFrame => self.handle_frame(now, remote, datagram, out),
                Protocol::Stun => self.handle_stun(now, remote, datagram),
                Protocol::Quic if out.quic.len() < limits::MAX_QUIC_BATCH => {
                    out.quic.push((remote, datagram.to_vec()));
                }
                Protocol::Quic | Protocol::Unknown => self.drops.unknown_protocol += 1,
            }
        }
    }

    /// Takes one packet that this host sends into the overlay.
    pub fn handle_tun(
        &mut self,
        now: Instant,
        network: NetworkIndex,
        packet: &[u8],
        out: &mut Batches,
    ) {
        let Some(header) = IpHeader::parse(packet) else {
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
        if seal(peer, packet, &mut out.send) {
            peer.paths.sent_data(now);
            if peer.needs_earlier_look(now) {
                self.arm(now, index, Some(now));
            }
            return;
        }
        if !peer.queue.push(packet) {
            self.drops.queue_full += 1;
        }
        self.want_session(now, index, out);
    }

    fn handle_frame(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        datagram: &[u8],
        out: &mut Batches,
    ) {
        match parse_frame(datagram) {
            Ok(Frame::Data { channel, packet }) => {
                let Some((relay, peer)) = self.channels.get(&(remote, channel)).copied() else {
                    self.drops.unknown_channel += 1;
                    return;
                };
                let sender = self
                    .peer(peer)
                    .and_then(|peer| Some((peer.overlay?, peer.node_id()?)));
                if let Some((source, sender)) = sender
                    && classify(packet) == Protocol::WireGuard
                {
                    let arrival = Arrival {
                        path: PathKey::Relay(relay),
                        source: source.into(),
                        sender: Some(sender),
                    };
                    self.handle_wireguard(now, arrival, packet, out);
                } else {
                    self.drops.malformed += 1;
                }
            }
            Ok(Frame::Rebind { .. }) => self.relay_asks(now, remote, None),
            Ok(Frame::Challenge { nonce }) => self.relay_asks(now, remote, Some(nonce)),
            Err(_) => self.drops.unknown_protocol += 1,
        }
    }

    fn handle_stun(&mut self, now: Instant, remote: SocketAddr, datagram: &[u8]) {
        let answered = match stun::parse(datagram) {
            Ok(stun::Message::Response { txn, mapped }) => {
                self.prober.handle_response(now, remote, &txn, mapped)
            }
            _ => false,
        };
        if !answered {
            self.drops.unknown_protocol += 1;
        }
    }

    /// A packet that a relay passed on for a peer that has no channel yet.
    pub(super) fn handle_relayed(
        &mut self,
        now: Instant,
        index: NetworkIndex,
        path: PathKey,
        from: NodeId,
        packet: &[u8],
        out: &mut Batches,
    ) {
        let Some(network) = self.networks.get(&index) else {
            return;
        };
        if classify(packet) != Protocol::WireGuard {
            self.drops.malformed += 1;
            return;
        }
        let arrival = Arrival {
            path,
            source: overlay_address(&network.id, &from).into(),
            sender: Some(from),
        };
        self.handle_wireguard(now, arrival, packet, out);
    }

    fn handle_wireguard(
        &mut self,
        now: Instant,
        arrival: Arrival,
        message: &[u8],
        out: &mut Batches,
    ) {
        // `classify` has checked type and length.
        match message[0] {
            1 => self.handle_initiation(now, arrival, message, out),
            2 => {
                let index = session_index(message, 8);
                if self.admit_response(now, arrival, index, message) {
                    self.open(now, arrival, index, message, out);
                }
            }
            _ => self.open(now, arrival, session_index(message, 4), message, out),
        }
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        arrival: Arrival,
        message: &[u8],
        out: &mut Batches,
    ) {
        for network in self.networks.values_mut() {
            match network.local.admit(arrival.source, message, now) {
                Ok(Admitted::Initiation(key)) => {
                    let Some(index) = network.by_wireguard_key.get(&key).copied() else {
                        continue;
                    };
                    if let Some(peer) = self.peers.get_mut(index.0 as usize) {
                        peer.session_or_new(&network.local, now);
                        self.open(now, arrival, index, message, out);
                        return;
                    }
                }
                Ok(Admitted::Cookie(reply)) => {
                    self.send_cookie(arrival, &reply);
                    self.drops.rate_limited += 1;
                    return;
                }
                Err(Refused::Overloaded) => {
                    self.drops.rate_limited += 1;
                    return;
                }
                Ok(Admitted::Response) | Err(Refused::NotOurs) => {}
            }
        }
        self.drops.unknown_session += 1;
    }

    fn admit_response(
        &mut self,
        now: Instant,
        arrival: Arrival,
        index: PeerIndex,
        message: &[u8],
    ) -> bool {
        let network = self.peer(index).map(|peer| peer.network);
        let Some(network) = network.and_then(|network| self.networks.get_mut(&network)) else {
            self.drops.unknown_session += 1;
            return false;
        };
        match network.local.admit(arrival.source, message, now) {
            Ok(Admitted::Response) => true,
            Ok(Admitted::Cookie(reply)) => {
                self.send_cookie(arrival, &reply);
                self.drops.rate_limited += 1;
                false
            }
            _ => {
                self.drops.unauthentic += 1;
                false
            }
        }
    }

    /// Back the way that the handshake message came; nothing is remembered of it.
    fn send_cookie(&mut self, arrival: Arrival, reply: &[u8; 64]) {
        let packet = reply.to_vec();
        let output = match (arrival.path, arrival.sender) {
            (PathKey::Direct(remote), _) => Output::Datagram {
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

    fn open(
        &mut self,
        now: Instant,
        arrival: Arrival,
        index: PeerIndex,
        message: &[u8],
        out: &mut Batches,
    ) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            self.drops.unknown_session += 1;
            return;
        };
        let network = peer.network;
        if peer.node_id().is_none() && matches!(arrival.path, PathKey::Relay(_)) {
            self.drops.wrong_source += 1; // relays carry nothing for stock WireGuard peers: someone replays there
            return;
        }
        let Some(session) = peer.session() else {
            self.drops.unknown_session += 1;
            return;
        };
        let Some(buffer) = out.tun.spare(message.len().max(limits::MIN_OPEN_BUFFER)) else {
            self.drops.queue_full += 1;
            return;
        };
        match session.open(message, buffer) {
            Ok(Opened::Packet(length)) => {
                let packet = &buffer[..length];
                let Some(header) = IpHeader::parse(packet) else {
                    self.drops.malformed += 1;
                    return;
                };
                if header.protocol == NEXT_HEADER && header.source.is_ipv6() {
                    let packet = packet.to_vec();
                    self.authenticated(
                        now,
                        arrival.path,
                        index,
                        session_id(message, 4),
                        message.len(),
                        out,
                    );
                    self.handle_control(now, arrival.path, index, &header, &packet, out);
                    return;
                }
                let owner = self
                    .networks
                    .get_mut(&network)
                    .and_then(|network| network.routes.lookup(header.source));
                if owner == Some(index) {
                    out.tun.commit(network, length);
                    peer.last_data = Some(now);
                    peer.rx_bytes += length as u64;
                } else {
                    self.drops.wrong_source += 1;
                }
                self.authenticated(
                    now,
                    arrival.path,
                    index,
                    session_id(message, 4),
                    message.len(),
                    out,
                );
            }
            Ok(Opened::Keepalive) => self.authenticated(
                now,
                arrival.path,
                index,
                session_id(message, 4),
                message.len(),
                out,
            ),
            Ok(Opened::Cookie) => {}
            Ok(Opened::Response(length)) => {
                let response = buffer[..length].to_vec();
                self.accepted_initiation(now, arrival.path, index, response, message.len());
            }
            Ok(Opened::Established(length)) => {
                let confirmation = buffer[..length].to_vec();
                self.established(now, arrival.path, index, confirmation, message.len(), out);
            }
            Err(OpenError::Replayed) => self.drops.replayed += 1,
            Err(OpenError::NoSession) => self.drops.unknown_session += 1,
            Err(OpenError::Malformed) => self.drops.malformed += 1,
            Err(OpenError::Unauthentic) => self.drops.unauthentic += 1,
        }
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
            if seal(peer, &packet, &mut out.send) {
                peer.paths.sent_data(now);
            } else {
                self.drops.queue_full += 1;
            }
        }
    }

    /// Sends a sealed message on one path. `false` if the path leads nowhere now.
    pub(super) fn transmit(
        &mut self,
        index: PeerIndex,
        key: PathKey,
        sealed: Vec<u8>,
        ttl: Option<u8>,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return false;
        };
        match key {
            PathKey::Direct(remote) => {
                let payload = sealed;
                self.outputs.push_back(Output::Datagram {
                    remote,
                    ttl,
                    payload,
                });
                true
            }
            PathKey::Relay(relay) => match peer.paths.get(key).and_then(crate::path::Path::route) {
                Some(Route {
                    remote,
                    channel: Some(channel),
                }) => {
                    let mut payload = vec![0; FRAME_HEADER];
                    write_data_header(&mut payload, channel);
                    payload.extend_from_slice(&sealed);
                    let ttl = None;
                    self.outputs.push_back(Output::Datagram {
                        remote,
                        ttl,
                        payload,
                    });
                    true
                }
                _ => self.send_by_relay(index, relay, sealed),
            },
        }
    }
}

/// Seals one packet into the batch for the peer's current path. `false` if there is no session, path or room.
#[inline]
fn seal(peer: &mut Peer, packet: &[u8], batch: &mut SendBatch) -> bool {
    let Some(route) = peer.paths.route() else {
        return false;
    };
    let Some(session) = peer.session() else {
        return false;
    };
    if batch.is_full() {
        return false;
    }
    let buffer = batch.spare();
    let header = match route.channel {
        Some(channel) => {
            write_data_header(buffer, channel);
            FRAME_HEADER
        }
        None => 0,
    };
    let Some(length) = session.seal(packet, &mut buffer[header..limits::MAX_DATAGRAM]) else {
        return false;
    };
    batch.commit(route.remote, header + length);
    peer.tx_bytes += packet.len() as u64;
    true
}

/// The slot of the session that a message names: its receiver index, of which boringtun uses the low 8 bits itself.
#[inline]
fn session_index(message: &[u8], at: usize) -> PeerIndex {
    PeerIndex(session_id(message, at).unwrap_or(u32::MAX) >> 8)
}

/// The session number at `at` in a message, if it is that long.
#[inline]
pub(super) fn session_id(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
