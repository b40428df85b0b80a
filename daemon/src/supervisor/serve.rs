//! The daemon's loop.

use std::time::Duration;

use mesh_core::engine::{Event, NetworkIndex, PathStatus};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::mtu::Changes;
use super::network::Network;
use super::{Failure, Supervisor, names, systemd};
use crate::api::{Notice, Request};
use crate::control::Control;
use crate::dataplane::{DataThread, FromData};

/// What runs beside the supervisor.
pub(super) struct Running {
    pub(super) control: Control,
    pub(super) requests: mpsc::Receiver<Request>,
    /// MTUs that the kernel is to be told of.
    pub(super) mtus: Changes,
    /// Events and lost interfaces; relay actions have been passed on.
    pub(super) events: mpsc::Receiver<FromData>,
    pub(super) data_thread: DataThread,
}

/// The signals that mean something to us. From their creation on they no longer end the process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Runs until a signal ends it, then undoes everything.
pub(super) async fn serve(
    mut supervisor: Supervisor,
    mut running: Running,
    mut signals: Signals,
) -> Result<(), Failure> {
    supervisor.report_ready();
    let mut watchdog = systemd::watchdog_interval().map(ticks);
    let result = loop {
        tokio::select! {
            request = running.requests.recv() => match request {
                Some(request) => supervisor.handle(request).await,
                // The control interface never ends by itself.
                None => break Err(Failure::DataPlane),
            },
            event = running.events.recv() => match event {
                Some(event) => supervisor.notice(event).await,
                None => break Err(Failure::DataPlane),
            },
            changes = running.mtus.take() => supervisor.set_mtus(changes).await,
            _ = signals.hangup.recv() => {
                // What went wrong has been logged.
                let _ = supervisor.reload().await;
            }
            _ = signals.terminate.recv() => break Ok(()),
            _ = signals.interrupt.recv() => break Ok(()),
            () = tick(&mut watchdog) => supervisor.show_life().await,
        }
    };
    super::stop::stop(supervisor, running).await;
    result
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn tick(watchdog: &mut Option<Interval>) {
    match watchdog {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

impl Supervisor {
    /// Tells the service manager that we live, if the data thread does.
    async fn show_life(&self) {
        match self.host.data.status().await {
            Ok(_) => systemd::notify(&[NotifyState::Watchdog]),
            Err(error) => tracing::error!(%error, "no sign of life for the watchdog"),
        }
    }

    /// Passes news of the data plane on.
    pub(super) async fn notice(&mut self, news: FromData) {
        match news {
            FromData::Event(event) => self.announce(event),
            FromData::TunLost(index) => {
                let mut networks = self.networks.iter_mut();
                if let Some(network) = networks.find(|network| network.index == index) {
                    network.interface_lost(&self.host).await;
                }
                self.publish_overlay();
                self.report_state();
            }
            // Never comes here.
            FromData::Relay(..) | FromData::PortMap(_) | FromData::Lan(_) => {}
        }
    }

    fn announce(&self, event: Event) {
        let notice = match event {
            Event::PathChanged {
                network,
                peer,
                name,
                path,
                reason,
            } => {
                let way = path.as_ref().map_or("unreachable".to_owned(), describe);
                tracing::info!("{name} is now {way}: {reason}");
                self.name_of(network).map(|network| Notice::PeerChanged {
                    network,
                    peer: names::key_text(&peer),
                })
            }
            Event::HealthChanged { network } => self
                .name_of(network)
                .map(|network| Notice::Health { network }),
            Event::MappingLifetime {
                at_least,
                keepalive,
            } => {
                tracing::debug!(
                    "the NAT before this host remembers for {} s at least; keepalives go every {:.0} s",
                    at_least.as_secs(),
                    keepalive.as_secs_f64()
                );
                None
            }
            // Answers go to who asked, and MTUs have a way of their own.
            Event::Pong { .. } | Event::Netcheck { .. } | Event::MtuChanged { .. } => None,
        };
        if let Some(notice) = notice {
            // Fails when nobody listens.
            let _ = self.host.notices.send(notice);
        }
    }

    fn name_of(&self, index: NetworkIndex) -> Option<String> {
        let network: &Network = self
            .networks
            .iter()
            .find(|network| network.index == index)?;
        Some(network.name().to_owned())
    }
}

fn describe(path: &PathStatus) -> String {
    format!("reached by {} {}", path.kind.as_str(), path.remote)
}
