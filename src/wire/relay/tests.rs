use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::identity::Identity;

fn node(seed: u8) -> NodeId {
    Identity::from_seed(Zeroizing::new([seed; 32])).id()
}

fn client_messages() -> Vec<ClientMessage> {
    vec![
        ClientMessage::Hello {
            version: PROTOCOL_VERSION,
        },
        ClientMessage::Ping {
            nonce: u64::MAX - 2,
        },
        ClientMessage::Send {
            to: node(1),
            packet: vec![7; 148],
        },
        ClientMessage::Send {
            to: node(1),
            packet: vec![],
        },
        ClientMessage::Send {
            to: node(1),
            packet: vec![7; MAX_SENT_PACKET],
        },
        ClientMessage::OpenChannel { peer: node(2) },
        ClientMessage::CloseChannel {
            channel: 0xdead_beef,
        },
        ClientMessage::ProveAddress { nonce: 3 },
        ClientMessage::Knock {
            port: 41_820,
            txn: [7; 12],
        },
    ]
}

fn server_messages() -> Vec<ServerMessage> {
    let v4: SocketAddr = "192.0.2.7:41820".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::7]:443".parse().unwrap();
    vec![
        ServerMessage::Welcome {
            version: 1,
            observed: v4,
            alternatives: Alternatives::default(),
        },
        ServerMessage::Welcome {
            version: 1,
            observed: v6,
            alternatives: Alternatives {
                port: Some(3478),
                address: Some("192.0.2.7:443".parse().unwrap()),
            },
        },
        ServerMessage::Refused {
            reason: Refusal::NotAdmitted,
        },
        ServerMessage::Refused {
            reason: Refusal::Version,
        },
        ServerMessage::Refused {
            reason: Refusal::Full,
        },
        ServerMessage::Pong { nonce: 9 },
        ServerMessage::Received {
            from: node(1),
            packet: vec![7; MAX_SENT_PACKET],
        },
        ServerMessage::Channel {
            peer: node(3),
            channel: 1,
            peer_addr: None,
        },
        ServerMessage::Channel {
            peer: node(3),
            channel: 1,
            peer_addr: Some(v6),
        },
        ServerMessage::PeerGone { peer: node(3) },
        ServerMessage::Observed { addr: v4 },
        ServerMessage::Draining,
        ServerMessage::Replaced,
    ]
}

fn encoded_client(message: &ClientMessage) -> Vec<u8> {
    let mut buffer = Vec::new();
    message.encode(&mut buffer);
    buffer
}

fn encoded_server(message: &ServerMessage) -> Vec<u8> {
    let mut buffer = Vec::new();
    message.encode(&mut buffer);
    buffer
}

#[test]
fn messages_come_back_as_sent_and_within_bounds() {
    for message in client_messages() {
        let bytes = encoded_client(&message);
        assert!(bytes.len() <= 2 + MAX_RELAY_MESSAGE);
        assert_eq!(
            usize::from(u16::from_be_bytes([bytes[0], bytes[1]])),
            bytes.len() - 2
        );
        assert_eq!(ClientMessage::decode(&bytes[2..]), Ok(message));
    }
    for message in server_messages() {
        let bytes = encoded_server(&message);
        assert!(bytes.len() <= 2 + MAX_RELAY_MESSAGE);
        assert_eq!(ServerMessage::decode(&bytes[2..]), Ok(message));
    }
}

#[test]
fn the_type_bytes_are_stable() {
    assert_eq!(
        encoded_client(&ClientMessage::Hello { version: 1 }),
        [0, 2, 1, 1]
    );
    assert_eq!(
        encoded_client(&ClientMessage::Ping { nonce: 0x0102 }),
        [0, 9, 2, 0, 0, 0, 0, 0, 0, 1, 2]
    );
    assert_eq!(
        encoded_server(&ServerMessage::Welcome {
            version: 1,
            observed: "192.0.2.1:258".parse().unwrap(),
            alternatives: Alternatives {
                port: Some(3478),
                address: Some("192.0.2.7:443".parse().unwrap()),
            },
        }),
        [
            0, 19, 0x81, 1, 4, 192, 0, 2, 1, 1, 2, 1, 0x0d, 0x96, 1, 192, 0, 2, 7, 1, 0xbb
        ]
    );
    assert_eq!(encoded_server(&ServerMessage::Draining), [0, 1, 0x88]);
}

#[test]
fn a_message_cut_short_or_extended_is_refused() {
    for message in client_messages() {
        let bytes = encoded_client(&message);
        for len in 2..bytes.len() {
            let cut = ClientMessage::decode(&bytes[2..len]);
            // A packet has no length of its own: what is cut there is a shorter packet.
            let packet =
                matches!(cut, Ok(ClientMessage::Send { .. })) && len >= 2 + PACKET_OVERHEAD;
            assert!(cut.is_err() || packet, "{message:?} {len}");
        }
        let mut longer = bytes;
        longer.push(0);
        match ClientMessage::decode(&longer[2..]) {
            Ok(ClientMessage::Send { packet, .. }) => assert!(packet.len() <= MAX_SENT_PACKET),
            other => assert!(other.is_err()),
        }
    }
    for message in server_messages() {
        let bytes = encoded_server(&message);
        for len in 2..bytes.len() {
            let cut = ServerMessage::decode(&bytes[2..len]);
            let packet =
                matches!(cut, Ok(ServerMessage::Received { .. })) && len >= 2 + PACKET_OVERHEAD;
            assert!(cut.is_err() || packet, "{message:?} {len}");
        }
    }
}

#[test]
fn a_hello_of_another_version_may_say_more() {
    assert_eq!(
        ClientMessage::decode(&[kind::HELLO, 9, 1, 2, 3]),
        Ok(ClientMessage::Hello { version: 9 })
    );
    assert_eq!(
        ClientMessage::decode(&[kind::HELLO, PROTOCOL_VERSION, 1]),
        Err(WireError::Trailing)
    );
}

#[test]
fn ids_that_are_no_keys_are_refused() {
    let mut body = vec![kind::OPEN_CHANNEL];
    // The identity element, a point of small order.
    body.push(1);
    body.extend([0; 31]);
    assert_eq!(
        ClientMessage::decode(&body),
        Err(WireError::Invalid("node id"))
    );
}

#[test]
fn unknown_types_are_named() {
    assert_eq!(
        ClientMessage::decode(&[0x77]),
        Err(WireError::UnknownType(0x77))
    );
    assert_eq!(
        ServerMessage::decode(&[0x77]),
        Err(WireError::UnknownType(0x77))
    );
    assert_eq!(ClientMessage::decode(&[]), Err(WireError::Truncated));
}

#[test]
fn the_framer_finds_messages_however_the_stream_is_cut() {
    let messages = client_messages();
    let mut stream = Vec::new();
    messages.iter().for_each(|m| m.encode(&mut stream));
    for step in [1, 2, 3, 7, 64, 1000, stream.len()] {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        for mut piece in stream.chunks(step) {
            while let Some(body) = framer.next(&mut piece).unwrap() {
                found.push(ClientMessage::decode(body).unwrap());
            }
            assert!(piece.is_empty());
        }
        assert_eq!(found, messages, "in steps of {step}");
    }
}

#[test]
fn the_framer_refuses_what_is_too_large_and_never_holds_more() {
    let mut framer = Framer::default();
    let announced = (MAX_RELAY_MESSAGE as u16 + 1).to_be_bytes();
    assert_eq!(framer.next(&mut &announced[..]), Err(WireError::TooLarge));

    let mut framer = Framer::default();
    let mut largest = (MAX_RELAY_MESSAGE as u16).to_be_bytes().to_vec();
    largest.resize(2 + MAX_RELAY_MESSAGE + 100, 0);
    let mut input = &largest[..];
    assert_eq!(
        framer.next(&mut input).unwrap().unwrap().len(),
        MAX_RELAY_MESSAGE
    );
    assert_eq!(input.len(), 100);
}

#[test]
fn an_empty_message_is_a_message() {
    let mut framer = Framer::default();
    let mut input = &[0, 0, 0, 1, 0x88][..];
    assert_eq!(framer.next(&mut input), Ok(Some(&[][..])));
    assert_eq!(framer.next(&mut input), Ok(Some(&[0x88][..])));
    assert_eq!(framer.next(&mut input), Ok(None));
}

#[test]
fn frames_come_back_as_written() {
    let mut data = [0xee; 40];
    write_data_header(&mut data, 0x0102_0304);
    assert_eq!(data[..8], [0x20, 0, 0, 0, 4, 3, 2, 1]);
    assert_eq!(
        parse_frame(&data),
        Ok(Frame::Data {
            channel: 0x0102_0304,
            packet: &[0xee; 32]
        })
    );
    assert_eq!(
        parse_frame(&rebind_frame(7)),
        Ok(Frame::Rebind { channel: 7 })
    );
    assert_eq!(
        parse_frame(&challenge_frame(u64::MAX)),
        Ok(Frame::Challenge { nonce: u64::MAX })
    );
}

#[test]
fn frames_of_wrong_shape_are_refused() {
    assert_eq!(parse_frame(&[0x20; 7]), Err(WireError::Truncated));
    assert_eq!(
        parse_frame(&[0x20, 0, 0, 0, 1, 1, 1, 1]),
        Err(WireError::Truncated)
    );
    assert_eq!(
        parse_frame(&[0x20, 0, 1, 0, 1, 1, 1, 1, 9]),
        Err(WireError::Invalid("frame header"))
    );
    assert_eq!(
        parse_frame(&[0x21, 0, 0, 0, 1, 1, 1, 1, 9]),
        Err(WireError::Trailing)
    );
    assert_eq!(
        parse_frame(&[0x2f, 0, 0, 0, 1, 1, 1, 1, 9]),
        Err(WireError::UnknownType(0x2f))
    );
    let challenge = challenge_frame(5);
    for len in 0..challenge.len() {
        assert!(parse_frame(&challenge[..len]).is_err());
    }
    let mut numbered = challenge;
    numbered[4] = 1;
    assert_eq!(
        parse_frame(&numbered),
        Err(WireError::Invalid("frame header"))
    );
}

#[test]
fn a_rebind_is_smaller_than_any_data_frame() {
    assert!(rebind_frame(1).len() < FRAME_HEADER + 1);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ClientMessage::decode(&bytes);
        let _ = ServerMessage::decode(&bytes);
        let _ = parse_frame(&bytes);
        let _ = crate::wire::classify(&bytes);
        let mut framer = Framer::default();
        let mut input = &bytes[..];
        while let Ok(Some(_)) = framer.next(&mut input) {}
    }
}

#[test]
fn a_knock_is_as_long_as_what_it_causes_and_names_no_low_port() {
    let (port, txn) = (41_820, [7; 12]);
    let mut message = Vec::new();
    ClientMessage::Knock { port, txn }.encode(&mut message);
    let body = &mut message[2..];
    assert_eq!(body.len(), MAX_RESPONSE);
    let (mut low, mut unpadded) = (body.to_vec(), body.to_vec());
    low[1..3].copy_from_slice(&1_023_u16.to_be_bytes());
    assert!(ClientMessage::decode(&low).is_err());
    unpadded[40] = 1;
    assert!(ClientMessage::decode(&unpadded).is_err());
    assert!(ClientMessage::decode(&body[..40]).is_err());
}
