//! Two engines, and a relay that is played by the test, on a network without NATs: what the engine does, step by step.
//! Scenarios with NATs, loss and delay belong to the simulator.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use zeroize::Zeroizing;

use super::*;
use crate::batch::ReceiveBatch;
use crate::identity::{Identity, NodeId, RelayUrl, overlay_address};
use crate::offload::SuperPacket;
use crate::wire::relay::{ClientMessage, FRAME_HEADER, ServerMessage, write_data_header};

const NET: NetworkIndex = NetworkIndex(0);
const TIME_OF_DAY: Duration = Duration::from_secs(1_800_000_000);

struct Host {
    engine: Engine,
    address: SocketAddr,
    id: NodeId,
    overlay: IpAddr,
    batches: Batches,
    received: Vec<Vec<u8>>,
    events: Vec<Event>,
    dials: usize,
    greeted: bool,
    hastened: Vec<ClientMessage>,
}

struct Pair {
    now: Instant,
    hosts: [Host; 2],
    relay: SocketAddr,
    relay_up: bool,
    /// Datagrams between the hosts themselves get through.
    direct_open: bool,
    /// (to, from, payload)
    wire: VecDeque<(usize, SocketAddr, Vec<u8>)>,
}

fn identity(seed: u8) -> Identity {
    Identity::from_seed(Zeroizing::new([seed; 32]))
}

fn network_id() -> NetworkId {
    NetworkId::from_name("home")
}

fn relay_url() -> RelayUrl {
    format!("mesh://{}@203.0.113.1:443", identity(99).id())
        .parse()
        .unwrap()
}

fn setup(own: u8, peer: u8, relays: Vec<RelayUrl>, endpoints: Vec<SocketAddr>) -> NetworkSetup {
    NetworkSetup {
        name: "home".to_owned(),
        id: network_id(),
        identity: identity(own),
        addresses: Vec::new(),
        mtu: crate::limits::MAX_INNER_MTU,
        peers: vec![PeerSetup {
            key: PeerKey::Mesh(identity(peer).id()),
            name: format!("host{peer}"),
            addresses: Vec::new(),
            routes: Vec::new(),
            psk: None,
            endpoints,
        }],
        relays,
    }
}

fn host(
    now: Instant,
    own: u8,
    peer: u8,
    relays: Vec<RelayUrl>,
    endpoints: Vec<SocketAddr>,
) -> Host {
    let address = SocketAddr::from(([198, 51, 100, own], 41_820));
    let mut engine = Engine::new([own; 32], Kernel::Ring, now, TIME_OF_DAY);
    let id = identity(own).id();
    engine
        .add_network(now, NET, setup(own, peer, relays, endpoints))
        .unwrap();
    let own_address = HostAddress {
        ip: address.ip(),
        virtual_interface: false,
        mtu: 1_500,
    };
    engine.set_local_addresses(now, &[own_address], Some(address.port()), None);
    Host {
        engine,
        address,
        id,
        overlay: overlay_address(&network_id(), &id).into(),
        batches: Batches::new(Kernel::Ring),
        received: Vec::new(),
        events: Vec::new(),
        dials: 0,
        greeted: false,
        hastened: Vec::new(),
    }
}

impl Pair {
    fn new(with_relay: bool, with_endpoints: bool) -> Self {
        let now = Instant::from_boot(Duration::from_secs(10_000));
        let relays = if with_relay {
            vec![relay_url()]
        } else {
            vec![]
        };
        let endpoints = |last: u8| {
            let endpoint = SocketAddr::from(([198, 51, 100, last], 41_820));
            if with_endpoints {
                vec![endpoint]
            } else {
                vec![]
            }
        };
        Self {
            now,
            hosts: [
                host(now, 1, 2, relays.clone(), endpoints(2)),
                host(now, 2, 1, relays, endpoints(1)),
            ],
            relay: "203.0.113.1:443".parse().unwrap(),
            relay_up: true,
            direct_open: true,
            wire: VecDeque::new(),
        }
    }

    /// Carries out everything that host `at` wants done.
    fn drain(&mut self, at: usize) {
        let from = self.hosts[at].address;
        let runs: Vec<(SocketAddr, Vec<u8>, usize)> = self.hosts[at]
            .batches
            .send
            .runs()
            .map(|(run, bytes)| (run.remote, bytes.to_vec(), run.segment))
            .collect();
        self.hosts[at].batches.send.clear();
        for (remote, bytes, segment) in runs {
            for datagram in bytes.chunks(segment) {
                self.datagram(at, from, remote, datagram.to_vec());
            }
        }
        while let Some(output) = self.hosts[at].engine.poll_output() {
            match output {
                Output::Datagram {
                    socket: SocketId::MESH,
                    remote,
                    ttl: None,
                    payload,
                } => self.datagram(at, from, remote, payload),
                // An opener, which dies on the way, or from a spare socket, for which this network is too small.
                Output::Datagram { .. } => {}
                Output::Socket(socket, SocketAction::Open | SocketAction::OpenV6) => {
                    let now = self.now;
                    self.hosts[at].engine.socket_opened(now, socket, None);
                }
                Output::Socket(..) | Output::PortMap(_) | Output::Lan(_) => {}
                Output::Packet { packet, .. } => self.hosts[at].received.push(packet),
                Output::Relay(handle, action) => self.relay_action(at, handle, action),
                // These hosts know of no gateway and no link.
                Output::Event(event) => self.hosts[at].events.push(event),
            }
        }
    }

    fn datagram(&mut self, from: usize, source: SocketAddr, remote: SocketAddr, payload: Vec<u8>) {
        if remote == self.relay {
            // Channel numbers of the played relay: each host knows its only channel as 7.
            if payload[0] == 0x20 && self.relay_up {
                let mut frame = vec![0; FRAME_HEADER];
                write_data_header(&mut frame, 7);
                frame.extend_from_slice(&payload[FRAME_HEADER..]);
                self.wire.push_back((1 - from, self.relay, frame));
            }
        } else if remote == self.hosts[1 - from].address && self.direct_open {
            self.wire.push_back((1 - from, source, payload));
        }
    }

    fn relay_action(&mut self, at: usize, handle: RelayHandle, action: RelayAction) {
        let message = match action {
            RelayAction::Dial { .. } => {
                self.hosts[at].dials += 1;
                let event = if self.relay_up {
                    RelayEvent::Connected { remote: self.relay }
                } else {
                    RelayEvent::Closed {
                        reason: "refused".to_owned(),
                    }
                };
                return self.relay_event(at, handle, event);
            }
            RelayAction::Hangup => return,
            RelayAction::Hasten(message) => return self.hosts[at].hastened.push(message),
            RelayAction::Send(message) => message,
        };
        let peer = self.hosts[1 - at].id;
        let own = self.hosts[at].id;
        let own_address = self.hosts[at].address;
        let peer_address = self.hosts[1 - at].address;
        let channel = |peer, addr| ServerMessage::Channel {
            peer,
            channel: 7,
            peer_addr: Some(addr),
        };
        match message {
            ClientMessage::Hello { .. } => {
                self.hosts[at].greeted = true;
                let welcome = ServerMessage::Welcome {
                    version: 1,
                    observed: own_address,
                    alternatives: crate::wire::relay::Alternatives::default(),
                };
                self.relay_event(at, handle, RelayEvent::Message(welcome));
            }
            ClientMessage::OpenChannel { peer } if !self.hosts[1 - at].greeted => {
                let gone = ServerMessage::PeerGone { peer };
                self.relay_event(at, handle, RelayEvent::Message(gone));
            }
            ClientMessage::Send { to, packet } if to == peer && self.hosts[1 - at].greeted => {
                let received = ServerMessage::Received { from: own, packet };
                self.relay_event(1 - at, handle, RelayEvent::Message(received));
            }
            ClientMessage::OpenChannel { peer: wanted } if wanted == peer => {
                self.relay_event(at, handle, RelayEvent::Message(channel(peer, peer_address)));
                self.relay_event(
                    1 - at,
                    handle,
                    RelayEvent::Message(channel(own, own_address)),
                );
            }
            _ => {}
        }
    }

    fn relay_event(&mut self, at: usize, handle: RelayHandle, event: RelayEvent) {
        let now = self.now;
        let host = &mut self.hosts[at];
        host.engine
            .handle_relay(now, handle, event, &mut host.batches);
        self.drain(at);
    }

    /// Hands a datagram to a host.
    fn deliver(&mut self, to: usize, from: SocketAddr, payload: &[u8]) {
        let now = self.now;
        let host = &mut self.hosts[to];
        let mut received = ReceiveBatch::of(SocketId::MESH, from, payload, payload.len());
        host.engine
            .handle_udp(now, &mut received, &mut host.batches);
        received.write(|_, storage, ranges| {
            let packets = ranges.iter().map(|range| storage[range.clone()].to_vec());
            host.received.extend(packets);
        });
        self.drain(to);
    }

    /// Delivers what is on the wire, each datagram after a millisecond; then lets `duration` pass with its timeouts.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            while let Some((to, from, payload)) = self.wire.pop_front() {
                self.now = self.now + Duration::from_millis(1);
                self.deliver(to, from, &payload);
            }
            let next = (0..2)
                .filter_map(|at| Some((self.hosts[at].engine.poll_timeout()?, at)))
                .min();
            match next {
                Some((at, which)) if at <= end => {
                    self.now = self.now.max(at);
                    let now = self.now;
                    let host = &mut self.hosts[which];
                    host.engine.handle_timeout(now, &mut host.batches);
                    self.drain(which);
                }
                _ => {
                    self.now = self.now.max(end);
                    return;
                }
            }
        }
    }

    fn inner_packet(&self, from: usize, payload: u8) -> Vec<u8> {
        let mut packet = vec![0; 41];
        packet[0] = 0x60;
        packet[5] = 1;
        packet[6] = 59;
        packet[8..24].copy_from_slice(&octets(self.hosts[from].overlay));
        packet[24..40].copy_from_slice(&octets(self.hosts[1 - from].overlay));
        packet[40] = payload;
        packet
    }

    fn send(&mut self, from: usize, packet: &[u8]) {
        let now = self.now;
        let host = &mut self.hosts[from];
        host.engine
            .handle_tun(now, NET, &SuperPacket::whole(packet), &mut host.batches);
        self.drain(from);
    }

    fn path_kind(&self, at: usize) -> Option<PathKind> {
        let status = self.hosts[at].engine.status(self.now);
        Some(status[0].peers[0].path.as_ref()?.kind)
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(_) => panic!("derived addresses are IPv6"),
    }
}

#[test]
fn the_first_packet_goes_over_the_relay_and_later_ones_direct() {
    let mut pair = Pair::new(true, false);
    pair.run(Duration::ZERO);
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    while pair.path_kind(0) != Some(PathKind::Relay) {
        let (to, from, payload) = pair.wire.pop_front().expect("a handshake over the relay");
        pair.deliver(to, from, &payload);
    }
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.hosts[1].received, [packet]);
    assert_eq!(pair.path_kind(0), Some(PathKind::Direct));
    assert_eq!(pair.path_kind(1), Some(PathKind::Direct));
}

#[test]
fn without_a_direct_way_data_stays_on_the_relay_and_arrives() {
    let mut pair = Pair::new(true, false);
    pair.direct_open = false;
    for number in 0..100 {
        let packet = pair.inner_packet(0, number);
        pair.send(0, &packet);
        pair.run(Duration::from_millis(100));
    }
    assert_eq!(pair.hosts[1].received.len(), 100);
    assert_eq!(pair.path_kind(0), Some(PathKind::Relay));
}

#[test]
fn endpoints_lead_to_a_peer_without_any_relay() {
    let mut pair = Pair::new(false, true);
    let packet = pair.inner_packet(1, 5);
    pair.send(1, &packet);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.hosts[0].received, [packet]);
    assert_eq!(pair.path_kind(0), Some(PathKind::Direct));
}

#[test]
fn a_dead_direct_path_is_left_for_the_relay_within_two_seconds() {
    let mut pair = Pair::new(true, false);
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.path_kind(0), Some(PathKind::Direct));
    pair.direct_open = false;
    for _ in 0..20 {
        pair.send(0, &packet);
        pair.run(Duration::from_millis(100));
    }
    assert_eq!(pair.path_kind(0), Some(PathKind::Relay));
    pair.hosts[1].received.clear();
    pair.send(0, &packet);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.hosts[1].received.len(), 1);
}

#[test]
fn an_overlay_ping_names_the_path_of_its_answer() {
    let mut pair = Pair::new(true, false);
    pair.direct_open = false;
    pair.run(Duration::ZERO);
    let (now, peer) = (pair.now, PeerKey::Mesh(pair.hosts[1].id));
    let host = &mut pair.hosts[0];
    host.engine.ping(
        now,
        NET,
        peer,
        77,
        Duration::from_secs(5),
        &mut host.batches,
    );
    pair.drain(0);
    pair.run(Duration::from_secs(1));
    let pong = pair.hosts[0].events.iter().find_map(|event| match event {
        Event::Pong { token: 77, answer } => answer.clone(),
        _ => None,
    });
    let pong = pong.expect("an answer");
    assert_eq!(
        (pong.kind, pong.via.as_str()),
        (PathKind::Relay, "203.0.113.1:443")
    );
}

#[test]
fn a_ping_to_a_silent_peer_ends_with_its_timeout() {
    let mut pair = Pair::new(false, false);
    let (now, peer) = (pair.now, PeerKey::Mesh(pair.hosts[1].id));
    let host = &mut pair.hosts[0];
    host.engine
        .ping(now, NET, peer, 1, Duration::from_secs(2), &mut host.batches);
    pair.drain(0);
    pair.run(Duration::from_millis(1_900));
    let pong = Event::Pong {
        token: 1,
        answer: None,
    };
    assert!(!pair.hosts[0].events.contains(&pong));
    pair.run(Duration::from_millis(200));
    assert!(pair.hosts[0].events.contains(&pong));
}

#[test]
fn a_control_packet_written_by_a_local_process_reaches_nobody() {
    let mut pair = Pair::new(true, false);
    let mut packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(1));
    pair.hosts[1].received.clear();
    packet[6] = crate::wire::control::NEXT_HEADER;
    pair.send(0, &packet);
    pair.run(Duration::from_secs(1));
    assert!(pair.hosts[1].received.is_empty());
    assert_eq!(pair.hosts[0].engine.drops().forged_control, 1);
}

#[test]
fn a_packet_from_an_address_that_is_not_the_peers_is_dropped() {
    let mut pair = Pair::new(false, true);
    let mut packet = pair.inner_packet(0, 1);
    packet[23] ^= 1;
    pair.send(0, &packet);
    pair.run(Duration::from_secs(1));
    assert!(pair.hosts[1].received.is_empty());
    assert_eq!(pair.hosts[1].engine.drops().wrong_source, 1);
}

#[test]
fn a_peer_that_restarts_is_reached_again() {
    let mut pair = Pair::new(true, false);
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(2));
    pair.hosts[1] = host(pair.now, 2, 1, vec![relay_url()], vec![]);
    pair.run(Duration::from_millis(10));
    let back = pair.inner_packet(1, 9);
    pair.send(1, &back);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.hosts[0].received, [back]);
}

#[test]
fn a_relay_that_is_away_is_dialled_with_pauses_and_used_when_it_is_back() {
    let mut pair = Pair::new(true, false);
    pair.direct_open = false;
    pair.relay_up = false;
    pair.run(Duration::from_secs(60));
    assert!(
        pair.hosts[0].dials > 3 && pair.hosts[0].dials < 12,
        "{}",
        pair.hosts[0].dials
    );
    assert_eq!(pair.hosts[0].engine.status(pair.now)[0].health.len(), 1);
    pair.relay_up = true;
    pair.run(Duration::from_secs(40));
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.hosts[1].received, [packet]);
    assert!(pair.hosts[0].engine.status(pair.now)[0].health.is_empty());
}

#[test]
fn a_cloned_key_ends_in_a_health_line_and_not_in_a_fight() {
    let mut pair = Pair::new(true, false);
    pair.run(Duration::ZERO);
    let dials = pair.hosts[0].dials;
    pair.relay_event(
        0,
        RelayHandle(0),
        RelayEvent::Message(ServerMessage::Replaced),
    );
    pair.run(Duration::from_secs(300));
    assert_eq!(pair.hosts[0].dials, dials);
    assert!(
        pair.hosts[0].engine.status(pair.now)[0].health[0]
            .contains("another host uses this node's key")
    );
}

#[test]
fn what_is_said_to_a_relay_after_a_move_does_not_wait_for_what_was_lost() {
    let mut pair = Pair::new(true, false);
    pair.direct_open = false;
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(5));
    assert!(pair.hosts[0].hastened.is_empty());
    let elsewhere = HostAddress {
        ip: [198, 51, 100, 77].into(),
        virtual_interface: false,
        mtu: 1_500,
    };
    let now = pair.now;
    pair.hosts[0]
        .engine
        .set_local_addresses(now, &[elsewhere], Some(41_820), None);
    pair.drain(0);
    let challenge = crate::wire::relay::challenge_frame(9);
    pair.deliver(0, pair.relay, &challenge);
    pair.run(Duration::from_millis(20));
    let said = |wanted: fn(&ClientMessage) -> bool| pair.hosts[0].hastened.iter().any(wanted);
    assert!(said(|message| matches!(
        message,
        ClientMessage::Ping { .. }
    )));
    assert!(said(|message| matches!(
        message,
        ClientMessage::Send { .. }
    )));
    let proof = ClientMessage::ProveAddress { nonce: 9 };
    assert!(pair.hosts[0].hastened.contains(&proof));
    // Later there is nothing to overtake.
    pair.run(Duration::from_secs(3));
    pair.hosts[0].hastened.clear();
    pair.deliver(0, pair.relay, &challenge);
    assert!(pair.hosts[0].hastened.is_empty());
}

#[test]
fn a_host_without_any_network_gives_no_relay_up() {
    let mut pair = Pair::new(true, false);
    pair.direct_open = false;
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(5));
    let dials = pair.hosts[0].dials;
    let now = pair.now;
    pair.hosts[0]
        .engine
        .set_local_addresses(now, &[], Some(41_820), None);
    pair.relay_up = false;
    for number in 0..100 {
        let packet = pair.inner_packet(0, number);
        pair.send(0, &packet);
        pair.run(Duration::from_millis(50));
    }
    pair.relay_up = true;
    let own = HostAddress {
        ip: pair.hosts[0].address.ip(),
        virtual_interface: false,
        mtu: 1_500,
    };
    let now = pair.now;
    pair.hosts[0]
        .engine
        .set_local_addresses(now, &[own], Some(41_820), None);
    pair.drain(0);
    pair.hosts[1].received.clear();
    let packet = pair.inner_packet(0, 200);
    pair.send(0, &packet);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.hosts[1].received, [packet]);
    assert_eq!(pair.hosts[0].dials, dials);
}

#[test]
fn random_datagrams_change_nothing_and_are_counted() {
    let mut pair = Pair::new(true, false);
    pair.run(Duration::ZERO);
    let mut rng = crate::rng::Random::from_seed([5; 32]);
    let timeout = pair.hosts[0].engine.poll_timeout();
    for _ in 0..2_000 {
        let mut bytes: Vec<u8> = (0..rng.u64() % 300).map(|_| rng.u64() as u8).collect();
        if let Some(first) = bytes.first_mut() {
            *first &= 0x3f; // QUIC is handed on, and not the engine's to count
        }
        let now = pair.now;
        let from = SocketAddr::from(([192, 0, 2, 1], 9));
        let host = &mut pair.hosts[0];
        let mut received = ReceiveBatch::of(SocketId::MESH, from, &bytes, bytes.len());
        host.engine
            .handle_udp(now, &mut received, &mut host.batches);
        assert!(host.engine.poll_output().is_none());
    }
    assert_eq!(pair.hosts[0].engine.poll_timeout(), timeout);
    assert!(pair.hosts[0].engine.drops().unknown_protocol > 1_900);
}

#[test]
fn a_reload_keeps_the_sessions_of_unchanged_peers_and_drops_the_others() {
    let mut pair = Pair::new(true, true);
    let packet = pair.inner_packet(0, 1);
    pair.send(0, &packet);
    pair.run(Duration::from_secs(1));
    let now = pair.now;
    let handshake = |pair: &Pair| {
        pair.hosts[0].engine.status(now)[0]
            .peers
            .first()
            .and_then(|p| p.last_handshake)
    };
    let before = handshake(&pair);
    assert!(before.is_some());
    let mut changed = setup(1, 2, vec![relay_url()], vec![]);
    changed.peers[0].name = "renamed".to_owned();
    pair.hosts[0]
        .engine
        .update_network(now, NET, changed)
        .unwrap();
    assert_eq!(handshake(&pair), before);
    assert_eq!(pair.hosts[0].engine.status(now)[0].peers[0].name, "renamed");
    pair.hosts[0]
        .engine
        .update_network(now, NET, setup(1, 3, vec![], vec![]))
        .unwrap();
    assert_eq!(handshake(&pair), None);
    assert_eq!(
        pair.hosts[0]
            .engine
            .update_network(now, NET, setup(1, 1, vec![], vec![])),
        Err(SetupError::DuplicateKey {
            name: "host1".to_owned(),
            other: "this host".to_owned()
        })
    );
}

#[test]
fn a_spare_socket_takes_nothing_but_wireguard_and_stun_and_nothing_once_it_is_closed() {
    let mut pair = Pair::new(true, false);
    let now = pair.now;
    let engine = &mut pair.hosts[0].engine;
    let socket = engine.open_spares(super::spares::Owner::Survey, SocketAction::Open, 1)[0];
    let from = SocketAddr::from(([198, 51, 100, 9], 7));
    let mut drops = engine.drops().unknown_protocol;
    let wireguard = [&[4u8, 0, 0, 0][..], &[0; 28]].concat();
    let stun = crate::wire::stun::binding_response(&[7; 12], from);
    let frame = [&[0x20u8][..], &[0; 40]].concat();
    let mut take = |engine: &mut Engine, datagram: &[u8]| {
        let mut received = ReceiveBatch::of(socket, from, datagram, datagram.len());
        let mut batches = Batches::new(Kernel::Ring);
        engine.handle_udp(now, &mut received, &mut batches);
        assert!(batches.quic.is_empty() && batches.send.is_empty());
        let before = std::mem::replace(&mut drops, engine.drops().unknown_protocol);
        drops - before
    };
    let sessions = engine.drops().unknown_session;
    assert_eq!(take(engine, &wireguard), 0);
    assert_eq!(engine.drops().unknown_session, sessions + 1);
    assert_eq!(take(engine, &stun), 1, "nobody asked");
    assert_eq!(take(engine, &frame), 1);
    assert_eq!(take(engine, &[0xc0; 1_200]), 1);
    let channels = engine.drops().unknown_channel;
    engine.close_spare(socket);
    assert_eq!(take(engine, &wireguard), 1);
    assert_eq!(engine.drops().unknown_session, sessions + 1);
    assert_eq!(engine.drops().unknown_channel, channels);
    assert!(!engine.spares.contains(socket));
}
