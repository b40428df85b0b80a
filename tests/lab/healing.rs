//! What breaks below, and that connections above live on: one run of the most important rows of `make bench-heal`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, Nat, Pulse, Relay, TwoNats, scenario};

use super::{Pair, SOON};

/// Generous: other tests share the machine. The bench measures against the real limits.
const LIMIT: Duration = Duration::from_secs(3);

fn pulsing(lab: &Lab) -> Result<(Pair, Pulse)> {
    let pair = Pair::behind(lab, Nat::Masquerade, Nat::Masquerade)?;
    pair.settle("direct")?;
    let pulse = Pulse::start(&pair.a, &pair.b, LIMIT)?;
    pulse.wait(Instant::now(), SOON)?;
    Ok((pair, pulse))
}

#[test]
fn a_tcp_stream_survives_the_death_of_the_direct_path_and_status_says_why_it_is_relayed() {
    scenario(|lab| {
        let (pair, pulse) = pulsing(lab)?;
        let start = Instant::now();
        pair.net
            .internet
            .block_udp(pair.net.nat_a.wan, pair.net.nat_b.wan)?;
        pair.a.wait_path("b", "relay", SOON)?;
        let took = pulse.wait(start, SOON)?;
        ensure!(took < LIMIT, "pings were lost for {took:?}");
        pulse.check_stream(SOON)?;
        let reason = pair.a.peer("b")?["path"]["reason"].to_string();
        // The side that notices first calls the other one, which then doubts the path as well.
        let known = ["acknowledged", "did not answer"];
        ensure!(
            known.iter().any(|known| reason.contains(known)),
            "the reason is {reason}"
        );
        let text = pair.a.ctl_ok(&["status"])?;
        ensure!(text.contains("b is relayed for"), "{text}");
        Ok(())
    });
}

#[test]
fn a_tcp_stream_survives_a_switch_of_the_uplink() {
    scenario(|lab| {
        let mut net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        let input = mesh_tests::lab::WanInput::Drop;
        let mut lte = net.internet.router("lte", Nat::Masquerade, input)?;
        lte.attach(&net.a, "lte0", 200)?;
        let pair = Pair::on(lab, net)?;
        pair.settle("direct")?;
        let pulse = Pulse::start(&pair.a, &pair.b, LIMIT)?;
        pulse.wait(Instant::now(), SOON)?;
        pair.a.ns.ip("link set eth0 down")?;
        let took = pulse.wait(Instant::now(), SOON)?;
        ensure!(took < LIMIT, "pings were lost for {took:?}");
        pulse.check_stream(SOON)?;
        pair.settle("direct")
    });
}

#[test]
fn a_relay_that_is_killed_and_comes_back_carries_data_again() {
    scenario(|lab| {
        let net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        net.internet.block_udp(net.nat_a.wan, net.nat_b.wan)?;
        let mut pair = Pair::on(lab, net)?;
        pair.settle("relay")?;
        let pulse = Pulse::start(&pair.a, &pair.b, LIMIT)?;
        Relay::kill(&mut pair.relay);
        std::thread::sleep(Duration::from_secs(1));
        pair.relay.restart()?;
        let took = pulse.wait(Instant::now(), SOON)?;
        ensure!(took < LIMIT, "pings were lost for {took:?}");
        pulse.check_stream(SOON)
    });
}
