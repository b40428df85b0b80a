//! BLAKE2s as WireGuard uses it: hash, MAC, HMAC and the key derivation of Noise (WireGuard paper, section 5.4).

use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac};
use zeroize::Zeroizing;

/// Input block of BLAKE2s (RFC 7693, section 2.1), which HMAC pads its key to.
const BLOCK: usize = 64;

/// A key or chaining key: gone from memory when it goes out of scope.
pub(super) type Secret = Zeroizing<[u8; 32]>;

/// HASH: BLAKE2s with 32 bytes of output.
pub(super) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        blake2::Digest::update(&mut state, part);
    }
    state.finalize().into()
}

/// MAC: keyed BLAKE2s with 16 bytes of output. The key has 1 to 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    // All keys here are hashes or cookies: 32 and 16 bytes.
    let Ok(mut state) = Blake2sMac::<U16>::new_from_slice(key) else {
        unreachable!("a key of {} bytes", key.len());
    };
    for part in parts {
        state.update(part);
    }
    state.finalize_fixed().into()
}

/// HMAC over [`hash`] (RFC 2104). The key has at most 64 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut pad = Zeroizing::new([0x36_u8; BLOCK]);
    for (pad, key) in pad.iter_mut().zip(key) {
        *pad ^= key;
    }
    let mut state = Blake2s256::new();
    blake2::Digest::update(&mut state, *pad);
    for part in parts {
        blake2::Digest::update(&mut state, part);
    }
    let inner = Zeroizing::new(<[u8; 32]>::from(state.finalize()));
    for pad in pad.iter_mut() {
        *pad ^= 0x36 ^ 0x5c;
    }
    Zeroizing::new(hash(&[&*pad, &*inner]))
}

/// KDF_n of the WireGuard paper: `N` keys from a chaining key and new input.
pub(super) fn derive<const N: usize>(chain: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let root = hmac(chain, &[input]);
    let mut keys: [Secret; N] = std::array::from_fn(|_| Secret::default());
    for at in 0..N {
        let number = [at as u8 + 1];
        keys[at] = match at.checked_sub(1) {
            None => hmac(&root, &[&number]),
            Some(before) => hmac(&root, &[&*keys[before], &number]),
        };
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    #[test]
    fn hash_is_blake2s_of_rfc_7693_appendix_b() {
        assert_eq!(
            hash(&[b"a", b"bc"]).to_vec(),
            hex("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982")
        );
    }

    /// The KDF is RFC 5869's HKDF with an empty salt replaced by the chaining key; compared with another implementation.
    #[test]
    fn derived_keys_are_those_of_hkdf() {
        use blake2::digest::Mac as _;
        let (chain, input) = ([7; 32], b"input");
        let reference = |key: &[u8], parts: &[&[u8]]| {
            // The textbook form of HMAC, for keys shorter than a block.
            let pad = |with: u8| -> Vec<u8> {
                let mut pad = key.to_vec();
                pad.resize(BLOCK, 0);
                pad.iter().map(|byte| byte ^ with).collect()
            };
            let inner = hash(&[&pad(0x36), &parts.concat()]);
            hash(&[&pad(0x5c), &inner])
        };
        let root = reference(&chain, &[input]);
        let first = reference(&root, &[&[1]]);
        let second = reference(&root, &[&first, &[2]]);
        let keys = derive::<2>(&chain, input);
        assert_eq!((*keys[0], *keys[1]), (first, second));
        // And the MAC against BLAKE2s' own interface.
        let mut state = Blake2sMac::<U16>::new_from_slice(&chain).unwrap();
        blake2::digest::Mac::update(&mut state, input);
        assert_eq!(
            mac(&chain, &[b"in", b"put"]),
            <[u8; 16]>::from(state.finalize().into_bytes())
        );
    }
}
