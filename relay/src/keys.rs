//! What a relay derives from its key, so that after a restart it recognises the connections that it has lost.
//!
//! A QUIC packet whose connection ID was made by an earlier run of the same relay is answered by a stateless reset
//! (RFC 9000, section 10.3), and its client connects again within a round trip rather than after a timeout.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::Identity;
use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

const SALT: &[u8] = b"mesh-relay/1";
const RESET: &[u8] = b"stateless reset";
const CONNECTION_ID: &[u8] = b"connection id";
/// After a restart many clients wait for a reset at the same time; each is smaller than what it answers.
const MIN_RESET_INTERVAL: Duration = Duration::from_millis(1);

/// The configuration of a relay's QUIC endpoint.
pub(crate) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let root = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(identity.seed());
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(
        hmac::HMAC_SHA256,
        &derive::<32>(&root, RESET)[..],
    )));
    // This one only spares answers to noise; the reset itself is a MAC under the key above.
    let ids = u64::from_le_bytes(*derive(&root, CONNECTION_ID));
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)))
        // WireGuard, STUN and our own frames share the port; QUIC is told by this bit.
        .grease_quic_bit(false)
        .min_reset_interval(MIN_RESET_INTERVAL);
    config
}

fn derive<const N: usize>(root: &hkdf::Prk, label: &[u8]) -> Zeroizing<[u8; N]> {
    let mut key = Zeroizing::new([0; N]);
    root.expand(&[label], Length(N))
        .and_then(|okm| okm.fill(&mut key[..]))
        .expect("HKDF-SHA256 yields a few bytes");
    key
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_the_relay_and_on_their_purpose() {
        let root = |seed| hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(&[seed; 32]);
        let key = |seed, label| *derive::<32>(&root(seed), label);
        assert_eq!(key(1, RESET), key(1, RESET));
        assert_ne!(key(1, RESET), key(2, RESET));
        assert_ne!(key(1, RESET), key(1, CONNECTION_ID));
    }
}
