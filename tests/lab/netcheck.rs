//! What `meshctl netcheck` tells of real NATs, and how soon.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Allocation, Behaviour, Dependence, Internet, Lab, Nat, Node, Relay, Settings, WanInput,
    scenario,
};
use serde_json::Value;

use super::SOON;

/// One way of the line that netcheck has to be done within a second on.
const ONE_WAY: Duration = Duration::from_millis(30);
/// See [`ONE_WAY`].
const LIMIT: Duration = Duration::from_secs(1);

/// A running host with these relays.
fn node(
    lab: &Lab,
    host: &mesh_tests::lab::Namespace,
    name: &str,
    relays: &[&Relay],
) -> Result<Node> {
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
