//! What `meshctl` says and exits with.

use std::process::Command;

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, Namespace, Nat, Node, Output, scenario};

use super::Pair;

fn expect(output: &Output, code: i32) -> Result<()> {
    ensure!(
        output.code == code,
        "exit {} instead of {code}: {}{}",
        output.code,
        output.stdout,
        output.stderr
    );
    ensure!(
        code == 0 || output.stderr.trim().lines().count() == 1,
        "not one line: {:?}",
        output.stderr
    );
    Ok(())
}

#[test]
fn without_a_daemon_the_exit_code_is_three() {
    scenario(|lab| {
        let ns = Namespace::new("host")?;
        let node = Node::new(lab, &ns, "a")?;
        expect(&node.ctl(&["status"])?, 3)
    });
}

#[test]
fn an_unconfigured_daemon_starts_and_says_what_to_do_next() {
    scenario(|lab| {
        let ns = Namespace::new("host")?;
        let mut node = Node::new(lab, &ns, "a")?;
        node.configure_text("")?;
        node.start()?;
        let output = node.ctl(&["status"])?;
        expect(&output, 0)?;
        ensure!(output.stdout.contains("config.toml"), "{}", output.stdout);
        node.stop()
    });
}

#[test]
fn unknown_peers_and_networks_have_an_exit_code_of_their_own() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        expect(&pair.a.ctl(&["ping", "nobody", "-c", "1"])?, 5)?;
        expect(&pair.a.ctl(&["--network", "nowhere", "down"])?, 5)?;
        ensure!(pair.a.ctl(&["ping"])?.code == 2);
        ensure!(pair.a.ctl(&["--nonsense"])?.code == 2);
        let output = pair.a.ctl(&["--json", "ping", "nobody", "-c", "1"])?;
        ensure!(output.code == 5);
        let error: serde_json::Value = serde_json::from_str(&output.stdout)?;
        ensure!(error["error"]["message"].is_string(), "{error}");
        Ok(())
    });
}

#[test]
fn a_silent_peer_is_exit_code_one() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.b.kill();
        ensure!(pair.a.ctl(&["ping", "b", "-c", "1", "-W", "1"])?.code == 1);
        Ok(())
    });
}

#[test]
fn anyone_may_look_and_only_root_may_change() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        // The lab's directory is the test's own; whoever is let in to the daemon must first get to its socket.
        for dir in [lab.dir(), pair.a.dir()] {
            std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        let nobody = || -> Result<Command> {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            // A copy: the build directory may be closed to others.
            let copy = lab.dir().join("meshctl");
            std::fs::copy(Lab::binary("meshctl")?, &copy)?;
            command.arg(copy);
            Ok(command)
        };
        expect(&pair.a.ctl_as(nobody()?, &["status"])?, 0)?;
        expect(&pair.a.ctl_as(nobody()?, &["down"])?, 4)?;
        expect(&pair.a.ctl_as(nobody()?, &["reload"])?, 4)?;
        expect(&pair.a.ctl(&["reload"])?, 0)
    });
}

#[test]
fn a_network_that_was_taken_down_stays_down_until_it_is_brought_up() {
    scenario(|lab| {
        let mut pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let target = pair.b.overlay()?;
        let there = |node: &Node| node.ns.run("ip", &["link", "show", "mesh-lab"]).is_ok();
        expect(&pair.a.ctl(&["down"])?, 0)?;
        ensure!(!there(&pair.a) && pair.a.network()?["state"] == "down");
        pair.a.stop()?;
        pair.a.start()?;
        ensure!(
            !there(&pair.a) && pair.a.network()?["state"] == "down",
            "remembered across a restart"
        );
        expect(&pair.a.ctl(&["up", "--wait", "20"])?, 0)?;
        ensure!(there(&pair.a) && pair.a.network()?["state"] == "up");
        mesh_tests::lab::within("a to reach b again", super::SOON, || {
            Ok(pair.a.icmp(target, 1).is_ok())
        })?;
        Ok(())
    });
}
