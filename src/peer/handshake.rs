//! Paces handshake initiations: a fresh one on every way that may lead to the peer until one is answered.
//!
//! WireGuard itself would wait five seconds between attempts; a lost packet, or a path that has died, must not cost that.

use std::time::Duration;

use crate::time::Instant;

/// First pause; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// WireGuard's REKEY_TIMEOUT.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// WireGuard's REKEY_ATTEMPT_TIME: then the peer is left alone until there is traffic for it again.
const GIVE_UP: Duration = Duration::from_secs(90);
/// Without an answer for this long the peer counts as offline.
const OFFLINE_AFTER: Duration = Duration::from_secs(3);

/// A handshake that was begun and is not complete.
#[derive(Debug)]
pub(crate) struct Handshake {
    started: Instant,
    attempts: u32,
    next: Instant,
}

impl Handshake {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            attempts: 0,
            next: now,
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.next
    }

    /// True when an initiation has to be sent now; counts it.
    pub(crate) fn poll(&mut self, now: Instant, rtt: Option<Duration>) -> bool {
        if now < self.next {
            return false;
        }
        let first = rtt.map_or(FIRST_PAUSE, |rtt| FIRST_PAUSE.max(rtt * 2));
        let pause = first * 2u32.saturating_pow(self.attempts.min(8));
        self.next = now + pause.min(MAX_PAUSE);
        self.attempts = self.attempts.saturating_add(1);
        true
    }

    /// Initiations sent so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A new way to the peer has appeared: try at once.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.next = now;
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now.since(self.started) >= GIVE_UP
    }

    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        now.since(self.started) >= OFFLINE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiations_are_spaced_by_growing_pauses_up_to_five_seconds() {
        let start = Instant::from_boot(Duration::from_secs(100));
        let mut handshake = Handshake::new(start);
        let mut at = Vec::new();
        while at.len() < 8 {
            let now = handshake.deadline();
            assert!(handshake.poll(now, None));
            assert!(!handshake.poll(now, None));
            at.push(now.since(start).as_millis());
        }
        assert_eq!(at, [0, 250, 750, 1_750, 3_750, 7_750, 12_750, 17_750]);
        assert!(!handshake.is_over(start + Duration::from_secs(89)));
        assert!(handshake.is_over(start + Duration::from_secs(90)));
    }
}
