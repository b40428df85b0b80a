//! The front door: what a handshake message has to show before a key operation is spent on it (WireGuard paper, sections
//! 5.3, 5.4.4 and 5.4.7).
//!
//! MAC1 shows that the sender knows our public key. Under load MAC2 has to show as well that the sender can receive at its
//! address: it is made with a cookie that we sent there and can make again, so nothing is remembered.

use std::net::SocketAddr;
use std::time::Duration;

use chacha20poly1305::{AeadInPlace as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::hash::{Secret, hash, mac};
use super::noise::{INITIATION, Introduction, KeyPair};
use crate::limits;
use crate::rng::Random;
use crate::time::Instant;

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// Lengths of the messages with a fixed one.
pub(super) const INITIATION_MESSAGE: usize = 8 + INITIATION + 2 * MAC;
pub(super) const RESPONSE_MESSAGE: usize = 12 + super::noise::RESPONSE + 2 * MAC;
pub(super) const COOKIE_MESSAGE: usize = 8 + NONCE + MAC + 16;
const MAC: usize = 16;
const NONCE: usize = 24;

/// How long a cookie is good for, and how long its secret is used (WireGuard's COOKIE_REFRESH_TIME).
pub(super) const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// Our static key in one network, with the front door's rate limit.
pub(crate) struct LocalKey {
    pub(super) keys: KeyPair,
    mac1_key: [u8; 32],
    /// What cookies are made with, and since when.
    cookie_secret: Option<(Secret, Instant)>,
    /// Handshake messages of the present second, and those of them with a valid cookie.
    admitted: u64,
    with_cookie: u64,
    since: Instant,
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
pub(crate) enum Admitted {
    /// An initiation that names a peer; whether it is authentic shows when the peer's session takes it.
    Initiation(Introduction),
    /// A handshake response; it names its session.
    Response,
    /// We are under load: send this cookie reply to the sender.
    Cookie([u8; COOKIE_MESSAGE]),
}

impl LocalKey {
    pub(crate) fn new(secret: &Zeroizing<[u8; 32]>, now: Instant) -> Self {
        let keys = KeyPair::new(secret.clone());
        Self {
            mac1_key: hash(&[LABEL_MAC1, &keys.public]),
            keys,
            cookie_secret: None,
            admitted: 0,
            with_cookie: 0,
            since: now,
        }
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        self.keys.public
    }

    /// Judges a handshake message. `source` is what cookies are bound to.
    pub(crate) fn admit(
        &mut self,
        source: SocketAddr,
        message: &[u8],
        now: Instant,
        rng: &mut Random,
    ) -> Result<Admitted, Refused> {
        let kind = match (message.first(), message.len()) {
            (Some(1), INITIATION_MESSAGE) | (Some(2), RESPONSE_MESSAGE) => message[0],
            _ => return Err(Refused::NotOurs),
        };
        let (body, macs) = message.split_at(message.len() - 2 * MAC);
        let (mac1, mac2) = macs.split_at(MAC);
        if !equal(&mac(&self.mac1_key, &[body]), mac1) {
            return Err(Refused::NotOurs);
        }
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.admitted, self.with_cookie, self.since) = (0, 0, now);
        }
        self.admitted = self.admitted.saturating_add(1);
        if self.admitted > limits::HANDSHAKES_PER_SECOND {
            let cookie = self.cookie(source, now, rng);
            if !equal(&mac(&cookie, &[body, mac1]), mac2) {
                let reply = cookie_reply(&self.keys.public, &cookie, message, mac1, rng);
                return Ok(Admitted::Cookie(reply));
            }
            self.with_cookie = self.with_cookie.saturating_add(1);
            if self.with_cookie > limits::HANDSHAKES_WITH_COOKIE_PER_SECOND {
                return Err(Refused::Overloaded);
            }
        }
        if kind == 2 {
            return Ok(Admitted::Response);
        }
        let noise = body[8..].first_chunk().ok_or(Refused::NotOurs)?;
        let introduction = Introduction::read(&self.keys, noise).map_err(|_| Refused::NotOurs)?;
        Ok(Admitted::Initiation(introduction))
    }

    /// The cookie of an address: what a later message from there is signed with.
    fn cookie(&mut self, source: SocketAddr, now: Instant, rng: &mut Random) -> [u8; 16] {
        let fresh = |(_, since): &(Secret, Instant)| now.since(*since) < COOKIE_LIFETIME;
        let (secret, _) = match self.cookie_secret.take().filter(fresh) {
            Some(kept) => self.cookie_secret.insert(kept),
            None => self.cookie_secret.insert((rng.secret(), now)),
        };
        let port = source.port().to_be_bytes();
        match source.ip() {
            std::net::IpAddr::V4(ip) => mac(&**secret, &[&ip.octets(), &port]),
            std::net::IpAddr::V6(ip) => mac(&**secret, &[&ip.octets(), &port]),
        }
    }
}

/// The key that cookies for the owner of `public` are encrypted with.
fn cookie_cipher(public: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&hash(&[LABEL_COOKIE, public]).into())
}

/// The answer to a message whose MAC1 is given: a cookie, encrypted for whoever made that message.
pub(super) fn cookie_reply(
    public: &[u8; 32],
    cookie: &[u8; 16],
    message: &[u8],
    mac1: &[u8],
    rng: &mut Random,
) -> [u8; COOKIE_MESSAGE] {
    let mut reply = [0; COOKIE_MESSAGE];
    let nonce: [u8; NONCE] = rng.bytes();
    reply[0] = 3;
    reply[4..8].copy_from_slice(&message[4..8]);
    reply[8..8 + NONCE].copy_from_slice(&nonce);
    reply[8 + NONCE..8 + NONCE + MAC].copy_from_slice(cookie);
    let sealed = cookie_cipher(public).encrypt_in_place_detached(
        XNonce::from_slice(&nonce),
        mac1,
        &mut reply[8 + NONCE..8 + NONCE + MAC],
    );
    // It refuses only more than 256 GiB.
    let Ok(tag) = sealed else {
        unreachable!("16 bytes")
    };
    reply[8 + NONCE + MAC..].copy_from_slice(&tag);
    reply
}

/// Reads a cookie reply of the owner of `public` to the message whose MAC1 is given.
pub(super) fn open_cookie(public: &[u8; 32], mac1: &[u8; MAC], reply: &[u8]) -> Option<[u8; 16]> {
    let reply: &[u8; COOKIE_MESSAGE] = reply.try_into().ok()?;
    let (nonce, sealed) = reply[8..].split_first_chunk::<NONCE>()?;
    let (sealed, tag) = sealed.split_first_chunk::<MAC>()?;
    let mut cookie = *sealed;
    cookie_cipher(public)
        .decrypt_in_place_detached(
            XNonce::from_slice(nonce),
            mac1,
            &mut cookie,
            Tag::from_slice(tag),
        )
        .ok()?;
    Some(cookie)
}

/// Fills in the two MACs at the end of a message to the owner of `public`. Returns MAC1.
pub(super) fn sign(public: &[u8; 32], cookie: Option<&[u8; 16]>, message: &mut [u8]) -> [u8; MAC] {
    let body = message.len() - 2 * MAC;
    let mac1 = mac(&hash(&[LABEL_MAC1, public]), &[&message[..body]]);
    message[body..body + MAC].copy_from_slice(&mac1);
    let mac2 = cookie.map_or([0; MAC], |cookie| mac(cookie, &[&message[..body + MAC]]));
    message[body + MAC..].copy_from_slice(&mac2);
    mac1
}

/// Without an early exit: how much of a MAC was right must not show.
fn equal(a: &[u8; MAC], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0 && b.len() == MAC
}
