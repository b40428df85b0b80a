//! What came of the runs, as a table.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::DELAYS;
use super::cases::{CASES, Case, Figure};

/// All runs of one row with one delay.
struct Row {
    case: &'static Case,
    delay: Duration,
    /// What each run measured.
    runs: Vec<Vec<f64>>,
    failed: usize,
}

/// The rows so far.
pub(crate) struct Report(Vec<Row>);

/// One figure of a row.
struct Line {
    name: String,
    delay: String,
    runs: String,
    median: String,
    worst: String,
    limit: String,
    verdict: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Notes a run, and shows it.
    pub(crate) fn add(&mut self, case: &'static Case, delay: Duration, outcome: Result<Vec<f64>>) {
        let known = |row: &Row| std::ptr::eq(row.case, case) && row.delay == delay;
        let at = self.0.iter().position(known).unwrap_or_else(|| {
            self.0.push(Row {
                case,
                delay,
                runs: Vec::new(),
                failed: 0,
            });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        match outcome {
            Ok(figures) => {
                let shown: Vec<String> = case
                    .figures
                    .iter()
                    .zip(&figures)
                    .map(|(figure, value)| figure.shown(*value))
                    .collect();
                println!(
                    "{} at {} ms: {}",
                    case.name,
                    delay.as_millis(),
                    shown.join(", ")
                );
                row.runs.push(figures);
            }
            Err(_) => row.failed += 1,
        }
    }

    /// True if every run of every row kept its limits.
    pub(crate) fn holds(&self) -> bool {
        self.0.iter().all(Row::holds)
    }

    fn lines(&self) -> Vec<Line> {
        let mut rows: Vec<&Row> = self.0.iter().collect();
        let place = |row: &Row| CASES.iter().position(|case| std::ptr::eq(case, row.case));
        rows.sort_by_key(|row| (place(row), row.delay));
        rows.into_iter().flat_map(Row::lines).collect()
    }

    /// For the terminal.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for line in std::iter::once(Line::head()).chain(self.lines()) {
            let _ = writeln!(
                text,
                "{:<64} {:>6} {:>5} {:>9} {:>9} {:>9}  {}",
                line.name, line.delay, line.runs, line.median, line.worst, line.limit, line.verdict
            );
        }
        text
    }

    /// Writes `docs/healing.md`; rows that were not measured now stay as they are.
    pub(crate) fn write(&self) -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/healing.md");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let mut text = String::from(
            "# Paths that heal\n\n\
             How long pings through the tunnel (every 10 ms, there and back) were not answered after something broke (an answer \
             more than 50 ms later than the round trip by way of the relay counts as none), and how long it took until both \
             directions carried them directly again. A TCP stream ran all along and had to go on with the same connection. The real programs in network namespaces on one machine, behind NATs by nftables; \
             the delay is that of one way between any two sites, so that the round trip of the direct path is twice, and \
             that by way of the relay four times as long. Written by `make bench-heal-docs`, each row when it was last measured.\n\n",
        );
        let _ = writeln!(text, "{}", Line::head().row());
        let _ = writeln!(text, "|---|--:|--:|--:|--:|--:|---|");
        for case in &CASES {
            for delay in DELAYS {
                for row in self.rows_of(case, delay, &before) {
                    let _ = writeln!(text, "{row}");
                }
            }
        }
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("wrote docs/healing.md");
        Ok(())
    }

    /// The page's rows for a case: as measured, or else as they were.
    fn rows_of(&self, case: &'static Case, delay: Duration, before: &str) -> Vec<String> {
        let measured = |row: &&Row| std::ptr::eq(row.case, case) && row.delay == delay;
        if let Some(row) = self.0.iter().find(measured) {
            return row.lines().iter().map(Line::row).collect();
        }
        let starts = case.figures.iter().map(|figure| {
            let (name, delay) = (case.name, delay.as_millis());
            format!("| {name}{} | {delay} ms |", figure.what)
        });
        starts
            .filter_map(|start| before.lines().find(|line| line.starts_with(&start)))
            .map(str::to_owned)
            .collect()
    }
}

impl Row {
    fn holds(&self) -> bool {
        let kept = |figures: &Vec<f64>| self.case.holds(figures, self.delay);
        self.failed == 0 && self.runs.iter().all(kept)
    }

    fn lines(&self) -> Vec<Line> {
        let figures = self.case.figures.iter().enumerate();
        figures.map(|(at, figure)| self.line(at, figure)).collect()
    }

    fn line(&self, at: usize, figure: &Figure) -> Line {
        let mut values: Vec<f64> = self
            .runs
            .iter()
            .filter_map(|run| run.get(at).copied())
            .collect();
        values.sort_by(f64::total_cmp);
        let limit = figure.limit(self.delay);
        let late = values.iter().filter(|value| **value > limit).count();
        let shown =
            |value: Option<&f64>| value.map_or("–".to_owned(), |value| figure.shown(*value));
        let runs = self.runs.len() + self.failed;
        let verdict = if late + self.failed == 0 {
            "met".to_owned()
        } else {
            format!("MISSED: {late} over it, {} failed", self.failed)
        };
        Line {
            name: format!("{}{}", self.case.name, figure.what),
            delay: format!("{} ms", self.delay.as_millis()),
            runs: runs.to_string(),
            median: shown(values.get(values.len() / 2)),
            worst: shown(values.last()),
            limit: figure.shown(limit),
            verdict,
        }
    }
}

impl Line {
    /// For the page.
    fn row(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            self.name, self.delay, self.runs, self.median, self.worst, self.limit, self.verdict
        )
    }

    fn head() -> Self {
        Self {
            name: "case".to_owned(),
            delay: "delay".to_owned(),
            runs: "runs".to_owned(),
            median: "median".to_owned(),
            worst: "worst".to_owned(),
            limit: "limit".to_owned(),
            verdict: "result".to_owned(),
        }
    }
}
