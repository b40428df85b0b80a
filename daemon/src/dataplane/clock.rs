//! Time as the engine wants it, and a timer on the same clock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mesh_core::time::Instant;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME`: counts the time that the host was suspended, so that sessions age while a laptop sleeps.
pub(crate) fn now() -> Instant {
    // Cannot fail: Linux has had this clock since 2.6.39.
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Instant::from_boot(since_boot)
}

/// The time of day, since 1970.
pub(crate) fn unix() -> Duration {
    // A clock that stands before 1970 is as good as one that stands at its beginning.
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Wakes the data thread at a point in time.
///
/// A descriptor rather than the timeout of the wait, because that one stands still while the host is suspended: after an
/// hour's sleep every deadline would still be as far away as before.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: TimerFd,
    armed: Option<Instant>,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            fd: TimerFd::new(timerfd::ClockId::CLOCK_BOOTTIME, flags)?,
            armed: None,
        })
    }

    /// Makes sure of a wakeup at `deadline`.
    ///
    /// An earlier wakeup stays armed, although it will be for nothing: deadlines mostly move away with each packet, and
    /// this way that costs one wakeup now and then instead of a system call each time.
    pub(crate) fn arm(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        // Zero would disarm.
        let at = deadline.since_boot().max(Duration::from_nanos(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(at));
        if self
            .fd
            .set(once, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            .is_ok()
        {
            self.armed = Some(deadline);
        }
    }

    /// To be called when the descriptor is readable.
    pub(crate) fn fired(&mut self) {
        // "Would block" means that it was set anew in the meantime; the state is right either way.
        let _ = self.fd.wait();
        self.armed = None;
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn fires_within(timer: &Timer, wait: Duration) -> bool {
        let mut fds = [PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(wait).unwrap()).unwrap() == 1
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one_and_not_the_other_way_round() {
        let mut timer = Timer::new().unwrap();
        let start = now();
        timer.arm(Some(start + Duration::from_secs(3_600)));
        assert!(!fires_within(&timer, Duration::from_millis(20)));
        timer.arm(Some(start + Duration::from_millis(30)));
        timer.arm(Some(start + Duration::from_secs(3_600)));
        timer.arm(None);
        assert!(fires_within(&timer, Duration::from_secs(5)));
        assert!(now() >= start + Duration::from_millis(30));
        timer.fired();
        assert!(!fires_within(&timer, Duration::from_millis(5)));
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        let mut timer = Timer::new().unwrap();
        timer.arm(Some(Instant::default()));
        assert!(fires_within(&timer, Duration::from_secs(5)));
    }
}
