//! The relay with real sockets, QUIC and TLS, on loopback.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use common::{Client, Host, TestRelay, config, node, within};
use mesh_core::limits;
use mesh_core::relay::server::{Access, DropReason};
use mesh_core::wire::relay::{
    Alternatives, ClientMessage, Frame, Refusal, ServerMessage, parse_frame,
};
use mesh_core::wire::stun::{self, Change};
use mesh_relay::client::{self, ClientError};
use mesh_relay::config::Config;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_welcome_tells_the_address_of_the_mesh_socket_and_the_second_port() {
    let relay = TestRelay::open();
    let host = Host::new(1, Ipv4Addr::LOCALHOST).await;
    let address = host.address();
    let mut client = host.connect(relay.id, relay.address).await.unwrap();
    assert_eq!(
        client.greet().await,
        ServerMessage::Welcome {
            version: 1,
            observed: address,
            alternatives: Alternatives {
                port: Some(relay.alt_port),
                address: None
            }
        }
    );
    assert_eq!(relay.observer.clients(), 1);
    client.ping(7).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_cross_from_control_stream_to_control_stream() {
    let relay = TestRelay::open();
    let (a, mut b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
    for i in 0..50 {
        a.say(ClientMessage::Send {
            to: node(2),
            packet: vec![i; 148],
        })
        .await;
        assert_eq!(
            b.hear().await,
            ServerMessage::Received {
                from: node(1),
                packet: vec![i; 148]
            }
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_crosses_a_channel_both_ways() {
    let relay = TestRelay::open();
    let (mut a, mut b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
    let (ours, theirs) = a.channel_to(&mut b).await;
    // In several sizes and in bursts, as the relay groups them.
    for burst in 1..20_usize {
        for i in 0..burst {
            a.send(ours, &vec![i as u8; 1200 + burst % 3]).await;
        }
        for i in 0..burst {
            let frame = b.host.receive().await;
            let packet = vec![i as u8; 1200 + burst % 3];
            assert_eq!(
                parse_frame(&frame),
                Ok(Frame::Data {
                    channel: theirs,
                    packet: &packet
                })
            );
        }
        b.send(theirs, b"answer").await;
        let frame = a.host.receive().await;
        assert_eq!(
            parse_frame(&frame),
            Ok(Frame::Data {
                channel: ours,
                packet: b"answer"
            })
        );
    }
    assert_eq!(relay.stats().frames, 190 + 19);
    assert_eq!(relay.stats().drops().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ipv4_client_and_an_ipv6_client_reach_each_other() {
    let mut settings = config(Access::Open);
    settings.listen = vec![(Ipv6Addr::UNSPECIFIED, 0).into()];
    let relay = TestRelay::start(&settings);
    let mut clients = Vec::new();
    for (seed, ip) in [
        (1, IpAddr::from(Ipv4Addr::LOCALHOST)),
        (2, Ipv6Addr::LOCALHOST.into()),
    ] {
        let host = Host::new(seed, ip).await;
        let address = host.address();
        let to = SocketAddr::new(ip, relay.address.port());
        let mut client = host.connect(relay.id, to).await.unwrap();
        let ServerMessage::Welcome { observed, .. } = client.greet().await else {
            unreachable!();
        };
        assert_eq!(observed, address, "in its own family's form");
        clients.push(client);
    }
    let (mut b, mut a) = (clients.pop().unwrap(), clients.pop().unwrap());
    let (ours, theirs) = a.channel_to(&mut b).await;
    a.send(ours, b"to ipv6").await;
    let frame = b.host.receive().await;
    assert_eq!(
        parse_frame(&frame),
        Ok(Frame::Data {
            channel: theirs,
            packet: b"to ipv6"
        })
    );
    b.send(theirs, b"to ipv4").await;
    let frame = a.host.receive().await;
    assert_eq!(
        parse_frame(&frame),
        Ok(Frame::Data {
            channel: ours,
            packet: b"to ipv4"
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_client_gets_comes_from_the_address_that_it_talks_to() {
    for wildcard in [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Ipv6Addr::UNSPECIFIED.into(),
    ] {
        let mut settings = config(Access::Open);
        settings.listen = vec![(wildcard, 0).into()];
        let relay = TestRelay::start(&settings);
        // A host with several addresses; its kernel would choose 127.0.0.1.
        let mut clients = Vec::new();
        for (seed, last) in [(1, 3), (2, 4)] {
            let to = SocketAddr::from(([127, 0, 0, last], relay.address.port()));
            let host = Host::new(seed, Ipv4Addr::LOCALHOST).await;
            let mut client = host.connect(relay.id, to).await.unwrap();
            client.greet().await;
            clients.push((client, to));
        }
        let ((mut b, b_relay), (mut a, a_relay)) = (clients.pop().unwrap(), clients.pop().unwrap());
        let (ours, _) = a.channel_to(&mut b).await;
        a.send(ours, b"data").await;
        assert_eq!(b.host.receive_from().await.0, b_relay);
        a.send(7, b"unknown channel").await;
        assert_eq!(a.host.receive_from().await.0, a_relay);
        a.host
            .send(a_relay, &stun::binding_request(&[1; 12], Change::Nothing))
            .await;
        assert_eq!(a.host.receive_from().await.0, a_relay);
        a.host.move_away().await;
        a.say(ClientMessage::Ping { nonce: 1 }).await;
        let (from, challenge) = a.host.receive_from().await;
        assert!(matches!(
            parse_frame(&challenge),
            Ok(Frame::Challenge { .. })
        ));
        assert_eq!(from, a_relay);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_mapping_moved_learns_it_from_a_rebind_and_recovers() {
    let relay = TestRelay::open();
    let (mut a, mut b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
    let (ours, theirs) = a.channel_to(&mut b).await;
    a.host.move_away().await;

    a.send(ours, b"lost").await;
    assert_eq!(
        parse_frame(&a.host.receive().await),
        Ok(Frame::Rebind { channel: ours })
    );
    assert_eq!(relay.stats().dropped(DropReason::UnprovenAddress), 1);

    a.say(ClientMessage::Ping { nonce: 5 }).await;
    let challenge = a.host.receive().await;
    let Ok(Frame::Challenge { nonce }) = parse_frame(&challenge) else {
        panic!("{challenge:?}");
    };
    assert_eq!(a.hear().await, ServerMessage::Pong { nonce: 5 });
    a.say(ClientMessage::ProveAddress { nonce }).await;
    assert_eq!(
        a.hear().await,
        ServerMessage::Observed {
            addr: a.host.address()
        }
    );

    a.send(ours, b"found").await;
    let frame = b.host.receive().await;
    assert_eq!(
        parse_frame(&frame),
        Ok(Frame::Data {
            channel: theirs,
            packet: b"found"
        })
    );
    b.send(theirs, b"back").await;
    let frame = a.host.receive().await;
    assert_eq!(
        parse_frame(&frame),
        Ok(Frame::Data {
            channel: ours,
            packet: b"back"
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_nothing_after_moving_is_found_by_its_keepalive() {
    let relay = TestRelay::open();
    let mut a = Client::new(&relay, 1).await;
    a.host.move_away().await;
    // Any QUIC packet will do; this one is no message.
    a.say(ClientMessage::CloseChannel { channel: 1 }).await;
    let challenge = a.host.receive().await;
    assert!(matches!(
        parse_frame(&challenge),
        Ok(Frame::Challenge { .. })
    ));
    // Lost, say: it comes again.
    assert_eq!(a.host.receive().await, challenge);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_of_two_connections_with_one_key_is_replaced() {
    let relay = TestRelay::open();
    let older = Client::new(&relay, 1).await;
    let mut newer = Client::new(&relay, 1).await;
    let (last, reason) = older.closed().await;
    assert_eq!(last, [ServerMessage::Replaced]);
    assert_eq!(reason, "another connection with the same key took over");
    newer.ping(1).await;
    assert_eq!(relay.observer.clients(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_and_told_what_to_do() {
    let relay = TestRelay::start(&config(Access::Nodes([node(1)].into())));
    Client::new(&relay, 1).await;
    let host = Host::new(2, Ipv4Addr::LOCALHOST).await;
    let stranger = host.connect(relay.id, relay.address).await.unwrap();
    stranger.say(ClientMessage::Hello { version: 1 }).await;
    let (last, reason) = stranger.closed().await;
    assert_eq!(
        last,
        [ServerMessage::Refused {
            reason: Refusal::NotAdmitted
        }]
    );
    assert!(reason.contains("add its id to `nodes`"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_trusts_only_the_relay_that_its_configuration_names() {
    let relay = TestRelay::open();
    let host = Host::new(1, Ipv4Addr::LOCALHOST).await;
    match host.connect(node(99), relay.address).await {
        Err(ClientError::WrongRelay { expected, found }) => {
            assert_eq!((expected, found), (node(99), relay.id));
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("connected to the wrong relay"),
    }
    assert_eq!(relay.observer.clients(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_is_gone_at_once() {
    let relay = TestRelay::open();
    let (mut a, mut b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
    a.channel_to(&mut b).await;
    a.hang_up().await;
    assert_eq!(b.hear().await, ServerMessage::PeerGone { peer: node(1) });
    assert_eq!(relay.observer.clients(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stun_is_answered_on_both_ports_and_across_them_for_clients_only() {
    let relay = TestRelay::open();
    let main = relay.address;
    let alt = SocketAddr::new(main.ip(), relay.alt_port);
    let mut host = Host::new(1, Ipv4Addr::LOCALHOST).await;
    let mapped = host.address();
    for (i, to) in [main, alt].into_iter().enumerate() {
        let txn = [i as u8; 12];
        host.send(to, &stun::binding_request(&txn, Change::Port))
            .await;
        host.send(to, &stun::binding_request(&txn, Change::Nothing))
            .await;
        let answer = host.receive().await;
        assert_eq!(
            stun::parse(&answer),
            Ok(stun::Message::Response { txn, mapped })
        );
    }
    assert_eq!(relay.stats().dropped(DropReason::UnprovenStun), 2);
    let mut client = host.connect(relay.id, main).await.unwrap();
    client.greet().await;
    for (i, to) in [main, alt].into_iter().enumerate() {
        let txn = [10 + i as u8; 12];
        client
            .host
            .send(to, &stun::binding_request(&txn, Change::Port))
            .await;
        let answer = client.host.receive().await;
        assert_eq!(
            stun::parse(&answer),
            Ok(stun::Message::Response { txn, mapped })
        );
    }
    assert_eq!(relay.stats().dropped(DropReason::UnprovenStun), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stun_is_answered_at_the_second_address_and_from_there_for_clients_only() {
    // Whether the second address has a listener of its own or shares one of all addresses.
    for listen in [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED] {
        let second = Ipv4Addr::new(127, 0, 0, 9);
        let relay = TestRelay::start(&Config {
            listen: vec![(listen, 0).into()],
            alt_address: Some(second),
            ..config(Access::Open)
        });
        let main = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), relay.address.port());
        let elsewhere = SocketAddr::new(second.into(), main.port());
        let host = Host::new(1, Ipv4Addr::LOCALHOST).await;
        let mapped = host.address();
        let mut client = host.connect(relay.id, main).await.unwrap();
        let ServerMessage::Welcome { alternatives, .. } = client.greet().await else {
            panic!("no welcome");
        };
        assert_eq!(alternatives.address.map(SocketAddr::from), Some(elsewhere));
        for (i, (to, change, from)) in [
            (elsewhere, Change::Nothing, elsewhere),
            (main, Change::Address, elsewhere),
            (main, Change::Nothing, main),
        ]
        .into_iter()
        .enumerate()
        {
            let txn = [i as u8; 12];
            client
                .host
                .send(to, &stun::binding_request(&txn, change))
                .await;
            let (source, answer) = client.host.receive_from().await;
            assert_eq!(source, from);
            assert_eq!(
                stun::parse(&answer),
                Ok(stun::Message::Response { txn, mapped })
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_counted_and_hurts_nobody() {
    let relay = TestRelay::open();
    let (mut a, mut b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
    let (ours, theirs) = a.channel_to(&mut b).await;
    let host = Host::new(3, Ipv4Addr::LOCALHOST).await;
    let alt = SocketAddr::new(relay.address.ip(), relay.alt_port);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for i in 0..10_000 {
        let mut noise: Vec<u8> = (0..163).flat_map(|_| random().to_le_bytes()).collect();
        noise.truncate(random() as usize % 1300);
        // Half of it begins like something that the relay knows.
        if let (true, Some(first)) = (i % 2 == 0, noise.first_mut()) {
            *first = [0x00, 0x01, 0x20, 0x21, 0x22, 0x40, 0xc0, 0xff][i / 2 % 8];
        }
        let to = if i % 10 == 0 { alt } else { relay.address };
        host.send(to, &noise).await;
        if i % 64 == 0 {
            // Keeps the noise from overflowing the kernel's queue, and shows that the relay goes on working.
            a.ping(i as u64).await;
        }
    }
    a.ping(0).await;
    a.send(ours, b"still here").await;
    let frame = b.host.receive().await;
    assert_eq!(
        parse_frame(&frame),
        Ok(Frame::Data {
            channel: theirs,
            packet: b"still here"
        })
    );
    let dropped: u64 = relay.stats().drops().map(|(_, count)| count).sum();
    assert!(dropped > 1_000, "{}", relay.stats());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_relay_tells_its_clients_and_is_quick() {
    let mut relay = TestRelay::open();
    let (a, b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
    relay.begin_to_stop();
    for client in [a, b] {
        let (last, reason) = client.closed().await;
        assert_eq!(last, [ServerMessage::Draining]);
        assert_eq!(reason, "the relay stops");
    }
    let started = Instant::now();
    relay.stop().await;
    assert!(started.elapsed().as_secs() < 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_on_the_control_stream_ends_that_connection_only() {
    let relay = TestRelay::open();
    let mut good = Client::new(&relay, 1).await;
    let bad = Client::new(&relay, 2).await;
    // A second hello is out of turn.
    bad.say(ClientMessage::Hello { version: 1 }).await;
    let (_, reason) = bad.closed().await;
    assert_eq!(reason, "the client sent a malformed message");
    good.ping(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_as_a_datagram_counts_as_if_it_came_by_the_stream() {
    let relay = TestRelay::open();
    let mut receiver = Client::new(&relay, 1).await;
    let host = Host::new(2, Ipv4Addr::LOCALHOST).await;
    let connect = client::connect(&host.endpoint, &host.identity, &relay.id, relay.address);
    let (mut sender, mut heard) = within(connect).await.unwrap().split();
    let hello = ClientMessage::Hello { version: 1 };
    sender.send(&hello).await.unwrap();
    within(heard.receive()).await.unwrap();
    let (to, packet) = (node(1), vec![7; 900]);
    sender.hasten(&ClientMessage::Send {
        to,
        packet: packet.clone(),
    });
    let from = node(2);
    assert_eq!(
        receiver.hear().await,
        ServerMessage::Received { from, packet }
    );
    sender.hasten(&ClientMessage::Ping { nonce: 3 });
    assert_eq!(
        within(heard.receive()).await.unwrap(),
        ServerMessage::Pong { nonce: 3 }
    );
    // What has to come in turn is no datagram.
    sender.hasten(&ClientMessage::OpenChannel { peer: to });
    let closed = within(heard.receive()).await.unwrap_err();
    assert_eq!(closed.reason, "the client sent a malformed message");
    receiver.ping(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_too_much_is_slowed_down_and_loses_nothing() {
    let relay = TestRelay::open();
    let mut client = Client::new(&relay, 1).await;
    let (rate, burst) = limits::RELAY_MESSAGES;
    let more = rate / 4;
    let started = Instant::now();
    for nonce in 0..burst + more {
        client.ping(nonce).await;
    }
    let least = Duration::from_millis(1_000 * more / rate - 50);
    assert!(started.elapsed() >= least, "{:?}", started.elapsed());
    assert_eq!(relay.stats().dropped(DropReason::MessageLimit), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_answers_at_a_port_without_a_relay() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let host = Host::new(1, Ipv4Addr::LOCALHOST).await;
    let result = within(host.connect(node(9), silent.local_addr().unwrap())).await;
    assert!(matches!(result, Err(ClientError::NoAnswer)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_to_two_clients_by_turns_reach_each_in_order() {
    let relay = TestRelay::open();
    let mut a = Client::new(&relay, 1).await;
    let mut others = [Client::new(&relay, 2).await, Client::new(&relay, 3).await];
    let mut channels = Vec::new();
    for other in &mut others {
        channels.push(a.channel_to(other).await);
    }
    for number in 0..50_u8 {
        for (ours, _) in &channels {
            a.send(*ours, &[number; 40]).await;
        }
    }
    for (other, (_, theirs)) in others.iter_mut().zip(&channels) {
        for number in 0..50_u8 {
            let frame = other.host.receive().await;
            let expected = Frame::Data {
                channel: *theirs,
                packet: &[number; 40],
            };
            assert_eq!(parse_frame(&frame).unwrap(), expected);
        }
    }
    relay.stop().await;
}
