//! Ports that the router maps for us, by each of the protocols that routers speak.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, MiniUpnpd, Namespace, Nat, Node, Relay, Speaks, TwoNats, WanInput, scenario,
    within,
};

use super::{Pair, SOON};

/// The LAN side of the router of `a`, which is the second site of [`TwoNats`].
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);

/// Two hosts that cannot punch: both behind NATs with a random port for each destination. The router of `a` maps ports.
fn symmetric(lab: &Lab, speaks: Speaks) -> Result<(Pair, MiniUpnpd)> {
    let net = TwoNats::new(Nat::Symmetric, Nat::Symmetric)?;
    let router = MiniUpnpd::start(lab, &net.nat_a, ROUTER, speaks)?;
    Ok((Pair::on(lab, net)?, router))
}

fn mapping_appears(pair: &Pair) -> Result<()> {
    within("a mapping at the router", SOON, || {
        Ok(MiniUpnpd::mappings(&pair.net.nat_a)?.len() == 1)
    })
    .map(drop)
}

/// What holds with every protocol.
fn check(speaks: Speaks, name: &str) {
    scenario(|lab| {
        let (mut pair, _router) = symmetric(lab, speaks)?;
        mapping_appears(&pair)?;
        pair.settle("direct")?;
        pair.b.icmp(pair.a.overlay()?, 20)?;
        let netcheck = pair.a.ctl_ok(&["netcheck", "--json"])?;
        let netcheck: serde_json::Value = serde_json::from_str(&netcheck)?;
        ensure!(
            netcheck["port_mapping"] == serde_json::json!([name]),
            "{netcheck}"
        );

        pair.a.ctl_ok(&["down"])?;
        let left = MiniUpnpd::mappings(&pair.net.nat_a)?;
        ensure!(left.is_empty(), "after `down`: {left:?}");
        pair.a.ctl_ok(&["up"])?;
        mapping_appears(&pair)?;
        pair.a.stop()?;
        let left = MiniUpnpd::mappings(&pair.net.nat_a)?;
        ensure!(left.is_empty(), "after SIGTERM: {left:?}");
        Ok(())
    });
}

#[test]
fn natpmp_makes_two_symmetric_nats_direct_and_leaves_nothing() {
    let natpmp = Speaks {
        natpmp: true,
        ..Speaks::default()
    };
    check(natpmp, "nat-pmp");
}

#[test]
fn pcp_makes_two_symmetric_nats_direct_and_leaves_nothing() {
    let pcp = Speaks {
        pcp: true,
        ..Speaks::default()
    };
    check(pcp, "pcp");
}

#[test]
fn upnp_makes_two_symmetric_nats_direct_and_leaves_nothing() {
    let upnp = Speaks {
        upnp: true,
        ..Speaks::default()
    };
    check(upnp, "upnp");
}

#[test]
fn upnp_of_the_first_version_makes_two_symmetric_nats_direct_and_leaves_nothing() {
    let upnp = Speaks {
        upnp: true,
        igd1: true,
        ..Speaks::default()
    };
    check(upnp, "upnp");
}

#[test]
fn a_router_with_everything_is_asked_for_one_mapping() {
    scenario(|lab| {
        let all = Speaks {
            pcp: true,
            natpmp: true,
            upnp: true,
            ..Speaks::default()
        };
        let (pair, _router) = symmetric(lab, all)?;
        mapping_appears(&pair)?;
        pair.settle("direct")?;
        within("every protocol to be listed", SOON, || {
            let netcheck = pair.a.ctl_ok(&["netcheck", "--json"])?;
            let netcheck: serde_json::Value = serde_json::from_str(&netcheck)?;
            Ok(netcheck["port_mapping"] == serde_json::json!(["pcp", "nat-pmp", "upnp"]))
        })?;
        let mappings = MiniUpnpd::mappings(&pair.net.nat_a)?;
        ensure!(mappings.len() == 1, "{mappings:?}");
        Ok(())
    });
}

#[test]
fn a_mapping_behind_a_second_nat_is_not_offered() {
    scenario(|lab| {
        let elsewhere = Ipv4Addr::new(44, 129, 0, 9);
        let natpmp = Speaks {
            natpmp: true,
            claims: Some(elsewhere),
            ..Speaks::default()
        };
        let (mut pair, _router) = symmetric(lab, natpmp)?;
        mapping_appears(&pair)?;
        pair.settle("relay")?;
        let endpoints = pair.a.network()?["self"]["endpoints"].to_string();
        ensure!(!endpoints.contains(&elsewhere.to_string()), "{endpoints}");
        pair.a.stop()?;
        let left = MiniUpnpd::mappings(&pair.net.nat_a)?;
        ensure!(left.is_empty(), "after SIGTERM: {left:?}");
        Ok(())
    });
}

#[test]
fn neighbours_behind_a_second_nat_that_does_not_hairpin_meet_by_a_mapping_on_this_side_of_it() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay, address) = internet.host("relay")?;
        // miniupnpd serves no private addresses; carriers are known to use others' public ones inside.
        let mut carrier = internet.carrier_on("carrier", Nat::Masquerade, [44, 129])?;
        let mut home_a = carrier.router("home-a", Nat::Symmetric, WanInput::Drop)?;
        let mut home_b = carrier.router("home-b", Nat::Symmetric, WanInput::Drop)?;
        let ((a, _), (b, _)) = (home_a.host("a")?, home_b.host("b")?);
        let natpmp = Speaks {
            natpmp: true,
            ..Speaks::default()
        };
        let _upnpd = MiniUpnpd::start(lab, &home_b, home_b.at(1), natpmp)?;
        let relay = Relay::start(lab, &relay, address)?;
        let (mut a, mut b) = Node::pair(lab, &a, &b, &[&relay.url])?;
        for node in [&mut a, &mut b] {
            node.start()?;
            node.wait_relay(SOON)?;
        }
        let target = b.overlay()?;
        within("a to reach b", SOON, || Ok(a.icmp(target, 1).is_ok()))?;
        a.wait_path("b", "direct", SOON)?;
        let remote = a.peer("b")?["path"]["remote"].to_string();
        ensure!(remote.contains(&format!("{}:", home_b.wan)), "{remote}");
        a.icmp(target, 20)
    });
}

/// Answers whatever comes with nonsense, and hangs on TCP, until told to end.
fn play_the_fool(
    router: &Namespace,
    stop: Arc<AtomicBool>,
) -> Result<Vec<std::thread::JoinHandle<()>>> {
    let tick = Some(Duration::from_millis(50));
    let mut threads = Vec::new();
    for port in [5351, 1900] {
        let socket = router.udp(SocketAddr::new(ROUTER.into(), port))?;
        socket.set_read_timeout(tick)?;
        let stop = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let found = format!(
                    "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                     LOCATION: http://{ROUTER}:5000/d.xml\r\n\r\n"
                );
                let mut echo = buffer[..length].to_vec();
                if let Some(opcode) = echo.get_mut(1) {
                    *opcode |= 0x80;
                }
                for answer in [&echo[..], &[0xff; 1_400], &[], found.as_bytes()] {
                    let _ = socket.send_to(answer, from);
                }
            }
        }));
    }
    let listener = router.listen(SocketAddr::new(ROUTER.into(), 5000))?;
    listener.set_nonblocking(true)?;
    threads.push(std::thread::spawn(move || {
        let mut held = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.set_read_timeout(tick);
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n<root>");
                held.push(stream);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }));
    Ok(threads)
}

#[test]
fn a_router_that_answers_garbage_and_hangs_costs_nothing() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        let stop = Arc::new(AtomicBool::new(false));
        let threads = play_the_fool(&net.nat_a.ns, Arc::clone(&stop))?;
        let mut pair = Pair::on(lab, net)?;
        pair.settle("direct")?;
        // An echo of the first PCP request is a valid answer to it; what is asked next gets none.
        let netcheck = pair.a.ctl_ok(&["netcheck", "--json"])?;
        let netcheck: serde_json::Value = serde_json::from_str(&netcheck)?;
        let offered = netcheck["port_mapping"].to_string();
        ensure!(!offered.contains("upnp"), "{netcheck}");
        pair.a.stop()?;
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("no panic");
        }
        Ok(())
    });
}

#[test]
fn a_router_that_answers_nothing_costs_nothing() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        net.nat_a.ns.nft(
            "table ip mute {
               chain input { type filter hook input priority -1;
                 udp dport { 1900, 5351 } counter drop
               }
             }",
        )?;
        let mut pair = Pair::on(lab, net)?;
        pair.settle("direct")?;
        let dropped = pair
            .net
            .nat_a
            .ns
            .run("nft", &["list", "table", "ip", "mute"])?;
        ensure!(
            !dropped.contains("packets 0 "),
            "it was never asked: {dropped}"
        );
        pair.a.stop()
    });
}
