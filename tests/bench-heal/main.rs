//! `make bench-heal`: how long connections stand still when something below them breaks.
//!
//! `mesh-bench-heal [WORD]… [--runs N] [--slow-runs N] [--alone-runs N] [--jobs N] [--write]`: the rows whose names hold a
//! word, or all; 20 runs of each, unless given, or another number of those that take more than a minute, and of those that
//! need the machine for themselves (0 leaves them out); several of the others at once, each in namespaces of its own. The real programs, pings every 10 ms and a TCP stream all along. Each row is run
//! without delay and with 30 ms one way between sites. The exit code tells whether all runs kept their limits.

mod cases;
mod flood;
mod report;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::lab::Lab;

use cases::{CASES, Case, Pace, Run};
use report::Report;

const USAGE: &str = "usage: mesh-bench-heal [WORD]… [--runs N] [--slow-runs N] [--alone-runs N] [--jobs N] [--write]";
const RUNS: usize = 20;
/// Runs at once: they wait most of the time.
const JOBS: usize = 3;
/// One way between two sites.
const DELAYS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(30)];

struct Arguments {
    words: Vec<String>,
    runs: usize,
    slow_runs: Option<usize>,
    alone_runs: Option<usize>,
    jobs: usize,
    write: bool,
}

/// One run of one row.
struct Task {
    case: &'static Case,
    delay: Duration,
    number: usize,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
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
    let report = Mutex::new(Report::new());
    let (together, alone): (Vec<Task>, Vec<Task>) = tasks(&arguments)
        .into_iter()
        .partition(|task| task.case.pace != Pace::Alone);
    work(&together, arguments.jobs, &report);
    work(&alone, 1, &report);
    let report = report
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("\n{}", report.table());
    if arguments.write
        && let Err(error) = report.write()
    {
        eprintln!("bench-heal: {error:#}");
        return ExitCode::FAILURE;
    }
    if report.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments {
        words: Vec::new(),
        runs: RUNS,
        slow_runs: None,
        alone_runs: None,
        jobs: JOBS,
        write: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || -> Result<usize> {
            let number = args.next().and_then(|number| number.parse().ok());
            number.with_context(|| format!("{arg} needs a number"))
        };
        match arg.as_str() {
            "--runs" => arguments.runs = number()?,
            "--slow-runs" => arguments.slow_runs = Some(number()?),
            "--alone-runs" => arguments.alone_runs = Some(number()?),
            "--jobs" => arguments.jobs = number()?.max(1),
            "--write" => arguments.write = true,
            word if CASES.iter().any(|case| case.name.contains(word)) => arguments.words.push(arg),
            word => bail!("no row's name holds {word:?}"),
        }
    }
    Ok(arguments)
}

/// Row by row; the long ones first, so that the others fill the time that they wait.
fn tasks(arguments: &Arguments) -> Vec<Task> {
    let wanted = |case: &&Case| {
        let words = &arguments.words;
        words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str()))
    };
    let mut tasks = Vec::new();
    for case in CASES.iter().filter(wanted) {
        let runs = match case.pace {
            Pace::Short => arguments.runs,
            Pace::Slow => arguments.slow_runs.unwrap_or(arguments.runs),
            Pace::Alone => arguments.alone_runs.unwrap_or(arguments.runs),
        };
        for delay in DELAYS {
            tasks.extend((0..runs).map(|number| Task {
                case,
                delay,
                number,
            }));
        }
    }
    tasks.sort_by_key(|task| task.case.pace != Pace::Slow);
    tasks
}

/// Carries out all runs, so many at once.
fn work(tasks: &[Task], jobs: usize, report: &Mutex<Report>) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(tasks.len()) {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(task);
                    let mut report = report
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    report.add(task.case, task.delay, outcome);
                }
            });
        }
    });
}

fn run(task: &Task) -> Result<Vec<f64>> {
    let lab = Lab::new()?;
    let run = Run {
        lab: &lab,
        delay: task.delay,
        number: task.number,
    };
    let outcome = (task.case.run)(&run).and_then(|figures| lab.check().map(|()| figures));
    let result = match &outcome {
        Ok(figures) if task.case.holds(figures, task.delay) => {
            lab.remove();
            return outcome;
        }
        Ok(figures) => format!("{figures:.0?}"),
        Err(error) => format!("{error:#}"),
    };
    eprintln!(
        "{} at {} ms: {result}; the logs are in {}",
        task.case.name,
        task.delay.as_millis(),
        lab.dir().display()
    );
    outcome
}
