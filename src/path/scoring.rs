//! Which of two usable paths is better.

use std::time::Duration;

use super::reason::PathReason;
use super::{Path, PathKey};
use crate::engine::PathKind;

/// Inside a tier a path is left only for one that is faster by this much *and* by [`MARGIN_PERCENT`].
const MARGIN: Duration = Duration::from_millis(5);
/// See [`MARGIN`].
const MARGIN_PERCENT: u32 = 20;
/// A path of a better tier is left only if it is slower by this much *and* by [`WIDE_FACTOR`], and returned to when
/// neither is the case any more with half the margin.
const WIDE_MARGIN: Duration = Duration::from_millis(100);
/// See [`WIDE_MARGIN`].
const WIDE_FACTOR: u32 = 3;
/// IPv6 is preferred over IPv4 that is this much faster: no NAT mapping to lose.
const IPV6_BONUS: Duration = Duration::from_millis(3);
/// What a lost packet in a hundred counts as. A TCP stream repeats it after a round trip at the least.
const LOSS_PERCENT: Duration = Duration::from_millis(10);
/// Loss below this is left to chance: a hundredth.
const NO_LOSS: f32 = 0.01;

/// Round trip time as it counts for a choice, with what loss adds to it. A path that was never measured is the worst of
/// its tier.
fn cost(path: &Path) -> Duration {
    let Some(rtt) = path.rtt() else {
        return Duration::MAX;
    };
    let rtt = match path.key {
        PathKey::Direct(_, remote) if remote.is_ipv6() => rtt.saturating_sub(IPV6_BONUS),
        _ => rtt,
    };
    rtt + loss_cost(path)
}

fn loss_cost(path: &Path) -> Duration {
    let loss = path.loss().filter(|loss| *loss > NO_LOSS);
    LOSS_PERCENT.mul_f32(loss.unwrap_or_default() * 100.0)
}

fn tier(path: &Path) -> PathKind {
    path.key.kind()
}

/// True if the path of a better tier is so much worse than the other that it loses its place.
fn is_outweighed(path: &Path, other: &Path, margin: Duration, factor: u32) -> bool {
    path.rtt().is_some() && exceeds(cost(path), cost(other), margin, factor)
}

fn exceeds(cost: Duration, other: Duration, margin: Duration, factor: u32) -> bool {
    cost >= other.saturating_add(margin) && cost >= other.saturating_mul(factor)
}

/// True if a path with this round trip time is so much better than the current one that its tier does not count.
pub(crate) fn is_wide_gain(sample: Duration, current: &Path) -> bool {
    exceeds(cost(current), sample, WIDE_MARGIN, WIDE_FACTOR)
}

/// True when `candidate` should take the place of `current`.
pub(crate) fn is_better(candidate: &Path, current: &Path) -> bool {
    if tier(candidate) < tier(current) {
        return !is_outweighed(candidate, current, WIDE_MARGIN / 2, WIDE_FACTOR - 1);
    }
    if tier(candidate) > tier(current) {
        return is_outweighed(current, candidate, WIDE_MARGIN, WIDE_FACTOR);
    }
    let (new, old) = (cost(candidate), cost(current));
    let gain = old.saturating_sub(new);
    gain >= MARGIN && gain >= old / 100 * MARGIN_PERCENT
}

/// Why the one is better than the other.
pub(crate) fn advantage(better: &Path, worse: &Path) -> PathReason {
    let lossy = loss_cost(worse) > loss_cost(better) + MARGIN;
    match (tier(better), tier(worse)) {
        (PathKind::Direct, PathKind::Relay) => PathReason::Direct,
        _ if lossy => PathReason::LessLoss,
        _ => PathReason::Faster,
    }
}
