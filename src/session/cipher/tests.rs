use super::*;

/// A small generator: the tests want the same numbers every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    fn key(&mut self) -> Key {
        Key::new(self.bytes(32).as_slice().try_into().unwrap())
    }

    /// Packets of these lengths, with room for the tags.
    fn packets(&mut self, lengths: &[usize]) -> Vec<(u64, Vec<u8>)> {
        lengths
            .iter()
            .map(|n| (self.next(), self.bytes(n + TAG)))
            .collect()
    }
}

/// Whether the kernel can run here: says so where it cannot.
fn has_avx512() -> bool {
    let has = Kernel::Avx512.available();
    if !has {
        println!("SKIPPED: this CPU has no AVX-512 IFMA: only ring is tested");
    }
    has
}

fn kernels() -> Vec<Kernel> {
    if has_avx512() {
        vec![Kernel::Ring, Kernel::Avx512]
    } else {
        vec![Kernel::Ring]
    }
}

fn jobs(packets: &mut [(u64, Vec<u8>)]) -> Vec<Job<'_>> {
    packets
        .iter_mut()
        .map(|(counter, data)| Job {
            counter: *counter,
            data,
        })
        .collect()
}

fn all(count: usize) -> u64 {
    u64::MAX >> (64 - count)
}

/// What both kernels make of these packets is the same, and each opens what the other sealed.
fn agree(random: &mut Random, lengths: &[usize]) {
    let key = random.key();
    let plain = random.packets(lengths);
    let (mut by_ring, mut by_kernel) = (plain.clone(), plain.clone());
    seal(Kernel::Ring, &key, &mut jobs(&mut by_ring));
    seal(Kernel::Avx512, &key, &mut jobs(&mut by_kernel));
    assert!(by_ring == by_kernel, "sealed otherwise: {lengths:?}");
    assert_eq!(
        open(Kernel::Avx512, &key, &mut jobs(&mut by_ring)),
        all(lengths.len())
    );
    assert_eq!(
        open(Kernel::Ring, &key, &mut jobs(&mut by_kernel)),
        all(lengths.len())
    );
    for (packets, who) in [(&by_ring, "the kernel"), (&by_kernel, "ring")] {
        for (opened, plain) in packets.iter().zip(&plain) {
            let end = plain.1.len() - TAG;
            assert!(
                opened.1[..end] == plain.1[..end],
                "{who} opened {end} bytes to others"
            );
        }
    }
}

#[test]
fn the_kernel_agrees_with_ring_at_every_length() {
    if !has_avx512() {
        return;
    }
    let mut random = Random(1);
    for length in 0..=2100 {
        agree(&mut random, &[length; LANES_TESTED]);
    }
}

/// A full set of lanes.
const LANES_TESTED: usize = 16;

#[test]
fn the_kernel_agrees_with_ring_in_every_batch_size() {
    if !has_avx512() {
        return;
    }
    let mut random = Random(2);
    for count in 1..=64 {
        for length in [0, 1, 63, 64, 65, 256, 1280, 1420] {
            agree(&mut random, &vec![length; count]);
        }
        let length = random.below(3000);
        agree(&mut random, &vec![length; count]);
    }
}

#[test]
fn the_kernel_agrees_with_ring_on_mixtures_of_lengths() {
    if !has_avx512() {
        return;
    }
    let mut random = Random(3);
    for round in 0..600 {
        let count = 1 + random.below(64);
        let end = [17, 65, 200, 1500, 9000][round % 5];
        let lengths: Vec<_> = (0..count).map(|_| random.below(end)).collect();
        agree(&mut random, &lengths);
        // One long one among short ones, and the reverse.
        let mut lengths = vec![random.below(80); count];
        lengths[random.below(count)] = random.below(9000);
        agree(&mut random, &lengths);
        let mut lengths = vec![1420; count];
        lengths[random.below(count)] = random.below(100);
        agree(&mut random, &lengths);
    }
}

#[test]
fn the_kernel_agrees_with_ring_on_long_packets() {
    if !has_avx512() {
        return;
    }
    let mut random = Random(4);
    for _ in 0..30 {
        let count = 1 + random.below(18);
        let lengths: Vec<_> = (0..count).map(|_| random.below(65_536)).collect();
        agree(&mut random, &lengths);
    }
    agree(&mut random, &[65_535; 17]);
    agree(&mut random, &[65_536, 65_535, 65_537, 70_000, 1, 200_000]);
}

/// Runs the lanes themselves, whatever [`group::Plan`] would rather do, and pieces of all sizes.
#[cfg(target_arch = "x86_64")]
#[test]
fn packets_cut_into_any_pieces_agree_with_ring() {
    if !has_avx512() {
        return;
    }
    let mut random = Random(5);
    for _ in 0..3000 {
        let count = 1 + random.below(16);
        let most = 1 + random.below(9);
        let end = BLOCK_BYTES * most * (LANES_TESTED / count) + 1;
        let lengths: Vec<_> = (0..count).map(|_| random.below(end)).collect();
        let key = random.key();
        let plain = random.packets(&lengths);
        let (mut by_ring, mut in_lanes) = (plain.clone(), plain);
        seal(Kernel::Ring, &key, &mut jobs(&mut by_ring));
        let done = group::in_lanes::<true>(&key, &mut jobs(&mut in_lanes), most);
        assert_eq!(u64::from(done), all(count));
        assert!(
            by_ring == in_lanes,
            "{lengths:?} in pieces of {most} blocks"
        );
        let done = group::in_lanes::<false>(&key, &mut jobs(&mut in_lanes), most);
        assert_eq!(
            u64::from(done),
            all(count),
            "{lengths:?} in pieces of {most} blocks"
        );
    }
}

/// Bytes of key stream in a block.
#[cfg(target_arch = "x86_64")]
const BLOCK_BYTES: usize = 64;

#[cfg(target_arch = "x86_64")]
#[test]
fn full_batches_go_into_lanes_and_single_packets_to_ring() {
    let mut random = Random(6);
    let mut many = random.packets(&[1420; 16]);
    let plan = group::Plan::of(&jobs(&mut many));
    assert_eq!((plan.ring, plan.most), (0, 23));
    let mut one = random.packets(&[1420]);
    assert_eq!(group::Plan::of(&jobs(&mut one)).ring, 1);
    // One long packet does not hold up fifteen empty ones.
    let mut lengths = [0; 16];
    lengths[0] = 9000;
    let mut uneven = random.packets(&lengths);
    assert_eq!(group::Plan::of(&jobs(&mut uneven)).ring, 1);
    // What has more blocks than a lane counts is left to ring.
    let mut huge = random.packets(&[65_536 * 64 + 1, 100, 100, 100, 100, 100, 100, 100]);
    assert_eq!(group::Plan::of(&jobs(&mut huge)).ring, 1);
    agree(
        &mut random,
        &[65_536 * 64 + 1, 100, 100, 100, 100, 100, 100, 100],
    );
}

/// Bytes as written in the RFC.
#[cfg(target_arch = "x86_64")]
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..][..2], 16).unwrap())
        .collect()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_lanes_make_the_key_stream_of_rfc_8439() {
    if !has_avx512() {
        return;
    }
    let ascending: Vec<u8> = (0x80..0xa0).collect();
    // Appendix A.1, vectors 1 and 2; section 2.6.2, whose nonce begins with four zeros as ours.
    for (key, counter, number, expected) in [
        (
            vec![0; 32],
            0,
            0,
            "76b8e0ada0f13d90405d6ae55386bd28 bdd219b8a08ded1aa836efcc8b770dc7
             da41597c5157488d7724e03fb8d84a37 6a43b8f41518a11cc387b669b2ee6586",
        ),
        (
            vec![0; 32],
            0,
            1,
            "9f07e7be5551387a98ba977c732d080d cb0f29a048e3656912c6533e32ee7aed
             29b721769ce64e43d57133b074d839d5 31ed1f28510afb45ace10a1f4b794d6f",
        ),
        (
            ascending,
            0x0706_0504_0302_0100,
            0,
            "8ad5a08b905f81cc815040274ab29471 a833b637e3fd0da508dbb8e2fdd1a646",
        ),
    ] {
        let key = key.as_slice().try_into().unwrap();
        // SAFETY: the CPU has what the lanes need, as was asked above.
        let lanes = unsafe { avx512::stream(key, counter, number) };
        let expected = hex(expected);
        for lane in lanes {
            assert_eq!(lane[..expected.len()], expected);
        }
    }
}

/// Appendix A.3: the vectors that hit the corners of the arithmetic modulo 2^130 - 5.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_lanes_make_the_tags_of_rfc_8439() {
    if !has_avx512() {
        return;
    }
    let ones = u128::MAX;
    let repeat = |byte: u8| u128::from_le_bytes([byte; 16]);
    let cases: [([u128; 2], &[u128], u128); 7] = [
        ([2, 0], &[ones], 3),
        ([2, ones], &[2], 3),
        ([1, 0], &[ones, ones - 15, 0x11], 5),
        ([1, 0], &[ones, repeat(0xfe) - 3, repeat(1)], 0),
        ([2, 0], &[ones - 2], ones - 5),
        (
            [1 | 4 << 64, 0],
            &[0xb943_5e50_d794_35e3, 1 << 64 | 0xcd79_435e_50d7_9433, 0, 1],
            0x14 | 0x55 << 64,
        ),
        (
            [1 | 4 << 64, 0],
            &[0xb943_5e50_d794_35e3, 1 << 64 | 0xcd79_435e_50d7_9433, 0],
            0x13,
        ),
    ];
    for (i, (key, blocks, expected)) in cases.into_iter().enumerate() {
        // SAFETY: the CPU has what the lanes need, as was asked above.
        let tags = unsafe { poly1305::tag(key, blocks) };
        assert_eq!(tags, [expected; 8], "case {i}");
    }
}

#[test]
fn a_change_in_one_packet_is_found_in_that_one_only() {
    let mut random = Random(7);
    for kernel in kernels() {
        for round in 0..400 {
            let count = [16, 16, 5, 8, 33, 64][round % 6];
            let lengths: Vec<_> = if round % 2 == 0 {
                vec![1 + random.below(1500); count]
            } else {
                (0..count).map(|_| 1 + random.below(1500)).collect()
            };
            let key = random.key();
            let plain = random.packets(&lengths);
            let mut sealed = plain.clone();
            seal(kernel, &key, &mut jobs(&mut sealed));
            let bad = random.below(count);
            let (counter, data) = &mut sealed[bad];
            let end = data.len() - TAG;
            let bit = 1 << random.below(8);
            match round % 7 {
                0 => data[random.below(end)] ^= bit,
                1 => data[0] ^= bit,
                2 => data[end - 1] ^= bit,
                3 => data[end + random.below(TAG)] ^= bit,
                4 => *counter ^= 1 << random.below(64),
                5 => drop(data.pop()),
                _ => data.push(0),
            }
            let opened = open(kernel, &key, &mut jobs(&mut sealed));
            assert_eq!(opened, all(count) & !(1 << bad), "{kernel}, round {round}");
            for (i, (after, before)) in sealed.iter().zip(&plain).enumerate().filter(|x| x.0 != bad)
            {
                let end = before.1.len() - TAG;
                assert!(after.1[..end] == before.1[..end], "{kernel}, packet {i}");
            }
        }
    }
}

/// Every single byte of the tag counts, in every lane.
#[test]
fn each_byte_of_the_tag_is_compared_in_each_lane() {
    let mut random = Random(8);
    for kernel in kernels() {
        let key = random.key();
        let mut sealed = random.packets(&[100; 16]);
        seal(kernel, &key, &mut jobs(&mut sealed));
        for bad in 0..16 {
            for byte in 100..100 + TAG {
                let mut tampered = sealed.clone();
                tampered[bad].1[byte] ^= 0x80;
                let opened = open(kernel, &key, &mut jobs(&mut tampered));
                assert_eq!(opened, all(16) & !(1 << bad), "{kernel}, byte {byte}");
            }
        }
    }
}

#[test]
fn another_key_opens_nothing() {
    let mut random = Random(9);
    for kernel in kernels() {
        let mut sealed = random.packets(&[1420; 20]);
        seal(kernel, &random.key(), &mut jobs(&mut sealed));
        assert_eq!(
            open(kernel, &random.key(), &mut jobs(&mut sealed)),
            0,
            "{kernel}"
        );
    }
}

#[test]
fn counters_at_their_borders_agree_with_ring() {
    if !has_avx512() {
        return;
    }
    let mut random = Random(10);
    let (word, long) = (u64::from(u32::MAX), u64::MAX);
    let counters = [
        0,
        1,
        word - 1,
        word,
        word + 1,
        word << 32,
        long - word,
        long - 1,
        long,
    ];
    let key = random.key();
    let plain: Vec<_> = counters
        .into_iter()
        .cycle()
        .take(32)
        .map(|counter| (counter, random.bytes(300)))
        .collect();
    let (mut by_ring, mut by_kernel) = (plain.clone(), plain);
    seal(Kernel::Ring, &key, &mut jobs(&mut by_ring));
    seal(Kernel::Avx512, &key, &mut jobs(&mut by_kernel));
    assert!(by_ring == by_kernel);
    assert_eq!(open(Kernel::Avx512, &key, &mut jobs(&mut by_ring)), all(32));
}

#[test]
fn what_is_too_short_for_a_tag_is_refused_and_harms_no_other() {
    let mut random = Random(11);
    for kernel in kernels() {
        for count in [1, 4, 16, 17, 64] {
            let key = random.key();
            let mut packets = random.packets(&vec![200; count]);
            for (i, packet) in packets.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
                packet.1.truncate(i % TAG);
            }
            let before = packets.clone();
            seal(kernel, &key, &mut jobs(&mut packets));
            let short = (0..count).filter(|i| i % 3 == 0);
            for i in short.clone() {
                assert!(
                    packets[i] == before[i],
                    "{kernel} changed what it cannot seal"
                );
            }
            let expected = all(count) & !short.fold(0, |mask, i| mask | 1 << i);
            assert_eq!(
                open(kernel, &key, &mut jobs(&mut packets)),
                expected,
                "{kernel}"
            );
        }
        assert_eq!(open(kernel, &random.key(), &mut []), 0);
    }
}

#[test]
fn no_more_than_64_are_opened_in_a_call_but_any_number_is_sealed() {
    let mut random = Random(12);
    for kernel in kernels() {
        let key = random.key();
        let mut packets = random.packets(&[50; 150]);
        let plain = packets.clone();
        seal(kernel, &key, &mut jobs(&mut packets));
        let sealed = packets.clone();
        let mut jobs = jobs(&mut packets);
        assert_eq!(open(kernel, &key, &mut jobs), u64::MAX);
        assert_eq!(
            jobs[64].data, sealed[64].1,
            "{kernel} touched what it cannot tell about"
        );
        assert_eq!(open(kernel, &key, &mut jobs[64..]), u64::MAX);
        assert_eq!(open(kernel, &key, &mut jobs[128..]), all(22));
        drop(jobs);
        assert!(
            packets
                .iter()
                .zip(&plain)
                .all(|(a, b)| a.1[..50] == b.1[..50])
        );
    }
}

#[test]
fn kernels_are_known_by_their_names() {
    assert_eq!("ring".parse(), Ok(Kernel::Ring));
    let avx512: Result<Kernel, _> = "avx512".parse();
    if has_avx512() {
        assert_eq!(
            (avx512, Kernel::best()),
            (Ok(Kernel::Avx512), Kernel::Avx512)
        );
    } else {
        assert_eq!(avx512, Err(KernelError::Unsupported(Kernel::Avx512)));
        assert_eq!(Kernel::best(), Kernel::Ring);
    }
    let unknown = "aes".parse::<Kernel>().map_err(|e| e.to_string());
    assert_eq!(
        unknown,
        Err("no cipher is named \"aes\": use \"ring\" or \"avx512\"".to_owned())
    );
}

#[test]
fn a_key_shows_nothing_and_is_wiped_when_dropped() {
    let mut key = core::mem::ManuallyDrop::new(Key::new(&[0xa5; 32]));
    assert_eq!(format!("{:?}", *key), "Key { .. }");
    // SAFETY: the key is dropped here and never again; its bytes stay where they are, in a local
    // variable, and a byte array may be looked at whatever became of its owner.
    let bytes = unsafe {
        core::mem::ManuallyDrop::drop(&mut key);
        core::ptr::read_volatile((&raw const key).cast::<[u8; 32]>())
    };
    assert_eq!(bytes, [0; 32]);
}
