//! What the kernel says about a process.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::until;

/// A process that uses less than a hundredth of a core for so long has come to rest.
const REST: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

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

/// The CPU time of a process in seconds, finer than the ticks of `stat`, with that of threads that have ended.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut clock = 0;
    // SAFETY: the function only writes to `clock`, which lives.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    ensure!(error == 0, "no CPU clock of process {pid}");
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the function only writes to `time`, which lives.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "process {pid} has ended");
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Waits until a process has nothing to do any more, which may be some time after it said that it is ready.
pub(crate) fn settled(pid: u32) -> Result<()> {
    let mut before = cpu_seconds(pid)?;
    until("a process to come to rest", PATIENCE, || {
        std::thread::sleep(REST);
        let now = cpu_seconds(pid)?;
        let rests = now - before < REST.as_secs_f64() / 100.0;
        before = now;
        Ok(rests.then_some(()))
    })
}

/// The number behind `name` at the start of a line.
fn number(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
