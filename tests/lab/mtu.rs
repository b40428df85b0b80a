//! How large packets may be: found out for each path, told to the kernel, and found out again when it changes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, Nat, Node, PeerConfig, Relay, Settings, TwoNats, scenario, within,
};

use super::paths::copy;
use super::{Pair, SOON};

const MB: u64 = 1_000_000;

/// Waits until the path from `node` to `peer` has this MTU, and the kernel knows.
fn wait_mtu(node: &Node, peer: &Node, mtu: u16) -> Result<()> {
    let overlay = peer.overlay()?.to_string();
    let what = format!(
        "{} to know that {mtu} bytes fit to {}",
        node.name, peer.name
    );
    within(&what, SOON, || {
        let path = node.peer(&peer.name)?["path"].clone();
        let route = node.ns.run("ip", &["-6", "route", "get", &overlay])?;
        // The kernel says nothing where the route has no MTU of its own.
        Ok(path["mtu"] == mtu && route.contains(&format!(" mtu {mtu} ")))
    })
    .map(drop)
    .with_context(|| {
        let path = node.peer(&peer.name).unwrap_or_default()["path"].clone();
        let route = node.ns.run("ip", &["-6", "route", "get", &overlay]);
        format!("{path} {route:?}")
    })
}

/// A ping of a packet with `size` bytes that must not be fragmented inside the overlay.
fn whole_ping(from: &Node, to: &Node, size: u16) -> Result<bool> {
    let payload = (size - 48).to_string();
    let overlay = to.overlay()?.to_string();
    let args = [
        "-6", "-c", "1", "-W", "2", "-M", "do", "-s", &payload, &overlay,
    ];
    Ok(from.ns.run("ping", &args).is_ok())
}

#[test]
fn an_ethernet_path_is_used_to_the_last_byte() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        wait_mtu(&pair.a, &pair.b, 1_440)?;
        wait_mtu(&pair.b, &pair.a, 1_440)?;
        ensure!(whole_ping(&pair.a, &pair.b, 1_440)?, "it fits");
        ensure!(!whole_ping(&pair.a, &pair.b, 1_441)?, "it does not fit");
        copy(&pair.a, &pair.b, 20 * MB, |_| Duration::ZERO)?;
        ensure!(pair.a.drops("too_big")? == 0, "TCP never tried more");
        Ok(())
    });
}

#[test]
fn a_relayed_path_has_room_for_the_relays_header() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Symmetric, Nat::Symmetric)?;
        pair.settle("relay")?;
        wait_mtu(&pair.a, &pair.b, 1_432)?;
        ensure!(whole_ping(&pair.a, &pair.b, 1_432)?, "it fits");
        copy(&pair.a, &pair.b, 20 * MB, |_| Duration::ZERO).map(drop)
    });
}

/// Two hosts behind NATs; the cable of A's router takes outer packets of `mtu` bytes.
fn narrow(lab: &Lab, mtu: u16) -> Result<Pair> {
    let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
    narrow_down(&net, mtu)?;
    let pair = Pair::on(lab, net)?;
    pair.settle("direct")?;
    Ok(pair)
}

fn narrow_down(net: &TwoNats, mtu: u16) -> Result<()> {
    net.nat_a.ns.ip(&format!("link set wan mtu {mtu}"))?;
    net.internet.ns().ip(&format!("link set site2 mtu {mtu}"))
}

#[test]
fn a_narrow_link_in_the_middle_is_found_out() {
    scenario(|lab| {
        let pair = narrow(lab, 1_460)?;
        // The next smaller size that is looked for is 1,450 bytes outside.
        for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            wait_mtu(from, to, 1_390)?;
            ensure!(whole_ping(from, to, 1_390)?, "it fits");
            copy(from, to, 20 * MB, |_| Duration::ZERO)?;
        }
        Ok(())
    });
}

#[test]
fn a_link_of_1280_bytes_carries_the_overlay_in_fragments() {
    scenario(|lab| {
        let pair = narrow(lab, 1_280)?;
        for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            within("a packet of 1,280 bytes to pass", SOON, || {
                whole_ping(from, to, 1_280)
            })?;
            copy(from, to, 5 * MB, |_| Duration::ZERO)?;
        }
        ensure!(pair.a.path_kind("b")?.as_deref() == Some("direct"));
        ensure!(pair.a.peer("b")?["path"]["mtu"] == 1_280);
        Ok(())
    });
}

#[test]
fn a_path_that_becomes_narrower_does_not_stop_a_connection() {
    scenario(|lab| {
        let pair = narrow(lab, 1_500)?;
        wait_mtu(&pair.a, &pair.b, 1_440)?;
        let mut narrowed = false;
        let total = 40 * MB;
        copy(&pair.a, &pair.b, total, |sent| {
            if sent > total / 2 && !narrowed {
                narrowed = true;
                narrow_down(&pair.net, 1_400).expect("the cable can be changed");
            }
            Duration::ZERO
        })?;
        wait_mtu(&pair.a, &pair.b, 1_320)
    });
}

/// Two public hosts that know each other's addresses, on cables of `mtu` bytes.
fn public_pair(lab: &Lab, mtu: u16, cap: Option<u16>) -> Result<(Internet, Node, Node)> {
    let mut internet = Internet::new(false)?;
    let ((ns_a, address_a), (ns_b, address_b)) = (internet.host("a")?, internet.host("b")?);
    for (site, ns) in [("site1", &ns_a), ("site2", &ns_b)] {
        internet.ns().ip(&format!("link set {site} mtu {mtu}"))?;
        ns.ip(&format!("link set wan mtu {mtu}"))?;
    }
    let mut nodes = [Node::new(lab, &ns_a, "a")?, Node::new(lab, &ns_b, "b")?];
    let addresses: [IpAddr; 2] = [address_a.into(), address_b.into()];
    let ids = [nodes[0].id.clone(), nodes[1].id.clone()];
    for at in 0..2 {
        let settings = Settings {
            listen_port: 41_820,
            address: Some(format!("10.77.0.{}", at + 1)),
            mtu: cap.filter(|_| at == 0),
            peers: vec![PeerConfig {
                id: ids[1 - at].clone(),
                name: ["b", "a"][at].to_owned(),
                address: Some(format!("10.77.0.{}", 2 - at)),
                endpoint: Some((addresses[1 - at], 41_820).into()),
                ..PeerConfig::default()
            }],
            ..Settings::default()
        };
        nodes[at].configure(&settings)?;
        nodes[at].start()?;
    }
    let [a, b] = nodes;
    let target = b.overlay()?;
    within("a to reach b", SOON, || Ok(a.icmp(target, 1).is_ok()))?;
    Ok((internet, a, b))
}

#[test]
fn a_lan_with_jumbo_frames_is_used() {
    scenario(|lab| {
        let (_internet, a, b) = public_pair(lab, 9_000, None)?;
        wait_mtu(&a, &b, 8_940)?;
        ensure!(whole_ping(&a, &b, 8_940)?, "it fits");
        copy(&a, &b, 100 * MB, |_| Duration::ZERO).map(drop)
    });
}

#[test]
fn the_configured_mtu_is_never_exceeded() {
    scenario(|lab| {
        let (_internet, a, b) = public_pair(lab, 1_500, Some(1_300))?;
        wait_mtu(&a, &b, 1_300)?;
        wait_mtu(&b, &a, 1_440)?;
        let device = a.ns.run("ip", &["link", "show", "dev", "mesh-lab"])?;
        ensure!(device.contains(" mtu 1300 "), "{device}");
        copy(&a, &b, 20 * MB, |_| Duration::ZERO)?;
        copy(&b, &a, 20 * MB, |_| Duration::ZERO).map(drop)
    });
}

#[test]
fn a_host_behind_a_peer_is_told_what_fits() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        let relay = Relay::start(lab, &net.relay, net.relay_address)?;
        let (mut a, mut b) = Node::pair(lab, &net.a, &net.b, &[&relay.url])?;
        // A network behind b, which its own host reaches over an ordinary Ethernet cable.
        let inner = mesh_tests::lab::Namespace::new("inner")?;
        net.b.ip(&format!("link add lan1 type veth peer name eth0 netns {}\naddr add 192.168.77.1/24 dev lan1\nlink set lan1 up", inner.path()))?;
        inner.ip("addr add 192.168.77.2/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.77.1")?;
        net.b.sysctl("net.ipv4.ip_forward", "1")?;
        // Nobody there hears of what is too large.
        inner.nft("table ip filter { chain input { type filter hook input priority 0; icmp type destination-unreachable drop; }\n }")?;
        let text = std::fs::read_to_string(a.config_path())?;
        a.configure_text(&text.replace(
            "name = \"b\"",
            "name = \"b\"\nroutes = [\"192.168.77.0/24\"]",
        ))?;
        for node in [&mut a, &mut b] {
            node.start()?;
            node.wait_relay(SOON)?;
        }
        let target = b.overlay()?;
        within("a to reach b", SOON, || Ok(a.icmp(target, 1).is_ok()))?;
        wait_mtu(&a, &b, 1_440)?;
        wait_mtu(&b, &a, 1_440)?;
        // What the segments of a connection from there may have is what a's kernel was told by the SYN.
        let listener = a.ns.listen("10.77.0.1:9000".parse()?)?;
        let client = inner.connect("10.77.0.1:9000".parse()?)?;
        let (server, _) = listener.accept()?;
        let shown = a.ns.run("ss", &["-tinH", "sport = :9000"])?;
        let mss = |name: &str| -> Result<u16> {
            let at = shown
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            Ok(at.with_context(|| shown.clone())?.parse()?)
        };
        ensure!(mss("mss:")? <= 1_400, "{shown}");
        drop((client, server));
        Ok(())
    });
}
