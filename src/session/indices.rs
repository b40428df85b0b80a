//! Session indices: the 32-bit numbers by which the other side names a session of ours (WireGuard paper, section 5.4.2).
//!
//! They are random, so that they tell nobody how many sessions there are or which packets belong to one host.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::peer::PeerIndex;
use crate::rng::Random;

/// All sessions of this host, and whose they are.
#[derive(Debug, Default)]
pub(crate) struct Indices(HashMap<u32, PeerIndex, BuildHasherDefault<AsIs>>);

impl Indices {
    /// A number that no session has. The table is bounded by the peers' handshakes and sessions.
    pub(super) fn allocate(&mut self, peer: PeerIndex, rng: &mut Random) -> u32 {
        loop {
            let index = rng.u64() as u32;
            if let std::collections::hash_map::Entry::Vacant(entry) = self.0.entry(index) {
                entry.insert(peer);
                return index;
            }
        }
    }

    pub(super) fn release(&mut self, index: u32) {
        self.0.remove(&index);
    }

    /// The peer that a message with this receiver index is from, if it is authentic.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<PeerIndex> {
        self.0.get(&index).copied()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Hashes a number by spreading its bits: only random numbers of our own are ever inserted, so nobody can choose keys that
/// collide.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u32 is hashed");
    }

    fn write_u32(&mut self, number: u32) {
        // Fibonacci hashing: the table takes its control bits from the top.
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
