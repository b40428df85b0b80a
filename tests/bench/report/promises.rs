//! What the project promises of meshd's speed, and whether it is kept.

use std::fmt::{self, Display};

use crate::contenders::{MESHD, MESHD_RING, RAW, RELAYED, WIREGUARD_GO};
use crate::metric::{Load, Metric, Percentile, Process, Traffic};
use crate::results::Results;
use crate::topology::Profile;

/// TCP, one stream: times wireguard-go's.
const TCP_TIMES_WIREGUARD_GO: f64 = 10.0;
/// The same against every other tunnel, also with segmentation offload of the link off.
const TCP_TIMES_OTHERS: f64 = 2.0;
/// UDP packets of 1,350 bytes: times wireguard-go's.
const UDP_TIMES_WIREGUARD_GO: f64 = 4.0;
/// What the tunnel adds to a round trip, in parts of what wireguard-go adds.
const PING_OF_WIREGUARD_GO: f64 = 0.6;
/// CPU seconds per gigabyte at each end.
const CPU: f64 = 0.75;
/// The same with the cipher of CPUs without AVX-512.
const CPU_RING: f64 = 1.1;

/// A promise and what was found of it.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) what: String,
    pub(crate) limit: Limit,
    pub(crate) verdict: Verdict,
}

/// What a figure must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// The figure against the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    Kept(f64),
    Broken(f64),
    /// Something that it needs was not measured.
    Unknown,
}

impl Limit {
    fn judge(self, figure: Option<f64>) -> Verdict {
        // Not a number, from a division by nothing, is not a figure.
        let Some(figure) = figure.filter(|figure| figure.is_finite()) else {
            return Verdict::Unknown;
        };
        let kept = match self {
            Self::AtLeast(limit) => figure >= limit,
            Self::AtMost(limit) => figure <= limit,
        };
        if kept {
            Verdict::Kept(figure)
        } else {
            Verdict::Broken(figure)
        }
    }
}

impl Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, limit) = match self.limit {
            Limit::AtLeast(limit) => ("≥", limit),
            Limit::AtMost(limit) => ("≤", limit),
        };
        match self.verdict {
            Verdict::Kept(figure) => write!(f, "kept: {} {sign} {limit}: {figure:.2}", self.what),
            Verdict::Broken(figure) => {
                write!(f, "NOT KEPT: {} {sign} {limit}: {figure:.2}", self.what)
            }
            Verdict::Unknown => write!(f, "not measured: {} {sign} {limit}", self.what),
        }
    }
}

/// All promises, judged.
pub(crate) fn promises(results: &Results) -> Vec<Promise> {
    use Limit::{AtLeast, AtMost};
    let mut promises = vec![];
    let mut judge = |what: &str, limit: Limit, figure: Option<f64>| {
        promises.push(Promise {
            what: what.to_owned(),
            limit,
            verdict: limit.judge(figure),
        });
    };
    let tcp = |profile| Metric::Tcp(profile, Load::One);
    judge(
        "TCP, 1 stream: times wireguard-go",
        AtLeast(TCP_TIMES_WIREGUARD_GO),
        ratio(results, tcp(Profile::Plain), Some(WIREGUARD_GO)),
    );
    for (link, profile) in [
        ("", Profile::Plain),
        (", segmentation offload off, GRO on", Profile::GroAlone),
        (", segmentation offload off, GRO off", Profile::NoOffload),
    ] {
        judge(
            &format!("TCP, 1 stream{link}: times the best other tunnel"),
            AtLeast(TCP_TIMES_OTHERS),
            ratio(results, tcp(profile), None),
        );
    }
    judge(
        "UDP, 1350 B: times wireguard-go",
        AtLeast(UDP_TIMES_WIREGUARD_GO),
        ratio(results, Metric::Udp(1350), Some(WIREGUARD_GO)),
    );
    judge(
        "idle round trip p50 beyond the bare link's: parts of wireguard-go's",
        AtMost(PING_OF_WIREGUARD_GO),
        added_round_trip(results),
    );
    for (name, cipher, limit) in [(MESHD, "", CPU), (MESHD_RING, ", ring", CPU_RING)] {
        for (end, process) in [
            ("sending", Process::Sender),
            ("receiving", Process::Receiver),
        ] {
            let figure = results.median(name, Metric::Cpu(process));
            let what = format!("CPU-s/GB of the {end} end{cipher}");
            judge(&what, AtMost(limit), figure);
        }
    }
    promises
}

/// meshd's median by another's, or by the best other tunnel's.
fn ratio(results: &Results, metric: Metric, other: Option<&str>) -> Option<f64> {
    let other = match other {
        Some(name) => results.median(name, metric)?,
        None => {
            let others = results
                .rows
                .iter()
                .map(|row| row.name.as_str())
                .filter(is_other);
            let medians = others.filter_map(|name| results.median(name, metric));
            medians.max_by(f64::total_cmp)?
        }
    };
    Some(results.median(MESHD, metric)? / other)
}

/// Neither the bare link, nor meshd in any form.
fn is_other(name: &&str) -> bool {
    *name != RAW && *name != RELAYED && !name.starts_with(MESHD)
}

fn added_round_trip(results: &Results) -> Option<f64> {
    let metric = Metric::Ping(Traffic::Idle, Percentile::P50);
    let raw = results.median(RAW, metric)?;
    let added = |name| Some(results.median(name, metric)? - raw);
    let theirs = added(WIREGUARD_GO).filter(|added| *added > 0.0)?;
    Some(added(MESHD)? / theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Row;

    fn row(name: &str, figures: &[(Metric, f64)]) -> Row {
        let mut row = Row {
            name: name.into(),
            ..Row::default()
        };
        row.add(&[], Ok(figures.to_vec()));
        row
    }

    fn verdict(results: &Results, what: &str) -> Verdict {
        let all = promises(results);
        let found = all.iter().find(|promise| promise.what == what);
        found.unwrap().verdict
    }

    const TCP: Metric = Metric::Tcp(Profile::Plain, Load::One);
    const PING: Metric = Metric::Ping(Traffic::Idle, Percentile::P50);

    #[test]
    fn throughput_is_compared_with_the_best_other_tunnel_and_not_with_the_bare_link() {
        let mut results = Results {
            rows: vec![
                row(RAW, &[(TCP, 20.0)]),
                row(MESHD, &[(TCP, 6.0)]),
                row("meshd (no cipher)", &[(TCP, 12.0)]),
                row(RELAYED, &[(TCP, 5.0)]),
                row(WIREGUARD_GO, &[(TCP, 0.5)]),
                row("tinc", &[(TCP, 2.0)]),
            ],
        };
        let others = "TCP, 1 stream: times the best other tunnel";
        assert_eq!(verdict(&results, others), Verdict::Kept(3.0));
        assert_eq!(
            verdict(&results, "TCP, 1 stream: times wireguard-go"),
            Verdict::Kept(12.0)
        );
        results.rows.push(row("new", &[(TCP, 4.0)]));
        assert_eq!(verdict(&results, others), Verdict::Broken(1.5));
    }

    #[test]
    fn the_bare_link_is_taken_off_both_round_trips() {
        let results = |own| Results {
            rows: vec![
                row(RAW, &[(PING, 10.0)]),
                row(MESHD, &[(PING, own)]),
                row(WIREGUARD_GO, &[(PING, 110.0)]),
            ],
        };
        let what = "idle round trip p50 beyond the bare link's: parts of wireguard-go's";
        assert_eq!(verdict(&results(60.0), what), Verdict::Kept(0.5));
        assert_eq!(verdict(&results(80.0), what), Verdict::Broken(0.7));
    }

    #[test]
    fn what_was_not_measured_is_neither_kept_nor_broken() {
        let results = Results::default();
        assert_eq!(promises(&results).len(), 10);
        assert!(
            promises(&results)
                .iter()
                .all(|promise| promise.verdict == Verdict::Unknown)
        );
    }

    #[test]
    fn each_end_has_its_own_limit_of_cpu_time() {
        let results = Results {
            rows: vec![
                row(
                    MESHD,
                    &[
                        (Metric::Cpu(Process::Sender), 0.75),
                        (Metric::Cpu(Process::Receiver), 0.76),
                    ],
                ),
                row(MESHD_RING, &[(Metric::Cpu(Process::Sender), 1.2)]),
            ],
        };
        assert_eq!(
            verdict(&results, "CPU-s/GB of the sending end"),
            Verdict::Kept(0.75)
        );
        assert_eq!(
            verdict(&results, "CPU-s/GB of the receiving end"),
            Verdict::Broken(0.76)
        );
        assert_eq!(
            verdict(&results, "CPU-s/GB of the sending end, ring"),
            Verdict::Broken(1.2)
        );
    }
}
