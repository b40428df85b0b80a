//! Joins inner packets of one flow into super-packets on their way to TUN.
//!
//! Writing a packet costs some 3 µs, whether it has 1 KiB or 64 KiB. So data packets of one TCP or UDP flow that follow
//! each other are written as one, by `writev` straight from the buffers that they were opened into: nothing is copied,
//! only the headers of the first packet change.
//!
//! Packets of different flows may overtake each other; packets of one flow never do.

use std::io::{self, IoSlice};
use std::ops::Range;

use mesh_core::offload::VIRTIO_NET_HDR;

use super::segment::{Flow, Joined, Kind, Segment, inspect};

/// Flows that are collected at the same time. More only matters when many senders' packets alternate one by one.
const FLOWS: usize = 8;
/// Longest headers that are joined: IPv6 and TCP with all options.
const MAX_HEADERS: usize = 40 + 60;
/// Packets in one write: what 64 KiB hold of full-size ones, and then some.
const BURST: usize = 128;

/// A super-packet in the making, and which packets it is made of.
#[derive(Debug)]
struct Burst {
    joined: Joined,
    packets: Vec<Range<usize>>,
}

/// Keeps its memory from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    bursts: Vec<Burst>,
    spare: Vec<Vec<Range<usize>>>,
}

/// How writing went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Packets that were not written.
    pub(crate) lost: u64,
    /// Super-packets that the kernel took.
    pub(crate) joined: u64,
    /// It answered `EINVAL` to a super-packet, whose parts were then written one by one.
    pub(crate) refused: bool,
}

/// Where packets lie, and how to hand one of them, with the kernel's header before it, to the device.
struct Output<'a, W> {
    /// Before each packet there is room for the kernel's header.
    storage: &'a mut [u8],
    write: W,
    outcome: Outcome,
}

impl Coalescer {
    /// Writes the packets at `ranges` of `storage`, each of which has [`VIRTIO_NET_HDR`] spare bytes before it. `udp` says
    /// whether UDP may be joined. `write` gets one packet with the kernel's header at a time.
    pub(crate) fn write(
        &mut self,
        storage: &mut [u8],
        ranges: &[Range<usize>],
        udp: bool,
        write: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> Outcome {
        let mut output = Output::new(storage, write);
        for range in ranges {
            match inspect(&output.storage[range.clone()], udp) {
                Kind::Data(segment) => self.collect(&mut output, range, segment),
                Kind::Alone(flow) => {
                    if let Some(at) = self.find(output.storage, flow, range) {
                        self.finish(at, &mut output);
                    }
                    output.write_alone(range);
                }
                Kind::Other => output.write_alone(range),
            }
        }
        while !self.bursts.is_empty() {
            self.finish(0, &mut output);
        }
        output.outcome
    }

    /// Adds a packet to its flow's burst, or begins one with it.
    fn collect<W: FnMut(&[IoSlice<'_>]) -> io::Result<()>>(
        &mut self,
        output: &mut Output<'_, W>,
        range: &Range<usize>,
        segment: Segment,
    ) {
        if let Some(at) = self.find(output.storage, segment.flow, range) {
            let burst = &mut self.bursts[at];
            let head = &output.storage[burst.packets[0].clone()];
            let packet = &output.storage[range.clone()];
            if burst.packets.len() < BURST && burst.joined.append(head, packet, &segment) {
                burst.packets.push(range.clone());
                return;
            }
            self.finish(at, output);
        } else if self.bursts.len() == FLOWS {
            self.finish(0, output);
        }
        let mut packets = self.spare.pop().unwrap_or_default();
        packets.push(range.clone());
        let joined = Joined::new(segment);
        self.bursts.push(Burst { joined, packets });
    }

    /// The burst of the flow that a packet belongs to.
    fn find(&self, storage: &[u8], flow: Flow, range: &Range<usize>) -> Option<usize> {
        let packet = &storage[range.clone()];
        self.bursts.iter().position(|burst| {
            let head = &storage[burst.packets[0].clone()];
            burst.joined.first.flow.joins(head, flow, packet)
        })
    }

    /// Writes what is collected of one flow.
    fn finish<W: FnMut(&[IoSlice<'_>]) -> io::Result<()>>(
        &mut self,
        at: usize,
        output: &mut Output<'_, W>,
    ) {
        let mut burst = self.bursts.remove(at);
        match &burst.packets[..] {
            [only] => output.write_alone(only),
            _ => output.write_joined(&burst),
        }
        burst.packets.clear();
        self.spare.push(burst.packets);
    }
}

/// Writes packets one by one, each as it is.
pub(crate) fn write_plain(
    storage: &mut [u8],
    ranges: &[Range<usize>],
    write: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
) -> Outcome {
    let mut output = Output::new(storage, write);
    for range in ranges {
        output.write_alone(range);
    }
    output.outcome
}

impl<'a, W: FnMut(&[IoSlice<'_>]) -> io::Result<()>> Output<'a, W> {
    fn new(storage: &'a mut [u8], write: W) -> Self {
        let outcome = Outcome::default();
        Self {
            storage,
            write,
            outcome,
        }
    }

    fn write_alone(&mut self, range: &Range<usize>) {
        let start = range.start.checked_sub(VIRTIO_NET_HDR);
        let packet = start.and_then(|start| self.storage.get_mut(start..range.end));
        let written = packet.is_some_and(|packet| {
            // "Nothing to segment, nothing to sum up."
            packet[..VIRTIO_NET_HDR].fill(0);
            (self.write)(&[IoSlice::new(packet)]).is_ok()
        });
        self.outcome.lost += u64::from(!written);
    }

    fn write_joined(&mut self, burst: &Burst) {
        let headers = burst.joined.first.headers;
        let first = burst.packets[0].clone();
        let start = first.start - VIRTIO_NET_HDR;
        let head = &mut self.storage[first.clone()];
        let mut original = [0; MAX_HEADERS];
        original[..headers].copy_from_slice(&head[..headers]);
        let virtio = burst.joined.rewrite(head);
        self.storage[start..first.start].copy_from_slice(&virtio);

        let mut parts = [IoSlice::new(&[]); BURST];
        parts[0] = IoSlice::new(&self.storage[start..first.end]);
        for (part, range) in parts[1..].iter_mut().zip(&burst.packets[1..]) {
            *part = IoSlice::new(&self.storage[range.start + headers..range.end]);
        }
        match (self.write)(&parts[..burst.packets.len()]) {
            Ok(()) => self.outcome.joined += 1,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.outcome.refused = true;
                self.storage[first][..headers].copy_from_slice(&original[..headers]);
                for range in &burst.packets {
                    self.write_alone(range);
                }
            }
            Err(_) => self.outcome.lost += burst.packets.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use mesh_core::offload::checksum;

    use super::*;

    /// What lies before each packet in a receive buffer: the header of WireGuard's data message.
    const HEADROOM: usize = 16;

    const ACK: u8 = 0x10;
    const PSH: u8 = 0x08;

    /// A packet of a flow; the setters fill in what a test is about.
    #[derive(Clone)]
    struct Packet {
        source: IpAddr,
        destination: IpAddr,
        port: u16,
        tcp: bool,
        sequence: u32,
        flags: u8,
        payload: Vec<u8>,
        ttl: u8,
        options: Vec<u8>,
    }

    fn tcp(sequence: u32, payload: &[u8]) -> Packet {
        Packet {
            source: "10.77.0.1".parse().unwrap(),
            destination: "10.77.0.2".parse().unwrap(),
            port: 5_000,
            tcp: true,
            sequence,
            flags: ACK,
            payload: payload.to_vec(),
            ttl: 64,
            options: vec![1; 12],
        }
    }

    fn udp(payload: &[u8]) -> Packet {
        Packet {
            tcp: false,
            options: Vec::new(),
            ..tcp(0, payload)
        }
    }

    fn v6(packet: Packet) -> Packet {
        Packet {
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            ..packet
        }
    }

    impl Packet {
        fn transport(&self) -> Vec<u8> {
            let mut bytes = 40_000_u16.to_be_bytes().to_vec();
            bytes.extend(self.port.to_be_bytes());
            if self.tcp {
                bytes.extend(self.sequence.to_be_bytes());
                bytes.extend(7_u32.to_be_bytes());
                bytes.extend([((20 + self.options.len()) << 2) as u8, self.flags]);
                bytes.extend([1, 0, 0, 0, 0, 0]);
                bytes.extend(&self.options);
            } else {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
            bytes.extend(&self.payload);
            bytes
        }

        /// With checksums, as a buffer with headroom.
        fn buffer(&self) -> Vec<u8> {
            let mut transport = self.transport();
            let protocol = if self.tcp { 6 } else { 17 };
            let (mut network, addresses) = match (self.source, self.destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    let mut network = vec![0x45, 0, 0, 0, 0, 9, 0x40, 0, self.ttl, protocol, 0, 0];
                    network[2..4].copy_from_slice(&(20 + transport.len() as u16).to_be_bytes());
                    (network, [source.octets(), destination.octets()].concat())
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    let mut network = vec![0x60, 0, 0, 5, 0, 0, protocol, self.ttl];
                    network[4..6].copy_from_slice(&(transport.len() as u16).to_be_bytes());
                    (network, [source.octets(), destination.octets()].concat())
                }
                _ => panic!("mixed families"),
            };
            network.extend(&addresses);
            if network[0] == 0x45 {
                let sum = !checksum(&network, 0);
                network[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let pseudo = checksum(&addresses, u64::from(protocol) + transport.len() as u64);
            let sum = !checksum(&transport, pseudo.into());
            let at = if self.tcp { 16 } else { 6 };
            transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            let mut buffer = vec![0xee; HEADROOM];
            buffer.extend(network);
            buffer.extend(transport);
            buffer
        }
    }

    /// The buffers one after the other, as they lie in a receive buffer, and where their packets are.
    fn laid_out(buffers: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
        let (mut storage, mut ranges) = (Vec::new(), Vec::new());
        for buffer in buffers {
            let start = storage.len() + HEADROOM;
            storage.extend(buffer);
            ranges.push(start..storage.len());
        }
        (storage, ranges)
    }

    fn written(buffers: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut writes = Vec::new();
        let (mut storage, ranges) = laid_out(buffers);
        let outcome = Coalescer::default().write(&mut storage, &ranges, true, |parts| {
            writes.push(parts.iter().flat_map(|part| part.to_vec()).collect());
            Ok(())
        });
        assert_eq!((outcome.lost, outcome.refused), (0, false));
        writes
    }

    fn lengths(packets: &[Packet]) -> Vec<usize> {
        let buffers: Vec<_> = packets.iter().map(Packet::buffer).collect();
        let writes = written(&buffers);
        writes
            .iter()
            .map(|write| write.len() - VIRTIO_NET_HDR)
            .collect()
    }

    /// What the kernel makes of a super-packet, written by the rules of the virtio standard and independently of the
    /// code under test, as far as checksums go; headers apart from lengths and sequence are copied.
    fn segmented(write: &[u8]) -> Vec<Vec<u8>> {
        let field = |at: usize| usize::from(u16::from_ne_bytes([write[at], write[at + 1]]));
        let packet = &write[VIRTIO_NET_HDR..];
        if write[1] == 0 {
            assert_eq!(write[..VIRTIO_NET_HDR], [0; VIRTIO_NET_HDR]);
            return vec![packet.to_vec()];
        }
        let (headers, size, network, offset) = (field(2), field(4), field(6), field(8));
        assert_eq!(write[0], 1);
        let mut segments = Vec::new();
        let parts = packet[headers..].chunks(size);
        let count = parts.len();
        for (index, part) in parts.enumerate() {
            let mut segment = [&packet[..headers], part].concat();
            let transport = segment.len() - network;
            let v6 = segment[0] >> 4 == 6;
            let (addresses, total) = if v6 {
                segment[4..6].copy_from_slice(&(transport as u16).to_be_bytes());
                (segment[8..40].to_vec(), packet.len() - 40)
            } else {
                let length = segment.len() as u16;
                segment[2..4].copy_from_slice(&length.to_be_bytes());
                segment[10..12].fill(0);
                let sum = !checksum(&segment[..20], 0);
                segment[10..12].copy_from_slice(&sum.to_be_bytes());
                (segment[12..20].to_vec(), packet.len() - 20)
            };
            // The field holds the sum of the whole's pseudo-header.
            let protocol = if offset == 16 { 6 } else { 17 };
            let whole = checksum(&addresses, protocol + total as u64);
            assert_eq!(packet[network + offset..][..2], whole.to_be_bytes());
            if offset == 16 {
                let sequence = u32::from_be_bytes(packet[network + 4..][..4].try_into().unwrap());
                let sequence = sequence.wrapping_add((index * size) as u32);
                segment[network + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
                if index + 1 < count {
                    segment[network + 13] &= !PSH;
                }
            } else {
                segment[network + 4..][..2].copy_from_slice(&(transport as u16).to_be_bytes());
            }
            segment[network + offset..][..2].fill(0);
            let pseudo = checksum(&addresses, protocol + transport as u64);
            let sum = !checksum(&segment[network..], pseudo.into());
            segment[network + offset..][..2].copy_from_slice(&sum.to_be_bytes());
            segments.push(segment);
        }
        segments
    }

    fn in_order(payloads: &[Vec<u8>], make: impl Fn(u32, &[u8]) -> Packet) -> Vec<Packet> {
        let mut sequence = 0xffff_fff0_u32;
        let mut packets: Vec<_> = payloads
            .iter()
            .map(|payload| {
                let packet = make(sequence, payload);
                sequence = sequence.wrapping_add(payload.len() as u32);
                packet
            })
            .collect();
        if let Some(last) = packets.last_mut().filter(|last| last.tcp) {
            last.flags |= PSH;
        }
        packets
    }

    #[test]
    fn the_kernel_gets_back_what_went_in() {
        let payloads: Vec<_> = (0..40)
            .map(|i| vec![i; if i == 39 { 77 } else { 1_201 }])
            .collect();
        let makes: [fn(u32, &[u8]) -> Packet; 4] = [
            tcp,
            |sequence, payload| v6(tcp(sequence, payload)),
            |_, payload| udp(payload),
            |_, payload| v6(udp(payload)),
        ];
        for make in makes {
            let buffers: Vec<_> = in_order(&payloads, make)
                .iter()
                .map(Packet::buffer)
                .collect();
            let expected: Vec<_> = buffers
                .iter()
                .map(|buffer| buffer[HEADROOM..].to_vec())
                .collect();
            let writes = written(&buffers);
            assert_eq!(writes.len(), 1);
            assert!(segmented(&writes[0]) == expected);
        }
    }

    #[test]
    fn a_super_packet_holds_64_kib_at_most() {
        let payloads = vec![vec![5; 1_300]; 128];
        let lengths = lengths(&in_order(&payloads, tcp));
        assert_eq!(
            lengths.iter().map(|length| length - 52).sum::<usize>(),
            128 * 1_300
        );
        assert!(lengths.iter().all(|length| *length <= 65_535));
        assert_eq!(lengths.len(), 3);
    }

    #[test]
    fn flows_that_alternate_are_joined_each() {
        let mut packets = Vec::new();
        for i in 0..10_u32 {
            for port in 0..3 {
                packets.push(Packet {
                    port,
                    ..tcp(i * 100, &[0; 100])
                });
            }
        }
        assert_eq!(lengths(&packets), [52 + 1_000; 3]);
    }

    #[test]
    fn more_flows_than_are_kept_lose_nothing() {
        let buffers: Vec<_> = (0..60_u16)
            .map(|i| {
                let port = i % 20;
                let packet = Packet {
                    port,
                    ..tcp(u32::from(i / 20) * 10, &[port as u8; 10])
                };
                packet.buffer()
            })
            .collect();
        let writes = written(&buffers);
        let total: usize = writes.iter().map(|write| segmented(write).len()).sum();
        assert_eq!(total, 60);
    }

    #[test]
    fn what_differs_is_not_joined() {
        let first = tcp(0, &[1; 100]);
        let next = tcp(100, &[2; 100]);
        let both = |second: Packet| lengths(&[first.clone(), second]).len();
        assert_eq!(both(next.clone()), 1);
        let mut cases = vec![
            ("a gap", tcp(101, &[2; 100])),
            ("a repetition", first.clone()),
            ("a longer packet", tcp(100, &[2; 101])),
            ("no data", tcp(100, &[])),
            ("another flow", v6(next.clone())),
        ];
        for flags in [ACK | 1, 2, 4, ACK | 0x20, ACK | 0x40, ACK | 0x80, 0] {
            let mut packet = next.clone();
            packet.flags = flags;
            cases.push(("flags", packet));
        }
        let mut packet = next.clone();
        packet.ttl = 63;
        cases.push(("another TTL", packet));
        let mut packet = next.clone();
        packet.options[3] = 0;
        cases.push(("other options", packet));
        let mut packet = next.clone();
        packet.options.truncate(8);
        cases.push(("fewer options", packet));
        let mut packet = next;
        packet.port = 1;
        cases.push(("another port", packet));
        for (what, packet) in cases {
            assert_eq!(both(packet), 2, "{what}");
        }
    }

    #[test]
    fn nothing_follows_a_short_packet_or_a_push() {
        let packets = [tcp(0, &[1; 100]), tcp(100, &[1; 50]), tcp(150, &[1; 50])];
        assert_eq!(lengths(&packets), [202, 102]);
        let mut packets = [tcp(0, &[1; 100]), tcp(100, &[1; 100]), tcp(200, &[1; 100])];
        packets[1].flags |= PSH;
        assert_eq!(lengths(&packets), [252, 152]);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        for at in [HEADROOM + 10, HEADROOM + 100] {
            let mut buffers = vec![tcp(0, &[1; 100]).buffer(), tcp(100, &[1; 100]).buffer()];
            buffers[1][at] ^= 0x10;
            let expected = buffers[1][HEADROOM..].to_vec();
            let writes = written(&buffers);
            assert_eq!(writes.len(), 2);
            assert_eq!(segmented(&writes[1])[0], expected);
        }
    }

    #[test]
    fn one_flow_keeps_its_order() {
        let mut fin = tcp(200, &[]);
        fin.flags |= 1;
        let packets = [
            tcp(0, &[1; 100]),
            udp(&[9; 10]),
            tcp(100, &[1; 100]),
            fin,
            udp(&[9; 10]),
        ];
        let buffers: Vec<_> = packets.iter().map(Packet::buffer).collect();
        let lengths: Vec<_> = written(&buffers)
            .iter()
            .map(|write| write.len() - 10)
            .collect();
        // The data, its end, then the other flow.
        assert_eq!(lengths, [252, 52, 48]);
    }

    #[test]
    fn fragments_and_other_protocols_pass_as_they_are() {
        let mut fragment = tcp(0, &[1; 100]).buffer();
        fragment[HEADROOM + 6] = 0x20;
        let mut icmp = tcp(0, &[1; 100]).buffer();
        icmp[HEADROOM + 9] = 1;
        let buffers = [fragment.clone(), fragment, icmp.clone(), icmp];
        let expected: Vec<_> = buffers.iter().map(|b| b[HEADROOM..].to_vec()).collect();
        let writes = written(&buffers);
        let packets: Vec<_> = writes.iter().flat_map(|write| segmented(write)).collect();
        assert_eq!(packets, expected);
    }

    #[test]
    fn a_refused_super_packet_is_written_in_parts() {
        let buffers: Vec<_> = (0..5_u32)
            .map(|i| tcp(i * 100, &[i as u8; 100]).buffer())
            .collect();
        let expected: Vec<_> = buffers.iter().map(|b| b[HEADROOM..].to_vec()).collect();
        let mut packets = Vec::new();
        let (mut storage, ranges) = laid_out(&buffers);
        let outcome = Coalescer::default().write(&mut storage, &ranges, true, |parts| {
            if parts.len() > 1 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            packets.push(parts[0][VIRTIO_NET_HDR..].to_vec());
            Ok(())
        });
        let refused = Outcome {
            refused: true,
            ..Outcome::default()
        };
        assert_eq!(outcome, refused);
        assert_eq!(packets, expected);
    }

    #[test]
    fn packets_that_are_not_taken_are_counted() {
        let mut buffers: Vec<_> = (0..5_u32)
            .map(|i| tcp(i * 100, &[0; 100]).buffer())
            .collect();
        buffers.push(udp(&[1; 3]).buffer());
        let (mut storage, ranges) = laid_out(&buffers);
        let outcome = Coalescer::default().write(&mut storage, &ranges, true, |_| {
            Err(io::Error::from_raw_os_error(libc::EIO))
        });
        assert_eq!((outcome.lost, outcome.refused), (6, false));
    }

    #[test]
    fn no_bytes_whatever_are_a_problem() {
        let mut state = 1_u64;
        let mut random = move |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) as usize) % below
        };
        for _ in 0..20_000 {
            let buffers: Vec<_> = (0..1 + random(6) as u32)
                .map(|i| {
                    let payload = vec![0; random(30)];
                    let mut packet = if random(2) == 0 {
                        tcp(i * 7, &payload)
                    } else {
                        udp(&payload)
                    };
                    if random(2) == 0 {
                        packet = v6(packet);
                    }
                    let mut buffer = packet.buffer();
                    for _ in 0..random(4) {
                        let at = random(buffer.len());
                        buffer[at] = random(256) as u8;
                    }
                    buffer.truncate(HEADROOM + random(140));
                    buffer
                })
                .collect();
            let count = buffers.len();
            let writes = written(&buffers);
            assert!(writes.len() <= count);
        }
        assert_eq!(written(&[]), Vec::<Vec<u8>>::new());
    }
}
