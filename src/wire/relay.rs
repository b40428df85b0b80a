//! What a relay and its clients say to each other.
//!
//! - On the control stream, the one bidirectional QUIC stream that the client opens: [`ClientMessage`] and
//!   [`ServerMessage`], each behind a two-byte length; [`Framer`] finds them in the stream. What should not wait for
//!   something that was lost also goes in a QUIC datagram, see [`ClientMessage::may_be_hastened`].
//! - On plain UDP beside QUIC: [`Frame`]s of an 8-byte header, mostly WireGuard packets on a numbered channel. They
//!   carry no secret of the relay and no proof: a channel only works from the address that its client has proved.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};

use super::codec::{Reader, WireError, Writer};
use super::stun::{MAX_RESPONSE, TransactionId};
use crate::identity::NodeId;
use crate::limits::MAX_RELAY_MESSAGE;

/// Version of the control stream; both sides send theirs first.
pub const PROTOCOL_VERSION: u8 = 1;

/// Bytes of a message's length on the stream.
const LENGTH: usize = 2;
/// Lowest port that a relay knocks at: NATs give out none below, and well-known services of whoever shares the address
/// are left alone.
pub const MIN_KNOCKED_PORT: u16 = 1_024;
/// Zeros at the end of [`ClientMessage::Knock`]: with them it is as long as the largest response.
const KNOCK_PADDING: usize = MAX_RESPONSE - 1 - 2 - 12;

/// Bytes of a message besides the packet that it carries: its type and a node ID.
const PACKET_OVERHEAD: usize = 33;
/// Bytes of the largest packet that fits [`ClientMessage::Send`].
pub const MAX_SENT_PACKET: usize = MAX_RELAY_MESSAGE - PACKET_OVERHEAD;

/// What a client says on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// First message. Answered by [`ServerMessage::Welcome`] or [`ServerMessage::Refused`].
    Hello {
        /// Newest version that the client speaks.
        version: u8,
    },
    /// Answered by [`ServerMessage::Pong`].
    Ping {
        /// Echoed.
        nonce: u64,
    },
    /// Deliver a packet while there is no channel yet.
    Send {
        /// For whom.
        to: NodeId,
        /// A WireGuard packet of at most [`MAX_SENT_PACKET`] bytes.
        packet: Vec<u8>,
    },
    /// Give both sides a channel number; answered by [`ServerMessage::Channel`] or [`ServerMessage::PeerGone`].
    OpenChannel {
        /// The other side.
        peer: NodeId,
    },
    /// The channel is not needed any more.
    CloseChannel {
        /// Our number for it.
        channel: u32,
    },
    /// Send a STUN response with this transaction ID from the relay's main port to a port of the client's own IP address,
    /// as the relay sees it: does the client's NAT let it in. As long as the response, so that nobody gains by it.
    Knock {
        /// At least [`MIN_KNOCKED_PORT`].
        port: u16,
        /// To be told from other answers by.
        txn: TransactionId,
    },
    /// Returns the nonce of a [`Frame::Challenge`] and so proves the address that it was received at.
    ProveAddress {
        /// As received.
        nonce: u64,
    },
}

/// Where a relay answers STUN beside its main address, so that clients can tell what their NATs look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alternatives {
    /// Its second port, on the main address.
    pub port: Option<u16>,
    /// Its second address.
    pub address: Option<SocketAddrV4>,
}

/// What a relay says on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    /// The client may use the relay.
    Welcome {
        /// Version that is spoken from here on: at most the client's.
        version: u8,
        /// The client's address as the relay sees it.
        observed: SocketAddr,
        /// Where else it answers STUN.
        alternatives: Alternatives,
    },
    /// The client may not use the relay; the connection is closed next.
    Refused {
        /// Why.
        reason: Refusal,
    },
    /// Answer to [`ClientMessage::Ping`].
    Pong {
        /// As in the ping.
        nonce: u64,
    },
    /// A packet that a peer sent by [`ClientMessage::Send`].
    Received {
        /// Who sent it; the relay has authenticated this.
        from: NodeId,
        /// A WireGuard packet.
        packet: Vec<u8>,
    },
    /// A channel to a peer is open, because we or the peer asked for it; asking again yields the same number and the
    /// peer's present address.
    Channel {
        /// The other side.
        peer: NodeId,
        /// Our number for it.
        channel: u32,
        /// The peer's address as the relay sees it.
        peer_addr: Option<SocketAddr>,
    },
    /// The peer is not connected to this relay, or left it; channels with it are closed.
    PeerGone {
        /// Who.
        peer: NodeId,
    },
    /// The client's address, newly proved: channels follow it.
    Observed {
        /// As the relay sees it.
        addr: SocketAddr,
    },
    /// The relay is about to stop: connect to another one.
    Draining,
    /// Someone with the same key connected; this connection is closed next.
    Replaced,
}

/// Why a relay does not serve a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The relay's configuration does not admit this node.
    NotAdmitted,
    /// The relay does not speak the client's version.
    Version,
    /// The relay has as many clients as it may have.
    Full,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAdmitted => {
                "the relay does not admit this node: add its id to `nodes` in the relay's configuration"
            }
            Self::Version => "the relay speaks another version of the protocol: update meshd or the relay",
            Self::Full => "the relay is full: add another one to `relays`, or raise its limits",
        })
    }
}

/// Type bytes. Clients' messages are below 0x80, relays' above.
mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const PING: u8 = 0x02;
    pub(super) const SEND: u8 = 0x03;
    pub(super) const OPEN_CHANNEL: u8 = 0x04;
    pub(super) const CLOSE_CHANNEL: u8 = 0x05;
    pub(super) const PROVE_ADDRESS: u8 = 0x06;
    pub(super) const KNOCK: u8 = 0x07;

    pub(super) const WELCOME: u8 = 0x81;
    pub(super) const REFUSED: u8 = 0x82;
    pub(super) const PONG: u8 = 0x83;
    pub(super) const RECEIVED: u8 = 0x84;
    pub(super) const CHANNEL: u8 = 0x85;
    pub(super) const PEER_GONE: u8 = 0x86;
    pub(super) const OBSERVED: u8 = 0x87;
    pub(super) const DRAINING: u8 = 0x88;
    pub(super) const REPLACED: u8 = 0x89;
}

impl ClientMessage {
    /// True if the message may arrive twice and out of turn, and so as a QUIC datagram beside the control stream: on its
    /// own, without a length.
    pub const fn may_be_hastened(&self) -> bool {
        matches!(
            self,
            Self::Ping { .. } | Self::Send { .. } | Self::ProveAddress { .. }
        )
    }

    /// Appends the message with its length to `buffer`. A packet of more than [`MAX_SENT_PACKET`] bytes is cut off
    /// there, as its receiver would refuse the whole message.
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        framed(buffer, |w| match self {
            Self::Hello { version } => _ = w.u8(kind::HELLO).u8(*version),
            Self::Ping { nonce } => _ = w.u8(kind::PING).u64(*nonce),
            Self::Send { to, packet } => {
                _ = w.u8(kind::SEND).bytes(to.as_bytes()).bytes(bounded(packet))
            }
            Self::OpenChannel { peer } => _ = w.u8(kind::OPEN_CHANNEL).bytes(peer.as_bytes()),
            Self::CloseChannel { channel } => _ = w.u8(kind::CLOSE_CHANNEL).u32(*channel),
            Self::ProveAddress { nonce } => _ = w.u8(kind::PROVE_ADDRESS).u64(*nonce),
            Self::Knock { port, txn } => {
                let padding = [0; KNOCK_PADDING];
                _ = w.u8(kind::KNOCK).u16(*port).bytes(txn).bytes(&padding);
            }
        });
    }

    /// The message without its length, as a QUIC datagram.
    pub fn to_datagram(&self) -> Vec<u8> {
        let mut buffer = Vec::new();
        self.encode(&mut buffer);
        buffer.split_off(LENGTH)
    }

    /// Parses the body of a message, without its length.
    ///
    /// # Errors
    /// Whatever is not exactly one message of a known type.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let message = match r.u8()? {
            kind::HELLO => {
                let version = r.u8()?;
                if version != PROTOCOL_VERSION {
                    // Other versions may say more here; that one is refused is decided by who reads it.
                    r.rest();
                }
                Self::Hello { version }
            }
            kind::PING => Self::Ping { nonce: r.u64()? },
            kind::SEND => Self::Send {
                to: node_id(&mut r)?,
                packet: packet(&mut r)?,
            },
            kind::OPEN_CHANNEL => Self::OpenChannel {
                peer: node_id(&mut r)?,
            },
            kind::CLOSE_CHANNEL => Self::CloseChannel { channel: r.u32()? },
            kind::PROVE_ADDRESS => Self::ProveAddress { nonce: r.u64()? },
            kind::KNOCK => knock(&mut r)?,
            other => return Err(WireError::UnknownType(other)),
        };
        r.finish()?;
        Ok(message)
    }
}

impl ServerMessage {
    /// Appends the message with its length to `buffer`. Packets are cut off as by [`ClientMessage::encode`].
    pub fn encode(&self, buffer: &mut Vec<u8>) {
        framed(buffer, |w| match self {
            Self::Welcome {
                version,
                observed,
                alternatives,
            } => {
                w.u8(kind::WELCOME).u8(*version).socket_addr(*observed);
                match alternatives.port {
                    Some(port) => w.bool(true).u16(port),
                    None => w.bool(false),
                };
                match alternatives.address {
                    Some(address) => {
                        _ = w
                            .bool(true)
                            .bytes(&address.ip().octets())
                            .u16(address.port())
                    }
                    None => _ = w.bool(false),
                }
            }
            Self::Refused { reason } => _ = w.u8(kind::REFUSED).u8(reason.to_byte()),
            Self::Pong { nonce } => _ = w.u8(kind::PONG).u64(*nonce),
            Self::Received { from, packet } => {
                _ = w
                    .u8(kind::RECEIVED)
                    .bytes(from.as_bytes())
                    .bytes(bounded(packet));
            }
            Self::Channel {
                peer,
                channel,
                peer_addr,
            } => {
                w.u8(kind::CHANNEL).bytes(peer.as_bytes()).u32(*channel);
                match peer_addr {
                    Some(address) => _ = w.bool(true).socket_addr(*address),
                    None => _ = w.bool(false),
                }
            }
            Self::PeerGone { peer } => _ = w.u8(kind::PEER_GONE).bytes(peer.as_bytes()),
            Self::Observed { addr } => _ = w.u8(kind::OBSERVED).socket_addr(*addr),
            Self::Draining => _ = w.u8(kind::DRAINING),
            Self::Replaced => _ = w.u8(kind::REPLACED),
        });
    }

    /// Parses the body of a message, without its length.
    ///
    /// # Errors
    /// Whatever is not exactly one message of a known type.
    pub fn decode(body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body);
        let message = match r.u8()? {
            kind::WELCOME => Self::Welcome {
                version: r.u8()?,
                observed: r.socket_addr()?,
                alternatives: Alternatives {
                    port: if r.bool()? { Some(r.u16()?) } else { None },
                    address: if r.bool()? {
                        Some(SocketAddrV4::new(r.array::<4>()?.into(), r.u16()?))
                    } else {
                        None
                    },
                },
            },
            kind::REFUSED => Self::Refused {
                reason: Refusal::from_byte(r.u8()?)?,
            },
            kind::PONG => Self::Pong { nonce: r.u64()? },
            kind::RECEIVED => Self::Received {
                from: node_id(&mut r)?,
                packet: packet(&mut r)?,
            },
            kind::CHANNEL => Self::Channel {
                peer: node_id(&mut r)?,
                channel: r.u32()?,
                peer_addr: if r.bool()? {
                    Some(r.socket_addr()?)
                } else {
                    None
                },
            },
            kind::PEER_GONE => Self::PeerGone {
                peer: node_id(&mut r)?,
            },
            kind::OBSERVED => Self::Observed {
                addr: r.socket_addr()?,
            },
            kind::DRAINING => Self::Draining,
            kind::REPLACED => Self::Replaced,
            other => return Err(WireError::UnknownType(other)),
        };
        r.finish()?;
        Ok(message)
    }
}

impl Refusal {
    const fn to_byte(self) -> u8 {
        match self {
            Self::NotAdmitted => 1,
            Self::Version => 2,
            Self::Full => 3,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, WireError> {
        match byte {
            1 => Ok(Self::NotAdmitted),
            2 => Ok(Self::Version),
            3 => Ok(Self::Full),
            _ => Err(WireError::Invalid("refusal")),
        }
    }
}

fn knock(reader: &mut Reader<'_>) -> Result<ClientMessage, WireError> {
    let (port, txn) = (reader.u16()?, reader.array()?);
    if port < MIN_KNOCKED_PORT {
        return Err(WireError::Invalid("knocked port"));
    }
    if reader.array::<KNOCK_PADDING>()? != [0; KNOCK_PADDING] {
        return Err(WireError::Trailing);
    }
    Ok(ClientMessage::Knock { port, txn })
}

fn node_id(reader: &mut Reader<'_>) -> Result<NodeId, WireError> {
    NodeId::from_bytes(&reader.array()?).map_err(|_| WireError::Invalid("node id"))
}

fn packet(reader: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    if reader.remaining() > MAX_SENT_PACKET {
        return Err(WireError::TooLarge);
    }
    Ok(reader.rest().to_vec())
}

fn bounded(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(MAX_SENT_PACKET)]
}

fn framed(buffer: &mut Vec<u8>, body: impl FnOnce(&mut Writer<'_>)) {
    let start = buffer.len();
    buffer.extend([0; LENGTH]);
    body(&mut Writer::new(buffer));
    let len = (buffer.len() - start - LENGTH) as u16;
    buffer[start..start + LENGTH].copy_from_slice(&len.to_be_bytes());
}

/// Finds the messages in the bytes of a control stream, however they are cut; holds at most one message.
#[derive(Debug, Default)]
pub struct Framer {
    /// Length and body of the message that is being collected.
    partial: Vec<u8>,
    /// The last call returned `partial`, complete.
    returned: bool,
}

impl Framer {
    /// Takes bytes off the front of `input` and returns the body of the next message once it is complete, or `None`
    /// when `input` is used up. To be called until it returns `None`.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] for a message of more than [`MAX_RELAY_MESSAGE`] bytes. The stream is of no use after.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, WireError> {
        if std::mem::take(&mut self.returned) {
            self.partial.clear();
        }
        self.fill(2, input);
        let Some((&len, _)) = self.partial.split_first_chunk::<2>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(len));
        if len > MAX_RELAY_MESSAGE {
            return Err(WireError::TooLarge);
        }
        self.fill(2 + len, input);
        if self.partial.len() < 2 + len {
            return Ok(None);
        }
        self.returned = true;
        Ok(Some(&self.partial[2..]))
    }

    fn fill(&mut self, target: usize, input: &mut &[u8]) {
        let missing = target.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
    }
}

/// First byte of a frame with a WireGuard packet.
pub const FRAME_DATA: u8 = 0x20;
/// First byte of the relay's answer to a data frame that it cannot place: the channel is unknown, or not yours from
/// this address. The client then pings on the control stream, which shows the relay its new address, or both that the
/// relay has restarted.
pub const FRAME_REBIND: u8 = 0x21;
/// First byte of the relay's question to a new address of a client.
pub const FRAME_CHALLENGE: u8 = 0x22;
/// Bytes before the packet: type, three zero bytes, channel number in little-endian order.
pub const FRAME_HEADER: usize = 8;
/// Bytes of a challenge: the header with channel 0, then the nonce in little-endian order.
pub const CHALLENGE_FRAME: usize = FRAME_HEADER + 8;

/// A datagram between relay and client that is neither QUIC nor STUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A packet for or from the peer at the other end of a channel.
    Data {
        /// The number that the client of this hop knows the channel by.
        channel: u32,
        /// A WireGuard packet; never empty.
        packet: &'a [u8],
    },
    /// See [`FRAME_REBIND`].
    Rebind {
        /// As in the data frame.
        channel: u32,
    },
    /// Asks who is at an address; answered by [`ClientMessage::ProveAddress`].
    Challenge {
        /// To be returned.
        nonce: u64,
    },
}

/// True for what has the header of a frame, of a known type or not.
pub(crate) fn is_frame(datagram: &[u8]) -> bool {
    matches!(
        datagram.first_chunk::<FRAME_HEADER>(),
        Some([0x20..=0x2f, 0, 0, 0, ..])
    )
}

/// Parses a frame.
///
/// # Errors
/// Whatever is not exactly one frame of a known type.
pub fn parse_frame(datagram: &[u8]) -> Result<Frame<'_>, WireError> {
    let Some((header, body)) = datagram.split_first_chunk::<FRAME_HEADER>() else {
        return Err(WireError::Truncated);
    };
    let [kind, zeros @ .., c0, c1, c2, c3] = *header;
    if zeros != [0; 3] {
        return Err(WireError::Invalid("frame header"));
    }
    let channel = u32::from_le_bytes([c0, c1, c2, c3]);
    match kind {
        FRAME_DATA if body.is_empty() => Err(WireError::Truncated),
        FRAME_DATA => Ok(Frame::Data {
            channel,
            packet: body,
        }),
        FRAME_REBIND if !body.is_empty() => Err(WireError::Trailing),
        FRAME_REBIND => Ok(Frame::Rebind { channel }),
        FRAME_CHALLENGE if channel != 0 => Err(WireError::Invalid("frame header")),
        FRAME_CHALLENGE => {
            let mut reader = Reader::new(body);
            let nonce = u64::from_le_bytes(reader.array()?);
            reader.finish()?;
            Ok(Frame::Challenge { nonce })
        }
        other => Err(WireError::UnknownType(other)),
    }
}

/// Writes the header of a data frame to the first [`FRAME_HEADER`] bytes of `buffer`, which must have as many.
pub fn write_data_header(buffer: &mut [u8], channel: u32) {
    buffer[..FRAME_HEADER].copy_from_slice(&header(FRAME_DATA, channel));
}

/// The relay's answer to a data frame that it cannot place.
pub fn rebind_frame(channel: u32) -> [u8; FRAME_HEADER] {
    header(FRAME_REBIND, channel)
}

/// The relay's question to a new address.
pub fn challenge_frame(nonce: u64) -> [u8; CHALLENGE_FRAME] {
    let mut frame = [0; CHALLENGE_FRAME];
    frame[..FRAME_HEADER].copy_from_slice(&header(FRAME_CHALLENGE, 0));
    frame[FRAME_HEADER..].copy_from_slice(&nonce.to_le_bytes());
    frame
}

fn header(kind: u8, channel: u32) -> [u8; FRAME_HEADER] {
    let [c0, c1, c2, c3] = channel.to_le_bytes();
    [kind, 0, 0, 0, c0, c1, c2, c3]
}

#[cfg(test)]
mod tests;
