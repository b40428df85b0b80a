//! Who a node is: keys, the IDs made of them, and the overlay addresses made of the IDs.
//!
//! A node's ID *is* its ed25519 public key, and its WireGuard key is the X25519 form of the same key, so that
//! knowing an ID is enough to reach and to authenticate a node. That only holds if one key has one spelling:
//! [`NodeId`] therefore refuses every encoding but the canonical one, and every point outside the prime-order group.

mod relay_url;
mod wireguard_key;

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::LazyLock;

use blake2::{Blake2s256, Digest};
use curve25519_dalek::{EdwardsPoint, Scalar};
use data_encoding::{DecodeKind, Encoding, Specification};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use ipnet::Ipv6Net;
use thiserror::Error;
use zeroize::Zeroizing;

pub use relay_url::{RelayUrl, RelayUrlError};
pub use wireguard_key::{WireGuardKeyError, format_wireguard_key, parse_wireguard_key};

/// Characters of a 32-byte ID or seed in base32 without padding: ⌈256 / 5⌉.
const TEXT_LEN: usize = 52;
/// First line of an identity file.
const FILE_HEADER: &str = "meshd-identity-v1";

/// The RFC 4648 alphabet in lower case, without padding; unused trailing bits must be zero.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification
        .encoding()
        .expect("32 different symbols make an encoding")
});

/// Why a text or some bytes are not the ID of a node or a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdError {
    /// The text has the wrong length.
    #[error("an ID has 52 characters, this has {0}; copy the whole ID")]
    Length(usize),
    /// A character outside `a`–`z` and `2`–`7`.
    #[error(
        "character {0} is not one of a-z and 2-7; an ID is written in lower case, without spaces"
    )]
    Character(usize),
    /// The last character carries bits that no ID has.
    #[error("the last character is wrong; copy the ID again")]
    TrailingBits,
    /// The bytes are not the encoding of a curve point.
    #[error("it is not an ed25519 public key; copy the ID again")]
    NotAPoint,
    /// The bytes encode a curve point in a second way.
    #[error(
        "it is not the canonical form of an ed25519 public key; ask its owner for the ID again"
    )]
    NotCanonical,
    /// One of the eight points that make every signature valid.
    #[error(
        "it is a weak key (of small order), which no node has; do not trust where it came from"
    )]
    SmallOrder,
    /// The point has a component of small order.
    #[error(
        "it is outside the prime-order group, which no node's key is; do not trust where it came from"
    )]
    Torsion,
}

/// The ID of a node in one network: a canonical ed25519 public key in the prime-order group.
///
/// Its text form is 52 characters of lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    bytes: [u8; 32],
    /// The same key in Montgomery form, kept because it is asked for again and again, and costs as much as a signature.
    wireguard: [u8; 32],
}

impl NodeId {
    /// Checks that `bytes` are a key that a node can have.
    ///
    /// # Errors
    ///
    /// If they are no curve point, not its canonical encoding (RFC 8032, section 5.1.3), or if the point has a
    /// component of small order.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, IdError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| IdError::NotAPoint)?;
        let point = key.to_edwards();
        // Decompression takes y modulo the field's prime, and any sign for x = 0: compare with the one encoding.
        if point.compress().as_bytes() != bytes {
            return Err(IdError::NotCanonical);
        }
        if point.is_small_order() {
            return Err(IdError::SmallOrder);
        }
        // [l - 1] P = -P only if [l] P = 0. In variable time: there is nothing secret about an ID, and a network may have
        // ten thousand.
        let order_less_one = -Scalar::ONE;
        let multiple = EdwardsPoint::vartime_double_scalar_mul_basepoint(
            &order_less_one,
            &point,
            &Scalar::ZERO,
        );
        if multiple != -point {
            return Err(IdError::Torsion);
        }
        Ok(Self::of(&key))
    }

    /// The ID of a key that is known to be good.
    fn of(key: &VerifyingKey) -> Self {
        Self {
            bytes: key.to_bytes(),
            wireguard: key.to_montgomery().to_bytes(),
        }
    }

    /// The ed25519 public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The node's WireGuard public key: the same key in Montgomery form (RFC 7748, section 4.1).
    ///
    /// An ID and the ID of the negated key have the same WireGuard key, so a network must check that these differ too.
    pub const fn to_wireguard(&self) -> [u8; 32] {
        self.wireguard
    }

    /// The first ten characters, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE32.encode(&self.bytes))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::from_bytes(&*decode(text)?)
    }
}

/// The ID of a network. It is public and authenticates nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId([u8; 32]);

impl NetworkId {
    /// The ID that a network has whose configuration gives none.
    pub fn from_name(name: &str) -> Self {
        Self(hash("meshd network name v1", &[name.as_bytes()]))
    }

    /// Any 32 bytes are a network ID.
    pub const fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self(*bytes)
    }

    /// The ID's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&BASE32.encode(&self.0))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NetworkId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Ok(Self(*decode(text)?))
    }
}

/// Why the content of an identity file was refused. Never quotes the file: it may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The file does not start with the header line.
    #[error(
        "it does not start with the line \"meshd-identity-v1\", so it is not an identity file; \
         restore the right file, or move this one away to get a new identity"
    )]
    Header,
    /// The file ends within the key.
    #[error("it is incomplete; restore it from a backup, or move it away to get a new identity")]
    Incomplete,
    /// The key line is not a key.
    #[error(
        "its second line is not a key of 52 characters; \
         restore it from a backup, or move it away to get a new identity"
    )]
    Key,
    /// Something follows the key.
    #[error("something follows the key; restore it from a backup, or remove what follows line 2")]
    Trailing,
}

/// A node's secret key in one network. Wiped from memory when dropped.
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// The identity that grows from 32 secret random bytes (the ed25519 private key of RFC 8032).
    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        Self {
            key: SigningKey::from_bytes(&seed),
        }
    }

    /// A second copy of the secret, where two owners need one. Deliberately not `Clone`.
    pub fn duplicate(&self) -> Self {
        Self {
            key: self.key.clone(),
        }
    }

    /// The public half.
    pub fn id(&self) -> NodeId {
        // A public key derived from a clamped scalar is canonical and in the prime-order group.
        NodeId::of(&self.key.verifying_key())
    }

    /// The X25519 private key that belongs to [`NodeId::to_wireguard`]; not clamped, which X25519 does itself.
    pub fn wireguard_secret(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_scalar_bytes())
    }

    /// The secret that [`Self::from_seed`] was given.
    pub fn seed(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// The ed25519 signature of `message`. The caller puts a domain in front of what it signs.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// Reads the content of an identity file: the header line, the seed in base32, nothing else.
    ///
    /// # Errors
    ///
    /// If it is anything else, half-written files included.
    pub fn parse_file(text: &str) -> Result<Self, IdentityError> {
        let Some(rest) = text.strip_prefix(FILE_HEADER) else {
            return Err(if FILE_HEADER.starts_with(text.trim_end()) {
                IdentityError::Incomplete
            } else {
                IdentityError::Header
            });
        };
        let rest = match rest.strip_prefix('\n') {
            Some(rest) => rest,
            None if rest.is_empty() => return Err(IdentityError::Incomplete),
            None => return Err(IdentityError::Header),
        };
        let Some((line, rest)) = rest.split_once('\n') else {
            return Err(IdentityError::Incomplete);
        };
        let seed = decode(line).map_err(|_| IdentityError::Key)?;
        if !rest.is_empty() {
            return Err(IdentityError::Trailing);
        }
        Ok(Self::from_seed(seed))
    }

    /// The content of an identity file, as [`Self::parse_file`] reads it.
    pub fn to_file(&self) -> Zeroizing<String> {
        let mut key = Zeroizing::new([0; TEXT_LEN]);
        BASE32.encode_mut(self.seed(), &mut *key);
        // The final size at once: growing would leave copies of the secret behind.
        let mut text = Zeroizing::new(String::with_capacity(FILE_HEADER.len() + TEXT_LEN + 2));
        text.push_str(FILE_HEADER);
        text.push('\n');
        text.extend(key.iter().map(|byte| char::from(*byte)));
        text.push('\n');
        text
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.id()).finish()
    }
}

/// The prefix of all derived addresses of a network: `fd` and 40 bits of the network ID as a /64.
pub fn overlay_prefix(network: &NetworkId) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&network.0[..5]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 64)
}

/// The address that a node has in a network without anyone assigning it: 64 bits of a hash in [`overlay_prefix`].
pub fn overlay_address(network: &NetworkId, node: &NodeId) -> Ipv6Addr {
    let host = hash("meshd overlay address v1", &[&network.0, &node.bytes]);
    let mut octets = overlay_prefix(network).addr().octets();
    octets[8..].copy_from_slice(&host[..8]);
    Ipv6Addr::from(octets)
}

/// BLAKE2s of the domain, a zero byte (which no domain contains), and the parts.
///
/// Only the last part may be of variable length, or two inputs could collide.
fn hash(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    hasher.update(domain.as_bytes());
    hasher.update([0]);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Decodes 52 characters of base32; the buffer is wiped because it may be a secret.
fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, IdError> {
    let length = text.chars().count();
    if length != TEXT_LEN {
        return Err(IdError::Length(length));
    }
    if text.len() != TEXT_LEN {
        let position = text.chars().position(|c| !c.is_ascii()).unwrap_or_default();
        return Err(IdError::Character(position + 1));
    }
    let mut bytes = Zeroizing::new([0; 32]);
    match BASE32.decode_mut(text.as_bytes(), &mut *bytes) {
        Ok(_) => Ok(bytes),
        Err(partial) => Err(match partial.error.kind {
            DecodeKind::Trailing => IdError::TrailingBits,
            _ => IdError::Character(partial.error.position + 1),
        }),
    }
}

#[cfg(test)]
mod tests;
