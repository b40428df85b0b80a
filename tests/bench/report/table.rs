//! Tables that read well in a terminal and are Markdown.

use std::fmt::Write as _;

use crate::metric::{Metric, Section, sections};
use crate::results::{Results, Row};

/// All tables that have a figure in them.
pub(crate) fn tables(results: &Results) -> String {
    let mut text = String::new();
    for Section { title, columns } in sections() {
        let rows: Vec<&Row> = results
            .rows
            .iter()
            .filter(|row| any(row, &columns))
            .collect();
        let columns: Vec<Metric> = columns
            .into_iter()
            .filter(|metric| rows.iter().any(|row| row.cells.contains_key(metric)))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "### {title}\n\n{}", table(&rows, &columns));
    }
    text
}

fn any(row: &Row, columns: &[Metric]) -> bool {
    columns.iter().any(|metric| row.cells.contains_key(metric))
}

fn table(rows: &[&Row], columns: &[Metric]) -> String {
    let head = std::iter::once(String::new()).chain(columns.iter().map(|metric| metric.label()));
    let mut lines = vec![head.collect::<Vec<_>>()];
    for row in rows {
        let cells = columns.iter().map(|metric| {
            let cell = row.cells.get(metric);
            cell.map_or_else(|| "–".to_owned(), |cell| cell.text(metric.decimals()))
        });
        lines.push(std::iter::once(row.name.clone()).chain(cells).collect());
    }
    aligned(&lines)
}

/// Lines of cells, of which the first is the head, with every column as wide as its widest cell: the first column
/// flush left, the others flush right.
fn aligned(lines: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        })
        .collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "| {cell:<width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width - 1);
                let _ = match column {
                    0 => write!(text, "| {dashes}- |"),
                    _ => write!(text, " {dashes}: |"),
                };
            }
            text.push('\n');
        }
    }
    text
}

/// Who is missing and what failed, with the reasons; empty when all went well.
pub(crate) fn notes(results: &Results) -> String {
    let mut text = String::new();
    for row in &results.rows {
        if let Some(why) = &row.missing {
            let _ = writeln!(text, "- {} is missing: {why}", row.name);
        }
        for (metric, cell) in &row.cells {
            let mut reasons = cell.failures.clone();
            reasons.sort();
            reasons.dedup();
            for why in reasons {
                let _ = writeln!(text, "- {}, {} failed: {why}", row.name, metric.id());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut good = Row {
            name: "good".into(),
            ..Row::default()
        };
        good.add(
            &[],
            Ok(vec![(Metric::Udp(64), 12.34), (Metric::Udp(1350), 5.0)]),
        );
        let mut bad = Row {
            name: "bad".into(),
            ..Row::default()
        };
        bad.add(&[Metric::Udp(64)], Err(anyhow::anyhow!("refused")));
        let gone = Row {
            name: "gone".into(),
            missing: Some("not installed".into()),
            ..Row::default()
        };
        Results {
            rows: vec![good, bad, gone],
        }
    }

    #[test]
    fn a_table_has_aligned_columns_and_says_what_failed() {
        let text = tables(&results());
        let lines: Vec<&str> = text.lines().skip(2).take(4).collect();
        assert!(
            lines[2].starts_with("| good | 12.3 (12.3–12.3) | 5.0 (5.0–5.0) |"),
            "{text}"
        );
        assert!(
            lines[3].contains(" failed: refused |") && lines[3].contains(" – |"),
            "{text}"
        );
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(!text.contains("gone"));
    }

    #[test]
    fn the_notes_name_who_is_missing_and_what_failed() {
        assert_eq!(
            notes(&results()),
            "- bad, udp_64_kpps failed: refused\n- gone is missing: not installed\n"
        );
    }
}
