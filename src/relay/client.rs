//! The state of our connection to one relay: when to dial it, what it told us, and why it does not work.
//!
//! The transport (QUIC, TLS) is the shell's; it reports what becomes of each dial.

use std::net::SocketAddr;
use std::time::Duration;

use crate::engine::{NetworkIndex, RelayHandle};
use crate::identity::RelayUrl;
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::relay::{Alternatives, Refusal};

/// First pause after a failed dial; doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause: a relay that comes back is found within half a minute.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Pause while this host has no address, should it be wrong about that.
const OFFLINE_PAUSE: Duration = Duration::from_secs(300);
/// Pause after the relay refused us: its configuration has to change first.
const REFUSED_BACKOFF: Duration = Duration::from_secs(60);
/// Pause after another host appeared with our key: whoever came last keeps the place instead of the two fighting.
const REPLACED_BACKOFF: Duration = Duration::from_secs(600);
/// A relay that accepted the connection has this long to say welcome.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// A dial that the shell did not report on after this long is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// While a peer in use needs the relay, it is dialled this often, for [`URGENT`] after it was lost: a restarted relay, or
/// a link that is back, is found within a moment. The pauses above are for relays that nobody needs just now.
const URGENT_INTERVAL: Duration = Duration::from_millis(250);
/// See [`URGENT_INTERVAL`]. Longer than a peer without answers stays in use.
const URGENT: Duration = Duration::from_secs(150);
/// A relay that was asked whether it is there has this long to answer, or three round trips: one loss is repaired by then.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(700);
/// Round trip time to a relay that was never measured.
const DEFAULT_RTT: Duration = Duration::from_millis(250);
/// How often QUIC talks to a relay by itself.
const QUIC_KEEPALIVE: Duration = Duration::from_secs(15);
/// Shortest time between two such questions.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// What was said just before the network changed is lost, and the control stream waits until it has been said again: so
/// long after the question, at the most, on a line of a quarter of a second.
const HELD_UP: Duration = Duration::from_secs(1);

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Dialling { since: Instant },
    Greeting { remote: SocketAddr, since: Instant },
    Ready { remote: SocketAddr },
}

/// What has to be done about the connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Dial,
    /// Say something, so that NATs remember us.
    Keep,
    /// Hang up: it did not answer.
    GiveUp,
}

/// One relay of one network.
#[derive(Debug)]
pub(crate) struct RelayClient {
    pub(crate) handle: RelayHandle,
    pub(crate) network: NetworkIndex,
    pub(crate) url: RelayUrl,
    state: State,
    failures: u32,
    /// Why it does not work, for `status`.
    pub(crate) problem: Option<String>,
    /// Our address as the relay sees it.
    pub(crate) observed: Option<SocketAddr>,
    alternatives: Alternatives,
    answers: u32,
    answers_since: Instant,
    /// When it was last asked whether it is there.
    asked: Option<Instant>,
    /// Until when its answer to that is waited for.
    answer_until: Option<Instant>,
    /// When the last dial began, and how long it took to be welcomed the last time.
    dialled: Option<Instant>,
    took: Option<Duration>,
    /// When it was last there.
    lost: Option<Instant>,
    /// How often it is to be talked to so that NATs keep our mapping, if that is known.
    keepalive: Option<Duration>,
    /// When it last was, for that reason.
    kept: Instant,
}

impl RelayClient {
    pub(crate) fn new(
        handle: RelayHandle,
        network: NetworkIndex,
        url: RelayUrl,
        now: Instant,
    ) -> Self {
        Self {
            handle,
            network,
            url,
            state: State::Waiting { until: now },
            failures: 0,
            problem: None,
            observed: None,
            alternatives: Alternatives::default(),
            answers: 0,
            answers_since: now,
            asked: None,
            answer_until: None,
            dialled: None,
            took: None,
            lost: None,
            keepalive: None,
            kept: now,
        }
    }

    /// The relay's address, once it has welcomed us.
    pub(crate) fn ready(&self) -> Option<SocketAddr> {
        match self.state {
            State::Ready { remote } => Some(remote),
            _ => None,
        }
    }

    /// The relay's address, once the connection stands.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        match self.state {
            State::Ready { remote } | State::Greeting { remote, .. } => Some(remote),
            _ => None,
        }
    }

    /// The relay's second STUN port.
    pub(crate) fn alternative(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ready()?.ip(), self.alternatives.port?))
    }

    /// The relay's second address, where it is not the one that we talk to.
    pub(crate) fn elsewhere(&self) -> Option<SocketAddr> {
        let address = SocketAddr::from(self.alternatives.address?);
        let main = self.ready()?;
        (main.is_ipv4() && main.ip() != address.ip()).then_some(address)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } => Some(until),
            State::Dialling { since } => Some(since + self.patience(since, DIAL_TIMEOUT)),
            State::Greeting { since, .. } => Some(since + self.patience(since, GREETING_TIMEOUT)),
            State::Ready { .. } => [self.answer_until, self.keep_at()]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// How often NATs want to see something, from now on.
    pub(crate) fn set_keepalive(&mut self, now: Instant, keepalive: Option<Duration>) {
        self.keepalive = keepalive;
        self.kept = now;
    }

    /// When it has to be talked to lest a NAT forget us.
    fn keep_at(&self) -> Option<Instant> {
        let often = self
            .keepalive
            .filter(|keepalive| *keepalive < QUIC_KEEPALIVE)?;
        Some(self.kept + often)
    }

    /// How long a step of a dial may take: little for a relay that was there a moment ago.
    fn patience(&self, now: Instant, otherwise: Duration) -> Duration {
        match self.took {
            Some(took) if self.is_urgent(now) => (took * 2).max(URGENT_INTERVAL).min(otherwise),
            _ => otherwise,
        }
    }

    fn is_urgent(&self, now: Instant) -> bool {
        self.lost.is_some_and(|lost| now.since(lost) < URGENT)
    }

    /// True if it is to be asked now whether it is still there, and given up if it does not answer. `rtt` as measured.
    pub(crate) fn ask(&mut self, now: Instant, rtt: Option<Duration>) -> bool {
        let lately = |at: Instant| now.since(at) < ASK_INTERVAL;
        if self.ready().is_none() || self.answer_until.is_some() || self.asked.is_some_and(lately) {
            return false;
        }
        self.asked = Some(now);
        let wait = (rtt.unwrap_or(DEFAULT_RTT) * 3).max(ANSWER_TIMEOUT);
        self.answer_until = Some(now + wait);
        true
    }

    /// True while what is said on the control stream may be late: it was asked lately whether the relay is there.
    pub(crate) fn is_held_up(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| now.since(asked) < HELD_UP)
    }

    /// What was asked from where we were may never have arrived: it can be asked again at once.
    pub(crate) fn forget_question(&mut self) {
        self.asked = None;
        self.answer_until = None;
    }

    /// It said something.
    pub(crate) fn heard(&mut self) {
        self.answer_until = None;
    }

    /// `wanted`: a peer in use needs it now.
    pub(crate) fn handle_timeout(&mut self, now: Instant, wanted: bool, rng: &mut Random) -> Due {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Due::Nothing;
        }
        match self.state {
            State::Waiting { .. } => {
                self.state = State::Dialling { since: now };
                self.dialled = Some(now);
                Due::Dial
            }
            State::Ready { .. } if self.answer_until.is_none_or(|until| now < until) => {
                self.kept = now;
                Due::Keep
            }
            _ => {
                self.closed(now, "it does not answer".to_owned(), wanted, rng);
                Due::GiveUp
            }
        }
    }

    /// No dial while nothing can get out: each packet would only keep the kernel asking for a router that is not there, a
    /// second at a time, and that second would still be running when the link is back. [`Self::hurry`] ends the pause.
    pub(crate) fn put_off(&mut self, now: Instant) {
        self.failures = self.failures.max(1);
        self.wait(now, OFFLINE_PAUSE, "this host has no network".to_owned());
    }

    /// Dials at once, whatever the backoff: the network changed, so the reason of the last failure may be gone. Not
    /// after a refusal or a replacement, which have nothing to do with the network.
    pub(crate) fn hurry(&mut self, now: Instant) {
        match self.state {
            State::Waiting { .. } if self.failures > 0 => {
                self.state = State::Waiting { until: now }
            }
            // What was sent from where we were may never arrive; the new dial takes the place of this one.
            State::Dialling { .. } | State::Greeting { .. } => {
                self.state = State::Waiting { until: now };
            }
            _ => {}
        }
    }

    /// The connection stands.
    pub(crate) fn connected(&mut self, now: Instant, remote: SocketAddr) {
        self.state = State::Greeting { remote, since: now };
    }

    /// The relay admits us; `false` if the message comes out of turn.
    pub(crate) fn welcomed(
        &mut self,
        now: Instant,
        observed: SocketAddr,
        alternatives: Alternatives,
    ) -> bool {
        let State::Greeting { remote, .. } = self.state else {
            return false;
        };
        self.state = State::Ready { remote };
        self.kept = now;
        self.took = self.dialled.map(|since| now.since(since));
        self.lost = None;
        self.failures = 0;
        self.problem = None;
        self.observed = Some(observed);
        self.alternatives = alternatives;
        true
    }

    /// The connection is gone.
    pub(crate) fn closed(&mut self, now: Instant, reason: String, wanted: bool, rng: &mut Random) {
        let was_waiting = matches!(self.state, State::Waiting { .. });
        if was_waiting {
            return; // after a refusal or a replacement the pause and its reason stand
        }
        if self.ready().is_some() {
            self.lost = Some(now);
        }
        if wanted && self.is_urgent(now) {
            let next = self
                .dialled
                .map_or(now, |since| since + URGENT_INTERVAL)
                .max(now);
            self.failures = self.failures.max(1);
            return self.wait(now, next.since(now), reason);
        }
        let pause = FIRST_BACKOFF * 2u32.saturating_pow(self.failures.min(8));
        self.failures = self.failures.saturating_add(1);
        self.wait(now, jittered(pause.min(MAX_BACKOFF), rng), reason);
    }

    pub(crate) fn refused(&mut self, now: Instant, reason: Refusal) {
        self.failures = 0;
        self.wait(now, REFUSED_BACKOFF, reason.to_string());
    }

    pub(crate) fn replaced(&mut self, now: Instant) {
        self.failures = 0;
        let reason = "another host uses this node's key; give one of the two a key of its own: stop meshd there, \
                      remove its identity.key, start it, and put the new ID into the peers' configuration";
        self.wait(now, REPLACED_BACKOFF, reason.to_owned());
    }

    fn wait(&mut self, now: Instant, pause: Duration, reason: String) {
        self.state = State::Waiting { until: now + pause };
        self.answer_until = None;
        self.problem = Some(reason);
        self.observed = None;
        self.alternatives = Alternatives::default();
    }

    /// True if one more unauthenticated question of the relay's address may be answered.
    pub(crate) fn may_answer(&mut self, now: Instant) -> bool {
        if now.since(self.answers_since) >= Duration::from_secs(1) {
            self.answers_since = now;
            self.answers = 0;
        }
        self.answers = self.answers.saturating_add(1);
        self.answers <= limits::RELAY_ANSWERS_PER_SECOND
    }
}

/// A pause between 3/4 and 5/4 of the given one, so that a relay's clients do not all come back at once.
fn jittered(pause: Duration, rng: &mut Random) -> Duration {
    pause.mul_f64(0.75 + rng.fraction() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(1_000 + seconds))
    }

    fn client() -> RelayClient {
        let id = crate::identity::Identity::from_seed(zeroize::Zeroizing::new([7; 32])).id();
        let url = RelayUrl {
            id,
            host: "relay.example".to_owned(),
            port: 443,
        };
        RelayClient::new(RelayHandle(1), NetworkIndex(0), url, at(0))
    }

    #[test]
    fn failed_dials_back_off_with_a_bound_and_a_network_change_ends_the_wait() {
        let (mut client, mut rng) = (client(), Random::from_seed([1; 32]));
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(client.handle_timeout(now, false, &mut rng), Due::Dial);
            client.closed(now, "refused".to_owned(), false, &mut rng);
            let next = client.deadline().unwrap();
            pauses.push(next.since(now));
            now = next;
        }
        assert!(pauses[0] >= Duration::from_millis(375) && pauses[0] <= Duration::from_millis(625));
        assert!(
            pauses
                .iter()
                .all(|pause| *pause <= MAX_BACKOFF.mul_f64(1.25))
        );
        assert!(*pauses.last().unwrap() >= MAX_BACKOFF.mul_f64(0.75));
        client.closed(now, "again".to_owned(), false, &mut rng);
        client.hurry(now);
        assert_eq!(client.handle_timeout(now, false, &mut rng), Due::Dial);
    }

    #[test]
    fn a_replaced_client_stays_away_and_says_why() {
        let (mut client, mut rng) = (client(), Random::from_seed([1; 32]));
        client.handle_timeout(at(0), false, &mut rng);
        client.connected(at(0), "203.0.113.1:443".parse().unwrap());
        assert!(client.welcomed(
            at(0),
            "198.51.100.1:9".parse().unwrap(),
            Alternatives {
                port: Some(3_478),
                address: Some("203.0.113.2:443".parse().unwrap())
            }
        ));
        assert_eq!(
            client.alternative(),
            Some("203.0.113.1:3478".parse().unwrap())
        );
        assert_eq!(client.elsewhere(), Some("203.0.113.2:443".parse().unwrap()));
        client.replaced(at(1));
        client.closed(at(1), "closed by the relay".to_owned(), false, &mut rng);
        assert_eq!(client.deadline(), Some(at(601)));
        assert!(
            client
                .problem
                .as_ref()
                .unwrap()
                .contains("another host uses this node's key")
        );
    }

    #[test]
    fn a_relay_that_never_says_welcome_is_given_up() {
        let (mut client, mut rng) = (client(), Random::from_seed([1; 32]));
        client.handle_timeout(at(0), false, &mut rng);
        client.connected(at(0), "203.0.113.1:443".parse().unwrap());
        assert_eq!(client.handle_timeout(at(4), false, &mut rng), Due::Nothing);
        assert_eq!(client.handle_timeout(at(5), false, &mut rng), Due::GiveUp);
        assert!(client.ready().is_none() && client.deadline().is_some());
    }
}
