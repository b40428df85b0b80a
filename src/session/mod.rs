//! WireGuard sessions: the only file that knows how packets between peers are encrypted.
//!
//! A [`Session`] wraps one boringtun `Tunn`. What boringtun leaves to its user is done here: packets are never
//! queued inside (the peer has a bounded queue), timers run only while the session is in use, and the clock and
//! buffer rules that would make it panic are kept.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::limits;
use crate::time::Instant;

/// True when sessions run on the simulator's clock: never in a program that is shipped.
pub const VIRTUAL_CLOCK: bool = cfg!(feature = "virtual-clock");
/// Which clock sessions run on, for `--version`.
pub const CLOCK: &str = if VIRTUAL_CLOCK { "virtual" } else { "system" };

/// Bytes that sealing adds: 16 of header, 16 of authentication tag.
pub const OVERHEAD: usize = 32;
/// boringtun demands this much room for any message, because it may answer with a handshake initiation.
const MIN_BUFFER: usize = 148;

/// Sets the clock that boringtun reads on this thread.
#[cfg(feature = "virtual-clock")]
pub fn set_virtual_clock(now: Instant) {
    mock_instant::MockClock::set_time(now.since_boot());
}

/// Our static key in one network, with the front door's rate limit.
pub(crate) struct LocalKey {
    secret: StaticSecret,
    public: PublicKey,
    limiter: RateLimiter,
    limiter_reset: Instant,
}

/// Why a handshake message was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not for this key.
    NotOurs,
    /// Too many handshakes, and nothing to answer.
    Overloaded,
}

/// A handshake message that was made for our key and is within the rate that we answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// An initiation that names this peer; whether it is authentic shows when the peer's session opens it.
    Initiation([u8; 32]),
    /// A handshake response; it names its session.
    Response,
    /// We are under load: send this cookie reply to the sender.
    Cookie([u8; 64]),
}

impl LocalKey {
    pub(crate) fn new(secret: &Zeroizing<[u8; 32]>, now: Instant) -> Self {
        let secret = StaticSecret::from(**secret);
        let public = PublicKey::from(&secret);
        Self {
            limiter: RateLimiter::new(&public, limits::HANDSHAKES_PER_SECOND),
            secret,
            public,
            limiter_reset: now,
        }
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        self.public.to_bytes()
    }

    /// The front door for handshake messages. `source` is what cookies are bound to.
    pub(crate) fn admit(
        &mut self,
        source: IpAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Admitted, Refused> {
        if now.since(self.limiter_reset) >= Duration::from_secs(1) {
            self.limiter.reset_count();
            self.limiter_reset = now;
        }
        let mut cookie = [0; 64];
        match self
            .limiter
            .verify_packet(Some(source), datagram, &mut cookie)
        {
            Ok(Packet::HandshakeInit(packet)) => {
                let half = parse_handshake_anon(&self.secret, &self.public, &packet)
                    .map_err(|_| Refused::NotOurs)?;
                Ok(Admitted::Initiation(half.peer_static_public))
            }
            Ok(Packet::HandshakeResponse(_)) => Ok(Admitted::Response),
            Err(TunnResult::WriteToNetwork(_)) => Ok(Admitted::Cookie(cookie)),
            Err(TunnResult::Err(WireGuardError::UnderLoad)) => Err(Refused::Overloaded),
            _ => Err(Refused::NotOurs),
        }
    }
}

/// What opening a message gave. Lengths count from the start of the buffer that was passed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// An inner packet of this length.
    Packet(usize),
    /// An authentic message without content.
    Keepalive,
    /// The other side's initiation was accepted: send this handshake response back the way it came.
    Response(usize),
    /// Our handshake is complete: send this, it confirms the keys to the responder.
    Established(usize),
    /// A cookie was taken in; the next initiation carries it.
    Cookie,
}

/// Why a message was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// Seen before, or older than the replay window.
    Replayed,
    /// No such session any more.
    NoSession,
    /// Authentic, but no IP packet inside.
    Malformed,
    /// Does not authenticate.
    Unauthentic,
}

impl From<WireGuardError> for OpenError {
    fn from(error: WireGuardError) -> Self {
        match error {
            WireGuardError::InvalidCounter
            | WireGuardError::DuplicateCounter
            | WireGuardError::WrongTai64nTimestamp => Self::Replayed,
            WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Self::NoSession,
            WireGuardError::InvalidPacket => Self::Malformed,
            _ => Self::Unauthentic,
        }
    }
}

/// The keys shared with one peer.
pub(crate) struct Session {
    tunn: Tunn,
    /// When boringtun's own notion of the time was last moved.
    ticked: Instant,
}

impl Session {
    /// A session without keys. `index` is unique among all sessions and below 2^24.
    pub(crate) fn new(
        local: &LocalKey,
        peer: &[u8; 32],
        psk: Option<&[u8; 32]>,
        index: u32,
        now: Instant,
    ) -> Self {
        let psk = psk.copied();
        let create = || {
            // One that never fires: the front door has counted every handshake message already.
            let limiter = Arc::new(RateLimiter::new(&local.public, u64::MAX));
            Tunn::new(
                local.secret.clone(),
                PublicKey::from(*peer),
                psk,
                None,
                index,
                Some(limiter),
            )
        };
        let mut session = Self {
            tunn: at_clock_origin(now, create),
            ticked: now,
        };
        // Moves its clock to now; without keys there is nothing it could want to send.
        session.tick(now, &mut [0; MIN_BUFFER]);
        session
    }

    /// True when packets can be sealed.
    pub(crate) fn is_ready(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Seals `packet` into the start of `out`, which has room for it, [`OVERHEAD`] and at least 148 bytes.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        if !self.is_ready() || out.len() < MIN_BUFFER.max(packet.len() + OVERHEAD) {
            return None;
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(sealed) => Some(sealed.len()),
            _ => None,
        }
    }

    /// Opens any message of this session into `out`, which is at least as long as the message and 148 bytes.
    pub(crate) fn open(&mut self, message: &[u8], out: &mut [u8]) -> Result<Opened, OpenError> {
        if message.is_empty() || out.len() < MIN_BUFFER.max(message.len()) {
            return Err(OpenError::Malformed);
        }
        let kind = message[0];
        if kind == 4 && is_past_last_counter(message) {
            return Err(OpenError::Replayed);
        }
        match self.tunn.decapsulate(None, message, out) {
            TunnResult::WriteToTunnelV4(packet, _) => Ok(Opened::Packet(packet.len())),
            TunnResult::WriteToTunnelV6(packet, _) => Ok(Opened::Packet(packet.len())),
            TunnResult::WriteToNetwork(reply) if kind == 1 => Ok(Opened::Response(reply.len())),
            TunnResult::WriteToNetwork(reply) => Ok(Opened::Established(reply.len())),
            TunnResult::Done if kind == 3 => Ok(Opened::Cookie),
            TunnResult::Done => Ok(Opened::Keepalive),
            TunnResult::Err(error) => Err(error.into()),
        }
    }

    /// Writes a fresh handshake initiation to `out` (at least 148 bytes).
    pub(crate) fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Runs WireGuard's timers: rekey, keepalive, expiry. Returns the length of a message that is to be sent now.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        self.ticked = now;
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// When [`Self::tick`] last ran.
    pub(crate) fn last_tick(&self) -> Instant {
        self.ticked
    }
}

/// WireGuard's REJECT_AFTER_MESSAGES. boringtun does not check it, and its arithmetic wraps beyond.
fn is_past_last_counter(message: &[u8]) -> bool {
    let counter = message.get(8..16).and_then(|bytes| bytes.try_into().ok());
    counter.is_none_or(|counter| u64::from_le_bytes(counter) >= u64::MAX - (1 << 13))
}

/// Runs `create` while boringtun's clock stands at its origin.
///
/// A `Tunn` stamps its handshakes with the system's time at its creation plus what its clock has moved since. On a
/// virtual clock, a host that restarts would otherwise stamp from the past and be refused as a replay.
#[cfg(feature = "virtual-clock")]
fn at_clock_origin<T>(now: Instant, create: impl FnOnce() -> T) -> T {
    mock_instant::MockClock::set_time(Duration::ZERO);
    let made = create();
    mock_instant::MockClock::set_time(now.since_boot());
    made
}

#[cfg(not(feature = "virtual-clock"))]
fn at_clock_origin<T>(_now: Instant, create: impl FnOnce() -> T) -> T {
    create()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_boot(Duration::from_secs(1_000));
    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn key(seed: u8) -> LocalKey {
        LocalKey::new(&Zeroizing::new([seed; 32]), NOW)
    }

    fn packet() -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[3] = 28;
        packet
    }

    /// Two sessions after a complete handshake; the first has sent the confirmation.
    fn established(psk: [Option<[u8; 32]>; 2]) -> Option<(Session, Session)> {
        let (a, b) = (key(1), key(2));
        let mut initiator = Session::new(&a, &b.public(), psk[0].as_ref(), 5, NOW);
        let mut responder = Session::new(&b, &a.public(), psk[1].as_ref(), 9, NOW);
        let (mut m, mut n) = ([0; 256], [0; 256]);
        let length = initiator.initiate(&mut m)?;
        let Ok(Opened::Response(length)) = responder.open(&m[..length], &mut n) else {
            return None;
        };
        let Ok(Opened::Established(length)) = initiator.open(&n[..length], &mut m) else {
            return None;
        };
        assert!(
            !responder.is_ready(),
            "not before the initiator has confirmed"
        );
        assert_eq!(responder.open(&m[..length], &mut n), Ok(Opened::Keepalive));
        Some((initiator, responder))
    }

    #[test]
    fn packets_cross_after_a_handshake_and_a_copy_is_a_replay() {
        let (mut a, mut b) = established([None, None]).unwrap();
        let (mut sealed, mut opened) = ([0; 256], [0; 256]);
        for session in [&mut a, &mut b] {
            assert!(session.is_ready());
        }
        let length = b.seal(&packet(), &mut sealed).unwrap();
        assert_eq!(length, packet().len() + OVERHEAD);
        assert_eq!(
            a.open(&sealed[..length], &mut opened),
            Ok(Opened::Packet(28))
        );
        assert_eq!(opened[..28], packet());
        assert_eq!(
            a.open(&sealed[..length], &mut opened),
            Err(OpenError::Replayed)
        );
        let length = b.seal(&packet(), &mut sealed).unwrap();
        sealed[20] ^= 1;
        assert_eq!(
            a.open(&sealed[..length], &mut opened),
            Err(OpenError::Unauthentic)
        );
    }

    #[test]
    fn a_preshared_key_has_to_match() {
        assert!(established([Some([1; 32]), Some([1; 32])]).is_some());
        assert!(established([Some([1; 32]), Some([2; 32])]).is_none());
        assert!(established([Some([1; 32]), None]).is_none());
    }

    #[test]
    fn buffers_that_are_too_small_are_refused_instead_of_a_panic() {
        let (mut a, mut b) = established([None, None]).unwrap();
        let mut sealed = [0; 256];
        assert_eq!(a.seal(&packet(), &mut [0; 60]), None);
        let length = a.seal(&packet(), &mut sealed).unwrap();
        assert_eq!(
            b.open(&sealed[..length], &mut [0; 60]),
            Err(OpenError::Malformed)
        );
        assert_eq!(b.open(&[], &mut [0; 256]), Err(OpenError::Malformed));
    }

    #[test]
    fn the_front_door_names_the_sender_and_asks_for_a_cookie_under_load() {
        let (a, mut b) = (key(1), key(2));
        let mut initiator = Session::new(&a, &b.public(), None, 5, NOW);
        let mut message = [0; 256];
        let length = initiator.initiate(&mut message).unwrap();
        assert_eq!(
            b.admit(SOURCE, &message[..length], NOW),
            Ok(Admitted::Initiation(a.public()))
        );
        assert_eq!(
            key(3).admit(SOURCE, &message[..length], NOW),
            Err(Refused::NotOurs)
        );
        for _ in 0..limits::HANDSHAKES_PER_SECOND {
            let _ = b.admit(SOURCE, &message[..length], NOW);
        }
        let Ok(Admitted::Cookie(cookie)) = b.admit(SOURCE, &message[..length], NOW) else {
            panic!("not under load");
        };
        assert_eq!(initiator.open(&cookie, &mut [0; 256]), Ok(Opened::Cookie));
        let length = initiator.initiate(&mut message).unwrap();
        assert_eq!(
            b.admit(SOURCE, &message[..length], NOW),
            Ok(Admitted::Initiation(a.public()))
        );
    }
}
