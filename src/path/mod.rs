//! The ways to one peer: which are known, which are proven, and which one carries data.
//!
//! A path is *usable* when our own probe on it was answered lately (proof in both directions). A handshake counts as a
//! probe. Anything else that arrives on a path only makes it a candidate to be probed.

pub(crate) mod agent;
pub(crate) mod candidates;
pub(crate) mod mtu;
pub(crate) mod scoring;

use std::net::SocketAddr;
use std::time::Duration;

use self::mtu::{MtuBounds, MtuProbe, PathMtu};
use crate::engine::{PathKind, RelayHandle, SocketId};
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;

/// Names a path of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PathKey {
    /// From one of our sockets to this address.
    Direct(SocketId, SocketAddr),
    /// Through this relay.
    Relay(RelayHandle),
}

impl PathKey {
    /// From the mesh socket.
    pub(crate) const fn direct(remote: SocketAddr) -> Self {
        Self::Direct(SocketId::MESH, remote)
    }

    pub(crate) fn kind(self) -> PathKind {
        match self {
            Self::Direct(..) => PathKind::Direct,
            Self::Relay(_) => PathKind::Relay,
        }
    }
}

/// Where the bytes of a sealed packet go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) socket: SocketId,
    pub(crate) remote: SocketAddr,
    /// Channel number for the relay's header; `None` for a direct path.
    pub(crate) channel: Option<u32>,
    /// Largest inner packet, in bytes.
    pub(crate) mtu: u16,
    /// Even packets of the smallest MTU have to be cut up by routers.
    pub(crate) fragments: bool,
}

/// A probe that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct PendingProbe {
    transaction: u64,
    sent: Instant,
}

/// One path.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) key: PathKey,
    /// For a relay path, once the relay has opened a channel.
    channel: Option<(SocketAddr, u32)>,
    channel_asked: Option<Instant>,
    rtt: Option<Duration>,
    /// When our own probe, or handshake, was last answered on it.
    proven: Option<Instant>,
    last_rx: Option<Instant>,
    /// When data was first sent on it since something was received on it.
    waiting_since: Option<Instant>,
    probes: [Option<PendingProbe>; limits::PROBES_IN_FLIGHT],
    last_probe: Option<Instant>,
    /// Probes in a row that were not answered in time.
    unanswered: u32,
    /// Bytes sent to and received from an address that has proved nothing yet.
    unproven_tx: usize,
    unproven_rx: usize,
    pub(crate) mtu: PathMtu,
    created: Instant,
}

/// Without an answer for this long a direct path is not trusted with data: a NAT may have forgotten it, and the first
/// packet after a pause is worth the relay's detour. Two keepalives of 15 s fit, and the shortest common mapping
/// lifetime is 30 s.
pub(crate) const TRUST: Duration = Duration::from_secs(32);
/// Interval of probes on the path in use: well below the 30 s after which common NATs forget a mapping.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(15);
/// A probe is given up after 1.5 round trips, but not before this.
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(100);
/// And after this on a path that was never measured: two satellite hops there and back.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Round trip time assumed on a path that was never measured.
const DEFAULT_RTT: Duration = Duration::from_millis(250);
/// Probes in a row without an answer that make a path unusable.
const MAX_UNANSWERED: u32 = 3;
/// A failed path that nothing can replace is tried again this often.
const FAILED_INTERVAL: Duration = Duration::from_secs(1);
/// A relay that has no channel to a peer is asked again after this: the peer may have come.
const CHANNEL_INTERVAL: Duration = Duration::from_secs(5);
/// And after this while a handshake waits for it.
const URGENT_CHANNEL_INTERVAL: Duration = Duration::from_millis(200);
/// What arrives from an address that proved nothing is answered with at most this many times its size.
const AMPLIFICATION: usize = 3;

impl Path {
    fn new(key: PathKey, now: Instant) -> Self {
        Self {
            key,
            channel: None,
            channel_asked: None,
            rtt: None,
            proven: None,
            last_rx: None,
            waiting_since: None,
            probes: [None; limits::PROBES_IN_FLIGHT],
            last_probe: None,
            unanswered: 0,
            unproven_tx: 0,
            unproven_rx: 0,
            mtu: PathMtu::default(),
            created: now,
        }
    }

    /// Where to send, if the path can carry anything at all.
    #[inline]
    pub(crate) fn route(&self) -> Option<Route> {
        let (socket, remote, channel) = match (self.key, self.channel) {
            (PathKey::Direct(socket, remote), _) => (socket, remote, None),
            (PathKey::Relay(_), Some((remote, channel))) => (SocketId::MESH, remote, Some(channel)),
            (PathKey::Relay(_), None) => return None,
        };
        Some(Route {
            socket,
            remote,
            channel,
            mtu: self.mtu.effective(),
            fragments: self.mtu.needs_fragments(),
        })
    }

    /// Padded probes that are due, if the path can be used at all.
    fn mtu_probes(&mut self, now: Instant, bounds: MtuBounds, rng: &mut Random) -> Vec<MtuProbe> {
        let timeout = self.probe_timeout();
        let Some(route) = self.route().filter(|_| self.is_usable(now)) else {
            return Vec::new();
        };
        let overhead = mtu::overhead(route.remote.is_ipv6(), route.channel.is_some());
        self.mtu.poll(now, timeout, overhead, bounds, rng)
    }

    /// When [`Self::mtu_probes`] has something to do.
    fn mtu_deadline(&self, now: Instant) -> Option<Instant> {
        self.is_usable(now).then(|| self.mtu.deadline())
    }

    /// True when data may be sent on it.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        match self.key {
            PathKey::Relay(_) => self.channel.is_some() && self.unanswered < MAX_UNANSWERED,
            PathKey::Direct(..) => self.is_proven(now) && self.unanswered < MAX_UNANSWERED,
        }
    }

    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        self.proven.is_some_and(|at| now.since(at) < TRUST)
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn set_channel(&mut self, channel: Option<(SocketAddr, u32)>) {
        self.channel = channel;
        self.unanswered = 0;
        self.waiting_since = None;
    }

    /// Something happened that may have broken it: probe it at once.
    pub(crate) fn suspect(&mut self) {
        self.mtu.restart();
        self.unanswered = self.unanswered.max(1);
    }

    /// The peer has forgotten it: it has to be proved again.
    pub(crate) fn forget_proof(&mut self) {
        self.proven = None;
    }

    /// Probes on it were not answered, several times in a row.
    pub(crate) fn has_failed(&self) -> bool {
        self.unanswered >= MAX_UNANSWERED
    }

    /// True if a relay may be asked (again) for a channel; then it counts as asked. `urgent`: nothing else leads to
    /// the peer.
    pub(crate) fn ask_for_channel(&mut self, now: Instant, urgent: bool) -> bool {
        let interval = if urgent {
            URGENT_CHANNEL_INTERVAL
        } else {
            CHANNEL_INTERVAL
        };
        let lately = self
            .channel_asked
            .is_some_and(|at| now.since(at) < interval);
        if self.channel.is_some() || lately {
            return false;
        }
        self.channel_asked = Some(now);
        true
    }

    pub(crate) fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    fn probe_timeout(&self) -> Duration {
        self.rtt.map_or(FIRST_PROBE_TIMEOUT, |rtt| {
            (rtt * 3 / 2).max(MIN_PROBE_TIMEOUT)
        })
    }

    /// Something authentic arrived on it.
    pub(crate) fn received(&mut self, now: Instant, bytes: usize) {
        self.last_rx = Some(now);
        self.waiting_since = None;
        self.unproven_rx = self.unproven_rx.saturating_add(bytes);
    }

    /// Data was sent on it.
    #[inline]
    pub(crate) fn sent_data(&mut self, now: Instant) {
        if self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
    }

    /// True when an address that proved nothing may be sent this many more bytes by way of an answer.
    pub(crate) fn may_answer(&mut self, now: Instant, bytes: usize) -> bool {
        if self.is_proven(now) || matches!(self.key, PathKey::Relay(_)) {
            return true;
        }
        let allowed = self.unproven_rx.saturating_mul(AMPLIFICATION);
        if self.unproven_tx + bytes > allowed {
            return false;
        }
        self.unproven_tx += bytes;
        true
    }

    /// A probe with this transaction was sent.
    pub(crate) fn probe_sent(&mut self, transaction: u64, now: Instant) {
        let oldest = self
            .probes
            .iter_mut()
            .min_by_key(|slot| slot.map(|probe| probe.sent));
        if let Some(slot) = oldest {
            *slot = Some(PendingProbe {
                transaction,
                sent: now,
            });
        }
        self.last_probe = Some(now);
    }

    /// The answer to a probe arrived; `false` if none with this transaction was sent here, or too long ago.
    fn probe_answered(&mut self, transaction: u64, now: Instant) -> bool {
        if self.mtu.answered(transaction) {
            // No sample of the round trip time, because on a slow line a large packet takes longer, and so no proof: whether a
            // path is alive is judged by probes that are timed.
            return true;
        }
        let pending = self
            .probes
            .iter_mut()
            .find(|slot| slot.is_some_and(|probe| probe.transaction == transaction));
        let Some(probe) = pending.and_then(Option::take) else {
            return false;
        };
        // Older ones were lost; that they were is no news any more.
        for slot in &mut self.probes {
            if slot.is_some_and(|other| other.sent <= probe.sent) {
                *slot = None;
            }
        }
        self.prove(now);
        self.measured(now.since(probe.sent));
        true
    }

    /// It works both ways.
    pub(crate) fn prove(&mut self, now: Instant) {
        self.proven = Some(now);
        self.unanswered = 0;
        self.waiting_since = None;
    }

    /// Smooths as TCP does (RFC 6298: 1/8 of each new sample).
    pub(crate) fn measured(&mut self, sample: Duration) {
        self.rtt = Some(match self.rtt {
            None => sample,
            Some(rtt) => (rtt * 7 + sample) / 8,
        });
    }

    /// Forgets probes whose answer is overdue; counts them as unanswered.
    fn expire_probes(&mut self, now: Instant) {
        let timeout = self.probe_timeout();
        for slot in &mut self.probes {
            if slot.is_some_and(|probe| now.since(probe.sent) >= timeout) {
                *slot = None;
                self.unanswered = self.unanswered.saturating_add(1);
            }
        }
    }

    fn has_pending_probe(&self) -> bool {
        self.probes.iter().any(Option::is_some)
    }

    /// When the oldest pending probe is overdue.
    fn probe_deadline(&self) -> Option<Instant> {
        let oldest = self.probes.iter().flatten().map(|probe| probe.sent).min()?;
        Some(oldest + self.probe_timeout())
    }

    /// When the path has to be probed next, if its peer is in use; a pending probe is waited for first.
    ///
    /// `current`: it carries the data. `keepalive`: its NAT mapping is to be kept.
    fn next_probe(&self, current: bool, keepalive: bool) -> Option<Instant> {
        if self.has_pending_probe() || self.route().is_none() {
            return None;
        }
        let relayed = matches!(self.key, PathKey::Relay(_));
        if !current && !relayed {
            return None; // candidates are probed by punching, and proven ones that are not needed may lapse
        }
        let last = self.last_probe.unwrap_or(self.created);
        match self.unanswered {
            0 if self.rtt.is_none() => return Some(self.created), // every path in use is measured once
            0 => {}
            1..MAX_UNANSWERED => return Some(last),
            _ => return (relayed || current).then_some(last + FAILED_INTERVAL),
        }
        let suspicious = self
            .waiting_since
            .filter(|_| current)
            .map(|since| since + self.suspicion());
        let keepalive =
            (keepalive && !relayed).then(|| self.proven.unwrap_or(self.created) + KEEPALIVE);
        [suspicious, keepalive].into_iter().flatten().min()
    }

    /// Data on it waits for an answer for too long.
    fn is_suspicious(&self, now: Instant) -> bool {
        self.waiting_since
            .is_some_and(|since| now >= since + self.suspicion())
    }

    /// Data unanswered for this long makes a path suspicious: two round trips, and time for an application to think.
    fn suspicion(&self) -> Duration {
        (self.rtt.unwrap_or(DEFAULT_RTT) * 2).max(limits::MIN_SUSPICION)
    }
}
