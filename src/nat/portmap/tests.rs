//! A mapper against routers that are played by hand.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::wire::natpmp::PORT;

const MESH_PORT: u16 = 41_820;
const ROUTER: &str = "192.168.1.1:5351";

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn gateway() -> Gateway {
    Gateway {
        address: "192.168.1.1".parse().unwrap(),
        interface: 2,
        local: "192.168.1.9/24".parse().unwrap(),
    }
}

/// What the mapper asked for, by kind of request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    pcp_announce: usize,
    pcp_map: Vec<Vec<u8>>,
    natpmp_address: usize,
    natpmp_map: Vec<Vec<u8>>,
    searches: usize,
    http: Vec<(u64, SocketAddr, String)>,
    held: Vec<bool>,
}

struct Bench {
    mapper: PortMapper,
    now: Instant,
    rng: Random,
}

impl Bench {
    fn new(gateway: Gateway) -> Self {
        let mut bench = Self {
            mapper: PortMapper::default(),
            now: Instant::from_boot(ms(1_000_000)),
            rng: Random::from_seed([7; 32]),
        };
        bench.mapper.set_wanted(true);
        bench.gateways(&[gateway]);
        bench.mapper.handle_timeout(bench.now);
        bench
    }

    fn gateways(&mut self, gateways: &[Gateway]) {
        let ports = (Some(MESH_PORT), Some(MESH_PORT));
        let rng = &mut self.rng;
        self.mapper.set_gateways(self.now, gateways, ports, rng);
    }

    /// Takes what was asked; every request goes to the gateway.
    fn asked(&mut self) -> Asked {
        let mut asked = Asked::default();
        while let Some(action) = self.mapper.poll_action() {
            match action {
                PortMapAction::Exchange { to, payload, .. } => {
                    assert_eq!(to.port(), PORT);
                    match (payload[0], payload[1]) {
                        (2, 0) => asked.pcp_announce += 1,
                        (2, 1) => asked.pcp_map.push(payload),
                        (0, 0) => asked.natpmp_address += 1,
                        (0, 1) => asked.natpmp_map.push(payload),
                        other => panic!("{other:?}"),
                    }
                }
                PortMapAction::Search { .. } => asked.searches += 1,
                PortMapAction::Http {
                    id, to, request, ..
                } => asked
                    .http
                    .push((id, to, String::from_utf8(request).unwrap())),
                PortMapAction::Held(held) => asked.held.push(held),
            }
        }
        asked
    }

    fn answer(&mut self, from: &str, payload: &[u8]) {
        let event = PortMapEvent::Datagram {
            from: addr(from),
            payload: payload.to_vec(),
        };
        self.mapper.handle(self.now, &event);
    }

    fn http(&mut self, id: u64, status: u16, body: &str) {
        let response = Some(http::Response {
            status,
            body: body.as_bytes().to_vec(),
        });
        self.mapper
            .handle(self.now, &PortMapEvent::Http { id, response });
    }

    /// Lets time pass, doing what is due when it is due.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.mapper.deadline().filter(|due| *due <= end) {
            assert!(
                due >= self.now || due == Instant::default(),
                "a deadline in the past"
            );
            self.now = due.max(self.now);
            self.mapper.handle_timeout(self.now);
            assert!(self.mapper.deadline() != Some(due), "it stands still");
        }
        self.now = end;
    }

    fn mapped(&self) -> Vec<SocketAddr> {
        self.mapper.mapped().collect()
    }
}

fn epoch(at: u32) -> [u8; 4] {
    at.to_be_bytes()
}

fn natpmp_address(at: u32) -> Vec<u8> {
    [&[0, 128, 0, 0][..], &epoch(at), &[203, 0, 113, 7]].concat()
}

fn natpmp_mapped(at: u32, external: u16, lifetime: u32) -> Vec<u8> {
    [
        &[0, 129, 0, 0][..],
        &epoch(at),
        &MESH_PORT.to_be_bytes(),
        &external.to_be_bytes(),
        &lifetime.to_be_bytes(),
    ]
    .concat()
}

fn pcp_announce(at: u32) -> Vec<u8> {
    [&[2, 128, 0, 0, 0, 0, 0, 0][..], &epoch(at), &[0; 12]].concat()
}

/// The answer to a MAP request: granted for as long as was asked, or refused with a code.
fn pcp_mapped(request: &[u8], at: u32, code: u8, external: Ipv4Addr) -> Vec<u8> {
    let mut answer = vec![2, 129, 0, code];
    answer.extend(&request[4..8]);
    answer.extend(epoch(at));
    answer.extend([0; 12]);
    answer.extend(&request[24..42]);
    answer.extend(7_777_u16.to_be_bytes());
    answer.extend(external.to_ipv6_mapped().octets());
    answer
}

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A bench whose router has granted a mapping by PCP at epoch 100.
fn mapped_by_pcp() -> (Bench, Vec<u8>) {
    let mut bench = Bench::new(gateway());
    bench.asked();
    bench.answer(ROUTER, &pcp_announce(100));
    let request = bench.asked().pcp_map.remove(0);
    bench.answer(ROUTER, &pcp_mapped(&request, 100, 0, EXTERNAL));
    assert_eq!(bench.mapped(), [addr("203.0.113.7:7777")]);
    assert!(bench.mapper.take_changed());
    (bench, request)
}

#[test]
fn everything_is_tried_at_once_and_nothing_is_mapped_by_that() {
    let mut bench = Bench::new(gateway());
    let asked = bench.asked();
    assert_eq!(
        (asked.pcp_announce, asked.natpmp_address, asked.searches),
        (1, 1, 1)
    );
    assert!(asked.pcp_map.is_empty() && asked.natpmp_map.is_empty() && asked.held.is_empty());
}

#[test]
fn a_silent_router_is_left_alone_after_three_tries() {
    let mut bench = Bench::new(gateway());
    bench.pass(Duration::from_secs(500));
    let asked = bench.asked();
    assert_eq!(
        (asked.pcp_announce, asked.natpmp_address, asked.searches),
        (3, 3, 3)
    );
    assert!(asked.held.is_empty());
    bench.pass(Duration::from_secs(200));
    assert!(bench.asked().pcp_announce > 0, "it is tried again later");
}

#[test]
fn pcp_is_asked_as_soon_as_it_answers_and_the_others_are_not() {
    let (mut bench, _) = mapped_by_pcp();
    bench.answer(ROUTER, &natpmp_address(100));
    bench.pass(Duration::from_secs(10));
    let asked = bench.asked();
    assert!(asked.natpmp_map.is_empty() && asked.http.is_empty() && asked.pcp_map.is_empty());
    let offers: Vec<_> = bench.mapper.offers().into_iter().collect();
    assert_eq!(offers, [PortMapProtocol::Pcp, PortMapProtocol::NatPmp]);
}

#[test]
fn natpmp_waits_for_pcp_a_quarter_of_a_second() {
    let mut bench = Bench::new(gateway());
    bench.answer(ROUTER, &natpmp_address(100));
    bench.pass(ms(249));
    assert!(bench.asked().natpmp_map.is_empty());
    bench.pass(ms(1));
    let asked = bench.asked();
    assert_eq!(asked.natpmp_map.len(), 1);
    assert_eq!(asked.held, [true]);
    bench.answer(ROUTER, &natpmp_mapped(100, 4_242, 7_200));
    assert_eq!(bench.mapped(), [addr("203.0.113.7:4242")]);
}

#[test]
fn a_refusal_by_pcp_leads_to_natpmp_at_once() {
    let mut bench = Bench::new(gateway());
    bench.answer(ROUTER, &natpmp_address(100));
    bench.answer(ROUTER, &pcp_announce(100));
    let request = bench.asked().pcp_map.remove(0);
    bench.answer(ROUTER, &pcp_mapped(&request, 100, 2, EXTERNAL));
    assert_eq!(bench.asked().natpmp_map.len(), 1);
}

#[test]
fn answers_count_only_from_the_gateway_and_with_our_nonce() {
    let mut bench = Bench::new(gateway());
    for stranger in ["192.168.1.2:5351", "192.168.1.1:5350", "203.0.113.9:5351"] {
        bench.answer(stranger, &pcp_announce(100));
        bench.answer(stranger, &natpmp_address(100));
    }
    assert!(bench.mapper.offers().is_empty());
    bench.answer(ROUTER, &pcp_announce(100));
    let request = bench.asked().pcp_map.remove(0);
    for at in [24, 35, 40] {
        let mut other = request.clone();
        other[at] ^= 1;
        bench.answer(ROUTER, &pcp_mapped(&other, 100, 0, EXTERNAL));
    }
    bench.answer("192.168.1.2:5351", &pcp_mapped(&request, 100, 0, EXTERNAL));
    assert_eq!(bench.mapped(), []);
    bench.answer(ROUTER, &pcp_mapped(&request, 100, 0, EXTERNAL));
    assert_eq!(bench.mapped().len(), 1);
}

#[test]
fn a_lease_is_renewed_at_half_of_its_time_and_ends_when_nobody_answers() {
    let (mut bench, first) = mapped_by_pcp();
    bench.pass(Duration::from_secs(3_599));
    assert!(bench.asked().pcp_map.is_empty());
    bench.pass(Duration::from_secs(1));
    let request = bench.asked().pcp_map.remove(0);
    assert_eq!(request[24..36], first[24..36], "the same nonce");
    assert_eq!(request[42..44], 7_777_u16.to_be_bytes(), "the same port");
    bench.answer(ROUTER, &pcp_mapped(&request, 3_700, 0, EXTERNAL));
    assert!(!bench.mapper.take_changed(), "nothing new for anybody");

    bench.pass(Duration::from_secs(7_100));
    assert_eq!(bench.mapped().len(), 1, "still granted");
    let repeated = bench.asked().pcp_map.len();
    assert!((6..60).contains(&repeated), "{repeated}");
    bench.pass(Duration::from_secs(140));
    assert_eq!(bench.mapped(), []);
    assert!(bench.mapper.take_changed());
}

#[test]
fn a_restarted_router_is_asked_again_at_once_and_not_more_often_than_every_five_seconds() {
    let (mut bench, _) = mapped_by_pcp();
    bench.pass(Duration::from_secs(60));
    bench.answer(ROUTER, &pcp_announce(160));
    assert!(bench.asked().pcp_map.is_empty(), "its clock runs");
    bench.answer(ROUTER, &pcp_announce(3));
    let request = bench.asked().pcp_map.remove(0);
    bench.answer(ROUTER, &pcp_mapped(&request, 3, 0, EXTERNAL));
    for jump in 0..10 {
        bench.answer(ROUTER, &pcp_announce(1_000 * jump));
    }
    assert!(bench.asked().pcp_map.is_empty());
    assert_eq!(bench.mapped().len(), 1);
}

#[test]
fn a_restart_that_natpmp_tells_counts_for_pcp_as_well() {
    let mut bench = Bench::new(gateway());
    bench.answer(ROUTER, &natpmp_address(100));
    bench.answer(ROUTER, &pcp_announce(100));
    let request = bench.asked().pcp_map.remove(0);
    bench.answer(ROUTER, &pcp_mapped(&request, 100, 0, EXTERNAL));
    bench.pass(Duration::from_secs(60));
    bench.answer(ROUTER, &natpmp_address(0));
    assert_eq!(bench.asked().pcp_map.len(), 1);
}

#[test]
fn what_was_asked_for_is_given_back_and_the_end_is_not_waited_for_long() {
    let (mut bench, request) = mapped_by_pcp();
    bench.mapper.set_wanted(false);
    bench.pass(ms(0));
    let asked = bench.asked();
    assert_eq!(asked.pcp_map.len(), 1);
    assert_eq!(asked.pcp_map[0][4..8], [0; 4], "a lifetime of nothing");
    assert_eq!(asked.pcp_map[0][24..36], request[24..36]);
    assert_eq!(bench.mapped(), []);
    bench.answer(ROUTER, &pcp_mapped(&asked.pcp_map[0], 101, 0, EXTERNAL));
    assert_eq!(bench.asked().held, [false]);
    assert_eq!(bench.mapper.deadline(), None);

    let (mut bench, _) = mapped_by_pcp();
    bench.asked();
    bench.mapper.set_wanted(false);
    bench.pass(ms(399));
    let asked = bench.asked();
    assert_eq!((asked.pcp_map.len(), asked.held), (2, vec![]));
    bench.pass(ms(1));
    assert_eq!(bench.asked().held, [false]);
}

#[test]
fn a_mapping_that_was_only_asked_for_is_given_back_too() {
    let mut bench = Bench::new(gateway());
    bench.answer(ROUTER, &pcp_announce(100));
    assert_eq!(bench.asked().held, [true]);
    bench.mapper.set_wanted(false);
    bench.pass(ms(0));
    assert_eq!(bench.asked().pcp_map.len(), 1);
}

#[test]
fn another_gateway_begins_anew_and_the_same_one_goes_on() {
    let (mut bench, _) = mapped_by_pcp();
    bench.asked();
    bench.gateways(&[gateway()]);
    assert_eq!(bench.asked(), Asked::default());
    let moved = Gateway {
        local: "192.168.1.10/24".parse().unwrap(),
        ..gateway()
    };
    bench.gateways(&[moved, moved]);
    assert!(bench.mapper.take_changed());
    assert_eq!(bench.mapped(), []);
    let asked = bench.asked();
    assert_eq!((asked.pcp_announce, asked.pcp_map.len()), (1, 1));
    assert_eq!(asked.pcp_map[0][4..8], [0; 4], "the old mapping ends");
    bench.pass(ms(400));
    assert_eq!(bench.asked().held, [false]);
}

fn elsewhere(last: u8) -> Gateway {
    Gateway {
        address: IpAddr::from([10, 0, last, 1]),
        interface: 3,
        local: format!("10.0.{last}.9/24").parse().unwrap(),
    }
}

#[test]
fn a_gateway_that_was_left_is_asked_with_the_same_nonce_when_we_are_back() {
    let (mut bench, request) = mapped_by_pcp();
    bench.gateways(&[elsewhere(1)]);
    let ends = |asked: &Asked| {
        let ends = asked.pcp_map.iter();
        ends.filter(|map| map[4..8] == [0; 4]).count()
    };
    assert_eq!(ends(&bench.asked()), 1);
    // Back before it has answered: it is not told to end what is wanted again.
    bench.gateways(&[gateway()]);
    bench.pass(ms(300));
    assert_eq!(ends(&bench.asked()), 0);
    bench.answer(ROUTER, &pcp_announce(100));
    let again = bench.asked().pcp_map.remove(0);
    assert_eq!(again[24..36], request[24..36]);
    bench.answer(ROUTER, &pcp_mapped(&again, 100, 0, EXTERNAL));
    assert_eq!(bench.mapped(), [addr("203.0.113.7:7777")]);
    let nonces: Vec<_> = bench
        .mapper
        .nonces
        .iter()
        .map(|(.., nonce)| nonce)
        .collect();
    assert!(nonces.len() == 2 && nonces[0] != nonces[1], "each its own");
}

#[test]
fn what_is_remembered_of_gateways_has_a_bound() {
    let mut bench = Bench::new(gateway());
    for last in 0..50 {
        bench.gateways(&[elsewhere(last)]);
        bench.answer(&format!("10.0.{last}.1:5351"), &pcp_announce(100));
        assert!(bench.mapper.gates[0].is_held());
        assert!(bench.mapper.left.len() <= limits::LEFT_GATEWAYS);
        assert!(bench.mapper.nonces.len() <= limits::KNOWN_GATEWAYS);
    }
    assert_eq!(bench.mapper.left.len(), limits::LEFT_GATEWAYS);
    bench.asked();
    bench.pass(Duration::from_secs(1));
    assert!(bench.mapper.left.is_empty() && bench.mapper.gates[0].is_held());
}

#[test]
fn garbage_changes_nothing() {
    let (mut bench, _) = mapped_by_pcp();
    bench.asked();
    for length in 0..80 {
        for byte in [0, 1, 2, 0x7f, 0x80, 0xff] {
            bench.answer(ROUTER, &vec![byte; length]);
        }
    }
    assert_eq!(bench.mapped().len(), 1);
    assert_eq!(bench.asked(), Asked::default());
}

const TARGET: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";

fn found(location: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nST: {TARGET}\r\nLOCATION: {location}\r\n\r\n").into_bytes()
}

fn description(services: &[&str]) -> String {
    let services: String = services
        .iter()
        .map(|urn| {
            format!(
                "<service><serviceType>urn:schemas-upnp-org:service:{urn}</serviceType>\
                 <controlURL>/{urn}</controlURL></service>"
            )
        })
        .collect();
    format!("<root><device><serviceList>{services}</serviceList></device></root>")
}

fn soap(inside: &str) -> String {
    format!("<Envelope><Body>{inside}</Body></Envelope>")
}

/// A bench whose only device has these services, at the moment when it is asked for something.
fn device(services: &[&str], gateway: Gateway, device: &str) -> (Bench, Asked) {
    let mut bench = Bench::new(gateway);
    let location = format!("http://{device}:5000/root.xml");
    bench.answer(&format!("{device}:1900"), &found(&location));
    let (id, to, request) = bench.asked().http.remove(0);
    assert_eq!(to, addr(&format!("{device}:5000")));
    assert!(request.starts_with("GET /root.xml "), "{request}");
    bench.http(id, 200, &description(services));
    assert_eq!(
        bench.mapper.offers().into_iter().collect::<Vec<_>>(),
        [PortMapProtocol::Upnp]
    );
    bench.pass(ms(749));
    assert!(bench.asked().http.is_empty(), "the others come first");
    bench.pass(ms(1));
    let asked = bench.asked();
    (bench, asked)
}

#[test]
fn a_device_maps_a_port_and_ends_it() {
    let (mut bench, asked) = device(&["WANIPConnection:2"], gateway(), "192.168.1.1");
    let (id, _, request) = &asked.http[0];
    assert!(request.contains("#GetExternalIPAddress"), "{request}");
    bench.http(
        *id,
        200,
        &soap("<NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>"),
    );
    let (id, _, request) = bench.asked().http.remove(0);
    assert!(request.contains("#AddAnyPortMapping"), "{request}");
    assert!(request.contains("<NewLeaseDuration>7200<"), "{request}");
    bench.http(id, 200, &soap("<NewReservedPort>5555</NewReservedPort>"));
    assert_eq!(bench.mapped(), [addr("203.0.113.7:5555")]);
    bench.mapper.set_wanted(false);
    bench.pass(ms(0));
    let (id, _, request) = bench.asked().http.remove(0);
    assert!(request.contains("#DeletePortMapping"), "{request}");
    assert!(request.contains("<NewExternalPort>5555<"), "{request}");
    bench.http(id, 200, &soap(""));
    assert_eq!(bench.asked().held, [false]);
}

#[test]
fn a_device_of_the_first_version_is_asked_for_other_ports_and_for_ever_if_need_be() {
    let (mut bench, asked) = device(&["WANIPConnection:1"], gateway(), "192.168.1.1");
    bench.http(
        asked.http[0].0,
        200,
        &soap("<NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>"),
    );
    for (fault, next) in [
        (718, "<NewLeaseDuration>7200<"),
        (725, "<NewLeaseDuration>0<"),
    ] {
        let (id, _, request) = bench.asked().http.remove(0);
        assert!(request.contains("#AddPortMapping"), "{request}");
        let fault = format!("<Fault><errorCode>{fault}</errorCode></Fault>");
        bench.http(id, 500, &soap(&fault));
        let (id, to, request) = bench.asked().http.remove(0);
        assert!(request.contains(next), "{request}");
        // Put back for the next turn.
        let _ = to;
        if next.contains(">0<") {
            bench.http(id, 200, &soap(""));
        } else {
            let fault = soap("<Fault><errorCode>718</errorCode></Fault>");
            bench.http(id, 500, &fault);
        }
    }
    let mapped = bench.mapped();
    assert_eq!(mapped.len(), 1);
    assert_ne!(mapped[0].port(), MESH_PORT, "that one was taken");
}

#[test]
fn devices_elsewhere_are_not_believed() {
    let mut bench = Bench::new(gateway());
    bench.asked();
    for (from, location) in [
        ("203.0.113.9:1900", "http://203.0.113.9/d.xml"),
        ("192.168.2.1:1900", "http://192.168.2.1/d.xml"),
        ("192.168.1.1:1900", "http://192.168.1.7/d.xml"),
        ("192.168.1.1:1900", "http://203.0.113.9/d.xml"),
        ("192.168.1.1:1900", "http://router.lan/d.xml"),
        ("[fe80::1]:1900", "http://[fe80::1]/d.xml"),
    ] {
        bench.answer(from, &found(location));
        assert_eq!(bench.asked(), Asked::default(), "{from} {location}");
    }
}

#[test]
fn a_link_full_of_devices_costs_four_descriptions() {
    let mut bench = Bench::new(gateway());
    for host in 2..100 {
        let from = format!("192.168.1.{host}:1900");
        bench.answer(&from, &found(&format!("http://192.168.1.{host}/d.xml")));
    }
    assert_eq!(bench.asked().http.len(), 4);
}

#[test]
fn a_device_that_hangs_or_lies_is_given_up() {
    for body in [None, Some("<x/>"), Some("")] {
        let (mut bench, asked) = device(&["WANIPConnection:2"], gateway(), "192.168.1.1");
        if let Some(body) = body {
            bench.http(asked.http[0].0, 200, body);
        }
        bench.pass(Duration::from_secs(20));
        assert_eq!(bench.mapped(), []);
        assert!(bench.asked().http.is_empty());
    }
}

#[test]
fn a_hole_in_an_ipv6_firewall_is_opened_by_upnp_and_by_pcp() {
    let v6 = Gateway {
        address: "fe80::1".parse().unwrap(),
        interface: 2,
        local: "2001:db8::9/64".parse().unwrap(),
    };
    let services = ["WANIPConnection:2", "WANIPv6FirewallControl:1"];
    let mut bench = Bench::new(v6);
    bench.answer("[fe80::1]:1900", &found("http://[fe80::1]:5000/root.xml"));
    let (id, to, _) = bench.asked().http.remove(0);
    assert!(matches!(to, SocketAddr::V6(to) if to.scope_id() == 2));
    bench.http(id, 200, &description(&services));
    bench.pass(ms(750));
    let (id, _, request) = bench.asked().http.remove(0);
    assert!(request.contains("#AddPinhole"), "{request}");
    assert!(
        request.contains("<InternalClient>2001:db8::9<"),
        "{request}"
    );
    bench.http(id, 200, &soap("<UniqueID>17</UniqueID>"));
    assert_eq!(bench.mapped(), [addr("[2001:db8::9]:41820")]);
    bench.mapper.set_wanted(false);
    bench.pass(ms(0));
    let (_, _, request) = bench.asked().http.remove(0);
    assert!(request.contains("<UniqueID>17<"), "{request}");

    let mut bench = Bench::new(v6);
    assert_eq!(bench.asked().natpmp_address, 0);
    bench.answer("[fe80::1]:5351", &pcp_announce(5));
    let request = bench.asked().pcp_map.remove(0);
    assert_eq!(
        request[8..24],
        "2001:db8::9"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()
    );
    // A port of the other family is no hole.
    bench.answer("[fe80::1]:5351", &pcp_mapped(&request, 5, 0, EXTERNAL));
    assert_eq!(bench.mapped(), []);
}
