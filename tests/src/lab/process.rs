//! Programs that run beside a test: their log goes to a file, they are killed when dropped.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scenario::Lab;
use super::wait::within;

/// A running program.
#[derive(Debug)]
pub struct Program {
    lab: Lab,
    name: String,
    child: Child,
    log: PathBuf,
    notify: UnixDatagram,
    expected_end: bool,
}

impl Program {
    /// Starts `command` with both outputs going to the log `name` of the lab, and a systemd-style notification socket.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(lab: &Lab, name: &str, mut command: Command) -> Result<Self> {
        let (log, notify_path) = lab.log_files(name);
        let notify = UnixDatagram::bind(&notify_path)?;
        notify.set_nonblocking(true)?;
        let file = File::create(&log)?;
        let child = command
            .env("NOTIFY_SOCKET", &notify_path)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        Ok(Self {
            lab: lab.clone(),
            name: name.to_owned(),
            child,
            log,
            notify,
            expected_end: false,
        })
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where the log lies.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for the program's `READY=1`.
    ///
    /// # Errors
    ///
    /// When it ends first, or takes longer than `timeout`.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<Duration> {
        let started = Instant::now();
        let what = format!("{} to be ready", self.name);
        super::wait::until(&what, timeout, || {
            let mut message = [0; 512];
            while let Ok(len) = self.notify.recv(&mut message) {
                if message[..len]
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
                {
                    return Ok(Some(started.elapsed()));
                }
            }
            if let Some(status) = self.child.try_wait()? {
                self.expected_end = true;
                bail!(
                    "{} ended before it was ready: {status}\n{}",
                    self.name,
                    self.log()
                );
            }
            Ok(None)
        })
    }

    /// Waits for a line of the log that contains `text`.
    ///
    /// # Errors
    ///
    /// When none comes within `timeout`.
    pub fn wait_log(&self, text: &str, timeout: Duration) -> Result<Duration> {
        within(
            &format!("{:?} in the log of {}", text, self.name),
            timeout,
            || Ok(self.log().contains(text)),
        )
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process ID"));
        kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Waits for the program to end by itself.
    ///
    /// # Errors
    ///
    /// When it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let status = super::wait::until(&what, timeout, || Ok(self.child.try_wait()?))?;
        self.expected_end = true;
        Ok(status)
    }

    /// Asks the program to stop (SIGTERM) and waits for it.
    ///
    /// # Errors
    ///
    /// When it is still there after 10 s, or does not end with success.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait(Duration::from_secs(10))?;
        if !status.success() {
            bail!("{} was asked to stop and ended with {status}", self.name);
        }
        Ok(())
    }

    /// Kills the program (SIGKILL) and reaps it.
    pub fn kill(self) {}

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU time used so far, user and system.
    ///
    /// # Errors
    ///
    /// When the process has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .context("no name in stat")?
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = [11, 12]
            .iter()
            .filter_map(|i| fields.get(*i)?.parse::<u64>().ok())
            .sum();
        // USER_HZ is 100 on every Linux architecture that we build for.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        match self.child.try_wait() {
            // Ended by itself, unnoticed by the test: a crash, if by a signal or with a failure.
            Ok(Some(status)) if !self.expected_end && !status.success() => {
                let how = status.signal().map_or_else(
                    || status.to_string(),
                    |number| format!("killed by signal {number}"),
                );
                self.lab.report_crash(format!("{} died: {how}", self.name));
            }
            Ok(Some(_)) => {}
            _ => {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
