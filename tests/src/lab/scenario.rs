//! The frame around every lab test: a directory for its files, logs when it fails, and the checks at its end.

use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};

use super::hygiene;

/// Lines of each log that a failing test prints; the whole logs stay in the directory that it names.
const LOG_TAIL: usize = 120;

/// One scenario's directory, logs and secrets. Clones share them.
#[derive(Debug, Clone)]
pub struct Lab(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    logs: Mutex<Vec<(String, PathBuf)>>,
    crashes: Mutex<Vec<String>>,
    secrets: Mutex<Vec<(String, Vec<u8>)>>,
    marker: String,
    next: AtomicU32,
}

/// Runs one lab test; panics, after printing the logs, when it fails or when a check at its end does.
///
/// Without root it prints `SKIPPED` and returns: namespaces, TUN devices and nftables need it.
pub fn scenario(body: impl FnOnce(&Lab) -> Result<()>) {
    let name = std::thread::current().name().unwrap_or("lab").to_owned();
    if !nix::unistd::geteuid().is_root() {
        // Straight to the descriptor: libtest hides what a passing test prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: the lab needs root");
        return;
    }
    let lab = Lab::new().expect("a temporary directory");
    let outcome = match catch_unwind(AssertUnwindSafe(|| body(&lab))) {
        Ok(result) => result,
        Err(panic) => Err(anyhow!(
            "{}",
            panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("panic")
        )),
    };
    match outcome.and_then(|()| lab.check()) {
        Ok(()) => lab.remove(),
        Err(error) => panic!(
            "{}{error:#}\nfiles are kept in {}",
            lab.log_tails(),
            lab.dir().display()
        ),
    }
}

impl Lab {
    /// A lab with an empty directory; [`scenario`] makes one for each test.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short, because a socket's path has at most 107 bytes.
        let dir = std::env::temp_dir().join(format!("mesh-lab-{}-{count}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let marker = format!(
            "payload-{}-{count}-{}",
            std::process::id(),
            hygiene::nonce()?
        );
        Ok(Self(Arc::new(Inner {
            dir,
            logs: Mutex::default(),
            crashes: Mutex::default(),
            secrets: Mutex::default(),
            marker,
            next: AtomicU32::new(0),
        })))
    }

    /// The directory for everything that the test writes.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A text that the test's payload should hold, so that the end can check that no log does.
    pub fn marker(&self) -> &str {
        &self.0.marker
    }

    /// Remembers key material that no log may show in any form.
    pub fn keep_secret(&self, what: &str, bytes: &[u8]) {
        self.0
            .secrets
            .lock()
            .expect("no test panics with it")
            .push((what.to_owned(), bytes.to_vec()));
    }

    /// Where a release program lies: beside this test's own binary.
    ///
    /// # Errors
    ///
    /// When it was not built.
    pub fn binary(name: &str) -> Result<PathBuf> {
        let own = std::env::current_exe()?;
        let mut dir = own.parent().context("no directory")?;
        if dir.ends_with("deps") {
            dir = dir.parent().context("no directory")?;
        }
        let path = dir.join(name);
        if !path.exists() {
            bail!(
                "{} is missing: build the three programs first (`make test-lab` does)",
                path.display()
            );
        }
        Ok(path)
    }

    /// Fresh paths for a program's log and its notification socket.
    pub(super) fn log_files(&self, name: &str) -> (PathBuf, PathBuf) {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let log = self.0.dir.join(format!("{number:02}-{name}.log"));
        self.0
            .logs
            .lock()
            .expect("no test panics with it")
            .push((name.to_owned(), log.clone()));
        (log, self.0.dir.join(format!("{number:02}.notify")))
    }

    pub(super) fn report_crash(&self, what: String) {
        self.0
            .crashes
            .lock()
            .expect("no test panics with it")
            .push(what);
    }

    /// What must hold at the end of every scenario: nothing crashed, no log tells a secret.
    ///
    /// # Errors
    ///
    /// Names what does not hold.
    pub fn check(&self) -> Result<()> {
        let crashes = self.0.crashes.lock().expect("no test panics with it");
        if !crashes.is_empty() {
            bail!("{}", crashes.join("; "));
        }
        let mut secrets = self
            .0
            .secrets
            .lock()
            .expect("no test panics with it")
            .clone();
        secrets.extend(hygiene::identities(&self.0.dir)?);
        secrets.push(("payload".to_owned(), self.0.marker.as_bytes().to_vec()));
        for (name, path) in self.0.logs.lock().expect("no test panics with it").iter() {
            hygiene::check_log(name, &std::fs::read(path)?, &secrets)?;
        }
        Ok(())
    }

    /// Removes the directory.
    pub fn remove(self) {
        let _ = std::fs::remove_dir_all(&self.0.dir);
    }

    /// The ends of all logs, for a failing test to print.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for (name, path) in self.0.logs.lock().expect("no test panics with it").iter() {
            let log =
                String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_TAIL);
            let _ = writeln!(text, "\n--- {name} ({} lines)", lines.len());
            for line in &lines[from..] {
                let _ = writeln!(text, "{line}");
            }
        }
        text.push('\n');
        text
    }
}
