//! "Packet too big" (RFC 792 type 3 code 4 with RFC 1191's MTU; RFC 4443, section 3.2), as a router writes it.

use std::net::IpAddr;

use crate::offload::checksum;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// What follows the headers of a message, at most: with them it has 576 bytes (RFC 1812, section 4.3.2.3), and over IPv6
/// the smallest MTU (RFC 4443, section 2.4 (c)).
const QUOTE_V4: usize = 576 - 20 - 8;
const QUOTE_V6: usize = 1_280 - 40 - 8;
const HOPS: u8 = 64;

/// Tells the sender of `packet` that packets of at most `mtu` bytes get through. It comes from where the packet was to
/// go, so that it passes every check of source addresses.
///
/// `None` where no message may be sent: about an ICMP error, a fragment other than the first, or a packet that went to
/// many (RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e)).
pub fn packet_too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let version = packet.first()? >> 4;
    let (source, destination) = match version {
        // The header's own length may be that of a whole super-packet, so nothing else of it is checked.
        4 => (address::<4>(packet, 12)?, address::<4>(packet, 16)?),
        6 => (address::<16>(packet, 8)?, address::<16>(packet, 24)?),
        _ => return None,
    };
    let many =
        destination.is_multicast() || matches!(destination, IpAddr::V4(ip) if ip.is_broadcast());
    if source.is_unspecified() || source.is_multicast() || many || is_error_or_fragment(packet) {
        return None;
    }
    Some(match (destination, source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let quote = &packet[..packet.len().min(QUOTE_V4)];
            let mut message = vec![0; 20 + 8];
            message.extend_from_slice(quote);
            let length = message.len() as u16;
            let (ip, icmp) = message.split_at_mut(20);
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[8] = HOPS;
            ip[9] = ICMP;
            ip[12..16].copy_from_slice(&from.octets());
            ip[16..20].copy_from_slice(&to.octets());
            let sum = !checksum(ip, 0);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            (icmp[0], icmp[1]) = (3, 4);
            icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
            let sum = !checksum(icmp, 0);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            message
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let quote = &packet[..packet.len().min(QUOTE_V6)];
            let mut message = vec![0; 40 + 8];
            message.extend_from_slice(quote);
            let payload = message.len() - 40;
            let (ip, icmp) = message.split_at_mut(40);
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
            ip[6] = ICMP_V6;
            ip[7] = HOPS;
            ip[8..24].copy_from_slice(&from.octets());
            ip[24..40].copy_from_slice(&to.octets());
            icmp[0] = 2;
            icmp[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
            let pseudo = checksum(&ip[8..40], payload as u64 + u64::from(ICMP_V6));
            let sum = !checksum(icmp, pseudo.into());
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            message
        }
        _ => return None,
    })
}

fn address<const N: usize>(packet: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    Some(packet.get(at..)?.first_chunk::<N>().copied()?.into())
}

fn is_error_or_fragment(packet: &[u8]) -> bool {
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 0x0f) * 4;
        let later_fragment = packet[6] & 0x1f != 0 || packet[7] != 0;
        let error =
            packet[9] == ICMP && matches!(packet.get(header), None | Some(3 | 4 | 5 | 11 | 12));
        later_fragment || error
    } else {
        packet[6] == ICMP_V6 && packet.get(40).is_none_or(|kind| *kind < 128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpHeader;

    fn packet(version: u8, protocol: u8, length: usize) -> Vec<u8> {
        let mut packet = vec![0; length];
        if version == 4 {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[9] = protocol;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(length as u16 - 40).to_be_bytes());
            packet[6] = protocol;
            packet[8] = 0xfd;
            packet[23] = 1;
            packet[24] = 0xfd;
            packet[39] = 2;
        }
        packet
    }

    #[test]
    fn the_sender_is_told_by_the_destination_with_valid_checksums() {
        for (version, most) in [(4, 576), (6, 1_280)] {
            let original = packet(version, 17, 2_000);
            let asked = IpHeader::parse(&original).unwrap();
            let message = packet_too_big(&original, 1_300).unwrap();
            let header = IpHeader::parse(&message).unwrap();
            assert_eq!(
                (header.source, header.destination),
                (asked.destination, asked.source)
            );
            assert_eq!(header.length, most);
            if version == 4 {
                assert_eq!(checksum(&message[..20], 0), 0xffff);
                assert_eq!(checksum(&message[20..], 0), 0xffff);
                assert_eq!((message[20], message[21]), (3, 4));
                assert_eq!(message[26..28], 1_300_u16.to_be_bytes());
                assert_eq!(message[28..], original[..most - 28]);
            } else {
                let pseudo = checksum(&message[8..40], 1_240 + 58);
                assert_eq!(checksum(&message[40..], pseudo.into()), 0xffff);
                assert_eq!((message[40], message[41]), (2, 0));
                assert_eq!(message[44..48], 1_300_u32.to_be_bytes());
                assert_eq!(message[48..], original[..most - 48]);
            }
        }
    }

    #[test]
    fn errors_fragments_and_packets_to_many_are_not_answered() {
        let mut error = packet(4, ICMP, 1_500);
        error[20] = 3;
        assert_eq!(packet_too_big(&error, 1_300), None);
        error[20] = 8;
        assert!(packet_too_big(&error, 1_300).is_some(), "a ping");
        let mut fragment = packet(4, 17, 1_500);
        fragment[7] = 1;
        assert_eq!(packet_too_big(&fragment, 1_300), None);
        let mut many = packet(4, 17, 1_500);
        many[16] = 224;
        assert_eq!(packet_too_big(&many, 1_300), None);
        let mut error = packet(6, ICMP_V6, 1_500);
        error[40] = 1;
        assert_eq!(packet_too_big(&error, 1_300), None);
        assert_eq!(packet_too_big(&[], 1_300), None);
        assert_eq!(packet_too_big(&[0x45; 19], 1_300), None);
        assert_eq!(packet_too_big(&[0x60; 39], 1_300), None);
    }
}
