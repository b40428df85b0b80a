//! The cipher of transport packets: ChaCha20-Poly1305 (RFC 8439) in place, many packets a call.
//!
//! WireGuard packets have no associated data and a counter for a nonce, and a batch of them
//! shares a key. Where the CPU can, sixteen of them go side by side through [`avx512`]; `ring`
//! does the rest, and everything elsewhere.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod group;
#[cfg(target_arch = "x86_64")]
mod poly1305;
#[cfg(test)]
mod tests;

/// A loop over few vectors: iterators and closures do not reliably inline into functions that are
/// compiled for more features than themselves, and a call spills every vector.
#[cfg(target_arch = "x86_64")]
macro_rules! each {
    ($i:ident < $end:expr, $body:expr) => {{
        let mut $i = 0;
        while $i < $end {
            $body;
            $i += 1;
        }
    }};
}
#[cfg(target_arch = "x86_64")]
use each;

use core::fmt;
use core::str::FromStr;
use std::sync::OnceLock;

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

/// Bytes of an authentication tag.
pub(crate) const TAG: usize = 16;

/// Which implementation seals and opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// `ring`, packet by packet.
    Ring,
    /// Sixteen packets side by side, small batches with `ring`.
    Avx512,
}

impl Kernel {
    /// The fastest that this CPU can run.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| {
            if Self::Avx512.available() {
                Self::Avx512
            } else {
                Self::Ring
            }
        })
    }

    /// Its name, as the configuration has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Avx512 => "avx512",
        }
    }

    fn available(self) -> bool {
        match self {
            Self::Ring => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 => false,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a kernel's name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// There is no such kernel.
    #[error("no cipher is named {0:?}: use \"ring\" or \"avx512\"")]
    Unknown(String),
    /// This CPU lacks the instructions that the kernel needs.
    #[error("this CPU cannot run the cipher {0}")]
    Unsupported(Kernel),
}

impl FromStr for Kernel {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        let kernel = [Self::Ring, Self::Avx512]
            .into_iter()
            .find(|k| k.as_str() == name)
            .ok_or_else(|| KernelError::Unknown(name.to_owned()))?;
        if kernel.available() {
            Ok(kernel)
        } else {
            Err(KernelError::Unsupported(kernel))
        }
    }
}

/// A transport key, for sealing or for opening. Wiped from memory when dropped.
///
/// `ring`'s form of a key cannot be wiped, so that it is not kept but made for each call that needs
/// it: it is a mere copy of the bytes, and stays on the stack until something else is there.
pub(crate) struct Key {
    bytes: [u8; 32],
}

impl Drop for Key {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

impl Key {
    /// A key of these bytes.
    pub(crate) fn new(bytes: &[u8; 32]) -> Self {
        Self { bytes: *bytes }
    }

    /// `ring`'s form of it; always there, as 32 bytes are the length that it asks for.
    fn ring(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&aead::CHACHA20_POLY1305, &self.bytes)
            .ok()
            .map(LessSafeKey::new)
    }
}

/// One packet: `data` holds the plaintext and then [`TAG`] bytes of room (sealing), or the
/// ciphertext and the tag (opening).
#[derive(Debug, Default)]
pub(crate) struct Job<'a> {
    pub(crate) counter: u64,
    pub(crate) data: &'a mut [u8],
}

/// The most jobs of which [`open`] can tell the outcome.
pub(crate) const MAX_JOBS: usize = u64::BITS as usize;

/// Seals each in place: the nonce is four zero bytes and the counter, and there is no associated
/// data. What is too short for a tag is left alone.
pub(crate) fn seal(kernel: Kernel, key: &Key, jobs: &mut [Job<'_>]) {
    for jobs in jobs.chunks_mut(MAX_JOBS) {
        process::<true>(kernel, key, jobs);
    }
}

/// Opens each of at most [`MAX_JOBS`] in place; further ones are left alone. Bit `i` of the result
/// says whether job `i` is authentic; if it is not, its data mean nothing.
pub(crate) fn open(kernel: Kernel, key: &Key, jobs: &mut [Job<'_>]) -> u64 {
    let count = jobs.len().min(MAX_JOBS);
    process::<false>(kernel, key, &mut jobs[..count])
}

/// Seals or opens at most 64 jobs; bit `i` says that it went well with job `i`.
fn process<const SEAL: bool>(kernel: Kernel, key: &Key, jobs: &mut [Job<'_>]) -> u64 {
    if super::NULL_CIPHER {
        return u64::MAX; // nothing is sealed, and everything taken for authentic: to measure what the cipher costs
    }
    // A kernel that the CPU lacks can be named, but not run.
    #[cfg(target_arch = "x86_64")]
    if kernel == Kernel::Avx512 && avx512::available() {
        return group::process::<SEAL>(key, jobs);
    }
    let _ = kernel;
    let Some(key) = key.ring() else { return 0 };
    let mut done = 0;
    for (i, job) in jobs.iter_mut().enumerate() {
        done |= u64::from(with_ring::<SEAL>(&key, job)) << i;
    }
    done
}

/// Seals or opens one packet with `ring`; whether it went well.
fn with_ring<const SEAL: bool>(key: &LessSafeKey, job: &mut Job<'_>) -> bool {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&job.counter.to_le_bytes());
    let nonce = Nonce::assume_unique_for_key(nonce);
    if !SEAL {
        return key.open_in_place(nonce, Aad::empty(), job.data).is_ok();
    }
    let Some((text, room)) = job.data.split_last_chunk_mut::<TAG>() else {
        return false;
    };
    match key.seal_in_place_separate_tag(nonce, Aad::empty(), text) {
        Ok(tag) => {
            room.copy_from_slice(tag.as_ref());
            true
        }
        Err(_) => false,
    }
}
