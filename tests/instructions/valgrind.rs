//! Runs one case under callgrind and reads the count.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Matches the one function during which callgrind counts, whether or not it knows how to demangle its name.
const COUNTED: &str = "*counted_by_callgrind*";

/// Instructions of `case`, run by `program`; `scratch` is a directory for callgrind's output.
pub(crate) fn count(program: &Path, case: &str, scratch: &Path) -> Result<u64> {
    let out = scratch.join(format!("{case}.out"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["--case", case])
        // The environment lies on the stack: where that begins, and how it is aligned, must not depend on it.
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .output()
        .context("valgrind does not start; `tests/setup.sh test` installs it")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{case}: {}\n{}", output.status, message.trim_end());
    }
    let text = std::fs::read_to_string(&out)
        .with_context(|| format!("{case}: callgrind left no {}", out.display()))?;
    total(&text).with_context(|| format!("{case}: no count in callgrind's output"))
}

/// The sum in callgrind's output (valgrind manual, "Callgrind Format Specification"), if anything was counted.
fn total(text: &str) -> Result<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("totals:"))
        .context("there is no line \"totals:\"")?;
    let count = line.trim().parse()?;
    ensure!(count > 0, "the counted function was never called");
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_that_of_the_totals() {
        let text = "version: 1\npart: 1\nevents: Ir\n\nfn=(1)\n2 77\nsummary: 9\ntotals: 1234567\n";
        assert_eq!(total(text).unwrap(), 1_234_567);
    }

    #[test]
    fn nothing_counted_is_no_count() {
        for text in ["", "totals: \n", "totals: 0\n", "totals: x\n"] {
            assert!(total(text).is_err(), "{text:?}");
        }
    }
}
