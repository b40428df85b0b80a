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

/// Sockets that ask in a row.
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
    /// Its place in the row.
    pub(crate) place: usize,
    /// When it was answered.
    pub(crate) at: Instant,
    pub(crate) local: u16,
    pub(crate) external: u16,
    /// It had to ask again, so nobody knows when the NAT saw it first.
    pub(crate) again: bool,
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

    /// What these samples show, in the order in which they were sent.
    pub(crate) fn of(samples: &[Sample]) -> Self {
        if samples.len() < ENOUGH {
            return Self::Unknown;
        }
        let preserved = samples
            .iter()
            .filter(|sample| sample.local == sample.external);
        // One of them may have been in use by somebody else.
        if preserved.count() + 1 >= samples.len() {
            return Self::Preserving;
        }
        let once = samples.iter().filter(|sample| !sample.again);
        let once: Vec<Sample> = once.copied().collect();
        let found = in_order(samples)
            .or_else(|| in_order(&once))
            .or_else(|| in_some_order(samples));
        if let Some(delta) = found {
            return Self::Sequential { delta };
        }
        let ports = samples.iter().map(|sample| sample.external);
        let (low, high) = ports.fold((u16::MAX, 0), |(low, high), port| {
            (low.min(port), high.max(port))
        });
        Self::Random { low, high }
    }
}

/// The step from each sample to the next one, if most agree.
fn in_order(samples: &[Sample]) -> Option<i8> {
    let steps: Vec<i32> = samples
        .windows(2)
        .map(|pair| step(pair[0], pair[1]))
        .collect();
    let missing = SAMPLES.saturating_sub(samples.len());
    let agreed = |delta: &i32| {
        let agreeing = steps.iter().filter(|step| *step == delta).count();
        agreeing + missing >= AGREEING && agreeing * 2 > steps.len()
    };
    let mut deltas = (-MAX_DELTA..=MAX_DELTA).filter(|delta| *delta != 0);
    let delta = deltas.find(agreed)?;
    (samples.len() >= ENOUGH)
        .then(|| i8::try_from(delta).ok())
        .flatten()
}

/// The same for samples that have overtaken each other on the way to the NAT: they fill a range evenly, and most pairs of
/// them are in order.
fn in_some_order(samples: &[Sample]) -> Option<i8> {
    let first = *samples.first()?;
    let mut offsets: Vec<i32> = samples.iter().map(|sample| step(first, *sample)).collect();
    let later = |at: usize| offsets[at + 1..].iter().map(move |other| (at, other));
    let pairs: Vec<bool> = (0..offsets.len())
        .flat_map(later)
        .map(|(at, other)| *other > offsets[at])
        .collect();
    let rising = pairs.iter().filter(|rises| **rises).count();
    offsets.sort_unstable();
    let steps: Vec<i32> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let agreed = |delta: &i32| steps.iter().filter(|step| *step == delta).count() >= AGREEING;
    let delta = i8::try_from((1..=MAX_DELTA).find(agreed)?).ok()?;
    // By chance half of the pairs would be.
    match rising * 10 / pairs.len().max(1) {
        7.. => Some(delta),
        0..=2 => Some(-delta),
        _ => None,
    }
}

/// Ports are a ring.
fn step(from: Sample, to: Sample) -> i32 {
    i32::from(to.external.wrapping_sub(from.external) as i16)
}

/// Ports a second that others took between two samples of a NAT that counts.
pub(crate) fn foreign(delta: i8, first: Sample, late: Sample) -> f64 {
    let advance = step(first, late) / i32::from(delta);
    let own = i32::try_from(late.place - first.place).unwrap_or(0);
    let elapsed = late.at.since(first.at).max(Duration::from_millis(1));
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
            place: at,
            at: Instant::from_boot(Duration::from_millis(1_000 + 100 * at as u64)),
            local: 40_000 + 7 * at as u16,
            external: *external,
            again: false,
        };
        externals.iter().enumerate().map(sample).collect()
    }

    fn of(externals: &[u16]) -> Allocation {
        Allocation::of(&samples(externals))
    }

    #[test]
    fn ports_of_our_own_are_preserved_even_if_one_was_in_use() {
        let mut taken = samples(&[40_000, 40_007, 40_014, 40_021, 40_028, 40_035]);
        assert_eq!(Allocation::of(&taken), Allocation::Preserving);
        taken[3].external = 9;
        assert_eq!(Allocation::of(&taken), Allocation::Preserving);
        taken[4].external = 10;
        assert_ne!(Allocation::of(&taken), Allocation::Preserving);
    }

    #[test]
    fn a_step_that_four_of_five_agree_on_is_a_sequence_also_around_the_end_of_the_range() {
        for delta in [-5i8, -1, 1, 2, 5] {
            let ports: Vec<u16> = (0..6)
                .map(|at| 65_533u16.wrapping_add_signed(i16::from(delta) * at))
                .collect();
            assert_eq!(of(&ports), Allocation::Sequential { delta });
        }
        let busy = of(&[100, 101, 102, 107, 108, 109]);
        assert_eq!(busy, Allocation::Sequential { delta: 1 });
    }

    #[test]
    fn ports_that_others_take_are_counted_until_a_late_sample() {
        let row = samples(&[100, 101, 102, 103, 104, 105, 110]);
        let rate = foreign(1, row[0], row[6]);
        assert!((rate - 4.0 / 0.6).abs() < 1e-9, "{rate}");
        let row = samples(&[9, 7, 5, 3, 1, 65_535, 65_533]);
        assert_eq!(foreign(-2, row[0], row[6]), 0.0);
        let rate = foreign(-2, row[2], samples(&[0, 0, 0, 0, 0, 0, 65_531])[6]);
        assert!((rate - 1.0 / 0.4).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn samples_that_were_sent_again_or_overtook_each_other_still_show_the_step() {
        let counted = |delta| Allocation::Sequential { delta };
        // The third came again after all others.
        let mut late = samples(&[100, 101, 105, 102, 103, 104]);
        late[2].again = true;
        assert_eq!(Allocation::of(&late), counted(1));
        assert_eq!(of(&[101, 100, 102, 103, 105, 104]), counted(1));
        assert_eq!(of(&[102, 104, 100, 98, 96, 94]), counted(-2));
        let (low, high) = (100, 105);
        let shuffled = of(&[103, 100, 105, 101, 104, 102]);
        assert_eq!(shuffled, Allocation::Random { low, high }, "in no order");
    }

    #[test]
    fn anything_else_is_random_within_a_block() {
        for ports in [
            [100, 101, 102, 107, 112, 113],
            [100, 106, 112, 118, 124, 130],
            [100, 100, 100, 100, 100, 100],
            [100, 115, 103, 131, 122, 108],
        ] {
            let (low, high) = (100, *ports.iter().max().unwrap());
            assert_eq!(of(&ports), Allocation::Random { low, high }, "{ports:?}");
        }
    }

    #[test]
    fn too_few_samples_show_nothing() {
        assert_eq!(of(&[1, 2, 3]), Allocation::Unknown);
        assert_eq!(of(&[]), Allocation::Unknown);
    }

    #[test]
    fn predictions_stay_among_the_ports_that_are_given_out() {
        assert_eq!(predicted(5_000, 1, 20), 5_020);
        assert_eq!(predicted(5_000, -3, 20), 4_940);
        assert_eq!(predicted(65_530, 1, 20), 1_038);
        assert_eq!(predicted(1_030, -1, 20), 65_522);
    }
}
