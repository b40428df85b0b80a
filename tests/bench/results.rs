//! What was found: one row for each contender.

use std::collections::BTreeMap;

use crate::metric::Metric;
use crate::stats::{Spread, spread};

/// A contender and its figures.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// What the program says of itself; empty for the bare link.
    pub(crate) version: String,
    /// Of the interface that leads into it.
    pub(crate) mtu: Option<u64>,
    /// Why it takes no part.
    pub(crate) missing: Option<String>,
    pub(crate) cells: BTreeMap<Metric, Cell>,
}

/// The figures of one metric, one for each repetition that did not fail.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    pub(crate) figures: Vec<f64>,
    /// Why the others did.
    pub(crate) failures: Vec<String>,
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) rows: Vec<Row>,
}

impl Row {
    /// Adds the outcome of one measurement, which `metrics` are found by.
    pub(crate) fn add(&mut self, metrics: &[Metric], outcome: anyhow::Result<Vec<(Metric, f64)>>) {
        match outcome {
            Ok(figures) => {
                for (metric, figure) in figures {
                    self.cells.entry(metric).or_default().figures.push(figure);
                }
            }
            Err(error) => {
                let why = one_line(&error);
                for metric in metrics {
                    let cell = self.cells.entry(*metric).or_default();
                    cell.failures.push(why.clone());
                }
            }
        }
    }

    /// Median and range, if one repetition succeeded.
    pub(crate) fn spread(&self, metric: Metric) -> Option<Spread> {
        spread(&self.cells.get(&metric)?.figures)
    }
}

impl Cell {
    /// As `median (smallest–largest)`, or why there is none.
    pub(crate) fn text(&self, decimals: usize) -> String {
        /// Longer reasons stand below the table.
        const ROOM: usize = 40;
        let Some(found) = spread(&self.figures) else {
            let why = self.failures.first().map_or("not measured", String::as_str);
            return format!("failed: {why:.ROOM$}");
        };
        let Spread { median, min, max } = found;
        let failed = match self.failures.len() {
            0 => String::new(),
            count => format!(", {count} failed"),
        };
        format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$}){failed}")
    }
}

impl Results {
    /// The row of this name, if it took part.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.name == name && row.missing.is_none())
    }

    /// The median of a contender's metric.
    pub(crate) fn median(&self, name: &str, metric: Metric) -> Option<f64> {
        Some(self.row(name)?.spread(metric)?.median)
    }
}

/// An error with its causes, fit for a table.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.lines().find(|line| !line.trim().is_empty());
    line.unwrap_or("no reason given").trim().replace('|', "/")
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;
    use crate::metric::Metric;

    #[test]
    fn a_cell_shows_the_median_and_the_range() {
        let mut row = Row::default();
        for figure in [2.0, 1.0, 4.0] {
            row.add(&[Metric::Udp(64)], Ok(vec![(Metric::Udp(64), figure)]));
        }
        assert_eq!(row.cells[&Metric::Udp(64)].text(1), "2.0 (1.0–4.0)");
    }

    #[test]
    fn a_failure_is_shown_and_never_becomes_a_figure() {
        let mut row = Row::default();
        let error = anyhow!("refused | by\nthe kernel").context("connect");
        row.add(&[Metric::Udp(64)], Err(error));
        assert_eq!(
            row.cells[&Metric::Udp(64)].text(1),
            "failed: connect: refused / by"
        );
        assert_eq!(row.spread(Metric::Udp(64)), None);
        row.add(&[Metric::Udp(64)], Ok(vec![(Metric::Udp(64), 3.0)]));
        assert_eq!(row.cells[&Metric::Udp(64)].text(0), "3 (3–3), 1 failed");
    }

    #[test]
    fn a_missing_contender_has_no_figures() {
        let results = Results {
            rows: vec![Row {
                name: "x".into(),
                missing: Some("not installed".into()),
                ..Row::default()
            }],
        };
        assert!(results.row("x").is_none());
        let none: Option<()> = None;
        assert_eq!(one_line(&none.context("why").unwrap_err()), "why");
    }
}
