//! A point in time that the caller supplies.
//!
//! The core never reads a clock. Every input carries an [`Instant`], which the daemon takes from `CLOCK_BOOTTIME`
//! (so that the time a laptop slept counts) and the simulator from its virtual clock.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanosecond-resolution time since an arbitrary origin, normally the boot of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(Duration);

impl Instant {
    /// The instant that lies `since_boot` after the origin.
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// Time since the origin.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// How long before `self` the instant `earlier` was; zero if it was later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}
