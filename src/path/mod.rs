//! The ways to one peer: which are known, which are proven, and which one carries data.
//!
//! A path is *usable* when our own probe on it was answered lately (proof in both directions). A handshake counts as a
//! probe. Anything else that arrives on a path only makes it a candidate to be probed. That it carries data is shown by
//! the peer's alives, see [`liveness`]; a path in use whose data is not acknowledged is probed, and left if that fails.

pub(crate) mod agent;
pub(crate) mod candidates;
pub(crate) mod liveness;
pub(crate) mod mtu;
pub(crate) mod reason;
pub(crate) mod scoring;

use std::net::SocketAddr;
use std::time::Duration;

use self::liveness::{Incoming, Outgoing, alive_delay};
use self::mtu::{MtuBounds, MtuProbe, PathMtu};
use self::reason::PathReason;
use crate::engine::{PathKind, RelayHandle, SocketId};
use crate::limits;
use crate::nat::lifetime::Lifetime;
use crate::rng::Random;
use crate::time::Instant;
use crate::wire::control::Received;

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
    /// It counts as unanswered. A late answer is one all the same: the path has become slow.
    overdue: bool,
}

/// One path.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) key: PathKey,
    /// Our number of it, which our probes carry; never 0.
    pub(crate) id: u8,
    /// How long it is trusted after it was proven, in seconds.
    trust: u8,
    /// For a relay path, once the relay has opened a channel.
    channel: Option<(SocketAddr, u32)>,
    channel_asked: Option<Instant>,
    rtt: Option<Duration>,
    /// When our own probe, or handshake, was last answered on it.
    proven: Option<Instant>,
    last_rx: Option<Instant>,
    /// What became of our data on it, and what data of the peer's came by it.
    out: Outgoing,
    incoming: Incoming,
    /// Since when something that happened may have broken it, until it has answered again.
    doubted: Option<Instant>,
    /// It answers probes and loses data: not to be used before this.
    distrusted: Option<Instant>,
    /// How often that happened.
    swallowed: u32,
    probes: [Option<PendingProbe>; limits::PROBES_IN_FLIGHT],
    last_probe: Option<Instant>,
    /// A probe is wanted then.
    check_at: Option<Instant>,
    /// The round trip time of the last probe that was answered, and when that was.
    last_sample: Option<(Duration, Instant)>,
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
/// lifetime is 30 s. In seconds; where it was measured how long the NAT remembers, as long as that.
const TRUST: u8 = 32;
/// Interval of probes on the path in use: well below the 30 s after which common NATs forget a mapping.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// And after a path was lost while it was idle: some NATs forget in 10 s.
const SHORT_KEEPALIVE: Duration = Duration::from_secs(8);
/// A path that carries data is measured this often, and those that could take its place less often.
const MEASURE_CURRENT: Duration = Duration::from_secs(5);
const MEASURE_OTHERS: Duration = Duration::from_secs(15);
/// A round trip time that was measured longer ago is that of another situation, and no reason to leave a better kind of path.
const FRESH: Duration = Duration::from_secs(2);
/// A probe is given up after 1.5 round trips, but not before this.
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(100);
/// And after this on a path that was never measured: two satellite hops there and back.
const FIRST_PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Round trip time assumed on a path that was never measured.
const DEFAULT_RTT: Duration = Duration::from_millis(250);
/// Probes in a row without an answer that make a path unusable.
const MAX_UNANSWERED: u32 = 3;
/// A failed path is tried again after this; one that was left, after twice as long each time up to [`MAX_RETRY`].
const FAILED_INTERVAL: Duration = Duration::from_secs(1);
/// See [`FAILED_INTERVAL`].
const MAX_RETRY: Duration = Duration::from_secs(30);
/// A path that answers probes and loses data is not trusted for this long, doubled each time up to [`MAX_DISTRUST`].
const DISTRUST: Duration = Duration::from_secs(30);
/// See [`DISTRUST`].
const MAX_DISTRUST: Duration = Duration::from_secs(600);
/// A relay that has no channel to a peer is asked again after this: the peer may have come.
const CHANNEL_INTERVAL: Duration = Duration::from_secs(5);
/// And after this while a handshake waits for it.
const URGENT_CHANNEL_INTERVAL: Duration = Duration::from_millis(200);
/// What arrives from an address that proved nothing is answered with at most this many times its size.
const AMPLIFICATION: usize = 3;

impl Path {
    fn new(key: PathKey, id: u8, now: Instant) -> Self {
        Self {
            key,
            id,
            trust: TRUST,
            channel: None,
            channel_asked: None,
            rtt: None,
            proven: None,
            last_rx: None,
            out: Outgoing::default(),
            incoming: Incoming::default(),
            doubted: None,
            distrusted: None,
            swallowed: 0,
            probes: [None; limits::PROBES_IN_FLIGHT],
            last_probe: None,
            check_at: None,
            last_sample: None,
            unanswered: 0,
            unproven_tx: 0,
            unproven_rx: 0,
            mtu: PathMtu::default(),
            created: now,
        }
    }

    /// What is known of the NAT before us, which a direct path over IPv4 leads through.
    fn set_lifetime(&mut self, lifetime: Option<Lifetime>) {
        let seconds = lifetime.filter(|_| self.is_mapped()).map(Lifetime::trust);
        self.trust = seconds.map_or(TRUST, |time| {
            u8::try_from(time.as_secs()).unwrap_or(u8::MAX)
        });
    }

    /// A NAT between us keeps a mapping for it, as far as is known.
    fn is_mapped(&self) -> bool {
        matches!(self.key, PathKey::Direct(_, remote) if remote.is_ipv4())
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
    ///
    /// One probe without an answer is enough on a path that something may have broken, else it takes three.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.answers(now) && !self.is_distrusted(now)
    }

    /// True when it works as far as probes show.
    fn answers(&self, now: Instant) -> bool {
        let reachable = match self.key {
            PathKey::Relay(_) => self.channel.is_some(),
            PathKey::Direct(..) => self.is_proven(now),
        };
        let allowed = if self.doubted.is_some() {
            1
        } else {
            MAX_UNANSWERED
        };
        reachable && self.unanswered < allowed
    }

    /// True while something that happened may have broken it.
    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// True if it answers probes and loses data, as far as is known.
    pub(crate) fn is_distrusted(&self, now: Instant) -> bool {
        self.distrusted.is_some_and(|until| until > now)
    }

    /// Data on it is not acknowledged, and a probe that asked about it not answered; or it is doubted.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.doubted.is_some() || self.unanswered > 0 && self.out.waiting_since().is_some()
    }

    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        let trust = Duration::from_secs(self.trust.into());
        self.proven.is_some_and(|at| now.since(at) < trust)
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn set_channel(&mut self, channel: Option<(SocketAddr, u32)>) {
        self.channel = channel;
        self.unanswered = 0;
        self.out.forget();
    }

    /// Something happened that may have broken it: it is probed at once.
    pub(crate) fn doubt(&mut self, now: Instant) {
        self.doubted = Some(now);
        self.mtu.restart();
        self.unanswered = 0;
    }

    /// It leads nowhere any more, as far as this host knows.
    fn cut_off(&mut self) {
        self.proven = None;
        self.unanswered = MAX_UNANSWERED;
    }

    /// The peer has forgotten it: it has to be proved again.
    pub(crate) fn forget_proof(&mut self) {
        self.proven = None;
    }

    /// True if data may soon have to go there.
    fn is_spare(&self, now: Instant) -> bool {
        let works = match self.key {
            PathKey::Relay(_) => self.channel.is_some(),
            PathKey::Direct(..) => self.is_proven(now),
        };
        let lately = |last: Instant| now.since(last) < self.probe_timeout();
        works && !self.last_probe.is_some_and(lately)
    }

    pub(crate) fn was_probed_lately(&self, now: Instant) -> bool {
        self.last_probe
            .is_some_and(|last| now.since(last) < FAILED_INTERVAL)
    }

    /// Why it cannot be used.
    fn fault(&self, now: Instant) -> PathReason {
        match self.key {
            PathKey::Relay(_) if self.channel.is_none() => PathReason::RelayLost,
            _ if self.is_distrusted(now) => PathReason::Swallowed,
            _ if self.is_doubted() => PathReason::SilentAfterChange,
            PathKey::Direct(..) if self.proven.is_none() => PathReason::AddressGone,
            _ if self.has_failed() && self.out.waiting_since().is_some() => {
                PathReason::Unacknowledged
            }
            _ if self.has_failed() => PathReason::Silent,
            _ => PathReason::Unused,
        }
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
        self.unproven_rx = self.unproven_rx.saturating_add(bytes);
    }

    /// Data was sent on it: so many packets of a session (the peer's number of it), the last of them with this counter.
    #[inline]
    pub(crate) fn sent_data(&mut self, now: Instant, session: u32, counter: u64, count: u32) {
        self.out.sent(now, session, counter, count);
    }

    /// The peer says what it got on it.
    fn acknowledged(&mut self, now: Instant, received: &Received) {
        let Some(sent) = self.out.acknowledged(now, received) else {
            return;
        };
        if self.proven.is_some() {
            self.proven = Some(now);
        }
        self.unanswered = 0;
        self.doubted.take_if(|since| sent >= *since);
        if self.distrusted.take_if(|until| *until <= now).is_some() {
            self.swallowed = 0;
        }
    }

    /// Share of our data that is lost on it, 0 to 1, once measured.
    pub(crate) fn loss(&self) -> Option<f32> {
        self.out.loss()
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
                overdue: false,
            });
        }
        self.last_probe = Some(now);
        self.check_at = None;
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
        self.doubted.take_if(|since| probe.sent >= *since);
        let sample = now.since(probe.sent);
        self.last_sample = Some((sample, now));
        if probe.overdue {
            // A path that is that slow would be given up again and again, were this smoothed.
            self.rtt = Some(self.rtt.map_or(sample, |rtt| rtt.max(sample)));
        } else {
            self.measured(sample);
        }
        if self.out.probe_answered(probe.sent) {
            let pause = DISTRUST * 2u32.saturating_pow(self.swallowed.min(8));
            self.distrusted = Some(now + pause.min(MAX_DISTRUST));
            self.swallowed = self.swallowed.saturating_add(1);
            self.out.forget();
        }
        true
    }

    /// It works both ways.
    pub(crate) fn prove(&mut self, now: Instant) {
        self.proven = Some(now);
        self.unanswered = 0;
    }

    /// The round trip time as it is just now, if it was measured just now.
    fn fresh_sample(&self, now: Instant) -> Option<Duration> {
        let (sample, at) = self.last_sample?;
        (now.since(at) < FRESH).then_some(sample)
    }

    /// Smooths: 1/4 of each new sample, twice of what TCP takes (RFC 6298), because samples are few.
    pub(crate) fn measured(&mut self, sample: Duration) {
        self.rtt = Some(match self.rtt {
            None => sample,
            Some(rtt) => (rtt * 3 + sample) / 4,
        });
    }

    /// Counts probes whose answer is overdue as unanswered, and forgets those that are too old for any answer.
    fn expire_probes(&mut self, now: Instant) {
        let timeout = self.probe_timeout();
        for slot in &mut self.probes {
            let Some(probe) = slot else { continue };
            let age = now.since(probe.sent);
            if !probe.overdue && age >= timeout {
                probe.overdue = true;
                // Data that goes on arriving there shows a line that has filled up: the answer will be late.
                let lately = now - alive_delay(self.rtt.unwrap_or(DEFAULT_RTT)) * 2;
                let late = self.doubted.is_none() && self.out.has_progressed_since(lately);
                self.unanswered = self.unanswered.saturating_add(u32::from(!late));
            }
            if age >= timeout.max(FIRST_PROBE_TIMEOUT) {
                *slot = None;
            }
        }
    }

    fn pending_probes(&self) -> impl Iterator<Item = &PendingProbe> {
        self.probes.iter().flatten().filter(|probe| !probe.overdue)
    }

    fn has_pending_probe(&self) -> bool {
        self.pending_probes().next().is_some()
    }

    /// When the oldest pending probe is overdue.
    fn probe_deadline(&self) -> Option<Instant> {
        let oldest = self.pending_probes().map(|probe| probe.sent).min()?;
        Some(oldest + self.probe_timeout())
    }

    /// When the path has to be probed next, if its peer is in use; a pending probe is waited for first, unless it was
    /// sent before the path came into doubt.
    fn next_probe(&self, place: Place) -> Option<Instant> {
        self.route()?;
        if let Some(since) = self.doubted
            && self.last_probe.is_none_or(|last| last < since)
        {
            return Some(since);
        }
        if self.has_pending_probe() {
            return None;
        }
        let relayed = matches!(self.key, PathKey::Relay(_));
        // Candidates are probed by punching.
        if !place.current && !relayed && self.proven.is_none() {
            return None;
        }
        let last = self.last_probe.unwrap_or(self.created);
        match self.unanswered {
            0 if self.rtt.is_none() => return Some(self.created), // every path in use is measured once
            0 => {}
            1..MAX_UNANSWERED => return Some(last),
            failed => return Some(last + self.retry(failed, place.current)),
        }
        let measure = if place.current {
            MEASURE_CURRENT
        } else {
            MEASURE_OTHERS
        };
        // Nothing sent, nothing measured.
        let measure = place
            .data
            .filter(|sent| *sent > last)
            .map(|_| last + measure);
        let suspicious = self.suspicious_at().filter(|_| place.current);
        let keepalive = place
            .keepalive
            .filter(|_| place.current && !relayed)
            .map(|interval| self.proven.unwrap_or(self.created) + interval);
        [suspicious, keepalive, measure, self.check_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Pause before a failed path is tried again.
    fn retry(&self, failed: u32, current: bool) -> Duration {
        if current {
            return FAILED_INTERVAL;
        }
        let doubled = failed.saturating_sub(MAX_UNANSWERED).min(8);
        (FAILED_INTERVAL * 2u32.saturating_pow(doubled)).min(MAX_RETRY)
    }

    /// Data on it has waited for too long to be acknowledged.
    fn is_suspicious(&self, now: Instant) -> bool {
        self.suspicious_at().is_some_and(|at| at <= now)
    }

    /// When data that nobody has acknowledged becomes suspicious: a round trip, the time that the receiver may take,
    /// and the same time again for what varies.
    fn suspicious_at(&self) -> Option<Instant> {
        let rtt = self.rtt.unwrap_or(DEFAULT_RTT);
        Some(self.out.silent_since()? + rtt + alive_delay(rtt) * 2)
    }
}

/// What the path's place among the others means for probing it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// It carries the data.
    current: bool,
    /// Interval at which the NAT mapping of the path in use is to be kept.
    keepalive: Option<Duration>,
    /// When data was last sent on the path in use.
    data: Option<Instant>,
}
