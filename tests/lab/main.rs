//! The real programs in network namespaces behind real NATs; see `mesh_tests::lab`.
//!
//! Needs root; without it every test says so and does nothing.

mod configuration;
mod control;
mod endpoints;
mod hard_nats;
mod healing;
mod interop;
mod kernel;
mod lan;
mod lifecycle;
mod metrics;
mod moving;
mod mtu;
mod nats;
mod netcheck;
mod noise;
mod paths;
mod pinholes;
mod portmap;
mod routers;
mod switches;
mod trust;

use std::time::Duration;

use anyhow::Result;
use mesh_tests::lab::{Lab, Nat, Node, Relay, TwoNats};

/// Longest that something which should take well under a second may take on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(20);

/// Two running hosts behind NATs, and their relay.
struct Pair {
    net: TwoNats,
    relay: Relay,
    a: Node,
    b: Node,
}

impl Pair {
    /// Starts everything on a network of one's own, and waits until both hosts can be called.
    fn on(lab: &Lab, net: TwoNats) -> Result<Self> {
        let relay = Relay::start(lab, &net.relay, net.relay_address)?;
        let (mut a, mut b) = Node::pair(lab, &net.a, &net.b, &[&relay.url])?;
        for node in [&mut a, &mut b] {
            node.start()?;
            node.wait_relay(SOON)?;
        }
        Ok(Self { net, relay, a, b })
    }

    fn behind(lab: &Lab, nat_a: Nat, nat_b: Nat) -> Result<Self> {
        Self::on(lab, TwoNats::new(nat_a, nat_b)?)
    }

    /// Waits until an ICMP ping from a to b is answered, and both ends have a path of this kind.
    fn settle(&self, kind: &str) -> Result<()> {
        self.settle_within(kind, SOON)
    }

    /// As [`Self::settle`], where that may take longer.
    fn settle_within(&self, kind: &str, limit: Duration) -> Result<()> {
        let b = self.b.overlay()?;
        mesh_tests::lab::within("a to reach b", SOON, || Ok(self.a.icmp(b, 1).is_ok()))?;
        self.a.wait_path("b", kind, limit)?;
        self.b.wait_path("a", kind, limit)?;
        Ok(())
    }
}
