//! What is measured: the columns of the tables.

use crate::topology::Profile;

/// A figure that a contender has one of in each repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// Gb/s.
    Tcp(Profile, Load),
    /// Thousands of UDP packets per second with this many bytes of payload, at less than 1 % loss.
    Udp(u16),
    /// Round trip in microseconds.
    Ping(Traffic, Percentile),
    /// CPU seconds per gigabyte of one TCP stream.
    Cpu(Process),
    /// Resident memory in megabytes after the load.
    Resident(Process),
    /// The most resident memory in megabytes that the process ever had.
    Peak(Process),
}

/// Which TCP streams run, and whose rate is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// One stream, from the first host to the second.
    One,
    /// One stream, back.
    OneBack,
    /// Four streams.
    Four,
    /// Four streams, back.
    FourBack,
    /// One stream in each direction at once: the one there.
    BothThere,
    /// One stream in each direction at once: the one back.
    BothBack,
}

/// What else crosses the tunnel while it is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Traffic {
    /// Nothing.
    Idle,
    /// One TCP stream.
    Loaded,
}

/// Of many round trips, which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Percentile {
    /// The median.
    P50,
    /// The one that 99 % are not longer than.
    P99,
}

/// A process of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Process {
    /// The daemon on the sending host.
    Sender,
    /// The daemon on the receiving host.
    Receiver,
    /// The relay between them.
    Relay,
}

impl Process {
    /// All, in the order in which a contender names its processes.
    pub(crate) const ALL: [Self; 3] = [Self::Sender, Self::Receiver, Self::Relay];

    fn name(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
            Self::Relay => "relay",
        }
    }
}

impl Load {
    fn label(self) -> &'static str {
        match self {
            Self::One => "1 stream →",
            Self::OneBack => "1 stream ←",
            Self::Four => "4 streams →",
            Self::FourBack => "4 streams ←",
            Self::BothThere => "both ways →",
            Self::BothBack => "both ways ←",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::OneBack => "1_back",
            Self::Four => "4",
            Self::FourBack => "4_back",
            Self::BothThere => "both_there",
            Self::BothBack => "both_back",
        }
    }
}

impl Metric {
    /// The head of its column.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Tcp(Profile::Plain, load) => load.label().to_owned(),
            Self::Tcp(Profile::GroAlone, load) => format!("{}, GRO on", load.label()),
            Self::Tcp(Profile::NoOffload, load) => format!("{}, GRO off", load.label()),
            Self::Udp(bytes) => format!("{bytes} B"),
            Self::Ping(traffic, percentile) => {
                let traffic = match traffic {
                    Traffic::Idle => "idle",
                    Traffic::Loaded => "under load",
                };
                format!("{traffic} {}", percentile.name())
            }
            Self::Cpu(process) => process.name().to_owned(),
            Self::Resident(process) => format!("{} now", process.name()),
            Self::Peak(process) => format!("{} peak", process.name()),
        }
    }

    /// Its key in the machine-readable results; the unit is part of it.
    pub(crate) fn id(self) -> String {
        match self {
            Self::Tcp(profile, load) => format!("tcp_{}_{}_gbit_s", profile.id(), load.id()),
            Self::Udp(bytes) => format!("udp_{bytes}_kpps"),
            Self::Ping(traffic, percentile) => {
                let traffic = match traffic {
                    Traffic::Idle => "idle",
                    Traffic::Loaded => "loaded",
                };
                format!("ping_{traffic}_{}_us", percentile.name())
            }
            Self::Cpu(process) => format!("cpu_{}_s_per_gb", process.name()),
            Self::Resident(process) => format!("rss_{}_mb", process.name()),
            Self::Peak(process) => format!("rss_peak_{}_mb", process.name()),
        }
    }

    /// Digits after the point that mean something.
    pub(crate) fn decimals(self) -> usize {
        match self {
            Self::Tcp(..) | Self::Cpu(_) => 2,
            Self::Udp(_) | Self::Resident(_) | Self::Peak(_) => 1,
            Self::Ping(..) => 0,
        }
    }
}

impl Percentile {
    fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }
}

/// A table: its title, and its columns.
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) columns: Vec<Metric>,
}

/// All tables.
pub(crate) fn sections() -> Vec<Section> {
    use {Load::*, Percentile::*, Process::*, Profile::*, Traffic::*};
    let of = |profile, loads: &[Load]| {
        let columns = loads.iter().map(move |load| Metric::Tcp(profile, *load));
        columns.collect::<Vec<_>>()
    };
    let section = |title, columns| Section { title, columns };
    vec![
        section(
            "TCP, Gb/s",
            of(Plain, &[One, OneBack, Four, FourBack, BothThere, BothBack]),
        ),
        section(
            "TCP with segmentation offload of the link off, Gb/s",
            [of(GroAlone, &[One, Four]), of(NoOffload, &[One, Four])].concat(),
        ),
        section(
            "UDP, 1000 packets/s that arrive with less than 1 % loss, by payload",
            vec![Metric::Udp(64), Metric::Udp(1350)],
        ),
        section(
            "Round trip, µs",
            vec![
                Metric::Ping(Idle, P50),
                Metric::Ping(Idle, P99),
                Metric::Ping(Loaded, P50),
                Metric::Ping(Loaded, P99),
            ],
        ),
        section(
            "CPU-s/GB of one TCP stream",
            vec![
                Metric::Cpu(Sender),
                Metric::Cpu(Receiver),
                Metric::Cpu(Relay),
            ],
        ),
        section(
            "Resident memory after the load, MB",
            vec![
                Metric::Resident(Sender),
                Metric::Peak(Sender),
                Metric::Resident(Receiver),
                Metric::Peak(Receiver),
                Metric::Resident(Relay),
                Metric::Peak(Relay),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_columns_share_a_key_or_a_head_in_one_table() {
        let mut ids = BTreeSet::new();
        for section in sections() {
            let mut labels = BTreeSet::new();
            for metric in section.columns {
                assert!(ids.insert(metric.id()), "{}", metric.id());
                assert!(labels.insert(metric.label()), "{}", metric.label());
            }
        }
    }
}
