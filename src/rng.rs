//! The one source of randomness of the core: seeded by the shell, so that a simulation can be repeated.

use rand_chacha::ChaCha12Rng;
use rand_core::{Rng as _, SeedableRng as _};
use zeroize::Zeroizing;

/// A cryptographically strong generator.
pub(crate) struct Random(ChaCha12Rng);

impl Random {
    pub(crate) fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha12Rng::from_seed(seed))
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// A private key.
    pub(crate) fn secret(&mut self) -> Zeroizing<[u8; 32]> {
        let mut secret = Zeroizing::new([0; 32]);
        self.0.fill_bytes(&mut *secret);
        secret
    }

    /// A fraction in `0.0..1.0`, for jitter.
    pub(crate) fn fraction(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / (f64::from(u32::MAX) + 1.0)
    }
}
