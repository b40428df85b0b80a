//! Why the path in use became another one.

/// A reason, which the log, D-Bus and `explain` give in words, and the metrics by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathReason {
    /// There was none before.
    First,
    /// There is no other any more.
    Unreachable,
    /// It was the first to answer after something had put all of them in doubt.
    FirstAfterChange,
    /// It leads to the peer itself.
    Direct,
    /// It loses less.
    LessLoss,
    /// It is faster.
    Faster,
    /// The relay of the one before was lost, or the peer left it.
    RelayLost,
    /// The one before answered probes and lost the data.
    Swallowed,
    /// The one before did not answer after something had put it in doubt.
    SilentAfterChange,
    /// This host has no address for the one before any more.
    AddressGone,
    /// Data on the one before was not acknowledged.
    Unacknowledged,
    /// The one before stopped answering.
    Silent,
    /// The one before was not in use for a while.
    Unused,
    /// A stock WireGuard device answered there.
    HandshakeAnswered,
    /// A stock WireGuard device sends from there.
    PeerMoved,
}

impl PathReason {
    /// In words; a clause that has the new path for its subject, or the one before.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "the first path that answered",
            Self::Unreachable => "the relay cannot reach it any more",
            Self::FirstAfterChange => {
                "it answered first after the network around us or the peer changed"
            }
            Self::Direct => "a direct path answered",
            Self::LessLoss => "a path that loses less answered",
            Self::Faster => "a faster path answered",
            Self::RelayLost => "the relay was lost, or the peer left it",
            Self::Swallowed => "it answered probes and lost the data",
            Self::SilentAfterChange => {
                "it did not answer after the network around us or the peer changed"
            }
            Self::AddressGone => "this host has no address for it any more",
            Self::Unacknowledged => "data on it was not acknowledged, nor probes answered",
            Self::Silent => "it stopped answering",
            Self::Unused => "it was not in use for a while",
            Self::HandshakeAnswered => "the peer answered our handshake there",
            Self::PeerMoved => "the peer sent from there",
        }
    }

    /// As a label of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Unreachable => "unreachable",
            Self::FirstAfterChange => "first_after_change",
            Self::Direct => "direct",
            Self::LessLoss => "less_loss",
            Self::Faster => "faster",
            Self::RelayLost => "relay_lost",
            Self::Swallowed => "swallowed",
            Self::SilentAfterChange => "silent_after_change",
            Self::AddressGone => "address_gone",
            Self::Unacknowledged => "unacknowledged",
            Self::Silent => "silent",
            Self::Unused => "unused",
            Self::HandshakeAnswered => "handshake_answered",
            Self::PeerMoved => "peer_moved",
        }
    }
}
