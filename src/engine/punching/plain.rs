//! The plain simultaneous punch from the mesh socket.

use std::net::SocketAddr;
use std::time::Duration;

use super::SETTLE;
use crate::engine::{Engine, PeerIndex, SocketId, Strategy};
use crate::limits;
use crate::nat::punch::{Punch, Step};
use crate::nat::strategy::Plan;
use crate::nat::{Mapping, NatProfile};
use crate::path::PathKey;
use crate::time::Instant;
use crate::wire::control::Control;

/// See [`Engine::hedge`]: five probes have gone out.
const HEDGE: Duration = Duration::from_millis(400);

impl Engine {
    pub(super) fn start_punch(&mut self, now: Instant, index: PeerIndex, start: Instant) {
        // Where this cannot work, only the LAN and IPv6 may answer, and they do so soon.
        let hopeless = self
            .prospects(index)
            .is_some_and(|prospects| !prospects.plain);
        let (shared, hairpin) = (self.shares_nat(index), self.nat_profile().hairpin);
        let public = self.own_public_ip();
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
        let known = public.is_some_and(|public| self.hairpins.knows(public));
        let hedge = self.hedge(index);
        let Some(peer) = self.peer_mut(index) else {
            return;
        };
        // Behind one NAT the way through its outside is the last one, if it exists at all; or as good as any if it has
        // worked before.
        let outside = |target: &SocketAddr| shared && !known && Some(target.ip()) == public;
        let (mut later, first): (Vec<_>, Vec<_>) = distinct.into_iter().partition(outside);
        if hairpin == Some(false) {
            later.clear();
        }
        peer.punching.called = None;
        peer.punching.started = Some(now);
        let punch = Punch::new(start, first, later, hopeless);
        peer.punching.running = Some(match hedge {
            Some(after) if !hopeless => punch.hedged(after),
            _ => punch,
        });
    }

    /// How long a round runs alone where it may be in vain because the relays cannot tell what a NAT does: by then most
    /// that can work have. From then on a port is foretold beside it.
    fn hedge(&self, index: PeerIndex) -> Option<Duration> {
        let unknown = |profile: NatProfile| profile.mapping == Mapping::Unknown;
        let theirs = self.peer(index)?.punching.profile?;
        let prospects = self.prospects(index)?;
        let meets = matches!(prospects.plans.first(), Some(Plan::Meet(_)));
        let unsure = unknown(self.nat_profile()) || unknown(theirs);
        let rtt = self.rtt_to(index).unwrap_or_default();
        (prospects.plain && unsure && meets).then(|| HEDGE + rtt + self.politeness(index))
    }

    pub(super) fn run_punch(&mut self, now: Instant, index: PeerIndex) {
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
                self.traversal.ended(Strategy::Plain, true);
                return;
            }
            if punch.take_hedge(now) {
                if !opened && self.attempt.is_none() {
                    self.call_with_plan(now, index);
                }
                continue;
            }
            let Some(step) = punch.poll(now) else { return };
            let (started, targets) = (punch.started(), punch.targets().to_vec());
            match step {
                Step::Open(ttl) => self.open_nat(now, index, &targets, ttl),
                Step::Probe => self.probe_targets(now, index, started, &targets),
                Step::Done => {
                    self.punch_failed(now, index);
                    return;
                }
            }
        }
    }

    /// Openers are not waited for: they are made to die on the way.
    pub(super) fn open_nat(
        &mut self,
        now: Instant,
        index: PeerIndex,
        targets: &[SocketAddr],
        ttl: u8,
    ) {
        for target in targets {
            let transaction = self.rng.u64();
            let opener = Control::probe(transaction, 0, 0);
            self.send_control(
                now,
                index,
                Some(PathKey::direct(*target)),
                &opener,
                Some(ttl),
            );
        }
    }

    fn probe_targets(
        &mut self,
        now: Instant,
        index: PeerIndex,
        started: Instant,
        targets: &[SocketAddr],
    ) {
        for target in targets {
            let key = PathKey::direct(*target);
            let local_port = self.local_port(SocketId::MESH, target.is_ipv4());
            let Some(peer) = self.peer_mut(index) else {
                return;
            };
            let wanted = peer
                .paths
                .get_or_add(key, now)
                .is_some_and(|path| !path.is_usable(now));
            if wanted {
                let record = &mut peer.punching.record;
                record.probed(now, started, local_port, *target);
                let transaction = self.rng.u64();
                self.send_probe(now, index, key, transaction);
            }
        }
    }
}
