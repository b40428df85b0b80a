//! `make bench`: one TCP stream through two meshd and through two wireguard-go, on the same bare veth in the same run.
//!
//! The runs are interleaved, so that whatever else the machine does hits both alike; figures are medians with the range.
//! `mesh-bench [RUNS [SECONDS]]`, 3 and 5 unless given.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, Namespace, Node, PeerConfig, Program, Settings, WireGuardGo, within};
use serde_json::Value;

/// What the project promises on this test.
const PROMISED_RATIO: f64 = 5.0;
const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(44, 128, 0, 1), Ipv4Addr::new(44, 128, 0, 2)];
const WIREGUARD: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2)];
const MESH: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u32>());
    let (Ok(runs), Ok(seconds)) = (args.next().unwrap_or(Ok(3)), args.next().unwrap_or(Ok(5)))
    else {
        eprintln!("usage: mesh-bench [RUNS [SECONDS]]");
        return ExitCode::from(2);
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: namespaces and TUN devices need root; run `sudo make bench`");
        return ExitCode::FAILURE;
    }
    match run(runs.max(1), seconds.max(1)) {
        Ok(ratio) if ratio >= PROMISED_RATIO => ExitCode::SUCCESS,
        Ok(ratio) => {
            eprintln!("bench: {ratio:.1} × is less than the promised {PROMISED_RATIO} ×");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(runs: u32, seconds: u32) -> Result<f64> {
    let lab = Lab::new()?;
    let outcome = bench(&lab, runs, seconds);
    if outcome.is_err() {
        eprintln!("{}", lab.log_tails());
    }
    lab.remove();
    outcome
}

/// What is measured: a destination, and the two processes that carry it.
struct Subject<'a> {
    name: &'a str,
    destination: Ipv4Addr,
    ends: Option<[&'a Program; 2]>,
    figures: Vec<Figure>,
}

/// One run.
#[derive(Clone, Copy)]
struct Figure {
    gbit_s: f64,
    /// CPU seconds per gigabyte of the sending and of the receiving process.
    cpu: Option<[f64; 2]>,
}

fn bench(lab: &Lab, runs: u32, seconds: u32) -> Result<f64> {
    let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
    a.ip(&format!(
        "link add veth0 type veth peer name veth0 netns {}",
        b.path()
    ))?;
    for (ns, address) in [(&a, OUTER[0]), (&b, OUTER[1])] {
        ns.ip(&format!(
            "addr add {address}/24 dev veth0\nlink set veth0 up"
        ))?;
    }
    let mut server = b.command("iperf3");
    server.arg("-s");
    let _server = Program::spawn(lab, "iperf3", server)?;
    let mut stock = wireguard(lab, &a, &b)?;
    let mut mesh = mesh(lab, &a, &b)?;
    for destination in [OUTER[1], WIREGUARD[1], MESH[1]] {
        within("an answer through the tunnel", PATIENCE, || {
            Ok(a.run("ping", &["-c1", "-W1", &destination.to_string()])
                .is_ok())
        })?;
    }

    let [stock_a, stock_b] = &mut stock;
    let [mesh_a, mesh_b] = &mut mesh;
    let mut subjects = [
        Subject {
            name: "bare veth",
            destination: OUTER[1],
            ends: None,
            figures: vec![],
        },
        Subject {
            name: "wireguard-go",
            destination: WIREGUARD[1],
            ends: Some([stock_a.program(), stock_b.program()]),
            figures: vec![],
        },
        Subject {
            name: "meshd",
            destination: MESH[1],
            ends: Some([mesh_a.program(), mesh_b.program()]),
            figures: vec![],
        },
    ];
    println!(
        "one TCP stream, {runs} runs of {seconds} s each, interleaved; both ends share this machine's CPUs"
    );
    for run in 1..=runs {
        for subject in &mut subjects {
            let figure = measure(&a, subject, seconds)?;
            println!(
                "  run {run}: {:<13} {:6.2} Gb/s",
                subject.name, figure.gbit_s
            );
            subject.figures.push(figure);
        }
    }
    println!(
        "\n{:<15} {:>22} {:>28}",
        "", "Gb/s, median (range)", "CPU-s/GB, sender/receiver"
    );
    let medians: Vec<f64> = subjects.iter().map(report).collect();
    let ratio = medians[2] / medians[1];
    println!("\nmeshd is {ratio:.1} × wireguard-go");
    Ok(ratio)
}

fn report(subject: &Subject<'_>) -> f64 {
    let (median, low, high) = spread(subject.figures.iter().map(|figure| figure.gbit_s).collect());
    let cpu = |end: usize| {
        let figures: Vec<f64> = subject
            .figures
            .iter()
            .filter_map(|figure| Some(figure.cpu?[end]))
            .collect();
        if figures.is_empty() {
            "–".to_owned()
        } else {
            format!("{:.2}", spread(figures).0)
        }
    };
    let rate = format!("{median:.2} ({low:.2}–{high:.2})");
    println!(
        "{:<15} {rate:>22} {:>28}",
        subject.name,
        format!("{} / {}", cpu(0), cpu(1))
    );
    median
}

/// Median, smallest and largest.
fn spread(mut figures: Vec<f64>) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let median = if figures.len() % 2 == 1 {
        figures[middle]
    } else {
        f64::midpoint(figures[middle - 1], figures[middle])
    };
    (median, figures[0], figures[figures.len() - 1])
}

fn measure(a: &Namespace, subject: &Subject<'_>, seconds: u32) -> Result<Figure> {
    let before = cpu_times(subject)?;
    let text = a.run(
        "iperf3",
        &[
            "-c",
            &subject.destination.to_string(),
            "-t",
            &seconds.to_string(),
            "-J",
        ],
    )?;
    let after = cpu_times(subject)?;
    let report: Value = serde_json::from_str(&text).context("the report of iperf3")?;
    let received = &report["end"]["sum_received"];
    let bits = received["bits_per_second"]
        .as_f64()
        .context("a rate in the report of iperf3")?;
    let bytes = received["bytes"]
        .as_f64()
        .context("an amount in the report of iperf3")?;
    ensure!(bytes > 0.0, "nothing came through {}", subject.name);
    let cpu = before.zip(after).map(|(before, after)| {
        let used = |end: usize| (after[end] - before[end]).as_secs_f64() / (bytes / 1e9);
        [used(0), used(1)]
    });
    Ok(Figure {
        gbit_s: bits / 1e9,
        cpu,
    })
}

fn cpu_times(subject: &Subject<'_>) -> Result<Option<[Duration; 2]>> {
    subject
        .ends
        .map(|[a, b]| Ok([a.cpu_time()?, b.cpu_time()?]))
        .transpose()
}

fn wireguard(lab: &Lab, a: &Namespace, b: &Namespace) -> Result<[WireGuardGo; 2]> {
    let mut devices = [
        WireGuardGo::start(lab, a, 51_820)?,
        WireGuardGo::start(lab, b, 51_820)?,
    ];
    for (own, peer) in [(0, 1), (1, 0)] {
        let section = format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:51820\n",
            devices[peer].public_key, WIREGUARD[peer], OUTER[peer]
        );
        devices[own].configure(&section)?;
        devices[own].up(&format!("{}/24", WIREGUARD[own]))?;
    }
    Ok(devices)
}

fn mesh(lab: &Lab, a: &Namespace, b: &Namespace) -> Result<[Node; 2]> {
    let mut nodes = [
        Node::new(lab, a, "a")?.quiet(),
        Node::new(lab, b, "b")?.quiet(),
    ];
    for (own, peer) in [(0, 1), (1, 0)] {
        let endpoint = SocketAddr::new(IpAddr::V4(OUTER[peer]), 41_820);
        nodes[own].configure(&Settings {
            listen_port: 41_820,
            address: Some(MESH[own].to_string()),
            peers: vec![PeerConfig {
                endpoint: Some(endpoint),
                ..nodes[peer].as_peer(&MESH[peer].to_string())
            }],
            ..Settings::default()
        })?;
    }
    for node in &mut nodes {
        node.start()?;
    }
    Ok(nodes)
}
