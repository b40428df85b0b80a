use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::identity::Identity;
use crate::wire::relay::{Alternatives, FRAME_HEADER, Framer, MAX_SENT_PACKET, parse_frame};
use crate::wire::relay::{Frame, write_data_header};
use crate::wire::stun::{self, Change};

const START: Instant = Instant::from_boot(Duration::from_secs(1_000));

fn node(seed: u16) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&seed.to_le_bytes());
    Identity::from_seed(Zeroizing::new(bytes)).id()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const ALTERNATIVES: Alternatives = Alternatives {
    port: Some(3_478),
    address: Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 200), 443)),
};

/// A server with its clock and everything that it wanted done.
struct World {
    server: Server,
    now: Instant,
    closed: Vec<(ConnId, CloseReason)>,
    /// Messages that were written when a connection was closed.
    last_words: Vec<(ConnId, ServerMessage)>,
    challenges: Vec<(SocketAddr, u64)>,
    knocks: Vec<(SocketAddr, Vec<u8>)>,
    woken: Vec<ConnId>,
}

impl World {
    fn new(access: Access) -> Self {
        let settings = Settings {
            access,
            alternatives: ALTERNATIVES,
            rate_limit: limits::RELAY_RATE,
        };
        Self {
            server: Server::new(settings, [7; 32]),
            now: START,
            closed: Vec::new(),
            last_words: Vec::new(),
            challenges: Vec::new(),
            knocks: Vec::new(),
            woken: Vec::new(),
        }
    }

    fn open() -> Self {
        Self::new(Access::Open)
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Wake(conn) => self.woken.push(conn),
                Output::Close { conn, last, reason } => {
                    self.closed.push((conn, reason));
                    self.last_words
                        .extend(decode(&last).into_iter().map(|message| (conn, message)));
                }
                Output::Datagram { to, payload, .. } => match parse_frame(&payload) {
                    Ok(Frame::Challenge { nonce }) => self.challenges.push((to, nonce)),
                    _ => self.knocks.push((to, payload)),
                },
            }
        }
    }

    fn connect(&mut self, conn: u64, seed: u16, remote: &str) -> ConnId {
        let conn = ConnId(conn);
        self.server
            .handle_connected(self.now, conn, node(seed), address(remote));
        self.say(
            conn,
            ClientMessage::Hello {
                version: PROTOCOL_VERSION,
            },
        );
        conn
    }

    /// Connects and forgets the welcome.
    fn client(&mut self, conn: u64, seed: u16, remote: &str) -> ConnId {
        let conn = self.connect(conn, seed, remote);
        let messages = self.messages(conn);
        assert!(
            matches!(messages[..], [ServerMessage::Welcome { .. }]),
            "{messages:?}"
        );
        conn
    }

    fn say(&mut self, conn: ConnId, message: ClientMessage) {
        self.server.handle_message(self.now, conn, message);
        self.drain();
    }

    fn messages(&mut self, conn: ConnId) -> Vec<ServerMessage> {
        decode(&self.server.take_messages(conn))
    }

    fn wait(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(deadline) = self
            .server
            .poll_timeout()
            .filter(|deadline| *deadline <= until)
        {
            self.now = deadline;
            self.server.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    /// Opens a channel between two clients and returns the number of each side.
    fn channel(&mut self, one: ConnId, other: ConnId, seed: u16) -> (u32, u32) {
        self.say(one, ClientMessage::OpenChannel { peer: node(seed) });
        let number = |messages: Vec<ServerMessage>| match messages[..] {
            [ServerMessage::Channel { channel, .. }] => channel,
            ref other => panic!("{other:?}"),
        };
        (number(self.messages(one)), number(self.messages(other)))
    }

    fn data(&mut self, from: &str, channel: u32, payload: &[u8]) -> (Verdict, Vec<u8>) {
        let mut frame = vec![0; FRAME_HEADER];
        write_data_header(&mut frame, channel);
        frame.extend(payload);
        let verdict = self
            .server
            .handle_udp(self.now, Socket::Main, address(from), &mut frame);
        (verdict, frame)
    }

    fn stun(&mut self, socket: Socket, from: &str, change: Change) -> Verdict {
        let mut request = stun::binding_request(&[5; 12], change);
        self.server
            .handle_udp(self.now, socket, address(from), &mut request)
    }
}

fn decode(mut bytes: &[u8]) -> Vec<ServerMessage> {
    let mut framer = Framer::default();
    let mut messages = Vec::new();
    while let Some(body) = framer.next(&mut bytes).unwrap() {
        messages.push(ServerMessage::decode(body).unwrap());
    }
    messages
}

fn replied(verdict: Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Reply(reply) => reply.payload().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn forward(to: &str) -> Verdict {
    Verdict::Forward {
        to: address(to),
        local: Local::default(),
    }
}

const A: &str = "192.0.2.1:1000";
const B: &str = "[2001:db8::2]:2000";
const C: &str = "198.51.100.3:3000";

mod admission {
    use super::*;

    #[test]
    fn an_open_relay_welcomes_everyone_with_their_address() {
        let mut world = World::open();
        let conn = world.connect(1, 1, A);
        assert_eq!(
            world.messages(conn),
            [ServerMessage::Welcome {
                version: 1,
                observed: address(A),
                alternatives: ALTERNATIVES
            }]
        );
        assert_eq!(world.server.clients(), 1);
    }

    #[test]
    fn a_listed_node_is_welcome_and_others_are_told_why_not() {
        let mut world = World::new(Access::Nodes([node(1)].into()));
        world.client(1, 1, A);
        let stranger = world.connect(2, 2, B);
        assert_eq!(
            world.closed,
            [(stranger, CloseReason::Refused(Refusal::NotAdmitted))]
        );
        assert_eq!(
            world.last_words,
            [(
                stranger,
                ServerMessage::Refused {
                    reason: Refusal::NotAdmitted
                }
            )]
        );
        assert_eq!(world.server.clients(), 1);
    }

    #[test]
    fn an_older_version_is_refused_and_a_newer_one_is_answered_in_ours() {
        let mut world = World::open();
        world
            .server
            .handle_connected(START, ConnId(1), node(1), address(A));
        world.say(ConnId(1), ClientMessage::Hello { version: 0 });
        assert_eq!(
            world.closed,
            [(ConnId(1), CloseReason::Refused(Refusal::Version))]
        );

        world
            .server
            .handle_connected(START, ConnId(2), node(1), address(A));
        world.say(ConnId(2), ClientMessage::Hello { version: 9 });
        assert!(matches!(
            world.messages(ConnId(2))[..],
            [ServerMessage::Welcome {
                version: PROTOCOL_VERSION,
                ..
            }]
        ));
    }

    #[test]
    fn whoever_says_nothing_is_closed() {
        let mut world = World::open();
        world
            .server
            .handle_connected(START, ConnId(1), node(1), address(A));
        world.wait(limits::RELAY_HELLO_TIMEOUT - Duration::from_millis(1));
        assert!(world.closed.is_empty());
        world.wait(Duration::from_millis(1));
        assert_eq!(world.closed, [(ConnId(1), CloseReason::NoHello)]);
        assert_eq!(world.server.poll_timeout(), None);
    }

    #[test]
    fn whoever_speaks_before_the_hello_or_says_it_twice_is_closed() {
        let mut world = World::open();
        world
            .server
            .handle_connected(START, ConnId(1), node(1), address(A));
        world.say(ConnId(1), ClientMessage::Ping { nonce: 1 });
        let conn = world.client(2, 2, B);
        world.say(conn, ClientMessage::Hello { version: 1 });
        assert_eq!(
            world.closed,
            [
                (ConnId(1), CloseReason::Protocol),
                (conn, CloseReason::Protocol)
            ]
        );
        assert_eq!(world.server.clients(), 0);
        assert_eq!(
            world.server.stats().dropped(DropReason::MalformedMessage),
            2
        );
    }

    #[test]
    fn connections_without_a_hello_are_bounded() {
        let mut world = World::open();
        let most = limits::RELAY_NEWCOMERS as u64;
        for conn in 0..most {
            world
                .server
                .handle_connected(START, ConnId(conn), node(1), address(A));
        }
        world.drain();
        assert!(world.closed.is_empty());
        world
            .server
            .handle_connected(START, ConnId(most), node(1), address(A));
        world.drain();
        assert_eq!(world.closed, [(ConnId(most), CloseReason::Busy)]);
        world.say(ConnId(0), ClientMessage::Hello { version: 1 });
        world
            .server
            .handle_connected(START, ConnId(most + 1), node(2), address(A));
        world.drain();
        assert_eq!(world.closed.len(), 1);
    }

    #[test]
    fn a_second_connection_of_a_node_replaces_the_first() {
        let mut world = World::open();
        let old = world.client(1, 1, A);
        let peer = world.client(2, 2, B);
        world.channel(old, peer, 2);
        let new = world.client(3, 1, C);
        assert_eq!(world.closed, [(old, CloseReason::Replaced)]);
        assert_eq!(world.last_words, [(old, ServerMessage::Replaced)]);
        assert_eq!(
            world.messages(peer),
            [ServerMessage::PeerGone { peer: node(1) }]
        );
        // What the shell still reports of the old one must not hurt the new one.
        world.server.handle_closed(old);
        world.server.handle_address(world.now, old, address(A));
        world.say(old, ClientMessage::Ping { nonce: 1 });
        world.say(new, ClientMessage::Ping { nonce: 2 });
        assert_eq!(world.messages(new), [ServerMessage::Pong { nonce: 2 }]);
        assert_eq!(world.server.clients(), 2);
    }
}

mod messages {
    use super::*;

    #[test]
    fn a_ping_is_answered() {
        let mut world = World::open();
        let conn = world.client(1, 1, A);
        world.say(conn, ClientMessage::Ping { nonce: 42 });
        assert_eq!(world.messages(conn), [ServerMessage::Pong { nonce: 42 }]);
    }

    #[test]
    fn a_packet_reaches_its_receiver_with_its_senders_id() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        world.say(
            a,
            ClientMessage::Send {
                to: node(2),
                packet: vec![9; 148],
            },
        );
        assert_eq!(
            world.messages(b),
            [ServerMessage::Received {
                from: node(1),
                packet: vec![9; 148]
            }]
        );
        assert_eq!(world.messages(a), []);
        assert_eq!(world.server.stats().packets, 1);
    }

    #[test]
    fn a_packet_for_somebody_absent_is_answered_at_once() {
        let mut world = World::open();
        let a = world.client(1, 1, A);
        world.say(
            a,
            ClientMessage::Send {
                to: node(2),
                packet: vec![9; 148],
            },
        );
        assert_eq!(
            world.messages(a),
            [ServerMessage::PeerGone { peer: node(2) }]
        );
    }

    #[test]
    fn a_client_is_woken_once_until_its_messages_are_taken() {
        let mut world = World::open();
        let conn = world.client(1, 1, A);
        world.woken.clear();
        world.say(conn, ClientMessage::Ping { nonce: 1 });
        world.say(conn, ClientMessage::Ping { nonce: 2 });
        assert_eq!(world.woken, [conn]);
        assert_eq!(world.messages(conn).len(), 2);
        assert_eq!(world.messages(conn), []);
        world.say(conn, ClientMessage::Ping { nonce: 3 });
        assert_eq!(world.woken, [conn, conn]);
    }

    #[test]
    fn a_slow_client_loses_packets_and_costs_a_bounded_queue() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let packet = vec![9; MAX_SENT_PACKET];
        for _ in 0..200 {
            world.say(
                a,
                ClientMessage::Send {
                    to: node(2),
                    packet: packet.clone(),
                },
            );
        }
        let dropped = world.server.stats().dropped(DropReason::SlowClient);
        assert!(dropped > 150, "{dropped}");
        let waiting = world.server.take_messages(b);
        assert!(waiting.len() <= limits::RELAY_QUEUE_BYTES);
        assert_eq!(decode(&waiting).len() as u64, 200 - dropped);
        assert!(world.closed.is_empty());
    }

    #[test]
    fn a_client_that_reads_nothing_at_all_is_closed() {
        let mut world = World::open();
        let conn = world.client(1, 1, A);
        for nonce in 0..100_000 {
            world.now = world.now + Duration::from_millis(10);
            world.say(conn, ClientMessage::Ping { nonce });
        }
        assert_eq!(world.closed, [(conn, CloseReason::Slow)]);
        assert_eq!(world.server.clients(), 0);
        assert!(world.last_words.len() * 11 <= limits::RELAY_QUEUE_BYTES);
    }

    #[test]
    fn clients_that_all_read_nothing_are_closed_one_after_the_other() {
        let mut world = World::open();
        let conns: Vec<_> = (0..20).map(|i| world.client(i, i as u16, A)).collect();
        for &one in &conns {
            for i in 0..20 {
                world.say(one, ClientMessage::OpenChannel { peer: node(i) });
            }
        }
        for nonce in 0..20_000 {
            world.now = world.now + Duration::from_millis(10);
            for &conn in &conns {
                world.say(conn, ClientMessage::Ping { nonce });
            }
        }
        assert_eq!(world.closed.len(), 20);
        assert_eq!(world.server.clients(), 0);
    }

    #[test]
    fn messages_beyond_the_rate_are_dropped() {
        let mut world = World::open();
        let conn = world.client(1, 1, A);
        let (rate, burst) = limits::RELAY_MESSAGES;
        for nonce in 0..burst + 99 {
            world.say(conn, ClientMessage::Ping { nonce });
        }
        // The hello counted, too.
        assert_eq!(world.messages(conn).len() as u64, burst - 1);
        assert_eq!(world.server.stats().dropped(DropReason::MessageLimit), 100);
        world.wait(Duration::from_secs(1));
        for nonce in 0..burst {
            world.say(conn, ClientMessage::Ping { nonce });
        }
        assert_eq!(world.messages(conn).len() as u64, rate);
    }

    #[test]
    fn a_stopping_relay_says_so_to_every_client() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, _) = world.channel(a, b, 2);
        world.server.stop();
        world.drain();
        assert_eq!(
            world.closed,
            [(a, CloseReason::Stopping), (b, CloseReason::Stopping)]
        );
        assert_eq!(
            world.last_words,
            [(a, ServerMessage::Draining), (b, ServerMessage::Draining)]
        );
        assert_eq!(world.server.clients(), 0);
        assert!(matches!(world.data(A, ours, b"p").0, Verdict::Reply(_)));
    }

    #[test]
    fn a_malformed_message_closes_its_connection_alone() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        world.server.handle_malformed(a);
        world.drain();
        assert_eq!(world.closed, [(a, CloseReason::Protocol)]);
        world.say(b, ClientMessage::Ping { nonce: 1 });
        assert_eq!(world.messages(b).len(), 1);
    }
}

mod channels {
    use super::*;

    #[test]
    fn both_sides_get_their_own_number_and_the_others_address() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        world.say(a, ClientMessage::OpenChannel { peer: node(2) });
        let (to_a, to_b) = (world.messages(a), world.messages(b));
        let [
            ServerMessage::Channel {
                peer,
                channel: ours,
                peer_addr,
            },
        ] = to_a[..]
        else {
            panic!("{to_a:?}");
        };
        assert_eq!((peer, peer_addr), (node(2), Some(address(B))));
        let [
            ServerMessage::Channel {
                peer,
                channel: theirs,
                peer_addr,
            },
        ] = to_b[..]
        else {
            panic!("{to_b:?}");
        };
        assert_eq!((peer, peer_addr), (node(1), Some(address(A))));
        assert_ne!(ours, theirs);
    }

    #[test]
    fn opening_again_from_either_side_yields_the_same_channel() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, theirs) = world.channel(a, b, 2);
        world.say(a, ClientMessage::OpenChannel { peer: node(2) });
        assert_eq!(
            world.messages(a),
            [ServerMessage::Channel {
                peer: node(2),
                channel: ours,
                peer_addr: Some(address(B))
            }]
        );
        assert_eq!(world.messages(b), []);
        world.say(b, ClientMessage::OpenChannel { peer: node(1) });
        assert_eq!(
            world.messages(b),
            [ServerMessage::Channel {
                peer: node(1),
                channel: theirs,
                peer_addr: Some(address(A))
            }]
        );
    }

    #[test]
    fn an_absent_peer_or_oneself_is_gone() {
        let mut world = World::open();
        let a = world.client(1, 1, A);
        for peer in [node(1), node(2)] {
            world.say(a, ClientMessage::OpenChannel { peer });
            assert_eq!(world.messages(a), [ServerMessage::PeerGone { peer }]);
        }
    }

    #[test]
    fn data_is_forwarded_with_the_receivers_number() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, theirs) = world.channel(a, b, 2);
        let (verdict, frame) = world.data(A, ours, b"packet");
        assert_eq!(verdict, forward(B));
        assert_eq!(
            parse_frame(&frame),
            Ok(Frame::Data {
                channel: theirs,
                packet: b"packet"
            })
        );
        let (verdict, frame) = world.data(B, theirs, b"answer");
        assert_eq!(verdict, forward(A));
        assert_eq!(
            parse_frame(&frame),
            Ok(Frame::Data {
                channel: ours,
                packet: b"answer"
            })
        );
        assert_eq!(
            (world.server.stats().frames, world.server.stats().bytes),
            (2, 28)
        );
    }

    #[test]
    fn data_leaves_from_the_address_that_its_receiver_talks_to() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, _) = world.channel(a, b, 2);
        let local = Local {
            listener: 3,
            ip: Some("203.0.113.9".parse().unwrap()),
        };
        world.server.set_local(b, local);
        let (verdict, _) = world.data(A, ours, b"packet");
        assert_eq!(
            verdict,
            Verdict::Forward {
                to: address(B),
                local
            }
        );
    }

    #[test]
    fn data_on_an_unknown_channel_is_answered_by_a_rebind() {
        let mut world = World::open();
        world.client(1, 1, A);
        let (verdict, frame) = world.data(A, 77, b"p");
        let reply = replied(verdict);
        assert_eq!(parse_frame(&reply), Ok(Frame::Rebind { channel: 77 }));
        assert!(reply.len() <= frame.len());
        assert_eq!(world.server.stats().dropped(DropReason::UnknownChannel), 1);
    }

    #[test]
    fn data_from_elsewhere_is_answered_by_a_rebind_and_reaches_nobody() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, _) = world.channel(a, b, 2);
        let (verdict, frame) = world.data(C, ours, b"packet");
        assert_eq!(
            parse_frame(&replied(verdict)),
            Ok(Frame::Rebind { channel: ours })
        );
        assert_eq!(
            parse_frame(&frame),
            Ok(Frame::Data {
                channel: ours,
                packet: b"packet"
            })
        );
        // The other side of the channel may not use our number either.
        assert!(matches!(
            world.data(B, ours, b"packet").0,
            Verdict::Reply(_)
        ));
        assert_eq!(world.server.stats().dropped(DropReason::UnprovenAddress), 2);
    }

    #[test]
    fn rebinds_are_bounded() {
        let mut world = World::open();
        let replies = (0..10_000)
            .filter(|_| matches!(world.data(A, 77, b"p").0, Verdict::Reply(_)))
            .count();
        assert_eq!(replies as u64, limits::RELAY_REBINDS.1);
        assert_eq!(
            world.server.stats().dropped(DropReason::UnknownChannel),
            10_000
        );
    }

    #[test]
    fn a_leaving_client_is_announced_and_its_channels_are_closed() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let c = world.client(3, 3, C);
        let (ours, theirs) = world.channel(a, b, 2);
        world.server.handle_closed(a);
        world.drain();
        assert_eq!(
            world.messages(b),
            [ServerMessage::PeerGone { peer: node(1) }]
        );
        assert_eq!(world.messages(c), []);
        assert!(matches!(world.data(A, ours, b"p").0, Verdict::Reply(_)));
        assert!(matches!(world.data(B, theirs, b"p").0, Verdict::Reply(_)));
        world.say(b, ClientMessage::OpenChannel { peer: node(1) });
        assert_eq!(
            world.messages(b),
            [ServerMessage::PeerGone { peer: node(1) }]
        );
    }

    #[test]
    fn a_closed_channel_is_closed_for_both_and_can_be_opened_again() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, theirs) = world.channel(a, b, 2);
        // Nobody closes what is not his.
        world.say(b, ClientMessage::CloseChannel { channel: ours });
        world.say(a, ClientMessage::CloseChannel { channel: 12345 });
        assert!(matches!(
            world.data(A, ours, b"p").0,
            Verdict::Forward { .. }
        ));

        world.say(a, ClientMessage::CloseChannel { channel: ours });
        assert_eq!(
            world.messages(b),
            [ServerMessage::PeerGone { peer: node(1) }]
        );
        assert_eq!(world.messages(a), []);
        assert!(matches!(world.data(A, ours, b"p").0, Verdict::Reply(_)));
        assert!(matches!(world.data(B, theirs, b"p").0, Verdict::Reply(_)));
        let again = world.channel(b, a, 1);
        assert!(again.0 != theirs && again.1 != ours);
    }

    #[test]
    fn the_channels_of_a_client_are_bounded() {
        let mut world = World::open();
        let a = world.client(0, 0, A);
        let most = limits::RELAY_CHANNELS_PER_CLIENT as u16;
        for i in 1..=most + 1 {
            let conn = world.client(i.into(), i, B);
            world.now = world.now + Duration::from_millis(10);
            world.say(a, ClientMessage::OpenChannel { peer: node(i) });
            let answer = world.messages(a);
            if i <= most {
                assert!(
                    matches!(answer[..], [ServerMessage::Channel { .. }]),
                    "{i} {answer:?}"
                );
            } else {
                assert_eq!(answer, [ServerMessage::PeerGone { peer: node(i) }]);
                assert_eq!(world.messages(conn), []);
            }
        }
        assert_eq!(world.server.stats().dropped(DropReason::ChannelLimit), 1);
        world.server.handle_closed(a);
        assert_eq!(world.server.clients(), usize::from(most) + 1);
    }

    #[test]
    fn a_client_beyond_its_rate_is_cut_and_others_are_not() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, theirs) = world.channel(a, b, 2);
        let payload = [0; 1392];
        let mut bytes = 0;
        for _ in 0..20_000 {
            world.now = world.now + Duration::from_micros(50);
            if matches!(world.data(A, ours, &payload).0, Verdict::Forward { .. }) {
                bytes += 1400;
            }
        }
        let allowed = limits::RELAY_RATE + limits::RELAY_RATE / 10;
        assert!((allowed - 3000..allowed + 3000).contains(&bytes), "{bytes}");
        assert!(matches!(
            world.data(B, theirs, &payload).0,
            Verdict::Forward { .. }
        ));
        assert!(world.server.stats().dropped(DropReason::RateLimit) > 0);
    }

    #[test]
    fn small_frames_are_charged_for_their_number() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, _) = world.channel(a, b, 2);
        let burst = limits::RELAY_RATE / 10;
        let sent = (0..100_000)
            .filter(|_| matches!(world.data(A, ours, &[1; 32]).0, Verdict::Forward { .. }))
            .count();
        assert_eq!(sent as u64, burst / limits::RELAY_MIN_CHARGE);
    }
}

mod addresses {
    use super::*;

    #[test]
    fn channels_follow_a_client_once_it_has_proved_its_new_address() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        let (ours, theirs) = world.channel(a, b, 2);

        world.server.handle_address(world.now, a, address(C));
        world.drain();
        let [(to, nonce)] = world.challenges[..] else {
            panic!("{:?}", world.challenges);
        };
        assert_eq!(to, address(C));
        // Until then nothing changes.
        assert_eq!(world.data(B, theirs, b"p").0, forward(A));
        assert!(matches!(world.data(C, ours, b"p").0, Verdict::Reply(_)));

        world.say(a, ClientMessage::ProveAddress { nonce });
        assert_eq!(
            world.messages(a),
            [ServerMessage::Observed { addr: address(C) }]
        );
        assert_eq!(world.data(B, theirs, b"p").0, forward(C));
        assert_eq!(world.data(C, ours, b"p").0, forward(B));
        assert!(matches!(world.data(A, ours, b"p").0, Verdict::Reply(_)));
        assert_eq!(world.server.poll_timeout(), None);
    }

    #[test]
    fn a_wrong_or_foreign_nonce_proves_nothing() {
        let mut world = World::open();
        let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
        world.server.handle_address(world.now, a, address(C));
        world.drain();
        let nonce = world.challenges[0].1;
        world.say(a, ClientMessage::ProveAddress { nonce: nonce ^ 1 });
        world.say(b, ClientMessage::ProveAddress { nonce });
        assert_eq!((world.messages(a), world.messages(b)), (vec![], vec![]));
        world.say(a, ClientMessage::ProveAddress { nonce });
        assert_eq!(world.messages(a).len(), 1);
        world.say(a, ClientMessage::ProveAddress { nonce });
        assert_eq!(world.messages(a), [], "a nonce counts once");
    }

    #[test]
    fn a_known_address_is_not_challenged() {
        let mut world = World::open();
        let a = world.client(1, 1, A);
        for _ in 0..10 {
            world.server.handle_address(world.now, a, address(A));
        }
        world.drain();
        assert!(world.challenges.is_empty());
    }

    #[test]
    fn an_unanswered_challenge_is_repeated_a_few_times_and_again_when_the_client_speaks_up() {
        let mut world = World::open();
        let a = world.client(1, 1, A);
        for _ in 0..50 {
            world.server.handle_address(world.now, a, address(C));
            world.drain();
        }
        assert_eq!(world.challenges.len(), 1);
        world.wait(Duration::from_secs(60));
        assert_eq!(world.challenges.len(), limits::RELAY_CHALLENGE_WAITS.len());
        assert!(
            world
                .challenges
                .iter()
                .all(|challenge| *challenge == world.challenges[0])
        );
        world.server.handle_address(world.now, a, address(C));
        world.drain();
        assert_eq!(
            world.challenges.len(),
            limits::RELAY_CHALLENGE_WAITS.len() + 1
        );
        assert_ne!(world.challenges.last(), world.challenges.first());
    }

    #[test]
    fn a_client_that_is_back_at_its_old_address_is_not_asked_any_more() {
        let mut world = World::open();
        let a = world.client(1, 1, A);
        world.server.handle_address(world.now, a, address(C));
        world.server.handle_address(world.now, a, address(A));
        world.drain();
        let nonce = world.challenges[0].1;
        world.wait(Duration::from_secs(10));
        assert_eq!(world.challenges.len(), 1);
        world.say(a, ClientMessage::ProveAddress { nonce });
        assert_eq!(world.messages(a), []);
    }

    #[test]
    fn challenges_of_different_relays_differ() {
        let nonce = |seed| {
            let settings = Settings {
                access: Access::Open,
                alternatives: Alternatives::default(),
                rate_limit: 1,
            };
            let mut world = World {
                server: Server::new(settings, seed),
                ..World::open()
            };
            let a = world.client(1, 1, A);
            world.server.handle_address(world.now, a, address(C));
            world.drain();
            world.challenges[0].1
        };
        assert_ne!(nonce([1; 32]), nonce([2; 32]));
        assert_eq!(nonce([1; 32]), nonce([1; 32]));
    }
}

mod knocks;

mod datagrams {
    use super::*;

    #[test]
    fn stun_is_answered_from_the_port_that_was_asked() {
        let mut world = World::open();
        for socket in [Socket::Main, Socket::Alt] {
            for from in [A, B] {
                let Verdict::Reply(reply) = world.stun(socket, from, Change::Nothing) else {
                    panic!();
                };
                assert_eq!(reply.socket, socket);
                assert_eq!(
                    stun::parse(reply.payload()),
                    Ok(stun::Message::Response {
                        txn: [5; 12],
                        mapped: address(from)
                    })
                );
                assert!(reply.payload().len() <= stun::MAX_RESPONSE);
            }
        }
        assert_eq!(world.server.stats().stun, 4);
    }

    #[test]
    fn an_answer_from_the_other_port_is_for_proved_ip_addresses_of_clients_only() {
        let mut world = World::open();
        let refused = Verdict::Dropped(DropReason::UnprovenStun);
        assert_eq!(world.stun(Socket::Main, A, Change::Port), refused);
        world
            .server
            .handle_connected(START, ConnId(9), node(9), address(A));
        assert_eq!(world.stun(Socket::Main, A, Change::Port), refused);
        assert_eq!(world.stun(Socket::Main, A, Change::Address), refused);
        let a = world.client(1, 1, A);
        for (asked, change, answered) in [
            (Socket::Main, Change::Port, Socket::Alt),
            (Socket::Alt, Change::Port, Socket::Main),
            (Socket::Main, Change::Address, Socket::Main),
            (Socket::Alt, Change::Address, Socket::Main),
        ] {
            let Verdict::Reply(reply) = world.stun(asked, A, change) else {
                panic!();
            };
            assert_eq!(reply.socket, answered);
            assert_eq!(reply.other_address, change == Change::Address);
        }
        for port in [1, 999, 1001, 65_535] {
            let from = format!("192.0.2.1:{port}");
            let Verdict::Reply(reply) = world.stun(Socket::Main, &from, Change::Port) else {
                panic!("{from}");
            };
            assert_eq!(reply.socket, Socket::Alt);
        }
        for stranger in ["192.0.2.0:1000", "192.0.2.2:1000", B] {
            assert_eq!(world.stun(Socket::Main, stranger, Change::Port), refused);
        }
        world.server.handle_closed(a);
        assert_eq!(world.stun(Socket::Main, A, Change::Port), refused);
    }

    #[test]
    fn answers_from_the_other_port_are_no_larger_than_requests_and_limited_for_each_client() {
        let mut world = World::open();
        world.client(1, 1, A);
        world.client(2, 2, "192.0.2.9:1000");
        let asked = stun::binding_request(&[5; 12], Change::Port).len();
        let mut granted = 0;
        for port in 1..200 {
            match world.stun(Socket::Main, &format!("192.0.2.1:{port}"), Change::Port) {
                Verdict::Reply(reply) => {
                    assert!(reply.payload().len() <= asked);
                    granted += 1;
                }
                verdict => assert_eq!(verdict, Verdict::Dropped(DropReason::StunLimit)),
            }
        }
        assert_eq!(granted, limits::RELAY_KNOCKS.1);
        let other = world.stun(Socket::Main, "192.0.2.9:7", Change::Port);
        assert!(matches!(other, Verdict::Reply(_)), "{other:?}");
        world.now = world.now + Duration::from_secs(1);
        let later = (1..200).filter(|port| {
            let verdict = world.stun(Socket::Main, &format!("192.0.2.1:{port}"), Change::Port);
            matches!(verdict, Verdict::Reply(_))
        });
        assert_eq!(later.count() as u64, limits::RELAY_KNOCKS.0);
    }

    #[test]
    fn two_clients_behind_one_address_do_not_take_it_from_each_other() {
        let mut world = World::open();
        let a = world.client(1, 1, A);
        world.client(2, 2, A);
        world.server.handle_closed(a);
        assert!(matches!(
            world.stun(Socket::Main, A, Change::Port),
            Verdict::Reply(_)
        ));
    }

    #[test]
    fn a_request_smaller_than_its_answer_is_dropped() {
        let mut world = World::open();
        let mut request = stun::binding_request(&[5; 12], Change::Nothing);
        request.truncate(20);
        request[2..4].copy_from_slice(&[0, 0]);
        assert!(matches!(
            stun::parse(&request),
            Ok(stun::Message::Request { len: 20, .. })
        ));
        assert_eq!(
            world
                .server
                .handle_udp(START, Socket::Main, address(A), &mut request),
            Verdict::Dropped(DropReason::SmallStun)
        );
    }

    #[test]
    fn each_protocol_goes_its_way_and_the_rest_is_counted() {
        let mut world = World::open();
        let mut verdict = |socket, mut bytes: Vec<u8>| {
            world
                .server
                .handle_udp(START, socket, address(A), &mut bytes)
        };
        let mut wireguard = vec![0; 148];
        wireguard[0] = 1;
        let response = stun::binding_response(&[1; 12], address(A));
        assert_eq!(verdict(Socket::Main, vec![0xc0; 1200]), Verdict::Quic);
        assert_eq!(
            verdict(Socket::Alt, vec![0xc0; 1200]),
            Verdict::Dropped(DropReason::WrongPort)
        );
        for junk in [wireguard, vec![], vec![0x3f; 30]] {
            assert_eq!(
                verdict(Socket::Main, junk),
                Verdict::Dropped(DropReason::UnknownProtocol)
            );
        }
        for frame in [
            vec![0x20, 0, 0, 0, 1, 2, 3, 4],
            vec![0x21, 0, 0, 0, 1, 2, 3, 4],
        ] {
            assert_eq!(
                verdict(Socket::Main, frame),
                Verdict::Dropped(DropReason::MalformedFrame)
            );
        }
        assert_eq!(
            verdict(Socket::Main, response),
            Verdict::Dropped(DropReason::MalformedStun)
        );
    }

    proptest! {
        #[test]
        fn no_answer_is_larger_than_its_question(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut world = World::open();
            let (a, b) = (world.client(1, 1, A), world.client(2, 2, B));
            world.channel(a, b, 2);
            let len = bytes.len();
            for socket in [Socket::Main, Socket::Alt] {
                if let Verdict::Reply(reply) = world.server.handle_udp(START, socket, address(A), &mut bytes) {
                    prop_assert!(reply.payload().len() <= len);
                }
            }
        }
    }
}

/// Random clients doing random things: the indices must agree afterwards, and everything must go away in the end.
mod chaos {
    use super::*;

    fn check(world: &World) {
        let server = &world.server;
        assert_eq!(server.by_conn.len(), server.clients.len());
        assert_eq!(server.by_address.len(), server.by_node.len());
        assert_eq!(
            server.queued,
            server
                .clients
                .iter()
                .map(|(_, client)| client.outbox.len())
                .sum::<usize>()
        );
        for (slot, client) in &server.clients {
            assert_eq!(server.by_conn[&client.conn], slot);
            assert_eq!(
                client.admitted,
                server.by_node.get(&client.node) == Some(&slot)
            );
            for (&target, &end) in &client.channels {
                let end = server.channels.get(end).unwrap();
                let twin = server.channels.get(end.twin).unwrap();
                assert_eq!((end.owner, twin.owner), (slot, target));
                assert!(server.clients[target].channels.contains_key(&slot));
            }
            assert_eq!(
                client.deadline.is_some(),
                server.timers.iter().any(|t| t.1 == slot)
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_index_agrees(steps in proptest::collection::vec((0_u8..9, 0_u16..8, 0_u16..8, 0_u64..900), 1..200)) {
            let mut world = World::open();
            let mut conns = [None; 8];
            let mut next = 0;
            for (step, who, peer, pause) in steps {
                world.wait(Duration::from_millis(pause));
                let remote = format!("192.0.2.{who}:{peer}");
                if let (false, Some(conn)) = (step < 2, conns[usize::from(who)]) {
                    match step {
                        2 => world.server.handle_closed(conn),
                        3 | 4 => world.say(conn, ClientMessage::OpenChannel { peer: node(peer) }),
                        5 => world.server.handle_address(world.now, conn, address(&remote)),
                        6 => {
                            let nonce = world.challenges.last().map_or(0, |c| c.1);
                            world.say(conn, ClientMessage::ProveAddress { nonce });
                        }
                        7 => world.say(conn, ClientMessage::Send { to: node(peer), packet: vec![1; 1500] }),
                        _ => {
                            let channel = world.messages(conn).iter().find_map(|m| match m {
                                ServerMessage::Channel { channel, .. } => Some(*channel),
                                _ => None,
                            });
                            if let Some(channel) = channel {
                                world.say(conn, ClientMessage::CloseChannel { channel });
                            }
                        }
                    }
                } else {
                    next += 1;
                    if step == 0 {
                        world.server.handle_connected(world.now, ConnId(next), node(who), address(&remote));
                    } else {
                        world.connect(next, who, &remote);
                    }
                    conns[usize::from(who)] = Some(ConnId(next));
                }
                world.drain();
                check(&world);
            }
            for conn in 1..=next {
                world.server.handle_closed(ConnId(conn));
            }
            check(&world);
            prop_assert!(world.server.clients.is_empty() && world.server.timers.is_empty());
            prop_assert!(world.server.by_node.is_empty() && world.server.queued == 0);
        }
    }
}
