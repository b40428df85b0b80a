//! Medians, and figures for people.

use std::time::Duration;

/// What a number of runs took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) median: Duration,
    pub(super) worst: Duration,
}

impl Times {
    /// `None` of nothing.
    pub(super) fn of(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<Duration> = times.collect();
        sorted.sort();
        Some(Self {
            median: *sorted.get(sorted.len().saturating_sub(1) / 2)?,
            worst: *sorted.last()?,
        })
    }

    /// Two columns of a table.
    pub(super) fn columns(times: Option<Self>) -> String {
        times.map_or_else(
            || "– | –".to_owned(),
            |times| format!("{} | {}", shown(times.median), shown(times.worst)),
        )
    }
}

/// `80 ms`, `1.4 s`.
pub(super) fn shown(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::ms;

    #[test]
    fn the_median_is_one_of_the_times_and_the_worst_the_longest() {
        let times = Times::of([ms(1_400), ms(80), ms(100), ms(90)].into_iter());
        let (median, worst) = (ms(90), ms(1_400));
        assert_eq!(times, Some(Times { median, worst }));
        assert_eq!(Times::columns(times), "90 ms | 1.4 s");
        assert_eq!(Times::columns(Times::of(std::iter::empty())), "– | –");
    }
}
