//! Sixteen packets at once with AVX-512: one packet, or one piece of a packet, per lane.
//!
//! `ChaCha20` runs with word `w` of sixteen states in one vector, so that no round needs a
//! shuffle; a transposition then gives each lane its 64 bytes of key stream. The ciphertext goes
//! from registers straight into Poly1305, which runs beside it in the same lanes.

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::each;
use super::poly1305::{Poly, Sums, raise, transpose, transpose4, wipe};

/// Lanes: 32-bit words in a vector.
pub(super) const LANES: usize = 16;
/// Bytes of key stream that one run of the rounds gives each lane.
pub(super) const BLOCK: usize = 64;

/// How far ahead of its use each lane's data is fetched into the first cache.
const AHEAD: usize = 2 * BLOCK;

/// What one lane works on.
pub(super) struct Lane<'a> {
    /// The packet's counter, of which the nonce is made.
    pub(super) counter: u64,
    /// The `ChaCha20` block number of the first byte; 1 at a packet's start.
    pub(super) first: u32,
    /// Without the tag; a multiple of [`BLOCK`] unless the packet ends here.
    pub(super) data: &'a mut [u8],
    /// Lane of the packet's first piece.
    pub(super) head: usize,
    /// How many 16-byte blocks of the packet come after this piece.
    pub(super) after: u64,
    /// The packet's length without the tag.
    pub(super) total: u64,
}

/// Whether this CPU has all that the functions of this module are compiled for.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2")
}

/// Four quarter rounds, two and two side by side and the second two a step behind: so the
/// rotations, which only one execution port of Intel's can do, are spread.
macro_rules! quarters {
    ($x:ident, $a:expr, $b:expr, $c:expr, $d:expr) => {
        quarters!(@ $x, $a, $b, $d, 16, 0);
        quarters!(@ $x, $c, $d, $b, 12, 0);
        quarters!(@ $x, $a, $b, $d, 16, 2);
        quarters!(@ $x, $a, $b, $d, 8, 0);
        quarters!(@ $x, $c, $d, $b, 12, 2);
        quarters!(@ $x, $c, $d, $b, 7, 0);
        quarters!(@ $x, $a, $b, $d, 8, 2);
        quarters!(@ $x, $c, $d, $b, 7, 2);
    };
    (@ $x:ident, $to:expr, $by:expr, $turn:expr, $bits:literal, $from:literal) => {
        each!(i < 2, {
            let i = i + $from;
            $x[$to[i]] = _mm512_add_epi32($x[$to[i]], $x[$by[i]]);
        });
        each!(i < 2, {
            let i = i + $from;
            $x[$turn[i]] = _mm512_xor_si512($x[$turn[i]], $x[$to[i]]);
        });
        each!(i < 2, {
            let i = i + $from;
            $x[$turn[i]] = _mm512_rol_epi32::<$bits>($x[$turn[i]]);
        });
    };
}

/// A column round and a diagonal round.
macro_rules! double_round {
    ($x:ident) => {
        quarters!(
            $x,
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9, 10, 11],
            [12, 13, 14, 15]
        );
        quarters!(
            $x,
            [0, 1, 2, 3],
            [5, 6, 7, 4],
            [10, 11, 8, 9],
            [15, 12, 13, 14]
        );
    };
}

/// The `ChaCha20` input words of sixteen lanes, but for the block number.
struct State {
    key: [i32; 8],
    first: __m512i,
    nonce: [__m512i; 2],
}

/// `sigma`, the constant words: "expand 32-byte k".
const SIGMA: [i32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

impl State {
    #[target_feature(enable = "avx512f")]
    fn new(key: &[u8; 32], lanes: &[Lane<'_>; LANES]) -> Self {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = i32::from_le_bytes(*bytes);
        }
        let column = |f: fn(&Lane<'_>) -> u32| {
            let words: [u32; LANES] = core::array::from_fn(|i| f(&lanes[i]));
            // SAFETY: `words` is 64 bytes long, and the load needs no alignment.
            unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
        };
        Self {
            key: words,
            first: column(|l| l.first),
            nonce: [
                column(|l| l.counter as u32),
                column(|l| (l.counter >> 32) as u32),
            ],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn input(&self, number: __m512i) -> [__m512i; 16] {
        let k = &self.key;
        [
            _mm512_set1_epi32(SIGMA[0]),
            _mm512_set1_epi32(SIGMA[1]),
            _mm512_set1_epi32(SIGMA[2]),
            _mm512_set1_epi32(SIGMA[3]),
            _mm512_set1_epi32(k[0]),
            _mm512_set1_epi32(k[1]),
            _mm512_set1_epi32(k[2]),
            _mm512_set1_epi32(k[3]),
            _mm512_set1_epi32(k[4]),
            _mm512_set1_epi32(k[5]),
            _mm512_set1_epi32(k[6]),
            _mm512_set1_epi32(k[7]),
            number,
            _mm512_setzero_si512(),
            self.nonce[0],
            self.nonce[1],
        ]
    }

    /// The key stream of the blocks of these numbers, word `w` of all lanes in vector `w`.
    #[target_feature(enable = "avx512f")]
    fn rounds(&self, number: __m512i) -> [__m512i; 16] {
        let input = self.input(number);
        let mut x = input;
        each!(round < 10, double_round!(x));
        each!(i < 16, x[i] = _mm512_add_epi32(x[i], input[i]));
        x
    }

    /// As [`State::rounds`], whose result replaces `stream`; and between them all that is to be done
    /// with the key stream that was there. So shuffles and products, which some execution ports
    /// cannot do, do not come all at once. The loop around a term and a double round is there to
    /// stay: without it the compiler sorts all products before all rounds.
    ///
    /// # Safety
    ///
    /// Each of `at` must be valid for reading and writing [`BLOCK`] bytes, with no reference to them
    /// in use meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
    unsafe fn rounds_beside<const SEAL: bool>(
        &self,
        number: __m512i,
        stream: &mut [__m512i; 16],
        at: &[*mut u8; LANES],
        masks: [__mmask8; 2],
        poly: &mut [Poly; 2],
    ) {
        let mut x = self.input(number);
        each!(i < 4, quads(stream, 4 * i));
        // Eight lanes with five double rounds, twice.
        macro_rules! half {
            ($g:literal, $pick:literal) => {
                let y = &*stream;
                double_round!(x);
                let mut text = [_mm512_setzero_si512(); 8];
                each!(j < 4, {
                    let a = _mm512_shuffle_i32x4::<$pick>(y[j], y[j + 4]);
                    let b = _mm512_shuffle_i32x4::<$pick>(y[j + 8], y[j + 12]);
                    let c = _mm512_shuffle_i32x4::<0x88>(a, b);
                    let d = _mm512_shuffle_i32x4::<0xdd>(a, b);
                    // Sixteen packets are more streams than the CPU follows by itself.
                    _mm_prefetch::<_MM_HINT_T0>(at[8 * $g + j].wrapping_add(AHEAD).cast());
                    _mm_prefetch::<_MM_HINT_T0>(at[8 * $g + j + 4].wrapping_add(AHEAD).cast());
                    // SAFETY: the caller's.
                    unsafe {
                        text[j] = whole::<SEAL>(at[8 * $g + j], c);
                        text[j + 4] = whole::<SEAL>(at[8 * $g + j + 4], d);
                    }
                });
                let terms = poly[$g].terms(&transpose(&text));
                let mut sums = Sums::zero();
                each!(i < 4, {
                    poly[$g].term(&mut sums, &terms, i);
                    double_round!(x);
                });
                poly[$g].take(sums, masks[$g]);
            };
        }
        half!(0, 0x44);
        half!(1, 0xee);
        let input = self.input(number);
        each!(i < 16, stream[i] = _mm512_add_epi32(x[i], input[i]));
    }
}

/// Transposes four words of four lanes within each 128 bits of four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn quads(x: &mut [__m512i; 16], i: usize) {
    let (a, b) = (
        _mm512_unpacklo_epi32(x[i], x[i + 1]),
        _mm512_unpackhi_epi32(x[i], x[i + 1]),
    );
    let (c, d) = (
        _mm512_unpacklo_epi32(x[i + 2], x[i + 3]),
        _mm512_unpackhi_epi32(x[i + 2], x[i + 3]),
    );
    x[i] = _mm512_unpacklo_epi64(a, c);
    x[i + 1] = _mm512_unpackhi_epi64(a, c);
    x[i + 2] = _mm512_unpacklo_epi64(b, d);
    x[i + 3] = _mm512_unpackhi_epi64(b, d);
}

/// Turns vectors of one word of sixteen lanes into vectors of sixteen words of one lane.
#[target_feature(enable = "avx512f")]
fn rows(x: &[__m512i; 16]) -> [__m512i; 16] {
    let mut y = *x;
    each!(i < 4, quads(&mut y, 4 * i));
    let mut out = y;
    each!(j < 4, {
        let four = transpose4(&[y[j], y[j + 4], y[j + 8], y[j + 12]]);
        each!(k < 4, out[4 * k + j] = four[k]);
    });
    out
}

/// The words of the one-time key of eight lanes, from block 0 of the key stream.
#[inline]
#[target_feature(enable = "avx512f")]
fn one_time_key<const HALF: i32>(x: &[__m512i; 16]) -> [__m512i; 4] {
    let mut out = [_mm512_setzero_si512(); 4];
    each!(i < 4, {
        let lo = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(x[2 * i]));
        let hi = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64::<HALF>(x[2 * i + 1]));
        out[i] = _mm512_or_si512(lo, _mm512_slli_epi64::<32>(hi));
    });
    out
}

/// Encrypts or decrypts the 64 bytes at `at` and returns the ciphertext.
///
/// # Safety
///
/// `at` must be valid for reading and writing [`BLOCK`] bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn whole<const SEAL: bool>(at: *mut u8, key: __m512i) -> __m512i {
    // SAFETY: the caller's; neither access needs alignment.
    unsafe {
        let old = _mm512_loadu_si512(at.cast());
        let new = _mm512_xor_si512(old, key);
        _mm512_storeu_si512(at.cast(), new);
        if SEAL { new } else { old }
    }
}

/// As [`whole`] for up to 64 bytes; the ciphertext is returned with zeros after it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn part<const SEAL: bool>(data: &mut [u8], key: __m512i) -> __m512i {
    let mask = match data.len() {
        0 => return _mm512_setzero_si512(),
        n @ 1..BLOCK => (1 << n) - 1,
        _ => u64::MAX,
    };
    let at = data.as_mut_ptr();
    // SAFETY: the mask has a bit for each byte of `data`, at most the 64 of a vector: nothing
    // outside of it is read or written; neither access needs alignment.
    unsafe {
        let old = _mm512_maskz_loadu_epi8(mask, at.cast());
        let new = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(old, key));
        _mm512_mask_storeu_epi8(at.cast(), mask, new);
        if SEAL { new } else { old }
    }
}

/// The tags of packets whose first piece is in that lane; the others mean nothing.
pub(super) type Tags = [[u8; 16]; LANES];

/// Encrypts or decrypts all lanes in place and computes the tags over the ciphertext.
///
/// The key's copy, the last key stream, the one-time keys and the powers of `r` are wiped; what the
/// compiler itself put on the stack, for want of registers, is out of reach.
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
pub(super) fn run<const SEAL: bool>(key: &[u8; 32], lanes: &mut [Lane<'_>; LANES]) -> Tags {
    let mut state = State::new(key, lanes);
    let mut zero = state.rounds(_mm512_setzero_si512());
    let mut poly = [
        Poly::new(&one_time_key::<0>(&zero)),
        Poly::new(&one_time_key::<1>(&zero)),
    ];
    wipe(&mut zero);
    let longest = lanes
        .iter()
        .map(|l| l.data.len().div_ceil(BLOCK))
        .max()
        .unwrap_or(0);
    if longest > 1 || lanes.iter().any(|l| l.after > 0) {
        poly[0].prepare();
        poly[1].prepare();
    }
    let one = _mm512_set1_epi32(1);
    let mut number = state.first;
    let mut stream = state.rounds(number);
    // Where lanes that have come to their end go on, for nothing.
    let mut idle = [0u8; BLOCK];
    let mut i = 0;
    while i < longest {
        // With the last block nothing is to be done beside, and a part of a block needs more care.
        let mut go = Go::at(lanes, i, &mut idle);
        for _ in 0..go.steps.min(longest - 1 - i) {
            number = _mm512_add_epi32(number, one);
            // SAFETY: `go` says so for its steps, of which this is one; the lanes' data are not
            // looked at before the last of them.
            unsafe {
                state.rounds_beside::<SEAL>(number, &mut stream, &go.at, go.masks, &mut poly)
            };
            each!(j < LANES, go.at[j] = go.at[j].wrapping_add(go.stride[j]));
            i += 1;
        }
        if go.steps == 0 || i + 1 == longest {
            uneven::<SEAL>(&stream, lanes, i * BLOCK, &mut poly);
            i += 1;
            if i < longest {
                number = _mm512_add_epi32(number, one);
                stream = state.rounds(number);
            }
        }
    }
    wipe(&mut stream);
    state.key.zeroize();
    finish(lanes, &mut poly)
}

/// A stretch of blocks over which each lane has either all 64 bytes of every block, or none at all.
struct Go {
    /// Where the lanes' next blocks are: valid for the number of steps in `steps`, each as many bytes
    /// further as `stride` says.
    at: [*mut u8; LANES],
    stride: [usize; LANES],
    /// The lanes that have data.
    masks: [u8; 2],
    /// No steps, if some lane has but a part of a block.
    steps: usize,
}

impl Go {
    fn at(lanes: &mut [Lane<'_>; LANES], from: usize, idle: &mut [u8; BLOCK]) -> Self {
        let mut go = Self {
            at: [idle.as_mut_ptr(); LANES],
            stride: [0; LANES],
            masks: [0; 2],
            steps: usize::MAX,
        };
        for (j, lane) in lanes.iter_mut().enumerate() {
            let rest = lane.data.get_mut(from * BLOCK..).unwrap_or_default();
            if rest.is_empty() {
                continue;
            }
            go.steps = go.steps.min(rest.len() / BLOCK);
            go.at[j] = rest.as_mut_ptr();
            go.stride[j] = BLOCK;
            go.masks[j / 8] |= 1 << (j % 8);
        }
        go
    }
}

/// The vectors of lanes 0 to 7 and of lanes 8 to 15.
#[inline]
fn halves(x: &[__m512i; 16]) -> (&[__m512i; 8], &[__m512i; 8]) {
    let (a, b) = x.as_chunks::<8>().0.split_at(1);
    (&a[0], &b[0])
}

/// One block, of which lanes may have any part, and with nothing beside it.
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
fn uneven<const SEAL: bool>(
    stream: &[__m512i; 16],
    lanes: &mut [Lane<'_>; LANES],
    at: usize,
    poly: &mut [Poly; 2],
) {
    let key = rows(stream);
    let mut text = key;
    // Bit i of the j-th: lane i has a j-th 16-byte block, maybe not a whole one.
    let mut has = [0u16; 4];
    for (i, lane) in lanes.iter_mut().enumerate() {
        let end = lane.data.len().min(at + BLOCK);
        let data = lane.data.get_mut(at..end).unwrap_or_default();
        for (j, has) in has.iter_mut().enumerate() {
            *has |= u16::from(data.len() > 16 * j) << i;
        }
        text[i] = part::<SEAL>(data, key[i]);
    }
    let (a, b) = halves(&text);
    let blocks = [transpose(a), transpose(b)];
    for (j, has) in has.into_iter().enumerate().take_while(|(_, has)| *has != 0) {
        poly[0].one(&blocks[0][j], has as u8);
        poly[1].one(&blocks[1][j], (has >> 8) as u8);
    }
}

/// Puts the pieces of packets together and computes the tags.
#[target_feature(enable = "avx512f,avx512ifma,avx512vbmi2")]
fn finish(lanes: &[Lane<'_>; LANES], poly: &mut [Poly; 2]) -> Tags {
    let most = lanes.iter().map(|l| l.after).max().unwrap_or(0);
    if most > 0 {
        let after = |i: usize| lanes[i].after;
        let exponents = [
            core::array::from_fn(after),
            core::array::from_fn(|i| after(i + 8)),
        ];
        raise(poly, &exponents);
        let (a, b) = (poly[0].sums(), poly[1].sums());
        let mut sums = [[[0; 8]; 3]; 2];
        for (i, lane) in lanes.iter().enumerate() {
            for k in 0..3 {
                let piece = if i < 8 { a[k][i] } else { b[k][i - 8] };
                sums[lane.head / 8][k][lane.head % 8] += piece;
            }
        }
        poly[0].set_sums(&sums[0]);
        poly[1].set_sums(&sums[1]);
    }
    poly[0].lengths(core::array::from_fn(|i| lanes[i].total));
    poly[1].lengths(core::array::from_fn(|i| lanes[i + 8].total));
    let (a, b) = (poly[0].tags(), poly[1].tags());
    core::array::from_fn(|i| {
        let [lo, hi] = if i < 8 {
            [a[0][i], a[1][i]]
        } else {
            [b[0][i - 8], b[1][i - 8]]
        };
        (u128::from(hi) << 64 | u128::from(lo)).to_le_bytes()
    })
}

/// Block `number` of the key stream of all lanes, for tests against known vectors.
#[cfg(test)]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma,avx512vbmi2")]
pub(super) fn stream(key: &[u8; 32], counter: u64, number: i32) -> [[u8; BLOCK]; LANES] {
    let lanes = core::array::from_fn(|head| Lane {
        counter,
        first: 1,
        data: &mut [],
        head,
        after: 0,
        total: 0,
    });
    let rows = rows(&State::new(key, &lanes).rounds(_mm512_set1_epi32(number)));
    let mut out = [[0; BLOCK]; LANES];
    for (out, row) in out.iter_mut().zip(rows) {
        // SAFETY: `out` is as long as a vector, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), row) };
    }
    out
}
