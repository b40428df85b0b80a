//! Keeps count of what other people's routers are made to bear.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::limits;
use crate::time::Instant;

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// An attempt that made many mappings, or probed many ports.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Instant,
    /// The peer's key, so that a restart of its session, or another network with it, does not begin anew.
    peer: [u8; 32],
    /// Our own public address, which stands for the gateway that we are behind.
    own: IpAddr,
    target: IpAddr,
}

/// The attempts of the last day.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: VecDeque<Entry>,
}

impl Ledger {
    /// True if one more may be made. When the book is full nothing is forgotten in order to make room.
    pub(crate) fn allows(
        &mut self,
        now: Instant,
        peer: &[u8; 32],
        own: IpAddr,
        target: IpAddr,
    ) -> bool {
        while let Some(first) = self.entries.front()
            && now.since(first.at) >= DAY
        {
            self.entries.pop_front();
        }
        let there = self.entries.iter().filter(|entry| entry.target == target);
        let same = |entry: &&Entry| entry.peer == *peer && entry.own == own;
        self.entries.len() < limits::SPRAYS_A_DAY
            && there.clone().count() < limits::SPRAYS_PER_DESTINATION
            && there.filter(same).count() < limits::SPRAYS_PER_PAIR
    }

    /// One was made.
    pub(crate) fn note(&mut self, now: Instant, peer: [u8; 32], own: IpAddr, target: IpAddr) {
        if self.entries.len() >= limits::SPRAYS_A_DAY {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            at: now,
            peer,
            own,
            target,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(3_600 * hours))
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([203, 0, 113, last])
    }

    /// Tries to make so many; returns how many were allowed.
    fn spend(ledger: &mut Ledger, tries: usize, peer: u8, own: IpAddr, target: IpAddr) -> usize {
        let mut made = 0;
        for _ in 0..tries {
            if ledger.allows(at(0), &[peer; 32], own, target) {
                ledger.note(at(0), [peer; 32], own, target);
                made += 1;
            }
        }
        made
    }

    #[test]
    fn a_pair_gets_three_a_day_from_each_network_and_a_destination_a_few_more() {
        let mut ledger = Ledger::default();
        assert_eq!(
            spend(&mut ledger, 9, 1, ip(1), ip(2)),
            limits::SPRAYS_PER_PAIR
        );
        let left = limits::SPRAYS_PER_DESTINATION - limits::SPRAYS_PER_PAIR;
        assert_eq!(
            spend(&mut ledger, 9, 1, ip(9), ip(2)),
            left.min(limits::SPRAYS_PER_PAIR)
        );
        assert!(
            !ledger.allows(at(0), &[7; 32], ip(1), ip(2)),
            "another peer there"
        );
        assert!(ledger.allows(at(0), &[1; 32], ip(1), ip(3)));
        assert!(!ledger.allows(at(23), &[1; 32], ip(1), ip(2)));
        assert!(ledger.allows(at(24), &[1; 32], ip(1), ip(2)));
    }

    #[test]
    fn the_day_has_a_limit_whoever_they_are_for() {
        let mut ledger = Ledger::default();
        let mut made = 0;
        for target in 0..=255 {
            made += spend(&mut ledger, 3, target, ip(1), ip(target));
        }
        assert_eq!(made, limits::SPRAYS_A_DAY);
    }
}
