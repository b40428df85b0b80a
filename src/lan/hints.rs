//! Where a peer may be on the link. Nothing of it is proven.

use std::net::SocketAddr;
use std::time::Duration;

use crate::limits;
use crate::rate::{Bucket, Rate};
use crate::time::Instant;

/// A hint is good for a handshake's first attempts. A peer that is still there says so when it is asked again.
const LIFETIME: Duration = Duration::from_secs(30);

/// The hints of one peer.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    hints: Vec<(SocketAddr, Instant)>,
    taken: Bucket,
}

impl Hints {
    /// What the hints of one peer take at most.
    pub(crate) const MOST_BYTES: usize = limits::LAN_HINTS * size_of::<(SocketAddr, Instant)>();

    /// Takes a hint, in the place of the oldest if there are too many; `false` if they come too fast.
    pub(crate) fn add(&mut self, now: Instant, address: SocketAddr) -> bool {
        let rate = Rate::new(1, limits::LAN_HINTS as u64);
        if !self.taken.take(now, rate, 1) {
            return false;
        }
        self.hints
            .retain(|(known, at)| *known != address && now.since(*at) < LIFETIME);
        if self.hints.len() >= limits::LAN_HINTS {
            self.hints.remove(0);
        }
        self.hints.push((address, now));
        true
    }

    /// The addresses that are worth a try.
    pub(crate) fn live(&self, now: Instant) -> impl Iterator<Item = SocketAddr> {
        let live = self.hints.iter();
        live.filter(move |(_, at)| now.since(*at) < LIFETIME)
            .map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 168, 1, last], 41_820))
    }

    #[test]
    fn hints_are_few_and_pass() {
        let mut hints = Hints::default();
        let taken = (0..100).filter(|last| hints.add(at(100), address(*last)));
        assert_eq!(taken.count(), limits::LAN_HINTS);
        assert_eq!(hints.live(at(100)).count(), limits::LAN_HINTS);
        // One more a second, in the place of the oldest.
        assert!(hints.add(at(101), address(50)));
        assert!(!hints.add(at(101), address(51)));
        assert_eq!(hints.live(at(101)).count(), limits::LAN_HINTS);
        assert!(!hints.live(at(101)).any(|hint| hint == address(0)));
        assert_eq!(hints.live(at(130)).collect::<Vec<_>>(), [address(50)]);
        assert_eq!(hints.live(at(200)).count(), 0);
    }

    #[test]
    fn a_hint_that_comes_again_is_one_hint() {
        let mut hints = Hints::default();
        assert!(hints.add(at(100), address(1)) && hints.add(at(120), address(1)));
        assert_eq!(hints.live(at(140)).collect::<Vec<_>>(), [address(1)]);
    }
}
