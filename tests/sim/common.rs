//! Shorthands of the scenarios.

use std::time::Duration;

use mesh_tests::sim::{Allocation, Filtering, FlowId, Mapping, NatConfig, Pair, Sim, Site};

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A home router, which the plain punch opens.
pub(crate) const fn home() -> Site {
    Site::nat(NatConfig::home())
}

/// A router that the plain punch cannot open from behind another one like it.
pub(crate) const fn hard() -> Site {
    Site::nat(NatConfig::new(Mapping::Apdm, Filtering::Apdf).allocation(Allocation::Random))
}

/// Starts an echo stream and waits until both ends of the pair send directly.
pub(crate) fn until_direct(sim: &mut Sim, pair: Pair) -> FlowId {
    let flow = sim.echo(pair.a, pair.b);
    sim.run_until("a direct path", secs(10), |sim| {
        sim.is_direct(pair.a, pair.b)
    });
    flow
}

/// Starts an echo stream and waits for its first answer, over the relay.
pub(crate) fn until_relayed(sim: &mut Sim, pair: Pair) -> FlowId {
    let flow = sim.echo(pair.a, pair.b);
    sim.run_until("an answer over the relay", secs(10), |sim| {
        sim.is_relayed(pair.a, pair.b) && sim.stream(flow).works()
    });
    flow
}

/// Waits until a packet that is sent from now on is answered; returns how long after now that is.
pub(crate) fn until_works(sim: &mut Sim, what: &str, flow: FlowId, limit: Duration) -> Duration {
    let since = sim.now();
    sim.run_until(what, limit, |sim| sim.stream(flow).works_since(since))
}
