//! Whether a server has lost its mappings: its clock since then, compared with ours.

use std::time::Duration;

use crate::time::Instant;

/// What a server's clock showed last, and when that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    server: u32,
    at: Instant,
}

impl Epoch {
    /// Notes what the clock shows; true if it was set back since the last time, or does not run as a clock does: then
    /// the server has restarted and forgotten us (RFC 6887, section 8.5; RFC 6886, section 3.6, is looser).
    pub(super) fn note(last: &mut Option<Self>, now: Instant, server: u32) -> bool {
        let this = Self { server, at: now };
        let Some(last) = last.replace(this) else {
            return false;
        };
        // Packets may overtake each other by a second.
        if last.server.saturating_sub(server) > 1 {
            return true;
        }
        let theirs = Duration::from_secs(u64::from(server.saturating_sub(last.server)));
        let ours = now.since(last.at);
        let slack = Duration::from_secs(2);
        // A sixteenth for clocks that run fast or slow.
        ours + slack < theirs - theirs / 16 || theirs + slack < ours - ours / 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn a_clock_that_runs_is_trusted() {
        let mut last = None;
        for (ours, theirs) in [
            (10, 100),
            (10, 100),
            (20, 110),
            (3_620, 3_500),
            (3_621, 3_500),
        ] {
            assert!(!Epoch::note(&mut last, at(ours), theirs), "{ours} {theirs}");
        }
    }

    #[test]
    fn a_clock_that_had_hardly_begun_when_it_was_set_back_tells_of_a_restart() {
        for before in [0, 1] {
            let mut last = None;
            assert!(!Epoch::note(&mut last, at(10), before));
            assert!(Epoch::note(&mut last, at(20), 0), "{before}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_stood_or_jumped_tells_of_a_restart() {
        for theirs in [0, 98, 105, 5_000] {
            let mut last = None;
            assert!(!Epoch::note(&mut last, at(10), 100));
            assert!(Epoch::note(&mut last, at(1_010), theirs), "{theirs}");
            assert!(!Epoch::note(&mut last, at(1_011), theirs + 1), "{theirs}");
        }
    }
}
