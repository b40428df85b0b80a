//! The Internet checksum (RFC 1071).

/// The one's complement sum of `bytes` and of `initial`, folded to 16 bits and not inverted.
///
/// `initial` is a sum of 16-bit numbers in the host's order, say that of another part.
#[inline]
pub fn checksum(bytes: &[u8], initial: u64) -> u16 {
    fold(u64::from(Sum::of(bytes).fold()) + u64::from(fold(initial)))
}

/// Below this many bytes, say for a header, plain code is faster than wide registers are set up.
const SHORT: usize = 64;

/// A sum of 16-bit words as they lie in memory; swapping the folded sum once does for all of them (RFC 1071, section 2
/// (B)). Packets have at most 64 KiB, so that it never overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// That of the 16-bit words of `bytes`, the last of which may be half a one.
    #[inline]
    pub(crate) fn of(bytes: &[u8]) -> Self {
        if bytes.len() < SHORT {
            return Self(sum_words(bytes));
        }
        Self(sum_long(bytes))
    }

    /// The same, and copies the bytes to `to`, which is as long, on the way.
    #[inline]
    pub(crate) fn copying(from: &[u8], to: &mut [u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if from.len() >= SHORT && avx512::available() {
            assert_eq!(from.len(), to.len());
            // SAFETY: the CPU has what the function is compiled for.
            return Self(unsafe { avx512::sum_copying(from, to) });
        }
        to.copy_from_slice(from);
        Self::of(from)
    }

    /// Together with the sum of other words.
    #[inline]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Together with a number in the host's order.
    #[inline]
    pub(crate) fn and_number(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// As a 16-bit number in the host's order.
    #[inline]
    pub(crate) fn fold(self) -> u16 {
        u16::from_be(fold(self.0))
    }
}

#[inline]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(target_arch = "x86_64")]
fn sum_long(bytes: &[u8]) -> u64 {
    if avx512::available() {
        // SAFETY: the CPU has what the function is compiled for.
        unsafe { avx512::sum(bytes) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        unsafe { sum_avx2(bytes) }
    } else {
        sum_words(bytes)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn sum_long(bytes: &[u8]) -> u64 {
    sum_words(bytes)
}

/// [`sum_words`], compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_words(bytes)
}

/// Written so that the compiler makes vector instructions of it.
#[inline(always)]
fn sum_words(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    sum + u64::from(u32::from_ne_bytes(last))
}

/// 64 bytes at a time, by the instruction that multiplies bytes and adds four products up (VNNI): one half of the time and
/// less of what [`sum_words`] takes in the widest registers, because nothing has to be widened first.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use core::arch::x86_64::*;

    const VECTOR: usize = 64;
    /// Sums side by side: each waits five cycles for the one before.
    const CHAINS: usize = 4;

    #[inline]
    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
    }

    /// The sum of `bytes`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn sum(bytes: &[u8]) -> u64 {
        let mut sums = Sums::zero();
        let (groups, rest) = bytes.as_chunks::<{ CHAINS * VECTOR }>();
        for group in groups {
            let (vectors, _) = group.as_chunks::<VECTOR>();
            for (chain, vector) in vectors.iter().enumerate() {
                sums.add(chain, load(vector));
            }
        }
        let (vectors, rest) = rest.as_chunks::<VECTOR>();
        for (chain, vector) in vectors.iter().enumerate() {
            sums.add(chain, load(vector));
        }
        let mask = first(rest.len());
        // SAFETY: the mask has a bit for each byte of `rest`, and nothing else is read.
        sums.add(0, unsafe {
            _mm512_maskz_loadu_epi8(mask, rest.as_ptr().cast())
        });
        sums.total()
    }

    /// The sum of `from`, which is copied to `to` as far as that goes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn sum_copying(from: &[u8], to: &mut [u8]) -> u64 {
        let length = from.len().min(to.len());
        let (from, to) = (&from[..length], &mut to[..length]);
        let mut sums = Sums::zero();
        let (groups, from) = from.as_chunks::<{ CHAINS * VECTOR }>();
        let (to_groups, to) = to.as_chunks_mut::<{ CHAINS * VECTOR }>();
        for (group, to) in groups.iter().zip(to_groups) {
            let (vectors, _) = group.as_chunks::<VECTOR>();
            let (to, _) = to.as_chunks_mut::<VECTOR>();
            for (chain, (vector, to)) in vectors.iter().zip(to).enumerate() {
                let x = load(vector);
                store(to, x);
                sums.add(chain, x);
            }
        }
        let (vectors, from) = from.as_chunks::<VECTOR>();
        let (to_vectors, to) = to.as_chunks_mut::<VECTOR>();
        for (chain, (vector, to)) in vectors.iter().zip(to_vectors).enumerate() {
            let x = load(vector);
            store(to, x);
            sums.add(chain, x);
        }
        let mask = first(from.len());
        // SAFETY: the mask has a bit for each byte of `from`, which is as long as `to`; nothing else is read or written.
        let x = unsafe {
            let x = _mm512_maskz_loadu_epi8(mask, from.as_ptr().cast());
            _mm512_mask_storeu_epi8(to.as_mut_ptr().cast(), mask, x);
            x
        };
        sums.add(0, x);
        sums.total()
    }

    /// Sums of the first and of the second bytes of words. Even 64 KiB add no more than 2^20 to a lane.
    struct Sums {
        first: [__m512i; CHAINS],
        second: [__m512i; CHAINS],
    }

    impl Sums {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn zero() -> Self {
            let zero = [_mm512_setzero_si512(); CHAINS];
            Self {
                first: zero,
                second: zero,
            }
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn add(&mut self, chain: usize, x: __m512i) {
            let (first, second) = (_mm512_set1_epi16(1), _mm512_set1_epi16(0x100));
            self.first[chain] = _mm512_dpbusd_epi32(self.first[chain], x, first);
            self.second[chain] = _mm512_dpbusd_epi32(self.second[chain], x, second);
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        fn total(self) -> u64 {
            let add = |x: [__m512i; CHAINS]| {
                let [a, b, c, d] = x;
                let sum = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
                u64::from(_mm512_reduce_add_epi32(sum) as u32)
            };
            // The first byte of a word is the lower one on this machine.
            add(self.first) + (add(self.second) << 8)
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; VECTOR]) -> __m512i {
        // SAFETY: `bytes` is as long as a vector, and the load needs no alignment.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(bytes: &mut [u8; VECTOR], x: __m512i) {
        // SAFETY: `bytes` is as long as a vector, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), x) };
    }

    /// A bit for each of the first `count` bytes of a vector, fewer than there are.
    #[inline]
    fn first(count: usize) -> __mmask64 {
        (1 << count) - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes, 0), 0xddf2);
        assert_eq!(
            checksum(&bytes[4..], checksum(&bytes[..4], 0).into()),
            0xddf2
        );
    }

    #[test]
    fn the_largest_sum_of_the_largest_packet_fits() {
        let bytes = vec![0xff; 65_535];
        // 0xff00 is the last, half word.
        assert_eq!(checksum(&bytes, 0), 0xff00);
        assert_eq!(Sum::copying(&bytes, &mut vec![0; 65_535]).fold(), 0xff00);
    }

    proptest! {
        #[test]
        fn is_the_sum_of_16_bit_words(bytes in proptest::collection::vec(any::<u8>(), 0..3_000), initial in 0_u64..0x2_0000) {
            let mut sum = initial;
            for pair in bytes.chunks(2) {
                sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
                sum = (sum & 0xffff) + (sum >> 16);
            }
            let sum = (sum & 0xffff) + (sum >> 16);
            // 0 and 0xffff are the same number in one's complement.
            prop_assert_eq!(u64::from(checksum(&bytes, initial)) % 0xffff, sum % 0xffff);
            let in_words = fold(sum_words(&bytes));
            prop_assert_eq!(Sum::of(&bytes).fold().to_be() % 0xffff, in_words % 0xffff);
            let mut copy = vec![0xee; bytes.len()];
            prop_assert_eq!(Sum::copying(&bytes, &mut copy).fold().to_be() % 0xffff, in_words % 0xffff);
            prop_assert_eq!(copy, bytes);
        }
    }
}
