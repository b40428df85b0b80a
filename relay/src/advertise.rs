//! The `mesh://` line that clients put into `relays`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mesh_core::identity::{NodeId, RelayUrl, RelayUrlError};
use nix::ifaddrs::getifaddrs;

/// Lines that are shown at most.
const MAX_SHOWN: usize = 8;

/// The URL of the relay `id` at `address`: a host name or an IP address, with a port or on `port`.
///
/// # Errors
/// If `address` is nothing that a client could use.
pub fn url(id: NodeId, address: &str, port: u16) -> Result<RelayUrl, RelayUrlError> {
    let authority = match address.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{port}"),
        Err(_) if has_port(address) => address.to_owned(),
        Err(_) => format!("{address}:{port}"),
    };
    format!("mesh://{id}@{authority}").parse()
}

fn has_port(address: &str) -> bool {
    match address.rsplit_once(']') {
        Some((_, after)) => after.starts_with(':'),
        None => address.contains(':'),
    }
}

/// The URLs under which this host can be reached at the addresses that it listens on, public ones first.
pub fn urls(id: NodeId, listening: &[SocketAddr]) -> Vec<RelayUrl> {
    let own = own_addresses();
    let mut found = Vec::new();
    for listen in listening {
        let here: Vec<IpAddr> = match listen.ip() {
            IpAddr::V6(ip) if ip.is_unspecified() => own.clone(),
            IpAddr::V4(ip) if ip.is_unspecified() => {
                own.iter().copied().filter(IpAddr::is_ipv4).collect()
            }
            ip => vec![ip],
        };
        for ip in here {
            if let Ok(url) = url(id, &ip.to_string(), listen.port())
                && !found.contains(&url)
            {
                found.push(url);
            }
        }
    }
    found.sort_by_key(|url| url.host_is_ip().is_none_or(|ip| !is_public(ip)));
    found.truncate(MAX_SHOWN);
    found
}

/// Addresses of this host that others may know it by.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::from(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        })
        .collect()
}

/// Whether an address may be reachable from everywhere.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() && !shared
        }
        IpAddr::V6(ip) => !ip.is_unique_local() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "zkj2yfyfdbyhdvt3qpd76dx6qeeor3cfgblv25zgq6jthw62xz6a";

    fn line(address: &str) -> String {
        url(ID.parse().unwrap(), address, 443).unwrap().to_string()
    }

    #[test]
    fn addresses_get_a_port_and_brackets_where_they_need_them() {
        for (address, authority) in [
            ("relay.example.org", "relay.example.org:443"),
            ("relay.example.org:8443", "relay.example.org:8443"),
            ("203.0.113.7", "203.0.113.7:443"),
            ("203.0.113.7:1", "203.0.113.7:1"),
            ("2001:db8::7", "[2001:db8::7]:443"),
            ("[2001:db8::7]", "[2001:db8::7]:443"),
            ("[2001:db8::7]:1", "[2001:db8::7]:1"),
        ] {
            assert_eq!(line(address), format!("mesh://{ID}@{authority}"));
        }
    }

    #[test]
    fn what_no_client_could_use_is_refused() {
        for address in [
            "",
            "0.0.0.0",
            "[::]:443",
            "a b",
            "relay.example.org:",
            "relay.example.org:99999",
        ] {
            assert!(url(ID.parse().unwrap(), address, 443).is_err(), "{address}");
        }
    }

    #[test]
    fn an_address_to_listen_on_is_advertised_as_it_is() {
        let listening = [
            "192.168.0.9:5".parse().unwrap(),
            "203.0.113.7:5".parse().unwrap(),
        ];
        let urls: Vec<_> = urls(ID.parse().unwrap(), &listening)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            urls,
            [
                format!("mesh://{ID}@203.0.113.7:5"),
                format!("mesh://{ID}@192.168.0.9:5")
            ]
        );
    }
}
