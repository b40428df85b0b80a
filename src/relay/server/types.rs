//! What a relay is told, and what it answers.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::DropReason;
use crate::identity::NodeId;
use crate::wire::relay::{Alternatives, Refusal};
use crate::wire::stun;

/// How a relay is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who may use it.
    pub access: Access,
    /// Where it answers STUN as well.
    pub alternatives: Alternatives,
    /// Bytes a second that it forwards for each client; [`limits::RELAY_RATE`] unless configured.
    pub rate_limit: u64,
}

/// Who may use a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// These nodes; nobody if there are none.
    Nodes(BTreeSet<NodeId>),
    /// Everyone.
    Open,
}

impl Access {
    pub(super) fn admits(&self, node: &NodeId) -> bool {
        match self {
            Self::Nodes(nodes) => nodes.contains(node),
            Self::Open => true,
        }
    }
}

/// Names a client's QUIC connection; chosen by the shell, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Which of the relay's own sockets and addresses a client talks to: what is sent to it must come from there, or its NAT
/// drops it. The server only passes it on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Local {
    /// Which of the addresses that the relay listens on.
    pub listener: u16,
    /// Address of the host, where the listener's socket has several.
    pub ip: Option<IpAddr>,
}

/// The UDP ports of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Socket {
    /// Carries everything.
    Main,
    /// Carries STUN only.
    Alt,
}

/// What becomes of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its header was rewritten in place: send it from the main port.
    Forward {
        /// Where to.
        to: SocketAddr,
        /// Where from.
        local: Local,
    },
    /// Send this back instead; it is no larger than what came.
    Reply(Reply),
    /// It is for the QUIC endpoint.
    Quic,
    /// Nothing; it is counted.
    Dropped(DropReason),
}

/// A small answer to the sender of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The port to send it from.
    pub socket: Socket,
    /// Send it from the relay's second address instead of the one that was sent to.
    pub other_address: bool,
    pub(super) buffer: [u8; stun::MAX_RESPONSE],
    pub(super) len: usize,
}

impl Reply {
    /// The datagram.
    pub fn payload(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// What the shell has to do; to be drained after every input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Messages wait for a client: fetch them by [`Server::take_messages`] when its stream can take them.
    Wake(ConnId),
    /// Write these bytes to the client's control stream, then close the connection. The server has forgotten it.
    Close {
        /// Which one.
        conn: ConnId,
        /// What it was not sent yet.
        last: Vec<u8>,
        /// For the client, and for logs.
        reason: CloseReason,
    },
    /// Send this from the main port.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// Where from.
        local: Local,
        /// The whole UDP payload.
        payload: Vec<u8>,
    },
}

/// Why a relay closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// It does not serve this client.
    Refused(Refusal),
    /// The client connected again, or somebody else has its key.
    Replaced,
    /// No hello came.
    NoHello,
    /// Too many others have not said hello yet.
    Busy,
    /// The client does not read what it is sent.
    Slow,
    /// The client said something that makes no sense.
    Protocol,
    /// The relay stops.
    Stopping,
}

impl CloseReason {
    /// The QUIC application error code.
    pub const fn code(self) -> u32 {
        match self {
            Self::Refused(_) => 1,
            Self::Replaced => 2,
            Self::NoHello => 3,
            Self::Busy => 4,
            Self::Slow => 5,
            Self::Protocol => 6,
            Self::Stopping => 7,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(refusal) => return refusal.fmt(f),
            Self::Replaced => "another connection with the same key took over",
            Self::NoHello => "no hello came in time",
            Self::Busy => "too many new connections: try again later",
            Self::Slow => "the client does not read its messages",
            Self::Protocol => "the client sent a malformed message",
            Self::Stopping => "the relay stops",
        })
    }
}
