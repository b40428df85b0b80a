//! What `meshctl netcheck` tells of real NATs, and how soon.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Allocation, Behaviour, Dependence, Internet, Lab, Namespace, Nat, Node, Pool, Relay, Settings,
    WanInput, scenario,
};
use serde_json::Value;

use super::SOON;

/// One way of the line that netcheck has to be done within a second on.
const ONE_WAY: Duration = Duration::from_millis(30);
/// Until it is known how long a NAT remembers: a minute of patience, and half a minute of silence.
const LEARNED: Duration = Duration::from_secs(120);
/// See [`ONE_WAY`].
const LIMIT: Duration = Duration::from_secs(1);

/// A running host with these relays.
fn node(lab: &Lab, host: &Namespace, name: &str, relays: &[&Relay]) -> Result<Node> {
    let mut node = Node::new(lab, host, name)?;
    node.configure(&Settings {
        relays: relays.iter().map(|relay| relay.url.clone()).collect(),
        ..Settings::default()
    })?;
    node.start()?;
    node.wait_relay(SOON)?;
    Ok(node)
}

fn netcheck(node: &Node) -> Result<(Value, Duration)> {
    let started = Instant::now();
    let report = node.ctl_ok(&["netcheck", "--json"])?;
    Ok((serde_json::from_str(&report)?, started.elapsed()))
}

#[test]
fn netcheck_takes_less_than_a_second_on_a_line_of_30_ms_one_way() {
    use {Allocation::*, Dependence::*};
    let symmetric = |allocation| {
        let behaviour = Behaviour::new(AddressAndPort, AddressAndPort, allocation);
        Some(Nat::Modelled(behaviour))
    };
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay, address) = internet.host("relay")?;
        let relay = Relay::start(lab, &relay, address)?;
        internet.delay(ONE_WAY)?;
        for (name, nat, ports) in [
            ("home", Some(Nat::Masquerade), "preserving"),
            ("counting", symmetric(Sequential), "sequential"),
            ("random", symmetric(Random), "random"),
            ("public", None, "preserving"),
        ] {
            let mut routers = Vec::new();
            let host = match nat {
                Some(nat) => {
                    let mut router =
                        internet.router(&format!("nat-{name}"), nat, WanInput::Drop)?;
                    let host = router.host(name)?.0;
                    routers.push(router);
                    host
                }
                None => internet.host(name)?.0,
            };
            let node = node(lab, &host, name, &[&relay])?;
            for turn in 0..3 {
                let (report, took) = netcheck(&node)?;
                println!("{name}: {took:?}");
                ensure!(
                    took >= ONE_WAY * 4,
                    "the line is not as long as it should be"
                );
                ensure!(took < LIMIT, "{name}, {turn}: {took:?}, {report}");
                ensure!(report["port_allocation"] == ports, "{name}: {report}");
            }
        }
        Ok(())
    });
}

#[test]
fn how_long_a_nat_remembers_is_measured_with_real_packets() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay, address) = internet.host("relay")?;
        let relay = Relay::start(lab, &relay, address)?;
        let mut router = internet.router("forgetful", Nat::Masquerade, WanInput::Drop)?;
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            let key = format!("net.netfilter.nf_conntrack_{timeout}");
            router.ns.sysctl(&key, "15")?;
        }
        let host = router.host("a")?.0;
        let mut node = node(lab, &host, "a", &[&relay])?;
        // It begins a minute after the NAT was surveyed.
        let told = "the NAT before this host remembers for 9 s at least; keepalives go every 8 s";
        node.program().wait_log(told, LEARNED)?;
        let (report, _) = netcheck(&node)?;
        ensure!(report["mapping_lifetime_s"] == 9, "{report}");
        let text = node.ctl_ok(&["netcheck"])?;
        ensure!(text.contains("at least 9 s without a packet"), "{text}");
        Ok(())
    });
}

/// An internet with two relays of one address each.
fn with_two_relays(lab: &Lab, ipv6: bool) -> Result<(Internet, [Relay; 2])> {
    let mut internet = Internet::new(ipv6)?;
    let mut relay = |name: &str, number: u16| {
        let (ns, v4) = internet.host(name)?;
        let v6 = Ipv6Addr::new(0x2a00, 0xa000, number, 0, 0, 0, 0, 2);
        let address = if ipv6 { IpAddr::V6(v6) } else { v4.into() };
        Relay::start(lab, &ns, address)
    };
    let relays = [relay("relay-1", 1)?, relay("relay-2", 2)?];
    Ok((internet, relays))
}

#[test]
fn two_relays_tell_every_kind_of_filter() {
    use {Allocation::Preserving, Dependence::*};
    scenario(|lab| {
        let (mut internet, [one, other]) = with_two_relays(lab, false)?;
        for (name, mapping, filtering, expected) in [
            (
                "a",
                EndpointIndependent,
                EndpointIndependent,
                "endpoint-independent",
            ),
            ("b", EndpointIndependent, Address, "address-dependent"),
            ("c", Address, EndpointIndependent, "endpoint-independent"),
            ("d", AddressAndPort, Address, "address-dependent"),
            (
                "e",
                EndpointIndependent,
                AddressAndPort,
                "address-and-port-dependent",
            ),
        ] {
            let nat = Nat::Modelled(Behaviour::new(mapping, filtering, Preserving));
            let mut router = internet.router(&format!("nat-{name}"), nat, WanInput::Drop)?;
            let node = node(lab, &router.host(name)?.0, name, &[&one, &other])?;
            let report = netcheck(&node)?.0;
            ensure!(report["filtering"] == expected, "{name}: {report}");
        }
        Ok(())
    });
}

#[test]
fn several_external_addresses_are_told_from_one() {
    scenario(|lab| {
        let (mut internet, [one, other]) = with_two_relays(lab, false)?;
        for (name, pool, expected) in [
            ("a", Pool::Paired, "paired"),
            ("b", Pool::BySocket, "arbitrary"),
            ("c", Pool::Any, "arbitrary"),
        ] {
            let nat = Nat::Pooled(pool);
            let mut router = internet.router(&format!("nat-{name}"), nat, WanInput::Drop)?;
            let node = node(lab, &router.host(name)?.0, name, &[&one, &other])?;
            let report = netcheck(&node)?.0;
            ensure!(report["pooling"] == expected, "{name}: {report}");
            let count = if expected == "paired" { 1 } else { 2 };
            let addresses = report["addresses"].as_array().map_or(0, Vec::len);
            ensure!(addresses == count, "{name}: {report}");
            if pool == Pool::BySocket {
                ensure!(report["mapping"] == "endpoint-independent", "{report}");
                ensure!(report["port_allocation"] == "preserving", "{report}");
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_done_to_ipv6_is_told() {
    scenario(|lab| {
        let (mut internet, [one, other]) = with_two_relays(lab, true)?;
        let public = internet.host("public")?.0;
        let mut routers = [
            internet.router("firewall", Nat::Masquerade, WanInput::Drop)?,
            internet.router("translator", Nat::Masquerade66, WanInput::Drop)?,
        ];
        let [firewalled, translated] = &mut routers;
        for (name, host, translation, filtering) in [
            ("public", public, false, "endpoint-independent"),
            (
                "firewalled",
                firewalled.host("a")?.0,
                false,
                "address-and-port-dependent",
            ),
            (
                "translated",
                translated.host("b")?.0,
                true,
                "address-and-port-dependent",
            ),
        ] {
            let node = node(lab, &host, name, &[&one, &other])?;
            let (report, took) = netcheck(&node)?;
            ensure!(took < LIMIT, "{name}: {took:?}");
            ensure!(
                report["ipv6"].is_string() && report["ipv4"].is_null(),
                "{report}"
            );
            ensure!(report["ipv6_translated"] == translation, "{name}: {report}");
            ensure!(report["ipv6_filtering"] == filtering, "{name}: {report}");
        }
        Ok(())
    });
}
