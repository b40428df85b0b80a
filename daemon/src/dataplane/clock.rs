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

/// Becomes readable when the host resumes from being suspended, and when somebody sets the time of day.
///
/// A timer on the time of day that never fires: the kernel cancels it on such an occasion. Nothing else tells at once:
/// a link may be back without ever having been seen to go. logind tells as well, where there is one, a little later; the
/// two of them are made one here.
#[derive(Debug)]
pub(crate) struct ResumeWatch {
    fd: TimerFd,
    suspended: Duration,
    /// When the host was last found to have woken.
    woken: Option<Instant>,
}

/// logind's word that comes within this after the clock's is of the same sleep: it runs its hooks first.
const SAME_SLEEP: Duration = Duration::from_secs(10);

/// Time asleep below this is no more than the clocks' own difference in a reading.
const LEAST_SLEEP: Duration = Duration::from_secs(1);

impl ResumeWatch {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let fd = TimerFd::new(timerfd::ClockId::CLOCK_REALTIME, flags)?;
        let never = Expiration::OneShot(TimeSpec::from_duration(Duration::from_secs(1 << 40)));
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        fd.set(never, flags)?;
        let suspended = suspended();
        Ok(Self {
            fd,
            suspended,
            woken: None,
        })
    }

    /// To be called when the descriptor is readable; true if the host was asleep.
    pub(crate) fn fired(&mut self, now: Instant) -> bool {
        // Fails with "cancelled", which is what it is for.
        let _ = self.fd.wait();
        self.has_woken(now, suspended())
    }

    /// To be called when logind says that the host has woken; true unless that was known.
    pub(crate) fn announced(&mut self, now: Instant) -> bool {
        self.is_news(now, suspended())
    }

    fn has_woken(&mut self, now: Instant, suspended: Duration) -> bool {
        let slept = self.has_slept(suspended);
        if slept {
            self.woken = Some(now);
        }
        slept
    }

    fn is_news(&mut self, now: Instant, suspended: Duration) -> bool {
        let known = |woken: Instant| now.since(woken) < SAME_SLEEP;
        // If the clock shows it as well, its own word, which is still to come, is none any more.
        let news = self.has_slept(suspended) || !self.woken.is_some_and(known);
        if news {
            self.woken = Some(now);
        }
        news
    }

    fn has_slept(&mut self, suspended: Duration) -> bool {
        let before = std::mem::replace(&mut self.suspended, suspended);
        suspended.saturating_sub(before) >= LEAST_SLEEP
    }
}

/// How long the host has been suspended since it booted.
fn suspended() -> Duration {
    let running = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    now().since_boot().saturating_sub(running)
}

impl AsFd for ResumeWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
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
    fn only_time_asleep_counts_as_sleep() {
        let mut watch = ResumeWatch::new().unwrap();
        assert!(
            !watch.fired(now()),
            "nothing has happened, and nothing is waited for"
        );
        let before = watch.suspended;
        assert!(!watch.has_slept(before + Duration::from_millis(3)));
        assert!(watch.has_slept(before + Duration::from_secs(60)));
        assert!(
            !watch.has_slept(before + Duration::from_secs(60)),
            "told once"
        );
    }

    #[test]
    fn the_clock_and_logind_tell_of_one_sleep_once_whoever_comes_first() {
        let at = |seconds| Instant::from_boot(Duration::from_secs(seconds));
        let mut watch = ResumeWatch::new().unwrap();
        let awake = watch.suspended;
        let first = awake + Duration::from_secs(60);
        assert!(watch.has_woken(at(1_000), first));
        assert!(!watch.is_news(at(1_001), first), "logind comes later");
        let second = first + Duration::from_secs(60);
        assert!(watch.is_news(at(1_005), second), "another sleep");
        assert!(!watch.has_woken(at(1_005), second), "the clock comes later");
        assert!(
            watch.is_news(at(1_100), second),
            "sleep that the clock does not show"
        );
        assert!(!watch.is_news(at(1_101), second), "said twice");
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        let mut timer = Timer::new().unwrap();
        timer.arm(Some(Instant::default()));
        assert!(fires_within(&timer, Duration::from_secs(5)));
    }
}
