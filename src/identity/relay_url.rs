//! `mesh://<relay id>@<host>:<port>`: where a relay is, and which key it must prove.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

use super::{IdError, NodeId};

/// Longest DNS name in text form (RFC 1035, section 2.3.4, less the root's length byte and dot).
const MAX_DNS_NAME: usize = 253;
/// Longest label of a DNS name (RFC 1035, section 2.3.4).
const MAX_DNS_LABEL: usize = 63;

/// Why a text is not the address of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RelayUrlError {
    /// Another scheme, or none.
    #[error("a relay's address starts with mesh://; copy the line that mesh-relay printed")]
    Scheme,
    /// No `@`.
    #[error("the relay's ID is missing; write mesh://<relay-id>@host:port")]
    NoId,
    /// What stands before the `@` is not an ID.
    #[error("the relay's ID is wrong: {0}")]
    Id(#[from] IdError),
    /// Nothing between `@` and the port.
    #[error("the host is missing; write mesh://<relay-id>@host:port")]
    NoHost,
    /// Neither a DNS name nor an IP address.
    #[error("the host is neither a DNS name nor an IP address")]
    Host,
    /// An IPv6 address without brackets, or brackets around something else.
    #[error(
        "an IPv6 address, and nothing else, stands in brackets: mesh://<relay-id>@[2001:db8::1]:443"
    )]
    Brackets,
    /// An address that no relay can have.
    #[error("{0} is not the address of one host; give the relay's own address")]
    NotUnicast(IpAddr),
    /// No port.
    #[error("the port is missing; write mesh://<relay-id>@host:port")]
    NoPort,
    /// Not a port number.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// The address of a relay with the key that it must prove.
///
/// Parsing brings the host into one form (lower case; addresses as RFC 5952 writes them), so that equal relays
/// compare equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayUrl {
    /// The relay's key; no certificate is involved.
    pub id: NodeId,
    /// An IP address (without brackets) or a DNS name.
    pub host: String,
    /// UDP port of QUIC, STUN and data channels, and TCP port of TLS.
    pub port: u16,
}

impl RelayUrl {
    /// The host if it is an IP address; `None` if it is a name that has to be resolved.
    pub fn host_is_ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "mesh://{}@[{}]:{}", self.id, self.host, self.port)
        } else {
            write!(f, "mesh://{}@{}:{}", self.id, self.host, self.port)
        }
    }
}

impl FromStr for RelayUrl {
    type Err = RelayUrlError;

    fn from_str(text: &str) -> Result<Self, RelayUrlError> {
        let rest = text.strip_prefix("mesh://").ok_or(RelayUrlError::Scheme)?;
        let (id, authority) = rest.split_once('@').ok_or(RelayUrlError::NoId)?;
        if id.is_empty() {
            return Err(RelayUrlError::NoId);
        }
        let id = id.parse::<NodeId>()?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (inner, after) = bracketed.split_once(']').ok_or(RelayUrlError::Brackets)?;
                let address: Ipv6Addr = inner.parse().map_err(|_| RelayUrlError::Brackets)?;
                let port = match after.strip_prefix(':') {
                    Some(port) => port,
                    None if after.is_empty() => return Err(RelayUrlError::NoPort),
                    None => return Err(RelayUrlError::Port),
                };
                (parse_address(address.to_canonical())?, port)
            }
            None => {
                let (host, port) = authority.rsplit_once(':').ok_or(RelayUrlError::NoPort)?;
                (parse_host(host)?, port)
            }
        };
        let port = parse_port(port)?;
        Ok(Self { id, host, port })
    }
}

fn parse_port(text: &str) -> Result<u16, RelayUrlError> {
    // `u16::from_str` takes a leading plus sign.
    if text.is_empty() {
        return Err(RelayUrlError::NoPort);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) || text.starts_with('0') {
        return Err(RelayUrlError::Port);
    }
    text.parse().map_err(|_| RelayUrlError::Port)
}

fn parse_address(address: IpAddr) -> Result<String, RelayUrlError> {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(RelayUrlError::NotUnicast(address));
    }
    Ok(address.to_string())
}

/// An IPv4 address, or a name of letters, digits and hyphens (RFC 1123, section 2.1).
fn parse_host(host: &str) -> Result<String, RelayUrlError> {
    if host.is_empty() {
        return Err(RelayUrlError::NoHost);
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return parse_address(IpAddr::V4(address));
    }
    if host.contains(':') {
        return Err(RelayUrlError::Brackets);
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= MAX_DNS_LABEL
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    // A name whose last label is a number is a mistyped IPv4 address: no top-level domain is one.
    let last_is_number = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() > MAX_DNS_NAME || last_is_number || !name.split('.').all(is_label) {
        return Err(RelayUrlError::Host);
    }
    Ok(name.to_ascii_lowercase())
}
