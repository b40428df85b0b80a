//! Super-packets cut up here are put together again by rules of the standards, written down once more.

use proptest::prelude::*;

use super::*;

/// A super-packet as the kernel hands it over: the checksum field holds the pseudo-header's sum.
#[derive(Debug, Clone)]
struct Frame {
    v6: bool,
    tcp: bool,
    /// Bytes of TCP options, a multiple of four.
    options: usize,
    flags: u8,
    payload: Vec<u8>,
    size: usize,
    ecn: bool,
}

impl Frame {
    fn network(&self) -> usize {
        if self.v6 { IPV6_HEADER } else { IPV4_HEADER }
    }

    fn headers(&self) -> usize {
        let transport = if self.tcp {
            TCP_HEADER + self.options
        } else {
            UDP_HEADER
        };
        self.network() + transport
    }

    fn bytes(&self) -> Vec<u8> {
        let transport = self.headers() - self.network() + self.payload.len();
        let protocol = if self.tcp { TCP } else { UDP };
        let mut packet = if self.v6 {
            let mut header = vec![0x60, 1, 2, 3, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
            header.extend([0xfd; 32]);
            header
        } else {
            let mut header = vec![0x45, 7, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&((transport + IPV4_HEADER) as u16).to_be_bytes());
            header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            header
        };
        packet.extend([0x12, 0x34, 0x56, 0x78]);
        if self.tcp {
            packet.extend(0xffff_ff00_u32.to_be_bytes());
            packet.extend([
                0,
                0,
                0,
                9,
                ((TCP_HEADER + self.options) as u8 / 4) << 4,
                self.flags,
            ]);
            packet.extend([1, 0, 0, 0, 0, 0]);
            packet.extend(vec![1; self.options]);
        } else {
            packet.extend((transport as u16).to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(&self.payload);
        let kind = match (self.tcp, self.v6) {
            (true, false) => GSO_TCP_V4,
            (true, true) => GSO_TCP_V6,
            (false, _) => GSO_UDP,
        };
        let kind = if self.ecn && self.tcp {
            kind | GSO_ECN
        } else {
            kind
        };
        let mut frame = vec![FLAG_NEEDS_CHECKSUM, kind];
        // The header length is what a forwarded packet has there: that of the whole.
        for field in [
            packet.len(),
            self.size,
            self.network(),
            if self.tcp { 16 } else { 6 },
        ] {
            frame.extend((field as u16).to_ne_bytes());
        }
        frame.extend(packet);
        frame
    }
}

fn segments(frame: &[u8]) -> Vec<Vec<u8>> {
    let packet = SuperPacket::parse(frame).unwrap();
    (0..packet.count())
        .map(|at| {
            let mut segment = vec![0xee; packet.length(at)];
            packet.write(at, &mut segment);
            segment
        })
        .collect()
}

/// The textbook sum of 16-bit words over pseudo-header and transport: all ones if the checksum is right.
fn transport_sum(packet: &[u8], network: usize) -> u16 {
    let addresses = if network == IPV6_HEADER {
        &packet[8..40]
    } else {
        &packet[12..20]
    };
    let protocol = if network == IPV6_HEADER {
        packet[6]
    } else {
        packet[9]
    };
    let transport = &packet[network..];
    let words = addresses.chunks(2).chain(transport.chunks(2));
    let sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    let mut sum = sum + u32::from(protocol) + transport.len() as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn check(frame: &Frame) {
    let segments = segments(&frame.bytes());
    let (network, headers) = (frame.network(), frame.headers());
    let mut payload: Vec<u8> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        assert!(segment.len() == headers + frame.size || last && segment.len() > headers);
        let length = |at: usize| usize::from(u16::from_be_bytes([segment[at], segment[at + 1]]));
        if frame.v6 {
            assert_eq!(length(4), segment.len() - IPV6_HEADER);
        } else {
            assert_eq!(length(2), segment.len());
            assert_eq!(checksum(&segment[..IPV4_HEADER], 0), 0xffff);
            assert_eq!(length(4), usize::from(0xffff_u16.wrapping_add(at as u16)));
        }
        assert_eq!(transport_sum(segment, network), 0xffff, "segment {at}");
        if frame.tcp {
            let sequence =
                u32::from_be_bytes(segment[network + 4..network + 8].try_into().unwrap());
            assert_eq!(sequence, 0xffff_ff00_u32.wrapping_add(payload.len() as u32));
            let flags = segment[network + 13];
            let dropped =
                (if last { 0 } else { FLAGS_OF_LAST }) | (if at == 0 { 0 } else { FLAG_OF_FIRST });
            assert_eq!(flags, frame.flags & !dropped);
        } else {
            assert_eq!(length(network + 4), segment.len() - network);
        }
        payload.extend(&segment[headers..]);
    }
    assert_eq!(payload, frame.payload);
}

proptest! {
    #[test]
    fn segments_carry_the_whole_payload_under_correct_headers(
        v6: bool, tcp: bool, ecn: bool, flags: u8,
        options in 0_usize..=10,
        payload in proptest::collection::vec(any::<u8>(), 1..5_000),
        size in 1_usize..2_000,
    ) {
        check(&Frame { v6, tcp, ecn, flags, options: options * 4, payload, size });
    }

    #[test]
    fn arbitrary_bytes_are_cut_within_bounds_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(packet) = SuperPacket::parse(&bytes) {
            for at in 0..packet.count() {
                packet.write(at, &mut vec![0; packet.length(at)]);
            }
        }
    }
}

#[test]
fn a_single_packet_gets_the_checksum_that_the_kernel_left_out() {
    let frame = Frame {
        v6: false,
        tcp: false,
        options: 0,
        flags: 0,
        payload: vec![1, 2, 3],
        size: 100,
        ecn: false,
    };
    let mut bytes = frame.bytes();
    bytes[1] = GSO_NONE;
    // The pseudo-header's sum in the field, as the kernel leaves it.
    let pseudo = checksum(
        &bytes[VIRTIO_NET_HDR + 12..VIRTIO_NET_HDR + 20],
        u64::from(UDP) + 11,
    );
    let field = VIRTIO_NET_HDR + IPV4_HEADER + 6;
    bytes[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let segments = segments(&bytes);
    assert_eq!(segments.len(), 1);
    assert_eq!(transport_sum(&segments[0], IPV4_HEADER), 0xffff);
}

#[test]
fn a_packet_with_nothing_to_do_is_passed_on_as_it_is() {
    let packet = SuperPacket::parse(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x45, 1, 2]).unwrap();
    assert_eq!(
        (packet.count(), packet.length(0), packet.bytes()),
        (1, 3, &[0x45, 1, 2][..])
    );
}

#[test]
fn a_header_that_contradicts_the_packet_is_refused() {
    let good = Frame {
        v6: false,
        tcp: true,
        options: 0,
        flags: 0x10,
        payload: vec![0; 300],
        size: 100,
        ecn: false,
    };
    let good = good.bytes();
    let changed = |at: usize, to: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + to.len()].copy_from_slice(to);
        SuperPacket::parse(&frame).map(|packet| packet.count())
    };
    assert_eq!(changed(0, &[1]), Ok(3));
    for (what, at, to) in [
        ("no segment size", 4, &0_u16.to_ne_bytes()[..]),
        (
            "the transport inside the IP header",
            6,
            &19_u16.to_ne_bytes(),
        ),
        ("the transport behind the packet", 6, &400_u16.to_ne_bytes()),
        ("another version", 1, &[GSO_TCP_V6]),
        ("another protocol", 1, &[GSO_UDP]),
        ("an unknown kind", 1, &[9]),
        (
            "a TCP header that is too short",
            VIRTIO_NET_HDR + 32,
            &[0x40],
        ),
        (
            "a TCP header longer than the packet allows",
            6,
            &310_u16.to_ne_bytes(),
        ),
    ] {
        assert_eq!(changed(at, to), Err(Malformed), "{what}");
    }
    assert!(SuperPacket::parse(&good[..9]).is_err());
}
