//! Asks every connected relay by STUN where the mesh socket is seen, and says when the NAT has to be surveyed.
//!
//! A round asks the relays' main ports only, which the socket talks to anyway; see [`super::survey`] for the reason.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::survey::{Findings, Request, Survey};
use super::{Allocation, Filtering, Mapping, Pooling};
use crate::engine::{RelayHandle, SocketId};
use crate::limits;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StunServer {
    pub(crate) main: SocketAddr,
    /// Its second port.
    pub(crate) alternative: Option<SocketAddr>,
    /// Its second address.
    pub(crate) elsewhere: Option<SocketAddr>,
    /// Our connection to it.
    pub(crate) relay: RelayHandle,
    /// Our address, as it sees it on that.
    pub(crate) observed: Option<IpAddr>,
}

/// A relay's address that a survey compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) address: SocketAddr,
    pub(crate) rtt: Duration,
    /// The relay that sends from there what it is asked to, and where it sees us; `None` for a second address.
    pub(crate) knocker: Option<(RelayHandle, IpAddr)>,
}

/// Whom a survey asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) server: StunServer,
    pub(crate) rtt: Duration,
    /// At most [`limits::SURVEY_RELAYS`].
    pub(crate) others: Vec<Other>,
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
    /// A round has ended. Surveys are to follow, as [`Prober::survey_plans`] says.
    Round,
    /// A survey has ended; its sockets can be closed.
    Survey,
}

/// The measurement, and what the last one found.
pub(crate) struct Prober {
    round: Option<Round>,
    /// One for each address family at most.
    surveys: Vec<Survey>,
    next: Instant,
    answers: BTreeMap<SocketAddr, Answer>,
    servers: Vec<StunServer>,
    findings: Findings,
    /// Those about IPv6.
    findings_v6: Findings,
}

impl Prober {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            round: None,
            surveys: Vec::new(),
            next: now + INTERVAL,
            answers: BTreeMap::new(),
            servers: Vec::new(),
            findings: Findings::default(),
            findings_v6: Findings::default(),
        }
    }

    /// The network changed: what was measured holds no longer. Returns the sockets of a survey that was under way.
    pub(crate) fn reset(&mut self, now: Instant) -> Vec<SocketId> {
        let surveys = std::mem::take(&mut self.surveys);
        *self = Self::new(now);
        self.request(now);
        surveys.iter().flat_map(Survey::sockets).collect()
    }

    /// Measures at the next timeout: a relay was connected, the network changed, or a person asks.
    pub(crate) fn request(&mut self, now: Instant) {
        self.next = now;
    }

    pub(crate) fn deadline(&self) -> Instant {
        let surveys = self.surveys.iter().map(Survey::deadline).min();
        match (&self.round, surveys) {
            (Some(round), _) => round.next_step(),
            (None, Some(deadline)) => deadline,
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
        if !self.surveys.is_empty() {
            let surveys = self.surveys.iter_mut();
            let requests = surveys.flat_map(|survey| survey.poll(now, rng)).collect();
            let over = if self.surveys.iter().any(Survey::is_done) {
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

    /// Who can tell how long the NAT remembers, with its round trip time: the nearest over IPv4.
    pub(crate) fn lifetime_server(&self) -> Option<(StunServer, Duration)> {
        let plan = self.survey_plan(true)?;
        Some((plan.server, plan.rtt))
    }

    /// Whom the surveys after a round ask, one for each address family that a relay answered in.
    pub(crate) fn survey_plans(&self, now: Instant) -> Vec<Plan> {
        if !self.surveys.is_empty() || self.next <= now {
            return Vec::new(); // another round follows at once, with more relays
        }
        let plans = [true, false].into_iter();
        plans.filter_map(|v4| self.survey_plan(v4)).collect()
    }

    /// The nearest of the relays that have a second port, better still a second address, or else the nearest; and those at
    /// other addresses, the nearest first.
    fn survey_plan(&self, v4: bool) -> Option<Plan> {
        let answered = self.servers.iter().filter_map(|server| {
            let answer = self.answers.get(&server.main)?;
            (server.main.is_ipv4() == v4).then_some((*server, answer.rtt))
        });
        let (server, rtt) = answered.clone().min_by_key(|(server, rtt)| {
            let lacking = (server.alternative.is_none(), server.elsewhere.is_none());
            (lacking, *rtt)
        })?;
        let others = answered.map(|(other, rtt)| Other {
            address: other.main,
            rtt,
            knocker: other.observed.map(|observed| (other.relay, observed)),
        });
        let elsewhere = server.elsewhere.map(|address| Other {
            address,
            rtt,
            knocker: None,
        });
        let others = others.chain(elsewhere);
        let mut others: Vec<Other> = others
            .filter(|other| other.address.ip() != server.main.ip())
            .collect();
        others.sort_by_key(|other| other.rtt);
        others.truncate(limits::SURVEY_RELAYS);
        Some(Plan {
            server,
            rtt,
            others,
        })
    }

    pub(crate) fn begin_survey(&mut self, survey: Survey) {
        self.surveys.push(survey);
    }

    /// Takes over what surveys found that are done; returns their sockets.
    pub(crate) fn end_surveys(&mut self, own: impl Fn(SocketAddr) -> bool) -> Vec<SocketId> {
        let done = self.surveys.extract_if(.., |survey| survey.is_done());
        let done: Vec<Survey> = done.collect();
        for survey in &done {
            let kept = if survey.is_v6() {
                &mut self.findings_v6
            } else {
                &mut self.findings
            };
            take_over(kept, survey.findings(&own));
        }
        done.iter().flat_map(Survey::sockets).collect()
    }

    pub(crate) fn surveys_mut(&mut self) -> &mut [Survey] {
        &mut self.surveys
    }

    /// True while there is more to come of what was asked for at `now`.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.round.is_some() || !self.surveys.is_empty() || self.next <= now
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
    pub(crate) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The same for IPv6.
    pub(crate) fn findings_v6(&self) -> &Findings {
        &self.findings_v6
    }
}

/// What a loss kept a survey from telling is as it was before: nothing has changed on our side since.
fn take_over(kept: &mut Findings, new: Findings) {
    let before = std::mem::replace(kept, new);
    if kept.profile.pooling == Pooling::Arbitrary {
        remember(&mut kept.addresses, &before.addresses);
    }
    kept.translated = kept.translated.or(before.translated);
    let (found, before) = (&mut kept.profile, before.profile);
    if found.mapping == Mapping::Unknown {
        found.mapping = before.mapping;
    }
    if found.filtering == Filtering::Unknown {
        found.filtering = before.filtering;
    }
    if found.allocation == Allocation::Unknown {
        found.allocation = before.allocation;
    }
    if found.pooling == Pooling::Unknown {
        found.pooling = before.pooling;
    }
    found.hairpin = found.hairpin.or(before.hairpin);
}

/// Adds addresses that were seen earlier: chance shows some of many each time.
fn remember(addresses: &mut Vec<IpAddr>, earlier: &[IpAddr]) {
    for address in earlier {
        if addresses.len() < limits::POOL_ADDRESSES && !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses.sort();
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
                requests.push(Request::Datagram {
                    socket: SocketId::MESH,
                    remote: server.main,
                    payload: stun::binding_request(&id, stun::Change::Nothing),
                });
            }
        }
        requests
    }
}
