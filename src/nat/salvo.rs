//! What is sent, and when, where the plain punch cannot work; see [`super::strategy`].

use std::time::Duration;

use super::strategy::{Kit, Plan};
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;

/// First packets die beyond our own NATs, for the same reason as in [`super::punch`], and reach further each time.
const MEETING_OPENERS: [(u64, u8); 3] = [(0, 2), (5, 3), (10, 4)];
/// The same for many ports: each pass is some hundred packets.
const OPENING_PASSES: [(u64, u8); 2] = [(0, 2), (20, 4)];
/// When opened ports are refreshed: Linux forgets what was not answered after 30 s.
const REFRESHES: [u64; 2] = [10_000, 20_000];
/// Probes between two foretold ports begin when openers of both sides have gone out.
const MEETING_STARTS: u64 = 50;
/// And are repeated this often,
const MEETING_INTERVAL: u64 = 100;
/// for so long.
const MEETING_TIME: u64 = 5_000;
/// A search begins when the ports are open.
const SEARCH_STARTS: u64 = 60;
/// 100 a second: a line that carries a telephone call carries them.
const SEARCH_INTERVAL: u64 = 10;
/// An attempt without hope ends this much before the limit: far deadlines are put off to a full second.
const SLACK: Duration = Duration::from_secs(2);
/// How long the answer to the last probe is waited for.
const LAST_WAIT: u64 = 500;

/// What to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shot {
    /// From every socket to the one target, with this TTL.
    Pass(Option<u8>),
    /// From the one socket to this port.
    Port(u16),
    /// It is over.
    Done,
}

/// The schedule of one attempt, within its budget.
#[derive(Debug)]
pub(crate) struct Salvo {
    start: Instant,
    sockets: usize,
    step: usize,
    sent: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Meet,
    Open,
    /// Ports in the order in which they are tried, each as often as there are addresses.
    Search(Vec<u16>),
}

impl Salvo {
    /// `addresses`: how many a search goes to; it tries each port at all of them, one after the other.
    pub(crate) fn new(
        start: Instant,
        plan: Plan,
        sockets: usize,
        addresses: usize,
        rng: &mut Random,
    ) -> Self {
        let kind = match plan {
            Plan::Meet(_) => Kind::Meet,
            Plan::Open => Kind::Open,
            Plan::Search { block, .. } => {
                let ports = ports(block, rng).into_iter();
                let each = ports.flat_map(|port| std::iter::repeat_n(port, addresses.max(1)));
                Kind::Search(each.take(limits::SPRAY_PROBES).collect())
            }
        };
        let (step, sent) = (0, 0);
        Self {
            start,
            sockets,
            step,
            sent,
            kind,
        }
    }

    /// When the next step is due; `None` when there is none left but the end.
    fn next(&self) -> Option<u64> {
        match &self.kind {
            Kind::Meet => match MEETING_OPENERS.get(self.step) {
                Some((at, _)) => Some(*at),
                None => {
                    let probe = (self.step - MEETING_OPENERS.len()) as u64;
                    let at = MEETING_STARTS + probe * MEETING_INTERVAL;
                    (at <= MEETING_TIME).then_some(at)
                }
            },
            Kind::Open => match OPENING_PASSES.get(self.step) {
                Some((at, _)) => Some(*at),
                None => REFRESHES.get(self.step - OPENING_PASSES.len()).copied(),
            },
            Kind::Search(ports) => {
                let at = SEARCH_STARTS + self.step as u64 * SEARCH_INTERVAL;
                (self.step < ports.len()).then_some(at)
            }
        }
    }

    fn end(&self) -> Instant {
        let last = match &self.kind {
            Kind::Meet => Duration::from_millis(MEETING_TIME + LAST_WAIT),
            Kind::Open => limits::SPRAY_TIME - SLACK,
            Kind::Search(ports) => {
                let last = SEARCH_STARTS + ports.len() as u64 * SEARCH_INTERVAL + LAST_WAIT;
                Duration::from_millis(last).min(limits::SPRAY_TIME - SLACK)
            }
        };
        self.start + last
    }

    fn step_size(&self) -> usize {
        match self.kind {
            Kind::Search(_) => 1,
            _ => self.sockets,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        let fits = self.sent + self.step_size() <= limits::SPRAY_PROBES;
        let next = self.next().filter(|_| fits);
        let next = next.map(|at| self.start + Duration::from_millis(at));
        next.unwrap_or(self.end()).min(self.end())
    }

    /// Probes that went out so far.
    #[cfg(test)]
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// What is due at `now`, if anything is.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Shot> {
        if now < self.deadline() {
            return None;
        }
        let fits = self.sent + self.step_size() <= limits::SPRAY_PROBES;
        let due = self.next().filter(|_| fits && now < self.end());
        if due.is_none() {
            return Some(Shot::Done);
        }
        let opener = |openers: &[(u64, u8)]| openers.get(self.step).map(|(_, ttl)| *ttl);
        let shot = match &self.kind {
            Kind::Meet => Shot::Pass(opener(&MEETING_OPENERS)),
            Kind::Open => Shot::Pass(opener(&OPENING_PASSES)),
            Kind::Search(ports) => Shot::Port(ports[self.step]),
        };
        self.sent += self.step_size();
        self.step += 1;
        Some(shot)
    }
}

/// How many sockets a plan takes.
pub(crate) const fn sockets(plan: Plan) -> usize {
    match plan {
        Plan::Meet(Kit::Row { .. }) => limits::ROW_SOCKETS,
        Plan::Open => limits::SPRAY_SOCKETS,
        Plan::Meet(_) | Plan::Search { .. } => 1,
    }
}

/// Distinct ports in random order, those of the block first.
fn ports(block: Option<(u16, u16)>, rng: &mut Random) -> Vec<u16> {
    const FIRST: u16 = 1_024;
    let (low, high) = match block {
        Some((low, high)) if low <= high => (low.max(FIRST), high.max(FIRST)),
        _ => (FIRST, u16::MAX),
    };
    let mut ports = shuffled(low, high, rng);
    if ports.len() < limits::SPRAY_PROBES {
        let rest = shuffled(FIRST, u16::MAX, rng);
        ports.extend(rest.into_iter().filter(|port| !(low..=high).contains(port)));
    }
    ports.truncate(limits::SPRAY_PROBES);
    ports
}

/// All ports of a range (Fisher and Yates); 128 KiB for the time of a call.
fn shuffled(low: u16, high: u16, rng: &mut Random) -> Vec<u16> {
    let mut ports: Vec<u16> = (low..=high).collect();
    for at in (1..ports.len()).rev() {
        let other = (rng.u64() % (at as u64 + 1)) as usize;
        ports.swap(at, other);
    }
    ports
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn run(plan: Plan) -> Vec<(Duration, Shot)> {
        let start = Instant::from_boot(Duration::from_secs(100));
        let mut rng = Random::from_seed([3; 32]);
        let mut salvo = Salvo::new(start, plan, sockets(plan), 1, &mut rng);
        assert_eq!(salvo.poll(start - Duration::from_millis(1)), None);
        let mut shots = Vec::new();
        while shots.last().is_none_or(|(_, shot)| *shot != Shot::Done) {
            let now = salvo.deadline();
            shots.push((now.since(start), salvo.poll(now).unwrap()));
            assert!(salvo.sent() <= limits::SPRAY_PROBES);
            assert!(now.since(start) <= limits::SPRAY_TIME);
        }
        shots
    }

    #[test]
    fn foretold_ports_are_opened_and_probed_ten_times_a_second_for_five_seconds() {
        for kit in [Kit::Measured, Kit::Virgin, Kit::Row { delta: 1 }, Kit::Any] {
            let shots = run(Plan::Meet(kit));
            assert_eq!(shots[0].1, Shot::Pass(Some(2)));
            assert_eq!(shots[2].1, Shot::Pass(Some(4)));
            let probes = shots.iter().filter(|(_, shot)| *shot == Shot::Pass(None));
            assert_eq!(probes.count(), 50, "{kit:?}");
            assert_eq!(shots.last().unwrap().0, Duration::from_millis(5_500));
        }
    }

    #[test]
    fn many_ports_are_opened_with_a_low_ttl_and_refreshed_before_they_are_forgotten() {
        let shots = run(Plan::Open);
        let passes: Vec<Shot> = shots.iter().map(|(_, shot)| *shot).collect();
        let low = [Shot::Pass(Some(2)), Shot::Pass(Some(4))];
        assert_eq!(passes[..2], low);
        assert_eq!(
            passes[2..],
            [Shot::Pass(None), Shot::Pass(None), Shot::Done]
        );
        assert_eq!(shots[4].0, limits::SPRAY_TIME - SLACK);
    }

    #[test]
    fn a_search_tries_distinct_ports_of_the_block_first_and_stays_within_its_budget() {
        for block in [None, Some((2_000, 2_511)), Some((1, 65_535)), Some((9, 3))] {
            let announced = true;
            let shots = run(Plan::Search { block, announced });
            let ports: Vec<u16> = shots
                .iter()
                .filter_map(|(_, shot)| match shot {
                    Shot::Port(port) => Some(*port),
                    _ => None,
                })
                .collect();
            assert_eq!(ports.len(), limits::SPRAY_PROBES);
            assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
            assert!(ports.iter().all(|port| *port >= 1_024));
            if block == Some((2_000, 2_511)) {
                assert!(
                    ports[..512]
                        .iter()
                        .all(|port| (2_000..2_512).contains(port))
                );
            }
        }
    }

    #[test]
    fn a_search_at_several_addresses_tries_each_port_at_all_of_them_within_the_same_budget() {
        let mut rng = Random::from_seed([3; 32]);
        let (start, block, announced) = (Instant::default(), None, true);
        let plan = Plan::Search { block, announced };
        let mut salvo = Salvo::new(start, plan, 1, 2, &mut rng);
        let mut ports = Vec::new();
        while let Some(Shot::Port(port)) = salvo.poll(salvo.deadline()) {
            ports.push(port);
        }
        assert_eq!(ports.len(), limits::SPRAY_PROBES);
        assert!(ports.chunks(2).all(|pair| pair[0] == pair[1]));
        let distinct: BTreeSet<u16> = ports.into_iter().collect();
        assert_eq!(distinct.len(), limits::SPRAY_PROBES / 2);
    }
}
