//! `make bench`: meshd beside other tunnels, on bare veth, in one run; see `--help`.
//!
//! Figures are medians with the range. Fails when a promise is not kept, and never shows a figure that was not measured.

mod args;
mod contenders;
mod measure;
mod metric;
mod report;
mod results;
mod run;
mod stats;
mod topology;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use mesh_tests::lab::Lab;

use args::Args;
use contenders::Contender;
use report::{Machine, Verdict};
use results::{Results, Row};

fn main() -> ExitCode {
    let args = Args::parse();
    let contenders = contenders::all(&args);
    let names: Vec<String> = contenders.iter().map(|one| one.name().to_owned()).collect();
    if let Some(name) = args.unknown(&names) {
        eprintln!(
            "bench: no contender is called {name:?}; there are {}",
            names.join(", ")
        );
        return ExitCode::from(2);
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: namespaces and TUN devices need root; run `sudo make bench`");
        return ExitCode::FAILURE;
    }
    let contenders: Vec<Contender> = contenders
        .into_iter()
        .filter(|contender| args.wants(contender.name()))
        .collect();
    match bench(&args, &contenders) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when every promise that could be judged is kept.
fn bench(args: &Args, contenders: &[Contender]) -> Result<bool> {
    let machine = Machine::new(args);
    println!("{}", machine.text());
    let lab = Lab::new()?;
    let results = run::run(&lab, args, contenders);
    if results.rows.iter().any(trouble) {
        eprintln!("logs are kept in {}", lab.dir().display());
    } else {
        lab.remove();
    }
    conclude(args, &results, &machine)
}

fn trouble(row: &Row) -> bool {
    let mut cells = row.cells.values();
    row.missing.is_some() || cells.any(|cell| !cell.failures.is_empty())
}

fn conclude(args: &Args, results: &Results, machine: &Machine) -> Result<bool> {
    println!("\n{}", report::tables(results));
    print!("{}", report::notes(results));
    let promises = report::promises(results);
    for promise in &promises {
        println!("{promise}");
    }
    if args.write {
        report::write(results, &promises, machine)?;
    }
    Ok(promises.iter().all(|promise| match promise.verdict {
        Verdict::Kept(_) => true,
        Verdict::Broken(_) => false,
        // Of a part of the measurements, no more can be asked.
        Verdict::Unknown => !args.complete(),
    }))
}
