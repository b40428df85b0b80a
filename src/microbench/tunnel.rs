//! Two engines that reach each other directly.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::NOW;
use super::roster::{identity, setup};
use crate::batch::{Batches, ReceiveBatch};
use crate::engine::{Engine, HostAddress, NetworkIndex, Output, PeerKey, PeerSetup, SocketId};
use crate::identity::overlay_address;
use crate::limits;
use crate::offload::{SuperPacket, VIRTIO_NET_HDR};
use crate::session::Kernel;
use crate::time::Instant;

const NET: NetworkIndex = NetworkIndex(0);
const IPV6: usize = 40;
const TCP: usize = 20;
/// What a TCP segment carries if it fills a packet.
const SEGMENT: usize = limits::INNER_MTU as usize - IPV6 - TCP;
/// Messages that one receive brings at most.
const MESSAGES: usize = 16;

struct End {
    engine: Engine,
    address: SocketAddr,
    overlay: Ipv6Addr,
    batches: Batches,
}

fn address(number: u8) -> SocketAddr {
    ([198, 51, 100, number], 41_820).into()
}

impl End {
    fn new(own: u8, peer: u8, kernel: Kernel) -> Self {
        let mut engine = Engine::new([own; 32], kernel, NOW, Duration::from_secs(1_800_000_000));
        let peer = PeerSetup {
            key: PeerKey::Mesh(identity(peer.into()).id()),
            name: format!("host-{peer}"),
            addresses: Vec::new(),
            routes: Vec::new(),
            psk: None,
            endpoints: vec![address(peer)],
        };
        let setup = setup(own.into(), vec![peer]);
        let overlay = overlay_address(&setup.id, &setup.identity.id());
        engine
            .add_network(NOW, NET, setup)
            .expect("a network of two");
        let host = HostAddress {
            ip: address(own).ip(),
            virtual_interface: false,
            mtu: 1_500,
        };
        engine.set_local_addresses(NOW, &[host], Some(address(own).port()), None);
        Self {
            engine,
            address: address(own),
            overlay,
            batches: Batches::new(kernel),
        }
    }

    /// Datagrams that it wants sent. Those with a TTL of their own die on the way.
    fn outgoing(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        for (run, bytes) in self.batches.send.runs() {
            datagrams.extend(bytes.chunks(run.segment).map(<[u8]>::to_vec));
        }
        self.batches.send.clear();
        while let Some(output) = self.engine.poll_output() {
            if let Output::Datagram {
                ttl: None, payload, ..
            } = output
            {
                datagrams.push(payload);
            }
        }
        datagrams
    }
}

/// Two engines with a session and a direct path, on a network that takes no time. The first one sends.
pub struct Tunnel {
    ends: [End; 2],
    now: Instant,
    received: ReceiveBatch,
}

impl Tunnel {
    /// Both ends seal and open with `kernel`.
    ///
    /// # Panics
    /// If they do not find to each other.
    pub fn new(kernel: Kernel) -> Self {
        let mut tunnel = Self {
            ends: [End::new(1, 2, kernel), End::new(2, 1, kernel)],
            now: NOW,
            received: ReceiveBatch::new(MESSAGES),
        };
        let first = tunnel.small_packets(1, 64);
        tunnel.take(&first);
        tunnel.settle();
        for end in &tunnel.ends {
            let status = end.engine.status(tunnel.now);
            assert!(status[0].peers[0].path.is_some(), "no path after a second");
        }
        tunnel
    }

    /// Delivers everything, and lets a second pass with its timeouts.
    fn settle(&mut self) {
        let end = self.now + Duration::from_secs(1);
        loop {
            let mut quiet = true;
            for at in 0..2 {
                for datagram in self.ends[at].outgoing() {
                    quiet = false;
                    let mut received = ReceiveBatch::of(
                        SocketId::MESH,
                        self.ends[at].address,
                        &datagram,
                        datagram.len(),
                    );
                    let to = &mut self.ends[1 - at];
                    to.engine
                        .handle_udp(self.now, &mut received, &mut to.batches);
                }
            }
            let next = self.ends.iter().filter_map(|end| end.engine.poll_timeout());
            match next.min() {
                _ if !quiet => {}
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    for end in &mut self.ends {
                        end.engine.handle_timeout(self.now, &mut end.batches);
                    }
                }
                _ => return,
            }
        }
    }

    /// An IPv6 packet of `length` bytes from the first end to the second, without what depends on the protocol, behind
    /// an empty header of the device.
    fn frame(&self, protocol: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0; VIRTIO_NET_HDR];
        frame.extend((0..length).map(|at| at as u8));
        let packet = &mut frame[VIRTIO_NET_HDR..];
        let payload = u16::try_from(length - IPV6).expect("a packet of less than 64 KiB");
        packet[..IPV6].fill(0);
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[6..8].copy_from_slice(&[protocol, 64]);
        packet[8..24].copy_from_slice(&self.ends[0].overlay.octets());
        packet[24..40].copy_from_slice(&self.ends[1].overlay.octets());
        frame
    }

    /// TCP data of one flow that is to be cut into `segments` packets of the overlay's MTU, as a device hands it over.
    pub fn super_packet(&self, segments: usize) -> Vec<Vec<u8>> {
        let mut frame = self.frame(6, IPV6 + TCP + segments * SEGMENT);
        // Needs a checksum; TCP over IPv6 (virtio 1.2, section 5.1.6).
        frame[..2].copy_from_slice(&[1, 4]);
        let numbers = [IPV6 + TCP, SEGMENT, IPV6, 16];
        for (field, number) in frame[2..VIRTIO_NET_HDR].chunks_mut(2).zip(numbers) {
            field.copy_from_slice(&(number as u16).to_ne_bytes());
        }
        let tcp = &mut frame[VIRTIO_NET_HDR + IPV6..];
        tcp[12..14].copy_from_slice(&[((TCP / 4) << 4) as u8, 0x10]); // ACK
        vec![frame]
    }

    /// `count` packets of `length` bytes each.
    pub fn small_packets(&self, count: usize, length: usize) -> Vec<Vec<u8>> {
        vec![self.frame(17, length); count]
    }

    fn take(&mut self, frames: &[Vec<u8>]) {
        let end = &mut self.ends[0];
        for frame in frames {
            let packet = SuperPacket::parse(frame).expect("a packet of ours");
            end.engine
                .handle_tun(self.now, NET, &packet, &mut end.batches);
        }
    }

    /// What happens to packets from the first end's device until they can be sent; bytes of the datagrams.
    pub fn seal(&mut self, frames: &[Vec<u8>]) -> usize {
        self.take(frames);
        let send = &mut self.ends[0].batches.send;
        let bytes = send.runs().map(|(_, bytes)| bytes.len()).sum();
        send.clear();
        bytes
    }

    /// Has packets sealed, and puts them into the second end's buffers: as many messages as there are frames.
    pub fn send(&mut self, frames: &[Vec<u8>]) {
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        for frame in frames {
            self.take(std::slice::from_ref(frame));
            datagrams.push(self.ends[0].outgoing().concat());
        }
        for (buffer, message) in self.received.buffers(SocketId::MESH).zip(&datagrams) {
            buffer[..message.len()].copy_from_slice(message);
        }
        let full = usize::from(limits::INNER_MTU) + crate::session::OVERHEAD;
        for (at, message) in datagrams.iter().enumerate() {
            self.received
                .filled(at, self.ends[0].address, message.len(), full);
        }
    }

    /// What happens to the datagrams of [`Self::send`] until their packets can be written to the second end's device;
    /// how many those are.
    pub fn open(&mut self) -> usize {
        let end = &mut self.ends[1];
        end.engine
            .handle_udp(self.now, &mut self.received, &mut end.batches);
        let mut packets = 0;
        self.received.write(|_, _, ranges| packets += ranges.len());
        packets
    }
}
