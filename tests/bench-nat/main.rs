//! `make bench-nat`: how long two hosts stay on the relay before they have a direct path, by what their NATs ask for.
//!
//! `mesh-bench-nat [plain|prediction|birthday]… [--runs N]`: everything, and 20 runs, unless given. The real programs behind
//! real nftables NATs, on links without delay and on links of 30 ms one way. The exit code tells whether all goals hold.

mod moments;
mod run;
#[path = "../bench-scale/table.rs"]
mod table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::lab::{Allocation, Behaviour, Dependence, Nat};

use run::Run;
use table::{Goal, Spread, Table};

const USAGE: &str = "usage: mesh-bench-nat [plain|prediction|birthday]… [--runs N]";
const RUNS: usize = 20;
/// Probes of one side until the path is direct, at most: what it sends in one attempt.
const BUDGET: u64 = 2_048;
const FAR: Duration = Duration::from_millis(30);

/// Two NATs, and what is to be reached between them.
struct Case {
    name: &'static str,
    nats: (Nat, Nat),
    /// Longest median without delay and with it, in seconds.
    goals: [Goal; 2],
    /// Least share of runs that end directly, in percent.
    share: f64,
    /// When to give a run up.
    limit: Duration,
}

const fn symmetric(allocation: Allocation) -> Nat {
    use Dependence::AddressAndPort;
    Nat::Modelled(Behaviour::new(AddressAndPort, AddressAndPort, allocation).whole())
}

const CASES: [Case; 3] = [
    Case {
        name: "plain",
        nats: (Nat::Masquerade, Nat::Masquerade),
        goals: [Goal::AtMost(0.02), Goal::None],
        share: 100.0,
        limit: Duration::from_secs(20),
    },
    Case {
        name: "prediction",
        nats: (Nat::Masquerade, symmetric(Allocation::Sequential)),
        goals: [Goal::AtMost(1.5), Goal::AtMost(1.5)],
        share: 100.0,
        limit: Duration::from_secs(30),
    },
    // `masquerade fully-random` gives out every port from 1024 on.
    Case {
        name: "birthday",
        nats: (Nat::Masquerade, Nat::Symmetric),
        goals: [Goal::AtMost(12.0), Goal::AtMost(12.0)],
        share: 99.0,
        limit: Duration::from_secs(40),
    },
];

fn main() -> ExitCode {
    let (cases, runs) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench-nat: namespaces and TUN devices need root; run `sudo make bench-nat`");
        return ExitCode::FAILURE;
    }
    let mut table = Table::default();
    for case in cases {
        for (delay, goal) in [Duration::ZERO, FAR].into_iter().zip(case.goals) {
            if let Err(error) = measure(case, delay, goal, runs, &mut table) {
                eprintln!("bench-nat: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("\n{table}");
    if table.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn arguments() -> Result<(Vec<&'static Case>, usize)> {
    let (mut cases, mut runs) = (Vec::new(), RUNS);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--runs" {
            let number = args.next().context("--runs needs a number")?;
            runs = number.parse().context("--runs needs a number")?;
        } else if let Some(case) = CASES.iter().find(|case| case.name == arg) {
            cases.push(case);
        } else {
            bail!("there is no {arg:?}");
        }
    }
    if cases.is_empty() {
        cases.extend(&CASES);
    }
    Ok((cases, runs.max(1)))
}

fn measure(case: &Case, delay: Duration, goal: Goal, runs: usize, table: &mut Table) -> Result<()> {
    let mut direct: Vec<Run> = Vec::new();
    for number in 1..=runs {
        match run::once(case.nats, delay, case.limit)? {
            Some(run) => direct.push(run),
            None => eprintln!("{}, {delay:?}: run {number} stayed on the relay", case.name),
        }
    }
    let name = format!("{}, {} ms one way", case.name, delay.as_millis());
    let within = direct.iter().filter(|run| run.probes <= BUDGET).count();
    let share = 100.0 * within as f64 / runs as f64;
    let least = Goal::AtLeast(case.share);
    table.add(
        format!("{name}: direct within the budget"),
        "% of runs",
        Spread::of([share]),
        least,
    );
    if direct.is_empty() {
        return Ok(());
    }
    let probes = Spread::of(direct.iter().map(|run| run.probes as f64));
    if probes.high > 0.0 {
        table.add(format!("{name}: probes"), "probes", probes, Goal::None);
    }
    let took = direct.iter().map(|run| run.took.as_secs_f64());
    table.add(
        format!("{name}: relayed to direct"),
        "s",
        Spread::of(took),
        goal,
    );
    Ok(())
}
