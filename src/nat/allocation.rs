//! Which external port a NAT gives to a new mapping (RFC 4787, section 4.2).

use std::time::Duration;

use crate::time::Instant;

/// How the ports of new mappings are chosen, as far as fresh sockets have shown it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocation {
    /// Not measured.
    #[default]
    Unknown,
    /// The port of the host's own socket, as long as nobody else has it.
    Preserving,
    /// The one before plus this step.
    Sequential {
        /// From -5 to 5, never 0.
        delta: i8,
    },
    /// No rule was found.
    Random {
        /// Lowest port that was seen.
        low: u16,
        /// Highest port that was seen.
        high: u16,
    },
}

/// Sockets that are asked about one after the other.
pub(crate) const SAMPLES: usize = 6;
/// Largest step that counts as a rule.
const MAX_DELTA: i32 = 5;
/// Steps that have to agree, of [`SAMPLES`] - 1: another host behind the NAT may take a port between two of ours.
const AGREEING: usize = 4;
/// Samples that a rule has to be drawn from at least.
const ENOUGH: usize = 4;

/// What became of one fresh socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) local: u16,
    pub(crate) external: u16,
}

impl Allocation {
    /// As in `netcheck --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Preserving => "preserving",
            Self::Sequential { .. } => "sequential",
            Self::Random { .. } => "random",
        }
    }

    /// The step of a sequential one.
    pub const fn delta(self) -> Option<i8> {
        match self {
            Self::Sequential { delta } => Some(delta),
            _ => None,
        }
    }

    /// What these samples show, in the order in which they were taken, and how many ports a second others take.
    pub(crate) fn of(samples: &[Sample]) -> (Self, f64) {
        if samples.len() < ENOUGH {
            return (Self::Unknown, 0.0);
        }
        let preserved = samples
            .iter()
            .filter(|sample| sample.local == sample.external);
        // One of them may have been in use by somebody else.
        if preserved.count() + 1 >= samples.len() {
            return (Self::Preserving, 0.0);
        }
        let steps: Vec<i32> = samples
            .windows(2)
            .map(|pair| step(pair[0], pair[1]))
            .collect();
        let missing = SAMPLES - samples.len();
        for delta in (-MAX_DELTA..=MAX_DELTA).filter(|delta| *delta != 0) {
            let agreeing = steps.iter().filter(|step| **step == delta).count();
            if agreeing + missing >= AGREEING && agreeing * 2 > steps.len() {
                let delta = i8::try_from(delta).unwrap_or(1);
                return (Self::Sequential { delta }, foreign(samples, delta));
            }
        }
        let ports = samples.iter().map(|sample| sample.external);
        let (low, high) = ports.fold((u16::MAX, 0), |(low, high), port| {
            (low.min(port), high.max(port))
        });
        (Self::Random { low, high }, 0.0)
    }
}

/// Ports are a ring.
fn step(from: Sample, to: Sample) -> i32 {
    i32::from(to.external.wrapping_sub(from.external) as i16)
}

/// Ports a second that were taken by others while we sampled.
fn foreign(samples: &[Sample], delta: i8) -> f64 {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return 0.0;
    };
    let advance = step(*first, *last) / i32::from(delta);
    let own = i32::try_from(samples.len()).unwrap_or(0) - 1;
    let elapsed = last.at.since(first.at).max(Duration::from_millis(1));
    f64::from((advance - own).max(0)) / elapsed.as_secs_f64()
}

/// The port that lies `allocations` further on, among those that NATs give out.
pub(crate) fn predicted(last: u16, delta: i8, allocations: u16) -> u16 {
    const FIRST: i32 = 1_024;
    const PORTS: i32 = 65_536 - FIRST;
    let advance = i32::from(delta) * i32::from(allocations);
    let port = FIRST + (i32::from(last) - FIRST + advance).rem_euclid(PORTS);
    u16::try_from(port).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(externals: &[u16]) -> Vec<Sample> {
        let sample = |(at, external): (usize, &u16)| Sample {
            at: Instant::from_boot(Duration::from_millis(1_000 + 100 * at as u64)),
            local: 40_000 + 7 * at as u16,
            external: *external,
        };
        externals.iter().enumerate().map(sample).collect()
    }

    #[test]
    fn ports_of_our_own_are_preserved_even_if_one_was_in_use() {
        let mut taken = samples(&[40_000, 40_007, 40_014, 40_021, 40_028, 40_035]);
        assert_eq!(Allocation::of(&taken).0, Allocation::Preserving);
        taken[3].external = 9;
        assert_eq!(Allocation::of(&taken).0, Allocation::Preserving);
        taken[4].external = 10;
        assert_ne!(Allocation::of(&taken).0, Allocation::Preserving);
    }

    #[test]
    fn a_step_that_four_of_five_agree_on_is_a_sequence_also_around_the_end_of_the_range() {
        for delta in [-5i8, -1, 1, 2, 5] {
            let ports: Vec<u16> = (0..6)
                .map(|at| 65_533u16.wrapping_add_signed(i16::from(delta) * at))
                .collect();
            let expected = Allocation::Sequential { delta };
            assert_eq!(Allocation::of(&samples(&ports)), (expected, 0.0));
        }
        let (busy, foreign) = Allocation::of(&samples(&[100, 101, 102, 107, 108, 109]));
        assert_eq!(busy, Allocation::Sequential { delta: 1 });
        assert!(
            (foreign - 8.0).abs() < 1e-9,
            "4 ports in half a second: {foreign}"
        );
    }

    #[test]
    fn anything_else_is_random_within_a_block() {
        for ports in [
            [100, 101, 102, 107, 112, 113],
            [100, 106, 112, 118, 124, 130],
            [100, 100, 100, 100, 100, 100],
        ] {
            let (found, _) = Allocation::of(&samples(&ports));
            let (low, high) = (100, *ports.iter().max().unwrap());
            assert_eq!(found, Allocation::Random { low, high }, "{ports:?}");
        }
    }

    #[test]
    fn too_few_samples_show_nothing() {
        assert_eq!(Allocation::of(&samples(&[1, 2, 3])).0, Allocation::Unknown);
        assert_eq!(Allocation::of(&[]).0, Allocation::Unknown);
    }

    #[test]
    fn predictions_stay_among_the_ports_that_are_given_out() {
        assert_eq!(predicted(5_000, 1, 20), 5_020);
        assert_eq!(predicted(5_000, -3, 20), 4_940);
        assert_eq!(predicted(65_530, 1, 20), 1_038);
        assert_eq!(predicted(1_030, -1, 20), 65_522);
    }
}
