//! The simultaneous punch: both sides send to each other's candidates at the same time, so that each NAT has a mapping
//! towards the other before a packet from there arrives.
//!
//! The first packet to each candidate is a *low-TTL opener*: it passes our NAT and dies before theirs. A router that
//! accepts unsolicited packets itself would otherwise enter the peer's early packet into its connection table, and our
//! own mapping would have to move to another port.

use std::net::SocketAddr;
use std::time::Duration;

use crate::limits;
use crate::time::Instant;

/// When probes go out, counted from the opener: dense while mappings are fresh, up to four seconds for slow routers.
const PROBES: [Duration; 9] = [
    Duration::from_millis(10),
    Duration::from_millis(33),
    Duration::from_millis(66),
    Duration::from_millis(133),
    Duration::from_millis(266),
    Duration::from_millis(533),
    Duration::from_millis(1_066),
    Duration::from_millis(2_133),
    Duration::from_millis(4_000),
];
/// How long the last probe's answer is waited for.
const LAST_WAIT: Duration = Duration::from_millis(500);
/// Openers pass this many routers in the first round, one more in each following: 2 dies on the first router behind a
/// plain home NAT; behind two NATs the second round is needed.
const FIRST_TTL: u8 = 2;
/// More routers than this before the peer's NAT would be passed anyway.
const MAX_TTL: u8 = 5;
/// Pauses after failed rounds.
const RETRY: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// What to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// An opener with this TTL to every target.
    Open(u8),
    /// A probe to every target that has not answered.
    Probe,
    /// The round is over.
    Done,
}

/// One round towards one peer.
#[derive(Debug)]
pub(crate) struct Punch {
    round: u32,
    start: Instant,
    /// Steps taken: 0 is the opener.
    step: usize,
    targets: Vec<SocketAddr>,
}

impl Punch {
    /// A round that starts at `start` towards `targets`, of which the first [`limits::MAX_CANDIDATES`] count.
    pub(crate) fn new(round: u32, start: Instant, mut targets: Vec<SocketAddr>) -> Self {
        targets.truncate(limits::MAX_CANDIDATES);
        Self {
            round,
            start,
            step: 0,
            targets,
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.start
    }

    pub(crate) fn targets(&self) -> &[SocketAddr] {
        &self.targets
    }

    /// Adds an address that the peer turned out to send from (peer-reflexive, RFC 8445); `false` if there is no room.
    pub(crate) fn add_target(&mut self, target: SocketAddr) -> bool {
        let room = self.targets.len() < limits::MAX_CANDIDATES && !self.targets.contains(&target);
        if room {
            self.targets.push(target);
        }
        room
    }

    pub(crate) fn deadline(&self) -> Instant {
        match self.step {
            0 => self.start,
            step => match PROBES.get(step - 1) {
                Some(offset) => self.start + *offset,
                None => self.start + PROBES[PROBES.len() - 1] + LAST_WAIT,
            },
        }
    }

    /// The step that is due at `now`, if one is.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Step> {
        if now < self.deadline() {
            return None;
        }
        let step = match self.step {
            0 => Step::Open(opener_ttl(self.round)),
            step if step <= PROBES.len() => Step::Probe,
            _ => Step::Done,
        };
        self.step += 1;
        Some(step)
    }
}

/// TTL of the openers of a round, counted from 0.
fn opener_ttl(round: u32) -> u8 {
    let span = u32::from(MAX_TTL - FIRST_TTL) + 1;
    FIRST_TTL + u8::try_from(round % span).unwrap_or(0)
}

/// How long to wait after the `failed`-th round in a row (counted from 0) ended without a path.
pub(crate) fn retry_after(failed: u32) -> Duration {
    let at = usize::try_from(failed)
        .unwrap_or(usize::MAX)
        .min(RETRY.len() - 1);
    RETRY[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_an_opener_then_nine_probes_then_the_end() {
        let start = Instant::from_boot(Duration::from_secs(9));
        let mut punch = Punch::new(0, start, vec!["1.2.3.4:5".parse().unwrap()]);
        assert_eq!(punch.poll(start - Duration::from_millis(1)), None);
        assert_eq!(punch.poll(start), Some(Step::Open(2)));
        assert_eq!(punch.poll(start), None);
        let mut probes = 0;
        loop {
            let now = punch.deadline();
            match punch.poll(now) {
                Some(Step::Probe) => probes += 1,
                Some(Step::Done) => break,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(probes, 9);
    }

    #[test]
    fn openers_reach_one_router_further_each_round_up_to_a_bound() {
        let ttls: Vec<u8> = (0..6).map(opener_ttl).collect();
        assert_eq!(ttls, [2, 3, 4, 5, 2, 3]);
    }

    #[test]
    fn targets_are_bounded_and_distinct() {
        let mut punch = Punch::new(0, Instant::default(), Vec::new());
        for port in 1..1_000 {
            punch.add_target(SocketAddr::from(([1, 2, 3, 4], port)));
        }
        assert_eq!(punch.targets().len(), limits::MAX_CANDIDATES);
        assert!(!punch.add_target(punch.targets()[0]));
    }
}
