//! Channel numbers.
//!
//! A channel has two ends, one for each client, each with its own number. A number is the place of the end in a table
//! and a generation, enciphered: found without a search, unique, and not to be guessed from other numbers.

use crate::limits;

/// Bits of a number that name the place in the table; the others are the generation.
const PLACE_BITS: u32 = limits::RELAY_CHANNEL_ENDS.trailing_zeros();
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;
const GENERATION_MASK: u32 = u32::MAX >> PLACE_BITS;

/// Where an end is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndIndex(u32);

/// One client's end of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// The number that the client sends frames with.
    pub(super) number: u32,
    /// Whose end it is.
    pub(super) owner: usize,
    /// The other client's end.
    pub(super) twin: EndIndex,
}

#[derive(Debug)]
struct Place {
    /// Changes each time the place is used, so that an old number does not name a new channel.
    generation: u32,
    end: Option<End>,
}

/// Every channel of a relay.
#[derive(Debug)]
pub(super) struct Channels {
    places: Vec<Place>,
    free: Vec<u32>,
    cipher: Cipher,
}

impl Channels {
    pub(super) const fn new(key: [u32; 4]) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            cipher: Cipher(key),
        }
    }

    /// Opens a channel between two clients; `None` when there is no number left.
    pub(super) fn open(&mut self, one: usize, other: usize) -> Option<(EndIndex, EndIndex)> {
        if self.free.len() + limits::RELAY_CHANNEL_ENDS - self.places.len() < 2 {
            return None;
        }
        let first = self.allocate();
        let second = self.allocate();
        self.set(first, one, second);
        self.set(second, other, first);
        Some((EndIndex(first), EndIndex(second)))
    }

    /// How many channels are open.
    pub(super) fn open_count(&self) -> usize {
        (self.places.len() - self.free.len()) / 2
    }

    /// The end that a client calls by `number`.
    pub(super) fn find(&self, number: u32) -> Option<&End> {
        let plain = self.cipher.decipher(number);
        let place = self.places.get((plain & PLACE_MASK) as usize)?;
        place.end.as_ref().filter(|end| end.number == number)
    }

    /// The end at a place.
    pub(super) fn get(&self, index: EndIndex) -> Option<&End> {
        self.places.get(index.0 as usize)?.end.as_ref()
    }

    /// Removes both ends; returns the other one.
    pub(super) fn close(&mut self, index: EndIndex) -> Option<End> {
        let end = self.remove(index)?;
        self.remove(end.twin)
    }

    /// Removes every channel.
    pub(super) fn clear(&mut self) {
        for index in 0..self.places.len() {
            self.remove(EndIndex(index as u32));
        }
    }

    fn allocate(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                generation: 0,
                end: None,
            });
            (self.places.len() - 1) as u32
        })
    }

    fn set(&mut self, index: u32, owner: usize, twin: u32) {
        let place = &mut self.places[index as usize];
        place.generation = (place.generation + 1) & GENERATION_MASK;
        place.end = Some(End {
            number: self.cipher.encipher(place.generation << PLACE_BITS | index),
            owner,
            twin: EndIndex(twin),
        });
    }

    fn remove(&mut self, index: EndIndex) -> Option<End> {
        let end = self.places.get_mut(index.0 as usize)?.end.take()?;
        self.free.push(index.0);
        Some(end)
    }
}

/// A keyed permutation of 32 bits: a Feistel network. It only hides how many channels there are and which numbers come
/// next; what protects a channel is that frames count from its client's proven address alone.
#[derive(Debug)]
struct Cipher([u32; 4]);

impl Cipher {
    const fn encipher(&self, plain: u32) -> u32 {
        let (mut left, mut right) = (plain >> 16, plain & 0xffff);
        let mut i = 0;
        while i < 4 {
            (left, right) = (right, left ^ round(right, self.0[i]));
            i += 1;
        }
        left << 16 | right
    }

    const fn decipher(&self, number: u32) -> u32 {
        let (mut left, mut right) = (number >> 16, number & 0xffff);
        let mut i = 4;
        while i > 0 {
            i -= 1;
            (left, right) = (right ^ round(left, self.0[i]), left);
        }
        left << 16 | right
    }
}

/// Two rounds of multiply and xor, the constants being those of MurmurHash3's finaliser.
const fn round(half: u32, key: u32) -> u32 {
    let mixed = (half ^ key).wrapping_mul(0x85eb_ca6b);
    let mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
    mixed >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const KEY: [u32; 4] = [1, 2, 3, 4];

    #[test]
    fn each_end_is_found_by_its_own_number() {
        let mut channels = Channels::new(KEY);
        let (a, b) = channels.open(7, 9).unwrap();
        assert_eq!(channels.open_count(), 1);
        let (end_a, end_b) = (*channels.get(a).unwrap(), *channels.get(b).unwrap());
        assert_ne!(end_a.number, end_b.number);
        assert_eq!((end_a.owner, end_a.twin), (7, b));
        assert_eq!((end_b.owner, end_b.twin), (9, a));
        assert_eq!(channels.find(end_a.number).unwrap().owner, 7);
        assert_eq!(channels.find(end_b.number).unwrap().owner, 9);
    }

    #[test]
    fn numbers_are_unique_and_spread() {
        let mut channels = Channels::new(KEY);
        let mut numbers = BTreeSet::new();
        for i in 0..1000 {
            let (a, b) = channels.open(i, i + 1).unwrap();
            numbers.insert(channels.get(a).unwrap().number);
            numbers.insert(channels.get(b).unwrap().number);
        }
        assert_eq!(numbers.len(), 2000);
        assert!((900..1100).contains(&numbers.range(0x8000_0000..).count()));
    }

    #[test]
    fn a_closed_channel_is_not_found_and_its_number_does_not_come_back_at_once() {
        let mut channels = Channels::new(KEY);
        let mut seen = BTreeSet::new();
        for _ in 0..1000 {
            let (a, b) = channels.open(1, 2).unwrap();
            assert!(a.0 < 2 && b.0 < 2, "places are used again");
            let numbers = [a, b].map(|end| channels.get(end).unwrap().number);
            for number in numbers {
                assert!(seen.insert(number));
            }
            assert_eq!(channels.close(b).unwrap().owner, 1);
            for number in numbers {
                assert!(channels.find(number).is_none());
            }
            assert!(channels.close(b).is_none());
            assert_eq!(channels.open_count(), 0);
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let mut channels = Channels::new(KEY);
        for _ in 0..limits::RELAY_CHANNEL_ENDS / 2 {
            channels.open(1, 2).unwrap();
        }
        assert!(channels.open(1, 2).is_none());
        channels.close(EndIndex(0)).unwrap();
        assert!(channels.open(1, 2).is_some());
        assert!(channels.open(1, 2).is_none());
    }

    proptest! {
        #[test]
        fn the_cipher_is_a_permutation(plain: u32, key: [u32; 4]) {
            let cipher = Cipher(key);
            prop_assert_eq!(cipher.decipher(cipher.encipher(plain)), plain);
        }
    }
}
