//! Inner traffic: streams of numbered packets between two hosts, and what became of each.

use std::net::Ipv6Addr;
use std::time::Duration;

use mesh_core::time::Instant;

use super::world::HostId;

/// A stream of inner packets at a steady pace, each of which may be answered by the receiver's application.
#[derive(Debug, Clone)]
pub struct FlowConfig {
    /// Who sends.
    pub from: HostId,
    /// Who receives.
    pub to: HostId,
    /// Pause between packets.
    pub interval: Duration,
    /// Bytes of each inner packet, at least [`HEADER`].
    pub size: usize,
    /// The receiver sends each packet back.
    pub echo: bool,
}

/// Names a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub(super) usize);

/// What became of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// When it entered the tunnel.
    pub sent: Instant,
    /// When it left it at the other host.
    pub delivered: Option<Instant>,
    /// When its answer was back.
    pub answered: Option<Instant>,
}

/// A stream and its packets.
#[derive(Debug)]
pub struct Flow {
    /// As it was set up.
    pub config: FlowConfig,
    /// Its packets in order.
    pub packets: Vec<Fate>,
    /// Packets that came out of the tunnel more than once.
    pub duplicates: u64,
    pub(super) running: bool,
}

impl Flow {
    pub(super) fn new(config: FlowConfig) -> Self {
        Self {
            config,
            packets: Vec::new(),
            duplicates: 0,
            running: true,
        }
    }

    /// True if any answer has come back; for a stream without answers, if any packet has arrived.
    pub fn works(&self) -> bool {
        self.packets.iter().any(|packet| self.has_arrived(packet))
    }

    /// When the first packet was done, as in [`Self::works`].
    pub fn first_success(&self) -> Option<Instant> {
        let done = |packet: &Fate| {
            if self.config.echo {
                packet.answered
            } else {
                packet.delivered
            }
        };
        self.packets.iter().filter_map(done).min()
    }

    /// Packets that were sent in `range` and are not done yet.
    pub fn missing(&self, range: std::ops::Range<Instant>) -> usize {
        let sent = self
            .packets
            .iter()
            .filter(|packet| range.contains(&packet.sent));
        sent.filter(|packet| !self.has_arrived(packet)).count()
    }

    /// True when a packet that was sent at `since` or later is done.
    pub fn works_since(&self, since: Instant) -> bool {
        let late = self
            .packets
            .iter()
            .rev()
            .take_while(|packet| packet.sent >= since);
        late.into_iter().any(|packet| self.has_arrived(packet))
    }

    fn has_arrived(&self, packet: &Fate) -> bool {
        if self.config.echo {
            packet.answered.is_some()
        } else {
            packet.delivered.is_some()
        }
    }
}

/// Bytes of an inner packet's headers: IPv6, UDP, and ours.
pub(super) const HEADER: usize = 40 + 8 + PAYLOAD;
const PAYLOAD: usize = 4 + 1 + 4 + 8;
const MAGIC: [u8; 4] = *b"flow";
const UDP: u8 = 17;

/// What an inner packet of a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) flow: FlowId,
    pub(super) sequence: usize,
    pub(super) is_answer: bool,
}

/// Builds an inner packet.
pub(super) fn inner_packet(from: Ipv6Addr, to: Ipv6Addr, label: Label, size: usize) -> Vec<u8> {
    let size = size.max(HEADER);
    let mut payload = Vec::with_capacity(size - 48);
    payload.extend(MAGIC);
    payload.push(u8::from(label.is_answer));
    payload.extend((label.flow.0 as u32).to_be_bytes());
    payload.extend((label.sequence as u64).to_be_bytes());
    payload.resize(size - 48, 0);
    udp_packet(from, to, &payload)
}

/// Builds an inner UDP packet with any payload. Checksums are not looked at by anybody here.
pub fn udp_packet(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() + 8) as u16;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([UDP, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([0x13, 0x88, 0x13, 0x88]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Reads what [`inner_packet`] wrote.
pub(super) fn parse(packet: &[u8]) -> Option<Label> {
    let payload = packet.get(48..)?.first_chunk::<PAYLOAD>()?;
    let (magic, rest) = payload.split_first_chunk::<4>()?;
    let (is_answer, rest) = rest.split_first()?;
    let (flow, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, _) = rest.split_first_chunk::<8>()?;
    (*magic == MAGIC).then_some(Label {
        flow: FlowId(u32::from_be_bytes(*flow) as usize),
        sequence: usize::try_from(u64::from_be_bytes(*sequence)).ok()?,
        is_answer: *is_answer != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_a_packet_and_foreign_packets_have_none() {
        let label = Label {
            flow: FlowId(3),
            sequence: 77,
            is_answer: true,
        };
        let (a, b) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        let packet = inner_packet(a, b, label, 500);
        assert_eq!(packet.len(), 500);
        assert_eq!(parse(&packet), Some(label));
        assert_eq!(parse(&packet[..60]), None);
        assert_eq!(parse(&udp_packet(a, b, &[0; 100])), None);
    }
}
