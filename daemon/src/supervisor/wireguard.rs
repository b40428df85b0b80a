//! The stanza for a stock WireGuard device that is to be a peer of this host.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use mesh_core::config::Peer;
use mesh_core::engine::{HostAddress, PeerKey};
use mesh_core::identity::{NodeId, format_wireguard_key, overlay_address};
use mesh_core::limits;

use super::names::key_text;
use super::network::Network;

/// Where a device can reach this host.
pub(super) struct Reachable {
    /// Ports of the mesh socket.
    pub(super) port_v4: Option<u16>,
    pub(super) port_v6: Option<u16>,
    /// Addresses of this host.
    pub(super) host: Vec<HostAddress>,
    /// Addresses that relays see us at.
    pub(super) public: Vec<SocketAddr>,
}

/// One configuration for each stock WireGuard peer of the network, for wg-quick; for `wg setconf`, its `[Peer]` part.
pub(super) fn stanzas(network: &Network, own: &NodeId, reachable: &Reachable) -> String {
    let devices: Vec<&Peer> = network
        .config
        .peers
        .iter()
        .filter(|peer| matches!(peer.key, PeerKey::WireGuard(_)))
        .collect();
    if devices.is_empty() {
        return format!(
            "# No peer of network {name} is a stock WireGuard device. To add one, put its public key into the configuration:\n\
             #   [[network.{name}.peer]]\n#   wireguard = true\n#   id = \"<its WireGuard public key>\"\n#   name = \"phone\"\n\
             #   address = [\"<its overlay address>\"]\n# then run: meshctl reload. On the device:\n\n{peer}",
            name = network.name(),
            peer = peer_section(network, own, None, reachable),
        );
    }
    let stanzas: Vec<String> = devices
        .iter()
        .map(|device| {
            let mut text = interface_section(network, device);
            text.push('\n');
            text.push_str(&peer_section(network, own, Some(device), reachable));
            text
        })
        .collect();
    stanzas.join("\n")
}

fn interface_section(network: &Network, device: &Peer) -> String {
    let addresses: Vec<String> = device
        .addresses
        .iter()
        .map(|address| IpNet::from(*address).to_string())
        .collect();
    let mut text = format!(
        "# For {} in network {}, the device whose public key is\n# {}\n[Interface]\n\
         # PrivateKey = <the private key that belongs to that public key>\n",
        device.name,
        network.name(),
        key_text(&device.key)
    );
    if addresses.is_empty() {
        text.push_str(
            "# Address = <give the device an `address` in the configuration of this host>\n",
        );
    } else {
        let _ = writeln!(text, "Address = {}", addresses.join(", "));
    }
    // What goes through a peer of ours has to fit there too.
    let _ = writeln!(text, "MTU = {}", limits::INNER_MTU);
    text
}

fn peer_section(
    network: &Network,
    own: &NodeId,
    device: Option<&Peer>,
    reachable: &Reachable,
) -> String {
    let derived = IpAddr::from(overlay_address(&network.config.id, own));
    let addresses: Vec<String> = std::iter::once(derived)
        .chain(network.config.addresses.iter().map(|net| net.addr()))
        .map(|address| IpNet::from(address).to_string())
        .collect();
    let mut text = format!(
        "[Peer]\n# {}\nPublicKey = {}\n",
        super::status::host_name(),
        format_wireguard_key(&own.to_wireguard())
    );
    if let Some(file) = device.and_then(|device| device.psk_file.as_ref()) {
        let _ = writeln!(
            text,
            "# PresharedKey = <the content of {} on this host>",
            file.display()
        );
    }
    let _ = writeln!(text, "AllowedIPs = {}", addresses.join(", "));
    let endpoints = endpoints(reachable);
    match endpoints.split_first() {
        Some((first, others)) => {
            let _ = writeln!(text, "Endpoint = {first}");
            for other in others {
                let _ = writeln!(text, "# or: Endpoint = {other}");
            }
        }
        None => text.push_str("# Endpoint = <address of this host>:<its listen_port>\n"),
    }
    text
}

/// Where the device may try, the most likely first: a public address of the host, the router's public address with our
/// port (which the router must forward), an address in the local network.
fn endpoints(reachable: &Reachable) -> Vec<SocketAddr> {
    let with_port = |ip: IpAddr| {
        let port = if ip.is_ipv4() {
            reachable.port_v4
        } else {
            reachable.port_v6
        };
        port.map(|port| SocketAddr::new(ip, port))
    };
    let (real, inner): (Vec<&HostAddress>, Vec<&HostAddress>) =
        (reachable.host.iter()).partition(|address| !address.virtual_interface);
    let (public, private): (Vec<IpAddr>, Vec<IpAddr>) = real
        .iter()
        .map(|address| address.ip)
        .partition(|ip| is_public(*ip));
    let seen = reachable.public.iter().map(|address| address.ip());
    let mut endpoints = Vec::new();
    // Interfaces to containers and virtual machines count only when there is nothing else.
    let inner = inner.iter().map(|address| address.ip);
    let inner = inner.filter(|_| real.is_empty());
    let all = public.into_iter().chain(seen).chain(private).chain(inner);
    for endpoint in all.filter_map(with_port) {
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// Not private (RFC 1918), shared by a carrier's customers (RFC 6598) or unique local (RFC 4193).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !ip.is_private() && !shared
        }
        IpAddr::V6(ip) => !is_unique_local(ip),
    }
}

fn is_unique_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xfe00 == 0xfc00
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reachable(host: &[&str], public: &[&str]) -> Reachable {
        Reachable {
            port_v4: Some(41820),
            port_v6: Some(41821),
            host: host
                .iter()
                .map(|ip| HostAddress {
                    ip: ip.parse().unwrap(),
                    virtual_interface: ip.starts_with("172."),
                    mtu: 1_500,
                })
                .collect(),
            public: public
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
        }
    }

    fn shown(reachable: &Reachable) -> Vec<String> {
        endpoints(reachable)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_public_address_of_the_host_comes_first_and_docker_does_not_come() {
        let reachable = reachable(
            &[
                "192.168.1.2",
                "172.17.0.1",
                "198.51.100.7",
                "fd00::1",
                "2001:db8::1",
            ],
            &["203.0.113.9:51234", "198.51.100.7:41820"],
        );
        assert_eq!(
            shown(&reachable),
            [
                "198.51.100.7:41820",
                "[2001:db8::1]:41821",
                "203.0.113.9:41820",
                "192.168.1.2:41820",
                "[fd00::1]:41821"
            ]
        );
    }

    #[test]
    fn a_host_with_nothing_else_offers_its_virtual_interface() {
        assert_eq!(
            shown(&reachable(&["172.17.0.1"], &[])),
            ["172.17.0.1:41820"]
        );
    }

    #[test]
    fn behind_a_router_its_address_comes_with_our_port() {
        assert_eq!(
            shown(&reachable(&["100.64.1.2"], &["203.0.113.9:51234"])),
            ["203.0.113.9:41820", "100.64.1.2:41820"]
        );
    }
}
