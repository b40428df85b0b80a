//! Segmentation offload: a TUN device hands over up to 64 KiB of one TCP or UDP flow as one super-packet, with a
//! `virtio_net_hdr` that says how to cut it up (virtio 1.2, section 5.1.6; Linux, `include/uapi/linux/virtio_net.h`).
//!
//! Segments are written straight into the place where they will be sealed. Checksums are computed here, once; the kernel
//! left them out.

mod checksum;
mod mss;
#[cfg(test)]
mod tests;

pub(crate) use checksum::Sum;
pub use checksum::checksum;
pub(crate) use mss::{clamp_mss, opens_tcp};

/// Length of the `virtio_net_hdr` that TUN uses: without the count of merged buffers.
pub const VIRTIO_NET_HDR: usize = 10;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;
/// May be set on top of a TCP type: the first segment has CWR, the others do not (RFC 3168, section 6.1.2).
const GSO_ECN: u8 = 0x80;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// IPv4's length field ends an interval of 64 KiB; there is no longer packet without jumbograms.
const MAX_PACKET: usize = 65_535;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FLAGS_OF_LAST: u8 = 0x01 | 0x08; // FIN, PSH
const FLAG_OF_FIRST: u8 = 0x80; // CWR

/// What a device handed over is no packet, or its header contradicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A packet from a TUN device, possibly one to be cut up.
#[derive(Debug, Clone, Copy)]
pub struct SuperPacket<'a> {
    packet: &'a [u8],
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    /// To be sent as it is, apart from a checksum: from where it counts, and where it goes.
    Whole {
        checksum: Option<(usize, usize)>,
    },
    Segments(Cut),
}

/// How a super-packet is cut up.
#[derive(Debug, Clone, Copy)]
struct Cut {
    protocol: u8,
    /// Where the transport header starts, and where the payload does.
    transport: usize,
    payload: usize,
    /// Payload of each segment but the last.
    size: usize,
    /// How many segments it gives.
    count: usize,
}

impl<'a> SuperPacket<'a> {
    /// A packet with nothing left to do.
    pub const fn whole(packet: &'a [u8]) -> Self {
        let shape = Shape::Whole { checksum: None };
        Self { packet, shape }
    }

    /// Reads what a TUN device with `IFF_VNET_HDR` handed over.
    ///
    /// # Errors
    /// [`Malformed`] when the header does not fit the packet, or asks for what the device was not told to do.
    pub fn parse(frame: &'a [u8]) -> Result<Self, Malformed> {
        let (header, packet) = frame
            .split_first_chunk::<VIRTIO_NET_HDR>()
            .ok_or(Malformed)?;
        if packet.len() > MAX_PACKET {
            return Err(Malformed);
        }
        let field = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
        let (size, start, offset) = (field(4), field(6), field(8));
        let shape = match header[1] & !GSO_ECN {
            GSO_NONE if header[0] & FLAG_NEEDS_CHECKSUM == 0 => Shape::Whole { checksum: None },
            GSO_NONE if start + offset + 2 <= packet.len() => {
                let checksum = Some((start, start + offset));
                Shape::Whole { checksum }
            }
            GSO_TCP_V4 => Shape::Segments(Cut::new(packet, 4, TCP, start, size)?),
            GSO_TCP_V6 => Shape::Segments(Cut::new(packet, 6, TCP, start, size)?),
            GSO_UDP => {
                let version = packet.first().ok_or(Malformed)? >> 4;
                Shape::Segments(Cut::new(packet, version, UDP, start, size)?)
            }
            _ => return Err(Malformed),
        };
        Ok(Self { packet, shape })
    }

    /// The packet as it was handed over; its addresses are those of every segment.
    pub fn bytes(&self) -> &'a [u8] {
        self.packet
    }

    /// How many packets are to be sent for it.
    pub fn count(&self) -> usize {
        match self.shape {
            Shape::Whole { .. } => 1,
            Shape::Segments(cut) => cut.count,
        }
    }

    /// Length of packet number `at`.
    pub fn length(&self, at: usize) -> usize {
        match self.shape {
            Shape::Whole { .. } => self.packet.len(),
            Shape::Segments(cut) => {
                let rest = self.packet.len() - cut.payload - at * cut.size;
                cut.payload + rest.min(cut.size)
            }
        }
    }

    /// Writes packet number `at` to `out`, which is [`Self::length`] bytes long.
    pub fn write(&self, at: usize, out: &mut [u8]) {
        match self.shape {
            Shape::Whole { checksum } => {
                let Some((start, field)) = checksum else {
                    return out.copy_from_slice(self.packet);
                };
                let (headers, rest) = out.split_at_mut(start);
                headers.copy_from_slice(&self.packet[..start]);
                // The field holds the sum of the pseudo-header already.
                let sum = Sum::copying(&self.packet[start..], rest);
                put_checksum(out, field, !sum.fold());
            }
            Shape::Segments(cut) => cut.write(self.packet, at, out),
        }
    }
}

impl Cut {
    /// The header's own length field is not used: for a forwarded packet it may be that of the whole.
    fn new(
        packet: &[u8],
        version: u8,
        protocol: u8,
        transport: usize,
        size: usize,
    ) -> Result<Self, Malformed> {
        let (least, claimed) = match version {
            4 => (IPV4_HEADER, packet.get(9)),
            6 => (IPV6_HEADER, None),
            _ => return Err(Malformed),
        };
        let right = packet.first().is_some_and(|first| first >> 4 == version)
            && claimed.is_none_or(|claimed| *claimed == protocol)
            && transport >= least;
        let header = match protocol {
            TCP => {
                let offset = packet.get(transport + 12).ok_or(Malformed)? >> 4;
                usize::from(offset) * 4
            }
            _ => UDP_HEADER,
        };
        let short = protocol == TCP && header < TCP_HEADER;
        let payload = transport + header;
        if !right || short || size == 0 || payload >= packet.len() {
            return Err(Malformed);
        }
        Ok(Self {
            protocol,
            transport,
            payload,
            size,
            count: (packet.len() - payload).div_ceil(size),
        })
    }

    fn write(&self, packet: &[u8], at: usize, out: &mut [u8]) {
        let from = self.payload + at * self.size;
        let last = from + self.size >= packet.len();
        let (headers, payload) = out.split_at_mut(self.payload);
        headers.copy_from_slice(&packet[..self.payload]);
        let sum = Sum::copying(&packet[from..from + payload.len()], payload);
        let length = (headers.len() - self.transport + payload.len()) as u16;
        let (network, transport) = headers.split_at_mut(self.transport);
        let addresses = write_network(network, length, at);
        if self.protocol == TCP {
            let sequence = &mut transport[4..8];
            let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
            let number = first.wrapping_add((at * self.size) as u32);
            sequence.copy_from_slice(&number.to_be_bytes());
            let flags = &mut transport[13];
            if !last {
                *flags &= !FLAGS_OF_LAST;
            }
            if at > 0 {
                *flags &= !FLAG_OF_FIRST;
            }
        } else {
            transport[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let field = if self.protocol == TCP { 16 } else { 6 };
        transport[field..field + 2].fill(0);
        let pseudo_header = addresses
            .and_number(self.protocol.into())
            .and_number(length);
        let sum = sum.and(Sum::of(transport)).and(pseudo_header);
        put_checksum(transport, field, !sum.fold());
    }
}

/// Fills in length, identification and checksum of an IP header, `length` bytes of transport follow it. Returns the sum of
/// the addresses.
fn write_network(header: &mut [u8], length: u16, at: usize) -> Sum {
    let total = header.len() as u16 + length;
    if header[0] >> 4 == 6 {
        let payload = total - IPV6_HEADER as u16;
        header[4..6].copy_from_slice(&payload.to_be_bytes());
        return Sum::of(&header[8..40]);
    }
    header[2..4].copy_from_slice(&total.to_be_bytes());
    let identification = u16::from_be_bytes([header[4], header[5]]).wrapping_add(at as u16);
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[10..12].fill(0);
    let sum = !Sum::of(header).fold();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Sum::of(&header[12..20])
}

/// A sum of zero is written as its other form: zero means "none" in UDP (RFC 768), and in TCP both are the same.
fn put_checksum(packet: &mut [u8], field: usize, sum: u16) {
    let sum = if sum == 0 { 0xffff } else { sum };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}
