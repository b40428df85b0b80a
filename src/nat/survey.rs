//! How the NAT before this host maps, filters and allocates, measured on fresh sockets (RFC 5780, sections 4.3 to 4.5).
//!
//! Not on the mesh socket: on a router that takes unsolicited packets for its own, an answer that is filtered occupies
//! that port's place in the connection table, and our next packet to it has to leave from another external port. Peers
//! would be told the wrong one.
//!
//! One socket tests the filter, while [`SAMPLES`] others are asked about one after the other. When both is done, the last
//! of these asks the relay's second port and the other relays, which shows what the mapping depends on, and the two send
//! to each other's external addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::allocation::{SAMPLES, Sample};
use super::profile::StunServer;
use super::{Allocation, Filtering, Mapping, NatProfile};
use crate::engine::SocketId;
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::stun::{self, TransactionId};

/// Sockets that a survey takes: the first is for the filter.
pub(crate) const SOCKETS: usize = SAMPLES + 1;
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
/// Shortest wait for an answer, beyond the round trip time that is known.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a fresh socket asks.
const TRIES: u8 = 2;
/// A survey of a dead line ends here.
const END: Duration = Duration::from_secs(4);

/// What a request is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// The external address of this socket, as the relay's main port sees it.
    Address(usize),
    /// Whether an answer from the port that was not sent to gets in.
    OtherPort,
    /// Whether one from the address that was not sent to does.
    OtherAddress,
    /// The address of the last socket for the relay's other port.
    Alternative,
    /// The same for another relay.
    Relay(usize),
    /// Whether our own packet comes back in.
    Hairpin,
}

impl Question {
    fn change(self) -> stun::Change {
        match self {
            Self::OtherPort => stun::Change::Port,
            Self::OtherAddress => stun::Change::Address,
            _ => stun::Change::Nothing,
        }
    }
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) socket: SocketId,
    pub(crate) remote: SocketAddr,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
struct Fresh {
    socket: SocketId,
    local: Option<u16>,
    external: Option<(Instant, SocketAddr)>,
}

#[derive(Debug)]
struct Pending {
    question: Question,
    from: Option<SocketAddr>,
}

/// What came out of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Findings {
    pub(crate) profile: NatProfile,
    /// Ports a second that other hosts take from a sequential NAT.
    pub(crate) foreign: f64,
}

/// One measurement.
pub(crate) struct Survey {
    started: Instant,
    server: StunServer,
    /// Main ports of relays at other addresses.
    others: Vec<SocketAddr>,
    rtt: Duration,
    fresh: Vec<Fresh>,
    pending: BTreeMap<TransactionId, Pending>,
    /// Rounds of the filter's test that went out.
    filter_asked: usize,
    /// An answer from another port has come in, and one from another address.
    filter_open: [bool; 2],
    /// The socket that is being asked about, how often, and until when it is waited for.
    sampling: (usize, u8, Instant),
    /// When the comparisons began, and how many rounds of them went out.
    comparing: Option<(Instant, usize)>,
    alternative: Option<SocketAddr>,
    seen_by: Vec<Option<SocketAddr>>,
    hairpin: bool,
    done: bool,
}

impl Survey {
    /// Asks `server`, whose round trip time is `rtt`, and compares with `others`; `sockets` are [`SOCKETS`] new ones.
    pub(crate) fn new(
        now: Instant,
        server: StunServer,
        others: Vec<SocketAddr>,
        rtt: Duration,
        sockets: Vec<SocketId>,
    ) -> Self {
        let fresh = |socket| Fresh {
            socket,
            local: None,
            external: None,
        };
        Self {
            started: now,
            server,
            seen_by: vec![None; others.len()],
            others,
            rtt,
            fresh: sockets.into_iter().map(fresh).collect(),
            pending: BTreeMap::new(),
            filter_asked: 0,
            filter_open: [false; 2],
            sampling: (1, 0, now),
            comparing: None,
            alternative: None,
            hairpin: false,
            done: false,
        }
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

    pub(crate) fn deadline(&self) -> Instant {
        let end = self.started + END;
        if let Some((since, asked)) = self.comparing {
            let over = since + self.comparison_time();
            let next = COMPARISON.get(asked).map_or(over, |at| since + *at);
            return next.min(over).min(end);
        }
        let filter = match FILTER.get(self.filter_asked) {
            Some(at) if !self.is_filter_known() => self.started + *at,
            _ => self.filter_end(),
        };
        let sampling = (self.sampling.0 < self.fresh.len()).then_some(self.sampling.2);
        let filter = (sampling.is_none() || filter < self.filter_end()).then_some(filter);
        [filter, sampling]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(end)
            .min(end)
    }

    /// Continues; returns what is to be sent.
    pub(crate) fn poll(&mut self, now: Instant, rng: &mut Random) -> Vec<Request> {
        let mut requests = Vec::new();
        if self.done {
            return requests;
        }
        if now.since(self.started) >= END {
            self.done = true;
            return requests;
        }
        self.test_filter(now, rng, &mut requests);
        self.take_samples(now, rng, &mut requests);
        let sampled = self.sampling.0 >= self.fresh.len();
        if self.comparing.is_none() && sampled && self.is_filter_over(now) {
            self.comparing = Some((now, 0));
        }
        self.compare(now, rng, &mut requests);
        requests
    }

    fn test_filter(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        while let Some(at) = FILTER.get(self.filter_asked)
            && now >= self.started + *at
            && self.comparing.is_none()
        {
            self.filter_asked += 1;
            if self.is_filter_known() {
                continue;
            }
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
        self.is_heard() && self.unanswered().next().is_none()
    }

    /// An answer from the other port is as late as one from the main port, and both were asked for several times.
    fn filter_end(&self) -> Instant {
        let last = FILTER.last().copied().unwrap_or_default();
        self.started + last + self.rtt * 3 / 2 + PATIENCE
    }

    fn is_filter_over(&self, now: Instant) -> bool {
        self.is_filter_known() || now >= self.filter_end()
    }

    fn take_samples(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        while self.sampling.0 < self.fresh.len() {
            let (at, tries, until) = self.sampling;
            if self.fresh[at].external.is_some() || tries >= TRIES && now >= until {
                self.sampling = (at + 1, 0, now);
                continue;
            }
            if now < until {
                return;
            }
            self.sampling = (at, tries + 1, now + self.rtt * 3 / 2 + PATIENCE);
            let main = self.server.main;
            requests.extend(self.ask(rng, at, Question::Address(at), main, Some(main)));
            return;
        }
    }

    fn compare(&mut self, now: Instant, rng: &mut Random, requests: &mut Vec<Request>) {
        let Some((since, asked)) = self.comparing else {
            return;
        };
        if now >= since + self.comparison_time() {
            self.done = true;
            return;
        }
        if COMPARISON.get(asked).is_none_or(|at| now < since + *at) {
            return;
        }
        self.comparing = Some((since, asked + 1));
        let last = self.last();
        if let Some(alternative) = self.server.alternative
            && self.alternative.is_none()
        {
            let from = Some(alternative);
            requests.extend(self.ask(rng, last, Question::Alternative, alternative, from));
        }
        for at in 0..self.others.len() {
            let other = self.others[at];
            if self.seen_by[at].is_none() {
                requests.extend(self.ask(rng, last, Question::Relay(at), other, Some(other)));
            }
        }
        let outside = |at: usize| self.fresh.get(at)?.external.map(|(_, address)| address);
        if let (Some(first), Some(second)) = (outside(0), outside(last))
            && !self.hairpin
        {
            requests.extend(self.ask(rng, last, Question::Hairpin, first, None));
            requests.extend(self.ask(rng, 0, Question::Hairpin, second, None));
        }
    }

    /// How long comparisons are waited for: shorter once all relays have answered, as a packet of our own that comes back
    /// from the router does not go as far as they are.
    fn comparison_time(&self) -> Duration {
        let relays = self.server.alternative.is_none() || self.alternative.is_some();
        let answered = relays && self.seen_by.iter().all(Option::is_some);
        if answered && self.hairpin {
            return Duration::ZERO;
        }
        let last = if answered {
            COMPARISON[1]
        } else {
            COMPARISON[2]
        };
        last + self.rtt + PATIENCE / 2
    }

    /// The last of the sockets that were asked about.
    fn last(&self) -> usize {
        let asked = |fresh: &Fresh| fresh.external.is_some();
        self.fresh
            .iter()
            .skip(1)
            .rposition(asked)
            .map_or(0, |at| at + 1)
    }

    fn ask(
        &mut self,
        rng: &mut Random,
        at: usize,
        question: Question,
        remote: SocketAddr,
        from: Option<SocketAddr>,
    ) -> Option<Request> {
        if self.pending.len() >= limits::SURVEY_REQUESTS {
            return None;
        }
        let id = rng.bytes();
        self.pending.insert(id, Pending { question, from });
        Some(Request {
            socket: self.fresh.get(at)?.socket,
            remote,
            payload: stun::binding_request(&id, question.change()),
        })
    }

    /// Takes a STUN response that arrived on one of our fresh sockets; `true` if it answers one of our requests.
    pub(crate) fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: &TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let Some(pending) = self.pending.get(id) else {
            return false;
        };
        if pending.from != Some(from) {
            return false;
        }
        match pending.question {
            Question::Address(at) => {
                let fresh = self.fresh.get_mut(at);
                if let Some(fresh) = fresh.filter(|fresh| fresh.external.is_none()) {
                    fresh.external = Some((now, mapped));
                }
            }
            Question::OtherPort => self.filter_open[0] = true,
            Question::OtherAddress => self.filter_open[1] = true,
            Question::Alternative => self.alternative = Some(mapped),
            Question::Relay(at) => self.seen_by[at] = Some(mapped),
            Question::Hairpin => return false,
        }
        true
    }

    /// Takes a STUN request that arrived on one of our fresh sockets; `true` if it is our own.
    pub(crate) fn handle_request(&mut self, id: &TransactionId) -> bool {
        let pending = self.pending.get(id);
        let own = pending.is_some_and(|pending| pending.question == Question::Hairpin);
        self.hairpin |= own;
        own
    }

    /// What the answers show. `own` are the addresses of this host itself: without a NAT nothing changes.
    pub(crate) fn findings(&self, own: impl Fn(SocketAddr) -> bool) -> Findings {
        let samples: Vec<Sample> = self.fresh.iter().skip(1).filter_map(sample).collect();
        let (allocation, foreign) = Allocation::of(&samples);
        let last = self.fresh.get(self.last());
        let seen = last.and_then(|fresh| Some((fresh.local?, fresh.external?.1)));
        let direct = seen.is_some_and(|(local, seen)| seen.port() == local && own(seen));
        let compared = self.comparing.is_some() && self.last() > 0;
        Findings {
            profile: NatProfile {
                mapping: match seen {
                    _ if direct => Mapping::EndpointIndependent,
                    Some((_, seen)) => self.mapping(seen),
                    None => Mapping::Unknown,
                },
                filtering: self.filtering(),
                allocation,
                hairpin: (compared && !direct).then_some(self.hairpin),
            },
            foreign,
        }
    }

    fn mapping(&self, seen: SocketAddr) -> Mapping {
        if self.alternative.is_some_and(|other| other != seen) {
            return Mapping::AddressAndPortDependent;
        }
        let mut others = self.seen_by.iter().flatten().peekable();
        if others.peek().is_none() {
            return Mapping::Unknown;
        }
        if others.any(|other| *other != seen) {
            Mapping::AddressDependent
        } else {
            Mapping::EndpointIndependent
        }
    }

    fn filtering(&self) -> Filtering {
        let asked = self.is_heard() && self.filter_asked == FILTER.len();
        let (ports, addresses) = (self.server.alternative, self.server.elsewhere);
        match self.filter_open {
            [_, true] => Filtering::EndpointIndependent,
            [true, false] if asked && addresses.is_some() => Filtering::AddressDependent,
            [true, false] => Filtering::NotPortDependent,
            [false, false] if asked && ports.is_some() => Filtering::AddressAndPortDependent,
            [false, false] => Filtering::Unknown,
        }
    }
}

fn sample(fresh: &Fresh) -> Option<Sample> {
    let (at, external) = fresh.external?;
    Some(Sample {
        at,
        local: fresh.local?,
        external: external.port(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(30);

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn at(milliseconds: u64) -> Instant {
        Instant::from_boot(Duration::from_millis(1_000_000 + milliseconds))
    }

    fn server() -> StunServer {
        StunServer {
            main: addr("203.0.113.1:443"),
            alternative: Some(addr("203.0.113.1:3478")),
            elsewhere: Some(addr("203.0.113.9:443")),
        }
    }

    /// A network: which external port a socket (counted from 0) shows a destination, and whether it lets in an answer from
    /// another port, or from another address, than was sent to.
    struct Net<'a> {
        port: &'a dyn Fn(usize, SocketAddr) -> Option<u16>,
        open: [bool; 2],
        hairpin: bool,
    }

    fn survey() -> Survey {
        let sockets: Vec<SocketId> = (1..=SOCKETS as u16).map(SocketId).collect();
        let others = vec![addr("203.0.113.2:443")];
        let mut survey = Survey::new(at(0), server(), others, RTT, sockets);
        for socket in 1..=SOCKETS as u16 {
            survey.opened(SocketId(socket), Some(40_000 + 7 * socket));
        }
        survey
    }

    /// Runs a survey; returns what it found and how long it took.
    fn run(net: &Net<'_>) -> (Findings, Duration) {
        let outside = addr("198.51.100.7:0").ip();
        let mut rng = Random::from_seed([1; 32]);
        let mut survey = survey();
        let mut now = at(0);
        let mut under_way: Vec<(Instant, Request)> = Vec::new();
        let mut sent = 0;
        while !survey.is_done() {
            let requests = survey.poll(now, &mut rng);
            sent += requests.len();
            under_way.extend(requests.into_iter().map(|request| (now + RTT, request)));
            let arrival = under_way.iter().map(|(at, _)| *at).min();
            let next = survey.deadline();
            assert!(
                survey.is_done()
                    || next > now
                    || arrival.is_some_and(|at| at <= now)
                    || next >= now
            );
            now = arrival.map_or(next, |arrival| arrival.min(next)).max(now);
            let (due, later) = under_way.into_iter().partition(|(at, _)| *at <= now);
            under_way = later;
            let due: Vec<(Instant, Request)> = due;
            for (_, request) in due {
                let Ok(stun::Message::Request { txn, change, .. }) = stun::parse(&request.payload)
                else {
                    panic!("no request");
                };
                if request.remote.ip() == outside {
                    if net.hairpin {
                        assert!(survey.handle_request(&txn));
                    }
                    continue;
                }
                let Some(port) = (net.port)(usize::from(request.socket.0) - 1, request.remote)
                else {
                    continue;
                };
                let mapped = SocketAddr::new(outside, port);
                let (from, open) = match change {
                    stun::Change::Nothing => (request.remote, true),
                    stun::Change::Port => (server().alternative.unwrap(), net.open[0]),
                    stun::Change::Address => (server().elsewhere.unwrap(), net.open[1]),
                };
                if open {
                    assert!(survey.handle_response(now, from, &txn, mapped));
                }
            }
            assert!(sent <= limits::SURVEY_REQUESTS);
        }
        (survey.findings(|_| false), now.since(at(0)))
    }

    #[test]
    fn a_survey_is_over_within_a_second_and_tells_everything_of_a_home_router() {
        let (found, took) = run(&Net {
            port: &|socket, _| Some(40_007 + 7 * socket as u16),
            open: [false; 2],
            hairpin: true,
        });
        assert!(took < Duration::from_millis(700), "{took:?}");
        let expected = NatProfile {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            allocation: Allocation::Preserving,
            hairpin: Some(true),
        };
        assert_eq!(found.profile, expected);
    }

    #[test]
    fn mappings_are_told_apart_by_the_relays_second_port_and_by_another_relay() {
        for (by_port, by_address, expected) in [
            (0, 0, Mapping::EndpointIndependent),
            (0, 900, Mapping::AddressDependent),
            (500, 900, Mapping::AddressAndPortDependent),
        ] {
            let (found, _) = run(&Net {
                port: &|socket, to| {
                    let port = if to.port() == 3_478 { by_port } else { 0 };
                    let address = if to.ip() == server().main.ip() {
                        0
                    } else {
                        by_address
                    };
                    Some(20_000 - socket as u16 + port + address)
                },
                open: [true; 2],
                hairpin: false,
            });
            assert_eq!(found.profile.mapping, expected);
            assert_eq!(found.profile.filtering, Filtering::EndpointIndependent);
            let counted = Allocation::Sequential { delta: -1 };
            assert_eq!(found.profile.allocation, counted);
            assert_eq!(found.profile.hairpin, Some(false));
        }
    }

    #[test]
    fn filters_are_told_apart_by_the_relays_second_port_and_second_address() {
        for (open, expected) in [
            ([false, false], Filtering::AddressAndPortDependent),
            ([true, false], Filtering::AddressDependent),
            ([true, true], Filtering::EndpointIndependent),
        ] {
            let (found, took) = run(&Net {
                port: &|socket, _| Some(50_000 - 3 * socket as u16),
                open,
                hairpin: false,
            });
            assert_eq!(found.profile.filtering, expected);
            assert!(took < Duration::from_millis(700), "{took:?}");
        }
    }

    #[test]
    fn a_socket_without_an_answer_is_passed_over_and_a_dead_line_ends_the_survey() {
        let (found, took) = run(&Net {
            port: &|socket, _| (socket != 3).then_some(30_000 + 2 * socket as u16),
            open: [false; 2],
            hairpin: false,
        });
        assert_eq!(
            found.profile.allocation,
            Allocation::Sequential { delta: 2 }
        );
        assert!(took < Duration::from_secs(1), "{took:?}");
        let (found, took) = run(&Net {
            port: &|_, _| None,
            open: [false; 2],
            hairpin: false,
        });
        assert_eq!(found.profile, NatProfile::default());
        assert!(took <= END, "{took:?}");
    }

    #[test]
    fn answers_that_nobody_asked_for_or_from_elsewhere_change_nothing() {
        let mut survey = survey();
        let mut rng = Random::from_seed([1; 32]);
        let requests = survey.poll(at(0), &mut rng);
        let mapped = addr("198.51.100.7:5");
        for request in requests {
            let Ok(stun::Message::Request { txn, .. }) = stun::parse(&request.payload) else {
                panic!("no request");
            };
            assert!(!survey.handle_response(at(1), addr("192.0.2.66:443"), &txn, mapped));
            assert!(!survey.handle_request(&txn), "that is no hairpin test");
        }
        assert!(!survey.handle_response(at(1), server().main, &[9; 12], mapped));
        assert_eq!(survey.findings(|_| false).profile, NatProfile::default());
    }

    #[test]
    fn a_survey_without_sockets_is_over_at_once() {
        let mut survey = survey();
        survey.opened(SocketId(3), None);
        assert!(survey.is_done());
    }
}
