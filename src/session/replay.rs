//! Which counters of a session were received already (RFC 6479's bitmap, in a window that grows).

use crate::limits;

/// Counters in a word of the bitmap.
const WORD: u64 = u64::BITS as u64;

/// A sliding window over the counters of received packets.
///
/// It starts small and grows with traffic: a session in full use may get packets that a slower path delivers hundreds of
/// milliseconds late, when a hundred thousand others have overtaken them; a quiet one should not pay for that.
#[derive(Debug)]
pub(super) struct ReplayWindow {
    /// A ring: the bit of counter `n` is `n mod` the number of bits, a power of two.
    bitmap: Box<[u64]>,
    /// The highest counter received, plus one.
    next: u64,
    /// Counters below were forgotten, or never had a bit.
    floor: u64,
}

impl ReplayWindow {
    /// The largest bitmap.
    pub(super) const MOST_BYTES: usize =
        words(limits::REPLAY_WINDOWS[limits::REPLAY_WINDOWS.len() - 1]) * size_of::<u64>();

    pub(super) fn new() -> Self {
        Self {
            bitmap: vec![0; words(limits::REPLAY_WINDOWS[0])].into_boxed_slice(),
            next: 0,
            floor: 0,
        }
    }

    fn bits(&self) -> u64 {
        self.bitmap.len() as u64 * WORD
    }

    /// True when `counter` was not received before and is not too old. To be asked only of authentic packets, because it
    /// counts as received from then on.
    pub(super) fn accept(&mut self, counter: u64) -> bool {
        if counter >= self.next {
            self.advance(counter);
        } else if counter < self.floor || self.next - counter > self.bits() {
            return false;
        }
        let (word, bit) = self.place(counter);
        let fresh = self.bitmap[word] & bit == 0;
        self.bitmap[word] |= bit;
        fresh
    }

    fn place(&self, counter: u64) -> (usize, u64) {
        let at = counter & (self.bits() - 1);
        ((at / WORD) as usize, 1 << (at % WORD))
    }

    /// Makes `counter` the highest, and clears the bits of those that it skips.
    fn advance(&mut self, counter: u64) {
        self.grow(counter);
        let skipped = counter - self.next;
        if skipped >= self.bits() {
            self.bitmap.fill(0);
        } else {
            // Whole words at once, as far as possible.
            let mut at = self.next;
            while at <= counter {
                let (word, bit) = self.place(at);
                if bit == 1 && counter - at >= WORD {
                    self.bitmap[word] = 0;
                    at += WORD;
                } else {
                    self.bitmap[word] &= !bit;
                    at += 1;
                }
            }
        }
        self.next = counter + 1;
    }

    /// Grows to the next size once so many packets have come that the session is worth it.
    fn grow(&mut self, counter: u64) {
        let size = limits::REPLAY_WINDOWS
            .into_iter()
            .rfind(|size| *size == limits::REPLAY_WINDOWS[0] || counter >= *size / 16)
            .unwrap_or(limits::REPLAY_WINDOWS[0]);
        if size <= self.bits() {
            return;
        }
        let old = std::mem::replace(
            self,
            Self {
                bitmap: vec![0; words(size)].into_boxed_slice(),
                next: self.next,
                floor: self.floor,
            },
        );
        // What the small window forgot stays forgotten.
        self.floor = self.floor.max(old.next.saturating_sub(old.bits()));
        for counter in self.floor..old.next {
            let (word, bit) = old.place(counter);
            if old.bitmap[word] & bit != 0 {
                let (word, bit) = self.place(counter);
                self.bitmap[word] |= bit;
            }
        }
    }
}

const fn words(bits: u64) -> usize {
    (bits / WORD) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const SMALL: u64 = limits::REPLAY_WINDOWS[0];
    const LARGE: u64 = limits::REPLAY_WINDOWS[limits::REPLAY_WINDOWS.len() - 1];

    #[test]
    fn each_counter_is_accepted_once() {
        let mut window = ReplayWindow::new();
        for counter in [0, 2, 1, 64, 63, 65, 3] {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter), "{counter}");
        }
    }

    #[test]
    fn what_is_older_than_the_window_is_refused() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(LARGE + 1));
        assert!(window.accept(2));
        assert!(!window.accept(1));
        assert!(window.accept(u64::MAX - 1));
        assert!(!window.accept(SMALL + 1));
    }

    #[test]
    fn a_busy_session_takes_packets_that_a_hundred_thousand_others_overtook() {
        let mut window = ReplayWindow::new();
        let late = LARGE * 5;
        for counter in 0..LARGE * 6 {
            assert!(window.accept(counter));
            if counter == late {
                break;
            }
        }
        for counter in late + 2..late + LARGE {
            assert!(window.accept(counter));
        }
        assert!(window.accept(late + 1));
        assert!(!window.accept(late + 1));
    }

    #[test]
    fn growing_forgets_no_packet_that_was_received() {
        let mut window = ReplayWindow::new();
        let start = SMALL * 4;
        for counter in start - SMALL..start + LARGE * 4 + 10 {
            if counter % 3 != 0 {
                assert!(window.accept(counter));
            }
            for back in [1, 2, 500, SMALL - 2] {
                if let Some(old) = counter.checked_sub(back).filter(|old| old % 3 != 0)
                    && old >= start
                {
                    assert!(!window.accept(old), "{old} again after {counter}");
                }
            }
        }
    }

    proptest! {
        /// Against a set of everything ever accepted: never twice, and never refused within the smallest window.
        #[test]
        fn agrees_with_a_set(steps in proptest::collection::vec((0_u64..3_000, any::<bool>()), 1..400), start in prop_oneof![Just(0_u64), 0..u64::MAX / 2]) {
            let (mut window, mut seen, mut top) = (ReplayWindow::new(), BTreeSet::new(), start);
            prop_assert!(window.accept(start));
            seen.insert(start);
            for (distance, back) in steps {
                let counter = if back { top.saturating_sub(distance) } else { top + distance };
                let accepted = window.accept(counter);
                if accepted {
                    prop_assert!(seen.insert(counter), "{} twice", counter);
                } else {
                    // Growing keeps a floor below which nothing is known; it is never nearer than the smallest window.
                    prop_assert!(seen.contains(&counter) || top - counter >= SMALL || counter < start);
                }
                top = top.max(counter);
            }
        }
    }
}
