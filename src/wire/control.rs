//! Control messages between peers: what meshd says to meshd inside the tunnel.
//!
//! Each is one IPv6 packet between exactly the two derived overlay addresses, with the reserved next header
//! [`NEXT_HEADER`], so that it fits through any WireGuard session and can be told from traffic at a glance. It is
//! consumed before TUN; a packet with that next header that comes *out of* TUN is dropped, so a local process cannot
//! forge one.

use std::net::{Ipv6Addr, SocketAddr};

use super::WireError;
use super::codec::{Reader, Writer};
use crate::limits;
use crate::nat::{Allocation, Filtering, Mapping, NatProfile, Pooling};

/// Next header of control packets: 253, "use for experimentation and testing" (RFC 3692, section 2.1).
pub const NEXT_HEADER: u8 = 253;
/// Version of these messages; a peer with another one is talked to by plain WireGuard over the relay only.
pub const VERSION: u8 = 1;

const IPV6_HEADER: usize = 40;

/// A message from meshd to meshd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Says that we speak this protocol. Nothing else is sent to a peer that has not said so.
    Hello {
        /// [`VERSION`] of the sender.
        version: u8,
        /// Random per run of the sender: a new one means that it forgot everything.
        instance: u64,
        /// True when it answers a hello, and wants none in return.
        reply: bool,
    },
    /// Sent on one candidate path; answered on the path that it came by.
    Probe {
        /// Echoed by the answer.
        transaction: u64,
        /// The sender's number of the path, by which an [`Control::Alive`] names it; 0 for none.
        path: u8,
        /// Zeros that make the packet as long as the path is to be tested for.
        padding: u16,
    },
    /// Answers [`Control::Probe`].
    ProbeAck {
        /// From the probe.
        transaction: u64,
    },
    /// Asks the peer to punch with us now: here are the addresses to try.
    CallMe(CallMe),
    /// Overlay ping.
    Ping {
        /// Echoed by the answer.
        token: u64,
    },
    /// Answers [`Control::Ping`].
    Pong {
        /// From the ping.
        token: u64,
    },
    /// Users' packets arrived, on these paths of the receiver of this message; at most [`limits::MAX_PATHS`].
    Alive(Vec<Received>),
}

/// How far the packets on one path came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The number that the packets' sender gave the path.
    pub path: u8,
    /// The session of the newest packets: its receiver index in them.
    pub session: u32,
    /// The highest counter of that session.
    pub highest: u64,
    /// Packets so far, modulo 2^32.
    pub count: u32,
}

/// One side's half of a punch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallMe {
    /// Counts up with each attempt of the initiator.
    pub round: u32,
    /// True when it answers a call.
    pub reply: bool,
    /// Where the sender may be reached, best first; at most [`limits::MAX_CANDIDATES`].
    pub candidates: Vec<SocketAddr>,
    /// What the sender's NAT does.
    pub profile: NatProfile,
    /// Round trip time to the receiver as the sender measured it, in milliseconds; 0 if it has not.
    pub rtt: u16,
    /// Which of the plans that follow from both profiles is to be tried, counted from 0; `None` for a plain punch. An
    /// answer without it declines the plan.
    pub plan: Option<u8>,
    /// The external port that the sender expects its packets to come from.
    pub port: Option<u16>,
}

impl Control {
    /// A probe that is an inner packet of `size` bytes, or of the least size that it can have.
    pub fn probe(transaction: u64, path: u8, size: u16) -> Self {
        const BARE: u16 = IPV6_HEADER as u16 + 1 + 8 + 1;
        let padding = size.saturating_sub(BARE);
        Self::Probe {
            transaction,
            path,
            padding,
        }
    }

    /// Writes the message as an IPv6 packet from `source` to `destination`.
    pub fn to_packet(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER];
        self.encode(&mut Writer::new(&mut packet));
        let payload = u16::try_from(packet.len() - IPV6_HEADER).unwrap_or(u16::MAX);
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[6] = NEXT_HEADER;
        packet[7] = 1; // hop limit: it is never forwarded
        packet[8..24].copy_from_slice(&source.octets());
        packet[24..40].copy_from_slice(&destination.octets());
        packet
    }

    /// Reads the payload of a control packet whose header the caller has checked.
    ///
    /// # Errors
    /// The message is truncated, unknown, has a list beyond its bound, or something follows it.
    pub fn from_packet(packet: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(packet.get(IPV6_HEADER..).ok_or(WireError::Truncated)?);
        let message = match reader.u8()? {
            1 => Self::Hello {
                version: reader.u8()?,
                instance: reader.u64()?,
                reply: reader.bool()?,
            },
            2 => Self::Probe {
                transaction: reader.u64()?,
                path: reader.u8()?,
                padding: zeros(&mut reader)?,
            },
            3 => Self::ProbeAck {
                transaction: reader.u64()?,
            },
            4 => Self::CallMe(CallMe::decode(&mut reader)?),
            5 => Self::Ping {
                token: reader.u64()?,
            },
            6 => Self::Pong {
                token: reader.u64()?,
            },
            7 => Self::Alive(decode_alive(&mut reader)?),
            _ => return Err(WireError::Invalid("control message")),
        };
        reader.finish()?;
        Ok(message)
    }

    fn encode(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Hello {
                version,
                instance,
                reply,
            } => {
                writer.u8(1);
                writer.u8(*version);
                writer.u64(*instance);
                writer.bool(*reply);
            }
            Self::Probe {
                transaction,
                path,
                padding,
            } => {
                writer.u8(2);
                writer.u64(*transaction);
                writer.u8(*path);
                writer.bytes(&vec![0; usize::from(*padding)]);
            }
            Self::ProbeAck { transaction } => {
                writer.u8(3);
                writer.u64(*transaction);
            }
            Self::CallMe(call) => {
                writer.u8(4);
                call.encode(writer);
            }
            Self::Ping { token } => {
                writer.u8(5);
                writer.u64(*token);
            }
            Self::Pong { token } => {
                writer.u8(6);
                writer.u64(*token);
            }
            Self::Alive(paths) => {
                writer.u8(7);
                encode_alive(writer, paths);
            }
        }
    }
}

/// Whatever is left, which must be zeros.
fn zeros(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    let rest = reader.bytes(reader.remaining())?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(WireError::Trailing);
    }
    u16::try_from(rest.len()).map_err(|_| WireError::TooLarge)
}

fn encode_alive(writer: &mut Writer<'_>, paths: &[Received]) {
    let count = paths.len().min(limits::MAX_PATHS);
    writer.u8(u8::try_from(count).unwrap_or(0));
    for received in &paths[..count] {
        writer.u8(received.path);
        writer.u32(received.session);
        writer.u64(received.highest);
        writer.u32(received.count);
    }
}

fn decode_alive(reader: &mut Reader<'_>) -> Result<Vec<Received>, WireError> {
    let count = usize::from(reader.u8()?);
    if count > limits::MAX_PATHS {
        return Err(WireError::Invalid("number of paths"));
    }
    let mut paths = Vec::with_capacity(count);
    for _ in 0..count {
        paths.push(Received {
            path: reader.u8()?,
            session: reader.u32()?,
            highest: reader.u64()?,
            count: reader.u32()?,
        });
    }
    Ok(paths)
}

impl CallMe {
    fn encode(&self, writer: &mut Writer<'_>) {
        writer.u32(self.round);
        writer.bool(self.reply);
        encode_profile(&self.profile, writer);
        writer.u16(self.rtt);
        writer.u8(self.plan.map_or(NO_PLAN, |plan| plan.min(NO_PLAN - 1)));
        writer.u16(self.port.unwrap_or(0));
        let count = self.candidates.len().min(limits::MAX_CANDIDATES);
        writer.u8(u8::try_from(count).unwrap_or(0));
        for candidate in &self.candidates[..count] {
            writer.socket_addr(*candidate);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let round = reader.u32()?;
        let reply = reader.bool()?;
        let profile = decode_profile(reader)?;
        let rtt = reader.u16()?;
        let plan = Some(reader.u8()?).filter(|plan| *plan != NO_PLAN);
        let port = Some(reader.u16()?).filter(|port| *port != 0);
        let count = usize::from(reader.u8()?);
        if count > limits::MAX_CANDIDATES {
            return Err(WireError::Invalid("number of candidates"));
        }
        let mut candidates = Vec::with_capacity(count);
        for _ in 0..count {
            candidates.push(reader.socket_addr()?);
        }
        Ok(Self {
            round,
            reply,
            candidates,
            profile,
            rtt,
            plan,
            port,
        })
    }
}

const NO_PLAN: u8 = u8::MAX;

/// Mapping, filtering, hairpinning, allocation with two numbers that only some kinds have, pooling.
fn encode_profile(profile: &NatProfile, writer: &mut Writer<'_>) {
    writer.u8(profile.mapping as u8);
    writer.u8(profile.filtering as u8);
    writer.u8(match profile.hairpin {
        None => 0,
        Some(false) => 1,
        Some(true) => 2,
    });
    let (kind, first, second) = match profile.allocation {
        Allocation::Unknown => (0, 0, 0),
        Allocation::Preserving => (1, 0, 0),
        Allocation::Sequential { delta } => (2, i16::from(delta) as u16, 0),
        Allocation::Random { low, high } => (3, low, high),
    };
    writer.u8(kind);
    writer.u16(first);
    writer.u16(second);
    writer.u8(profile.pooling as u8);
}

fn decode_profile(reader: &mut Reader<'_>) -> Result<NatProfile, WireError> {
    let mapping = Mapping::from_wire(reader.u8()?).ok_or(WireError::Invalid("mapping"))?;
    let filtering = Filtering::from_wire(reader.u8()?).ok_or(WireError::Invalid("filtering"))?;
    let hairpin = match reader.u8()? {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return Err(WireError::Invalid("hairpinning")),
    };
    let allocation = match (reader.u8()?, reader.u16()?, reader.u16()?) {
        (0, 0, 0) => Allocation::Unknown,
        (1, 0, 0) => Allocation::Preserving,
        (2, delta, 0) => match i8::try_from(delta as i16) {
            Ok(delta @ (-5..=-1 | 1..=5)) => Allocation::Sequential { delta },
            _ => return Err(WireError::Invalid("port allocation")),
        },
        (3, low, high) if low <= high => Allocation::Random { low, high },
        _ => return Err(WireError::Invalid("port allocation")),
    };
    let pooling = Pooling::from_wire(reader.u8()?).ok_or(WireError::Invalid("address pooling"))?;
    Ok(NatProfile {
        mapping,
        filtering,
        allocation,
        hairpin,
        pooling,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::IpHeader;

    fn messages() -> Vec<Control> {
        vec![
            Control::Hello {
                version: 1,
                instance: 7,
                reply: true,
            },
            Control::Probe {
                transaction: u64::MAX,
                path: 3,
                padding: 0,
            },
            Control::ProbeAck { transaction: 1 },
            Control::CallMe(CallMe {
                round: 3,
                reply: false,
                candidates: vec![
                    "1.2.3.4:5".parse().unwrap(),
                    "[2001:db8::1]:41820".parse().unwrap(),
                ],
                profile: NatProfile {
                    mapping: Mapping::EndpointIndependent,
                    filtering: Filtering::AddressAndPortDependent,
                    allocation: Allocation::Sequential { delta: -2 },
                    hairpin: Some(true),
                    pooling: Pooling::Arbitrary,
                },
                rtt: 40,
                plan: Some(2),
                port: Some(5_000),
            }),
            Control::CallMe(CallMe {
                round: 4,
                reply: true,
                candidates: Vec::new(),
                profile: NatProfile {
                    allocation: Allocation::Random {
                        low: 2_000,
                        high: 60_000,
                    },
                    ..NatProfile::default()
                },
                rtt: 0,
                plan: None,
                port: None,
            }),
            Control::Ping { token: 9 },
            Control::Pong { token: 9 },
            Control::Alive(vec![
                Received {
                    path: 1,
                    session: u32::MAX,
                    highest: 1 << 40,
                    count: 5,
                };
                limits::MAX_PATHS
            ]),
        ]
    }

    #[test]
    fn messages_survive_a_round_trip_as_ipv6_packets() {
        let (a, b) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        for message in messages() {
            let packet = message.to_packet(a, b);
            let header = IpHeader::parse(&packet).unwrap();
            assert_eq!((header.source, header.destination), (a.into(), b.into()));
            assert_eq!(header.protocol, NEXT_HEADER);
            assert_eq!(Control::from_packet(&packet).unwrap(), message);
        }
    }

    #[test]
    fn a_padded_probe_has_the_length_that_was_asked_for_and_nothing_but_zeros() {
        let (a, b) = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let probe = Control::probe(7, 3, 1_440);
        let mut packet = probe.to_packet(a, b);
        assert_eq!(packet.len(), 1_440);
        assert_eq!(Control::from_packet(&packet).unwrap(), probe);
        packet[1_000] = 1;
        assert!(Control::from_packet(&packet).is_err());
        let bare = Control::probe(7, 3, 0);
        assert_eq!(
            bare,
            Control::Probe {
                transaction: 7,
                path: 3,
                padding: 0
            }
        );
    }

    #[test]
    fn a_truncated_or_longer_message_is_refused() {
        for message in messages() {
            let mut packet = message.to_packet(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
            for length in 0..packet.len() {
                assert!(Control::from_packet(&packet[..length]).is_err());
            }
            packet.push(1);
            assert!(Control::from_packet(&packet).is_err());
        }
    }
}
