//! NAT-PMP (RFC 6886): asks a router for its external address and for mappings of UDP ports.
//!
//! Requests and answers are datagrams to and from port [`PORT`] of the default gateway. Only IPv4, and no nonce: an
//! answer counts if it comes from the gateway's address and port, which the caller checks.

use std::net::Ipv4Addr;

use super::{Reader, WireError};

/// The port of NAT-PMP and PCP servers.
pub const PORT: u16 = 5351;
/// The port on which clients hear of a server's restart, by multicast (RFC 6886, section 3.2.1; RFC 6887, section 14).
pub const ANNOUNCEMENT_PORT: u16 = 5350;

const VERSION: u8 = 0;
const EXTERNAL_ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
/// Set in the opcode of an answer.
const ANSWER: u8 = 0x80;

/// What a server says (RFC 6886, sections 3.2, 3.3 and 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Seconds since the server lost its mappings last.
    pub epoch: u32,
    /// What was asked for, or the result code.
    pub result: Result<Answer, ResultCode>,
}

/// Result codes (RFC 6886, section 3.5). 1 is "unsupported version", which also answers a PCP request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultCode(pub u16);

/// The answer to a request that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The router's external address.
    ExternalAddress(Ipv4Addr),
    /// A UDP mapping, or the end of one if `lifetime` is 0.
    Mapped {
        /// Our port.
        internal: u16,
        /// The router's port.
        external: u16,
        /// For so many seconds.
        lifetime: u32,
    },
}

/// Asks for the external address.
pub fn external_address_request() -> Vec<u8> {
    vec![VERSION, EXTERNAL_ADDRESS]
}

/// Asks for a UDP mapping of our port `internal` for `lifetime` seconds, at `external` if the router has no reason
/// against it. Both `external` and `lifetime` are 0 to end it.
pub fn map_request(internal: u16, external: u16, lifetime: u32) -> Vec<u8> {
    let mut bytes = vec![VERSION, MAP_UDP, 0, 0];
    bytes.extend(internal.to_be_bytes());
    bytes.extend(external.to_be_bytes());
    bytes.extend(lifetime.to_be_bytes());
    bytes
}

impl Response {
    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// When it is no answer of NAT-PMP to one of our requests.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(datagram);
        if reader.u8()? != VERSION {
            return Err(WireError::Invalid("version"));
        }
        let opcode = reader.u8()?;
        let code = reader.u16()?;
        let epoch = reader.u32()?;
        if opcode & ANSWER == 0 {
            return Err(WireError::UnknownType(opcode));
        }
        if code != 0 {
            // Whatever the opcode: a server that does not know it may leave the rest out (section 3.5).
            let result = Err(ResultCode(code));
            return Ok(Self { epoch, result });
        }
        let answer = match opcode & !ANSWER {
            EXTERNAL_ADDRESS => Answer::ExternalAddress(reader.u32()?.into()),
            MAP_UDP => Answer::Mapped {
                internal: reader.u16()?,
                external: reader.u16()?,
                lifetime: reader.u32()?,
            },
            other => return Err(WireError::UnknownType(other)),
        };
        if !reader.is_empty() {
            return Err(WireError::Trailing);
        }
        let result = Ok(answer);
        Ok(Self { epoch, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of RFC 6886, sections 3.2 and 3.3, with its recommended lifetime.
    #[test]
    fn requests_have_the_bytes_of_the_rfc() {
        assert_eq!(external_address_request(), [0, 0]);
        assert_eq!(
            map_request(0x1234, 0x5678, 7200),
            [0, 1, 0, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x1c, 0x20]
        );
    }

    #[test]
    fn answers_have_the_bytes_of_the_rfc() {
        let address = [0, 128, 0, 0, 0, 0, 1, 0, 203, 0, 113, 7];
        assert_eq!(
            Response::parse(&address),
            Ok(Response {
                epoch: 256,
                result: Ok(Answer::ExternalAddress([203, 0, 113, 7].into())),
            })
        );
        let mapped = [
            0, 129, 0, 0, 0, 0, 1, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x1c, 0x20,
        ];
        assert_eq!(
            Response::parse(&mapped),
            Ok(Response {
                epoch: 256,
                result: Ok(Answer::Mapped {
                    internal: 0x1234,
                    external: 0x5678,
                    lifetime: 7200,
                }),
            })
        );
    }

    #[test]
    fn a_refusal_may_be_short() {
        let refused = [0, 129, 0, 2, 0, 0, 0, 9];
        assert_eq!(
            Response::parse(&refused),
            Ok(Response {
                epoch: 9,
                result: Err(ResultCode(2)),
            })
        );
    }

    #[test]
    fn requests_and_scraps_are_no_answers() {
        assert!(Response::parse(&[]).is_err());
        assert!(Response::parse(&external_address_request()).is_err());
        assert!(Response::parse(&map_request(1, 2, 3)).is_err());
        assert_eq!(
            Response::parse(&[0, 128, 0, 0, 0, 0, 0, 1, 1, 2, 3]),
            Err(WireError::Truncated)
        );
        assert_eq!(
            Response::parse(&[0, 128, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5]),
            Err(WireError::Trailing)
        );
        assert!(Response::parse(&[2, 128, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]).is_err());
    }
}
