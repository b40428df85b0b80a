//! Opens direct paths: when to call a peer, and the round that follows.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Engine, PeerIndex, SocketId};
use crate::limits;
use crate::nat::punch::{Punch, Step, retry_after};
use crate::path::candidates::is_acceptable;
use crate::path::{Path, PathKey};
use crate::time::Instant;
use crate::wire::control::{CallMe, Control};

/// A call is repeated if it is not answered within this.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The side with the higher ID waits this long for the other one's call, so that the two do not call at once.
const POLITENESS: Duration = Duration::from_millis(300);
/// A peer that calls more often than this is not followed: rounds send to addresses that it names.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// After the first path has opened, other candidates get this long to show a better one (the LAN, IPv6).
const SETTLE: Duration = Duration::from_millis(300);

impl Engine {
    /// A direct path is wanted: now, or a little later on the side that lets the other one begin.
    pub(super) fn schedule_punch(&mut self, now: Instant, index: PeerIndex) {
        let polite = self.is_polite(index);
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.punching.failed = 0;
        peer.punching.next = Some(if polite { now + POLITENESS } else { now });
    }

    fn is_polite(&self, index: PeerIndex) -> bool {
        self.peer(index).is_some_and(|peer| {
            let network = self.networks.get(&peer.network);
            network.is_some_and(|network| network.local.public() > peer.key.to_wireguard())
        })
    }

    /// Calls the peer when a round is due; runs the round that is under way.
    pub(super) fn service_punch(&mut self, now: Instant, index: PeerIndex) {
        let Some(peer) = self.peer(index) else { return };
        if peer.punching.running.is_some() {
            self.run_punch(now, index);
            return;
        }
        let due = peer.punching.next.is_some_and(|next| next <= now);
        if !due || !peer.uses(now).active || !peer.uses(now).probes {
            return;
        }
        if peer.paths.has_usable_direct(now) {
            if let Some(peer) = self.peer_mut(index) {
                peer.punching.next = None;
            }
            return;
        }
        let candidates = self.own_candidates();
        let profile = self.nat_profile();
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.punching.round = peer.punching.round.wrapping_add(1);
        peer.punching.called = Some(now);
        peer.punching.next = Some(now + CALL_TIMEOUT);
        let round = peer.punching.round;
        let call = CallMe {
            round,
            reply: false,
            candidates,
            profile,
        };
        self.send_call(now, index, call);
    }

    /// The peer wants to punch, or answers our call.
    pub(super) fn handle_call(&mut self, now: Instant, index: PeerIndex, call: CallMe) {
        let candidates: Vec<SocketAddr> = call
            .candidates
            .into_iter()
            .filter(|candidate| is_acceptable(*candidate) && !self.is_own_address(*candidate))
            .filter(|candidate| {
                !self
                    .networks
                    .values()
                    .any(|network| network.covers(candidate.ip()))
            })
            .collect();
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.candidates = candidates;
        let rtt = peer.paths.current().and_then(Path::rtt).unwrap_or_default();
        if call.reply {
            if peer.punching.round == call.round && peer.punching.called.take().is_some() {
                self.start_punch(now, index, now);
            }
            return;
        }
        self.peer_may_have_moved(now, index);
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        // Our answer travels for half a round trip; the caller starts when it arrives, and so do we.
        match &mut peer.punching.running {
            Some(punch) if !peer.paths.has_usable_direct(now) => {
                for candidate in &peer.candidates {
                    punch.add_target(*candidate);
                }
            }
            _ if peer
                .punching
                .started
                .is_none_or(|at| now.since(at) >= ROUND_INTERVAL) =>
            {
                self.start_punch(now, index, now + rtt / 2);
            }
            _ => {}
        }
        let answer = CallMe {
            round: call.round,
            reply: true,
            candidates: self.own_candidates(),
            profile: self.nat_profile(),
        };
        self.send_call(now, index, answer);
    }

    fn start_punch(&mut self, now: Instant, index: PeerIndex, start: Instant) {
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        let mut targets = peer.candidates.clone();
        targets.extend(peer.endpoints.iter().take(limits::MAX_ENDPOINTS));
        for path in peer.paths.iter() {
            if let PathKey::Direct(SocketId::MESH, remote) = path.key
                && path.is_proven(now)
            {
                targets.push(remote);
            }
        }
        let mut distinct: Vec<SocketAddr> = Vec::new();
        for target in targets {
            if !distinct.contains(&target) {
                distinct.push(target);
            }
        }
        peer.punching.called = None;
        peer.punching.started = Some(now);
        peer.punching.running = Some(Punch::new(start, distinct));
    }

    fn run_punch(&mut self, now: Instant, index: PeerIndex) {
        loop {
            let Some(peer) = self.peer_mut(index) else {
                return;
            };
            let Some(punch) = &mut peer.punching.running else {
                return;
            };
            let opened = peer.paths.has_usable_direct(now);
            if opened && now.since(punch.started()) >= SETTLE {
                peer.punching.running = None;
                peer.punching.next = None;
                return;
            }
            let Some(step) = punch.poll(now) else { return };
            let targets = punch.targets().to_vec();
            match step {
                Step::Open(ttl) => self.open_nat(now, index, &targets, ttl),
                Step::Probe => self.probe_targets(now, index, &targets),
                Step::Done => {
                    self.punch_failed(now, index);
                    return;
                }
            }
        }
    }

    /// Openers are not waited for: they are made to die on the way.
    fn open_nat(&mut self, now: Instant, index: PeerIndex, targets: &[SocketAddr], ttl: u8) {
        for target in targets {
            let transaction = self.rng.u64();
            let opener = Control::Probe {
                transaction,
                path: 0,
            };
            self.send_control(
                now,
                index,
                Some(PathKey::direct(*target)),
                &opener,
                Some(ttl),
            );
        }
    }

    fn probe_targets(&mut self, now: Instant, index: PeerIndex, targets: &[SocketAddr]) {
        for target in targets {
            let key = PathKey::direct(*target);
            let Some(peer) = self.peer_mut(index) else {
                return;
            };
            let wanted = peer
                .paths
                .get_or_add(key, now)
                .is_some_and(|path| !path.is_usable(now));
            if wanted {
                let transaction = self.rng.u64();
                self.send_probe(now, index, key, transaction);
            }
        }
    }

    fn punch_failed(&mut self, now: Instant, index: PeerIndex) {
        let extra = if self.is_polite(index) {
            POLITENESS
        } else {
            Duration::ZERO
        };
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        peer.punching.running = None;
        if peer.paths.has_usable_direct(now) {
            peer.punching.next = None;
            return;
        }
        peer.punching.next = Some(now + retry_after(peer.punching.failed) + extra);
        peer.punching.failed = peer.punching.failed.saturating_add(1);
    }
}
