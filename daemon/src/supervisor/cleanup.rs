//! `meshd --cleanup`: what a meshd that is gone has left, goes too.
//!
//! The unit runs it after every end of the daemon, however it came about. What is left then are guard routes, and
//! whether they should go depends on what is next: after a crash or in a restart they bridge the time until the daemon
//! is back. By hand, and when the package is removed, everything goes.

use std::collections::BTreeSet;

use super::Failure;
use super::systemd::{self, Next};
use crate::args::Args;
use crate::netlink::Netlink;
use crate::state::{StateDir, StateError};

/// Removes guard routes, unless the service is about to be started again.
///
/// # Errors
///
/// If a meshd is running on the same state directory, or the routes cannot be removed.
pub async fn cleanup(args: &Args) -> Result<(), Failure> {
    if args.state_dir.exists() {
        refuse_while_running(args)?;
    }
    if let Ok(result) = std::env::var("SERVICE_RESULT") {
        let next = if args.no_bus {
            Next::Unknown
        } else {
            systemd::next_step().await
        };
        if comes_back(&result, next) {
            tracing::info!("guard routes stay until meshd is back");
            return Ok(());
        }
    }
    let removed = Netlink::connect()?
        .remove_guards_except(&BTreeSet::new())
        .await?;
    if removed > 0 {
        tracing::info!(removed, "guard routes removed");
    }
    Ok(())
}

/// Whether the service is started again, by `$SERVICE_RESULT` (see systemd.exec(5)) and by what is queued.
fn comes_back(result: &str, next: Next) -> bool {
    match next {
        Next::Start => true,
        Next::Stop => false,
        // It ended by itself, and Restart=on-failure starts it unless all was well.
        Next::Unknown => result != "success",
    }
}

fn refuse_while_running(args: &Args) -> Result<(), Failure> {
    let holder = StateDir::open(&args.state_dir)?.holder()?;
    match holder {
        Some(pid) => Err(StateError::InUse {
            path: args.state_dir.clone(),
            pid,
        }
        .into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_bridge_crashes_and_restarts_only() {
        for (result, next, stays) in [
            ("success", Next::Unknown, false),
            ("success", Next::Stop, false),
            ("success", Next::Start, true),
            ("signal", Next::Unknown, true),
            ("watchdog", Next::Unknown, true),
            ("exit-code", Next::Start, true),
            ("timeout", Next::Stop, false),
        ] {
            assert_eq!(comes_back(result, next), stays, "{result} {next:?}");
        }
    }
}
