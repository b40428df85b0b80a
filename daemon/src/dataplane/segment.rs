//! What of an inner packet decides whether it can be joined with others into one super-packet.

use mesh_core::offload::checksum;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

const FLAG_PSH: u8 = 0x08;
const FLAG_ACK: u8 = 0x10;

/// What can be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data of a flow; may be joined with its neighbours.
    Data(Segment),
    /// Of this flow, but to be written as it is, after what came before it.
    Alone(Flow),
    /// Of no flow that we know.
    Other,
}

/// Where a flow's identity lies in its packets: the addresses (before the ports in both versions of IP), and the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    protocol: u8,
    /// Length of the IP header.
    network: usize,
}

impl Flow {
    fn is_v6(self) -> bool {
        self.network == IPV6_HEADER
    }

    fn addresses(self, packet: &[u8]) -> &[u8] {
        if self.is_v6() {
            &packet[8..40]
        } else {
            &packet[12..20]
        }
    }

    /// True if two packets are of one flow.
    pub(crate) fn joins(self, packet: &[u8], other: Self, other_packet: &[u8]) -> bool {
        // The ports follow the addresses.
        let identity = if self.is_v6() { 8..44 } else { 12..24 };
        self == other && packet[identity.clone()] == other_packet[identity]
    }

    /// Sum of the pseudo-header, for a transport part of `length` bytes (RFC 9293, section 3.1; RFC 8200, section 8.1).
    fn pseudo_header(self, packet: &[u8], length: usize) -> u16 {
        checksum(
            self.addresses(packet),
            u64::from(self.protocol) + length as u64,
        )
    }

    fn checksum_offset(self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }
}

/// A data packet with correct checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) flow: Flow,
    /// Length of all headers.
    pub(crate) headers: usize,
    /// Length of the data, more than nothing.
    pub(crate) payload: usize,
    /// TCP sequence number.
    sequence: u32,
    /// Says that it is the last of its kind: TCP's PSH.
    push: bool,
}

/// Looks at a packet. UDP is data only if `udp` says that the kernel takes it joined.
pub(crate) fn inspect(packet: &[u8], udp: bool) -> Kind {
    let Some(flow) = flow(packet) else {
        return Kind::Other;
    };
    let length = packet.len() - flow.network;
    let headers = match flow.protocol {
        TCP if length >= TCP_HEADER => usize::from(packet[flow.network + 12] >> 4) * 4,
        UDP if length >= UDP_HEADER => UDP_HEADER,
        _ => return Kind::Other,
    };
    let transport = &packet[flow.network..];
    let alone = Kind::Alone(flow);
    if headers >= length {
        return alone;
    }
    let mut segment = Segment {
        flow,
        headers: flow.network + headers,
        payload: length - headers,
        sequence: 0,
        push: false,
    };
    if flow.protocol == TCP {
        let flags = transport[13];
        if headers < TCP_HEADER || flags & !FLAG_PSH != FLAG_ACK {
            return alone;
        }
        segment.push = flags & FLAG_PSH != 0;
        segment.sequence = read_u32(transport, 4);
    } else if !udp || read_u16(transport, 4) != length || read_u16(transport, 6) == 0 {
        return alone;
    }
    // The kernel will take our word for the checksums of a super-packet.
    let network_ok = flow.is_v6() || checksum(&packet[..flow.network], 0) == u16::MAX;
    let sum = checksum(transport, flow.pseudo_header(packet, length).into());
    if network_ok && sum == u16::MAX {
        Kind::Data(segment)
    } else {
        alone
    }
}

/// The flow of a packet that is whole, not a fragment, and has no IP options or extension headers.
fn flow(packet: &[u8]) -> Option<Flow> {
    let (network, protocol, length) = match packet.first()? {
        0x45 if packet.len() >= IPV4_HEADER + 4 => {
            // "More fragments" and the offset (RFC 791, section 3.1).
            if packet[6] & 0x3f != 0 || packet[7] != 0 {
                return None;
            }
            (IPV4_HEADER, packet[9], read_u16(packet, 2))
        }
        first if first >> 4 == 6 && packet.len() >= IPV6_HEADER + 4 => {
            (IPV6_HEADER, packet[6], IPV6_HEADER + read_u16(packet, 4))
        }
        _ => return None,
    };
    let known = length == packet.len() && matches!(protocol, TCP | UDP);
    known.then_some(Flow { protocol, network })
}

/// A super-packet in the making: packets of one flow and size, in order without a gap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined {
    /// The first of them.
    pub(crate) first: Segment,
    /// Length of the whole.
    length: usize,
    next_sequence: u32,
    /// Nothing can follow: the last one was short, or said so.
    closed: bool,
    push: bool,
}

impl Joined {
    /// Just one.
    pub(crate) fn new(first: Segment) -> Self {
        Self {
            first,
            length: first.headers + first.payload,
            next_sequence: first.sequence.wrapping_add(first.payload as u32),
            closed: first.push,
            push: first.push,
        }
    }

    /// Adds a packet of the same flow, if it is the continuation. `head` is the first packet.
    pub(crate) fn append(&mut self, head: &[u8], packet: &[u8], segment: &Segment) -> bool {
        let length = self.length + segment.payload;
        let fits = !self.closed
            && segment.payload <= self.first.payload
            && length <= usize::from(u16::MAX)
            && segment.sequence == self.next_sequence_of(segment)
            && same_headers(head, packet, &self.first, segment);
        if fits {
            self.length = length;
            self.next_sequence = segment.sequence.wrapping_add(segment.payload as u32);
            self.closed = segment.push || segment.payload < self.first.payload;
            self.push |= segment.push;
        }
        fits
    }

    /// UDP has no sequence numbers.
    fn next_sequence_of(&self, segment: &Segment) -> u32 {
        if self.first.flow.protocol == TCP {
            self.next_sequence
        } else {
            segment.sequence
        }
    }

    /// Makes the headers of the first packet those of the whole, with checksums left to the kernel, and returns the
    /// `virtio_net_hdr` that says so (virtio 1.2, section 5.1.6; fields in the host's byte order).
    pub(crate) fn rewrite(&self, head: &mut [u8]) -> [u8; 10] {
        const NEEDS_CHECKSUM: u8 = 1;
        let flow = self.first.flow;
        let transport = self.length - flow.network;
        let pseudo = flow.pseudo_header(head, transport).to_be_bytes();
        let kind = if flow.is_v6() {
            head[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
            tun_rs::VIRTIO_NET_HDR_GSO_TCPV6
        } else {
            head[2..4].copy_from_slice(&(self.length as u16).to_be_bytes());
            head[10..12].fill(0);
            let sum = !checksum(&head[..flow.network], 0);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            tun_rs::VIRTIO_NET_HDR_GSO_TCPV4
        };
        let at = flow.network + flow.checksum_offset();
        head[at..at + 2].copy_from_slice(&pseudo);
        let kind = if flow.protocol == TCP {
            head[flow.network + 13] |= if self.push { FLAG_PSH } else { 0 };
            kind
        } else {
            head[flow.network + 4..flow.network + 6]
                .copy_from_slice(&(transport as u16).to_be_bytes());
            tun_rs::VIRTIO_NET_HDR_GSO_UDP_L4
        };
        let mut header = [0; 10];
        header[0] = NEEDS_CHECKSUM;
        header[1] = kind;
        let fields = [
            self.first.headers,
            self.first.payload,
            flow.network,
            flow.checksum_offset(),
        ];
        for (place, field) in header[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&(field as u16).to_ne_bytes());
        }
        header
    }
}

/// True if two packets of one flow differ in nothing that would be lost: lengths, checksums, IPv4 identification, TCP
/// sequence number, window and PSH are made anew or do not matter, as in the kernel's own GRO.
fn same_headers(head: &[u8], packet: &[u8], first: &Segment, segment: &Segment) -> bool {
    if first.headers != segment.headers {
        return false;
    }
    let network = if first.flow.is_v6() {
        head[..4] == packet[..4] && head[7] == packet[7]
    } else {
        // Type of service, "don't fragment", time to live.
        head[1] == packet[1] && head[6] == packet[6] && head[8] == packet[8]
    };
    if first.flow.protocol == UDP {
        return network;
    }
    let at = first.flow.network;
    // Acknowledgement and offset, then options; the flags are ACK, with or without PSH.
    network
        && head[at + 8..at + 13] == packet[at + 8..at + 13]
        && head[at + TCP_HEADER..first.headers] == packet[at + TCP_HEADER..first.headers]
}

fn read_u16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
