//! Notices when the way out of this host changes.
//!
//! The kernel announces every change of an interface, an address or a route. Most mean nothing to us, our own changes
//! among them. What counts is condensed into a [`Snapshot`]; only a difference between two of them is a change. The
//! first event is looked into at once and the next few soon, for links, addresses and routes change one after the other;
//! those of a longer series are taken together, ever more of them (see [`Pace`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::engine::{Gateway, HostAddress, LanAddress};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use tokio::sync::watch;
use tokio::time::Instant;

use super::links::{Link, LinkAddress, LinkKind, parse_address, parse_link};
use super::routes::{Action, MAIN_TABLE, PROTOCOL, Route, parse};
use super::{Netlink, NetlinkError, hosts};

/// Shortest time between two looks at the host: after the first one of a series, and doubled with each up to the second
/// figure. A look that shows a change has every path probed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(128));
/// The kernel announces an address before it takes packets for it, and a link before the switch at its other end, which may
/// be a bridge of its own, forwards anything. A router that is asked for in between answers to nobody, and is asked again a
/// second later: so others are let go on first when there is something new.
const SETTLE: Duration = Duration::from_millis(5);
/// A series is over when nothing was looked at for this long.
const CALM: Duration = Duration::from_secs(1);
/// How often a look that failed is repeated.
const RETRY: Duration = Duration::from_secs(1);
/// Room for announcements while we are busy: our own routes alone make tens of thousands, and each that does not fit
/// costs a fresh look at everything.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Largest announcement, in bytes: the kernel's own are below 32 KiB.
const DATAGRAM: usize = 1 << 16;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What matters about the host's connection to the world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Snapshot {
    surroundings: Surroundings,
    running: BTreeSet<u32>,
    defaults: Defaults,
}

/// What others need to know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Addresses that peers may try.
    pub addresses: Vec<HostAddress>,
    /// The routers that packets of ours leave by, one for each address family at most.
    pub gateways: Vec<Gateway>,
    /// Those of the addresses that are on links where peers may be found.
    pub lan: Vec<LanAddress>,
}

/// Default routes by what tells them apart for the kernel.
type Defaults = BTreeMap<DefaultKey, (Vec<u32>, Option<IpAddr>)>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct DefaultKey {
    ipv6: bool,
    table: u32,
    metric: u32,
    /// IPv6 has several routes with one metric, one for each router that advertises itself.
    next_hop: Option<(Vec<u32>, Option<IpAddr>)>,
}

impl DefaultKey {
    /// `None` if the route is not a default route that packets of ours may take.
    fn of(route: &Route) -> Option<Self> {
        let counts = route.destination.prefix_len() == 0
            && route.action == Action::Forward
            && route.protocol != PROTOCOL;
        let ipv6 = route.destination.addr().is_ipv6();
        counts.then(|| Self {
            ipv6,
            table: route.table,
            metric: route.metric,
            next_hop: ipv6.then(|| (route.links.clone(), route.gateway)),
        })
    }
}

/// Watches the host; see the module.
pub struct Monitor {
    netlink: Netlink,
    socket: TokioSocket,
    overlay: watch::Receiver<Vec<IpNet>>,
    /// Interfaces whose addresses never count: loopback and tunnels.
    ignored: BTreeSet<u32>,
    defaults: Defaults,
    /// Routes may have gone without an announcement: some announcements were lost, or the last address of an interface
    /// went, and every route with it.
    doubtful: bool,
    last: Option<Snapshot>,
    /// A look is owed, whether or not anything is announced.
    due: bool,
    pace: Pace,
    buffer: Vec<u8>,
}

/// When the host may be looked at again.
#[derive(Debug, Default)]
struct Pace {
    /// The last look, and the pause after it.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    async fn wait(&self) {
        if let Some((at, pause)) = self.last {
            tokio::time::sleep_until(at + pause).await;
        }
    }

    /// There is a look.
    fn note(&mut self, now: Instant) {
        let (shortest, longest) = PAUSE;
        let pause = match self.last {
            Some((at, pause)) if now.duration_since(at) < CALM => (pause * 2).min(longest),
            _ => shortest,
        };
        self.last = Some((now, pause));
    }
}

impl Monitor {
    /// Subscribes to the kernel's announcements. `overlay` are the prefixes whose addresses are ours in the overlay.
    ///
    /// # Errors
    ///
    /// If the kernel gives no socket.
    pub fn start(overlay: watch::Receiver<Vec<IpNet>>) -> Result<Self, NetlinkError> {
        let socket =
            subscribe().map_err(|error| NetlinkError::new("watch for network changes", error))?;
        // After subscribing: what changes before the first look is announced.
        Ok(Self {
            // Its own connection: a list of 100,000 routes that somebody else asked for must not hold us up.
            netlink: Netlink::connect()?,
            socket,
            overlay,
            ignored: BTreeSet::new(),
            defaults: Defaults::new(),
            doubtful: true,
            last: None,
            due: true,
            pace: Pace::default(),
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Waits for the next change and returns what is true from now on. The first call returns at once. Dropping the
    /// future loses no change.
    pub async fn changed(&mut self) -> Surroundings {
        loop {
            if !self.due {
                self.wait_for_cause().await;
                self.due = true;
            }
            // Only ever waits for the second and later looks of a series.
            self.pace.wait().await;
            self.drain().await;
            self.pace.note(Instant::now());
            match self.look_twice_if_new().await {
                Ok(snapshot) => {
                    self.due = false;
                    if self.last.as_ref() != Some(&snapshot) {
                        let surroundings = snapshot.surroundings.clone();
                        tracing::debug!(?surroundings, "the network around us changed");
                        self.last = Some(snapshot);
                        return surroundings;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot see how the network changed; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Returns when something was announced that may be a change.
    async fn wait_for_cause(&mut self) {
        loop {
            let look = tokio::select! {
                received = receive(&self.socket, &mut self.buffer) => self.judge(received),
                Ok(()) = self.overlay.changed() => true,
            };
            if look {
                return;
            }
        }
    }

    /// Takes what has been announced meanwhile.
    async fn drain(&mut self) {
        loop {
            let received = tokio::select! {
                biased;
                received = receive(&self.socket, &mut self.buffer) => received,
                () = std::future::ready(()) => return,
            };
            self.judge(received);
        }
    }

    /// Takes note of announcements; true if they call for a look.
    fn judge(&mut self, received: io::Result<()>) -> bool {
        if received.is_err() {
            self.doubtful = true;
            return true;
        }
        let buffer = std::mem::take(&mut self.buffer);
        let mut look = false;
        for message in messages(&buffer) {
            look |= self.judge_message(&message);
        }
        self.buffer = buffer;
        look
    }

    fn judge_message(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(inner) = &message.payload else {
            return false;
        };
        match inner {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                !is_ignored(&parse_link(link))
            }
            RouteNetlinkMessage::NewAddress(address) => self.counts(address),
            RouteNetlinkMessage::DelAddress(address) => {
                let counts = self.counts(address);
                self.doubtful |= counts;
                counts
            }
            RouteNetlinkMessage::NewRoute(route) => parse(route).is_some_and(|route| {
                let replaces = message.header.flags & NLM_F_REPLACE != 0;
                self.add_default(&route, replaces)
            }),
            RouteNetlinkMessage::DelRoute(route) => parse(route)
                .and_then(|route| DefaultKey::of(&route))
                .is_some_and(|key| self.defaults.remove(&key).is_some()),
            _ => false,
        }
    }

    fn counts(&self, address: &AddressMessage) -> bool {
        parse_address(address).is_some_and(|address| !self.ignored.contains(&address.link))
    }

    /// Notes a route if it is a default route; true if it is news.
    fn add_default(&mut self, route: &Route, replaces: bool) -> bool {
        let Some(key) = DefaultKey::of(route) else {
            return false;
        };
        if replaces {
            self.defaults.retain(|other, _| {
                (other.ipv6, other.table, other.metric) != (key.ipv6, key.table, key.metric)
                    || *other == key
            });
        }
        let value = (route.links.clone(), route.gateway);
        self.defaults.insert(key, value.clone()) != Some(value)
    }

    async fn read_defaults(&mut self) -> Result<(), NetlinkError> {
        self.defaults.clear();
        for route in self.netlink.routes().await? {
            self.add_default(&route, false);
        }
        Ok(())
    }

    /// Looks, and once more a moment later if there is an address or a link that was not there before; see [`SETTLE`].
    async fn look_twice_if_new(&mut self) -> Result<Snapshot, NetlinkError> {
        let snapshot = self.look().await?;
        let news = self.last.as_ref().is_some_and(|last| {
            let known = &last.surroundings.addresses;
            let mut addresses = snapshot.surroundings.addresses.iter();
            addresses.any(|address| !known.contains(address))
                || !snapshot.running.is_subset(&last.running)
        });
        if !news {
            return Ok(snapshot);
        }
        tokio::time::sleep(SETTLE).await;
        self.drain().await;
        self.look().await
    }

    async fn look(&mut self) -> Result<Snapshot, NetlinkError> {
        // Links first: the kernel lists them only between two changes, so that it takes its time; what follows is fresh.
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        if self.doubtful {
            self.read_defaults().await?;
            self.doubtful = false;
        }
        self.ignored = indexes(&links, is_ignored);
        // The routes of an interface that is taken down vanish without an announcement.
        let up = indexes(&links, |link| link.up);
        self.defaults
            .retain(|_, (through, _)| through.iter().any(|link| up.contains(link)));
        let uplinks = self
            .defaults
            .values()
            .flat_map(|(through, _)| through.iter().copied())
            .collect();
        let overlay = self.overlay.borrow_and_update().clone();
        let defaults = self.outer_defaults();
        let selected = hosts::select(&links, &addresses, &uplinks, &overlay);
        Ok(Snapshot {
            surroundings: Surroundings {
                gateways: gateways(&defaults, &addresses, &selected),
                lan: hosts::on_links(&links, &addresses, &selected),
                addresses: selected,
            },
            running: indexes(&links, |link| link.running && link.kind == LinkKind::Real),
            defaults,
        })
    }

    /// The default routes that do not lead into a tunnel.
    fn outer_defaults(&self) -> Defaults {
        let mut defaults = self.defaults.clone();
        defaults.retain(|_, (through, _)| through.iter().any(|link| !self.ignored.contains(link)));
        defaults
    }
}

/// The router of the best default route of each family, with the address that we have on its link. A link-local
/// address of ours does not count: it cannot be mapped.
fn gateways(
    defaults: &Defaults,
    addresses: &[LinkAddress],
    offered: &[HostAddress],
) -> Vec<Gateway> {
    let best = |ipv6: bool| {
        let mut candidates: Vec<_> = defaults
            .iter()
            .filter(|(key, _)| key.ipv6 == ipv6 && key.table == MAIN_TABLE)
            .collect();
        candidates.sort_by_key(|(key, _)| key.metric);
        let (_, (links, gateway)) = candidates.into_iter().next()?;
        let (interface, address) = (*links.first()?, (*gateway)?);
        let own = addresses.iter().map(|own| (own.link, own.net));
        let on_link = own.filter(|(link, net)| {
            *link == interface
                && net.addr().is_ipv6() == address.is_ipv6()
                && offered.iter().any(|offered| offered.ip == net.addr())
        });
        // The one that shares a prefix with the router, if it has an address in one of ours.
        let (_, local) = on_link
            .min_by_key(|(_, net)| (is_unique_local(net.addr()), !net.contains(&address)))?;
        Some(Gateway {
            address,
            interface,
            local,
        })
    };
    [best(false), best(true)].into_iter().flatten().collect()
}

/// RFC 4193: of no use on the internet.
fn is_unique_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unique_local())
}

fn is_ignored(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Loopback | LinkKind::Tunnel)
}

fn indexes(links: &[Link], condition: impl Fn(&Link) -> bool) -> BTreeSet<u32> {
    links
        .iter()
        .filter(|link| condition(link))
        .map(|link| link.index)
        .collect()
}

fn subscribe() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocols::NETLINK_ROUTE)?;
    // Groups below 32 have a bit each in the address.
    let groups = GROUPS
        .iter()
        .fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    // Limited by the system's maximum without CAP_NET_ADMIN; a smaller buffer only costs more looks.
    let _ = socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER);
    Ok(socket)
}

async fn receive(socket: &TokioSocket, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    socket.recv(buffer).await
}

/// The messages of one datagram, as far as they can be understood.
fn messages(bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let length = rest.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))? as usize;
            if length < 16 || length > rest.len() {
                return None;
            }
            let (message, tail) = rest.split_at(length);
            rest = tail
                .get(length.next_multiple_of(4) - length..)
                .unwrap_or_default();
            // One that this build cannot read is one that it does not need.
            if let Ok(message) = NetlinkMessage::deserialize(message) {
                return Some(message);
            }
        }
    })
}
