//! Bytes of the network, parsed once into types that cannot be wrong; one file a protocol.
//!
//! WireGuard, STUN, relay frames and QUIC share one UDP port, so every datagram is first told apart by
//! [`classify`]: the first bytes of the four never collide, as long as QUIC keeps its fixed bit
//! (`grease_quic_bit(false)` on both ends, RFC 9287).

pub mod codec;
pub mod control;
pub mod http;
pub mod icmp;
pub mod ip;
pub mod mdns;
pub mod natpmp;
pub mod pcp;
pub mod prometheus;
pub mod relay;
pub mod scrape;
pub mod ssdp;
pub mod stun;
pub mod upnp;

pub use codec::{Reader, WireError, Writer};

/// The protocols that share the mesh port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A handshake or transport packet of a peer.
    WireGuard,
    /// A STUN binding request or response.
    Stun,
    /// Data or a control frame on a relay channel.
    RelayFrame,
    /// QUIC between a relay and its client.
    Quic,
    /// None of these; to be counted and dropped.
    Unknown,
}

/// Tells what a datagram is by its first bytes and its length. With UDP GRO, ask for each segment:
/// different protocols on one 4-tuple are coalesced into one buffer.
pub fn classify(datagram: &[u8]) -> Protocol {
    match datagram.first() {
        Some(0x40..) => Protocol::Quic,
        Some(0x20..=0x2f) if relay::is_frame(datagram) => Protocol::RelayFrame,
        Some(0x00..=0x04) if is_wireguard(datagram) => Protocol::WireGuard,
        Some(0x00..=0x3f) if stun::is_stun(datagram) => Protocol::Stun,
        _ => Protocol::Unknown,
    }
}

/// WireGuard paper, section 5.4: a type in 1..=4 and three zero bytes; all types but transport data have one length.
fn is_wireguard(datagram: &[u8]) -> bool {
    let Some((&kind, _)) = datagram.split_first_chunk::<4>() else {
        return false;
    };
    match u32::from_le_bytes(kind) {
        1 => datagram.len() == 148,
        2 => datagram.len() == 92,
        3 => datagram.len() == 64,
        // Header and tag of an empty packet. Not every implementation pads, so no multiple of 16.
        4 => datagram.len() >= 32,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wireguard(kind: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0xee; len];
        packet[..4].copy_from_slice(&[kind, 0, 0, 0]);
        packet
    }

    #[test]
    fn wireguard_is_told_by_type_and_length() {
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 33), (4, 1452)] {
            assert_eq!(
                classify(&wireguard(kind, len)),
                Protocol::WireGuard,
                "{kind} {len}"
            );
        }
        for (kind, len) in [
            (0, 148),
            (1, 147),
            (1, 149),
            (2, 93),
            (3, 63),
            (4, 31),
            (5, 148),
        ] {
            assert_eq!(
                classify(&wireguard(kind, len)),
                Protocol::Unknown,
                "{kind} {len}"
            );
        }
        let mut reserved = wireguard(4, 64);
        reserved[2] = 1;
        assert_eq!(classify(&reserved), Protocol::Unknown);
    }

    #[test]
    fn stun_is_told_by_cookie_and_length() {
        for message in [
            stun::binding_request(&[9; 12], stun::Change::Nothing),
            stun::binding_request(&[9; 12], stun::Change::Port),
            stun::binding_response(&[9; 12], "192.0.2.1:1".parse().unwrap()),
            stun::binding_response(&[9; 12], "[2001:db8::1]:1".parse().unwrap()),
        ] {
            assert_eq!(classify(&message), Protocol::Stun);
            for index in 4..8 {
                let mut cookie = message.clone();
                cookie[index] ^= 1;
                assert_eq!(classify(&cookie), Protocol::Unknown);
            }
            assert_eq!(classify(&message[..message.len() - 1]), Protocol::Unknown);
            let mut longer = message;
            longer.push(0);
            assert_eq!(classify(&longer), Protocol::Unknown);
        }
    }

    #[test]
    fn relay_frames_are_told_by_range_and_header() {
        for kind in 0x20..=0x2f {
            let mut frame = vec![0xee; 60];
            frame[..4].copy_from_slice(&[kind, 0, 0, 0]);
            assert_eq!(classify(&frame), Protocol::RelayFrame);
            assert_eq!(classify(&frame[..8]), Protocol::RelayFrame);
            assert_eq!(classify(&frame[..7]), Protocol::Unknown);
            frame[3] = 1;
            assert_eq!(classify(&frame), Protocol::Unknown);
        }
        for kind in [0x1f, 0x30, 0x3f] {
            let mut frame = vec![0; 60];
            frame[0] = kind;
            assert_eq!(classify(&frame), Protocol::Unknown);
        }
    }

    #[test]
    fn a_channel_numbered_like_the_stun_cookie_stays_a_frame() {
        let mut frame = [0; 20];
        relay::write_data_header(
            &mut frame,
            u32::from_be_bytes(stun::MAGIC_COOKIE).swap_bytes(),
        );
        assert_eq!(frame[4..8], stun::MAGIC_COOKIE);
        assert_eq!(classify(&frame), Protocol::RelayFrame);
    }

    #[test]
    fn everything_with_the_quic_bit_or_the_long_header_bit_is_quic() {
        for first in 0x40..=0xff {
            assert_eq!(classify(&[first]), Protocol::Quic);
        }
    }

    #[test]
    fn short_datagrams_are_unknown_and_harmless() {
        assert_eq!(classify(&[]), Protocol::Unknown);
        for first in 0..0x40 {
            for len in 1..8 {
                assert_eq!(classify(&vec![first; len]), Protocol::Unknown);
            }
        }
    }
}
