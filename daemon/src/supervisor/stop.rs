//! Leaves the host as it was found, in bounded time.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::timeout;

use super::Supervisor;
use super::serve::Running;
use super::systemd::{self, Next};

/// The service manager kills us after 15 s; each step below has a share of that.
const STEP: Duration = Duration::from_secs(3);
/// Time for routers to be told that their mappings are no longer wanted.
const GIVE_BACK: Duration = Duration::from_millis(500);
/// Time for the relays to be told; a relay that is not told notices by itself.
const FAREWELL: Duration = Duration::from_millis(50);

/// Takes everything down. In a restart the guard routes stay, so that overlay destinations are unreachable meanwhile.
pub(super) async fn stop(mut supervisor: Supervisor, running: Running) {
    systemd::notify(&[NotifyState::Stopping]);
    let keep_guards = !supervisor.no_bus && systemd::next_step().await == Next::Start;
    tracing::info!(
        "stopping{}",
        if keep_guards {
            ", to be started again"
        } else {
            ""
        }
    );
    within("close the control interface", running.control.stop()).await;
    let networks = async {
        for network in &mut supervisor.networks {
            network.take_down(&supervisor.host, keep_guards).await;
        }
    };
    within("take the networks down", networks).await;
    supervisor.wait_for_router().await;
    tokio::time::sleep(FAREWELL).await;
    within("end the data thread", supervisor.host.data.shutdown()).await;
    let thread = tokio::task::spawn_blocking(move || running.data_thread.join());
    within("wait for the data thread", async { drop(thread.await) }).await;
}

impl Supervisor {
    /// If no network is up any more, what routers have mapped for us is being given back: waits for that.
    pub(super) async fn wait_for_router(&self) {
        if self
            .networks
            .iter()
            .any(|network| network.interface().is_some())
        {
            return;
        }
        let mut held = self.host.held.clone();
        // The engine gives up before; an error means that nobody is there to give anything back.
        if timeout(GIVE_BACK, held.wait_for(|held| !held))
            .await
            .is_err()
        {
            tracing::warn!("a router still holds a mapping of this host; it ends by itself");
        }
    }
}

async fn within(what: &str, step: impl Future<Output = ()>) {
    if timeout(STEP, step).await.is_err() {
        tracing::error!("cannot {what} in {STEP:?}; going on");
    }
}
