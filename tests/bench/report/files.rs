//! The results as files of the repository.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Machine, Promise, json, notes, svg, tables};
use crate::results::Results;

/// Writes `benchmarks.md`, `.json` and `.svg` into `docs`; says what it wrote.
pub(crate) fn write(results: &Results, promises: &[Promise], machine: &Machine) -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    std::fs::create_dir_all(&docs)?;
    let json = serde_json::to_string_pretty(&json::json(results, promises, machine))?;
    let mut files = vec![
        ("benchmarks.md", markdown(results, promises, machine)),
        ("benchmarks.json", json + "\n"),
    ];
    files.extend(svg::svg(results, machine).map(|chart| ("benchmarks.svg", chart)));
    give_back(&docs);
    for (name, text) in files {
        let path = docs.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        give_back(&path);
        println!("wrote docs/{name}");
    }
    Ok(())
}

/// Under sudo: what was written belongs to who called.
fn give_back(path: &Path) {
    let id = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if let (Some(user), Some(group)) = (id("SUDO_UID"), id("SUDO_GID")) {
        // Root's files in the tree are a nuisance, no more.
        let _ = std::os::unix::fs::chown(path, Some(user), Some(group));
    }
}

fn markdown(results: &Results, promises: &[Promise], machine: &Machine) -> String {
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `make bench-docs`; `make bench` measures the same and writes nothing.\n\n\
         ![One TCP stream through a tunnel](benchmarks.svg)\n\n\
         {}.\n\n\
         Every contender has two network namespaces on one bare veth, both ends and the load share all cores of the \
         machine, and runs\nalternate between contenders. A figure is the median of the repetitions, with the smallest \
         and the largest. `raw` is the link\nwithout any tunnel. `meshd (relayed)` has a `mesh-relay` on a third host \
         between the two, on the same cores. MTUs are each\ncontender's own: what is larger is sent in fragments. → is from the first host to the second. \
         UDP: what arrived in the fastest trial that lost less than 1 %, 20 ms after\nthe last packet was sent. Under \
         load: while one TCP stream fills the tunnel in the direction of the probes.\n\n",
        machine.text()
    );
    text.push_str(&tables(results));
    let _ = write!(text, "### Promises\n\n");
    for promise in promises {
        let _ = writeln!(text, "- {promise}");
    }
    let notes = notes(results);
    if !notes.is_empty() {
        let _ = write!(text, "\n### Missing\n\n{notes}");
    }
    let _ = write!(text, "\n### Versions and MTUs\n\n");
    for row in &results.rows {
        if let Some(mtu) = row.mtu {
            let version = Some(row.version.as_str()).filter(|version| !version.is_empty());
            let version = version.unwrap_or("no program");
            let _ = writeln!(text, "- {}: {version}, MTU {mtu}", row.name);
        }
    }
    let _ = writeln!(text, "- load: {}", machine.iperf3);
    text
}
