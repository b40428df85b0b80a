//! Starts the contenders and measures them in turn, again and again.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::lab::Lab;

use crate::args::Args;
use crate::contenders::{Contender, Running};
use crate::measure::{Step, steps};
use crate::results::{Results, Row, one_line};

/// Measures everything that `args` ask for.
pub(crate) fn run(lab: &Lab, args: &Args, contenders: &[Contender]) -> Results {
    let (mut rows, mut running) = (vec![], vec![]);
    for contender in contenders {
        let (row, tunnel) = start(lab, *contender, &args.congestion_control);
        rows.push(row);
        running.push(tunnel);
    }
    for (row, tunnel) in rows.iter_mut().zip(&mut running) {
        let outcome = tunnel.as_mut().map(|tunnel| {
            tunnel.wait()?;
            row.mtu = Some(tunnel.mtu()?);
            anyhow::Ok(())
        });
        if let Some(Err(error)) = outcome {
            // Gone, so that a daemon that keeps trying disturbs nobody.
            *tunnel = None;
            miss(row, &error);
        }
    }
    let plans: Vec<Vec<Step>> = contenders
        .iter()
        .zip(&running)
        .map(|(contender, tunnel)| match tunnel {
            Some(_) => steps(args, *contender),
            None => vec![],
        })
        .collect();
    let total = plans.iter().map(Vec::len).sum::<usize>() * args.runs() as usize;
    let mut progress = Progress::new(total, args.runs());
    for repetition in 1..=args.runs() {
        progress.repetition = repetition;
        // Contender by contender in each repetition, so that whatever else the machine does hits all alike.
        for ((row, tunnel), plan) in rows.iter_mut().zip(&mut running).zip(&plans) {
            if let Some(tunnel) = tunnel {
                measure(row, tunnel, plan, args.seconds(), &mut progress);
            }
        }
    }
    Results { rows }
}

fn start(lab: &Lab, contender: Contender, congestion_control: &str) -> (Row, Option<Running>) {
    let mut row = Row {
        name: contender.name().to_owned(),
        ..Row::default()
    };
    let started = contender.version().and_then(|version| {
        row.version = version;
        contender.start(lab, congestion_control)
    });
    match started {
        Ok(running) => (row, Some(running)),
        Err(error) => {
            miss(&mut row, &error);
            (row, None)
        }
    }
}

fn miss(row: &mut Row, error: &anyhow::Error) {
    let why = one_line(error);
    println!("{} takes no part: {why}", row.name);
    row.missing = Some(why);
}

fn measure(
    row: &mut Row,
    tunnel: &mut Running,
    plan: &[Step],
    seconds: u32,
    progress: &mut Progress,
) {
    for step in plan {
        let outcome = attempt(tunnel, *step, seconds);
        progress.report(&row.name, *step, &outcome);
        if outcome.is_err() {
            // A tunnel that has ended fails every later step by itself.
            let _ = tunnel.renew_server();
        }
        row.add(&step.metrics(), outcome);
    }
}

fn attempt(
    tunnel: &mut Running,
    step: Step,
    seconds: u32,
) -> Result<Vec<(crate::metric::Metric, f64)>> {
    tunnel.check()?;
    step.measure(tunnel, seconds)
}

/// Says what was measured, and how much is left.
struct Progress {
    done: usize,
    total: usize,
    repetition: u32,
    repetitions: u32,
    started: Instant,
}

impl Progress {
    fn new(total: usize, repetitions: u32) -> Self {
        Self {
            done: 0,
            total,
            repetition: 0,
            repetitions,
            started: Instant::now(),
        }
    }

    fn report(
        &mut self,
        name: &str,
        step: Step,
        outcome: &Result<Vec<(crate::metric::Metric, f64)>>,
    ) {
        self.done += 1;
        let Self {
            done,
            total,
            repetition,
            repetitions,
            started,
        } = self;
        let found = match outcome {
            Ok(figures) => {
                let figures = figures
                    .iter()
                    .map(|(metric, figure)| format!("{figure:.*}", metric.decimals()));
                figures.collect::<Vec<_>>().join(" / ")
            }
            Err(error) => format!("failed: {}", one_line(error)),
        };
        let elapsed = Duration::from_secs(started.elapsed().as_secs());
        println!(
            "[{done}/{total}, {elapsed:?}] run {repetition} of {repetitions}, {name}, {}: {found}",
            step.label()
        );
    }
}
