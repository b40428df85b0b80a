//! Single values of the configuration: each function turns one TOML value into one checked type, or says what is wrong.
//!
//! The `correct` that they take is advice of the form `write KEY = EXAMPLE`, for values of a wrong type.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::de::DeValue;

use super::section::describe;
use crate::identity::{NetworkId, RelayUrl};
use crate::limits;

type Parsed<T> = Result<T, String>;

/// Longest name of a network device that Linux takes: `IFNAMSIZ` less the zero byte.
pub(super) const MAX_INTERFACE: usize = 15;
/// Longest name of a network or a peer: one DNS label.
const MAX_NAME: usize = 63;
/// Characters of a wrong text that a message repeats.
const MAX_SHOWN: usize = 80;

pub(super) fn text<'v>(value: &'v DeValue<'_>, correct: &str) -> Parsed<&'v str> {
    value
        .as_str()
        .ok_or_else(|| format!("must be a string, not {}; {correct}", describe(value)))
}

pub(super) fn boolean(value: &DeValue<'_>, correct: &str) -> Parsed<bool> {
    value
        .as_bool()
        .ok_or_else(|| format!("must be true or false, not {}; {correct}", describe(value)))
}

pub(super) fn port(value: &DeValue<'_>, correct: &str) -> Parsed<u16> {
    let Some(number) = value.as_integer() else {
        return Err(format!(
            "must be a number, not {}; {correct}",
            describe(value)
        ));
    };
    u16::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("{number} is not a port; use 0 (any free port) to 65535"))
}

/// Where metrics can be fetched.
pub(super) fn metrics_address(value: &DeValue<'_>, correct: &str) -> Parsed<SocketAddr> {
    parse_metrics_address(text(value, correct)?)
}

/// See [`crate::config::parse_metrics_address`].
pub(super) fn parse_metrics_address(text: &str) -> Parsed<SocketAddr> {
    let mut address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "{} is not an address with a port; write it like \"127.0.0.1:9586\" or \"[::1]:9586\"",
            shown(text)
        )
    })?;
    match address.ip().to_canonical() {
        _ if address.port() == 0 => Err(format!(
            "{address} has no port, which whoever fetches the metrics has to know; choose one"
        )),
        IpAddr::V4(ip) if ip.is_multicast() || ip.is_broadcast() => Err(format!(
            "{address} is no host's address; use one of this host"
        )),
        IpAddr::V6(ip) if ip.is_multicast() => Err(format!(
            "{address} is no host's address; use one of this host"
        )),
        ip => {
            address.set_ip(ip);
            Ok(address)
        }
    }
}

/// An MTU of an overlay.
pub(super) fn mtu(value: &DeValue<'_>, correct: &str) -> Parsed<u16> {
    let Some(number) = value.as_integer() else {
        return Err(format!(
            "must be a number, not {}; {correct}",
            describe(value)
        ));
    };
    let (least, most) = (limits::INNER_MTU, limits::MAX_INNER_MTU);
    u16::from_str_radix(number.as_str(), number.radix())
        .ok()
        .filter(|mtu| (least..=most).contains(mtu))
        .ok_or_else(|| format!("{number} is no possible MTU; use {least} to {most}"))
}

/// An absolute path.
pub(super) fn path(value: &DeValue<'_>, correct: &str) -> Parsed<PathBuf> {
    let text = text(value, correct)?;
    if text.contains('\0') {
        return Err(format!("{} contains a zero byte; remove it", shown(text)));
    }
    if !text.starts_with('/') {
        return Err(format!(
            "{} is not an absolute path; start it with /",
            shown(text)
        ));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn network_id(value: &DeValue<'_>, correct: &str) -> Parsed<NetworkId> {
    let text = text(value, correct)?;
    text.parse().map_err(|error| format!("{error}"))
}

pub(super) fn relay(value: &DeValue<'_>, correct: &str) -> Parsed<RelayUrl> {
    let text = text(value, correct)?;
    text.parse()
        .map_err(|error| format!("{}: {error}", shown(text)))
}

/// A name that can be a path component, a D-Bus object's name and a command-line argument.
pub(super) fn check_network_name(name: &str) -> Parsed<()> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= MAX_NAME && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(format!(
            "a network's name has 1 to {MAX_NAME} characters a-z, 0-9, - and _, and starts with a letter or digit; \
             rename it"
        ))
    }
}

pub(super) fn peer_name(value: &DeValue<'_>, correct: &str) -> Parsed<String> {
    let name = text(value, correct)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts_well || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        return Err(format!(
            "{} is not a name; use 1 to {MAX_NAME} characters a-z, A-Z, 0-9, ., - and _, \
             the first a letter or digit",
            shown(name)
        ));
    }
    // A command takes a peer's name or its address.
    if name.parse::<IpAddr>().is_ok() {
        return Err(format!(
            "{name} is an address, not a name; put it below address"
        ));
    }
    Ok(name.to_owned())
}

/// A name that Linux takes for a device (`dev_valid_name`), without those that mean something else to it.
pub(super) fn interface(value: &DeValue<'_>, correct: &str) -> Parsed<String> {
    let name = text(value, correct)?;
    let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    if name.is_empty() || name.len() > MAX_INTERFACE || !name.bytes().all(allowed) {
        return Err(format!(
            "{} is not a name of a network device; use 1 to {MAX_INTERFACE} characters \
             without spaces, /, : and %",
            shown(name)
        ));
    }
    if matches!(name, "." | ".." | "lo" | "all" | "default") {
        return Err(format!(
            "{name:?} is reserved by Linux; choose another name"
        ));
    }
    Ok(name.to_owned())
}

/// An address of this host with the length of its prefix.
pub(super) fn own_address(value: &DeValue<'_>, correct: &str) -> Parsed<IpNet> {
    let text = text(value, correct)?;
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => format!(
                "{text:?} lacks the length of its prefix; write \"{}\"",
                IpNet::from(address)
            ),
            Err(_) => format!(
                "{} is not an address with the length of its prefix; {correct}",
                shown(text)
            ),
        });
    };
    if net.prefix_len() == 0 {
        return Err(format!(
            "{text:?} would take all traffic; give a longer prefix"
        ));
    }
    check_host_address(net.addr())?;
    let has_network_address = net.max_prefix_len() - net.prefix_len() > 1;
    if has_network_address && net.addr() == net.network() {
        return Err(format!(
            "{text:?} is a network, not an address of this host; write an address inside it"
        ));
    }
    if has_network_address && net.addr().is_ipv4() && net.addr() == net.broadcast() {
        return Err(format!(
            "{text:?} is the broadcast address of its prefix; write another address inside it"
        ));
    }
    Ok(net)
}

/// An address of a peer; a prefix that holds nothing else is taken too.
pub(super) fn peer_address(value: &DeValue<'_>, correct: &str) -> Parsed<IpAddr> {
    let text = text(value, correct)?;
    let address = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(address), _) => address,
        (_, Ok(net)) if net.prefix_len() == net.max_prefix_len() => net.addr(),
        (_, Ok(net)) => {
            return Err(format!(
                "{text:?} is a prefix; write the address alone here, and networks behind the peer below \
                 routes, as in routes = [\"{}\"]",
                net.trunc()
            ));
        }
        _ => return Err(format!("{} is not an IP address; {correct}", shown(text))),
    };
    check_host_address(address)?;
    Ok(address)
}

/// A prefix behind a peer.
pub(super) fn route(value: &DeValue<'_>, correct: &str) -> Parsed<IpNet> {
    let text = text(value, correct)?;
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => format!(
                "{text:?} lacks the length of its prefix; write \"{}\"",
                IpNet::from(address)
            ),
            Err(_) => format!("{} is not a prefix; {correct}", shown(text)),
        });
    };
    if net.addr() != net.network() {
        return Err(format!(
            "{text:?} is an address inside a prefix; write \"{}\"",
            net.trunc()
        ));
    }
    if net.prefix_len() == 0 {
        return Err(format!(
            "{text:?} would take all traffic, and exit nodes are not supported by this version; \
             list the prefixes behind the peer"
        ));
    }
    if let Some((special, what)) = special_prefixes().find(|(special, _)| overlap(special, &net)) {
        return Err(format!(
            "{text:?} overlaps {special} ({what}); route something else"
        ));
    }
    Ok(net)
}

/// Where a peer's UDP socket is.
pub(super) fn endpoint(value: &DeValue<'_>, correct: &str) -> Parsed<SocketAddr> {
    let text = text(value, correct)?;
    let Ok(endpoint) = text.parse::<SocketAddr>() else {
        return Err(format!(
            "{} is not an IP address with a port (an IPv6 address goes in brackets); {correct}",
            shown(text)
        ));
    };
    if endpoint.port() == 0 {
        return Err(format!(
            "{text:?} has port 0; give the port that the peer listens on"
        ));
    }
    let ip = endpoint.ip().to_canonical();
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || broadcast {
        return Err(format!(
            "{text:?} is not the address of one host; give the peer's own address"
        ));
    }
    if link_local {
        return Err(format!(
            "{text:?} is a link-local address, which means another host on each link; give another address"
        ));
    }
    Ok(SocketAddr::new(ip, endpoint.port()))
}

/// True if the two have an address in common; then one contains the other.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// A text from the file in quotes, on one line and of bounded length.
fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn check_host_address(address: IpAddr) -> Parsed<()> {
    let host = IpNet::from(address);
    match special_prefixes().find(|(special, _)| special.contains(&host)) {
        Some((special, what)) => Err(format!(
            "{address} lies in {special} ({what}); choose an address from a private range, like 10.0.0.0/8"
        )),
        None => Ok(()),
    }
}

/// Prefixes whose addresses are never those of one host in an overlay (RFC 6890, RFC 4291).
fn special_prefixes() -> impl Iterator<Item = (IpNet, &'static str)> {
    let v4 = |octets: [u8; 4], length| IpNet::V4(Ipv4Net::new_assert(octets.into(), length));
    let v6 = |first: u16, fifth: u16, last: u16, length| {
        let address = [first, 0, 0, 0, 0, fifth, 0, last];
        IpNet::V6(Ipv6Net::new_assert(address.into(), length))
    };
    [
        (v4([0, 0, 0, 0], 8), "this network"),
        (v4([127, 0, 0, 0], 8), "loopback"),
        (v4([169, 254, 0, 0], 16), "link-local"),
        (v4([224, 0, 0, 0], 4), "multicast"),
        (v4([255, 255, 255, 255], 32), "broadcast"),
        (v6(0, 0, 0, 128), "unspecified"),
        (v6(0, 0, 1, 128), "loopback"),
        (v6(0, 0xffff, 0, 96), "IPv4-mapped"),
        (v6(0xfe80, 0, 0, 10), "link-local"),
        (v6(0xff00, 0, 0, 8), "multicast"),
    ]
    .into_iter()
}
