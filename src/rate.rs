//! Rate limits.

use std::time::Duration;

use crate::time::Instant;

/// A token bucket, kept as the time at which it will be full again (the generic cell rate algorithm), so that it needs
/// no timer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    full_at: Instant,
}

/// How fast a [`Bucket`] fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Tokens a second, at least 1.
    per_second: u64,
    /// How far behind a bucket may fall: the time that filling an empty one takes.
    burst: Duration,
}

impl Rate {
    /// `per_second` tokens a second, and `burst` of them at once.
    pub(crate) fn new(per_second: u64, burst: u64) -> Self {
        let per_second = per_second.max(1);
        Self {
            per_second,
            burst: duration(burst, per_second),
        }
    }
}

impl Bucket {
    /// Takes `tokens` if there are as many.
    pub(crate) fn take(&mut self, now: Instant, rate: Rate, tokens: u64) -> bool {
        let full_at = self.full_at.max(now) + duration(tokens, rate.per_second);
        let granted = full_at.since(now) <= rate.burst;
        if granted {
            self.full_at = full_at;
        }
        granted
    }
}

/// How long `tokens` take to come. The counts here are bytes and messages of a second or less: far from overflow.
fn duration(tokens: u64, per_second: u64) -> Duration {
    Duration::from_nanos(tokens.saturating_mul(1_000_000_000) / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_grants_its_burst_and_then_its_rate() {
        let rate = Rate::new(100, 10);
        let mut bucket = Bucket::default();
        let start = Instant::from_boot(Duration::from_secs(9));
        assert_eq!((0..100).filter(|_| bucket.take(start, rate, 1)).count(), 10);
        let later = start + Duration::from_millis(50);
        assert_eq!((0..100).filter(|_| bucket.take(later, rate, 1)).count(), 5);
    }

    #[test]
    fn a_bucket_does_not_save_up_more_than_its_burst() {
        let rate = Rate::new(100, 10);
        let mut bucket = Bucket::default();
        let much_later = Instant::from_boot(Duration::from_secs(100_000));
        assert_eq!(
            (0..100)
                .filter(|_| bucket.take(much_later, rate, 1))
                .count(),
            10
        );
    }

    #[test]
    fn what_exceeds_the_burst_never_passes() {
        let rate = Rate::new(100, 10);
        assert!(!Bucket::default().take(Instant::default(), rate, 11));
        assert!(!Bucket::default().take(Instant::default(), rate, u64::MAX));
    }
}
