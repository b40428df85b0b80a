//! WireGuard sessions: how packets between peers are encrypted, and when keys change.
//!
//! A [`Session`] belongs to one peer. It makes and takes handshake messages ([`noise`], [`front_door`]), keeps the keys of
//! the last handshakes ([`keypair`]) and knows when something is due. It neither sends nor paces anything: the engine
//! decides on which paths a handshake goes and how often. Packets are sealed and opened in whole batches, in place, by
//! [`crate::batch`], with the keys and counters that a session gives out.
//!
//! As WireGuard's specification has it, with what it leaves open decided for a mesh: a window of up to 2^17 packets against
//! replays, random session indices, jitter before new keys, several handshakes in flight at the same time (a path that
//! is slower than the pause between two attempts must not starve), and answers to several initiations that are kept until
//! one is confirmed.

pub(crate) mod cipher;
mod front_door;
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod indices;
mod keypair;
mod noise;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use self::cipher::Key;
pub use self::cipher::{Kernel, KernelError};
pub(crate) use self::front_door::{Admitted, LocalKey, Refused};
use self::front_door::{COOKIE_LIFETIME, INITIATION_MESSAGE, RESPONSE_MESSAGE, open_cookie, sign};
use self::hash::Secret;
pub(crate) use self::indices::Indices;
pub(crate) use self::keypair::{Keypair, Sealing};
use self::noise::{Initiator, Introduction, KeyPair, Statics, Timestamp};
use crate::limits;
use crate::peer::PeerIndex;
use crate::rng::Random;
use crate::time::Instant;

/// True in a build that sends packets as they are, to measure what encryption costs.
pub const NULL_CIPHER: bool = cfg!(feature = "null-cipher");

/// What precedes the packet in a data message: type, receiver index, counter.
pub const HEADER: usize = 16;
/// Bytes that sealing adds: the header and the authentication tag.
pub const OVERHEAD: usize = HEADER + cipher::TAG;
/// Packets are padded to a multiple of this (WireGuard paper, section 5.4.6), which hides their exact length.
const PADDING: usize = 16;

/// A packet from the peer is answered within this time, if by nothing else then by an empty one.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// WireGuard's least pause between two initiations.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to an initiation is waited for: the engine has sent another one by then, long since.
const HANDSHAKE_LIFETIME: Duration = REKEY_TIMEOUT.saturating_mul(2);
/// Initiations of one peer that come faster are not looked at (as in Linux): each costs four key agreements.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// What every operation on keys needs from the engine.
pub(crate) struct Context<'a> {
    pub(crate) local: &'a LocalKey,
    pub(crate) indices: &'a mut Indices,
    pub(crate) rng: &'a mut Random,
    pub(crate) now: Instant,
}

/// What is due by time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// An empty packet, so that the other side knows that its packets arrive.
    pub(crate) keepalive: bool,
    /// A handshake: the keys are old, or nothing comes back.
    pub(crate) handshake: bool,
}

/// Why a handshake message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// Not newer than one that was taken.
    Replayed,
    /// For no handshake that is in flight.
    Unknown,
    /// Does not authenticate.
    Unauthentic,
}

impl From<noise::Rejected> for HandshakeError {
    fn from(_: noise::Rejected) -> Self {
        Self::Unauthentic
    }
}

/// An initiation of ours that waits for its answer.
struct InFlight {
    index: u32,
    state: Initiator,
    sent: Instant,
}

/// The keys shared with one peer.
pub(crate) struct Session {
    peer: PeerIndex,
    remote: [u8; 32],
    /// X25519 of the two static keys.
    shared: Secret,
    psk: Secret,

    in_flight: VecDeque<InFlight>,
    /// MAC1 of our last handshake message, which a cookie reply refers to.
    last_mac1: [u8; 16],
    cookie: Option<([u8; 16], Instant)>,
    last_sent_stamp: Timestamp,
    newest_stamp: Timestamp,
    last_initiation: Option<Instant>,

    current: Option<Keypair>,
    /// What the peer may still send with until it has seen our first packet with the current keys.
    previous: Option<Keypair>,
    /// Keys of our answers, oldest first; the peer's first packet shows which of them arrived.
    unconfirmed: VecDeque<Keypair>,

    keepalive_due: Option<Instant>,
    reply_due: Option<Instant>,
    wants_handshake: bool,
}

impl Session {
    /// What a session takes at most, with keys and replay windows of every generation.
    pub(crate) const MOST_BYTES: usize = size_of::<Self>()
        + limits::HANDSHAKES_IN_FLIGHT * size_of::<InFlight>()
        + (limits::UNCONFIRMED_SESSIONS + 2) * Keypair::MOST_BYTES;

    /// A session without keys; `None` for a peer's key with which no secret can be agreed.
    pub(crate) fn new(
        local: &LocalKey,
        peer: PeerIndex,
        remote: [u8; 32],
        psk: Option<&[u8; 32]>,
    ) -> Option<Self> {
        Some(Self {
            peer,
            remote,
            shared: local.keys.agree(&remote).ok()?,
            psk: Zeroizing::new(psk.copied().unwrap_or_default()),
            in_flight: VecDeque::new(),
            last_mac1: [0; 16],
            cookie: None,
            last_sent_stamp: [0; 12],
            newest_stamp: [0; 12],
            last_initiation: None,
            current: None,
            previous: None,
            unconfirmed: VecDeque::new(),
            keepalive_due: None,
            reply_due: None,
            wants_handshake: false,
        })
    }

    /// Takes its numbers out of the table; to be called before the session is dropped.
    pub(crate) fn release(&mut self, indices: &mut Indices) {
        for handshake in self.in_flight.drain(..) {
            indices.release(handshake.index);
        }
        for keys in self.unconfirmed.drain(..) {
            indices.release(keys.local);
        }
        for keys in [self.current.take(), self.previous.take()]
            .into_iter()
            .flatten()
        {
            indices.release(keys.local);
        }
    }

    /// True when packets can be sealed.
    pub(crate) fn is_ready(&self) -> bool {
        self.current.is_some()
    }

    /// Writes a fresh initiation. `unix` is the time since 1970: the peer takes only initiations newer than the last.
    pub(crate) fn initiate(
        &mut self,
        context: &mut Context<'_>,
        unix: Duration,
    ) -> Option<[u8; INITIATION_MESSAGE]> {
        let stamp = later_stamp(&self.last_sent_stamp, unix);
        self.last_sent_stamp = stamp;
        let mut message = [0; INITIATION_MESSAGE];
        let keys = statics(context.local, &self.remote, &self.shared, &self.psk);
        let noise = message[8..].first_chunk_mut()?;
        let ephemeral = KeyPair::new(context.rng.secret());
        let state = Initiator::start(&keys, ephemeral, &stamp, noise).ok()?;
        let index = context.indices.allocate(self.peer, context.rng);
        message[0] = 1;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        self.sign(&mut message, context.now);
        if self.in_flight.len() >= limits::HANDSHAKES_IN_FLIGHT
            && let Some(oldest) = self.in_flight.pop_front()
        {
            context.indices.release(oldest.index);
        }
        let sent = context.now;
        self.in_flight.push_back(InFlight { index, state, sent });
        self.wants_handshake = false;
        Some(message)
    }

    fn sign(&mut self, message: &mut [u8], now: Instant) {
        let fresh = |(_, since): &&([u8; 16], Instant)| now.since(*since) < COOKIE_LIFETIME;
        let cookie = self.cookie.as_ref().filter(fresh).map(|(cookie, _)| cookie);
        self.last_mac1 = sign(&self.remote, cookie, message);
    }

    /// Takes the peer's initiation and writes the answer. The new keys wait until the peer uses them.
    pub(crate) fn accept_initiation(
        &mut self,
        context: &mut Context<'_>,
        introduction: Introduction,
        message: &[u8],
    ) -> Result<[u8; RESPONSE_MESSAGE], HandshakeError> {
        let now = context.now;
        if self
            .last_initiation
            .is_some_and(|at| now.since(at) < INITIATION_INTERVAL)
        {
            return Err(HandshakeError::Replayed);
        }
        let keys = statics(context.local, &self.remote, &self.shared, &self.psk);
        let responder = introduction.check(&keys)?;
        let stamp = responder.timestamp()?;
        if stamp <= self.newest_stamp {
            return Err(HandshakeError::Replayed);
        }
        self.newest_stamp = stamp;
        self.last_initiation = Some(now);
        let mut answer = [0; RESPONSE_MESSAGE];
        let ephemeral = KeyPair::new(context.rng.secret());
        let noise = answer[12..]
            .first_chunk_mut()
            .ok_or(HandshakeError::Unauthentic)?;
        let transport = responder.answer(&keys, &ephemeral, noise)?;
        let local = context.indices.allocate(self.peer, context.rng);
        let remote = number(message, 4).ok_or(HandshakeError::Unauthentic)?;
        answer[0] = 2;
        answer[4..8].copy_from_slice(&local.to_le_bytes());
        answer[8..12].copy_from_slice(&remote.to_le_bytes());
        self.sign(&mut answer, now);
        if self.unconfirmed.len() >= limits::UNCONFIRMED_SESSIONS
            && let Some(oldest) = self.unconfirmed.pop_front()
        {
            context.indices.release(oldest.local);
        }
        let keys = Keypair::new(local, remote, &transport, false, now, context.rng);
        self.unconfirmed.push_back(keys);
        Ok(answer)
    }

    /// Takes the answer to one of our initiations: its keys are the current ones from now on.
    pub(crate) fn accept_response(
        &mut self,
        context: &mut Context<'_>,
        message: &[u8],
    ) -> Result<(), HandshakeError> {
        let receiver = number(message, 8).ok_or(HandshakeError::Unknown)?;
        let at = self
            .in_flight
            .iter()
            .position(|handshake| handshake.index == receiver);
        let at = at.ok_or(HandshakeError::Unknown)?;
        let noise = message
            .get(12..)
            .and_then(<[u8]>::first_chunk)
            .ok_or(HandshakeError::Unknown)?;
        let keys = statics(context.local, &self.remote, &self.shared, &self.psk);
        let transport = self.in_flight[at].state.finish(&keys, noise)?;
        let remote = number(message, 4).ok_or(HandshakeError::Unknown)?;
        // Later initiations stay: the peer may have answered them as well, and forgotten this one over them.
        for older in self.in_flight.drain(..at) {
            context.indices.release(older.index);
        }
        self.in_flight.pop_front(); // its index goes on as that of the session
        let keys = Keypair::new(receiver, remote, &transport, true, context.now, context.rng);
        self.make_current(keys, context.indices);
        Ok(())
    }

    fn make_current(&mut self, keys: Keypair, indices: &mut Indices) {
        let before = self.current.replace(keys);
        if let Some(oldest) = std::mem::replace(&mut self.previous, before) {
            indices.release(oldest.local);
        }
        self.wants_handshake = false;
        self.reply_due = None;
    }

    /// Takes a cookie reply; our next handshake message carries the cookie.
    pub(crate) fn accept_cookie(
        &mut self,
        now: Instant,
        message: &[u8],
    ) -> Result<(), HandshakeError> {
        let cookie = open_cookie(&self.remote, &self.last_mac1, message);
        self.cookie = Some((cookie.ok_or(HandshakeError::Unauthentic)?, now));
        Ok(())
    }

    /// Keys and counters for `count` packets to be sent now. `user` says that they are a user's, and not only about paths:
    /// then something is expected to come back.
    #[inline]
    pub(crate) fn reserve(&mut self, now: Instant, count: u64, user: bool) -> Option<Sealing<'_>> {
        let current = self.current.as_mut().filter(|keys| !keys.is_expired(now))?;
        self.wants_handshake |= current.wants_rekey(now);
        self.keepalive_due = None;
        if user && self.reply_due.is_none() {
            self.reply_due = Some(now + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT);
        }
        current.reserve(count)
    }

    /// Seals a packet into the start of `out`; `None` without keys or room. For single packets: users' go in batches.
    pub(crate) fn seal(
        &mut self,
        now: Instant,
        kernel: Kernel,
        packet: &[u8],
        out: &mut [u8],
    ) -> Option<usize> {
        // A probe of a path's MTU has just the size that it is to have.
        let padded = padded(packet.len(), usize::from(limits::INNER_MTU));
        let out = out.get_mut(..padded + OVERHEAD)?;
        let sealing = self.reserve(now, 1, false)?;
        write_header(out, sealing.receiver, sealing.counter);
        let data = &mut out[HEADER..];
        data[..packet.len()].copy_from_slice(packet);
        data[packet.len()..].fill(0);
        let counter = sealing.counter;
        cipher::seal(kernel, sealing.key, &mut [cipher::Job { counter, data }]);
        Some(padded + OVERHEAD)
    }

    /// The key that opens packets with this receiver index.
    pub(crate) fn opening(&self, now: Instant, receiver: u32) -> Option<&Arc<Key>> {
        let keys = self.keys().find(|keys| keys.local == receiver)?;
        (!keys.is_expired(now)).then(|| keys.opening())
    }

    fn keys(&self) -> impl Iterator<Item = &Keypair> {
        self.current
            .iter()
            .chain(&self.previous)
            .chain(&self.unconfirmed)
    }

    /// The keys that packets with this receiver index are opened with, to be told which of them came.
    pub(crate) fn receiving(&mut self, receiver: u32) -> Option<&mut Keypair> {
        self.current
            .iter_mut()
            .chain(&mut self.previous)
            .chain(&mut self.unconfirmed)
            .find(|keys| keys.local == receiver)
    }

    /// Packets were opened and accepted; `user` as for [`Self::reserve`]. The first one with keys of an answer of ours
    /// makes those the current ones.
    pub(crate) fn received(
        &mut self,
        now: Instant,
        receiver: u32,
        user: bool,
        indices: &mut Indices,
    ) {
        self.reply_due = None;
        if user && self.keepalive_due.is_none() {
            self.keepalive_due = Some(now + KEEPALIVE_TIMEOUT);
        }
        if let Some(at) = self
            .unconfirmed
            .iter()
            .position(|keys| keys.local == receiver)
        {
            // Older answers did not arrive, or came too late; newer ones may be on their way.
            for older in self.unconfirmed.drain(..at) {
                indices.release(older.local);
            }
            if let Some(keys) = self.unconfirmed.pop_front() {
                self.make_current(keys, indices);
            }
        }
    }

    /// When [`Self::handle_timeout`] has to run.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.wants_handshake {
            return Some(Instant::default());
        }
        let expiry = self.keys().map(Keypair::expires).min();
        let in_flight = self
            .in_flight
            .front()
            .map(|handshake| handshake.sent + HANDSHAKE_LIFETIME);
        [expiry, in_flight, self.keepalive_due, self.reply_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Forgets what is too old, and tells what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant, indices: &mut Indices) -> Due {
        for slot in [&mut self.current, &mut self.previous] {
            if let Some(keys) = slot.take_if(|keys| keys.is_expired(now)) {
                indices.release(keys.local);
            }
        }
        while let Some(keys) = self.unconfirmed.pop_front_if(|keys| keys.is_expired(now)) {
            indices.release(keys.local);
        }
        let over = |handshake: &mut InFlight| now.since(handshake.sent) >= HANDSHAKE_LIFETIME;
        while let Some(handshake) = self.in_flight.pop_front_if(over) {
            indices.release(handshake.index);
        }
        let is_due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let silent = is_due(&mut self.reply_due);
        Due {
            keepalive: is_due(&mut self.keepalive_due) && self.is_ready(),
            handshake: std::mem::take(&mut self.wants_handshake) || silent,
        }
    }
}

fn statics<'a>(
    local: &'a LocalKey,
    remote: &'a [u8; 32],
    shared: &'a [u8; 32],
    psk: &'a [u8; 32],
) -> Statics<'a> {
    Statics {
        local: &local.keys,
        remote,
        shared,
        psk,
    }
}

/// TAI64N of `unix`, made later than `last` if it is not.
fn later_stamp(last: &Timestamp, unix: Duration) -> Timestamp {
    /// TAI64's label of 1970 (cr.yp.to/libtai/tai64.html): 2^62, and the ten seconds that TAI was ahead.
    const EPOCH: u64 = (1 << 62) + 10;
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&EPOCH.saturating_add(unix.as_secs()).to_be_bytes());
    stamp[8..].copy_from_slice(&unix.subsec_nanos().to_be_bytes());
    if stamp > *last {
        return stamp;
    }
    let mut number = [0; 16];
    number[4..].copy_from_slice(last);
    let next = (u128::from_be_bytes(number) + 1).to_be_bytes();
    stamp.copy_from_slice(&next[4..]);
    stamp
}

/// The little-endian number at `at` in a message, if it is that long: types 1 and 2 have the sender's index at 4, type 2
/// has the receiver's at 8, types 3 and 4 at 4.
#[inline]
pub(crate) fn number(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// Writes the header of a data message.
#[inline]
pub(crate) fn write_header(out: &mut [u8], receiver: u32, counter: u64) {
    out[..4].copy_from_slice(&[4, 0, 0, 0]);
    out[4..8].copy_from_slice(&receiver.to_le_bytes());
    out[8..16].copy_from_slice(&counter.to_le_bytes());
}

/// The counter of a data message.
#[inline]
pub(crate) fn counter(message: &[u8]) -> Option<u64> {
    let bytes = message.get(8..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Length of a packet with its padding, which does not exceed `mtu` unless the packet does.
#[inline]
pub(crate) fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}
