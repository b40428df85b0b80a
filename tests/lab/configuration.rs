//! A bad configuration is refused with file, line and key, and never disturbs a running daemon.

use std::process::Command;

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, Namespace, Nat, Node, scenario};

use super::Pair;

const RELAY_ID: &str = "zkj2yfyfdbyhdvt3qpd76dx6qeeor3cfgblv25zgq6jthw62xz6a";

/// `meshd --check` on a text with `<id>` for the ID of some host; gives what it prints.
fn refused(lab: &Lab, text: &str, line: usize, key: &str) -> Result<()> {
    let ns = Namespace::new("host")?;
    let peer = Node::new(lab, &ns, "peer")?;
    let other = Node::new(lab, &ns, "other")?;
    peer.configure_text(&text.replace("<id>", &peer.id).replace("<other>", &other.id))?;
    let output = Command::new(Lab::binary("meshd")?)
        .arg("--check")
        .arg("--config")
        .arg(peer.config_path())
        .arg("--state-dir")
        .arg(peer.state_dir())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    let place = format!("{}:{line}:", peer.config_path().display());
    ensure!(
        said.lines()
            .any(|said| said.contains(&place) && said.contains(key)),
        "not {place} … {key}:\n{said}"
    );
    Ok(())
}

#[test]
fn an_unknown_key_is_refused() {
    scenario(|lab| {
        refused(
            lab,
            "[network.lab]\ninterfaec = \"x\"\n",
            2,
            "network.lab.interfaec",
        )
    });
}

#[test]
fn a_wrong_type_is_refused() {
    scenario(|lab| refused(lab, "\nlisten_port = \"many\"\n", 2, "listen_port"));
}

#[test]
fn a_duplicate_peer_is_refused() {
    let text = "[[network.lab.peer]]\nid = \"<id>\"\nname = \"x\"\n[[network.lab.peer]]\nid = \"<id>\"\nname = \"y\"\n";
    scenario(|lab| refused(lab, text, 5, "id"));
}

#[test]
fn overlapping_addresses_are_refused() {
    let text = "[[network.lab.peer]]\nid = \"<id>\"\nname = \"x\"\naddress = [\"10.77.0.2\"]\n\
                [[network.lab.peer]]\nid = \"<other>\"\nname = \"y\"\naddress = [\"10.77.0.2\"]\n";
    scenario(|lab| refused(lab, text, 8, "address"));
}

#[test]
fn an_unusable_relay_is_refused() {
    scenario(|lab| {
        refused(
            lab,
            "[network.lab]\nrelays = [\"mesh://nonsense@relay:443\"]\n",
            2,
            "network.lab.relays",
        )
    });
    let text =
        format!("[network.lab]\nrelays = [\n  \"mesh://{RELAY_ID}@relay.example.org:0\",\n]\n");
    scenario(|lab| refused(lab, &text, 3, "network.lab.relays"));
}

#[test]
fn the_example_is_valid() {
    scenario(|lab| {
        let example =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.example.toml");
        // As it stands, and with every setting in it switched on, but for the files that it names.
        let text = std::fs::read_to_string(&example)?;
        let on: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest)
                    if rest
                        .starts_with(|first: char| first.is_ascii_lowercase() || first == '[') =>
                {
                    if rest.contains("_file") {
                        String::new()
                    } else {
                        format!("{rest}\n")
                    }
                }
                _ => format!("{line}\n"),
            })
            .collect();
        ensure!(on.contains("\n[network.home]\n"), "nothing was switched on");
        for (name, text) in [("as-is.toml", &text), ("on.toml", &on)] {
            let file = lab.dir().join(name);
            std::fs::write(&file, text)?;
            let output = Command::new(Lab::binary("meshd")?)
                .arg("--check")
                .arg("--config")
                .arg(&file)
                .output()?;
            ensure!(
                output.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    });
}

#[test]
fn a_bad_file_does_not_start_the_daemon() {
    scenario(|lab| {
        let ns = Namespace::new("host")?;
        let mut node = Node::new(lab, &ns, "a")?;
        node.configure_text("listen_port = true\n")?;
        node.launch()?;
        let status = node.program().wait(super::SOON)?;
        ensure!(!status.success());
        let log = node.program().log();
        ensure!(
            log.contains("config.toml:1") && log.contains("listen_port"),
            "{log}"
        );
        Ok(())
    });
}

#[test]
fn reloading_a_bad_file_changes_nothing() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let good = std::fs::read_to_string(pair.a.config_path())?;
        let handshake = |node: &Node| -> Result<f64> {
            Ok(node.peer("b")?["last_handshake_s"].as_f64().unwrap_or(-1.0))
        };
        let before = handshake(&pair.a)?;
        for bad in [
            good.replace("[network.lab]", "[network.lab]\nnonsense = 1"),
            good.replace("listen_port = 0", "listen_port = \"x\""),
            "not even TOML".to_owned(),
        ] {
            pair.a.configure_text(&bad)?;
            let output = pair.a.ctl(&["reload"])?;
            ensure!(output.code == 1, "exit {}: {}", output.code, output.stdout);
            ensure!(output.stderr.contains("config.toml:"), "{}", output.stderr);
        }
        pair.a.icmp(pair.b.overlay()?, 5)?;
        ensure!(handshake(&pair.a)? >= before, "the session was renewed");
        ensure!(pair.a.path_kind("b")?.as_deref() == Some("direct"));
        pair.a.configure_text(&good)?;
        pair.a.ctl_ok(&["reload"]).map(drop)
    });
}

#[test]
fn a_reload_that_adds_a_peer_leaves_the_others_alone() {
    scenario(|lab| {
        let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
        pair.settle("direct")?;
        let other = Node::new(lab, &pair.net.relay, "c")?;
        let good = std::fs::read_to_string(pair.a.config_path())?;
        let more = format!(
            "{good}\n[[network.lab.peer]]\nid = \"{}\"\nname = \"c\"\naddress = [\"10.77.0.3\"]\n",
            other.id
        );
        let before = pair.a.peer("b")?["path"]["since_s"]
            .as_f64()
            .unwrap_or(-1.0);
        pair.a.configure_text(&more)?;
        pair.a.ctl_ok(&["reload"])?;
        ensure!(pair.a.peer("c")?["path"].is_null());
        pair.a.icmp(pair.b.overlay()?, 5)?;
        let after = pair.a.peer("b")?["path"]["since_s"]
            .as_f64()
            .unwrap_or(-1.0);
        ensure!(
            after >= before && before >= 0.0,
            "{before} s before, {after} s after"
        );
        // And without it again: the route goes.
        pair.a.configure_text(&good)?;
        pair.a.ctl_ok(&["reload"])?;
        ensure!(pair.a.peer("c").is_err());
        let routes = pair.a.ns.run("ip", &["route", "show", "table", "all"])?;
        ensure!(!routes.contains("10.77.0.3"), "{routes}");
        pair.a.icmp(pair.b.overlay()?, 5)
    });
}
