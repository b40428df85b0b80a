//! An attempt to get through hard NATs: what is known of it at each stage.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::SETTLE;
use super::volley::Shot;
use crate::engine::explain::Tried;
use crate::engine::{AttemptReport, PeerIndex, SocketId, Strategy};
use crate::nat::salvo::Salvo;
use crate::nat::strategy::Plan;
use crate::time::Instant;
use crate::wire::stun::TransactionId;

/// When a relay that does not answer is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(300);

/// The question for our external port.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) socket: SocketId,
    pub(super) relay: SocketAddr,
    pub(super) id: TransactionId,
    pub(super) asked: Option<Instant>,
    pub(super) done: bool,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Sockets are being opened, and one of them measured.
    Preparing,
    /// The peer has been called.
    Called,
    /// Both sides send.
    Running(Salvo),
}

/// There is one at a time for all peers, so that no router has to bear two.
pub(in crate::engine) struct Attempt {
    pub(super) peer: PeerIndex,
    pub(super) index: u8,
    pub(super) plan: Plan,
    pub(super) round: u32,
    /// It answers the peer's call, which was so far away.
    pub(super) answering: Option<Duration>,
    pub(super) began: Instant,
    pub(super) until: Instant,
    pub(super) stage: Stage,
    pub(super) sockets: Vec<SocketId>,
    pub(super) unopened: usize,
    /// Several where the NAT has several addresses, until one socket has the address that the peer knows.
    pub(super) samples: Vec<Sample>,
    /// The port that we foretell.
    pub(super) port: Option<u16>,
    /// Our own public address.
    pub(super) own: IpAddr,
    pub(super) target: SocketAddr,
    /// Other addresses of the peer, as relays see it, that a search goes to as well.
    pub(super) others: Vec<IpAddr>,
    pub(super) shots: Vec<Shot>,
    pub(super) mappings: u32,
    pub(super) answered: Option<(Instant, SocketAddr)>,
    /// The socket that the first answer came to.
    pub(super) winner: Option<SocketId>,
    pub(super) icmp_errors: u32,
}

impl Attempt {
    /// When something is due, if it is for this peer.
    pub(in crate::engine) fn deadline(&self, index: PeerIndex) -> Option<Instant> {
        if self.peer != index {
            return None;
        }
        let waiting = self.samples.iter().filter(|sample| !sample.done);
        let waiting = waiting.filter(|_| matches!(self.stage, Stage::Preparing));
        let again = waiting.filter_map(|sample| Some(sample.asked? + ASK_AGAIN));
        let again = again.min();
        Some(match (&self.stage, self.answered) {
            (Stage::Running(_), Some((at, _))) => at + SETTLE,
            (Stage::Running(salvo), None) => salvo.deadline(),
            (Stage::Preparing | Stage::Called, _) => {
                again.map_or(self.until, |at| at.min(self.until))
            }
        })
    }

    pub(super) fn strategy(&self) -> Strategy {
        match self.plan {
            Plan::Meet(_) => Strategy::Meet,
            Plan::Open => Strategy::Open,
            Plan::Search { .. } => Strategy::Search,
        }
    }

    /// `port` tells a socket's local port.
    pub(super) fn tried(
        &self,
        ended: Option<Instant>,
        port: impl FnOnce(SocketId) -> Option<u16>,
    ) -> Tried {
        let only = self.sockets.first().filter(|_| self.sockets.len() == 1);
        let target = match (self.answered, self.plan) {
            (Some((_, target)), _) => target,
            (None, Plan::Search { .. }) => SocketAddr::new(self.target.ip(), 0),
            (None, _) => self.target,
        };
        Tried {
            local_port: self.winner.or(only.copied()).and_then(port),
            target,
            strategy: self.strategy(),
            probes: u32::try_from(self.shots.len()).unwrap_or(u32::MAX),
            mappings: self.mappings,
            began: self.began,
            answered: self.answered.map(|(at, _)| at),
            ended,
        }
    }

    /// What it has done so far, if it is for this peer and has begun to send.
    pub(in crate::engine) fn report(
        &self,
        now: Instant,
        index: PeerIndex,
        port: impl FnOnce(SocketId) -> Option<u16>,
    ) -> Option<AttemptReport> {
        let running = matches!(self.stage, Stage::Running(_));
        (self.peer == index && running).then(|| self.tried(None, port).report(now))
    }

    /// Counts towards the limits of a day: it fills tables, or probes ports that nobody named.
    pub(super) fn is_spray(&self) -> bool {
        matches!(self.plan, Plan::Open | Plan::Search { .. })
    }
}

impl Attempt {
    /// The peer says where its packets will come from; the address is the one that a relay saw.
    pub(super) fn aim_at(&mut self, port: Option<u16>) {
        if let Some(port) = port {
            self.target.set_port(port);
        }
    }
}
