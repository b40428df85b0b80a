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

/// How many routers the first opener passes: it dies on the first one behind a plain home NAT.
pub(crate) const FIRST_OPENER: u8 = 2;
/// When openers go out, counted from the start, and how many routers they pass. Behind two NATs it takes one more, and an opener that goes too far arrives after the peer's own
/// first opener has left, so that it finds a mapping to fit.
const OPENERS: [(Duration, u8); 3] = [
    (Duration::ZERO, FIRST_OPENER),
    (Duration::from_millis(5), 3),
    (Duration::from_millis(10), 4),
];
/// When probes go out: dense while mappings are fresh, up to four seconds for slow routers.
const PROBES: [Duration; 9] = [
    Duration::from_millis(15),
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
/// How often a round begins anew for targets that come late: a host that has moved learns its new addresses one by one.
const MAX_REPEATS: u32 = 3;
/// Probes of a round that is not expected to open a NAT, and the wait for the last one's answer: what needs none opened,
/// on the LAN or over IPv6, has answered by then on this continent, and may still answer while something else is tried.
const HOPELESS_PROBES: usize = 5;
const HOPELESS_WAIT: Duration = Duration::from_millis(250);
/// When ways that lead outside and back in are tried: hosts on one LAN have found each other by then.
const LATER: Duration = Duration::from_secs(1);
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
    start: Instant,
    /// Steps taken: first the openers, then the probes.
    step: usize,
    hopeless: bool,
    targets: Vec<SocketAddr>,
    later: Vec<SocketAddr>,
    /// When the schedule began, which it does anew for targets that come late.
    schedule: Instant,
    /// How often it did.
    repeated: u32,
    /// When something else is to be tried beside it.
    hedge: Option<Instant>,
}

impl Punch {
    /// A round that starts at `start` towards `targets`, of which the first [`limits::MAX_CANDIDATES`] count, and a second
    /// later towards those of `later`. `hopeless`: only what needs no NAT opened may answer.
    pub(crate) fn new(
        start: Instant,
        mut targets: Vec<SocketAddr>,
        later: Vec<SocketAddr>,
        hopeless: bool,
    ) -> Self {
        targets.truncate(limits::MAX_CANDIDATES);
        Self {
            start,
            step: 0,
            hopeless,
            targets,
            later,
            schedule: start,
            repeated: 0,
            hedge: None,
        }
    }

    /// So long after its start something else is to be tried beside it.
    pub(crate) fn hedged(self, after: Duration) -> Self {
        let hedge = Some(self.start + after);
        Self { hedge, ..self }
    }

    /// True once, when that is due.
    pub(crate) fn take_hedge(&mut self, now: Instant) -> bool {
        self.hedge.take_if(|hedge| *hedge <= now).is_some()
    }

    /// It has turned out that only what needs no NAT opened may answer.
    pub(crate) fn give_up_hope(&mut self) {
        self.hopeless = true;
    }

    /// When probes go out, and how long the last one's answer is waited for.
    fn probes(&self) -> (&'static [Duration], Duration) {
        if self.hopeless {
            (&PROBES[..HOPELESS_PROBES], HOPELESS_WAIT)
        } else {
            (&PROBES, LAST_WAIT)
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

    /// Goes through all steps again from now on: a target has come that the first ones did not go to. Not too often, because
    /// it is the peer who names targets.
    pub(crate) fn repeat(&mut self, now: Instant) {
        if self.repeated < MAX_REPEATS && now > self.schedule {
            self.repeated += 1;
            self.schedule = now;
            self.step = 0;
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        let openers = OPENERS.iter().map(|(offset, _)| *offset);
        let (probes, wait) = self.probes();
        let mut steps = openers.chain(probes.iter().copied()).skip(self.step);
        let end = probes.last().copied().unwrap_or_default() + wait;
        self.schedule + steps.next().unwrap_or(end)
    }

    /// When something is due, be it beside the round.
    pub(crate) fn wake(&self) -> Instant {
        let deadline = self.deadline();
        self.hedge.map_or(deadline, |hedge| hedge.min(deadline))
    }

    /// The step that is due at `now`, if one is.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Step> {
        if now < self.deadline() {
            return None;
        }
        let step = match OPENERS.get(self.step) {
            Some((_, ttl)) => Step::Open(*ttl),
            None if self.step < OPENERS.len() + self.probes().0.len() => Step::Probe,
            None => Step::Done,
        };
        self.step += 1;
        if now.since(self.start) >= LATER {
            for target in std::mem::take(&mut self.later) {
                self.add_target(target);
            }
        }
        Some(step)
    }
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
    fn a_round_is_openers_that_reach_further_and_further_then_probes_then_the_end() {
        let start = Instant::from_boot(Duration::from_secs(9));
        let mut punch = Punch::new(start, vec!["1.2.3.4:5".parse().unwrap()], Vec::new(), false);
        assert_eq!(punch.poll(start - Duration::from_millis(1)), None);
        let mut steps = Vec::new();
        while steps.last() != Some(&Step::Done) {
            let now = punch.deadline();
            steps.push(punch.poll(now).unwrap());
            assert!(punch.deadline() > now || steps.last() == Some(&Step::Done));
        }
        assert_eq!(steps[..3], [Step::Open(2), Step::Open(3), Step::Open(4)]);
        assert_eq!(steps[3..12], [Step::Probe; 9]);
        assert_eq!(steps.len(), 13);
    }

    #[test]
    fn a_round_without_hope_ends_soon_and_the_outside_of_a_shared_nat_comes_later() {
        let start = Instant::from_boot(Duration::from_secs(9));
        let (lan, outside) = ("10.0.0.2:5".parse().unwrap(), "1.2.3.4:5".parse().unwrap());
        let mut punch = Punch::new(start, vec![lan], vec![outside], false);
        while punch.deadline() < start + LATER {
            punch.poll(punch.deadline()).unwrap();
            assert_eq!(punch.targets(), [lan]);
        }
        assert_eq!(punch.poll(punch.deadline()), Some(Step::Probe));
        assert_eq!(punch.targets(), [lan, outside]);
        let mut punch = Punch::new(start, vec![lan], Vec::new(), true);
        while punch.poll(punch.deadline()) != Some(Step::Done) {}
        assert!(punch.deadline() <= start + Duration::from_millis(550));
    }

    #[test]
    fn hope_that_is_lost_in_the_middle_of_a_round_ends_it() {
        let start = Instant::from_boot(Duration::from_secs(9));
        let mut punch = Punch::new(start, vec!["1.2.3.4:5".parse().unwrap()], Vec::new(), false);
        let late = start + Duration::from_secs(2);
        while punch.deadline() < late {
            assert_ne!(punch.poll(punch.deadline()), Some(Step::Done));
        }
        punch.give_up_hope();
        assert_eq!(punch.poll(late), Some(Step::Done));
    }

    #[test]
    fn targets_are_bounded_and_distinct() {
        let mut punch = Punch::new(Instant::default(), Vec::new(), Vec::new(), false);
        for port in 1..1_000 {
            punch.add_target(SocketAddr::from(([1, 2, 3, 4], port)));
        }
        assert_eq!(punch.targets().len(), limits::MAX_CANDIDATES);
        assert!(!punch.add_target(punch.targets()[0]));
    }

    #[test]
    fn something_else_is_due_beside_a_round_once() {
        let start = Instant::from_boot(Duration::from_secs(9));
        let later = Duration::from_millis(100);
        let mut punch = Punch::new(start, Vec::new(), Vec::new(), false).hedged(later);
        while punch.wake() < start + later {
            assert!(!punch.take_hedge(punch.wake()));
            assert!(punch.poll(punch.wake()).is_some());
        }
        assert_eq!(punch.wake(), start + later);
        assert!(punch.take_hedge(start + later));
        assert!(!punch.take_hedge(start + later));
        assert_eq!(punch.wake(), punch.deadline());
    }
}
