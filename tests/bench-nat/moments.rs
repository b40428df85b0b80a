//! When something happened, as programs write it.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The time of day of a line of a log that begins with `2026-01-31T12:34:56.123456Z`.
pub(crate) fn of_log(line: &str) -> Option<Duration> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split(':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(
        Duration::from_secs(3_600 * hours + 60 * minutes)
            + Duration::try_from_secs_f64(seconds).ok()?,
    )
}

/// The time of day of a line of `ping -D`: `[1767225600.123456] 64 bytes from …`.
pub(crate) fn of_ping(line: &str) -> Option<Duration> {
    let seconds = line.strip_prefix('[')?.split_once(']')?.0.parse().ok()?;
    let since_1970 = Duration::try_from_secs_f64(seconds).ok()?;
    let days = since_1970.as_secs() / DAY.as_secs();
    since_1970.checked_sub(Duration::from_secs(days * DAY.as_secs()))
}

/// From one time of day to a later one, which may be past midnight; zero if it was not later.
pub(crate) fn between(first: Duration, second: Duration) -> Duration {
    match second.checked_sub(first) {
        Some(time) => time,
        None if first - second > DAY / 2 => second + DAY - first,
        None => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_writing_a_time_mean_the_same() {
        let log =
            of_log("2026-01-31T23:59:59.500000Z DEBUG meshd: b is now reached by direct").unwrap();
        let ping = of_ping("[1769903999.500000] 64 bytes from fd00::1: icmp_seq=1").unwrap();
        assert!(
            log.abs_diff(ping) < Duration::from_micros(2),
            "{log:?} {ping:?}"
        );
        assert_eq!(of_log("no time"), None);
        assert_eq!(of_ping("PING fd00::1"), None);
    }

    #[test]
    fn midnight_may_lie_between_two_moments() {
        let (late, early) = (DAY - Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(between(late, early), Duration::from_secs(3));
        assert_eq!(between(early, early), Duration::ZERO);
        assert_eq!(between(Duration::from_secs(5), early), Duration::ZERO);
    }
}
