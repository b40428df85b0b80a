//! The Internet checksum (RFC 1071).

/// The one's complement sum of `bytes` and of `initial`, folded to 16 bits and not inverted.
///
/// `initial` is a sum of 16-bit numbers in the host's order, say that of another part.
pub fn checksum(bytes: &[u8], initial: u64) -> u16 {
    let sum = sum(bytes);
    // Words were added as they lie in memory; swapping the folded sum once does for all of them (RFC 1071, section 2 (B)).
    fold(u64::from(u16::from_be(fold(sum))) + u64::from(fold(initial)))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Adds up words in memory order. Packets have at most 64 KiB, so 64 bits never overflow.
#[cfg(target_arch = "x86_64")]
fn sum(bytes: &[u8]) -> u64 {
    if is_x86_feature_detected!("avx512bw") {
        // SAFETY: the CPU has what the function is compiled for.
        unsafe { sum_avx512(bytes) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        unsafe { sum_avx2(bytes) }
    } else {
        sum_words(bytes)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn sum(bytes: &[u8]) -> u64 {
    sum_words(bytes)
}

/// [`sum_words`], compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn sum_avx512(bytes: &[u8]) -> u64 {
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
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
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
            prop_assert_eq!(sum_words(&bytes), super::sum(&bytes));
        }
    }
}
