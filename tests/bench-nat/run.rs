//! One run: everything from scratch, until both hosts have found their way.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::lab::{Lab, Nat, Node, Relay, TwoNats, within};

use crate::moments;

const START: Duration = Duration::from_secs(20);

/// A run that ended directly.
pub(crate) struct Run {
    /// From the first answered packet until the later of both hosts sends directly.
    pub(crate) took: Duration,
    /// Probes for a port that had to be foretold or searched, of the side that sent more.
    pub(crate) probes: u64,
}

/// `None` if the hosts were still relayed after `limit`.
pub(crate) fn once(nats: (Nat, Nat), delay: Duration, limit: Duration) -> Result<Option<Run>> {
    let lab = Lab::new()?;
    let outcome = attempt(&lab, nats, delay, limit);
    if outcome.is_err() {
        eprintln!("{}", lab.log_tails());
    }
    lab.remove();
    outcome
}

fn attempt(lab: &Lab, nats: (Nat, Nat), delay: Duration, limit: Duration) -> Result<Option<Run>> {
    let mut net = TwoNats::new(nats.0, nats.1)?;
    if !delay.is_zero() {
        net.internet.delay(delay)?;
    }
    let relay = Relay::start(lab, &net.relay, net.relay_address)?;
    let (mut a, mut b) = Node::pair(lab, &net.a, &net.b, &[&relay.url])?;
    for node in [&mut a, &mut b] {
        node.start()?;
        node.wait_relay(START)?;
    }
    let mut ping = Ping::start(&a, &b)?;
    let first = ping.first_answer()?;
    let (mut moments, mut probes) = (Vec::new(), 0);
    for (node, peer) in [(&mut a, "b"), (&mut b, "a")] {
        if node.wait_path(peer, "direct", limit).is_err() {
            return Ok(None);
        }
        let line = format!("{peer} is now reached by direct");
        // The log is written by another thread than the status.
        within("the log to say so", START, || {
            Ok(node.program().log().contains(&line))
        })?;
        let log = node.program().log();
        let said = log.lines().find(|text| text.contains(&line));
        moments.push(
            said.and_then(moments::of_log)
                .context("a line with its time")?,
        );
        probes = probes.max(hard_probes(node, peer)?);
    }
    let took = moments.into_iter().map(|at| moments::between(first, at));
    let took = took.max().context("two hosts")?;
    Ok(Some(Run { took, probes }))
}

/// Everything that was sent towards the peer's NAT beyond the plain punch.
fn hard_probes(node: &Node, peer: &str) -> Result<u64> {
    let explanation = node.explain(peer)?;
    let attempts = explanation["attempts"].as_array().into_iter().flatten();
    let hard = attempts.filter(|attempt| attempt["strategy"] != "punch");
    hard.map(|attempt| attempt["probes"].as_u64().context("a number of probes"))
        .sum()
}

/// What `ping` prints, line by line; it ends when dropped.
struct Ping {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Ping {
    /// 50 packets a second, so that the first answer is not waited for longer than 20 ms.
    fn start(from: &Node, to: &Node) -> Result<Self> {
        let mut child = from
            .ns
            .command("ping")
            .args(["-n", "-D", "-i", "0.02"])
            .arg(to.overlay()?.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .context("run ping")?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok(Self { child, lines })
    }

    fn first_answer(&mut self) -> Result<Duration> {
        loop {
            let line = self.lines.next().context("ping ended")??;
            if let Some(moment) = moments::of_ping(&line) {
                return Ok(moment);
            }
        }
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
