//! How long the NAT before this host keeps a mapping that nobody uses (RFC 5780, section 4.6; RFC 4787, REQ-5).
//!
//! One fresh socket for each of [`STEPS`] asks a relay where it is seen, and is then silent for that long. The relay is
//! made to send to it, from the address and port that it had talked to, so that no filter is in the way: if that arrives,
//! the mapping has lived so long. All steps run at once, so that the longest one is how long it takes.

use std::net::SocketAddr;
use std::time::Duration;

use super::profile::StunServer;
use super::survey::Request;
use crate::engine::{RelayHandle, SocketId};
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::stun::{self, TransactionId};

/// Times without a packet that are tried, each just below one that is common: 30 s and 2 minutes are defaults, RFC 4787
/// asks for the latter, and some mobile networks forget after 10 s.
pub(crate) const STEPS: [Duration; 4] = [
    Duration::from_secs(9),
    Duration::from_secs(28),
    Duration::from_secs(58),
    Duration::from_secs(116),
];
/// A socket asks once more after this: connection trackers keep what goes both ways for more than two seconds longer, and
/// paths that are kept alive are of that kind.
const SETTLE: Duration = Duration::from_secs(3);
/// How often a question that is not answered is asked, and how far apart.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// How long what the relay was made to send may be later than its word that it has sent it, beyond a round trip.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long its word is waited for.
const WORD: Duration = Duration::from_secs(5);
/// Times that the relay is made to send before the mapping counts as gone: a loss is not to cost a day of keepalives.
const KNOCKS: u32 = 3;

/// Part of the lifetime after which a mapping is used again: one packet may be lost, and the NAT's clock may be coarse.
const SHARE: f64 = 0.7;
/// Bounds of a keepalive's interval, in seconds: more often costs batteries, and less often nobody's NAT.
const KEEPALIVE: (f64, f64) = (8.0, 110.0);

/// What is known of the lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetime(Duration);

impl Lifetime {
    /// The longest time without a packet that a mapping survived; zero if that is below the first of [`STEPS`].
    pub(crate) fn at_least(self) -> Duration {
        self.0
    }

    /// How often an idle path is to be used so that its mapping stays.
    pub(crate) fn keepalive(self) -> Duration {
        let share = self.0.as_secs_f64() * SHARE;
        Duration::from_secs_f64(share.clamp(KEEPALIVE.0, KEEPALIVE.1))
    }

    /// How long a mapping can be relied on after it was used.
    pub(crate) fn trust(self) -> Duration {
        self.0.max(self.keepalive() + SLACK)
    }
}

/// How much later than its keepalive an answer may come.
const SLACK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It asks where it is seen.
    Asking {
        txn: TransactionId,
        tries: u32,
        next: Instant,
    },
    /// It has been told once, and asks again then.
    Settling {
        again: Instant,
    },
    /// It is silent until then; where it is seen.
    Silent {
        until: Instant,
        external: SocketAddr,
    },
    /// The relay was asked to send these, so often, and to tell when it has.
    Knocking {
        external: SocketAddr,
        knocks: u32,
        txns: [TransactionId; 2],
        /// By what its word is known, until that has come.
        word: Option<u64>,
        end: Instant,
    },
    Alive,
    Gone,
    /// It cannot be told.
    Unknown,
}

#[derive(Debug)]
struct Sleeper {
    socket: SocketId,
    time: Duration,
    settled: bool,
    state: State,
}

/// One measurement.
#[derive(Debug)]
pub(crate) struct Measurement {
    server: SocketAddr,
    relay: RelayHandle,
    /// Our address as the relay sees it on its connection, which is the only one that it sends to.
    observed: std::net::IpAddr,
    rtt: Duration,
    sleepers: Vec<Sleeper>,
    /// Sockets that have no port yet.
    closed: usize,
}

impl Measurement {
    /// Asks `server`, whose round trip time is `rtt`, with one new socket for each of [`STEPS`]. `None` if the server is
    /// no relay that knows our address.
    pub(crate) fn new(
        now: Instant,
        server: StunServer,
        rtt: Duration,
        sockets: Vec<SocketId>,
        rng: &mut Random,
    ) -> Option<Self> {
        let sleeper = |(socket, time): (SocketId, Duration)| Sleeper {
            socket,
            time,
            settled: false,
            state: State::Asking {
                txn: rng.bytes(),
                tries: 0,
                next: now,
            },
        };
        Some(Self {
            server: server.main,
            relay: server.relay,
            observed: server.observed?,
            rtt,
            closed: sockets.len(),
            sleepers: sockets.into_iter().zip(STEPS).map(sleeper).collect(),
        })
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = SocketId> {
        self.sleepers.iter().map(|sleeper| sleeper.socket)
    }

    /// The kernel gave a socket its port, or none.
    pub(crate) fn opened(&mut self, socket: SocketId, port: Option<u16>) {
        let sleeper = self.sleepers.iter_mut().find(|own| own.socket == socket);
        if let Some(sleeper) = sleeper {
            self.closed = self.closed.saturating_sub(1);
            if port.is_none() {
                sleeper.state = State::Unknown;
            }
        }
    }

    /// What came of it: `None` while that is open, `Some(None)` if it cannot be told.
    pub(crate) fn outcome(&self) -> Option<Option<Lifetime>> {
        let mut longest = Duration::ZERO;
        for sleeper in &self.sleepers {
            match sleeper.state {
                State::Alive => longest = sleeper.time,
                State::Gone => return Some(Some(Lifetime(longest))),
                State::Unknown => return Some(None),
                _ => return None,
            }
        }
        Some(Some(Lifetime(longest)))
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let due = |sleeper: &Sleeper| match sleeper.state {
            State::Asking { next, .. } => Some(next),
            State::Settling { again } => Some(again),
            State::Silent { until, .. } => Some(until),
            State::Knocking { end, .. } => Some(end),
            State::Alive | State::Gone | State::Unknown => None,
        };
        if self.closed > 0 {
            return None; // the shell answers at once
        }
        self.sleepers.iter().filter_map(due).min()
    }

    /// Continues; returns what is to be sent.
    pub(crate) fn poll(&mut self, now: Instant, rng: &mut Random) -> Vec<Request> {
        let mut requests = Vec::new();
        if self.closed > 0 {
            return requests;
        }
        for at in 0..self.sleepers.len() {
            self.poll_one(at, now, rng, &mut requests);
        }
        requests
    }

    fn poll_one(&mut self, at: usize, now: Instant, rng: &mut Random, out: &mut Vec<Request>) {
        let sleeper = &mut self.sleepers[at];
        match sleeper.state {
            State::Settling { again } if now >= again => {
                sleeper.settled = true;
                let txn = rng.bytes();
                let (tries, next) = (0, now);
                sleeper.state = State::Asking { txn, tries, next };
                self.poll_one(at, now, rng, out);
            }
            State::Asking { txn, tries, next } if now >= next => {
                if tries == TRIES {
                    sleeper.state = State::Unknown;
                    return;
                }
                out.push(Request::Datagram {
                    socket: sleeper.socket,
                    remote: self.server,
                    payload: stun::binding_request(&txn, stun::Change::Nothing),
                });
                let (tries, next) = (tries + 1, now + PAUSE + self.rtt);
                sleeper.state = State::Asking { txn, tries, next };
            }
            State::Silent { until, external } if now >= until => {
                self.knock(at, external, 1, now, rng, out);
            }
            State::Knocking {
                external,
                knocks,
                end,
                word,
                ..
            } if now >= end => match (word, knocks) {
                // The relay has not even said that it sent anything.
                (Some(_), _) => sleeper.state = State::Unknown,
                (None, KNOCKS) => sleeper.state = State::Gone,
                (None, _) => self.knock(at, external, knocks + 1, now, rng, out),
            },
            _ => {}
        }
    }

    fn knock(
        &mut self,
        at: usize,
        external: SocketAddr,
        knocks: u32,
        now: Instant,
        rng: &mut Random,
        out: &mut Vec<Request>,
    ) {
        let txns = [rng.bytes(), rng.bytes()];
        let nonce = rng.u64();
        let (relay, port) = (self.relay, external.port());
        out.extend(txns.map(|txn| Request::Knock { relay, port, txn }));
        out.push(Request::Ping { relay, nonce });
        self.sleepers[at].state = State::Knocking {
            external,
            knocks,
            txns,
            word: Some(nonce),
            end: now + WORD,
        };
    }

    /// The relay has answered a [`Request::Ping`]: what it was asked to send before that is under way.
    pub(crate) fn handle_pong(&mut self, now: Instant, answered: u64) {
        for sleeper in &mut self.sleepers {
            if let State::Knocking { word, end, .. } = &mut sleeper.state
                && *word == Some(answered)
            {
                *word = None;
                *end = now + self.rtt + PATIENCE;
            }
        }
    }

    /// Takes a STUN response that arrived on one of our sockets; `true` if it answers one of our requests.
    pub(crate) fn handle_response(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        id: &TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let sleeper = self.sleepers.iter_mut().find(|own| own.socket == socket);
        let Some(sleeper) = sleeper.filter(|_| from == self.server) else {
            return false;
        };
        match sleeper.state {
            State::Asking { txn, .. } if txn == *id => {
                sleeper.state = match sleeper.settled {
                    false => State::Settling {
                        again: now + SETTLE,
                    },
                    true if mapped.ip() == self.observed => State::Silent {
                        until: now + sleeper.time,
                        external: mapped,
                    },
                    true => State::Unknown,
                };
                true
            }
            State::Knocking { txns, .. } if txns.contains(id) => {
                sleeper.state = State::Alive;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant::from_boot(Duration::from_secs_f64(1_000.0 + seconds))
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Plays a NAT that forgets a mapping after `lifetime`, and a relay behind it that loses every `loses`-th packet.
    fn measure(lifetime: Duration, loses: Option<usize>, answers: bool) -> Option<Lifetime> {
        let mut rng = Random::from_seed([7; 32]);
        let main = addr("203.0.113.1:443");
        let server = StunServer {
            main,
            alternative: None,
            elsewhere: None,
            relay: RelayHandle(3),
            observed: Some(addr("198.51.100.7:1").ip()),
        };
        let sockets: Vec<SocketId> = (1..=4).map(SocketId).collect();
        let mut now = at(0.0);
        let rtt = Duration::from_millis(60);
        let mut own = Measurement::new(now, server, rtt, sockets.clone(), &mut rng).unwrap();
        assert!(own.poll(now, &mut rng).is_empty());
        for socket in &sockets {
            own.opened(*socket, Some(40_000));
        }
        let mut used = [now; 5];
        let mut sent = 0;
        loop {
            for request in own.poll(now, &mut rng) {
                sent += 1;
                let lost = loses.is_some_and(|every| sent % every == 0);
                match request {
                    Request::Datagram {
                        socket, payload, ..
                    } => {
                        let Ok(stun::Message::Request { txn, .. }) = stun::parse(&payload) else {
                            panic!("no request");
                        };
                        used[usize::from(socket.0)] = now;
                        let mapped = addr(&format!("198.51.100.7:{}", 50_000 + socket.0));
                        if !lost {
                            assert!(own.handle_response(now, socket, main, &txn, mapped));
                        }
                    }
                    Request::Knock { relay, port, txn } => {
                        assert_eq!(relay, RelayHandle(3));
                        let socket = SocketId(port - 50_000);
                        let alive = now.since(used[usize::from(socket.0)]) < lifetime;
                        let stranger = addr("203.0.113.9:443");
                        assert!(!own.handle_response(now, socket, stranger, &txn, main));
                        if alive && !lost {
                            own.handle_response(now, socket, main, &txn, main);
                        }
                    }
                    Request::Ping { nonce, .. } if answers => own.handle_pong(now, nonce),
                    Request::Ping { .. } => {}
                }
            }
            if let Some(outcome) = own.outcome() {
                assert!(now.since(at(0.0)) < STEPS[3] + Duration::from_secs(20));
                return outcome;
            }
            now = own.deadline().unwrap().max(now);
        }
    }

    #[test]
    fn the_longest_silence_that_a_mapping_survives_is_found() {
        for (lifetime, expected, keepalive, trust) in [
            (9, 0, 8.0, 9),
            (10, 9, 8.0, 9),
            (28, 9, 8.0, 9),
            (30, 28, 19.6, 28),
            (60, 58, 40.6, 58),
            (120, 116, 81.2, 116),
        ] {
            for loses in [None, Some(3), Some(4)] {
                let found = measure(Duration::from_secs(lifetime), loses, true).unwrap();
                let seconds = Duration::from_secs;
                assert_eq!(found.at_least(), seconds(expected), "{lifetime} {loses:?}");
                assert_eq!(found.keepalive(), Duration::from_secs_f64(keepalive));
                assert_eq!(found.trust(), seconds(trust));
            }
        }
    }

    #[test]
    fn without_a_relay_that_says_what_it_did_nothing_is_known() {
        assert_eq!(measure(Duration::from_secs(60), None, false), None);
        assert_eq!(measure(Duration::from_secs(5), None, false), None);
        assert_eq!(measure(Duration::from_secs(500), Some(1), true), None);
    }
}
