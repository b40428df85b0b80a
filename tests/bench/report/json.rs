//! The results for programs.

use serde_json::{Value, json};

use super::machine::Machine;
use super::promises::{Limit, Promise, Verdict};
use crate::results::{Results, Row};
use crate::stats::spread;

/// Everything, with every single figure.
pub(super) fn json(results: &Results, promises: &[Promise], machine: &Machine) -> Value {
    json!({
        "machine": {
            "cpu": machine.cpu,
            "cores": machine.cores,
            "kernel": machine.kernel,
            "load_before": machine.load,
        },
        "date": machine.date,
        "iperf3": machine.iperf3,
        "runs": machine.runs,
        "tcp_seconds": machine.seconds,
        "tcp_congestion_control": machine.congestion_control,
        "contenders": results.rows.iter().map(row).collect::<Vec<_>>(),
        "promises": promises.iter().map(promise).collect::<Vec<_>>(),
    })
}

fn row(row: &Row) -> Value {
    let cells = row.cells.iter().map(|(metric, cell)| {
        let spread = spread(&cell.figures);
        let value = json!({
            "median": spread.map(|spread| spread.median),
            "min": spread.map(|spread| spread.min),
            "max": spread.map(|spread| spread.max),
            "figures": cell.figures,
            "failures": cell.failures,
        });
        (metric.id(), value)
    });
    json!({
        "name": row.name,
        "version": row.version,
        "mtu": row.mtu,
        "missing": row.missing,
        "metrics": cells.collect::<serde_json::Map<_, _>>(),
    })
}

fn promise(promise: &Promise) -> Value {
    let (limit, value) = match promise.limit {
        Limit::AtLeast(value) => ("at_least", value),
        Limit::AtMost(value) => ("at_most", value),
    };
    let (kept, figure) = match promise.verdict {
        Verdict::Kept(figure) => (Some(true), Some(figure)),
        Verdict::Broken(figure) => (Some(false), Some(figure)),
        Verdict::Unknown => (None, None),
    };
    json!({ "what": promise.what, limit: value, "kept": kept, "figure": figure })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;

    #[test]
    fn a_figure_that_failed_is_null_and_says_why() {
        let mut failed = Row::default();
        failed.add(&[Metric::Udp(64)], Err(anyhow::anyhow!("refused")));
        let value = row(&failed);
        let cell = &value["metrics"]["udp_64_kpps"];
        assert!(cell["median"].is_null());
        assert_eq!(cell["failures"], json!(["refused"]));
    }
}
