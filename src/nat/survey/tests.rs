use super::*;
use crate::engine::RelayHandle;
use crate::limits;
use crate::nat::{Allocation, Filtering, Mapping, Pooling};
use crate::wire::stun;

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
        relay: RelayHandle(1),
        observed: Some(addr("198.51.100.7:1").ip()),
    }
}

fn other() -> Other {
    Other {
        address: addr("203.0.113.2:443"),
        rtt: RTT,
        knocker: Some((RelayHandle(2), addr("198.51.100.7:0").ip())),
    }
}

/// A network: which external port a socket (counted from 0) shows a destination, and whether it lets in an answer from
/// another port, or from another address, than was sent to.
struct Net<'a> {
    port: &'a dyn Fn(usize, SocketAddr) -> Option<u16>,
    open: [bool; 2],
    hairpin: bool,
    /// It gives each socket one of two addresses.
    pool: bool,
    /// The relay has no second address.
    one_address: bool,
    /// The other relay does what it is asked to.
    knocks: bool,
    /// Whether a socket gets the other address for other destinations than the relay's main port.
    flips: fn(usize) -> bool,
}

/// One address, and nothing gets in that was not asked for.
const CLOSED: Net<'static> = Net {
    port: &|socket, _| Some(40_007 + 7 * socket as u16),
    open: [false; 2],
    hairpin: false,
    pool: false,
    one_address: false,
    knocks: true,
    flips: |_| false,
};

fn survey_of(server: StunServer) -> Survey {
    let sockets: Vec<SocketId> = (1..=SOCKETS as u16).map(SocketId).collect();
    let mut survey = Survey::new(at(0), server, vec![other()], RTT, sockets);
    for socket in 1..=SOCKETS as u16 {
        survey.opened(SocketId(socket), Some(40_000 + 7 * socket));
    }
    survey
}

fn survey() -> Survey {
    survey_of(server())
}

impl Net<'_> {
    /// What becomes of a request when its answer arrives.
    fn answer(&self, survey: &mut Survey, now: Instant, request: Request) {
        let [outside, second] = ["198.51.100.7:0", "198.51.100.8:0"].map(|text| addr(text).ip());
        let (socket, remote, payload) = match request {
            Request::Datagram {
                socket,
                remote,
                payload,
            } => (socket, remote, payload),
            Request::Knock { relay, port, txn } => {
                assert_eq!(relay, RelayHandle(2));
                if self.knocks && self.open[1] {
                    let mapped = SocketAddr::new(outside, port);
                    assert!(survey.handle_response(now, other().address, &txn, mapped));
                }
                return;
            }
            Request::Ping { nonce, .. } => {
                if self.knocks {
                    survey.handle_pong(nonce);
                }
                return;
            }
        };
        let Ok(stun::Message::Request { txn, change, .. }) = stun::parse(&payload) else {
            panic!("no request");
        };
        if [outside, second].contains(&remote.ip()) {
            if self.hairpin {
                assert!(survey.handle_request(&txn));
            }
            return;
        }
        let Some(port) = (self.port)(usize::from(socket.0) - 1, remote) else {
            return;
        };
        let flipped = remote != server().main && (self.flips)(usize::from(socket.0) - 1);
        let ip = match self.pool && socket.0.is_multiple_of(2) != flipped {
            true => second,
            false => outside,
        };
        let (from, open) = match change {
            stun::Change::Nothing => (remote, true),
            stun::Change::Port => (server().alternative.unwrap(), self.open[0]),
            stun::Change::Address => (server().elsewhere.unwrap(), self.open[1]),
        };
        let mapped = SocketAddr::new(ip, port);
        if open {
            assert!(survey.handle_response(now, from, &txn, mapped));
        }
    }
}

/// Runs a survey; returns what it found and how long it took.
fn run(net: &Net<'_>) -> (Findings, Duration) {
    let mut rng = Random::from_seed([1; 32]);
    let mut survey = survey_of(StunServer {
        elsewhere: server().elsewhere.filter(|_| !net.one_address),
        ..server()
    });
    let mut now = at(0);
    let mut under_way: Vec<(Instant, Request)> = Vec::new();
    let (mut sent, mut polls) = (0, 0);
    loop {
        let requests = survey.poll(now, &mut rng);
        if survey.is_done() {
            break;
        }
        sent += requests.len();
        under_way.extend(requests.into_iter().map(|request| (now + RTT, request)));
        let arrival = under_way.iter().map(|(at, _)| *at).min();
        let next = survey.deadline();
        polls = if next > now { 0 } else { polls + 1 };
        assert!(polls < 4, "it spins");
        now = arrival.map_or(next, |arrival| arrival.min(next)).max(now);
        let (due, later) = under_way.into_iter().partition(|(at, _)| *at <= now);
        under_way = later;
        let due: Vec<(Instant, Request)> = due;
        for (_, request) in due {
            net.answer(&mut survey, now, request);
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
        ..CLOSED
    });
    assert!(took < Duration::from_millis(400), "{took:?}");
    let expected = NatProfile {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressAndPortDependent,
        allocation: Allocation::Preserving,
        hairpin: Some(true),
        pooling: Pooling::Paired,
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
            ..CLOSED
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
            ..CLOSED
        });
        assert_eq!(found.profile.filtering, expected);
        assert!(took < Duration::from_millis(400), "{took:?}");
    }
}

#[test]
fn a_socket_without_an_answer_is_passed_over_and_a_dead_line_ends_the_survey() {
    let (found, took) = run(&Net {
        port: &|socket, _| (socket != 3).then_some(30_000 + 2 * socket as u16),
        open: [false; 2],
        hairpin: false,
        ..CLOSED
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
        ..CLOSED
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
        let Request::Datagram { payload, .. } = request else {
            panic!("no datagram");
        };
        let Ok(stun::Message::Request { txn, .. }) = stun::parse(&payload) else {
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

#[test]
fn fresh_sockets_ask_in_one_burst_once_all_have_their_ports() {
    let sockets: Vec<SocketId> = (1..=SOCKETS as u16).map(SocketId).collect();
    let mut survey = Survey::new(at(0), server(), Vec::new(), RTT, sockets.clone());
    let mut rng = Random::from_seed([1; 32]);
    for socket in &sockets {
        assert_eq!(survey.poll(at(0), &mut rng), []);
        survey.opened(*socket, Some(40_000 + socket.0));
    }
    let asked = survey.poll(at(0), &mut rng);
    let socket = |request: &Request| match request {
        Request::Datagram { socket, .. } => Some(*socket),
        _ => None,
    };
    let asked: Vec<SocketId> = asked.iter().filter_map(socket).collect();
    // After those of the filter's test, and without the one that asks later.
    assert!(asked.ends_with(&sockets[1..=SAMPLES]), "{asked:?}");
}

#[test]
fn a_late_sample_shows_how_many_ports_others_take() {
    let busy = |late: u16| {
        run(&Net {
            port: &|socket, _| {
                let late = if socket == SOCKETS - 1 { late } else { 0 };
                Some(20_000 + socket as u16 + late)
            },
            open: [false; 2],
            hairpin: false,
            ..CLOSED
        })
    };
    let (calm, took) = busy(0);
    assert_eq!(calm.foreign, 0.0);
    assert!(took < Duration::from_millis(500), "{took:?}");
    // From the first answer to the late one it is as long as from the first question to the late one.
    let rate = busy(30).0.foreign;
    let expected = 30.0 / LATE.as_secs_f64();
    assert!((rate - expected).abs() < 1.0, "{rate}, expected {expected}");
}

#[test]
fn several_external_addresses_are_told_from_one() {
    let (found, _) = run(&CLOSED);
    assert_eq!(found.profile.pooling, Pooling::Paired);
    assert_eq!(found.addresses, [addr("198.51.100.7:0").ip()]);
    let (found, _) = run(&Net {
        pool: true,
        ..CLOSED
    });
    assert_eq!(found.profile.pooling, Pooling::Arbitrary);
    assert_eq!(found.addresses.len(), 2);
    assert_eq!(found.profile.mapping, Mapping::EndpointIndependent);
    assert_eq!(found.profile.allocation, Allocation::Preserving);
}

#[test]
fn chance_does_not_make_a_mapping_for_each_destination_look_like_one_for_all() {
    // The port is kept; the address is any of two for each destination, so half of the sockets see no difference.
    let mapping = |flips: fn(usize) -> bool| {
        let (found, _) = run(&Net {
            pool: true,
            flips,
            ..CLOSED
        });
        found.profile.mapping
    };
    assert_eq!(mapping(|_| false), Mapping::EndpointIndependent);
    assert_eq!(
        mapping(|socket| socket == SAMPLES - 1),
        Mapping::AddressAndPortDependent
    );
}

#[test]
fn another_relay_knocks_where_the_relay_that_is_asked_has_one_address() {
    for (open, knocks, expected) in [
        ([false, false], true, Filtering::AddressAndPortDependent),
        ([true, false], true, Filtering::AddressDependent),
        ([true, true], true, Filtering::EndpointIndependent),
        // It never says that it has.
        ([true, true], false, Filtering::NotPortDependent),
    ] {
        let (found, took) = run(&Net {
            open,
            knocks,
            one_address: true,
            ..CLOSED
        });
        assert_eq!(found.profile.filtering, expected);
        assert!(took < Duration::from_millis(400), "{took:?}");
    }
}

#[test]
fn no_relay_is_asked_to_knock_at_an_address_that_is_not_the_sockets() {
    let elsewhere = addr("198.51.100.66:0").ip();
    let mut survey = survey_of(StunServer {
        elsewhere: None,
        ..server()
    });
    survey.others[0].knocker = Some((RelayHandle(2), elsewhere));
    assert_eq!(survey.knockers(addr("198.51.100.7:40000")), []);
    survey.others[0].knocker = other().knocker;
    assert_eq!(survey.knockers(addr("198.51.100.7:40000")).len(), 1);
}
