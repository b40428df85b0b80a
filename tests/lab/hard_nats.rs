//! NATs that the plain punch cannot open: a port is foretold, or many ports meet many ports.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    Allocation, Behaviour, Dependence, Internet, Lab, Nat, Node, Pool, Relay, Router, TwoNats,
    WanInput, scenario, within,
};

use super::{Pair, SOON};

/// Longest time to a direct path where ports are foretold: the plain punch may fail first.
const FORETOLD: Duration = Duration::from_secs(30);
/// And where many ports have to meet, on a machine busy with other tests: one attempt takes 25 s at most.
const MET: Duration = Duration::from_secs(60);

/// The NAT that is hardest to reach, with every port.
const fn symmetric(allocation: Allocation) -> Nat {
    use Dependence::AddressAndPort;
    Nat::Modelled(Behaviour::new(AddressAndPort, AddressAndPort, allocation).whole())
}

const PRESERVING: Nat = symmetric(Allocation::Preserving);
const SEQUENTIAL: Nat = symmetric(Allocation::Sequential);

/// They are relayed first, then direct, and then data flows both ways.
fn ends_direct(pair: &Pair, limit: Duration) -> Result<()> {
    pair.settle_within("direct", limit)?;
    pair.a.icmp(pair.b.overlay()?, 20)?;
    pair.b.icmp(pair.a.overlay()?, 20)
}

fn behind(lab: &Lab, nat_a: Nat, nat_b: Nat, limit: Duration) -> Result<()> {
    ends_direct(&Pair::behind(lab, nat_a, nat_b)?, limit)
        .with_context(|| format!("{nat_a:?} × {nat_b:?}"))
}

#[test]
fn a_home_router_and_a_symmetric_nat_that_preserves_ports_end_direct() {
    scenario(|lab| behind(lab, Nat::Masquerade, PRESERVING, FORETOLD));
}

#[test]
fn a_home_router_and_a_symmetric_nat_that_counts_end_direct() {
    scenario(|lab| behind(lab, Nat::Masquerade, SEQUENTIAL, FORETOLD));
}

#[test]
fn two_symmetric_nats_that_count_end_direct() {
    scenario(|lab| behind(lab, SEQUENTIAL, SEQUENTIAL, FORETOLD));
}

#[test]
fn a_symmetric_nat_that_counts_and_one_that_preserves_ports_end_direct() {
    scenario(|lab| behind(lab, SEQUENTIAL, PRESERVING, FORETOLD));
}

#[test]
fn a_home_router_and_a_symmetric_nat_with_random_ports_end_direct() {
    // `masquerade fully-random` gives out every port from 1024 on, so chance is what it is in the world.
    scenario(|lab| behind(lab, Nat::Masquerade, Nat::Symmetric, MET));
}

#[test]
fn a_full_cone_nat_and_a_symmetric_one_with_random_ports_end_direct() {
    use {Allocation::Preserving, Dependence::EndpointIndependent};
    let cone = Behaviour::new(EndpointIndependent, EndpointIndependent, Preserving).whole();
    scenario(|lab| behind(lab, Nat::Modelled(cone), Nat::Symmetric, SOON));
}

#[test]
fn one_router_that_takes_unexpected_packets_for_its_own_is_punched_through() {
    scenario(|lab| {
        for (a, b) in [
            (WanInput::Accept, WanInput::Drop),
            (WanInput::Drop, WanInput::Accept),
        ] {
            let mut net = TwoNats::with_inputs((Nat::Masquerade, a), (Nat::Masquerade, b))?;
            // With time on the way both sides send before either hears.
            net.internet.delay(Duration::from_millis(20))?;
            ends_direct(&Pair::on(lab, net)?, FORETOLD)
                .with_context(|| format!("{a:?} × {b:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_symmetric_nat_that_counts_and_takes_unexpected_packets_for_its_own_ends_direct() {
    scenario(|lab| {
        let accepting = (SEQUENTIAL, WanInput::Accept);
        let mut net = TwoNats::with_inputs((Nat::Masquerade, WanInput::Drop), accepting)?;
        net.internet.delay(Duration::from_millis(20))?;
        ends_direct(&Pair::on(lab, net)?, FORETOLD)
    });
}

#[test]
fn a_nat_that_gives_each_socket_another_address_ends_direct_and_is_explained_where_it_cannot() {
    use Dependence::AddressAndPort;
    scenario(|lab| {
        let by_socket = Nat::Pooled(Pool::BySocket);
        behind(lab, Nat::Masquerade, by_socket, SOON)?;
        behind(lab, by_socket, SEQUENTIAL, FORETOLD)?;
        let symmetric = Behaviour::new(AddressAndPort, AddressAndPort, Allocation::Random);
        let pair = Pair::behind(lab, Nat::Pooled(Pool::Any), Nat::Modelled(symmetric))?;
        pair.settle("relay")?;
        // Once both NATs have been measured.
        let reason = "this host's NAT gives each mapping any of several addresses";
        within("the reason to be told", SOON, || {
            let explained = pair.a.explain("b")?;
            let told = explained["summary"]
                .as_str()
                .is_some_and(|text| text.contains(reason));
            Ok(told && explained["own_nat"]["pooling"] == "arbitrary")
        })?;
        Ok(())
    });
}

/// Two hosts, each behind a router of its own; the first router is a customer's of a carrier.
struct Carried {
    a: Node,
    b: Node,
    /// What holds the rest together.
    _world: (Internet, Relay, [Router; 3]),
}

impl Carried {
    /// `b` is another customer of the same carrier, or has the internet before its router.
    fn start(lab: &Lab, carrier: Nat, same: bool) -> Result<Self> {
        let mut internet = Internet::new(false)?;
        let (relay, relay_address) = internet.host("relay")?;
        let mut carrier = internet.carrier("carrier", carrier)?;
        let mut home_a = carrier.router("home-a", Nat::Masquerade, WanInput::Drop)?;
        let mut home_b = if same {
            carrier.router("home-b", Nat::Masquerade, WanInput::Drop)?
        } else {
            internet.router("home-b", Nat::Masquerade, WanInput::Drop)?
        };
        let ((a, _), (b, _)) = (home_a.host("a")?, home_b.host("b")?);
        let relay = Relay::start(lab, &relay, relay_address)?;
        let (mut a, mut b) = Node::pair(lab, &a, &b, &[&relay.url])?;
        for node in [&mut a, &mut b] {
            node.start()?;
            node.wait_relay(SOON)?;
        }
        let routers = [carrier, home_a, home_b];
        Ok(Self {
            a,
            b,
            _world: (internet, relay, routers),
        })
    }

    fn ends_direct(&self, limit: Duration) -> Result<()> {
        let b = self.b.overlay()?;
        within("a to reach b", SOON, || Ok(self.a.icmp(b, 1).is_ok()))?;
        self.a.wait_path("b", "direct", limit)?;
        self.b.wait_path("a", "direct", limit)?;
        self.a.icmp(b, 20)
    }
}

#[test]
fn a_home_router_behind_a_carriers_nat_ends_direct() {
    scenario(|lab| Carried::start(lab, Nat::Masquerade, false)?.ends_direct(FORETOLD));
}

#[test]
fn a_home_router_behind_a_carriers_symmetric_nat_that_counts_ends_direct() {
    scenario(|lab| Carried::start(lab, SEQUENTIAL, false)?.ends_direct(FORETOLD));
}

#[test]
fn two_customers_of_a_carrier_that_hairpins_end_direct() {
    use {Allocation::Preserving, Dependence::EndpointIndependent};
    let carrier = Behaviour::new(EndpointIndependent, EndpointIndependent, Preserving).whole();
    scenario(|lab| {
        let carried = Carried::start(lab, Nat::Modelled(carrier.hairpin()), true)?;
        carried.ends_direct(FORETOLD)?;
        let remote = carried.a.peer("b")?["path"]["remote"].clone();
        ensure!(
            remote
                .as_str()
                .is_some_and(|remote| remote.starts_with("44.128.2.2:")),
            "by the carrier's outside: {remote}"
        );
        Ok(())
    });
}
