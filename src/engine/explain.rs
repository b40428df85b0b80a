//! What was tried to reach a peer, and what came of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Engine, NetworkIndex, PathStatus, PeerKey};
use crate::limits;
use crate::nat::NatProfile;
use crate::time::Instant;

/// Ways to open a direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Both sides send to the addresses that the other one named.
    Plain,
    /// Both sides send from sockets whose external port was measured or foretold.
    Meet,
    /// This side opened many ports for the other one to find.
    Open,
    /// This side tried ports at random, of which the other one had opened many.
    Search,
}

impl Strategy {
    /// Every strategy, in the order of declaration.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Meet, Self::Open, Self::Search];

    /// As a label of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Meet => "meet",
            Self::Open => "open",
            Self::Search => "search",
        }
    }

    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "punch",
            Self::Meet => "port prediction",
            Self::Open => "many ports, this side",
            Self::Search => "many ports, the other side",
        }
    }
}

/// One address that was tried.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptReport {
    /// Our UDP port; `None` if it was many, and none of them won.
    pub local_port: Option<u16>,
    /// Where probes went. For a search, with the first port that answered, or 0.
    pub target: SocketAddr,
    /// How.
    pub strategy: Strategy,
    /// Probes that went there.
    pub probes: u32,
    /// NAT mappings that they made, as far as that is known.
    pub mappings: u32,
    /// One of them was answered.
    pub answered: bool,
    /// How long ago it began.
    pub age: Duration,
    /// How long it took to the answer, or to the end; for one that is under way, until now.
    pub duration: Duration,
}

/// Why a peer is reached as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The peer's name.
    pub name: String,
    /// The current path, if any.
    pub path: Option<PathStatus>,
    /// Why it is the current one, or why there is none.
    pub reason: &'static str,
    /// What our NAT does.
    pub own: NatProfile,
    /// What the peer's NAT does, as it says.
    pub peer: Option<NatProfile>,
    /// What was tried, the newest last; at most [`limits::ATTEMPTS`].
    pub attempts: Vec<AttemptReport>,
    /// NAT mappings that attempts to get through hard NATs have made for this peer since the start, those of attempts that
    /// are forgotten included.
    pub mappings: u64,
}

/// What was done to get through hard NATs since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traversal {
    /// Attempts that began.
    pub attempts: u64,
    /// Those that opened a direct path.
    pub opened: u64,
    /// Probes that they sent.
    pub probes: u64,
    /// Mappings that they made in NATs, as far as that is known.
    pub mappings: u64,
    /// What became of what was tried, plain punches included, in the order of [`Strategy::ALL`].
    outcomes: [Outcomes; Strategy::ALL.len()],
}

/// What became of the attempts of one kind. Those that a change of the network made pointless are in neither number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// They ended with a direct path.
    pub opened: u64,
    /// They ended without one.
    pub failed: u64,
}

impl Traversal {
    /// What became of the attempts of one kind.
    pub const fn outcomes(&self, strategy: Strategy) -> Outcomes {
        self.outcomes[strategy as usize]
    }

    pub(super) const fn ended(&mut self, strategy: Strategy, opened: bool) {
        let outcomes = &mut self.outcomes[strategy as usize];
        if opened {
            outcomes.opened += 1;
        } else {
            outcomes.failed += 1;
        }
    }
}

/// What is remembered of one address that was tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tried {
    pub(crate) local_port: Option<u16>,
    pub(crate) target: SocketAddr,
    pub(crate) strategy: Strategy,
    pub(crate) probes: u32,
    pub(crate) mappings: u32,
    pub(crate) began: Instant,
    pub(crate) answered: Option<Instant>,
    pub(crate) ended: Option<Instant>,
}

/// The last addresses that were tried for a peer.
#[derive(Debug, Default)]
pub(crate) struct Record(VecDeque<Tried>);

impl Record {
    /// What it takes at most.
    pub(crate) const MOST_BYTES: usize = limits::ATTEMPTS * size_of::<Tried>();

    /// A probe of the plain punch was sent somewhere; those of one round count together.
    pub(crate) fn probed(
        &mut self,
        now: Instant,
        began: Instant,
        local_port: Option<u16>,
        target: SocketAddr,
    ) {
        let strategy = Strategy::Plain;
        let same = |tried: &&mut Tried| {
            (tried.strategy, tried.target, tried.began) == (strategy, target, began)
        };
        if let Some(tried) = self.0.iter_mut().rev().find(same) {
            tried.probes = tried.probes.saturating_add(1);
            tried.ended = Some(now);
            return;
        }
        self.push(Tried {
            local_port,
            target,
            strategy,
            probes: 1,
            mappings: 1,
            began,
            answered: None,
            ended: Some(now),
        });
    }

    pub(crate) fn push(&mut self, tried: Tried) {
        if self.0.len() >= limits::ATTEMPTS {
            self.0.pop_front();
        }
        self.0.push_back(tried);
    }

    /// The last probe to an address was answered.
    pub(crate) fn answered(&mut self, now: Instant, target: SocketAddr) {
        let last = self.0.iter_mut().rev().find(|tried| tried.target == target);
        if let Some(tried) = last
            && tried.answered.is_none()
        {
            tried.answered = Some(now);
        }
    }

    fn reports(&self, now: Instant) -> Vec<AttemptReport> {
        self.0.iter().map(|tried| tried.report(now)).collect()
    }
}

impl Tried {
    pub(super) fn report(&self, now: Instant) -> AttemptReport {
        let end = self.answered.or(self.ended).unwrap_or(now);
        AttemptReport {
            local_port: self.local_port,
            target: self.target,
            strategy: self.strategy,
            probes: self.probes,
            mappings: self.mappings,
            answered: self.answered.is_some(),
            age: now.since(self.began),
            duration: end.since(self.began),
        }
    }
}

impl Engine {
    /// What was tried to reach a peer, and why it is reached as it is; `None` if there is no such peer.
    pub fn explain(
        &self,
        now: Instant,
        network: NetworkIndex,
        key: PeerKey,
    ) -> Option<Explanation> {
        let index = self.networks.get(&network)?.by_key.get(&key)?;
        let peer = self.peer(*index)?;
        let path = self.path_status(now, peer).filter(|_| peer.is_ready());
        let mut attempts = peer.punching.record.reports(now);
        let running = self.attempt.as_ref();
        let port = |socket| self.local_port(socket, true);
        let running = running.and_then(|attempt| attempt.report(now, *index, port));
        let mappings = running.as_ref().map_or(0, |attempt| attempt.mappings);
        attempts.extend(running);
        let surplus = attempts.len().saturating_sub(limits::ATTEMPTS);
        attempts.drain(..surplus);
        Some(Explanation {
            name: peer.name.clone(),
            reason: match &path {
                Some(_) => peer.paths.reason(),
                None => "nothing has answered",
            },
            path,
            own: self.nat_profile(),
            peer: peer.punching.profile,
            attempts,
            mappings: peer.punching.mappings + u64::from(mappings),
        })
    }

    /// What was done to get through hard NATs since the start.
    pub fn traversal(&self) -> Traversal {
        self.traversal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn the_last_attempts_are_kept_and_probes_of_one_round_count_together() {
        let mut record = Record::default();
        let target = |port| SocketAddr::from(([203, 0, 113, 1], port));
        for round in 0..20 {
            for probe in 0..3 {
                for port in [1, 2] {
                    let now = at(10 * round + probe);
                    record.probed(now, at(10 * round), Some(9), target(port));
                }
            }
        }
        record.answered(at(191), target(2));
        let reports = record.reports(at(200));
        assert_eq!(reports.len(), limits::ATTEMPTS);
        let [.., unanswered, answered] = &reports[..] else {
            panic!();
        };
        assert_eq!((answered.probes, answered.answered), (3, true));
        assert_eq!(answered.duration, Duration::from_secs(1));
        assert_eq!(
            (unanswered.answered, unanswered.duration),
            (false, Duration::from_secs(2))
        );
        assert_eq!(answered.age, Duration::from_secs(10));
    }
}
