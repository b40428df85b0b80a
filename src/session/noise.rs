//! The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with WireGuard's messages (WireGuard paper, section 5.4; the
//! tokens in comments are those of the Noise specification, revision 34).
//!
//! Nothing here knows of time, peers or rates: bytes and keys in, bytes and keys out.

use curve25519_dalek::montgomery::MontgomeryPoint;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::hash::{Secret, derive, hash};

/// Names the cryptography; the first chaining key is its hash.
const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// The prologue, which names the protocol.
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

const TAG: usize = 16;
/// A public key.
const POINT: usize = 32;
/// TAI64N: 8 bytes of seconds, 4 of nanoseconds.
pub(super) type Timestamp = [u8; 12];

/// Lengths of the two messages as Noise knows them: without type, indices and MACs.
pub(super) const INITIATION: usize = POINT + POINT + TAG + size_of::<Timestamp>() + TAG;
pub(super) const RESPONSE: usize = POINT + TAG;

/// The message does not decrypt with these keys, or holds a point of low order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rejected;

/// A static or ephemeral X25519 key pair.
#[derive(Clone)]
pub(super) struct KeyPair {
    secret: Secret,
    pub(super) public: [u8; 32],
}

impl KeyPair {
    pub(super) fn new(secret: Secret) -> Self {
        let public = MontgomeryPoint::mul_base_clamped(*secret).to_bytes();
        Self { secret, public }
    }

    /// X25519 (RFC 7748, section 5); an all-zero result, which a point of low order gives, is refused.
    pub(super) fn agree(&self, public: &[u8; 32]) -> Result<Secret, Rejected> {
        let shared = Zeroizing::new(
            MontgomeryPoint(*public)
                .mul_clamped(*self.secret)
                .to_bytes(),
        );
        // The comparison may end early: the result is zero only if the other side made it so.
        if *shared == [0; 32] {
            Err(Rejected)
        } else {
            Ok(shared)
        }
    }
}

/// The keys that both sides of a handshake bring along.
pub(super) struct Statics<'a> {
    pub(super) local: &'a KeyPair,
    pub(super) remote: &'a [u8; 32],
    /// X25519 of the two.
    pub(super) shared: &'a [u8; 32],
    /// All zeros if there is none.
    pub(super) psk: &'a [u8; 32],
}

/// The keys of a finished handshake, from this side's view.
pub(super) struct Transport {
    pub(super) seal: Secret,
    pub(super) open: Secret,
}

/// Noise's SymmetricState: the chaining key and the hash of all that was said.
#[derive(Clone)]
struct Symmetric {
    chain: [u8; 32],
    hash: [u8; 32],
}

impl Drop for Symmetric {
    fn drop(&mut self) {
        self.chain.zeroize();
        self.hash.zeroize();
    }
}

impl Symmetric {
    /// With the prologue and the responder's static key, which the pattern's first line says is known.
    fn new(prologue: &[u8], responder: &[u8; 32]) -> Self {
        let chain = hash(&[CONSTRUCTION]);
        let mut state = Self {
            chain,
            hash: hash(&[&chain, prologue]),
        };
        state.mix_hash(responder);
        state
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    fn mix_key(&mut self, input: &[u8]) -> Secret {
        let [chain, key] = derive::<2>(&self.chain, input);
        self.chain = *chain;
        key
    }

    /// Without a cipher key of its own, as for `e` in a handshake with a preshared key.
    fn mix_chain(&mut self, input: &[u8]) {
        let [chain] = derive::<1>(&self.chain, input);
        self.chain = *chain;
    }

    /// `psk`
    fn mix_key_and_hash(&mut self, psk: &[u8; 32]) -> Secret {
        let [chain, hash, key] = derive::<3>(&self.chain, psk);
        self.chain = *chain;
        self.mix_hash(&*hash);
        key
    }

    /// Encrypts `data`, whose last 16 bytes are room for the tag, in place.
    fn encrypt_and_hash(&mut self, key: &Secret, data: &mut [u8]) {
        let (plain, tag) = data.split_at_mut(data.len() - TAG);
        let sealed = aead(key).seal_in_place_separate_tag(nonce(), Aad::from(&self.hash), plain);
        // ring refuses only more than 256 GiB.
        let Ok(made) = sealed else {
            unreachable!("{} bytes", plain.len())
        };
        tag.copy_from_slice(made.as_ref());
        self.mix_hash(data);
    }

    fn decrypt_and_hash(&mut self, key: &Secret, data: &[u8]) -> Result<Vec<u8>, Rejected> {
        let mut buffer = data.to_vec();
        let length = aead(key)
            .open_in_place(nonce(), Aad::from(&self.hash), &mut buffer)
            .map_err(|_| Rejected)?
            .len();
        buffer.truncate(length);
        self.mix_hash(data);
        Ok(buffer)
    }

    /// The two transport keys, the initiator's sending key first.
    fn split(&self) -> [Secret; 2] {
        derive::<2>(&self.chain, &[])
    }
}

fn aead(key: &Secret) -> LessSafeKey {
    // The length is right by its type.
    let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, &**key) else {
        unreachable!("32 bytes")
    };
    LessSafeKey::new(key)
}

/// Each handshake key encrypts one message.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// The initiator's state while it waits for the response.
pub(super) struct Initiator {
    state: Symmetric,
    ephemeral: KeyPair,
}

impl Initiator {
    /// Writes the first message.
    pub(super) fn start(
        keys: &Statics<'_>,
        ephemeral: KeyPair,
        timestamp: &Timestamp,
        out: &mut [u8; INITIATION],
    ) -> Result<Self, Rejected> {
        Self::write(IDENTIFIER, keys, ephemeral, timestamp, out)
    }

    /// `e, es, s, ss` and a payload; `out` is exactly as long as that takes.
    fn write(
        prologue: &[u8],
        keys: &Statics<'_>,
        ephemeral: KeyPair,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<Self, Rejected> {
        let mut state = Symmetric::new(prologue, keys.remote);
        let (point, rest) = out.split_at_mut(POINT);
        let (fixed, sealed) = rest.split_at_mut(POINT + TAG);
        point.copy_from_slice(&ephemeral.public);
        state.mix_hash(point);
        state.mix_chain(point);
        let key = state.mix_key(&*ephemeral.agree(keys.remote)?);
        fixed[..POINT].copy_from_slice(&keys.local.public);
        state.encrypt_and_hash(&key, fixed);
        let key = state.mix_key(keys.shared);
        sealed[..payload.len()].copy_from_slice(payload);
        state.encrypt_and_hash(&key, sealed);
        Ok(Self { state, ephemeral })
    }

    /// Reads the second message.
    pub(super) fn finish(
        &self,
        keys: &Statics<'_>,
        message: &[u8; RESPONSE],
    ) -> Result<Transport, Rejected> {
        let (transport, payload) = self.read(keys, message)?;
        if payload.is_empty() {
            Ok(transport)
        } else {
            Err(Rejected)
        }
    }

    /// `e, ee, se, psk` and a payload.
    fn read(&self, keys: &Statics<'_>, message: &[u8]) -> Result<(Transport, Vec<u8>), Rejected> {
        let mut state = self.state.clone();
        let (point, sealed) = message.split_first_chunk::<POINT>().ok_or(Rejected)?;
        state.mix_hash(point);
        state.mix_chain(point);
        state.mix_chain(&*self.ephemeral.agree(point)?);
        state.mix_chain(&*keys.local.agree(point)?);
        let key = state.mix_key_and_hash(keys.psk);
        let payload = state.decrypt_and_hash(&key, sealed)?;
        let [seal, open] = state.split();
        Ok((Transport { seal, open }, payload))
    }
}

/// The responder's state between the two halves of the first message: whom it names is known, the rest is not checked.
pub(crate) struct Introduction {
    state: Symmetric,
    ephemeral: [u8; POINT],
    /// The initiator's static key.
    pub(crate) remote: [u8; POINT],
    sealed: Vec<u8>,
}

impl Introduction {
    /// Reads the first half of the first message.
    pub(super) fn read(local: &KeyPair, message: &[u8; INITIATION]) -> Result<Self, Rejected> {
        Self::read_with(IDENTIFIER, local, message)
    }

    /// `e, es, s`
    fn read_with(prologue: &[u8], local: &KeyPair, message: &[u8]) -> Result<Self, Rejected> {
        let mut state = Symmetric::new(prologue, &local.public);
        let (point, rest) = message.split_first_chunk::<POINT>().ok_or(Rejected)?;
        let (fixed, sealed) = rest.split_at_checked(POINT + TAG).ok_or(Rejected)?;
        state.mix_hash(point);
        state.mix_chain(point);
        let key = state.mix_key(&*local.agree(point)?);
        let remote = state.decrypt_and_hash(&key, fixed)?;
        Ok(Self {
            state,
            ephemeral: *point,
            remote: remote.try_into().map_err(|_| Rejected)?,
            sealed: sealed.to_vec(),
        })
    }

    /// Reads the second half: `ss` and the payload. `keys` are those of the peer that [`Self::remote`] names.
    pub(super) fn check(mut self, keys: &Statics<'_>) -> Result<Responder, Rejected> {
        let key = self.state.mix_key(keys.shared);
        let payload = self.state.decrypt_and_hash(&key, &self.sealed)?;
        Ok(Responder {
            state: self.state,
            ephemeral: self.ephemeral,
            payload,
        })
    }
}

/// The responder's state after a first message that is authentic, though perhaps a copy.
pub(super) struct Responder {
    state: Symmetric,
    ephemeral: [u8; POINT],
    payload: Vec<u8>,
}

impl Responder {
    /// Has to be later than that of any other message of this peer.
    pub(super) fn timestamp(&self) -> Result<Timestamp, Rejected> {
        self.payload.as_slice().try_into().map_err(|_| Rejected)
    }

    /// Writes the second message.
    pub(super) fn answer(
        self,
        keys: &Statics<'_>,
        ephemeral: &KeyPair,
        out: &mut [u8; RESPONSE],
    ) -> Result<Transport, Rejected> {
        self.write(keys, ephemeral, &[], out)
    }

    /// `e, ee, se, psk` and a payload; `out` is exactly as long as that takes.
    fn write(
        mut self,
        keys: &Statics<'_>,
        ephemeral: &KeyPair,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<Transport, Rejected> {
        let (point, sealed) = out.split_at_mut(POINT);
        point.copy_from_slice(&ephemeral.public);
        self.state.mix_hash(point);
        self.state.mix_chain(point);
        self.state.mix_chain(&*ephemeral.agree(&self.ephemeral)?);
        self.state.mix_chain(&*ephemeral.agree(keys.remote)?);
        let key = self.state.mix_key_and_hash(keys.psk);
        sealed[..payload.len()].copy_from_slice(payload);
        self.state.encrypt_and_hash(&key, sealed);
        let [open, seal] = self.state.split();
        Ok(Transport { seal, open })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    fn pair(text: &str) -> KeyPair {
        KeyPair::new(Zeroizing::new(hex(text).try_into().unwrap()))
    }

    fn sealed(key: &Secret, counter: u64, plain: &[u8]) -> Vec<u8> {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&counter.to_le_bytes());
        let nonce = Nonce::assume_unique_for_key(bytes);
        let mut data = plain.to_vec();
        aead(key)
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut data)
            .unwrap();
        data
    }

    /// The vector of that name in cacophony's collection (github.com/haskell-cryptography/cacophony, vectors/cacophony.txt),
    /// which other implementations of Noise test against as well. Its prologue and payloads are not WireGuard's.
    #[test]
    fn the_handshake_is_that_of_the_published_noise_vector() {
        let psk: [u8; 32] = *b"This is my Austrian perspective!";
        let (prologue, first, second) = (b"John Galt", b"Ludwig von Mises", b"Murray Rothbard");
        let a = pair("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
        let b = pair("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
        let ephemeral_a = pair("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
        let ephemeral_b = pair("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
        let shared = a.agree(&b.public).unwrap();
        let keys_a = Statics {
            local: &a,
            remote: &b.public,
            shared: &shared,
            psk: &psk,
        };
        let keys_b = Statics {
            local: &b,
            remote: &a.public,
            shared: &shared,
            psk: &psk,
        };

        let mut message = vec![0; POINT + POINT + TAG + first.len() + TAG];
        let initiator =
            Initiator::write(prologue, &keys_a, ephemeral_a, first, &mut message).unwrap();
        assert_eq!(
            message,
            hex(concat!(
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944001e21de9f98ddd8e2ad57527207feb5",
                "6253c9c94a9e496782ecfcb2a75fbcaf1b52948cc48daefe660c62119ab5000980c84831215f2441eba616548e832985",
                "464cf17e51ee93109008399a21f7e13f",
            ))
        );
        let introduction = Introduction::read_with(prologue, &b, &message).unwrap();
        assert_eq!(introduction.remote, a.public);
        let responder = introduction.check(&keys_b).unwrap();
        assert_eq!(responder.payload, first);

        let mut message = vec![0; POINT + second.len() + TAG];
        let responder = responder
            .write(&keys_b, &ephemeral_b, second, &mut message)
            .unwrap();
        assert_eq!(
            message,
            hex(concat!(
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843cb765f2caef0751b8f007572dab0322217",
                "755c0632f365717edbf34d33e87a",
            ))
        );
        let (initiator, payload) = initiator.read(&keys_a, &message).unwrap();
        assert_eq!(payload, second);

        for (key, counter, plain, expected) in [
            (
                &initiator.seal,
                0,
                "F. A. Hayek",
                "8153ca9833bc3c1b91a7e66e5f4d4f5b59bf9e64c2f20d15f0bba7",
            ),
            (
                &responder.seal,
                0,
                "Carl Menger",
                "07af0c9c86e1b4e80f36b04ff7688d51141af3debd0332f0a705ef",
            ),
            (
                &initiator.seal,
                1,
                "Jean-Baptiste Say",
                "6ab1467c0448cc78394494abaaf23afce0e234315d6e2624dcbfa8a21c1c4d073d",
            ),
        ] {
            assert_eq!(sealed(key, counter, plain.as_bytes()), hex(expected));
        }
        assert_eq!(
            (*initiator.seal, *initiator.open),
            (*responder.open, *responder.seal)
        );
    }

    #[test]
    fn points_of_low_order_are_refused() {
        let key = KeyPair::new(Zeroizing::new([7; 32]));
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one] {
            assert_eq!(key.agree(&point).err(), Some(Rejected));
        }
    }
}
