//! Clamps the maximum segment size that a TCP connection starts with (RFC 9293, section 3.7.1) to what the overlay carries.
//!
//! Hosts behind a peer do not know the overlay's MTU, and the ICMP messages that would tell them get lost on the way more
//! often than not.

use crate::wire::ip::IpHeader;

const TCP: u8 = 6;
const SYN: u8 = 0x02;
const TCP_HEADER: usize = 20;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;

/// True for the first packet of a TCP connection in either direction.
#[inline]
pub(crate) fn opens_tcp(header: &IpHeader, packet: &[u8]) -> bool {
    header.protocol == TCP
        && transport(packet)
            .and_then(|start| packet.get(start + 13))
            .is_some_and(|flags| flags & SYN != 0)
}

fn transport(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        // A fragment other than the first has no TCP header.
        4 if packet.get(6)? & 0x1f == 0 && *packet.get(7)? == 0 => {
            Some(usize::from(packet[0] & 0x0f) * 4)
        }
        6 => Some(40),
        _ => None,
    }
}

/// Lowers the MSS option of a packet that [`opens_tcp`] to what fits into packets of `mtu` bytes; mends the checksum.
pub(crate) fn clamp_mss(packet: &mut [u8], mtu: u16) {
    let Some(start) = transport(packet) else {
        return;
    };
    let network = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let most = mtu.saturating_sub(network + TCP_HEADER as u16);
    let Some(tcp) = packet
        .get_mut(start..)
        .filter(|tcp| tcp.len() >= TCP_HEADER)
    else {
        return;
    };
    let end = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let mut at = TCP_HEADER;
    while at < end {
        match tcp[at] {
            END => return,
            NO_OPERATION => at += 1,
            kind => {
                let Some(length) = tcp.get(at + 1).map(|length| usize::from(*length)) else {
                    return;
                };
                if kind == MSS && length == 4 && at + 4 <= end {
                    lower(tcp, at + 2, most);
                    return;
                }
                if length < 2 {
                    return;
                }
                at += length;
            }
        }
    }
}

/// Lowers the number at `at`, and changes the checksum by as much (RFC 1624, equation 3).
fn lower(tcp: &mut [u8], at: usize, most: u16) {
    let old = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    if old <= most {
        return;
    }
    tcp[at..at + 2].copy_from_slice(&most.to_be_bytes());
    // An option at an odd offset stands across two words of the sum, so its bytes count the other way round.
    let (old, new) = if at.is_multiple_of(2) {
        (old, most)
    } else {
        (old.swap_bytes(), most.swap_bytes())
    };
    let sum = u16::from_be_bytes([tcp[16], tcp[17]]);
    let mut changed = u32::from(!sum) + u32::from(!old) + u32::from(new);
    while changed > 0xffff {
        changed = (changed & 0xffff) + (changed >> 16);
    }
    let sum = !(changed as u16);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::offload::checksum;

    /// A SYN from 10.0.0.1 to 10.0.0.2 with these options.
    fn syn(options: &[u8]) -> Vec<u8> {
        let header = TCP_HEADER + options.len().next_multiple_of(4);
        let mut packet = vec![0; 20 + header];
        packet[0] = 0x45;
        let length = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&length);
        packet[9] = TCP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[32] = (header as u8 / 4) << 4;
        packet[33] = SYN;
        packet[40..40 + options.len()].copy_from_slice(options);
        let sum = !transport_sum(&packet);
        packet[36..38].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn transport_sum(packet: &[u8]) -> u16 {
        let pseudo = checksum(&packet[12..20], packet.len() as u64 - 20 + 6);
        checksum(&packet[20..], pseudo.into())
    }

    #[test]
    fn a_large_mss_is_lowered_and_a_small_one_stays() {
        for (options, at) in [
            (&[2, 4, 0x05, 0xb4][..], 42),
            (&[1, 2, 4, 0x05, 0xb4], 43),
            (&[3, 3, 7, 2, 4, 0x05, 0xb4], 45),
        ] {
            let mut packet = syn(options);
            let header = IpHeader::parse(&packet).unwrap();
            assert!(opens_tcp(&header, &packet));
            clamp_mss(&mut packet, 1_280);
            assert_eq!(packet[at..at + 2], 1_240_u16.to_be_bytes());
            assert_eq!(transport_sum(&packet), 0xffff);
            let before = packet.clone();
            clamp_mss(&mut packet, 1_400);
            assert_eq!(packet, before);
        }
    }

    proptest! {
        #[test]
        fn nothing_but_an_mss_is_touched_and_nothing_panics(options in proptest::collection::vec(any::<u8>(), 0..40), mtu in 576_u16..9_000) {
            let before = syn(&options);
            let mut packet = before.clone();
            clamp_mss(&mut packet, mtu);
            prop_assert_eq!(transport_sum(&packet), 0xffff);
            let changed = (0..packet.len()).filter(|at| packet[*at] != before[*at]).count();
            prop_assert!(changed <= 4);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(mut packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(header) = IpHeader::parse(&packet) {
                let _ = opens_tcp(&header, &packet);
            }
            clamp_mss(&mut packet, 1_280);
        }
    }
}
