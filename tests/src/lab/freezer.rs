//! Stops a program the way a suspended computer stops it: by the kernel's freezer, without a signal that it could notice.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::process::Program;
use super::wait::within;

/// A control group with one program in it; thawed and removed when dropped.
#[derive(Debug)]
pub struct Freezer {
    group: PathBuf,
    /// The file that freezes, and what is written to it to do so and to undo it.
    switch: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    /// Takes a program.
    ///
    /// # Errors
    ///
    /// When the host lets nobody make control groups.
    pub fn around(program: &Program) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "mesh-lab-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let first = (
            "/sys/fs/cgroup/freezer",
            "freezer.state",
            ["FROZEN", "THAWED"],
        );
        let second = |root| (root, "cgroup.freeze", ["1", "0"]);
        for (root, switch, words) in [
            first,
            second("/sys/fs/cgroup/unified"),
            second("/sys/fs/cgroup"),
        ] {
            let group = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&group).is_err() {
                continue;
            }
            let freezer = Self {
                group,
                switch,
                words,
            };
            if freezer.group.join(switch).exists() {
                freezer.write("cgroup.procs", &program.pid().to_string())?;
                return Ok(freezer);
            }
        }
        bail!("there is no control group that freezes")
    }

    /// Stops the program; it is stopped when this returns.
    ///
    /// # Errors
    ///
    /// When the kernel does not.
    pub fn freeze(&self) -> Result<()> {
        self.write(self.switch, self.words[0])?;
        let (file, done) = match self.switch {
            "freezer.state" => ("freezer.state", "FROZEN"),
            _ => ("cgroup.events", "frozen 1"),
        };
        within("the program to be frozen", Duration::from_secs(5), || {
            Ok(std::fs::read_to_string(self.group.join(file))?.contains(done))
        })
        .map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// When the kernel does not.
    pub fn thaw(&self) -> Result<()> {
        self.write(self.switch, self.words[1])
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.group.join(file);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = self.thaw();
        // A group with processes in it cannot be removed: back to the root with what is left.
        let root = self.group.parent().map(|root| root.join("cgroup.procs"));
        let left = std::fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for process in left.lines() {
            let _ = root.as_ref().map(|root| std::fs::write(root, process));
        }
        let _ = std::fs::remove_dir(&self.group);
    }
}
