//! Two `meshd` with a relay between them and no other way from one to the other. All three processes share the machine.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, Namespace, Program, Settings, within};

use super::mesh::{Nodes, nodes};
use super::{PATIENCE, RELAYED, Tunnel, overlay};
use crate::topology::Pair;

/// The relay's address, which both hosts reach by their default route.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(44, 129, 0, 1);

/// A relay that runs.
pub(super) struct Relay {
    url: String,
    program: Program,
}

struct Relayed {
    nodes: Nodes,
    relay: Program,
}

impl Tunnel for Relayed {
    fn programs(&mut self) -> Vec<&mut Program> {
        let mut programs = self.nodes.programs();
        programs.push(&mut self.relay);
        programs
    }

    fn settled(&mut self) -> Result<bool> {
        let [a, b] = &self.nodes.0;
        Ok(a.path_kind(&b.name)?.as_deref() == Some("relay"))
    }
}

/// Two hosts on a veth each to a third, which forwards nothing between them and runs the relay.
pub(super) fn topology(lab: &Lab) -> Result<(Pair, Relay)> {
    let (a, b, middle) = (
        Namespace::new("a")?,
        Namespace::new("b")?,
        Namespace::new("relay")?,
    );
    middle.sysctl("net.ipv4.ip_forward", "0")?;
    middle.ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
    for (ns, site) in [(&a, 1), (&b, 2)] {
        middle.ip(&format!(
            "link add site{site} type veth peer name veth0 netns {}
             addr add 44.129.{site}.1/24 dev site{site}
             link set site{site} up",
            ns.path()
        ))?;
        ns.ip(&format!(
            "addr add 44.129.{site}.2/24 dev veth0
             link set veth0 up
             route add default via 44.129.{site}.1"
        ))?;
    }
    within("the relay's host to answer", PATIENCE, || {
        let answers = |ns: &Namespace| {
            ns.run("ping", &["-c1", "-W1", &ADDRESS.to_string()])
                .is_ok()
        };
        Ok(answers(&a) && answers(&b))
    })?;
    ensure!(
        a.run("ping", &["-c1", "-W1", "44.129.2.2"]).is_err(),
        "the two hosts reach each other without the relay"
    );
    let relay = relay(lab, &middle)?;
    Ok((Pair::unlinked(a, b)?, relay))
}

fn relay(lab: &Lab, ns: &Namespace) -> Result<Relay> {
    let dir = lab.dir().join("relay");
    std::fs::create_dir_all(&dir)?;
    let (config, state) = (dir.join("relay.toml"), dir.join("state"));
    // Without a limit in the way: the default, 100 Mbit/s a client, is what would be measured.
    std::fs::write(&config, "access = \"open\"\nrate_limit = \"100 Gbit/s\"\n")?;
    let binary = Lab::binary("mesh-relay")?;
    let command = || {
        let mut command = ns.command(&binary);
        command
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(&state);
        command
    };
    let output = command()
        .args(["--print-url", &format!("{ADDRESS}:443")])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let url = lines
        .find(|line| line.starts_with("mesh://"))
        .context("mesh-relay --print-url prints a mesh:// line")?
        .to_owned();
    let mut program = Program::spawn(lab, "relay", command())?;
    program.wait_ready(PATIENCE)?;
    Ok(Relay { url, program })
}

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
    relay: Relay,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(77);
    let mut nodes = nodes(lab, a, b, RELAYED)?;
    for (own, peer) in [(0, 1), (1, 0)] {
        nodes[own].configure(&Settings {
            relays: vec![relay.url.clone()],
            address: Some(addresses[own].to_string()),
            peers: vec![nodes[peer].as_peer(&addresses[peer].to_string())],
            ..Settings::default()
        })?;
    }
    for node in &mut nodes {
        node.start()?;
    }
    let tunnel = Relayed {
        nodes: Nodes(nodes),
        relay: relay.program,
    };
    Ok((Box::new(tunnel), addresses[1]))
}
