//! Interfaces and their addresses, as the kernel lists them.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVrf, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::{Netlink, NetlinkError};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What is behind it.
    pub kind: LinkKind,
    /// Started by the administrator.
    pub up: bool,
    /// Up, and connected to something.
    pub running: bool,
    /// Others share it, and a packet can go to all of them.
    pub multicast: bool,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// The routing table that it keeps to itself, for a VRF.
    pub vrf_table: Option<u32>,
}

/// Kinds of interface, as far as they matter to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// Hardware, or something that stands for it.
    Real,
    /// `lo`.
    Loopback,
    /// Leads into another network over this one: ours, or another VPN's.
    Tunnel,
    /// Leads to containers and virtual machines on this host, normally.
    Virtual,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddress {
    /// Index of the interface.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Valid beyond the link.
    pub global: bool,
    /// Checked for duplicates and not on its way out.
    pub usable: bool,
    /// An IPv6 privacy address (RFC 8981).
    pub temporary: bool,
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.dump(
            "list interfaces",
            |handle| handle.link().get().execute(),
            |message| Some(parse_link(&message)),
        )
        .await
    }

    /// All addresses.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn addresses(&self) -> Result<Vec<LinkAddress>, NetlinkError> {
        self.dump(
            "list addresses",
            |handle| handle.address().get().execute(),
            |message| parse_address(&message),
        )
        .await
    }
}

pub(super) fn parse_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Real,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
            && flags.contains(LinkFlags::Running),
        multicast: flags.contains(LinkFlags::Multicast) && !flags.contains(LinkFlags::Pointopoint),
        mtu: 0,
        vrf_table: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(u16::MAX),
            LinkAttribute::LinkInfo(infos) => read_info(infos, &mut link),
            _ => {}
        }
    }
    if flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    }
    link
}

fn read_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = classify(kind),
            LinkInfo::Data(InfoData::Vrf(vrf)) => {
                link.vrf_table = vrf.iter().find_map(|attribute| match attribute {
                    InfoVrf::TableId(table) => Some(*table),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}

fn classify(kind: &InfoKind) -> LinkKind {
    match kind {
        // Another VPN's address may be reachable, but through that VPN: a tunnel in a tunnel, or a loop.
        InfoKind::Tun
        | InfoKind::Wireguard
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::ErSpan
        | InfoKind::Ip6ErSpan
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Xfrm
        | InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::Gtp
        | InfoKind::Amt
        | InfoKind::BareUdp
        | InfoKind::Pfcp => LinkKind::Tunnel,
        InfoKind::Bridge
        | InfoKind::Veth
        | InfoKind::Netkit
        | InfoKind::Dummy
        | InfoKind::Ifb
        | InfoKind::Vrf
        | InfoKind::MacVlan
        | InfoKind::MacVtap
        | InfoKind::IpVlan
        | InfoKind::IpVtap => LinkKind::Virtual,
        InfoKind::Other(name)
            if matches!(name.as_str(), "ovpn" | "ovpn-dco" | "l2tp" | "nebula") =>
        {
            LinkKind::Tunnel
        }
        _ => LinkKind::Real,
    }
}

pub(super) fn parse_address(message: &AddressMessage) -> Option<LinkAddress> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            // The header has room for the first eight only.
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point interface IFA_ADDRESS is the other end.
    let ip: IpAddr = local.or(address)?;
    let unusable = AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Dadfailed;
    // An optimistic address is in use while it is still being checked (RFC 4429).
    let optimistic =
        flags.contains(AddressFlags::Optimistic) && !flags.contains(AddressFlags::Dadfailed);
    Some(LinkAddress {
        link: message.header.index,
        net: IpNet::new(ip, message.header.prefix_len).ok()?,
        global: matches!(
            message.header.scope,
            AddressScope::Universe | AddressScope::Site
        ),
        usable: optimistic && !flags.contains(AddressFlags::Deprecated)
            || !flags.intersects(unusable),
        // The same bit says "secondary" for IPv4.
        temporary: message.header.family == AddressFamily::Inet6
            && flags.contains(AddressFlags::Secondary),
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressHeaderFlags;

    use super::*;

    fn message(flags: AddressFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = 64;
        message.header.flags = AddressHeaderFlags::from_bits_retain(flags.bits() as u8);
        message.attributes = vec![
            AddressAttribute::Address("2001:db8::1".parse().unwrap()),
            AddressAttribute::Flags(flags),
        ];
        message
    }

    #[test]
    fn addresses_that_cannot_be_used_now_are_told_apart() {
        for (flags, usable) in [
            (AddressFlags::Permanent, true),
            (AddressFlags::Tentative, false),
            (AddressFlags::Tentative | AddressFlags::Optimistic, true),
            (AddressFlags::Deprecated, false),
            (AddressFlags::Deprecated | AddressFlags::Optimistic, false),
            (AddressFlags::Dadfailed | AddressFlags::Tentative, false),
        ] {
            assert_eq!(
                parse_address(&message(flags)).unwrap().usable,
                usable,
                "{flags:?}"
            );
        }
    }

    #[test]
    fn secondary_means_temporary_for_ipv6_only() {
        let mut message = message(AddressFlags::Secondary);
        assert!(parse_address(&message).unwrap().temporary);
        message.header.family = AddressFamily::Inet;
        assert!(!parse_address(&message).unwrap().temporary);
    }

    #[test]
    fn point_to_point_address_is_the_local_end() {
        let mut message = message(AddressFlags::Permanent);
        message.header.prefix_len = 32;
        message.attributes = vec![
            AddressAttribute::Address("192.0.2.1".parse().unwrap()),
            AddressAttribute::Local("192.0.2.2".parse().unwrap()),
        ];
        assert_eq!(
            parse_address(&message).unwrap().net,
            "192.0.2.2/32".parse().unwrap()
        );
    }
}
