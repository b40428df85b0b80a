//! Control messages from peers, after the session has authenticated them.

use super::{Engine, PeerIndex};
use crate::batch::Batches;
use crate::path::PathKey;
use crate::time::Instant;
use crate::wire::control::{Control, VERSION};
use crate::wire::ip::IpHeader;

impl Engine {
    /// Takes an inner packet with the reserved next header.
    pub(super) fn handle_control(
        &mut self,
        now: Instant,
        path: PathKey,
        index: PeerIndex,
        header: &IpHeader,
        packet: &[u8],
        out: &mut Batches,
    ) {
        let Some(peer) = self.peer(index) else { return };
        let Some(network) = self.networks.get(&peer.network) else {
            return;
        };
        // Exactly between the two derived addresses: what a peer forwards for someone else is no control message.
        let expected = peer.overlay.map(std::net::IpAddr::from);
        if expected != Some(header.source) || header.destination != network.overlay {
            self.drops.wrong_source += 1;
            return;
        }
        let Ok(message) = Control::from_packet(packet) else {
            self.drops.malformed += 1;
            return;
        };
        match message {
            Control::Hello {
                version,
                instance,
                reply,
            } => self.handle_hello(now, path, index, version, instance, reply),
            Control::Probe {
                transaction,
                path: id,
                ..
            } => {
                if let Some(peer) = self.peer_mut(index) {
                    peer.paths.named(path, id);
                }
                self.handle_probe(now, path, index, packet.len(), transaction)
            }
            Control::ProbeAck { transaction } => {
                self.probe_answered(now, path, index, transaction);
            }
            Control::CallMe(call) => self.handle_call(now, index, call),
            Control::Ping { token } => {
                if let Some(peer) = self.peer_mut(index) {
                    peer.last_data = Some(now);
                }
                // Back by our own current path: that is what `meshctl ping` is to show.
                self.send_control(now, index, None, &Control::Pong { token }, None);
            }
            Control::Pong { token } => self.pong(now, path, index, token),
            Control::Alive(reports) => {
                if let Some(peer) = self.peer_mut(index) {
                    peer.paths.acknowledged(now, &reports);
                }
            }
        }
        self.service_peer(now, index, out);
    }

    fn handle_hello(
        &mut self,
        now: Instant,
        path: PathKey,
        index: PeerIndex,
        version: u8,
        instance: u64,
        reply: bool,
    ) {
        if version != VERSION {
            return; // it stays a peer that is reached by plain WireGuard on the path it came by
        }
        let own = self.instance;
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let news = peer.hello.instance != Some(instance);
        // Both sides of a punch start by this; it is measured before the first call can arrive.
        if reply
            && let Some(sample) = peer.hello.round_trip(now)
            && let Some(path) = peer.paths.get_mut(path)
            && path.rtt().is_none()
        {
            path.measured(sample);
        }
        peer.hello.finished(instance);
        if !reply {
            let answer = Control::Hello {
                version: VERSION,
                instance: own,
                reply: true,
            };
            // The way that it came by: the current path may be one that the peer has left.
            self.send_control(now, index, Some(path), &answer, None);
        }
        if news {
            if let Some(peer) = self.peer_mut(index) {
                peer.paths.forget_proofs(path);
            }
            self.schedule_punch(now, index);
        }
    }

    /// Answers a probe on the path that it came by; probes back where nothing is proven yet (a triggered check in the
    /// words of RFC 8445).
    fn handle_probe(
        &mut self,
        now: Instant,
        key: PathKey,
        index: PeerIndex,
        size: usize,
        transaction: u64,
    ) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        let Some(path) = peer.paths.get_mut(key) else {
            return;
        };
        if !path.may_answer(now, size) {
            return;
        }
        let check = !path.is_proven(now) && path.may_answer(now, size);
        self.send_control(
            now,
            index,
            Some(key),
            &Control::ProbeAck { transaction },
            None,
        );
        if check {
            self.check_path(now, index, key);
        }
    }

    /// Probes an address that the peer turned out to send from, if a direct path is wanted.
    pub(super) fn check_path(&mut self, now: Instant, index: PeerIndex, key: PathKey) {
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let PathKey::Direct(_, remote) = key else {
            return;
        };
        let wanted = peer.hello.instance.is_some() && !peer.paths.has_usable_direct(now);
        if !wanted || !peer.punching.may_check(now) {
            return;
        }
        if let Some(punch) = &mut peer.punching.running {
            punch.add_target(remote);
        }
        let transaction = self.rng.u64();
        self.send_probe(now, index, key, transaction);
    }
}
