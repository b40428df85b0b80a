//! What a relay counts.

use std::fmt;

/// Why a relay dropped a datagram or a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// A datagram of no protocol that a relay speaks.
    UnknownProtocol,
    /// Anything but STUN on the second STUN port.
    WrongPort,
    /// A relay frame that is not data, or of wrong shape.
    MalformedFrame,
    /// Data on a channel that does not exist; answered by a rebind.
    UnknownChannel,
    /// Data from an address that the channel's client has not proved; answered by a rebind.
    UnprovenAddress,
    /// A rebind that was not sent because too many were.
    RebindLimit,
    /// Data beyond the client's rate.
    RateLimit,
    /// A STUN message that is not a binding request of a kind that we answer.
    MalformedStun,
    /// A STUN request smaller than its answer.
    SmallStun,
    /// A STUN request for an answer from the other port, by somebody who is not connected.
    UnprovenStun,
    /// A STUN request for an answer from the other port, beyond the rate of the clients at that address.
    StunLimit,
    /// Control messages beyond the client's rate.
    MessageLimit,
    /// A packet for a client that does not take its messages fast enough.
    SlowClient,
    /// A channel beyond the number that a client or the relay may have.
    ChannelLimit,
    /// A control message that cannot be parsed, or that comes out of turn; the client is closed.
    MalformedMessage,
    /// A connection beyond the number that may wait for their hello.
    NewcomerLimit,
    /// A QUIC datagram beyond the queue of the QUIC endpoint. Counted by the shell.
    QuicQueue,
    /// A datagram that the kernel did not take. Counted by the shell.
    SendFailed,
}

impl DropReason {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 18] = [
        Self::UnknownProtocol,
        Self::WrongPort,
        Self::MalformedFrame,
        Self::UnknownChannel,
        Self::UnprovenAddress,
        Self::RebindLimit,
        Self::RateLimit,
        Self::MalformedStun,
        Self::SmallStun,
        Self::UnprovenStun,
        Self::StunLimit,
        Self::MessageLimit,
        Self::SlowClient,
        Self::ChannelLimit,
        Self::MalformedMessage,
        Self::NewcomerLimit,
        Self::QuicQueue,
        Self::SendFailed,
    ];

    /// Name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownProtocol => "unknown_protocol",
            Self::WrongPort => "wrong_port",
            Self::MalformedFrame => "malformed_frame",
            Self::UnknownChannel => "unknown_channel",
            Self::UnprovenAddress => "unproven_address",
            Self::RebindLimit => "rebind_limit",
            Self::RateLimit => "rate_limit",
            Self::MalformedStun => "malformed_stun",
            Self::SmallStun => "small_stun",
            Self::UnprovenStun => "unproven_stun",
            Self::StunLimit => "stun_limit",
            Self::MessageLimit => "message_limit",
            Self::SlowClient => "slow_client",
            Self::ChannelLimit => "channel_limit",
            Self::MalformedMessage => "malformed_message",
            Self::NewcomerLimit => "newcomer_limit",
            Self::QuicQueue => "quic_queue",
            Self::SendFailed => "send_failed",
        }
    }
}

/// What a relay bears just now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Admitted clients.
    pub clients: usize,
    /// Connections that have not said hello.
    pub newcomers: usize,
    /// Channels between two clients.
    pub channels: usize,
    /// Bytes of messages that clients have not taken yet.
    pub queued_bytes: usize,
}

/// What a relay did since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Data frames passed on.
    pub frames: u64,
    /// Their bytes, relay header included.
    pub bytes: u64,
    /// Packets passed on between control streams.
    pub packets: u64,
    /// STUN requests answered.
    pub stun: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Stats {
    /// How often something was dropped for a reason.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// The reasons for which anything was dropped, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .into_iter()
            .zip(self.drops)
            .filter(|(_, count)| *count > 0)
    }

    pub(super) const fn count(&mut self, reason: DropReason, times: u64) {
        self.drops[reason as usize] = self.drops[reason as usize].saturating_add(times);
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "frames={} bytes={} packets={} stun={}",
            self.frames, self.bytes, self.packets, self.stun
        )?;
        for (reason, count) in self.drops() {
            write!(f, " {}={count}", reason.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let mut stats = Stats::default();
        for (times, reason) in (1..).zip(DropReason::ALL) {
            stats.count(reason, times);
        }
        for (times, reason) in (1..).zip(DropReason::ALL) {
            assert_eq!(stats.dropped(reason), times, "{reason:?}");
        }
        assert_eq!(stats.drops().count(), DropReason::ALL.len());
    }

    #[test]
    fn only_what_happened_is_printed() {
        let mut stats = Stats::default();
        stats.count(DropReason::RateLimit, 3);
        assert_eq!(
            stats.to_string(),
            "frames=0 bytes=0 packets=0 stun=0 rate_limit=3"
        );
    }
}
