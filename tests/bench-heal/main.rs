//! `make bench-heal`: how long connections stand still when something below them breaks.
//!
//! `mesh-bench-heal [WORD]… [--runs N]`: the rows whose names hold a word, or all; 20 runs of each, unless given. The real
//! programs in namespaces, pings every 10 ms and a TCP stream all along. Each row is run without delay and with 30 ms
//! one way between sites. The exit code tells whether all runs kept their limits.

mod cases;
mod scene;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::lab::Lab;

use cases::{CASES, Case};

const USAGE: &str = "usage: mesh-bench-heal [WORD]… [--runs N]";
const RUNS: usize = 20;
/// One way between two sites.
const DELAYS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(30)];

fn main() -> ExitCode {
    let (words, runs) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench-heal: namespaces and TUN devices need root; run `sudo make bench-heal`");
        return ExitCode::FAILURE;
    }
    println!(
        "{:<58} {:>6} {:>9} {:>9} {:>9}  result",
        "case", "delay", "median", "worst", "limit"
    );
    let mut holds = true;
    for case in CASES {
        if words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str())) {
            for delay in DELAYS {
                holds &= row(&case, delay, runs);
            }
        }
    }
    if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn arguments() -> Result<(Vec<String>, usize)> {
    let (mut words, mut runs) = (Vec::new(), RUNS);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--runs" {
            let number = args.next().context("--runs needs a number")?;
            runs = number.parse().context("--runs needs a number")?;
        } else if CASES.iter().any(|case| case.name.contains(&arg)) {
            words.push(arg);
        } else {
            bail!("no row's name holds {arg:?}");
        }
    }
    Ok((words, runs.max(1)))
}

/// Runs one case several times and prints its row; true if every run kept the limit.
fn row(case: &Case, delay: Duration, runs: usize) -> bool {
    let mut stalls = Vec::new();
    let mut failed = 0;
    for _ in 0..runs {
        match run(case, delay) {
            Ok(stall) => stalls.push(stall),
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", case.name);
            }
        }
    }
    stalls.sort();
    let limit = case.limit.at(delay);
    let late = stalls.iter().filter(|stall| **stall > limit).count();
    let shown = |stall: Option<&Duration>| {
        stall.map_or("-".to_owned(), |stall| format!("{} ms", stall.as_millis()))
    };
    let holds = failed + late == 0;
    let result = if holds {
        "pass".to_owned()
    } else {
        format!("FAIL: {late} late, {failed} failed of {runs}")
    };
    println!(
        "{:<58} {:>3} ms {:>9} {:>9} {:>6} ms  {result}",
        case.name,
        delay.as_millis(),
        shown(stalls.get(stalls.len() / 2)),
        shown(stalls.last()),
        limit.as_millis()
    );
    holds
}

fn run(case: &Case, delay: Duration) -> Result<Duration> {
    let lab = Lab::new()?;
    let outcome = (case.run)(&lab, delay).and_then(|stall| lab.check().map(|()| stall));
    if outcome.is_err() {
        eprintln!("{}", lab.log_tails());
    }
    lab.remove();
    outcome
}
