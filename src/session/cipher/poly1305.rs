//! Poly1305 of eight packets at once: one packet per 64-bit lane.
//!
//! Numbers modulo 2^130 - 5 are three limbs of 44, 44 and 42 bits, so that the 52-bit
//! multiply-add (IFMA) takes them with bits to spare. Every lane has its own `r`.

use core::arch::x86_64::*;
use core::sync::atomic::{Ordering, compiler_fence};

use super::each;

/// How many powers of `r` are kept: one per 16-byte block of a 64-byte `ChaCha20` block.
const POWERS: usize = 4;
const MASK44: i64 = (1 << 44) - 1;
const MASK42: i64 = (1 << 42) - 1;

/// A number modulo 2^130 - 5 in each of eight lanes; the limbs are at most a few bits too long.
pub(super) type Limbs = [__m512i; 3];

/// A multiplier with its limbs 1 and 2 also times 20: what a product's part above 2^132 becomes.
#[derive(Clone, Copy)]
struct Multiplier {
    r: Limbs,
    s1: __m512i,
    s2: __m512i,
}

/// Sums of the low and of the high 52 bits of products, limb by limb.
pub(super) struct Sums {
    lo: Limbs,
    hi: Limbs,
}

/// The state of eight lanes.
pub(super) struct Poly {
    h: Limbs,
    /// `r`, `r^2`, `r^3`, `r^4`; those above `r` are there only after [`Poly::prepare`].
    powers: [Multiplier; POWERS],
    /// The second half of the one-time keys: what is added at the very end.
    pad: [__m512i; 2],
}

impl Multiplier {
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn new(r: Limbs) -> Self {
        Self {
            r,
            s1: times20(r[1]),
            s2: times20(r[2]),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn times20(x: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_slli_epi64::<4>(x), _mm512_slli_epi64::<2>(x))
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn zero() -> Self {
        let z = _mm512_setzero_si512();
        Self {
            lo: [z; 3],
            hi: [z; 3],
        }
    }

    /// Adds `a * m`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn add(&mut self, a: &Limbs, m: &Multiplier) {
        let rows = [
            [m.r[0], m.s2, m.s1],
            [m.r[1], m.r[0], m.s2],
            [m.r[2], m.r[1], m.r[0]],
        ];
        each!(i < 3, {
            each!(k < 3, {
                self.lo[k] = _mm512_madd52lo_epu64(self.lo[k], a[i], rows[k][i]);
                self.hi[k] = _mm512_madd52hi_epu64(self.hi[k], a[i], rows[k][i]);
            });
        });
    }

    /// Carries, until each limb is short enough to be multiplied again.
    ///
    /// At most four products of 3 terms were added: `lo` is below 2^56 and `hi` below 2^49, so
    /// nothing here comes near 2^64.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn carry(self) -> Limbs {
        let (m44, m42) = (_mm512_set1_epi64(MASK44), _mm512_set1_epi64(MASK42));
        let Self { lo, hi } = self;
        // A high half weighs 2^52: 2^8 of the next limb, or 2^10 of what wraps around at 2^130.
        let c = _mm512_add_epi64(
            _mm512_srli_epi64::<44>(lo[0]),
            _mm512_slli_epi64::<8>(hi[0]),
        );
        let d1 = _mm512_add_epi64(lo[1], c);
        let c = _mm512_add_epi64(_mm512_srli_epi64::<44>(d1), _mm512_slli_epi64::<8>(hi[1]));
        let d2 = _mm512_add_epi64(lo[2], c);
        let c = _mm512_add_epi64(_mm512_srli_epi64::<42>(d2), _mm512_slli_epi64::<10>(hi[2]));
        let c5 = _mm512_add_epi64(c, _mm512_slli_epi64::<2>(c));
        let h0 = _mm512_add_epi64(_mm512_and_si512(lo[0], m44), c5);
        let h1 = _mm512_add_epi64(_mm512_and_si512(d1, m44), _mm512_srli_epi64::<44>(h0));
        [_mm512_and_si512(h0, m44), h1, _mm512_and_si512(d2, m42)]
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: &Limbs, b: &Limbs) -> Limbs {
    [
        _mm512_add_epi64(a[0], b[0]),
        _mm512_add_epi64(a[1], b[1]),
        _mm512_add_epi64(a[2], b[2]),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn mul(a: &Limbs, m: &Multiplier) -> Limbs {
    let mut sums = Sums::zero();
    sums.add(a, m);
    sums.carry()
}

/// A 128-bit number in limbs, without the bit that marks a block.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
fn split(lo: __m512i, hi: __m512i) -> Limbs {
    let m44 = _mm512_set1_epi64(MASK44);
    [
        _mm512_and_si512(lo, m44),
        _mm512_and_si512(_mm512_shrdi_epi64::<44>(lo, hi), m44),
        _mm512_srli_epi64::<24>(hi),
    ]
}

/// A whole message block: the number and 2^128.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi2")]
fn block(words: &[__m512i; 2]) -> Limbs {
    let [a, b, c] = split(words[0], words[1]);
    [a, b, _mm512_or_si512(c, _mm512_set1_epi64(1 << 40))]
}

/// The low and the high 64 bits of four blocks in a row, each of eight lanes.
pub(super) type Blocks = [[__m512i; 2]; POWERS];

/// Turns eight packets' 64 bytes each into the words of eight lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: &[__m512i; 8]) -> Blocks {
    let (mut lo, mut hi) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
    each!(i < 4, {
        lo[i] = _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]);
        hi[i] = _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]);
    });
    let (lo, hi) = (transpose4(&lo), transpose4(&hi));
    [
        [lo[0], hi[0]],
        [lo[1], hi[1]],
        [lo[2], hi[2]],
        [lo[3], hi[3]],
    ]
}

/// Transposes four by four 128-bit elements.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose4(x: &[__m512i; 4]) -> [__m512i; 4] {
    let a = _mm512_shuffle_i32x4::<0x44>(x[0], x[1]);
    let b = _mm512_shuffle_i32x4::<0xee>(x[0], x[1]);
    let c = _mm512_shuffle_i32x4::<0x44>(x[2], x[3]);
    let d = _mm512_shuffle_i32x4::<0xee>(x[2], x[3]);
    [
        _mm512_shuffle_i32x4::<0x88>(a, c),
        _mm512_shuffle_i32x4::<0xdd>(a, c),
        _mm512_shuffle_i32x4::<0x88>(b, d),
        _mm512_shuffle_i32x4::<0xdd>(b, d),
    ]
}

impl Poly {
    /// Takes the one-time keys: `r` and the pad, each as low and high 64 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn new(key: &[__m512i; 4]) -> Self {
        let r = split(
            _mm512_and_si512(key[0], _mm512_set1_epi64(0x0fff_fffc_0fff_ffff)),
            _mm512_and_si512(key[1], _mm512_set1_epi64(0x0fff_fffc_0fff_fffc)),
        );
        let h = [_mm512_setzero_si512(); 3];
        Self {
            h,
            powers: [Multiplier::new(r); POWERS],
            pad: [key[2], key[3]],
        }
    }

    /// Computes the powers of `r` that [`Poly::term`] needs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn prepare(&mut self) {
        let r = self.powers[0];
        let r2 = Multiplier::new(mul(&r.r, &r));
        self.powers[1] = r2;
        self.powers[2] = Multiplier::new(mul(&r2.r, &r));
        self.powers[3] = Multiplier::new(mul(&r2.r, &r2));
    }

    /// Four blocks that go with one carry, as the numbers that [`Poly::term`] multiplies for
    /// `(h + m0) r^4 + m1 r^3 + m2 r^2 + m3 r`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vbmi2")]
    pub(super) fn terms(&self, m: &Blocks) -> [Limbs; POWERS] {
        [
            add(&self.h, &block(&m[0])),
            block(&m[1]),
            block(&m[2]),
            block(&m[3]),
        ]
    }

    /// Adds the product of one of [`Poly::terms`] to the sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub(super) fn term(&self, sums: &mut Sums, terms: &[Limbs; POWERS], i: usize) {
        sums.add(&terms[i], &self.powers[POWERS - 1 - i]);
    }

    /// Ends what [`Poly::term`] began, in every lane of `mask`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn take(&mut self, sums: Sums, mask: __mmask8) {
        self.set(sums.carry(), mask);
    }

    /// Takes one block in every lane of `mask`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn one(&mut self, words: &[__m512i; 2], mask: __mmask8) {
        let next = mul(&add(&self.h, &block(words)), &self.powers[0]);
        self.set(next, mask);
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set(&mut self, next: Limbs, mask: __mmask8) {
        each!(
            i < 3,
            self.h[i] = _mm512_mask_mov_epi64(self.h[i], mask, next[i])
        );
    }

    /// The lanes' sums so far, limb by limb.
    #[target_feature(enable = "avx512f")]
    pub(super) fn sums(&self) -> [[u64; 8]; 3] {
        self.h.map(|x| words(x))
    }

    /// Replaces the lanes' sums.
    #[target_feature(enable = "avx512f")]
    pub(super) fn set_sums(&mut self, sums: &[[u64; 8]; 3]) {
        self.h = sums.map(|x| vector(x));
    }

    /// Takes the block that ends every lane: no associated data, and the packet's length.
    #[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
    pub(super) fn lengths(&mut self, lengths: [u64; 8]) {
        self.one(&[_mm512_setzero_si512(), vector(lengths)], 0xff);
    }

    /// The tags, low and high 64 bits.
    #[target_feature(enable = "avx512f")]
    pub(super) fn tags(&self) -> [[u64; 8]; 2] {
        let h = reduce(&self.h);
        let lo = _mm512_or_si512(h[0], _mm512_slli_epi64::<44>(h[1]));
        let hi = _mm512_or_si512(_mm512_srli_epi64::<20>(h[1]), _mm512_slli_epi64::<24>(h[2]));
        let tag_lo = _mm512_add_epi64(lo, self.pad[0]);
        let carry = _mm512_cmplt_epu64_mask(tag_lo, lo);
        let sum = _mm512_add_epi64(hi, self.pad[1]);
        let tag_hi = _mm512_mask_add_epi64(sum, carry, sum, _mm512_set1_epi64(1));
        [words(tag_lo), words(tag_hi)]
    }
}

/// Multiplies each lane by `r` to the power of its exponent; all powers of `r` must be there.
///
/// Both sets of lanes side by side, because each alone waits for its products. The exponents are
/// counts of blocks, hence public.
#[target_feature(enable = "avx512f,avx512ifma")]
pub(super) fn raise(poly: &mut [Poly; 2], exponents: &[[u64; 8]; 2]) {
    let lanes = |set: &[u64; 8], pick: &dyn Fn(u64) -> bool| {
        set.iter()
            .enumerate()
            .fold(0, |mask, (i, e)| mask | (u8::from(pick(*e)) << i))
    };
    // The last two bits of an exponent choose among the powers that there are.
    for low in 1..4 {
        each!(g < 2, {
            let mask = lanes(&exponents[g], &|e| e & 3 == low);
            let next = mul(&poly[g].h, &poly[g].powers[low as usize - 1]);
            poly[g].set(next, mask);
        });
    }
    let longest = exponents.iter().flatten().copied().max().unwrap_or(0);
    let mut power = [poly[0].powers[POWERS - 1], poly[1].powers[POWERS - 1]];
    let mut bit = 2;
    while longest >> bit > 0 {
        each!(g < 2, {
            let mask = lanes(&exponents[g], &|e| e >> bit & 1 == 1);
            let next = mul(&poly[g].h, &power[g]);
            poly[g].set(next, mask);
            power[g] = Multiplier::new(mul(&power[g].r, &power[g]));
        });
        bit += 1;
    }
}

/// The number between 0 and 2^130 - 6, limbs of exactly 44, 44 and 42 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduce(h: &Limbs) -> Limbs {
    let (m44, m42) = (_mm512_set1_epi64(MASK44), _mm512_set1_epi64(MASK42));
    let [mut a, mut b, mut c] = *h;
    // Twice around: the first may leave a carry out of the topmost limb again.
    for _ in 0..2 {
        b = _mm512_add_epi64(b, _mm512_srli_epi64::<44>(a));
        a = _mm512_and_si512(a, m44);
        c = _mm512_add_epi64(c, _mm512_srli_epi64::<44>(b));
        b = _mm512_and_si512(b, m44);
        let over = _mm512_srli_epi64::<42>(c);
        c = _mm512_and_si512(c, m42);
        a = _mm512_add_epi64(a, _mm512_add_epi64(over, _mm512_slli_epi64::<2>(over)));
    }
    b = _mm512_add_epi64(b, _mm512_srli_epi64::<44>(a));
    a = _mm512_and_si512(a, m44);
    // h + 5 reaches 2^130 exactly when h is at least the modulus: then its low 130 bits count.
    let a5 = _mm512_add_epi64(a, _mm512_set1_epi64(5));
    let b5 = _mm512_add_epi64(b, _mm512_srli_epi64::<44>(a5));
    let c5 = _mm512_add_epi64(c, _mm512_srli_epi64::<44>(b5));
    let above = _mm512_test_epi64_mask(c5, _mm512_set1_epi64(1 << 42));
    [
        _mm512_mask_and_epi64(a, above, a5, m44),
        _mm512_mask_and_epi64(b, above, b5, m44),
        _mm512_mask_and_epi64(c, above, c5, m42),
    ]
}

/// The lanes of a vector.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn words(x: __m512i) -> [u64; 8] {
    let mut out = [0; 8];
    // SAFETY: `out` is 64 bytes long, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) };
    out
}

/// A vector of these lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn vector(x: [u64; 8]) -> __m512i {
    // SAFETY: `x` is 64 bytes long, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// Overwrites what the compiler would leave, as it is not read again.
pub(super) fn wipe<const N: usize>(vectors: &mut [__m512i; N]) {
    // SAFETY: every bit pattern, all zeros too, is a valid vector; the reference is valid for writes.
    unsafe { core::ptr::write_volatile(vectors, core::mem::zeroed()) };
    compiler_fence(Ordering::SeqCst);
}

impl Drop for Poly {
    fn drop(&mut self) {
        wipe(&mut self.h);
        wipe(&mut self.pad);
        for Multiplier { r, s1, s2 } in &mut self.powers {
            wipe(r);
            wipe(core::array::from_mut(s1));
            wipe(core::array::from_mut(s2));
        }
    }
}

/// The tag of whole blocks by each of the eight lanes, for tests against known vectors.
#[cfg(test)]
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
pub(super) fn tag(key: [u128; 2], blocks: &[u128]) -> [u128; 8] {
    let halves = |x: u128| [vector([x as u64; 8]), vector([(x >> 64) as u64; 8])];
    let ([a, b], [c, d]) = (halves(key[0]), halves(key[1]));
    let mut poly = Poly::new(&[a, b, c, d]);
    for block in blocks {
        poly.one(&halves(*block), 0xff);
    }
    let [lo, hi] = poly.tags();
    core::array::from_fn(|i| u128::from(hi[i]) << 64 | u128::from(lo[i]))
}
