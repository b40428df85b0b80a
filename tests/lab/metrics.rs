//! Metrics as Prometheus fetches them from the real daemon, before and after something happens.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_tests::lab::{Lab, Namespace, Nat, TwoNats, scenario, within};

use super::{Pair, SOON};

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9586);

/// Samples by name and labels.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn of(ns: &Namespace) -> Result<Self> {
        let mut stream = ns.connect(HERE)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {HERE}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let mut samples = BTreeMap::new();
        for line in body.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            let twice = samples.insert(name.to_owned(), value.parse()?);
            ensure!(twice.is_none(), "{name} is there twice");
        }
        Ok(Self(samples))
    }

    fn get(&self, name: &str) -> Result<f64> {
        let found = self.0.get(name).copied();
        found.with_context(|| format!("no {name} among {:?}", self.0.keys()))
    }

    /// The sum of all series of a metric that have this label.
    fn sum(&self, name: &str, label: &str) -> f64 {
        let series = self.0.iter();
        let series = series.filter(|(key, _)| key.starts_with(name) && key.contains(label));
        series.map(|(_, value)| value).sum()
    }
}

fn of_b(name: &str, path: &str) -> String {
    format!("{name}{{network=\"lab\",peer=\"b\",path=\"{path}\"}}")
}

/// Has `a` offer metrics, by a reload.
fn offered(lab: &Lab, net: TwoNats) -> Result<Pair> {
    let pair = Pair::on(lab, net)?;
    let config = std::fs::read_to_string(pair.a.config_path())?;
    pair.a
        .configure_text(&format!("metrics = \"{HERE}\"\n{config}"))?;
    pair.a.ctl_ok(&["reload"])?;
    Ok(pair)
}

#[test]
fn metrics_tell_of_the_path_in_use_and_why_it_became_another_one() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        let mut pair = offered(lab, net)?;
        pair.settle("direct")?;
        let before = Metrics::of(&pair.a.ns)?;
        ensure!(before.get(&of_b("meshd_peer_path", "direct"))? == 1.0);
        ensure!(before.get(&of_b("meshd_peer_path", "relay"))? == 0.0);
        ensure!(before.get("meshd_network_up{network=\"lab\"}")? == 1.0);
        ensure!(before.get("meshd_peers{network=\"lab\",state=\"active\"}")? == 1.0);
        ensure!(before.get("meshd_relay_fallbacks_total{network=\"lab\"}")? == 0.0);
        ensure!(before.sum("meshd_relay_connected", "lab") == 1.0);
        ensure!(before.sum("meshd_relay_rtt_seconds", "lab") > 0.0);
        ensure!(before.sum("meshd_peer_rtt_seconds", "\"b\"") > 0.0);
        ensure!(before.sum("meshd_peer_info", &pair.b.id) == 1.0);
        let opened = "meshd_punches_total{strategy=\"plain\",result=\"opened\"}";
        within("the punch to be over", SOON, || {
            Ok(Metrics::of(&pair.a.ns)?.get(opened)? >= 1.0)
        })?;

        pair.net
            .internet
            .block_udp(pair.net.nat_a.wan, pair.net.nat_b.wan)?;
        let target = pair.b.overlay()?;
        within("data to go by the relay", SOON, || {
            let _ = pair.a.icmp(target, 1);
            Ok(pair.a.path_kind("b")?.as_deref() == Some("relay"))
        })?;
        pair.a.icmp(target, 20)?;
        let after = Metrics::of(&pair.a.ns)?;
        ensure!(after.get(&of_b("meshd_peer_path", "relay"))? == 1.0);
        ensure!(after.get("meshd_relay_fallbacks_total{network=\"lab\"}")? >= 1.0);
        let changes = "meshd_path_changes_total{network=\"lab\",path=\"relay\"";
        let lost = ["unacknowledged", "silent", "silent_after_change"];
        let lost = lost.map(|reason| after.sum(changes, &format!("reason=\"{reason}\"")));
        ensure!(lost.iter().sum::<f64>() >= 1.0, "{lost:?}");
        for kind in ["direct", "relay"] {
            let name = of_b("meshd_peer_path_seconds_total", kind);
            let (before, after) = (before.get(&name)?, after.get(&name)?);
            ensure!(after > before, "{kind}: {before} {after}");
        }
        let bytes = "meshd_peer_sent_bytes_total";
        ensure!(after.sum(bytes, "\"b\"") > before.sum(bytes, "\"b\"") + 20.0 * 56.0);
        let packets = "meshd_tun_packets_total{direction=\"sent\"}";
        ensure!(after.get(packets)? >= before.get(packets)? + 20.0);
        pair.a.stop()
    });
}

#[test]
fn metrics_and_explain_count_the_mappings_that_were_made_in_a_hard_nat() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Symmetric, Nat::Masquerade)?;
        let mut pair = offered(lab, net)?;
        pair.settle_within("direct", Duration::from_secs(90))?;
        within("the attempt to be over", SOON, || {
            let opened = "meshd_punches_total{strategy=\"open\",result=\"opened\"}";
            Ok(Metrics::of(&pair.a.ns)?.get(opened)? >= 1.0)
        })?;
        let metrics = Metrics::of(&pair.a.ns)?;
        let mappings = metrics.get("meshd_hard_nat_mappings_total")?;
        ensure!(mappings >= 256.0, "{mappings}");
        ensure!(metrics.get("meshd_hard_nat_probes_total")? >= mappings);
        let explained = pair.a.explain("b")?["mappings"].as_f64();
        ensure!(explained == Some(mappings), "{explained:?} {mappings}");
        let text = pair.a.ctl_ok(&["explain", "b"])?;
        ensure!(text.contains(&format!("does not do: {mappings}")), "{text}");
        pair.a.stop()
    });
}

#[test]
fn an_address_for_metrics_that_is_taken_is_refused_at_the_start_and_by_a_reload() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        let mut pair = offered(lab, net)?;
        let offering = std::fs::read_to_string(pair.a.config_path())?;
        let taken = SocketAddr::new(HERE.ip(), 9587);
        let foreign = pair.a.ns.listen(taken)?;
        pair.a
            .configure_text(&offering.replace(&HERE.to_string(), &taken.to_string()))?;
        let refused = pair.a.ctl(&["reload"])?;
        let said = format!("cannot offer metrics at {taken}");
        ensure!(
            refused.code == 1 && refused.stderr.contains(&said),
            "{refused:?}"
        );
        ensure!(Metrics::of(&pair.a.ns)?.get("meshd_network_up{network=\"lab\"}")? == 1.0);
        pair.a.ctl_ok(&["down"])?;
        ensure!(Metrics::of(&pair.a.ns)?.get("meshd_network_up{network=\"lab\"}")? == 0.0);

        pair.a.stop()?;
        let output = pair.a.command()?.output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && text.contains(&said), "{text}");
        drop(foreign);
        pair.a.start()?;
        pair.a.stop()
    });
}
