//! One network: from its configuration to a running interface, and back.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::config;
use mesh_core::engine::NetworkIndex;
use mesh_core::identity::NodeId;
use mesh_core::limits;
use tokio::sync::{broadcast, watch};

use super::mtu::Mtus;
use super::plan::Plan;
use super::secrets::{Secrets, load_identity};
use crate::api::Notice;
use crate::dataplane::DataPlane;
use crate::netlink::clash::{self, Clash};
use crate::netlink::interface::enable_ipv6;
use crate::netlink::routes::OwnRoute;
use crate::netlink::{Netlink, NetlinkError};
use crate::relays::RelayDialer;
use crate::state::StateDir;

/// What networks are run with.
pub(super) struct Host {
    pub(super) state: StateDir,
    pub(super) netlink: Netlink,
    pub(super) data: DataPlane,
    pub(super) dialer: Arc<RelayDialer>,
    /// True while a router holds something for us.
    pub(super) held: watch::Receiver<bool>,
    /// Tells the monitor which addresses are ours in the overlay.
    pub(super) overlay: watch::Sender<Vec<IpNet>>,
    pub(super) notices: broadcast::Sender<Notice>,
}

/// A configured network.
pub(super) struct Network {
    pub(super) index: NetworkIndex,
    pub(super) config: config::Network,
    /// Our ID in it; `None` if there is something wrong with our key.
    pub(super) id: Option<NodeId>,
    /// To be up: by `autostart` or by what was remembered.
    pub(super) wanted: bool,
    pub(super) phase: Phase,
    /// Guard routes that it has installed.
    pub(super) guards: BTreeSet<OwnRoute>,
    /// What the path to each peer carries, where it is not the least.
    pub(super) mtus: Mtus,
}

/// How far a network has come.
pub(super) enum Phase {
    /// Not running, and not tried or not wanted.
    Down,
    /// Wanted, tried, and not possible, for this reason.
    Failed(String),
    /// Running.
    Up(Interface),
}

/// The interface of a network that is up.
pub(super) struct Interface {
    /// The kernel's number of it.
    pub(super) link: u32,
    /// Whether it takes IPv6 addresses.
    pub(super) ipv6: bool,
    /// What has been configured on it.
    pub(super) plan: Plan,
}

impl Network {
    /// A network as the configuration has it, down.
    pub(super) fn new(index: NetworkIndex, config: config::Network, host: &Host) -> Self {
        let (id, phase) = match load_identity(&host.state, &config) {
            Ok(identity) => (Some(identity.id()), Phase::Down),
            Err(reason) => (None, Phase::Failed(reason)),
        };
        let mut network = Self {
            index,
            config,
            id,
            wanted: false,
            phase,
            guards: BTreeSet::new(),
            mtus: Mtus::default(),
        };
        network.wanted = network.wish(&host.state);
        network
    }

    /// Whether it is to be up: what was said at run time counts more than `autostart`.
    pub(super) fn wish(&self, state: &StateDir) -> bool {
        match state.remembered_up(&self.config.name) {
            Ok(remembered) => remembered.unwrap_or(self.config.autostart),
            Err(error) => {
                tracing::warn!(%error, "whether {} was up is forgotten", self.config.name);
                self.config.autostart
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn interface(&self) -> Option<&Interface> {
        match &self.phase {
            Phase::Up(interface) => Some(interface),
            Phase::Down | Phase::Failed(_) => None,
        }
    }

    /// Brings it up; what it needs is checked before anything of the host is changed.
    ///
    /// # Errors
    ///
    /// With what is wrong and what to do. The network is then [`Phase::Failed`]; if it was a failure in the middle, its
    /// destinations stay unreachable rather than lead elsewhere.
    pub(super) async fn bring_up(&mut self, host: &Host) -> Result<(), String> {
        if self.interface().is_some() {
            return Ok(());
        }
        let result = self.try_bring_up(host).await;
        match &result {
            Ok(()) => tracing::info!(
                network = self.name(),
                interface = %self.config.interface,
                id = %self.id.map(|id| id.to_string()).unwrap_or_default(),
                "network is up"
            ),
            Err(reason) => {
                tracing::error!(
                    network = self.name(),
                    "network cannot be brought up: {reason}"
                );
                self.phase = Phase::Failed(reason.clone());
            }
        }
        self.announce(host);
        result
    }

    async fn try_bring_up(&mut self, host: &Host) -> Result<(), String> {
        let secrets = Secrets::load(&host.state, &self.config)?;
        let id = secrets.identity.id();
        self.id = Some(id);
        let plan = Plan::new(&self.config, &id);
        self.check(host, &plan).await?;
        let device = create_device(&self.config.interface, self.config.mtu).map_err(text)?;
        let link = device.if_index().map_err(text)?;
        let ipv6 = enable_ipv6(&self.config.interface);
        self.guards = plan.guards();
        // They come before the routes, so that there is no moment without either.
        host.netlink
            .add_routes(self.guards.iter().copied(), None)
            .await
            .map_err(text)?;
        let plan = plan.limited(ipv6);
        host.netlink
            .configure_interface(link, &plan.addresses)
            .await
            .map_err(text)?;
        host.netlink
            .add_routes(plan.routes(link), Some(self.route_mtu(limits::INNER_MTU)))
            .await
            .map_err(text)?;
        host.dialer
            .set_identity(self.index, secrets.identity.duplicate());
        let setup = secrets.into_setup(&self.config);
        if let Err(error) = host.data.add_network(self.index, setup, device).await {
            host.dialer.remove_identity(self.index);
            return Err(error.to_string());
        }
        self.phase = Phase::Up(Interface { link, ipv6, plan });
        Ok(())
    }

    /// Refuses a plan that would hide something of the host, or that something of the host would hide.
    async fn check(&mut self, host: &Host, plan: &Plan) -> Result<(), String> {
        let present = host.netlink.host().await.map_err(text)?;
        let name = &self.config.interface;
        if present.links.iter().any(|link| link.name == *name) {
            return Err(format!(
                "an interface called {name} exists already: is another meshd or VPN running? \
                 Else remove it, or set another `interface`"
            ));
        }
        let clashes = clash::find(&plan.claims(), &present, &BTreeSet::new());
        if clashes.is_empty() {
            return Ok(());
        }
        // Guards from before would themselves hide what is there now.
        let stale: Vec<OwnRoute> = self.guards.union(&plan.guards()).copied().collect();
        self.guards.clear();
        if let Err(error) = host.netlink.remove_routes(stale).await {
            tracing::warn!(%error, "guard routes are left");
        }
        Err(describe(&clashes))
    }

    /// Stops it and leaves nothing of it on the host; if `keep_guards`, nothing but its guard routes.
    ///
    /// Goes on after a failure and logs it: there is nothing else to do about it.
    pub(super) async fn take_down(&mut self, host: &Host, keep_guards: bool) {
        if self.interface().is_some() {
            // The interface goes with its descriptor, and its addresses and routes go with it.
            if let Err(error) = host.data.remove_network(self.index).await {
                tracing::error!(%error, network = self.name(), "the data plane keeps a network");
            }
            host.dialer.remove_identity(self.index);
            self.mtus.clear();
            tracing::info!(network = self.name(), "network is down");
        }
        let was_down = matches!(self.phase, Phase::Down);
        self.phase = Phase::Down;
        if !keep_guards {
            let guards = std::mem::take(&mut self.guards);
            if let Err(error) = host.netlink.remove_routes(guards).await {
                tracing::error!(%error, network = self.name(), "guard routes are left");
            }
        }
        if !was_down {
            self.announce(host);
        }
    }

    /// The interface was deleted by somebody else. The guards stay: the network is still wanted.
    pub(super) async fn interface_lost(&mut self, host: &Host) {
        if self.interface().is_none() {
            return;
        }
        let _ = host.data.remove_network(self.index).await;
        self.mtus.clear();
        host.dialer.remove_identity(self.index);
        let reason = format!(
            "somebody deleted the interface {}; run: meshctl up {}",
            self.config.interface, self.config.name
        );
        tracing::error!(network = self.name(), "{reason}");
        self.phase = Phase::Failed(reason);
        self.announce(host);
    }

    fn announce(&self, host: &Host) {
        // Fails when nobody listens.
        let _ = host.notices.send(Notice::NetworkChanged {
            network: self.config.name.clone(),
        });
    }
}

/// What clashes, and what to do.
pub(super) fn describe(clashes: &[Clash]) -> String {
    let list: Vec<String> = clashes.iter().map(Clash::to_string).collect();
    format!(
        "{}; change `address` and `routes` in the configuration, or this host's network",
        list.join("; ")
    )
}

/// Packets that wait in a device until the data thread reads them: 8 ms of 250,000 small packets/s, so that none are lost
/// while another process has the CPU for a time slice, 3 to 4 ms. The kernel's own default, 500, loses one to four in a
/// hundred then.
const TUN_QUEUE: u32 = 2_000;

fn create_device(name: &str, mtu: u16) -> Result<tun_rs::SyncDevice, NetlinkError> {
    tun_rs::DeviceBuilder::new()
        .name(name)
        .mtu(mtu)
        .offload(true)
        .tx_queue_len(TUN_QUEUE)
        .enable(false)
        .build_sync()
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => NetlinkError::new(
                format!("create the interface {name}"),
                io::Error::other(
                    "there is no /dev/net/tun; run: modprobe tun (in a container: pass the device in)",
                ),
            ),
            // Not a matter of capabilities: those are asked for later, by EPERM.
            Some(libc::EACCES) => NetlinkError::Refused {
                what: format!("create the interface {name}"),
                source: io::Error::other(
                    "no permission for /dev/net/tun; run: chmod 666 /dev/net/tun (it gives no power without CAP_NET_ADMIN)",
                ),
            },
            Some(libc::EBUSY) => NetlinkError::new(
                format!("create the interface {name}"),
                io::Error::other("the name is in use; set another `interface`"),
            ),
            _ => NetlinkError::new(format!("create the interface {name}"), error),
        })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox;

    #[test]
    fn a_new_device_holds_more_packets_than_the_kernel_gives_it() {
        sandbox::run(async || {
            let device = create_device("mesh-test", limits::INNER_MTU).unwrap();
            assert_eq!(device.tx_queue_len().unwrap(), TUN_QUEUE);
        });
    }
}
