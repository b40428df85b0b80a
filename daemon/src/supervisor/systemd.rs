//! The service manager: readiness, the watchdog, and whether this stop is followed by a start.

use std::time::Duration;

use sd_notify::NotifyState;
use zbus::{OwnedObjectPath, OwnedVariant};

/// How long the service manager may take to say what it is up to; a stop must not hang on it.
const PATIENCE: Duration = Duration::from_millis(200);
const SYSTEMD: &str = "org.freedesktop.systemd1";

/// Tells the service manager, if there is one.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot reach the service manager");
    }
}

/// Tells it that the configuration is being read again; [`NotifyState::Ready`] must follow.
pub(super) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock"),
    }
}

/// How often a sign of life is due: twice as often as the service manager demands. `None` if it demands none.
pub(super) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// What the service manager is going to do with the unit that this process belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is started again right after it has stopped.
    Start,
    /// It is stopped, and that is that.
    Stop,
    /// Nothing is queued, or nobody knows.
    Unknown,
}

impl Next {
    /// Job types after org.freedesktop.systemd1(5); a `try-restart` has become a `restart` by the time that it runs.
    fn of(job: Option<&str>) -> Self {
        match job {
            Some("start" | "restart") => Self::Start,
            Some("stop") => Self::Stop,
            _ => Self::Unknown,
        }
    }
}

/// Asks the service manager what is next, for a bounded time.
pub(super) async fn next_step() -> Next {
    // Without systemd there is nobody to ask, and the bus may be slow to say so.
    if std::env::var_os("INVOCATION_ID").is_none() {
        return Next::Unknown;
    }
    match tokio::time::timeout(PATIENCE, pending_job()).await {
        Ok(Ok(job)) => Next::of(job.as_deref()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "systemd does not say what is next");
            Next::Unknown
        }
        Err(_) => Next::Unknown,
    }
}

/// Type of the job that is queued or running for our unit.
async fn pending_job() -> zbus::Result<Option<String>> {
    let bus = zbus::Connection::system().await?;
    let unit: OwnedObjectPath = bus
        .call_method(
            Some(SYSTEMD),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.systemd1.Manager"),
            "GetUnitByPID",
            &std::process::id(),
        )
        .await?
        .body()
        .deserialize()?;
    let job = property(&bus, &unit, "org.freedesktop.systemd1.Unit", "Job").await?;
    let (number, job) = <(u32, OwnedObjectPath)>::try_from(job)?;
    if number == 0 {
        return Ok(None);
    }
    let kind = property(&bus, &job, "org.freedesktop.systemd1.Job", "JobType").await?;
    Ok(Some(String::try_from(kind)?))
}

async fn property(
    bus: &zbus::Connection,
    object: &OwnedObjectPath,
    interface: &str,
    name: &str,
) -> zbus::Result<OwnedVariant> {
    bus.call_method(
        Some(SYSTEMD),
        object,
        Some("org.freedesktop.DBus.Properties"),
        "Get",
        &(interface, name),
    )
    .await?
    .body()
    .deserialize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_told_from_stops() {
        assert_eq!(Next::of(Some("restart")), Next::Start);
        assert_eq!(Next::of(Some("start")), Next::Start);
        assert_eq!(Next::of(Some("stop")), Next::Stop);
        assert_eq!(Next::of(Some("reload")), Next::Unknown);
        assert_eq!(Next::of(None), Next::Unknown);
    }
}
