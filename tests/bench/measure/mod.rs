//! One measurement of one contender.

mod ping;
mod process;
mod search;
mod tcp;
mod udp;

use anyhow::{Context, Result};

use crate::args::{Args, Kind};
use crate::contenders::{Contender, Running};
use crate::metric::{Load, Metric, Percentile, Process, Traffic};
use crate::topology::Profile;

/// A measurement. One may give several figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Tcp(Profile, tcp::Streams),
    Udp(u16),
    Ping(Traffic),
    Memory,
}

/// What is measured of each contender in each repetition, in this order.
pub(crate) fn steps(args: &Args, contender: Contender) -> Vec<Step> {
    let relayed = contender.relayed();
    use tcp::Streams::{Both, Four, FourBack, One, OneBack};
    let kinds = args.kinds();
    let mut steps = vec![];
    if kinds.contains(&Kind::Tcp) {
        let all: &[_] = if args.quick || relayed {
            &[One]
        } else {
            &[One, OneBack, Four, FourBack, Both]
        };
        steps.extend(
            all.iter()
                .map(|streams| Step::Tcp(Profile::Plain, *streams)),
        );
    }
    if kinds.contains(&Kind::Udp) {
        steps.extend([Step::Udp(64), Step::Udp(1350)]);
    }
    if kinds.contains(&Kind::Ping) {
        steps.extend([Step::Ping(Traffic::Idle), Step::Ping(Traffic::Loaded)]);
    }
    if kinds.contains(&Kind::Offload) && !relayed {
        for profile in [Profile::GroAlone, Profile::NoOffload] {
            steps.extend([One, Four].map(|streams| Step::Tcp(profile, streams)));
        }
    }
    if kinds.contains(&Kind::Memory) && !matches!(contender, Contender::Raw) {
        steps.push(Step::Memory);
    }
    steps
}

impl Step {
    /// What it is called in messages.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Tcp(profile, streams) => format!("TCP {} ({})", streams.label(), profile.id()),
            Self::Udp(bytes) => format!("UDP {bytes} B"),
            Self::Ping(Traffic::Idle) => "ping idle".to_owned(),
            Self::Ping(Traffic::Loaded) => "ping under load".to_owned(),
            Self::Memory => "memory".to_owned(),
        }
    }

    /// The figures that are missing when it fails.
    pub(crate) fn metrics(self) -> Vec<Metric> {
        match self {
            Self::Tcp(profile, streams) => {
                let mut metrics: Vec<_> = streams
                    .loads()
                    .iter()
                    .map(|load| Metric::Tcp(profile, *load))
                    .collect();
                if metrics == [Metric::Tcp(Profile::Plain, Load::One)] {
                    metrics.extend([Process::Sender, Process::Receiver].map(Metric::Cpu));
                }
                metrics
            }
            Self::Udp(bytes) => vec![Metric::Udp(bytes)],
            Self::Ping(traffic) => [Percentile::P50, Percentile::P99]
                .map(|part| Metric::Ping(traffic, part))
                .to_vec(),
            Self::Memory => [Process::Sender, Process::Receiver]
                .map(Metric::Resident)
                .to_vec(),
        }
    }

    /// Carries it out.
    pub(crate) fn measure(self, running: &mut Running, seconds: u32) -> Result<Vec<(Metric, f64)>> {
        running.pair.set(match self {
            Self::Tcp(profile, _) => profile,
            _ => Profile::Plain,
        })?;
        match self {
            Self::Tcp(profile, streams) => throughput(running, profile, streams, seconds),
            Self::Udp(bytes) => {
                let hint = running.hints.get(&bytes).copied();
                let rate = udp::highest_rate(&running.pair, running.destination, bytes, hint)?;
                running.hints.insert(bytes, rate);
                Ok(vec![(Metric::Udp(bytes), rate / 1e3)])
            }
            Self::Ping(traffic) => round_trips(running, traffic, seconds),
            Self::Memory => memory(running),
        }
    }
}

fn throughput(
    running: &mut Running,
    profile: Profile,
    streams: tcp::Streams,
    seconds: u32,
) -> Result<Vec<(Metric, f64)>> {
    running.ready_server()?;
    let pids = running.pids();
    let before = process::cpu_times(&pids)?;
    let transfer = tcp::run(&running.pair, running.destination, streams, seconds)?;
    let after = process::cpu_times(&pids)?;
    let mut figures: Vec<_> = streams
        .loads()
        .iter()
        .zip(&transfer.gbit_s)
        .map(|(load, rate)| (Metric::Tcp(profile, *load), *rate))
        .collect();
    if (profile, streams) == (Profile::Plain, tcp::Streams::One) {
        for ((process, before), after) in Process::ALL.iter().zip(before).zip(after) {
            let seconds = after.saturating_sub(before).as_secs_f64();
            figures.push((Metric::Cpu(*process), seconds / (transfer.bytes / 1e9)));
        }
    }
    Ok(figures)
}

fn round_trips(running: &Running, traffic: Traffic, seconds: u32) -> Result<Vec<(Metric, f64)>> {
    let (pair, to) = (&running.pair, running.destination);
    let micros = match traffic {
        Traffic::Idle => ping::idle(pair, to)?,
        Traffic::Loaded => ping::loaded(pair, to, seconds)?,
    };
    [(Percentile::P50, 0.5), (Percentile::P99, 0.99)]
        .into_iter()
        .map(|(name, part)| {
            let figure = crate::stats::percentile(&micros, part).context("no probe was sent")?;
            Ok((Metric::Ping(traffic, name), figure))
        })
        .collect()
}

fn memory(running: &mut Running) -> Result<Vec<(Metric, f64)>> {
    let mut figures = vec![];
    for (process, pid) in Process::ALL.iter().zip(running.pids()) {
        let (resident, peak) = process::memory(pid)?;
        figures.extend([
            (Metric::Resident(*process), resident),
            (Metric::Peak(*process), peak),
        ]);
    }
    Ok(figures)
}
