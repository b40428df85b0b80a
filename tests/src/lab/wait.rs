//! Waiting for something to become true, with a deadline and a name for the failure.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at: short against everything that is waited for, long against the cost of a look.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `look` until it gives a value.
///
/// # Errors
///
/// The error of `look`, or after `timeout` one that names `what` was waited for.
pub fn until<T>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if started.elapsed() > timeout {
            bail!("waited {} s in vain for {what}", timeout.as_secs_f32());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// [`until`] for a plain condition; gives how long it took.
///
/// # Errors
///
/// As [`until`].
pub fn within(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let started = Instant::now();
    until(
        what,
        timeout,
        || Ok(condition()?.then(|| started.elapsed())),
    )
}
