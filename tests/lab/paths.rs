//! How two hosts reach each other: first over the relay, then by the best way that their NATs allow.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    Allocation, Behaviour, Dependence, Internet, Lab, Nat, Node, Pattern, Received, Relay,
    Settings, TwoNats, WanInput, receive, scenario, send, within,
};

use super::{Pair, SOON};

const MB: u64 = 1_000_000;
const NO_PAUSE: Duration = Duration::ZERO;

/// Copies over TCP from one overlay to the other, pausing as `pace` says.
pub(crate) fn copy(
    from: &Node,
    to: &Node,
    bytes: u64,
    pace: impl FnMut(u64) -> Duration,
) -> Result<Received> {
    let listener = to.ns.listen(SocketAddr::new(to.overlay()?.into(), 9000))?;
    let remote = listener.local_addr()?;
    let pattern = Pattern::new(bytes, from.lab().marker());
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener));
        let mut stream = from.ns.connect(remote)?;
        let sent = send(&mut stream, pattern, bytes, pace).context("sending")?;
        let received = receiver.join().expect("no panic").context("receiving")?;
        ensure!(
            received.bytes == bytes,
            "{} of {bytes} bytes arrived",
            received.bytes
        );
        ensure!(received.hash == sent, "what arrived is not what was sent");
        Ok(received)
    })
}

#[test]
fn two_masqueraded_hosts_are_relayed_first_and_direct_soon_after() {
    scenario(|lab| {
        let mut net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        net.internet.delay(Duration::from_millis(15))?;
        let pair = Pair::on(lab, net)?;
        let first = pair.a.ping("b")?.context("the first ping is answered")?;
        ensure!(
            first.starts_with("relay"),
            "the first answer came via {first}"
        );
        pair.settle("direct")?;
        let later = pair.a.ping("b")?.context("a later ping is answered")?;
        ensure!(
            later.starts_with(&format!("{}:", pair.net.nat_b.wan)),
            "a later answer came via {later}"
        );
        pair.a.icmp(pair.b.overlay()?, 20)?;
        pair.a.icmp(IpAddr::from([10, 77, 0, 2]), 20)?;
        pair.b.icmp(pair.a.overlay()?, 20)
    });
}

#[test]
fn a_tcp_stream_crosses_while_the_path_moves_from_relay_to_direct() {
    scenario(|lab| {
        const TOTAL: u64 = 200 * MB;
        const BEFORE: u64 = 40 * MB;
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.net
            .internet
            .block_udp(pair.net.nat_a.wan, pair.net.nat_b.wan)?;
        pair.settle("relay")?;
        let (sent, direct) = (AtomicU64::new(0), AtomicBool::new(false));
        let moved_at = std::thread::scope(|scope| -> Result<u64> {
            let stream = scope.spawn(|| {
                copy(&pair.a, &pair.b, TOTAL, |so_far| {
                    sent.store(so_far, Ordering::Relaxed);
                    // Full speed up to the middle and after the move; between them slowly, but without a break, at about
                    // 2 MB/s: the next attempt to punch may be 15 s away.
                    let wait = so_far >= BEFORE && !direct.load(Ordering::Relaxed);
                    if wait {
                        Duration::from_millis(30)
                    } else {
                        NO_PAUSE
                    }
                })
            });
            within("the first part to be sent", SOON * 2, || {
                Ok(sent.load(Ordering::Relaxed) >= BEFORE || stream.is_finished())
            })?;
            ensure!(
                pair.a.path_kind("b")?.as_deref() == Some("relay"),
                "the first part goes over the relay"
            );
            pair.net.internet.unblock()?;
            let moved = pair.a.wait_path("b", "direct", Duration::from_secs(70));
            let moved_at = sent.load(Ordering::Relaxed);
            direct.store(true, Ordering::Relaxed);
            stream.join().expect("no panic")?;
            moved?;
            Ok(moved_at)
        })?;
        ensure!(
            (BEFORE..TOTAL).contains(&moved_at),
            "the path moved after {moved_at} bytes"
        );
        ensure!(
            pair.a.path_kind("b")?.as_deref() == Some("direct"),
            "it stays direct"
        );
        Ok(())
    });
}

#[test]
fn two_symmetric_nats_with_random_ports_stay_relayed_and_carry_data() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Symmetric, Nat::Symmetric)?;
        pair.settle("relay")?;
        // Six seconds: longer than the first round of punching takes to give up.
        pair.a.icmp(pair.b.overlay()?, 120)?;
        copy(&pair.a, &pair.b, 20 * MB, |_| NO_PAUSE)?;
        copy(&pair.b, &pair.a, 20 * MB, |_| NO_PAUSE)?;
        ensure!(pair.a.path_kind("b")?.as_deref() == Some("relay"));
        ensure!(pair.b.path_kind("a")?.as_deref() == Some("relay"));
        Ok(())
    });
}

const fn modelled(mapping: Dependence, filtering: Dependence, allocation: Allocation) -> Nat {
    Nat::Modelled(Behaviour::new(mapping, filtering, allocation))
}

fn ends_direct(lab: &Lab, nat_a: Nat, nat_b: Nat) -> Result<()> {
    Pair::behind(lab, nat_a, nat_b)?
        .settle("direct")
        .with_context(|| format!("{nat_a:?} × {nat_b:?}"))
}

#[test]
fn a_full_cone_nat_is_reached_directly_by_a_symmetric_one() {
    use {Allocation::Preserving, Dependence::EndpointIndependent};
    let open = modelled(EndpointIndependent, EndpointIndependent, Preserving);
    scenario(|lab| ends_direct(lab, open, Nat::Symmetric));
}

#[test]
fn a_symmetric_nat_reaches_an_address_restricted_one_directly() {
    use {
        Allocation::Random,
        Dependence::{Address, EndpointIndependent},
    };
    let restricted = modelled(EndpointIndependent, Address, Random);
    scenario(|lab| ends_direct(lab, Nat::Symmetric, restricted));
}

#[test]
fn two_port_restricted_nats_with_random_ports_end_direct() {
    use {
        Allocation::Random,
        Dependence::{AddressAndPort, EndpointIndependent},
    };
    let restricted = modelled(EndpointIndependent, AddressAndPort, Random);
    scenario(|lab| ends_direct(lab, restricted, restricted));
}

#[test]
fn routers_that_take_unexpected_packets_for_their_own_are_punched_through() {
    scenario(|lab| {
        let mut net = TwoNats::with_input(Nat::Masquerade, Nat::Masquerade, WanInput::Accept)?;
        // With time on the way, both sides send before either hears: without an opener that dies on its way, the first packet
        // of each would take the other's place in the router's table.
        net.internet.delay(Duration::from_millis(20))?;
        Pair::on(lab, net)?.settle("direct")
    });
}

#[test]
fn routers_that_reject_unexpected_packets_are_punched_through() {
    scenario(|lab| {
        let net = TwoNats::with_input(Nat::Masquerade, Nat::Masquerade, WanInput::Reject)?;
        Pair::on(lab, net)?.settle("direct")
    });
}

#[test]
fn hosts_on_one_lan_meet_on_it() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay, relay_address) = internet.host("relay")?;
        let mut router = internet.router("router", Nat::Masquerade, WanInput::Drop)?;
        let ((a, _), (b, address)) = (router.host("a")?, router.host("b")?);
        let relay = Relay::start(lab, &relay, relay_address)?;
        let (mut a, mut b) = Node::pair(lab, &a, &b, &[&relay.url])?;
        a.start()?;
        b.start()?;
        let target = b.overlay()?;
        within("a to reach b", SOON, || Ok(a.icmp(target, 1).is_ok()))?;
        within("a to reach b on the LAN", SOON, || {
            let remote = a.peer("b")?["path"]["remote"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            Ok(remote.starts_with(&format!("{address}:")))
        })?;
        Ok(())
    });
}

#[test]
fn hosts_behind_symmetric_nats_meet_over_ipv6() {
    scenario(|lab| {
        let mut internet = Internet::new(true)?;
        let (relay, relay_address) = internet.host("relay")?;
        let mut nat_a = internet.router("nat-a", Nat::Symmetric, WanInput::Drop)?;
        let mut nat_b = internet.router("nat-b", Nat::Symmetric, WanInput::Drop)?;
        let ((a, _), (b, _)) = (nat_a.host("a")?, nat_b.host("b")?);
        let relay = Relay::start(lab, &relay, relay_address)?;
        let (mut a, mut b) = Node::pair(lab, &a, &b, &[&relay.url])?;
        a.start()?;
        b.start()?;
        let target = b.overlay()?;
        within("a to reach b", SOON, || Ok(a.icmp(target, 1).is_ok()))?;
        a.wait_path("b", "direct", SOON)?;
        let path = a.peer("b")?["path"].clone();
        ensure!(
            path["remote"]
                .as_str()
                .is_some_and(|remote| remote.starts_with("[2a00:a000:3:1:")),
            "{path}"
        );
        Ok(())
    });
}

#[test]
fn a_direct_path_outlives_its_relay() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        pair.relay.stop()?;
        pair.a.icmp(pair.b.overlay()?, 40)?;
        ensure!(pair.a.path_kind("b")?.as_deref() == Some("direct"));
        pair.a.wait_health("relay", SOON * 3)?;
        pair.a.icmp(pair.b.overlay()?, 20)
    });
}

#[test]
fn hosts_that_need_the_relay_find_it_again_after_it_was_killed() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Symmetric, Nat::Symmetric)?;
        pair.settle("relay")?;
        pair.relay.restart()?;
        let target = pair.b.overlay()?;
        within("a to reach b again", Duration::from_secs(60), || {
            Ok(pair.a.icmp(target, 1).is_ok())
        })?;
        pair.a.icmp(target, 20)
    });
}

#[test]
fn a_direct_path_that_falls_silent_is_left_for_the_relay() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let target = pair.b.overlay()?;
        pair.net
            .internet
            .block_udp(pair.net.nat_a.wan, pair.net.nat_b.wan)?;
        within("a to reach b again", SOON * 2, || {
            Ok(pair.a.icmp(target, 1).is_ok())
        })?;
        pair.a.wait_path("b", "relay", SOON)?;
        pair.net.internet.unblock()?;
        Ok(())
    });
}

#[test]
fn a_host_knows_its_nat() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Symmetric)?;
        for (node, mapping) in [
            (&pair.a, "endpoint-independent"),
            (&pair.b, "address-and-port-dependent"),
        ] {
            let report: serde_json::Value =
                serde_json::from_str(&node.ctl_ok(&["netcheck", "--json"])?)?;
            ensure!(report["udp"] == true, "{report}");
            // One relay address cannot tell the three apart for certain, but it tells symmetric from not.
            let seen = report["mapping"].as_str().unwrap_or_default();
            ensure!(
                seen == mapping || seen == "unknown",
                "{}: {report}",
                node.name
            );
            let wan = if node.name == "a" {
                pair.net.nat_a.wan
            } else {
                pair.net.nat_b.wan
            };
            let own = report["ipv4"].as_str().unwrap_or_default();
            ensure!(own.starts_with(&format!("{wan}:")), "{report}");
        }
        Ok(())
    });
}

#[test]
fn one_relay_with_two_addresses_tells_every_kind_of_mapping_and_filter() {
    use Dependence::{Address, AddressAndPort, EndpointIndependent};
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay, address) = internet.host("relay")?;
        relay.ip("addr add 44.128.1.9/24 dev wan")?;
        let config = "access = \"open\"\nstun_alt_address = \"44.128.1.9\"\n";
        let relay = Relay::start_with(lab, &relay, address, config)?;
        for (name, mapping, filtering) in [
            ("a", EndpointIndependent, EndpointIndependent),
            ("b", EndpointIndependent, Address),
            ("c", Address, AddressAndPort),
            ("d", AddressAndPort, Address),
        ] {
            let nat = Behaviour::new(mapping, filtering, Allocation::Preserving);
            let mut router =
                internet.router(&format!("nat-{name}"), Nat::Modelled(nat), WanInput::Drop)?;
            let (host, _) = router.host(name)?;
            let mut node = Node::new(lab, &host, name)?;
            node.configure(&Settings {
                relays: vec![relay.url.clone()],
                ..Settings::default()
            })?;
            node.start()?;
            node.wait_relay(SOON)?;
            let report = node.ctl_ok(&["netcheck", "--json"])?;
            let report: serde_json::Value = serde_json::from_str(&report)?;
            for (key, expected) in [("mapping", mapping), ("filtering", filtering)] {
                let expected = match expected {
                    EndpointIndependent => "endpoint-independent",
                    Address => "address-dependent",
                    AddressAndPort => "address-and-port-dependent",
                };
                ensure!(report[key] == expected, "{name}, {key}: {report}");
            }
        }
        Ok(())
    });
}
