//! Our own TUN interfaces.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::LinkUnspec;

use super::{Netlink, NetlinkError};

/// The kernel's IPv6 settings of each interface.
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

impl Netlink {
    /// Gives the interface its addresses and starts it.
    ///
    /// The kernel adds no routes for the addresses: all routes into the interface are ours. It makes up no link-local
    /// address either, which would only multicast into the tunnel.
    ///
    /// # Errors
    ///
    /// The first failure; the interface is half configured then.
    pub async fn configure_interface(
        &self,
        index: u32,
        addresses: &[IpNet],
    ) -> Result<(), NetlinkError> {
        let spec = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let quiet = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![spec]))
            .build();
        // Without IPv6 on the host there is nothing to quieten, and the addresses below tell.
        if let Err(error) = self.handle.link().set(quiet).execute().await {
            tracing::debug!(index, %error, "the interface keeps its link-local address");
        }
        for address in addresses {
            self.add_address(index, *address).await?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        Self::bounded("start the interface", self.handle.link().set(up).execute()).await
    }

    /// Deletes an interface, as an administrator might.
    #[cfg(test)]
    pub(crate) async fn delete_link(&self, index: u32) {
        self.handle.link().del(index).execute().await.unwrap();
    }

    /// Adds an address; it is fine if it is there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; for an IPv6 address see [`enable_ipv6`].
    pub async fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        let attributes = &mut request.message_mut().attributes;
        // There are no neighbours that could have the same address, and the routes are ours to make.
        attributes.push(AddressAttribute::Flags(
            AddressFlags::Nodad | AddressFlags::Noprefixroute,
        ));
        attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        let what = format!("add the address {address}");
        match Self::bounded(&what, request.execute()).await {
            Err(NetlinkError::Refused { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Removes an address; it is fine if it is gone.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove_address(&self, index: u32, address: IpNet) -> Result<(), NetlinkError> {
        let mut message = netlink_packet_route::address::AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.header.family = match address.addr() {
            IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
            IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
        };
        message
            .attributes
            .push(AddressAttribute::Local(address.addr()));
        let what = format!("remove the address {address}");
        match Self::bounded(&what, self.handle.address().del(message).execute()).await {
            Err(NetlinkError::Refused { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(libc::EADDRNOTAVAIL | libc::ENODEV)
                ) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

/// Whether the host has IPv6 at all.
pub fn host_has_ipv6() -> bool {
    Path::new(SETTINGS).exists()
}

/// Sees to it that our interface `name` takes IPv6 addresses; false if it cannot.
///
/// Containers and some hosts disable IPv6 on every new interface. On ours it can do no harm; but where the settings are
/// read-only there is nothing to be done about it.
pub fn enable_ipv6(name: &str) -> bool {
    let setting = Path::new(SETTINGS).join(name).join("disable_ipv6");
    match std::fs::read_to_string(&setting) {
        Ok(value) => value.trim() == "0" || std::fs::write(&setting, "0").is_ok(),
        Err(_) => false,
    }
}
