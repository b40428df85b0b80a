//! Who is believed, and what a local process or a stolen key can do.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::lab::{Internet, Namespace, Nat, Node, Program, Relay, scenario, within};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Pair, SOON};

/// RFC 3692's next header for experiments, which carries control messages inside the tunnel.
const RESERVED: i32 = 253;

fn raw(ns: &Namespace, bind: Ipv6Addr) -> Result<Socket> {
    let socket =
        ns.inside(|| Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(RESERVED))))?;
    socket.bind(&SocketAddr::V6(SocketAddrV6::new(bind, 0, 0, 0)).into())?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(socket)
}

#[test]
fn a_control_message_from_a_local_process_reaches_nobody() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let (a, b) = (pair.a.overlay()?, pair.b.overlay()?);
        let (sender, listener) = (raw(&pair.a.ns, a)?, raw(&pair.b.ns, b)?);
        let before = pair.a.drops("forged_control")?;
        let target = SocketAddr::V6(SocketAddrV6::new(b, 0, 0, 0));
        for first in 0..=255 {
            sender.send_to(&[first; 40], &target.into())?;
        }
        within("the daemon to count them", SOON, || {
            Ok(pair.a.drops("forged_control")? >= before + 256)
        })?;
        ensure!(
            listener
                .recv(&mut [std::mem::MaybeUninit::uninit(); 64])
                .is_err(),
            "one came out on the other side"
        );
        pair.a.icmp(b, 5)?;
        ensure!(pair.a.path_kind("b")?.as_deref() == Some("direct"));
        Ok(())
    });
}

#[test]
fn two_hosts_with_one_key_end_in_a_health_line_and_not_in_a_fight() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay_ns, address) = internet.host("relay")?;
        let ((ns_a, _), (ns_b, _), (ns_clone, _)) = (
            internet.host("a")?,
            internet.host("b")?,
            internet.host("clone")?,
        );
        let mut relay = Relay::start(lab, &relay_ns, address)?;
        let (mut a, mut b) = Node::pair(lab, &ns_a, &ns_b, &[&relay.url])?;
        let mut clone = Node::new(lab, &ns_clone, "clone")?;
        std::fs::remove_dir_all(clone.state_dir())?;
        ensure!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(a.state_dir())
                .arg(clone.state_dir())
                .status()?
                .success()
        );
        std::fs::copy(a.config_path(), clone.config_path())?;
        a.start()?;
        a.wait_relay(SOON)?;
        clone.start()?;
        b.start()?;
        a.wait_health("this node's key", SOON)?;
        // Both go on trying, but rarely: in ten seconds a fight would have hundreds of rounds.
        let rounds = relay.program().log().matches("took over").count();
        std::thread::sleep(Duration::from_secs(10));
        let more = relay.program().log().matches("took over").count() - rounds;
        ensure!((1..5).contains(&rounds), "{rounds} rounds at first");
        ensure!(more < 5, "{more} rounds in 10 s");
        ensure!(b.program().is_running());
        Ok(())
    });
}

#[test]
fn a_relay_admits_only_those_it_names() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay_ns, address) = internet.host("relay")?;
        let ((ns_a, _), (ns_b, _)) = (internet.host("a")?, internet.host("b")?);
        let a = Node::new(lab, &ns_a, "a")?;
        let relay = Relay::start_with(
            lab,
            &relay_ns,
            address,
            &format!("nodes = [\"{}\"]\n", a.id),
        )?;
        let (mut a, mut b) = Node::pair(lab, &ns_a, &ns_b, &[&relay.url])?;
        a.start()?;
        b.start()?;
        a.wait_relay(SOON)?;
        b.wait_health("relay", SOON)?;
        ensure!(b.network()?["self"]["home_relay"].is_null());
        Ok(())
    });
}

#[test]
fn a_relay_with_another_key_is_not_the_relay() {
    scenario(|lab| {
        let mut internet = Internet::new(false)?;
        let (relay_ns, address) = internet.host("relay")?;
        let ((ns_a, _), (ns_b, _)) = (internet.host("a")?, internet.host("b")?);
        let relay = Relay::start(lab, &relay_ns, address)?;
        let b = Node::new(lab, &ns_b, "b")?;
        // A valid ID, but not the one that answers there.
        let id = relay
            .url
            .trim_start_matches("mesh://")
            .split('@')
            .next()
            .unwrap_or_default();
        let (mut a, _) = Node::pair(lab, &ns_a, &ns_b, &[&relay.url.replace(id, &b.id)])?;
        a.start()?;
        a.wait_health("relay", SOON)?;
        ensure!(a.network()?["self"]["home_relay"].is_null());
        Ok(())
    });
}

#[test]
fn a_host_that_is_not_listed_gets_no_answer() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        // b forgets a; a still knows b.
        let text = std::fs::read_to_string(pair.b.config_path())?;
        let alone = text
            .split("[[network.lab.peer]]")
            .next()
            .unwrap_or_default();
        pair.b.configure_text(alone)?;
        pair.b.ctl_ok(&["reload"])?;
        ensure!(pair.a.ping("b")?.is_none());
        ensure!(pair.a.peer("b")?["path"].is_null());
        Ok(())
    });
}

#[test]
fn a_log_that_shows_a_key_or_payload_fails_its_test() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        lab.check()?;
        let keys = [
            pair.a.state_dir().join("networks/lab/identity.key"),
            lab.dir().join("relay-relay/state/identity.key"),
        ];
        for leak in keys
            .iter()
            .map(std::fs::read_to_string)
            .chain([Ok(lab.marker().to_owned())])
        {
            let mut echo = pair.a.ns.command("echo");
            echo.arg(leak?);
            let mut program = Program::spawn(lab, "leak", echo)?;
            program.wait(SOON)?;
            ensure!(lab.check().is_err(), "not noticed: {}", program.log());
            std::fs::write(program.log_path(), "")?;
        }
        lab.check()
    });
}
