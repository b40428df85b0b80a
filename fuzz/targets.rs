//! What is done with fuzzed bytes, one function for each parser.
//!
//! The fuzzer calls these with what it makes up, and a test of mesh-core with what the fuzzer kept (`corpus/`). No input
//! may panic; beyond that, each function asserts what must hold for whatever was accepted, mostly that it has one form.

use std::net::IpAddr;
use std::path::Path;
use std::str;

use mesh_core::config::Config;
use mesh_core::identity::{
    Identity, NetworkId, NodeId, RelayUrl, format_wireguard_key, parse_wireguard_key,
};
use mesh_core::limits::{MAX_NETWORKS, MAX_PEERS, MAX_RELAY_MESSAGE, MAX_RELAYS, METRICS_REQUEST};
use mesh_core::offload::SuperPacket;
use mesh_core::session::fuzzing;
use mesh_core::wire::control::Control;
use mesh_core::wire::ip::IpHeader;
use mesh_core::wire::relay::{
    ClientMessage, Frame, Framer, ServerMessage, challenge_frame, parse_frame, rebind_frame,
    write_data_header,
};
use mesh_core::wire::ssdp::{self, Url};
use mesh_core::wire::{Protocol, classify, http, mdns, natpmp, pcp, scrape, stun, upnp};

/// Takes what the fuzzer made up; panics if something is wrong.
pub type Target = fn(&[u8]);

/// A function for each target with its name, which is that of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config),
    ("node_id", node_id),
    ("relay_url", relay_url),
    ("identity_file", identity_file),
    ("wireguard_key", wireguard_key),
    ("classify", classify_datagram),
    ("relay_message", relay_message),
    ("relay_stream", relay_stream),
    ("relay_frame", relay_frame),
    ("stun", stun_message),
    ("control", control),
    ("ip", ip),
    ("pcp", pcp_message),
    ("natpmp", natpmp_message),
    ("ssdp", ssdp_message),
    ("mdns", mdns_packet),
    ("http", http_response),
    ("scrape", scrape_request),
    ("upnp", upnp_document),
    ("super_packet", super_packet),
    ("handshake_initiation", fuzzing::initiation),
    ("handshake_response", fuzzing::response),
    ("cookie_reply", fuzzing::cookie),
    ("data_message", fuzzing::data),
];

/// A configuration file: accepted within its bounds, or refused with messages of one line each.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    match Config::parse(text, Path::new("config.toml")) {
        Ok(config) => {
            assert!(config.networks.len() <= MAX_NETWORKS);
            for network in &config.networks {
                assert!((1..=15).contains(&network.interface.len()));
                assert!(network.relays.len() <= MAX_RELAYS);
                assert!(network.peers.len() <= MAX_PEERS);
            }
        }
        Err(errors) => {
            assert!(errors.iter().count() > 0);
            let lines = text.matches('\n').count() + 1;
            for error in errors.iter() {
                assert!((1..=lines).contains(&error.line), "{error}");
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

/// An ID as text, and its bytes.
pub fn node_id(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<32>() {
        assert_eq!(NetworkId::from_bytes(bytes).as_bytes(), bytes);
        if let Ok(id) = NodeId::from_bytes(bytes) {
            assert_eq!(id.as_bytes(), bytes);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_ne!(id.to_wireguard(), [0; 32]);
        }
    }
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(id) = text.parse::<NetworkId>() {
        assert_eq!(id.to_string(), text);
    }
}

/// The address of a relay: what is accepted prints as something that reads as the same.
pub fn relay_url(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(url) = text.parse::<RelayUrl>() {
        assert_ne!(url.port, 0);
        assert_eq!(url.to_string().parse(), Ok(url));
    }
}

/// The file with a node's key: only what we write is accepted.
pub fn identity_file(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(identity) = Identity::parse_file(text) {
        assert_eq!(*identity.to_file(), text);
    }
}

/// The public key of a stock WireGuard device.
pub fn wireguard_key(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Ok(key) = parse_wireguard_key(text) {
        assert_eq!(format_wireguard_key(&key), text);
    }
}

/// A datagram on the mesh port: each parser's messages are told to be its own.
pub fn classify_datagram(data: &[u8]) {
    let protocol = classify(data);
    assert_eq!(classify(data), protocol);
    if parse_frame(data).is_ok() {
        assert_eq!(protocol, Protocol::RelayFrame);
    }
    if stun::parse(data).is_ok() {
        assert_eq!(protocol, Protocol::Stun);
    }
}

/// A message on a relay's control stream, either way.
pub fn relay_message(data: &[u8]) {
    // The framer lets no larger ones through.
    let data = &data[..data.len().min(MAX_RELAY_MESSAGE)];
    let mut encoded = Vec::new();
    if let Ok(message) = ClientMessage::decode(data) {
        message.encode(&mut encoded);
        assert_eq!(ClientMessage::decode(&encoded[2..]), Ok(message));
        assert!(ServerMessage::decode(data).is_err());
    } else if let Ok(message) = ServerMessage::decode(data) {
        message.encode(&mut encoded);
        assert_eq!(ServerMessage::decode(&encoded[2..]), Ok(message));
    }
}

/// The bytes of a relay's control stream: the same messages come out however the stream is cut. The first byte is the
/// size of the pieces.
pub fn relay_stream(data: &[u8]) {
    let Some((&size, stream)) = data.split_first() else {
        return;
    };
    let whole = messages(stream.chunks(stream.len().max(1)));
    let pieces = messages(stream.chunks(usize::from(size).max(1)));
    assert_eq!(whole, pieces);
}

/// All messages in pieces of a stream, and whether it can go on.
fn messages<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, bool) {
    let mut framer = Framer::default();
    let mut messages = Vec::new();
    for mut piece in pieces {
        loop {
            match framer.next(&mut piece) {
                Ok(Some(message)) => {
                    assert!(message.len() <= MAX_RELAY_MESSAGE);
                    messages.push(message.to_vec());
                }
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
        assert!(piece.is_empty());
    }
    (messages, true)
}

/// A frame on a relay's UDP port.
pub fn relay_frame(data: &[u8]) {
    let Ok(frame) = parse_frame(data) else {
        return;
    };
    let written = match frame {
        Frame::Data { channel, packet } => {
            let mut written = vec![0; 8];
            write_data_header(&mut written, channel);
            written.extend_from_slice(packet);
            written
        }
        Frame::Rebind { channel } => rebind_frame(channel).to_vec(),
        Frame::Challenge { nonce } => challenge_frame(nonce).to_vec(),
    };
    assert_eq!(written, data);
}

/// A STUN message; answers are no larger than what asked for them.
pub fn stun_message(data: &[u8]) {
    match stun::parse(data) {
        Ok(stun::Message::Request { len, .. }) => assert_eq!(len, data.len()),
        Ok(stun::Message::Response { txn, mapped }) => {
            let written = stun::binding_response(&txn, mapped);
            assert_eq!(
                stun::parse(&written),
                Ok(stun::Message::Response { txn, mapped })
            );
        }
        Err(_) => {}
    }
}

/// A control message inside the tunnel.
pub fn control(data: &[u8]) {
    let Ok(message) = Control::from_packet(data) else {
        return;
    };
    let nowhere = [0u8; 16].into();
    let packet = message.to_packet(nowhere, nowhere);
    assert_eq!(Control::from_packet(&packet), Ok(message));
}

/// The header of an inner packet.
pub fn ip(data: &[u8]) {
    if let Some(header) = IpHeader::parse(data) {
        assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
    }
}

/// What a PCP server says: no request of ours, and no NAT-PMP.
pub fn pcp_message(data: &[u8]) {
    let Ok(response) = pcp::Response::parse(data) else {
        return;
    };
    assert!(natpmp::Response::parse(data).is_err());
    if let pcp::Kind::Map { external, .. } = response.kind {
        let mapped = match external.ip() {
            IpAddr::V6(ip) => ip.to_ipv4_mapped(),
            IpAddr::V4(_) => None,
        };
        assert_eq!(mapped, None, "IPv4 in one form alone");
    }
}

/// What a NAT-PMP server says.
pub fn natpmp_message(data: &[u8]) {
    let Ok(response) = natpmp::Response::parse(data) else {
        return;
    };
    assert!(pcp::Response::parse(data).is_err());
    if let Err(natpmp::ResultCode(code)) = response.result {
        assert_ne!(code, 0);
    }
}

/// Multicast DNS: what is understood is written in one form, which reads as the same.
pub fn mdns_packet(data: &[u8]) {
    if let Ok(mdns::Message::Answer(instances)) = mdns::parse(data) {
        assert!(instances.len() <= mdns::MAX_INSTANCES);
        assert!(instances.iter().all(|instance| instance.port != 0));
        let packet = mdns::answer(&instances, mdns::LIFETIME);
        if !instances.is_empty() {
            assert_eq!(mdns::parse(&packet), Ok(mdns::Message::Answer(instances)));
        }
    }
}

/// What a device answers to a search: its URL can be written into a request.
pub fn ssdp_message(data: &[u8]) {
    if let Ok(url) = ssdp::parse_response(data) {
        fits_a_request(&url);
    }
    if let Ok(text) = str::from_utf8(data)
        && let Some(url) = Url::parse(text)
    {
        fits_a_request(&url);
    }
}

fn fits_a_request(url: &Url) {
    assert!(url.path.starts_with('/'));
    assert_ne!(url.address.port(), 0);
    let request = http::request(url.address, &url.path, None);
    let lines = request.split(|byte| *byte == b'\n').count();
    assert_eq!(lines, 6, "four headers and an empty line");
}

/// An answer over HTTP, as it arrives: it ends once, and what follows does not change it.
pub fn http_response(data: &[u8]) {
    let whole = http::Response::parse(data, true);
    if let Ok(Some(response)) = &whole {
        assert!(response.body.len() <= data.len());
    }
    if let Ok(Some(response)) = http::Response::parse(data, false) {
        assert_eq!(whole, Ok(Some(response)));
    }
}

/// A request for metrics, as it arrives: what is decided stays decided, and early enough.
pub fn scrape_request(data: &[u8]) {
    let decided = scrape::read_request(data, true);
    assert!(decided.is_some() || data.len() < METRICS_REQUEST);
    let more = [data, b"\r\n\r\n"].concat();
    if let Some(verdict) = decided {
        assert_eq!(scrape::read_request(&more, true), Some(verdict));
    }
    // Whoever comes from elsewhere is told no less.
    if scrape::read_request(&more, true) == Some(Ok(())) {
        assert_eq!(scrape::read_request(&more, false), Some(Ok(())));
    }
}

/// A device's description, or its answer to a call: services are on the host that describes them.
pub fn upnp_document(data: &[u8]) {
    // No larger ones come through HTTP.
    let data = &data[..data.len().min(http::MAX_RESPONSE)];
    let location = Url {
        address: ([192, 168, 1, 1], 5000).into(),
        path: "/a/b.xml".to_owned(),
    };
    if let Ok(services) = upnp::parse_description(data, &location) {
        assert!(services.len() <= 4);
        for service in &services {
            fits_a_request(&service.control);
            assert_eq!(service.control.address.ip(), location.address.ip());
        }
    }
    // Whatever it says, it is read or refused.
    let _ = upnp::parse_answer(data);
}

/// What a TUN device hands over: cut up within bounds, and nothing of the payload gets lost or appears twice.
pub fn super_packet(data: &[u8]) {
    let Ok(packet) = SuperPacket::parse(data) else {
        return;
    };
    let count = packet.count();
    assert!((1..=packet.bytes().len().max(1)).contains(&count));
    let mut total = 0;
    for at in 0..count {
        let mut segment = vec![0; packet.length(at)];
        packet.write(at, &mut segment);
        total += segment.len();
    }
    assert!(total >= packet.bytes().len());
}
