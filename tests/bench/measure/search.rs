//! Finds the highest rate that comes through, by trying rates.

use anyhow::{Result, bail};

/// More than this part lost is too much.
const TOLERATED: f64 = 0.01;
/// Trials of one search, at most. Doubling from the first rate reaches 4,000 times that.
const TRIALS: u32 = 12;
/// Packets per second below which nothing is tried: a trial would hold too few of them.
const LOWEST: f64 = 100.0;
/// The search ends when the rate that passes and the one that fails are this close.
const PRECISION: f64 = 1.05;
/// A sender below this part of the rate that it was told cannot send faster.
const SHORT: f64 = 0.95;

/// What one trial gave, in packets and seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trial {
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    pub(crate) seconds: f64,
}

impl Trial {
    fn offered(&self) -> f64 {
        self.sent as f64 / self.seconds
    }

    fn carried(&self) -> f64 {
        self.arrived as f64 / self.seconds
    }

    fn passes(&self) -> bool {
        self.sent > 0 && self.arrived as f64 >= self.sent as f64 * (1.0 - TOLERATED)
    }
}

/// The most packets per second that arrived in a trial that passes, beginning at the rate `start` and moving in steps of
/// the factor `step` until a rate that passes and one that fails are known. What fails is tried twice: on a machine
/// with few cores a single trial may suffer from something else.
pub(crate) fn highest(
    start: f64,
    step: f64,
    mut trial: impl FnMut(f64) -> Result<Trial>,
) -> Result<f64> {
    let (mut rate, mut low, mut high) = (start, None::<f64>, None::<f64>);
    let (mut best, mut fastest, mut stuck) = (None::<f64>, 0.0, 0);
    for _ in 0..TRIALS {
        let mut found = trial(rate)?;
        if !found.passes() {
            found = trial(rate)?;
        }
        if found.passes() {
            best = Some(best.unwrap_or(0.0).max(found.carried()));
            low = Some(low.unwrap_or(0.0).max(rate));
            // The sender is at its end when it was told to go faster and did not, twice: once it may have been
            // kept from running.
            let offered = found.offered();
            let short = offered < rate * SHORT && offered < fastest * PRECISION;
            stuck = if short { stuck + 1 } else { 0 };
            fastest = offered.max(fastest);
            if stuck == 2 {
                break;
            }
        } else {
            high = Some(rate);
        }
        rate = match (low, high) {
            (Some(low), Some(high)) if high / low <= PRECISION => break,
            (Some(low), Some(high)) => (low * high).sqrt(),
            (Some(low), None) => low * step,
            (None, _) if rate / step < LOWEST => break,
            (None, _) => rate / step,
        };
    }
    match best {
        Some(best) => Ok(best),
        None => bail!("more than 1 % is lost even at {rate:.0} packets/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that carries `limit` packets a second, and a sender that manages `most`.
    fn link(limit: f64, most: f64) -> impl FnMut(f64) -> Result<Trial> {
        move |rate| {
            let sent = rate.min(most);
            Ok(Trial {
                sent: sent as u64,
                arrived: sent.min(limit) as u64,
                seconds: 1.0,
            })
        }
    }

    #[test]
    fn the_limit_is_found_from_below_and_from_above() {
        for start in [1_000.0, 40_000.0, 900_000.0] {
            let found = highest(start, 2.0, link(50_000.0, 1e9)).unwrap();
            assert!(
                (48_000.0..=50_000.0).contains(&found),
                "{found} from {start}"
            );
        }
    }

    #[test]
    fn a_sender_that_cannot_go_faster_ends_the_search() {
        let mut trials = 0;
        let mut inner = link(1e9, 30_000.0);
        let found = highest(16_000.0, 2.0, |rate| {
            trials += 1;
            inner(rate)
        });
        assert_eq!(found.unwrap(), 30_000.0);
        assert!(trials <= 5, "{trials}");
    }

    #[test]
    fn one_trial_spoiled_by_something_else_does_not_lower_the_result() {
        let mut inner = link(50_000.0, 1e9);
        let mut count = 0;
        let found = highest(10_000.0, 2.0, |rate| {
            count += 1;
            let mut trial = inner(rate)?;
            trial.arrived -= if count == 2 { trial.arrived / 2 } else { 0 };
            Ok(trial)
        });
        assert!(found.unwrap() > 48_000.0);
    }

    #[test]
    fn a_link_that_loses_two_percent_at_every_rate_has_no_rate() {
        let found = highest(10_000.0, 2.0, |rate| {
            let sent = rate as u64 + 100;
            Ok(Trial {
                sent,
                arrived: sent * 98 / 100,
                seconds: 1.0,
            })
        });
        assert!(found.is_err());
    }
}
