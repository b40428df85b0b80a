//! Asks every connected relay by STUN where the mesh socket is seen, and says when the NAT has to be surveyed.
//!
//! A round asks the relays' main ports only, which the socket talks to anyway; see [`super::survey`] for the reason.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::survey::{Findings, Request, Survey};
use super::{Allocation, Filtering, Mapping};
use crate::engine::SocketId;
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

#[derive(Debug, Clone, Copy)]
struct Answer {
    mapped: SocketAddr,
    rtt: Duration,
}

/// A relay that can be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StunServer {
    pub(crate) main: SocketAddr,
    /// Its second port.
    pub(crate) alternative: Option<SocketAddr>,
    /// Its second address.
    pub(crate) elsewhere: Option<SocketAddr>,
}

struct Round {
    started: Instant,
    sent: usize,
    servers: Vec<StunServer>,
    pending: BTreeMap<TransactionId, (SocketAddr, Instant)>,
    answers: BTreeMap<SocketAddr, Answer>,
}

/// What has just happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Nothing,
    /// A round has ended. A survey is to follow if [`Prober::survey_plan`] has one.
    Round,
    /// A survey has ended; its sockets can be closed.
    Survey,
}

/// The measurement, and what the last one found.
pub(crate) struct Prober {
    round: Option<Round>,
    survey: Option<Survey>,
    next: Instant,
    answers: BTreeMap<SocketAddr, Answer>,
    servers: Vec<StunServer>,
    findings: Findings,
}

impl Prober {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            round: None,
            survey: None,
            next: now + INTERVAL,
            answers: BTreeMap::new(),
            servers: Vec::new(),
            findings: Findings::default(),
        }
    }

    /// The network changed: what was measured holds no longer. Returns the sockets of a survey that was under way.
    pub(crate) fn reset(&mut self, now: Instant) -> Vec<SocketId> {
        let survey = self.survey.take();
        *self = Self::new(now);
        self.request(now);
        survey.map_or_else(Vec::new, |survey| survey.sockets().collect())
    }

    /// Measures at the next timeout: a relay was connected, the network changed, or a person asks.
    pub(crate) fn request(&mut self, now: Instant) {
        self.next = now;
    }

    pub(crate) fn deadline(&self) -> Instant {
        match (&self.round, &self.survey) {
            (Some(round), _) => round.next_step(),
            (None, Some(survey)) => survey.deadline(),
            (None, None) => self.next,
        }
    }

    /// Starts, continues or ends a round or a survey; returns the requests to send, and what has just happened.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        rng: &mut Random,
        servers: impl FnOnce() -> Vec<StunServer>,
    ) -> (Vec<Request>, Progress) {
        if let Some(survey) = &mut self.survey {
            let requests = survey.poll(now, rng);
            let over = if survey.is_done() {
                Progress::Survey
            } else {
                Progress::Nothing
            };
            return (requests, over);
        }
        if self.round.is_none() && now >= self.next {
            self.next = now + INTERVAL;
            self.round = Some(Round {
                started: now,
                sent: 0,
                servers: servers(),
                pending: BTreeMap::new(),
                answers: BTreeMap::new(),
            });
        }
        let Some(round) = &mut self.round else {
            return (Vec::new(), Progress::Nothing);
        };
        if !round.is_complete() && now.since(round.started) < ROUND {
            return (round.transmit(now, rng), Progress::Nothing);
        }
        if let Some(round) = self.round.take() {
            self.answers = round.answers;
            self.servers = round.servers;
        }
        (Vec::new(), Progress::Round)
    }

    /// Whom the survey after a round asks: the nearest of the relays that have a second port, better still a second
    /// address, or else the nearest, with its round trip time; and which relays at other addresses it compares with. Only
    /// IPv4 is translated.
    pub(crate) fn survey_plan(
        &self,
        now: Instant,
    ) -> Option<(StunServer, Vec<SocketAddr>, Duration)> {
        if self.survey.is_some() || self.next <= now {
            return None; // another round follows at once, with more relays
        }
        let answered = self.servers.iter().filter_map(|server| {
            let answer = self.answers.get(&server.main)?;
            server.main.is_ipv4().then_some((*server, answer.rtt))
        });
        let (server, rtt) = answered.clone().min_by_key(|(server, rtt)| {
            let lacking = (server.alternative.is_none(), server.elsewhere.is_none());
            (lacking, *rtt)
        })?;
        let others = answered
            .map(|(other, _)| other.main)
            .chain(server.elsewhere);
        let others = others.filter(|other| other.ip() != server.main.ip());
        Some((server, others.collect(), rtt))
    }

    pub(crate) fn begin_survey(&mut self, survey: Survey) {
        self.survey = Some(survey);
    }

    /// Takes over what a survey found that is done; returns its sockets.
    pub(crate) fn end_survey(&mut self, own: impl Fn(SocketAddr) -> bool) -> Vec<SocketId> {
        let Some(survey) = self.survey.take() else {
            return Vec::new();
        };
        let before = self.findings.profile;
        self.findings = survey.findings(own);
        // What a loss kept it from telling is as it was: nothing has changed on our side since.
        let found = &mut self.findings.profile;
        if found.mapping == Mapping::Unknown {
            found.mapping = before.mapping;
        }
        if found.filtering == Filtering::Unknown {
            found.filtering = before.filtering;
        }
        if found.allocation == Allocation::Unknown {
            found.allocation = before.allocation;
        }
        found.hairpin = found.hairpin.or(before.hairpin);
        survey.sockets().collect()
    }

    pub(crate) fn survey_mut(&mut self) -> Option<&mut Survey> {
        self.survey.as_mut()
    }

    /// True while there is more to come of what was asked for at `now`.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.round.is_some() || self.survey.is_some() || self.next <= now
    }

    /// Takes a STUN response to the mesh socket; `true` if it answers one of our requests.
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
        let Some((relay, sent)) = round.pending.get(id).copied() else {
            return false;
        };
        if relay != from {
            return false;
        }
        round.pending.remove(id);
        let rtt = now.since(sent);
        round.answers.insert(relay, Answer { mapped, rtt });
        true
    }

    /// Our addresses as relays saw them: those of the round under way, which waits for nobody's answer, and of the last one.
    pub(crate) fn reflexive(&self) -> impl Iterator<Item = SocketAddr> {
        let fresh = self.round.iter().flat_map(|round| round.answers.values());
        fresh
            .chain(self.answers.values())
            .map(|answer| answer.mapped)
    }

    /// STUN round trip time of a relay in the last round.
    pub(crate) fn rtt(&self, relay: SocketAddr) -> Option<Duration> {
        Some(self.answers.get(&relay)?.rtt)
    }

    /// The relay over IPv4 that is nearest, with its round trip time.
    pub(crate) fn nearest(&self) -> Option<(SocketAddr, Duration)> {
        let answers = self.answers.iter().filter(|(relay, _)| relay.is_ipv4());
        let nearest = answers.min_by_key(|(_, answer)| answer.rtt)?;
        Some((*nearest.0, nearest.1.rtt))
    }

    /// What the last survey says about the NAT.
    pub(crate) fn findings(&self) -> Findings {
        self.findings
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
        let answered = |server: &StunServer| self.answers.contains_key(&server.main);
        self.servers.is_empty() || self.sent > 0 && self.servers.iter().all(answered)
    }

    fn transmit(&mut self, now: Instant, rng: &mut Random) -> Vec<Request> {
        let mut requests = Vec::new();
        while TRANSMISSIONS
            .get(self.sent)
            .is_some_and(|at| now >= self.started + *at)
        {
            self.sent += 1;
            for server in &self.servers {
                if self.answers.contains_key(&server.main) {
                    continue;
                }
                let id = rng.bytes();
                self.pending.insert(id, (server.main, now));
                requests.push(Request {
                    socket: SocketId::MESH,
                    remote: server.main,
                    payload: stun::binding_request(&id, stun::Change::Nothing),
                });
            }
        }
        requests
    }
}
