//! What travels over simulated links.

use std::net::SocketAddr;

use mesh_core::wire::{Protocol, classify};

use super::quic::Frame;

/// Hop limit of a datagram that asks for none.
pub(super) const DEFAULT_TTL: u8 = 64;

/// A UDP datagram with the part of its IP header that matters.
#[derive(Debug, Clone)]
pub struct Packet {
    /// Where it comes from, as its present holder sees it.
    pub source: SocketAddr,
    /// Where it goes, as its present holder sees it.
    pub destination: SocketAddr,
    /// How many more routers may forward it.
    pub ttl: u8,
    /// What is inside.
    pub body: Body,
}

/// What is inside a datagram.
#[derive(Debug, Clone)]
pub enum Body {
    /// The payload of a real datagram of the core.
    Bytes(Vec<u8>),
    /// A packet of the modelled QUIC connection between relay and client.
    Quic(Frame),
}

/// What kind of datagram, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// WireGuard, by message type.
    Initiation,
    /// See [`Self::Initiation`].
    Response,
    /// See [`Self::Initiation`].
    Cookie,
    /// See [`Self::Initiation`].
    Transport,
    /// STUN.
    Stun,
    /// Data or a control frame on a relay channel.
    Relay,
    /// The modelled control connection.
    Quic,
    /// None of these.
    Other,
}

impl Packet {
    /// Bytes of the IP packet.
    pub fn size(&self) -> usize {
        let header = if self.destination.is_ipv4() { 28 } else { 48 };
        header + self.body.len()
    }

    /// What kind of datagram it is.
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::Quic(_) => Kind::Quic,
            Body::Bytes(bytes) => match (classify(bytes), bytes.first()) {
                (Protocol::WireGuard, Some(1)) => Kind::Initiation,
                (Protocol::WireGuard, Some(2)) => Kind::Response,
                (Protocol::WireGuard, Some(3)) => Kind::Cookie,
                (Protocol::WireGuard, _) => Kind::Transport,
                (Protocol::Stun, _) => Kind::Stun,
                (Protocol::RelayFrame, _) => Kind::Relay,
                _ => Kind::Other,
            },
        }
    }
}

impl Body {
    /// Bytes of the UDP payload.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Quic(frame) => frame.len(),
        }
    }

    /// True for an empty datagram.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
