//! Routes: what is there, and ours.

use std::net::IpAddr;

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, route::RouteNextHop};
use rtnetlink::RouteMessageBuilder;

use super::{Netlink, NetlinkError, to_io};

/// Who installed a route, for the kernel's notes (`rtm_protocol`): `m`. Not among those of `/etc/iproute2/rt_protos`.
pub const PROTOCOL: u8 = 0x6d;
/// The main table.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The table in which the kernel keeps the host's own addresses.
pub(super) const LOCAL_TABLE: u32 = 255;

/// Requests that the kernel has and we have no answer to yet; its answers must fit into the socket's receive buffer,
/// which holds a few hundred.
const WINDOW: usize = 64;

/// A route as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination; the length is zero for a default route.
    pub destination: IpNet,
    /// Routing table.
    pub table: u32,
    /// Who installed it.
    pub protocol: u8,
    /// What becomes of the packets.
    pub action: Action,
    /// Interfaces that it leads to.
    pub links: Vec<u32>,
    /// First gateway, if any.
    pub gateway: Option<IpAddr>,
    /// Less is preferred.
    pub metric: u32,
}

/// What a route does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Sends them on.
    Forward,
    /// Refuses them with an ICMP error, silently, or by policy.
    Refuse,
    /// Takes them in, or something else that is none of our business.
    Other,
}

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnRoute {
    /// Destination.
    pub destination: IpNet,
    /// Where to.
    pub target: Target,
}

/// Where a route of ours leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Into a TUN interface, by its index.
    Tun(u32),
    /// Nowhere, with this metric; see [`super::guard`].
    Unreachable(u32),
}

/// What the kernel is to know about a route into a TUN interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteMtu {
    /// Largest packet, in bytes: what the path to the peer carries.
    pub path: u16,
    /// Largest packet of the interface. TCP tells peers that we take segments of this size, so that a connection may grow
    /// into a better path; what they send is bounded by their own route to us.
    pub device: u16,
}

impl RouteMtu {
    fn metrics(self, destination: &IpNet) -> RouteAttribute {
        // IP and TCP without options (RFC 6691).
        let headers = if destination.addr().is_ipv4() { 40 } else { 60 };
        RouteAttribute::Metrics(vec![
            RouteMetric::Mtu(self.path.into()),
            RouteMetric::Advmss(u32::from(self.device.saturating_sub(headers))),
        ])
    }
}

impl Netlink {
    /// All routes of both address families, except the kernel's cache and its local table.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let routes = self.dump(
                "list routes",
                |handle| handle.route().get(request).execute(),
                |message| parse(&message),
            );
            all.extend(routes.await?);
        }
        Ok(all)
    }

    /// Installs routes, those into a TUN interface with `mtu`; one that is there already stays as it is.
    ///
    /// # Errors
    ///
    /// The first failure; some of the routes are installed then.
    pub async fn add_routes(
        &self,
        routes: impl IntoIterator<Item = OwnRoute>,
        mtu: Option<RouteMtu>,
    ) -> Result<(), NetlinkError> {
        self.pipeline(routes, "add", async |handle, route| {
            let add = handle.add(message(&route, mtu));
            match add.execute().await.map_err(to_io) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                result => result,
            }
        })
        .await
    }

    /// Changes the MTU of routes. What the kernel learned about their destinations by itself is forgotten with it.
    ///
    /// # Errors
    ///
    /// The first failure; some of the routes are changed then.
    pub async fn set_route_mtu(
        &self,
        routes: impl IntoIterator<Item = OwnRoute>,
        mtu: RouteMtu,
    ) -> Result<(), NetlinkError> {
        self.pipeline(routes, "set the MTU of", async |handle, route| {
            let add = handle.add(message(&route, Some(mtu)));
            add.replace().execute().await.map_err(to_io)
        })
        .await
    }

    /// Removes routes; one that is gone already is fine.
    ///
    /// # Errors
    ///
    /// The first failure; some of the routes are gone then.
    pub async fn remove_routes(
        &self,
        routes: impl IntoIterator<Item = OwnRoute>,
    ) -> Result<(), NetlinkError> {
        self.pipeline(routes, "remove", async |handle, route| {
            let mut message = message(&route, None);
            // Means any scope in a removal.
            message.header.scope = RouteScope::NoWhere;
            match handle.del(message).execute().await.map_err(to_io) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {
                    Ok(())
                }
                result => result,
            }
        })
        .await
    }

    /// Works on many routes without waiting for one before asking for the next.
    async fn pipeline(
        &self,
        routes: impl IntoIterator<Item = OwnRoute>,
        verb: &str,
        request: impl AsyncFn(rtnetlink::RouteHandle, OwnRoute) -> std::io::Result<()>,
    ) -> Result<(), NetlinkError> {
        let work = futures_util::stream::iter(routes)
            .map(|route| {
                let request = &request;
                let handle = self.handle.route();
                async move {
                    tokio::time::timeout(super::TIMEOUT, request(handle, route))
                        .await
                        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                        .map_err(|error| {
                            NetlinkError::new(
                                format!("{verb} the route to {}", route.destination),
                                error,
                            )
                        })
                }
            })
            .buffer_unordered(WINDOW);
        work.try_collect::<()>().await
    }
}

fn message(route: &OwnRoute, mtu: Option<RouteMtu>) -> RouteMessage {
    let destination = route.destination.trunc();
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.addr(), destination.prefix_len())
        // Prefix lengths of an IpNet fit its address.
        .unwrap_or_default()
        .protocol(RouteProtocol::Other(PROTOCOL));
    builder = match route.target {
        Target::Tun(index) => builder.scope(RouteScope::Link).output_interface(index),
        Target::Unreachable(metric) => builder.kind(RouteType::Unreachable).priority(metric),
    };
    let mut message = builder.build();
    let metrics = mtu.map(|mtu| mtu.metrics(&destination));
    message.attributes.extend(metrics);
    message
}

pub(super) fn parse(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0u8; 4]),
        AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
        _ => return None,
    };
    // The kernel's cache of path MTUs and redirects is no configuration.
    if header.flags.bits() & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let mut route = Route {
        destination: IpNet::new(unspecified, header.destination_prefix_length).ok()?,
        table: header.table.into(),
        protocol: header.protocol.into(),
        action: match header.kind {
            RouteType::Unicast => Action::Forward,
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => Action::Refuse,
            _ => Action::Other,
        },
        links: Vec::new(),
        gateway: None,
        metric: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let ip = to_ip(address)?;
                route.destination = IpNet::new(ip, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => route.links.push(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Gateway(gateway) => route.gateway = to_ip(gateway),
            RouteAttribute::MultiPath(hops) => read_hops(hops, &mut route),
            _ => {}
        }
    }
    (route.table != LOCAL_TABLE).then_some(route)
}

fn read_hops(hops: &[RouteNextHop], route: &mut Route) {
    for hop in hops {
        route.links.push(hop.interface_index);
        for attribute in &hop.attributes {
            if let RouteAttribute::Gateway(gateway) = attribute {
                route.gateway = route.gateway.or(to_ip(gateway));
            }
        }
    }
}

fn to_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
