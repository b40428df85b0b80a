//! From a command line to a running daemon.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::engine::{Event, NetworkIndex};
use mesh_core::identity::Identity;
use tokio::sync::{broadcast, mpsc, watch};
use zbus::connection::Builder;

use super::config_file::ConfigFile;
use super::mtu::Changes;
use super::network::{Host, Network};
use super::scrape::Offer;
use super::serve::Running;
use super::{FIRST_NETWORK, Failure, Supervisor};
use crate::api::Notice;
use crate::args::Args;
use crate::control;
use crate::dataplane::{DataPlane, FromData, Started};
use crate::lan::LanIo;
use crate::logind::{self, Pauses};
use crate::netlink::Netlink;
use crate::netlink::monitor::Monitor;
use crate::netlink::routes::OwnRoute;
use crate::portmap::PortMapIo;
use crate::randomness;
use crate::relays::RelayDialer;
use crate::sockets::Sockets;
use crate::state::StateDir;
use crate::tuning::Tuning;

/// Requests that wait for the supervisor.
const REQUEST_QUEUE: usize = 64;
/// Notices that a slow listener may be behind.
const NOTICE_QUEUE: usize = 256;
/// News of the data plane that wait for the supervisor.
const EVENT_QUEUE: usize = 256;

/// Starts everything, and brings up the networks that are to be up. A network that cannot be brought up is no error.
pub(super) async fn start(args: &Args) -> Result<(Supervisor, Running), Failure> {
    let config_file = ConfigFile::new(args.config.as_deref());
    let config = config_file.read()?;
    let state = StateDir::open(&args.state_dir)?;
    let lock = state.lock()?;
    let tuning = Tuning::from_env()?;
    tracing::debug!(?tuning, "packet path");
    if mesh_core::session::NULL_CIPHER {
        tracing::warn!("this build DOES NOT ENCRYPT; it is for benchmarks only");
    }
    let sockets = Arc::new(Sockets::bind_with(config.listen_port, tuning)?);
    let netlink = Netlink::connect()?;
    let (requests, request_queue) = mpsc::channel(REQUEST_QUEUE);
    let (notices, _) = broadcast::channel::<Notice>(NOTICE_QUEUE);
    // Before anything of the host is changed: another meshd may have the socket.
    let bus = !args.no_bus;
    let control = control::start(&args.socket, bus, requests.clone(), notices.clone()).await?;
    let mut metrics = Offer::new(requests, control.counters());
    metrics.set(config.metrics).await?;
    let data = start_data_plane(&sockets, tuning)?;
    let dialer = RelayDialer::new(Arc::clone(&sockets), data.quic, data.handle.clone())
        .map_err(Failure::system("start the relay client"))?;
    let dialer = Arc::new(dialer);
    let (events, event_queue) = mpsc::channel(EVENT_QUEUE);
    let mapper = PortMapIo::new(data.handle.clone());
    let held = mapper.held();
    let lan = LanIo::new(data.handle.clone());
    let mtus = Changes::default();
    tokio::spawn(pass_on(
        data.outputs,
        Arc::clone(&dialer),
        mtus.clone(),
        mapper,
        lan,
        events,
    ));
    if bus {
        let woken = data.handle.clone();
        tokio::spawn(logind::watch(Builder::system, Pauses::default(), woken));
    }
    let (overlay, overlay_watch) = watch::channel(Vec::new());
    let monitor = Monitor::start(overlay_watch)?;
    // Before any link is known: without discovery no socket is opened at all.
    if let Err(error) = data.handle.lan_discovery(config.lan_discovery).await {
        tracing::error!(%error, "the data plane does not know whether to look for peers on our links");
    }
    let addresses = follow_surroundings(monitor, data.handle.clone()).await;
    let mut supervisor = Supervisor {
        host: Host {
            state,
            netlink,
            data: data.handle,
            dialer,
            held,
            overlay,
            notices,
        },
        config_file,
        listen_port: config.listen_port,
        sockets,
        metrics,
        networks: Vec::new(),
        port_note: None,
        file_note: None,
        addresses,
        no_bus: args.no_bus,
        _lock: lock,
    };
    supervisor.bring_up_all(config.networks).await;
    let running = Running {
        control,
        requests: request_queue,
        mtus,
        events: event_queue,
        data_thread: data.thread,
    };
    Ok((supervisor, running))
}

fn start_data_plane(sockets: &Arc<Sockets>, tuning: Tuning) -> Result<Started, Failure> {
    let mut seed = [0; 32];
    randomness::fill(&mut seed).map_err(Failure::system("get randomness"))?;
    DataPlane::start(seed, Arc::clone(sockets), tuning)
        .map_err(Failure::system("start the data plane"))
}

/// Hands what the data thread says to who has to do it. Never waits: the thread must not.
async fn pass_on(
    mut outputs: mpsc::Receiver<FromData>,
    dialer: Arc<RelayDialer>,
    mtus: Changes,
    mut mapper: PortMapIo,
    mut lan: LanIo,
    events: mpsc::Sender<FromData>,
) {
    while let Some(output) = outputs.recv().await {
        match output {
            FromData::Relay(id, action) => dialer.handle(id, action),
            FromData::Event(Event::MtuChanged { network, peer, mtu }) => {
                mtus.add(network, peer, mtu);
            }
            FromData::PortMap(action) => mapper.handle(action),
            FromData::Lan(action) => lan.handle(action),
            other => {
                if let Err(mpsc::error::TrySendError::Closed(_)) = events.try_send(other) {
                    return;
                }
            }
        }
    }
}

/// Tells the data plane the host's addresses and gateways, now and after every change.
async fn follow_surroundings(
    mut monitor: Monitor,
    data: DataPlane,
) -> watch::Receiver<Vec<mesh_core::engine::HostAddress>> {
    let first = monitor.changed().await;
    let (sender, receiver) = watch::channel(first.addresses.clone());
    if let Err(error) = data.surroundings(first).await {
        tracing::error!(%error, "the data plane does not know this host's addresses");
    }
    tokio::spawn(async move {
        loop {
            let surroundings = monitor.changed().await;
            sender.send_replace(surroundings.addresses.clone());
            if let Err(error) = data.surroundings(surroundings).await {
                tracing::debug!(%error, "nobody to tell about the new addresses");
            }
        }
    });
    receiver
}

impl Supervisor {
    async fn bring_up_all(&mut self, networks: Vec<mesh_core::config::Network>) {
        if networks.is_empty() {
            self.make_first_identity();
        }
        for (index, config) in (0..).map(NetworkIndex).zip(networks) {
            let mut network = Network::new(index, config, &self.host);
            if network.wanted {
                // Its health lines say what is wrong; the others come up all the same.
                let _ = network.bring_up(&self.host).await;
            }
            self.networks.push(network);
        }
        self.publish_overlay();
        self.remove_stale_guards().await;
    }

    /// Guards that a meshd before this one left for destinations that no network has any more.
    async fn remove_stale_guards(&self) {
        let keep: BTreeSet<OwnRoute> = self
            .networks
            .iter()
            .flat_map(|network| network.guards.iter().copied())
            .collect();
        match self.host.netlink.remove_guards_except(&keep).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "guard routes of an earlier meshd removed"),
            Err(error) => tracing::warn!(%error, "guard routes of an earlier meshd are left"),
        }
    }

    /// Without any network there is still an ID to hand out: that of the network that people make first.
    fn make_first_identity(&self) {
        let id = self.host.state.identity(FIRST_NETWORK);
        match id.as_ref().map(Identity::id) {
            Ok(id) => tracing::info!(
                "no network is configured; in a network called `{FIRST_NETWORK}` the ID of this host is {id}"
            ),
            Err(error) => {
                tracing::error!("no network is configured, and no key can be made: {error}")
            }
        }
    }
}
