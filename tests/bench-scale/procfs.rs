//! What the kernel says about a process.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Memory, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident, with what is shared with other processes.
    pub(crate) resident: f64,
    /// The same with shared pages divided among their users.
    pub(crate) proportional: f64,
    /// Heap and stacks: what is no file.
    pub(crate) anonymous: f64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name| number(&text, name).with_context(|| format!("no {name} in smaps_rollup"));
    Ok(Memory {
        resident: field("Rss:")?,
        proportional: field("Pss:")?,
        anonymous: field("Anonymous:")?,
    })
}

/// How often each thread went to sleep and was woken, by the thread's name and number.
pub(crate) fn switches(pid: u32) -> Result<BTreeMap<(u32, String), u64>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        let thread: u32 = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
            .context("a thread's number")?;
        // A thread may end meanwhile.
        let (Ok(status), Ok(name)) = (
            fs::read_to_string(path.join("status")),
            fs::read_to_string(path.join("comm")),
        ) else {
            continue;
        };
        let count = number(&status, "voluntary_ctxt_switches:").context("no switches in status")?;
        threads.insert((thread, name.trim().to_owned()), count as u64);
    }
    Ok(threads)
}

/// The CPU time of all threads in seconds, finer than the ticks of `stat`.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0_u64;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends takes its time along; those of a daemon at rest do not.
        let Ok(text) = fs::read_to_string(entry?.path().join("schedstat")) else {
            continue;
        };
        let first = text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        nanoseconds += first.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// The number behind `name` at the start of a line.
fn number(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
