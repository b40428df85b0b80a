//! An attempt to get through hard NATs, while it sends.

use std::net::SocketAddr;

use super::attempt::Stage;
use crate::engine::{Engine, PeerIndex, SocketId};
use crate::limits;
use crate::nat::Mapping;
use crate::nat::salvo;
use crate::nat::strategy::Plan;
use crate::path::{Path, PathKey};
use crate::time::Instant;
use crate::wire::control::Control;

/// A probe that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shot {
    transaction: u64,
    socket: SocketId,
    target: SocketAddr,
    at: Instant,
}

impl Engine {
    /// Continues the attempt, which is for this peer.
    pub(super) fn run_attempt(&mut self, now: Instant, index: PeerIndex) {
        if let Some(peer) = self.peer_mut(index) {
            peer.punching.next = None; // what follows is set when it is over
        }
        loop {
            let opened = self
                .peer(index)
                .is_some_and(|peer| peer.paths.has_usable_direct(now));
            if opened && self.opened_plainly(now, index) {
                self.leave_attempt(now, index);
                return;
            }
            let Some(attempt) = &mut self.attempt else {
                return;
            };
            let Stage::Running(salvo) = &mut attempt.stage else {
                if now >= attempt.until {
                    self.fail_preparation(now);
                } else {
                    self.continue_preparing(now);
                }
                return;
            };
            if opened {
                // By one of our probes, or because the other side's were faster and a path was checked by that.
                attempt.answered.get_or_insert((now, attempt.target));
            }
            if let Some((since, _)) = attempt.answered {
                // Over in any case then: a path that has failed again is no reason to go on.
                if now.since(since) >= super::SETTLE {
                    self.end_attempt(now);
                }
                return;
            }
            match salvo.poll(now) {
                None => return,
                Some(salvo::Shot::Pass(ttl)) => self.fire_all(now, index, ttl),
                Some(salvo::Shot::Port(port)) => self.fire_at(now, index, port),
                Some(salvo::Shot::Done) => {
                    self.end_attempt(now);
                    return;
                }
            }
        }
    }

    /// A plain round that runs beside has opened a path.
    fn opened_plainly(&self, now: Instant, index: PeerIndex) -> bool {
        let attempt = self.attempt.as_ref();
        let waits = attempt.is_some_and(|attempt| attempt.answered.is_none());
        self.peer(index).is_some_and(|peer| {
            let plain = |path: &Path| {
                let mesh = matches!(path.key, PathKey::Direct(SocketId::MESH, _));
                mesh && path.is_usable(now)
            };
            waits && peer.punching.running.is_some() && peer.paths.iter().any(plain)
        })
    }

    /// From every socket to the one target.
    fn fire_all(&mut self, now: Instant, index: PeerIndex, ttl: Option<u8>) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let (sockets, target) = (attempt.sockets.clone(), attempt.target);
        let first = attempt.shots.is_empty();
        if first {
            let made = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
            attempt.mappings = made;
            self.traversal.mappings += u64::from(made);
        }
        for socket in sockets {
            self.fire(now, index, socket, target, ttl);
        }
    }

    /// From the one socket to a port, of the peer's addresses in turn.
    fn fire_at(&mut self, now: Instant, index: PeerIndex, port: u16) {
        let by_port = self.nat_profile().mapping == Mapping::AddressAndPortDependent;
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let Some(socket) = attempt.sockets.first().copied() else {
            return;
        };
        if by_port || attempt.shots.is_empty() {
            attempt.mappings += 1;
            self.traversal.mappings += 1;
        }
        let turn = attempt.shots.len() % (attempt.others.len() + 1);
        let ip = match turn.checked_sub(1) {
            Some(other) => attempt.others[other],
            None => attempt.target.ip(),
        };
        self.fire(now, index, socket, SocketAddr::new(ip, port), None);
    }

    fn fire(
        &mut self,
        now: Instant,
        index: PeerIndex,
        socket: SocketId,
        target: SocketAddr,
        ttl: Option<u8>,
    ) {
        let transaction = self.rng.u64();
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if attempt.shots.len() >= limits::SPRAY_PROBES {
            return;
        }
        attempt.shots.push(Shot {
            transaction,
            socket,
            target,
            at: now,
        });
        self.traversal.probes += 1;
        let key = Some(PathKey::Direct(socket, target));
        self.send_control(now, index, key, &Control::probe(transaction, 0, 0), ttl);
    }

    /// The answer to a probe arrived directly; `true` if it was one of the attempt's. It proves the way that the probe
    /// took.
    pub(super) fn shot_answered(
        &mut self,
        now: Instant,
        index: PeerIndex,
        transaction: u64,
    ) -> bool {
        let attempt = self
            .attempt
            .as_mut()
            .filter(|attempt| attempt.peer == index);
        let Some(attempt) = attempt else { return false };
        let shot = attempt
            .shots
            .iter()
            .find(|shot| shot.transaction == transaction);
        let Some(shot) = shot.copied() else {
            return false;
        };
        let target = shot.target;
        attempt.answered.get_or_insert((now, target));
        attempt.winner.get_or_insert(shot.socket);
        if let Some(peer) = self.peer_mut(index) {
            let key = PathKey::Direct(shot.socket, target);
            if let Some(path) = peer.paths.get_or_add(key, now) {
                path.prove(now);
                path.measured(now.since(shot.at));
            }
        }
        true
    }

    /// Says that so many ICMP errors came back to a spare socket: somebody on the way does not want what it sends.
    pub fn icmp_errors(&mut self, now: Instant, socket: SocketId, count: u32) {
        let attempt = self.attempt.as_mut();
        let Some(attempt) = attempt.filter(|attempt| attempt.sockets.contains(&socket)) else {
            return;
        };
        attempt.icmp_errors = attempt.icmp_errors.saturating_add(count);
        let searching = matches!(attempt.plan, Plan::Search { .. });
        if searching && attempt.icmp_errors > limits::SPRAY_ICMP_ERRORS {
            let index = attempt.peer;
            self.end_attempt(now);
            self.arm(now, index, None);
        }
    }
}
