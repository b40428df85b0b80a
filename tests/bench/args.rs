//! The command line.

use std::collections::BTreeSet;

use clap::{Parser, ValueEnum};

/// Compares meshd with other tunnels on a bare veth, in one run: throughput, packets, latency, CPU and memory.
#[derive(Debug, Clone, Parser)]
#[command(name = "mesh-bench")]
pub(crate) struct Args {
    /// Repetitions; figures are the median of them with smallest and largest [default: 5; 3 when quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,

    /// Length of one TCP measurement, in seconds [default: 3; 1 when quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,

    /// Measure these alone
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,

    /// Compare these alone, by their names in the table
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,

    /// Congestion control of every TCP connection. The kernel's own default, whatever this machine prefers: one that paces,
    /// such as bbr, measures the timers of the kernel as well
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub(crate) congestion_control: String,

    /// For development: fewer and shorter runs, plain link, TCP with one stream and ping
    #[arg(long)]
    pub(crate) quick: bool,

    /// Also meshd with ring's cipher, and with none; a whole run has them anyway
    #[arg(long)]
    variants: bool,

    /// Write docs/benchmarks.md, .json and .svg
    #[arg(long)]
    pub(crate) write: bool,
}

/// A group of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// TCP on the plain link, with CPU time
    Tcp,
    /// TCP with segmentation offload off
    Offload,
    /// Packets per second with less than 1 % loss
    Udp,
    /// Round trips, idle and under load
    Ping,
    /// Memory after the load
    Memory,
    /// The relayed path
    Relay,
}

impl Args {
    /// Repetitions.
    pub(crate) fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 3 } else { 5 })
    }

    /// Seconds of one TCP measurement.
    pub(crate) fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// The groups to measure. A relay alone is measured with everything that it is measured with.
    pub(crate) fn kinds(&self) -> BTreeSet<Kind> {
        let named: BTreeSet<Kind> = self.only.iter().copied().collect();
        let measurements = named.iter().filter(|kind| **kind != Kind::Relay);
        let measurements: BTreeSet<Kind> = measurements.copied().collect();
        if !measurements.is_empty() {
            return measurements;
        }
        if self.quick {
            return [Kind::Tcp, Kind::Ping].into();
        }
        [
            Kind::Tcp,
            Kind::Offload,
            Kind::Udp,
            Kind::Ping,
            Kind::Memory,
        ]
        .into()
    }

    /// True unless the relayed path alone is asked for.
    pub(crate) fn direct(&self) -> bool {
        self.only.iter().any(|kind| *kind != Kind::Relay) || self.only.is_empty()
    }

    /// True when the relayed path is to be measured.
    pub(crate) fn relayed(&self) -> bool {
        self.only.contains(&Kind::Relay) || (self.only.is_empty() && !self.quick)
    }

    /// True when a contender of this name is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|wanted| wanted == name)
    }

    /// The first name that `--contenders` gives and no contender has.
    pub(crate) fn unknown<'a>(&'a self, known: &[String]) -> Option<&'a str> {
        let mut names = self.contenders.iter();
        names.find(|name| !known.contains(name)).map(String::as_str)
    }

    /// True when meshd is also to be measured with other ciphers.
    pub(crate) fn variants(&self) -> bool {
        self.variants || self.complete()
    }

    /// True when everything is measured, so that a promise left unmeasured is a promise not kept.
    pub(crate) fn complete(&self) -> bool {
        !self.quick && self.only.is_empty() && self.contenders.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Args {
        Args::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_command_line_is_one_that_clap_accepts() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn without_arguments_everything_is_measured() {
        let args = parse("mesh-bench");
        assert!(args.complete() && args.direct() && args.relayed());
        assert_eq!((args.runs(), args.seconds(), args.kinds().len()), (5, 3, 5));
    }

    #[test]
    fn the_relayed_path_alone_is_measured_without_the_direct_ones() {
        let args = parse("mesh-bench --only relay");
        assert!(args.relayed() && !args.direct() && !args.complete());
        let args = parse("mesh-bench --only relay,ping");
        assert!(args.relayed() && args.direct());
        assert_eq!(args.kinds(), [Kind::Ping].into());
    }

    #[test]
    fn an_unknown_contender_is_found_out() {
        let args = parse("mesh-bench --contenders raw,openvpn");
        assert_eq!(args.unknown(&["raw".into()]), Some("openvpn"));
        assert!(args.wants("raw") && !args.wants("meshd"));
    }
}
