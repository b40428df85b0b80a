//! `make bench-scale`: what a relay forwards for a second of CPU time, and what peers cost a daemon that are only configured.
//!
//! `mesh-bench-scale [relay|clients|idle|peers]… [--runs N]`: everything, and 5 runs, unless given. Figures are medians with the range;
//! the exit code tells whether all goals hold.

mod idle;
mod mesh;
mod peers;
mod procfs;
mod relay;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mesh_tests::lab::Lab;

use table::Table;

const USAGE: &str = "usage: mesh-bench-scale [relay|clients|idle|peers]… [--runs N]";
/// An odd number, so that the median is one of the runs.
const RUNS: usize = 5;

type Suite = fn(&Lab, usize, &mut Table) -> Result<()>;
const SUITES: [(&str, Suite); 4] = [
    ("relay", relay::run),
    ("clients", relay::idle_clients),
    ("idle", idle::run),
    ("peers", peers::run),
];

fn main() -> ExitCode {
    let (suites, runs) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench-scale: namespaces and TUN devices need root; run `sudo make bench-scale`");
        return ExitCode::FAILURE;
    }
    let mut table = Table::default();
    for suite in suites {
        if let Err(error) = in_lab(suite, runs, &mut table) {
            eprintln!("bench-scale: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    println!("\n{table}");
    if table.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn arguments() -> Result<(Vec<Suite>, usize)> {
    let (mut suites, mut runs) = (Vec::new(), RUNS);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--runs" {
            let number = args.next().context("--runs needs a number")?;
            runs = number.parse().context("--runs needs a number")?;
        } else if let Some((_, suite)) = SUITES.iter().find(|(name, _)| *name == arg) {
            suites.push(*suite);
        } else {
            bail!("there is no {arg:?}");
        }
    }
    if suites.is_empty() {
        suites.extend(SUITES.map(|(_, suite)| suite));
    }
    Ok((suites, runs.max(1)))
}

fn in_lab(suite: Suite, runs: usize, table: &mut Table) -> Result<()> {
    let lab = Lab::new()?;
    let outcome = suite(&lab, runs, table);
    if outcome.is_err() {
        eprintln!("{}", lab.log_tails());
    }
    lab.remove();
    outcome
}
