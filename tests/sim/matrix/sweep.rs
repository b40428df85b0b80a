//! Many runs of many cells, on all CPUs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_tests::sim::Sim;

use super::run::{Cell, End, Means, Outcome};

/// How many runs each kind of cell gets, and for how long a cell that ends on the relay looks for something better.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Where the goal is to be reached always.
    pub(super) sure: u64,
    /// Where chance decides.
    pub(super) likely: u64,
    /// Where nothing direct is expected.
    pub(super) relay: u64,
    pub(super) patience: Duration,
}

/// A cell and its runs.
#[derive(Debug)]
pub(super) struct Result {
    pub(super) cell: Cell,
    /// By seed.
    pub(super) runs: Vec<(u64, std::result::Result<Outcome, String>)>,
}

impl Effort {
    fn runs(&self, cell: &Cell) -> u64 {
        use super::goals::Goal;
        match cell.goal {
            Goal::Plain | Goal::Prediction => self.sure,
            Goal::Birthday => self.likely,
            Goal::Relay | Goal::Nothing => self.relay,
        }
    }
}

/// Runs every cell as often as `effort` says, with the seeds from 0 on.
pub(super) fn sweep(cells: &[Cell], effort: &Effort) -> Vec<Result> {
    let mut jobs: Vec<(usize, u64)> = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        jobs.extend((0..effort.runs(cell)).map(|seed| (index, seed)));
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = Vec::new();
                while let Some((index, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    own.push((*index, *seed, run(&cells[*index], *seed, effort.patience)));
                }
                done.lock().expect("no thread panics with it").extend(own);
            });
        }
    });
    collect(cells, done.into_inner().expect("no thread panics with it"))
}

/// A panic in a run is an outcome like any other, so that the others go on.
fn run(cell: &Cell, seed: u64, patience: Duration) -> std::result::Result<Outcome, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| cell.run(&mut Sim::new(seed), patience)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.unwrap_or_else(|| "panic".to_owned()))
    })
}

type Done = (usize, u64, std::result::Result<Outcome, String>);

fn collect(cells: &[Cell], done: Vec<Done>) -> Vec<Result> {
    let empty = |cell: &Cell| Result {
        cell: *cell,
        runs: Vec::new(),
    };
    let mut results: Vec<Result> = cells.iter().map(empty).collect();
    for (index, seed, outcome) in done {
        results[index].runs.push((seed, outcome));
    }
    for result in &mut results {
        result.runs.sort_by_key(|(seed, _)| *seed);
    }
    results
}

impl Result {
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.runs.iter().filter_map(|(_, run)| run.as_ref().ok())
    }

    /// Runs that ended directly.
    pub(super) fn direct(&self) -> usize {
        self.outcomes().filter(|run| run.end == End::Direct).count()
    }

    pub(super) fn times(&self) -> impl Iterator<Item = Duration> {
        self.outcomes().filter_map(|run| run.took)
    }

    /// How most runs ended; the better of two that are as frequent.
    pub(super) fn most(&self) -> Option<End> {
        let ends = [End::Nothing, End::Relay, End::Direct];
        let count = |end: &End| self.outcomes().filter(|run| run.end == *end).count();
        ends.into_iter()
            .max_by_key(count)
            .filter(|end| count(end) > 0)
    }

    /// What opened most of the direct paths, if most runs ended with one.
    pub(super) fn means(&self) -> Option<Means> {
        let count = |means: &Means| {
            let runs = self.outcomes();
            runs.filter(|run| run.means == Some(*means)).count()
        };
        let most = Means::ALL.into_iter().max_by_key(count);
        most.filter(|_| self.most() == Some(End::Direct))
    }

    /// What is wrong with the cell: runs in which something happened that never may, or too many that ended worse than
    /// the goal. Names the seeds.
    pub(super) fn complaint(&self) -> Option<String> {
        let (cell, goal) = (self.cell, self.cell.goal);
        let mut wrong = Vec::new();
        let errors = self
            .runs
            .iter()
            .filter_map(|(seed, run)| Some((seed, run.as_ref().err()?)));
        let errors: Vec<String> = errors
            .map(|(seed, error)| format!("seed {seed}: {error}"))
            .collect();
        wrong.extend(errors.first().cloned());
        if errors.len() > 1 {
            wrong.push(format!("{} runs like this", errors.len()));
        }
        let missed = self.runs.iter().filter_map(|(seed, run)| {
            let run = run.as_ref().ok()?;
            (!self.cell.is_met_by(run)).then_some((*seed, run.tried.as_str()))
        });
        let missed: Vec<(u64, &str)> = missed.collect();
        if missed.len() > goal.misses(self.runs.len()) {
            let seeds: Vec<u64> = missed.iter().take(5).map(|(seed, _)| *seed).collect();
            let (count, runs, first) = (missed.len(), self.runs.len(), missed[0].1);
            wrong.push(format!(
                "{count} of {runs} runs missed it, seeds {seeds:?}; in the first {first}"
            ));
        }
        let runs = wrong.join("; ");
        (!wrong.is_empty()).then(|| format!("{cell} (goal: {goal}): {runs}"))
    }
}
