//! What a process used, read from /proc.

use std::time::Duration;

use anyhow::{Context, Result};

/// Process ID.
pub(crate) type Pid = u32;

/// User and system time of each process with all its threads. The clock of /proc counts in 10 ms.
pub(crate) fn cpu_times(pids: &[Pid]) -> Result<Vec<Duration>> {
    pids.iter().map(|pid| cpu_time(*pid)).collect()
}

fn cpu_time(pid: Pid) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    let ticks = ticks(&stat).context("no times in /proc/…/stat")?;
    // USER_HZ is 100 on every Linux architecture that we build for.
    Ok(Duration::from_millis(ticks * 10))
}

/// The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory now and at its peak, in megabytes.
pub(crate) fn memory(pid: Pid) -> Result<(f64, f64)> {
    let status = read(pid, "status")?;
    let value =
        |name| megabytes(&status, name).with_context(|| format!("no {name} of process {pid}"));
    Ok((value("VmRSS")?, value("VmHWM")?))
}

fn megabytes(status: &str, name: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn read(pid: Pid, file: &str) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).context("the process has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 123 45 0 0 20 0";
        assert_eq!(ticks(stat), Some(168));
        assert_eq!(ticks("7 (a) S 1 2"), None);
    }

    #[test]
    fn memory_is_found_by_its_whole_name() {
        let status = "VmHWM:\t    2000 kB\nVmRSSx:\t 1 kB\nVmRSS:\t    1000 kB\n";
        assert_eq!(megabytes(status, "VmRSS"), Some(1.024));
        assert_eq!(megabytes(status, "VmSwap"), None);
    }

    #[test]
    fn this_process_uses_memory_and_a_gone_one_is_an_error() {
        let (resident, peak) = memory(std::process::id()).unwrap();
        assert!(resident > 0.1 && peak >= resident);
        assert!(cpu_times(&[u32::MAX]).is_err());
    }
}
