//! Measures the NAT by STUN from the mesh socket itself (RFC 5780).
//!
//! A plain round asks every connected relay for our address. A full round, which a person asks for, also asks on the
//! alternative port, and for an answer from there. One relay tells whether the mapping depends on the port; whether it
//! depends on the address takes a second relay address. What cannot be told stays `unknown`.
//!
//! A full round is not free: on a router that takes unsolicited packets for its own, the answer from the other port
//! occupies that port's place in the connection table, and our next packet to it has to leave from another external
//! port, which Linux then prefers for new destinations as well. Peers would be told the wrong port, so plain rounds
//! leave the alternative port alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Filtering, Mapping, NatProfile};
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::stun::{self, TransactionId};

/// When requests of a round go out, counted from its start: UDP may lose one, hardly three.
const TRANSMISSIONS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
];
/// When a round ends at the latest: the last request has had the time of a transcontinental answer.
const ROUND: Duration = Duration::from_millis(600);
/// How often the NAT is measured without any cause.
const INTERVAL: Duration = Duration::from_secs(300);

/// What a request is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Our address as the main port sees it.
    Main,
    /// Our address as the alternative port sees it.
    Alternative,
    /// Whether an answer from the alternative port reaches a mapping that only the main port was sent to.
    ///
    /// It is asked first and alone in its round trip: a packet to the alternative port would open the filter for it.
    OtherPort,
}

/// A round that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Plain,
    Full,
}

#[derive(Debug, Default, Clone, Copy)]
struct Answers {
    main: Option<SocketAddr>,
    alternative: Option<SocketAddr>,
    other_port: bool,
    rtt: Option<Duration>,
}

/// A relay that can be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StunServer {
    pub(crate) main: SocketAddr,
    pub(crate) alternative: Option<SocketAddr>,
}

struct Round {
    full: bool,
    started: Instant,
    sent: usize,
    servers: Vec<StunServer>,
    pending: BTreeMap<TransactionId, (SocketAddr, Question, Instant)>,
    answers: BTreeMap<SocketAddr, Answers>,
}

/// The measurement, and what the last one found.
pub(crate) struct Prober {
    round: Option<Round>,
    next: Instant,
    answers: BTreeMap<SocketAddr, Answers>,
    servers: Vec<StunServer>,
    /// The next round is a full one.
    full: bool,
    /// A round since the last network change saw answers from another port filtered. Later rounds cannot see it any
    /// more, because they themselves have opened the filter.
    filtered: bool,
}

impl Prober {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            round: None,
            next: now + INTERVAL,
            answers: BTreeMap::new(),
            servers: Vec::new(),
            full: false,
            filtered: false,
        }
    }

    /// The network changed: what was measured holds no longer.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Self::new(now);
        self.request(now);
    }

    /// Measures everything at the next timeout.
    pub(crate) fn request_full(&mut self, now: Instant) {
        self.full = true;
        self.next = now;
    }

    /// Measures at the next timeout: a relay was connected, or the network changed.
    pub(crate) fn request(&mut self, now: Instant) {
        self.next = now;
    }

    pub(crate) fn deadline(&self) -> Instant {
        match &self.round {
            Some(round) => round.next_step(),
            None => self.next,
        }
    }

    /// Starts, continues or ends a round; returns the requests to send, and what kind of round has just ended.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        rng: &mut Random,
        servers: impl FnOnce() -> Vec<StunServer>,
    ) -> (Vec<(SocketAddr, Vec<u8>)>, Option<Ended>) {
        if self.round.is_none() && now >= self.next {
            self.next = now + INTERVAL;
            let full = std::mem::take(&mut self.full);
            let mut servers = servers();
            if !full {
                servers
                    .iter_mut()
                    .for_each(|server| server.alternative = None);
            }
            self.round = Some(Round {
                full,
                started: now,
                sent: 0,
                servers,
                pending: BTreeMap::new(),
                answers: BTreeMap::new(),
            });
        }
        let Some(round) = &mut self.round else {
            return (Vec::new(), None);
        };
        if round.is_complete() || now.since(round.started) >= ROUND {
            let ended = if round.full {
                Ended::Full
            } else {
                Ended::Plain
            };
            self.finish();
            return (Vec::new(), Some(ended));
        }
        (round.transmit(now, rng), None)
    }

    /// Takes a STUN response; `true` if it answers one of our requests.
    pub(crate) fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: &TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let Some(round) = &mut self.round else {
            return false;
        };
        let Some((relay, question, sent)) = round.pending.get(id).copied() else {
            return false;
        };
        let Some(server) = round
            .servers
            .iter()
            .find(|server| server.main == relay)
            .copied()
        else {
            return false;
        };
        let expected = match question {
            Question::Main => Some(server.main),
            Question::Alternative | Question::OtherPort => server.alternative,
        };
        if expected != Some(from) {
            return false;
        }
        round.pending.remove(id);
        let answers = round.answers.entry(relay).or_default();
        match question {
            Question::Main => {
                answers.main = Some(mapped);
                answers.rtt = Some(now.since(sent));
            }
            Question::Alternative => answers.alternative = Some(mapped),
            Question::OtherPort => answers.other_port = true,
        }
        true
    }

    /// Takes the round's answers over; a plain one leaves what the last full one found, if our address is the same.
    fn finish(&mut self) {
        let Some(mut round) = self.round.take() else {
            return;
        };
        if !round.full {
            for (server, answers) in &mut round.answers {
                let old = self
                    .answers
                    .get(server)
                    .filter(|old| old.main == answers.main);
                answers.alternative = old.and_then(|old| old.alternative);
            }
        }
        self.answers = round.answers;
        self.servers = round.servers;
        self.filtered |= round.full && self.is_filtered();
    }

    /// Our addresses as relays saw them in the last round.
    pub(crate) fn reflexive(&self) -> impl Iterator<Item = SocketAddr> {
        self.answers.values().filter_map(|answers| answers.main)
    }

    /// STUN round trip time of a relay in the last round.
    pub(crate) fn rtt(&self, relay: SocketAddr) -> Option<Duration> {
        self.answers.get(&relay)?.rtt
    }

    /// What the last round says about the NAT. `own` are the addresses that this host itself has.
    pub(crate) fn profile(&self, own: impl Fn(SocketAddr) -> bool) -> NatProfile {
        NatProfile {
            mapping: self.mapping(own),
            filtering: self.filtering(),
        }
    }

    fn mapping(&self, own: impl Fn(SocketAddr) -> bool) -> Mapping {
        let seen: Vec<(IpAddr, Answers)> = self
            .servers
            .iter()
            .filter_map(|server| Some((server.main.ip(), *self.answers.get(&server.main)?)))
            .filter(|(_, answers)| answers.main.is_some_and(|main| main.is_ipv4()))
            .collect();
        let by_port = |answers: &Answers| matches!((answers.main, answers.alternative), (Some(a), Some(b)) if a != b);
        let Some((first_relay, first)) = seen.first() else {
            return Mapping::Unknown;
        };
        if seen.iter().any(|(_, answers)| by_port(answers)) {
            return Mapping::AddressAndPortDependent;
        }
        if first.main.is_some_and(own) {
            return Mapping::EndpointIndependent;
        }
        if seen.iter().any(|(_, answers)| answers.main != first.main) {
            return Mapping::AddressDependent;
        }
        if seen.iter().any(|(relay, _)| relay != first_relay) {
            return Mapping::EndpointIndependent;
        }
        Mapping::Unknown
    }

    fn filtering(&self) -> Filtering {
        if self.filtered {
            Filtering::AddressAndPortDependent
        } else {
            Filtering::Unknown
        }
    }

    fn is_filtered(&self) -> bool {
        let mut asked = self
            .servers
            .iter()
            .filter(|server| server.alternative.is_some())
            .filter_map(|server| self.answers.get(&server.main))
            .filter(|answers| answers.main.is_some())
            .peekable();
        asked.peek().is_some() && asked.all(|answers| !answers.other_port)
    }
}

impl Round {
    fn next_step(&self) -> Instant {
        if self.is_complete() {
            return self.started;
        }
        let next = TRANSMISSIONS.get(self.sent).copied().unwrap_or(ROUND);
        self.started + next
    }

    fn is_complete(&self) -> bool {
        self.servers.is_empty()
            || (self.sent > 0
                && self.servers.iter().all(|server| {
                    self.answers.get(&server.main).is_some_and(|answers| {
                        answers.main.is_some()
                            && (server.alternative.is_none()
                                || answers.alternative.is_some() && answers.other_port)
                    })
                }))
    }

    fn transmit(&mut self, now: Instant, rng: &mut Random) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut requests = Vec::new();
        while TRANSMISSIONS
            .get(self.sent)
            .is_some_and(|at| now >= self.started + *at)
        {
            for server in self.servers.clone() {
                let answers = self.answers.get(&server.main).copied().unwrap_or_default();
                if answers.main.is_none() {
                    requests.push(self.ask(now, rng, server.main, Question::Main, server.main));
                }
                let Some(alternative) = server.alternative else {
                    continue;
                };
                // An answer that was due with the main one shows that the filter was tested: see `Question::OtherPort`.
                if answers.main.is_none() && self.sent < 2 {
                    // Twice, because a lost packet would look like a filter.
                    for _ in 0..2 {
                        requests.push(self.ask(
                            now,
                            rng,
                            server.main,
                            Question::OtherPort,
                            server.main,
                        ));
                    }
                }
                if answers.main.is_some() && answers.alternative.is_none() {
                    requests.push(self.ask(
                        now,
                        rng,
                        server.main,
                        Question::Alternative,
                        alternative,
                    ));
                }
            }
            self.sent += 1;
        }
        requests
    }

    fn ask(
        &mut self,
        now: Instant,
        rng: &mut Random,
        relay: SocketAddr,
        question: Question,
        to: SocketAddr,
    ) -> (SocketAddr, Vec<u8>) {
        let id = rng.bytes();
        self.pending.insert(id, (relay, question, now));
        (
            to,
            stun::binding_request(&id, question == Question::OtherPort),
        )
    }
}
