//! Throughput of TCP, by iperf3.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::lab::Namespace;
use serde_json::Value;

use crate::metric::Load;
use crate::topology::Pair;

/// How many streams, and which way they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    One,
    OneBack,
    Four,
    FourBack,
    /// One each way at once.
    Both,
}

/// What arrived.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// In Gb/s, one for each of [`Streams::loads`].
    pub(crate) gbit_s: Vec<f64>,
    /// In bytes, of the first of them.
    pub(crate) bytes: f64,
}

/// Seconds that iperf3 may take beyond the length of the test: it opens and closes a control connection.
const PATIENCE: u32 = 10;

impl Streams {
    /// The figures that it gives.
    pub(crate) fn loads(self) -> &'static [Load] {
        match self {
            Self::One => &[Load::One],
            Self::OneBack => &[Load::OneBack],
            Self::Four => &[Load::Four],
            Self::FourBack => &[Load::FourBack],
            Self::Both => &[Load::BothThere, Load::BothBack],
        }
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::One => "1 stream →",
            Self::OneBack => "1 stream ←",
            Self::Four => "4 streams →",
            Self::FourBack => "4 streams ←",
            Self::Both => "both ways",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::One => &[],
            Self::OneBack => &["-R"],
            Self::Four => &["-P", "4"],
            Self::FourBack => &["-P", "4", "-R"],
            Self::Both => &["--bidir"],
        }
    }
}

/// Runs iperf3 from `a` to `b`, where its server listens.
pub(crate) fn run(pair: &Pair, to: Ipv4Addr, streams: Streams, seconds: u32) -> Result<Transfer> {
    let report = iperf3(&pair.a, to, streams, seconds)?;
    transfer(&report, streams)
}

fn iperf3(ns: &Namespace, to: Ipv4Addr, streams: Streams, seconds: u32) -> Result<Value> {
    // Without `timeout` a tunnel that dies in the middle would hold up the run for minutes.
    let output = ns
        .command("timeout")
        .arg((seconds + PATIENCE).to_string())
        .args(["iperf3", "-J", "--connect-timeout", "5000", "-c"])
        .arg(to.to_string())
        .args(["-t", &seconds.to_string()])
        .args(streams.arguments())
        .output()
        .context("run iperf3")?;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    ensure!(
        output.status.success(),
        "iperf3: {} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(report)
}

fn transfer(report: &Value, streams: Streams) -> Result<Transfer> {
    let sums = ["sum_received", "sum_received_bidir_reverse"];
    let sums = sums.map(|name| &report["end"][name]);
    let number = |sum: &Value, name: &str| {
        let number = sum[name].as_f64();
        number.with_context(|| format!("no {name} in the report of iperf3"))
    };
    let rates = sums.iter().take(streams.loads().len());
    let gbit_s = rates
        .map(|sum| Ok(number(sum, "bits_per_second")? / 1e9))
        .collect::<Result<Vec<_>>>()?;
    let bytes = number(sums[0], "bytes")?;
    ensure!(
        bytes > 0.0 && gbit_s.iter().all(|rate| *rate > 0.0),
        "nothing came through"
    );
    Ok(Transfer { gbit_s, bytes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_received_counts_and_not_what_was_sent() {
        let report = json!({"end": {
            "sum_sent": {"bytes": 9e9, "bits_per_second": 9e9},
            "sum_received": {"bytes": 1e9, "bits_per_second": 2e9},
            "sum_received_bidir_reverse": {"bytes": 1e9, "bits_per_second": 3e9},
        }});
        let found = transfer(&report, Streams::Both).unwrap();
        assert_eq!((found.gbit_s, found.bytes), (vec![2.0, 3.0], 1e9));
        assert_eq!(transfer(&report, Streams::Four).unwrap().gbit_s, [2.0]);
    }

    #[test]
    fn nothing_received_is_a_failure_and_not_a_rate_of_zero() {
        let report = json!({"end": {"sum_received": {"bytes": 0, "bits_per_second": 0.0}}});
        assert!(transfer(&report, Streams::One).is_err());
        assert!(transfer(&json!({}), Streams::One).is_err());
    }
}
