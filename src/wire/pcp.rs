//! PCP (RFC 6887): asks a router for mappings of UDP ports, and for holes in its IPv6 firewall.
//!
//! Two opcodes of it: ANNOUNCE, to see whether there is a server and whether it has restarted, and MAP. Requests go to
//! port [`PORT`] of the default gateway from the very address that is to be mapped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use super::natpmp::PORT;
use super::{Reader, WireError};

const VERSION: u8 = 2;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
/// Set in the opcode of an answer.
const ANSWER: u8 = 0x80;
/// IANA's number of UDP.
const UDP: u8 = 17;
/// Section 7: longer messages must not be sent, and are not read.
const MAX_MESSAGE: usize = 1_100;
const HEADER: usize = 24;
const MAP_PAYLOAD: usize = 36;

/// Names a mapping; whoever does not know it cannot change the mapping (section 11.2).
pub type Nonce = [u8; 12];

/// A result code other than SUCCESS (section 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultCode(pub u8);

/// What a server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Seconds since the server lost its mappings last (section 8.5).
    pub epoch: u32,
    /// Of the mapping, or of the error: how long it is going to hold, in seconds.
    pub lifetime: u32,
    /// `None` for SUCCESS.
    pub error: Option<ResultCode>,
    /// The opcode and what belongs to it.
    pub kind: Kind,
}

/// Answers by opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To ANNOUNCE, or unasked after a restart.
    Announce,
    /// To MAP; in an error, what had been asked for.
    Map {
        /// As in the request.
        nonce: Nonce,
        /// Our port.
        internal: u16,
        /// Address and port that lead to it.
        external: SocketAddr,
    },
}

/// Asks for the server's epoch.
pub fn announce_request(client: IpAddr) -> Vec<u8> {
    header(ANNOUNCE, 0, client)
}

/// Asks for a UDP mapping of `internal`, which this packet has to come from the address of, for `lifetime` seconds, at
/// `suggested` if the server has no reason against it. A lifetime of 0 ends it.
pub fn map_request(
    nonce: &Nonce,
    internal: SocketAddr,
    suggested: Option<SocketAddr>,
    lifetime: u32,
) -> Vec<u8> {
    let mut bytes = header(MAP, lifetime, internal.ip());
    bytes.extend(nonce);
    bytes.extend([UDP, 0, 0, 0]);
    bytes.extend(internal.port().to_be_bytes());
    let none = match internal {
        // Section 5: which of the "all zeroes" tells the family that is wanted.
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let suggested = suggested.unwrap_or(SocketAddr::new(none, 0));
    bytes.extend(suggested.port().to_be_bytes());
    bytes.extend(to_wire(suggested.ip()));
    bytes
}

fn header(opcode: u8, lifetime: u32, client: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + MAP_PAYLOAD);
    bytes.extend([VERSION, opcode, 0, 0]);
    bytes.extend(lifetime.to_be_bytes());
    bytes.extend(to_wire(client));
    bytes
}

/// Addresses are IPv6, those of IPv4 mapped into it (section 5).
fn to_wire(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

impl Response {
    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// When it is no PCP answer to one of our requests.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        if datagram.len() > MAX_MESSAGE {
            return Err(WireError::TooLarge);
        }
        // Section 8.3: messages whose length is no multiple of four are dropped.
        if !datagram.len().is_multiple_of(4) {
            return Err(WireError::Truncated);
        }
        let mut reader = Reader::new(datagram);
        if reader.u8()? != VERSION {
            return Err(WireError::Invalid("version"));
        }
        let opcode = reader.u8()?;
        reader.u8()?;
        let code = reader.u8()?;
        let lifetime = reader.u32()?;
        let epoch = reader.u32()?;
        reader.bytes(12)?;
        let kind = match opcode {
            opcode if opcode == ANSWER | ANNOUNCE => Kind::Announce,
            opcode if opcode == ANSWER | MAP => map_payload(&mut reader)?,
            other => return Err(WireError::UnknownType(other)),
        };
        // Options may follow; we never ask for one.
        Ok(Self {
            epoch,
            lifetime,
            error: (code != 0).then_some(ResultCode(code)),
            kind,
        })
    }
}

fn map_payload(reader: &mut Reader<'_>) -> Result<Kind, WireError> {
    let nonce = reader.array()?;
    if reader.u8()? != UDP {
        return Err(WireError::Invalid("protocol"));
    }
    reader.bytes(3)?;
    let internal = reader.u16()?;
    let port = reader.u16()?;
    let ip = Ipv6Addr::from(reader.array::<16>()?).to_canonical();
    Ok(Kind::Map {
        nonce,
        internal,
        external: SocketAddr::new(ip, port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn answer(opcode: u8, code: u8) -> Vec<u8> {
        let mut bytes = vec![2, ANSWER | opcode, 0, code, 0, 0, 0x1c, 0x20, 0, 0, 1, 0];
        bytes.extend([0; 12]);
        bytes
    }

    fn map_answer() -> Vec<u8> {
        let mut bytes = answer(MAP, 0);
        bytes.extend(NONCE);
        bytes.extend([17, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 7]);
        bytes
    }

    /// The layout of RFC 6887, sections 7.1 and 11.1.
    #[test]
    fn requests_have_the_bytes_of_the_rfc() {
        let mut expected = vec![2, 1, 0, 0, 0, 0, 0x1c, 0x20];
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 9]);
        expected.extend(NONCE);
        expected.extend([17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        let internal = "192.168.1.9:4660".parse().unwrap();
        assert_eq!(map_request(&NONCE, internal, None, 7200), expected);
        let announce = announce_request(internal.ip());
        assert_eq!(announce[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(announce[8..], expected[8..24]);
        let v6 = map_request(&NONCE, "[2001:db8::9]:4660".parse().unwrap(), None, 0);
        assert_eq!(v6[44..], [0; 16]);
    }

    #[test]
    fn answers_have_the_bytes_of_the_rfc() {
        let expected = Response {
            epoch: 256,
            lifetime: 7200,
            error: None,
            kind: Kind::Map {
                nonce: NONCE,
                internal: 0x1234,
                external: "203.0.113.7:22136".parse().unwrap(),
            },
        };
        assert_eq!(Response::parse(&map_answer()), Ok(expected));
        assert_eq!(
            Response::parse(&answer(ANNOUNCE, 1)),
            Ok(Response {
                error: Some(ResultCode(1)),
                kind: Kind::Announce,
                ..expected
            })
        );
    }

    #[test]
    fn what_is_cut_short_too_long_or_a_request_is_no_answer() {
        let whole = map_answer();
        for length in 0..whole.len() {
            assert!(Response::parse(&whole[..length]).is_err(), "{length}");
        }
        let mut long = whole.clone();
        long.resize(MAX_MESSAGE + 4, 0);
        assert_eq!(Response::parse(&long), Err(WireError::TooLarge));
        let internal = "192.168.1.9:4660".parse().unwrap();
        assert!(Response::parse(&map_request(&NONCE, internal, None, 7200)).is_err());
        let mut tcp = whole;
        tcp[36] = 6;
        assert_eq!(Response::parse(&tcp), Err(WireError::Invalid("protocol")));
    }
}
