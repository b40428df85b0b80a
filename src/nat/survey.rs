//! How the NAT before this host maps, filters and allocates, measured on fresh sockets (RFC 5780, sections 4.3 to 4.5).
//!
//! Not on the mesh socket: on a router that takes unsolicited packets for its own, an answer that is filtered occupies
//! that port's place in the connection table, and our next packet to it has to leave from another external port. Peers
//! would be told the wrong one.
//!
//! One socket tests the filter. At the same time [`SAMPLES`] others ask the relay, in one burst: they take one way to the
//! NAT, so that it sees them in this order, and all together cost one round trip. Where ports are counted another socket
//! asks a little later, which shows how many of them other hosts take. Then one of the samples asks the relay's second
//! port and other relays, which shows what the mapping depends on, and it and the filter's socket send to each other's
//! external addresses.

mod findings;
mod questions;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use self::questions::{Pending, Question};
use super::NatProfile;
use super::allocation::SAMPLES;
use super::profile::{Other, StunServer};
use crate::engine::SocketId;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::stun::TransactionId;

pub(crate) use self::questions::Request;

/// Sockets that a survey takes: one for the filter, those that ask in a row, and one that asks later.
pub(crate) const SOCKETS: usize = SAMPLES + 2;
/// Sockets of a survey of IPv6.
pub(crate) const FEW_SOCKETS: usize = 2;
/// When the filter is tested, counted from the start. Each time asks twice: what gets lost would look like a filter.
const FILTER: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(80),
    Duration::from_millis(160),
];
/// When comparisons are asked for, counted from their start.
const COMPARISON: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(80),
    Duration::from_millis(200),
];
/// Sockets that compare where the NAT has several external addresses: with two of them, chance gives a mapping for each
/// destination the same one as the first half of the times.
const COMPARERS: usize = 4;
/// When the late socket asks, counted from the start: long enough that what others take can be told from chance, and
/// over before the filter's test is.
const LATE: Duration = Duration::from_millis(150);
/// When other relays are made to send to the filter's socket, counted from when that became worth while.
const KNOCKS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(80)];
/// How many relays.
const KNOCKERS: usize = 2;
/// Shortest wait for an answer, beyond the round trip time that is known.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a fresh socket asks.
const TRIES: usize = 2;
/// A survey of a dead line ends here.
const END: Duration = Duration::from_secs(4);

/// The sockets that ask in a row.
const ROW: std::ops::RangeInclusive<usize> = 1..=SAMPLES;

#[derive(Debug)]
struct Fresh {
    socket: SocketId,
    local: Option<u16>,
    external: Option<(Instant, SocketAddr)>,
    /// How often it has asked.
    asked: usize,
}

/// What came out of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Findings {
    pub(crate) profile: NatProfile,
    /// An address or a port is translated, if that is known.
    pub(crate) translated: Option<bool>,
    /// External addresses of the NAT that were seen; at most [`limits::POOL_ADDRESSES`].
    pub(crate) addresses: Vec<IpAddr>,
    /// Ports a second that other hosts take from a sequential NAT.
    pub(crate) foreign: f64,
}

/// One measurement.
pub(crate) struct Survey {
    started: Instant,
    server: StunServer,
    others: Vec<Other>,
    rtt: Duration,
    fresh: Vec<Fresh>,
    pending: BTreeMap<TransactionId, Pending>,
    /// Rounds of the filter's test that went out, and whether it is over.
    filter_asked: usize,
    filter_over: bool,
    /// An answer from another port has come in, and one from another address.
    filter_open: [bool; 2],
    /// Since when other relays knock, how often they were asked to, by what their words on the last time are known, and
    /// whether one has come.
    knocking: Option<(Instant, usize)>,
    knock_answers: Vec<u64>,
    knocked: bool,
    /// The sockets in the row have their answers, or have waited long enough.
    sampled: bool,
    /// When the comparisons began, how many rounds of them went out, and whether they are over.
    comparing: Option<(Instant, usize)>,
    compared: bool,
    /// External addresses by socket and destination.
    seen: BTreeMap<(usize, usize), SocketAddr>,
    hairpin: bool,
    done: bool,
}

impl Survey {
    /// Asks `server`, whose round trip time is `rtt`, and compares with `others`; `sockets` are [`SOCKETS`] new ones, or
    /// [`FEW_SOCKETS`] where ports are not translated: then nothing is told of their allocation.
    pub(crate) fn new(
        now: Instant,
        server: StunServer,
        others: Vec<Other>,
        rtt: Duration,
        sockets: Vec<SocketId>,
    ) -> Self {
        let fresh = |socket| Fresh {
            socket,
            local: None,
            external: None,
            asked: 0,
        };
        Self {
            started: now,
            server,
            others,
            rtt,
            fresh: sockets.into_iter().map(fresh).collect(),
            pending: BTreeMap::new(),
            filter_asked: 0,
            filter_over: false,
            filter_open: [false; 2],
            knocking: None,
            knock_answers: Vec::new(),
            knocked: false,
            sampled: false,
            comparing: None,
            compared: false,
            seen: BTreeMap::new(),
            hairpin: false,
            done: false,
        }
    }

    /// It is one of IPv6.
    pub(crate) fn is_v6(&self) -> bool {
        self.server.main.is_ipv6()
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = SocketId> {
        self.fresh.iter().map(|fresh| fresh.socket)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// The kernel gave a socket its port, or none: then there is nothing to measure with.
    pub(crate) fn opened(&mut self, socket: SocketId, port: Option<u16>) {
        match self.fresh.iter_mut().find(|fresh| fresh.socket == socket) {
            Some(fresh) if port.is_some() => fresh.local = port,
            Some(_) => self.done = true,
            None => {}
        }
    }

    /// All sockets have their ports. Only then does anything go out, so that the row stays a row.
    fn is_open(&self) -> bool {
        self.fresh.iter().all(|fresh| fresh.local.is_some())
    }

    pub(crate) fn deadline(&self) -> Instant {
        let end = self.started + END;
        if !self.is_open() {
            return end;
        }
        let stages = [
            self.filter_deadline(),
            self.row_deadline(),
            self.late_deadline(),
            self.comparison_deadline(),
        ];
        stages.into_iter().flatten().min().unwrap_or(end).min(end)
    }

    /// Continues; returns what is to be sent.
    pub(crate) fn poll(&mut self, now: Instant, rng: &mut Random) -> Vec<Request> {
        let mut requests = Vec::new();
        if now.since(self.started) >= END {
            self.done = true;
        }
        if self.done || !self.is_open() {
            return requests;
        }
        self.knock(now, rng, &mut requests);
        self.test_filter(now, rng, &mut requests);
        self.ask_in_a_row(now, rng, &mut requests);
        self.ask_later(now, rng, &mut requests);
        self.compare(now, rng, &mut requests);
        self.done = self.filter_over && self.compared;
        requests
    }

    fn filter_deadline(&self) -> Option<Instant> {
        let next = match self.knocking {
            Some((since, asked)) => KNOCKS.get(asked).map(|at| since + *at),
            None => FILTER.get(self.filter_asked).map(|at| self.started + *at),
        };
        (!self.filter_over).then(|| next.unwrap_or(self.filter_end()))
    }

    /// An answer from the other port is as late as one from the main port, and both were asked for several times.
    fn filter_end(&self) -> Instant {
        let last = |times: &[Duration]| times.last().copied().unwrap_or_default();
        let asked = self.started + last(&FILTER) + self.wait();
        let knocked = self.knocking.map(|(since, _)| {
            let farthest = self.others.iter().map(|other| other.rtt).max();
            since + last(&KNOCKS) + farthest.unwrap_or_default() * 3 / 2 + PATIENCE
        });
        knocked.map_or(asked, |knocked| knocked.max(asked))
    }

    /// How long an answer of the relay is waited for.
    fn wait(&self) -> Duration {
        self.rtt * 3 / 2 + PATIENCE
    }

    fn test_filter(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        while let Some(at) = FILTER.get(self.filter_asked)
            && now >= self.started + *at
        {
            self.filter_asked += 1;
            let main = self.server.main;
            if !self.is_heard() {
                requests.extend(self.ask(rng, 0, Question::Address(0), main, Some(main)));
            }
            for (question, from) in self.unanswered() {
                for _ in 0..2 {
                    requests.extend(self.ask(rng, 0, question, main, Some(from)));
                }
            }
        }
        self.filter_over |= self.is_filter_known() || now >= self.filter_end();
    }

    /// The filter's tests that the relay can make and that nothing has come in for, and where that comes from.
    fn unanswered(&self) -> impl Iterator<Item = (Question, SocketAddr)> + use<> {
        let [port, address] = self.filter_open;
        let tests = [
            (Question::OtherPort, self.server.alternative, port),
            (Question::OtherAddress, self.server.elsewhere, address),
        ];
        let left = tests.into_iter().filter(|(_, _, open)| !open);
        left.filter_map(|(question, from, _)| Some((question, from?)))
    }

    /// Answers reach the socket of the filter's test.
    fn is_heard(&self) -> bool {
        let first = self.fresh.first();
        first.is_some_and(|fresh| fresh.external.is_some())
    }

    /// Nothing is left to be told about the filter: everything that could come in has.
    fn is_filter_known(&self) -> bool {
        let knocks = self.knocking.is_some() && !self.filter_open[1];
        self.is_heard() && !knocks && self.unanswered().next().is_none()
    }

    /// Those in the row that have no answer.
    fn silent(&self) -> impl Iterator<Item = usize> {
        ROW.filter(|at| {
            let fresh = self.fresh.get(*at);
            fresh.is_some_and(|fresh| fresh.external.is_none())
        })
    }

    fn row_deadline(&self) -> Option<Instant> {
        let asked = ROW.filter_map(|at| Some(self.fresh.get(at)?.asked)).max();
        let tries = u32::try_from(asked.unwrap_or(0)).unwrap_or(0);
        (!self.sampled).then(|| self.started + self.wait() * tries)
    }

    /// All of them at once, so that the NAT sees them in this order and nearly nobody else's in between; later those that
    /// were not answered, of which the order is not known.
    fn ask_in_a_row(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        if self.row_deadline().is_some_and(|due| now >= due) {
            let (main, silent) = (self.server.main, self.silent().collect::<Vec<_>>());
            for at in silent {
                if self.fresh[at].asked >= TRIES {
                    self.sampled = true;
                    return;
                }
                requests.extend(self.ask(rng, at, Question::Address(at), main, Some(main)));
            }
        }
        let complete = self.silent().next().is_none();
        self.sampled |= complete;
    }

    /// The socket that shows how many ports others take, where that can be told and matters; until it has asked, nothing
    /// else of ours may take one.
    fn late(&self) -> Option<usize> {
        let late = ROW.end() + 1;
        let silent = self.fresh.get(late).is_some_and(|fresh| fresh.asked == 0);
        let counted = || self.allocation().delta().is_some();
        (self.sampled && silent && self.comparing.is_none() && counted()).then_some(late)
    }

    fn late_deadline(&self) -> Option<Instant> {
        self.late().map(|_| self.started + LATE)
    }

    fn ask_later(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        if let Some(late) = self.late().filter(|_| now >= self.started + LATE) {
            let main = self.server.main;
            requests.extend(self.ask(rng, late, Question::Address(late), main, Some(main)));
        }
    }

    fn comparison_deadline(&self) -> Option<Instant> {
        let (since, asked) = self.comparing?;
        let over = since + self.comparison_time();
        let next = COMPARISON.get(asked).map_or(over, |at| since + *at);
        (!self.compared).then(|| next.min(over))
    }

    fn compare(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        if self.comparing.is_none() && self.sampled && self.late().is_none() {
            self.comparing = Some((now, 0));
            // The filter's socket may send to nobody else as long as the filter is tested.
            self.compared = self.last() == 0;
        }
        let Some((since, asked)) = self.comparing.filter(|_| !self.compared) else {
            return;
        };
        if now >= since + self.comparison_time() {
            self.compared = true;
            return;
        }
        if COMPARISON.get(asked).is_none_or(|at| now < since + *at) {
            return;
        }
        self.comparing = Some((since, asked + 1));
        for (at, number, destination) in self.unseen() {
            let question = Question::Elsewhere(at, number);
            requests.extend(self.ask(rng, at, question, destination, Some(destination)));
        }
        let last = self.last();
        let outside = |at: usize| self.fresh.get(at)?.external.map(|(_, address)| address);
        if let (Some(first), Some(second)) = (outside(0), outside(last))
            && !self.hairpin
        {
            requests.extend(self.ask(rng, last, Question::Hairpin, first, None));
            requests.extend(self.ask(rng, 0, Question::Hairpin, second, None));
        }
    }

    /// What comparisons are made with: the relay's second port, if it has one, and other relays.
    fn destinations(&self) -> impl Iterator<Item = (SocketAddr, Duration)> {
        let port = self.server.alternative.map(|port| (port, self.rtt));
        let others = self.others.iter().map(|other| (other.address, other.rtt));
        port.into_iter().chain(others)
    }

    /// Which sockets compare: the last of the row, and others where their addresses differ.
    fn comparers(&self) -> Vec<usize> {
        let count = if self.addresses().len() > 1 {
            COMPARERS
        } else {
            1
        };
        let answered = ROW.rev().filter(|at| self.sample(*at).is_some());
        answered.take(count).collect()
    }

    /// Comparisons without an answer: socket, number of the destination, and the destination.
    fn unseen(&self) -> Vec<(usize, usize, SocketAddr)> {
        let mut unseen = Vec::new();
        for at in self.comparers() {
            for (number, (destination, _)) in self.destinations().enumerate() {
                if !self.seen.contains_key(&(at, number)) {
                    unseen.push((at, number, destination));
                }
            }
        }
        unseen
    }

    /// How long comparisons are waited for: shorter once all relays have answered, as a packet of our own that comes back
    /// from the router does not go as far as they are.
    fn comparison_time(&self) -> Duration {
        let answered = self.unseen().is_empty();
        if answered && self.hairpin {
            return Duration::ZERO;
        }
        if answered {
            return COMPARISON[1] + self.rtt + PATIENCE / 2;
        }
        let farthest = self.destinations().map(|(_, rtt)| rtt).max();
        COMPARISON[2] + farthest.unwrap_or_default().max(self.rtt) + PATIENCE / 2
    }

    /// The last of the row that was answered.
    fn last(&self) -> usize {
        let answered = |at: &usize| {
            self.fresh
                .get(*at)
                .is_some_and(|one| one.external.is_some())
        };
        ROW.rev().find(answered).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
