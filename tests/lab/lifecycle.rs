//! Starting, stopping, dying, and two daemons on one machine.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Internet, Lab, Namespace, Nat, Node, PeerConfig, Program, Relay, Settings, WanInput, scenario,
    within,
};

use super::{Pair, SOON};

/// Everything in a namespace that a daemon could leave behind.
fn network_state(ns: &Namespace) -> Result<String> {
    let mut state = String::new();
    for args in [
        &["-o", "link"][..],
        &["-o", "addr"],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["-4", "rule"],
        &["-6", "rule"],
    ] {
        state += &ns.run("ip", args)?;
    }
    // Remaining lifetimes of routes and addresses change by themselves.
    Ok(state
        .lines()
        .filter(|line| !line.contains("expires"))
        .collect::<Vec<_>>()
        .join("\n"))
}

#[test]
fn a_clean_stop_leaves_nothing_behind() {
    scenario(|lab| {
        let mut internet = Internet::new(true)?;
        let (relay_ns, address) = internet.host("relay")?;
        let (ns, _) = internet.host("a")?;
        let relay = Relay::start(lab, &relay_ns, address)?;
        let before = network_state(&ns)?;
        let (mut a, _) = Node::pair(lab, &ns, &relay_ns, &[&relay.url])?;
        a.start()?;
        a.wait_relay(SOON)?;
        ensure!(network_state(&ns)? != before, "an interface came");
        ensure!(a.socket_path().exists());
        a.stop()?;
        ensure!(
            !a.socket_path().exists(),
            "the control socket is still there"
        );
        let after = network_state(&ns)?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(())
    });
}

#[test]
fn a_killed_daemon_starts_again_without_cleaning() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let target = pair.b.overlay()?;
        for _ in 0..2 {
            pair.a.kill();
            ensure!(
                pair.a.socket_path().exists(),
                "it had no time to remove its socket"
            );
            pair.a.start()?;
            within("a to reach b again", SOON, || {
                Ok(pair.a.icmp(target, 1).is_ok())
            })?;
        }
        pair.a.stop()
    });
}

#[test]
fn overlay_destinations_are_unreachable_while_the_daemon_is_gone() {
    scenario(|lab| {
        let mut internet = Internet::new(true)?;
        let (relay_ns, address) = internet.host("relay")?;
        let mut router = internet.router("nat", Nat::Masquerade, WanInput::Drop)?;
        let ((ns, _), (other, _)) = (router.host("a")?, router.host("b")?);
        let relay = Relay::start(lab, &relay_ns, address)?;
        let (mut a, mut b) = Node::pair(lab, &ns, &other, &[&relay.url])?;
        let before = network_state(&ns)?;
        a.start()?;
        b.start()?;
        let targets = [b.overlay()?.to_string(), "10.77.0.2".to_owned()];
        within("a to reach b", SOON, || Ok(a.icmp(b.overlay()?, 1).is_ok()))?;
        a.kill();
        for target in &targets {
            // Without the daemon's own route, the kernel would choose the default route here.
            let route = ns.run("ip", &["route", "get", target]);
            ensure!(route.is_err(), "{target} goes to {route:?}");
        }
        a.start()?;
        within("a to reach b again", SOON, || {
            Ok(a.icmp(b.overlay()?, 1).is_ok())
        })?;
        a.stop()?;
        let after = network_state(&ns)?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        Ok(())
    });
}

#[test]
fn a_second_daemon_on_one_state_directory_refuses() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        let mut command = pair.a.ns.command(Lab::binary("meshd")?);
        command
            .arg("--no-bus")
            .arg("--config")
            .arg(pair.a.config_path())
            .arg("--state-dir")
            .arg(pair.a.state_dir());
        command.arg("--socket").arg(lab.dir().join("second.sock"));
        let mut second = Program::spawn(lab, "second", command)?;
        let status = second.wait(SOON)?;
        ensure!(!status.success());
        let log = second.log();
        ensure!(
            log.contains("another meshd") && log.contains("--state-dir"),
            "{log}"
        );
        ensure!(pair.a.program().is_running());
        pair.settle("direct")
    });
}

const OTHER_HAS_THE_NAME: &str = "another meshd has our name on the system bus";

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
"#;

#[test]
fn two_daemons_on_one_system_bus_do_not_fight_for_the_name() {
    scenario(|lab| {
        let socket = lab.dir().join("bus.sock");
        let file = lab.dir().join("bus.conf");
        std::fs::write(&file, BUS.replace("SOCKET", &socket.display().to_string()))?;
        let mut internet = Internet::new(false)?;
        let ((one, address), (two, _)) = (internet.host("a")?, internet.host("b")?);
        let mut bus = one.command("dbus-daemon");
        bus.arg("--nofork").arg("--config-file").arg(&file);
        let _bus = Program::spawn(lab, "dbus-daemon", bus)?;
        within("the bus", SOON, || Ok(socket.exists()))?;

        let (mut a, mut b) = Node::pair(lab, &one, &two, &[])?;
        let endpoint = std::net::SocketAddr::new(address.into(), 41_820);
        let known = PeerConfig {
            endpoint: Some(endpoint),
            ..a.as_peer("10.77.0.1")
        };
        a.configure(&Settings {
            listen_port: 41_820,
            address: Some("10.77.0.1".to_owned()),
            peers: vec![b.as_peer("10.77.0.2")],
            ..Settings::default()
        })?;
        b.configure(&Settings {
            address: Some("10.77.0.2".to_owned()),
            peers: vec![known],
            ..Settings::default()
        })?;
        for node in [&mut a, &mut b] {
            let mut command = node.bus_command()?;
            command.env(
                "DBUS_SYSTEM_BUS_ADDRESS",
                format!("unix:path={}", socket.display()),
            );
            node.launch_as(command)?;
            node.program().wait_ready(SOON)?;
        }
        b.program().wait_log(OTHER_HAS_THE_NAME, SOON)?;
        // The one without the name works all the same, through its control socket.
        within("b to reach a", SOON, || Ok(b.icmp(a.overlay()?, 1).is_ok()))?;
        ensure!(a.program().is_running() && b.program().is_running());
        ensure!(!a.program().log().contains(OTHER_HAS_THE_NAME));
        a.stop()?;
        b.stop()
    });
}

#[test]
fn a_version_is_a_number_and_nothing_to_be_warned_of() {
    scenario(|_| {
        let ns = Namespace::new("host")?;
        let version = ns.run(&Lab::binary("meshd")?.display().to_string(), &["--version"])?;
        ensure!(
            version == format!("meshd {}\n", env!("CARGO_PKG_VERSION")),
            "{version}"
        );
        Ok(())
    });
}

#[test]
fn an_idle_daemon_is_quiet() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let before = pair.a.program().cpu_time()?;
        // Not a wait for something to happen: the measure is what happens in three seconds.
        std::thread::sleep(Duration::from_secs(3));
        let used = pair.a.program().cpu_time()?.saturating_sub(before);
        ensure!(
            used < Duration::from_millis(300),
            "an idle daemon used {used:?} in 3 s"
        );
        Ok(())
    });
}
