//! Which of two usable paths is better.

use std::time::Duration;

use super::{Path, PathKey};
use crate::engine::PathKind;

/// Inside a tier a path is left only for one that is faster by this much *and* by [`MARGIN_PERCENT`].
const MARGIN: Duration = Duration::from_millis(5);
/// See [`MARGIN`].
const MARGIN_PERCENT: u32 = 20;
/// IPv6 is preferred over IPv4 that is this much faster: no NAT mapping to lose.
const IPV6_BONUS: Duration = Duration::from_millis(3);

/// Round trip time as it counts for a choice. A path that was never measured is the worst of its tier.
fn effective_rtt(path: &Path) -> Duration {
    let rtt = path.rtt().unwrap_or(Duration::MAX);
    match path.key {
        PathKey::Direct(_, remote) if remote.is_ipv6() => rtt.saturating_sub(IPV6_BONUS),
        _ => rtt,
    }
}

fn tier(path: &Path) -> PathKind {
    path.key.kind()
}

/// True when `candidate` should take the place of `current`.
pub(crate) fn is_better(candidate: &Path, current: &Path) -> bool {
    if tier(candidate) != tier(current) {
        return tier(candidate) < tier(current);
    }
    let (new, old) = (effective_rtt(candidate), effective_rtt(current));
    let gain = old.saturating_sub(new);
    gain >= MARGIN && gain >= old / 100 * MARGIN_PERCENT
}
