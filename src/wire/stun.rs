//! The part of STUN that NAT discovery needs: binding requests and responses (RFC 8489), the change request and padding
//! (RFC 5780).
//!
//! Requests are padded to the size of the largest answer, so that a forged source address gains an attacker nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::codec::{Reader, WireError};

/// Random number that ties an answer to its request (RFC 8489, section 5).
pub type TransactionId = [u8; 12];

/// RFC 8489, section 5.
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Bytes of a STUN header.
pub const HEADER: usize = 20;
/// Bytes of the largest response that we send: one XOR-MAPPED-ADDRESS of IPv6. Each of our requests has as many.
pub const MAX_RESPONSE: usize = HEADER + 4 + 20;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;

const ATTR_MAPPED_ADDRESS: u16 = 0x0001;
const ATTR_CHANGE_REQUEST: u16 = 0x0003;
const ATTR_USERNAME: u16 = 0x0006;
const ATTR_MESSAGE_INTEGRITY: u16 = 0x0008;
const ATTR_MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const ATTR_XOR_MAPPED_ADDRESS: u16 = 0x0020;
const ATTR_PADDING: u16 = 0x0026;
/// Attributes from here on may be ignored by who does not know them (RFC 8489, section 14).
const ATTR_OPTIONAL: u16 = 0x8000;

/// RFC 5780, section 7.2.
const CHANGE_IP: u32 = 0x04;
const CHANGE_PORT: u32 = 0x02;

const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;

/// From where an answer is wanted (RFC 5780, section 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// From where the request was sent to.
    Nothing,
    /// From the same address and the other port.
    Port,
    /// From the other address.
    Address,
}

impl Change {
    const fn flags(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Port => CHANGE_PORT,
            Self::Address => CHANGE_IP,
        }
    }

    /// Whoever asks for another address gets its one port.
    const fn from_flags(flags: u32) -> Self {
        match flags {
            _ if flags & CHANGE_IP != 0 => Self::Address,
            _ if flags & CHANGE_PORT != 0 => Self::Port,
            _ => Self::Nothing,
        }
    }
}

/// A STUN message that we have a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Asks for the sender's address as the receiver sees it.
    Request {
        /// To be echoed.
        txn: TransactionId,
        /// From where the answer is wanted.
        change: Change,
        /// Bytes of the whole request: the answer must not be larger.
        len: usize,
    },
    /// The answer.
    Response {
        /// Of the request.
        txn: TransactionId,
        /// Where the request came from.
        mapped: SocketAddr,
    },
}

/// True for a complete STUN message: top bits 00, magic cookie, and a length field that agrees with the datagram.
pub(crate) fn is_stun(datagram: &[u8]) -> bool {
    let Some((header, body)) = datagram.split_first_chunk::<HEADER>() else {
        return false;
    };
    header[0] < 0x40
        && header[4..8] == MAGIC_COOKIE
        && body.len().is_multiple_of(4)
        && usize::from(u16::from_be_bytes([header[2], header[3]])) == body.len()
}

/// A binding request of [`MAX_RESPONSE`] bytes. An answer from elsewhere tells what the NAT before us lets in.
pub fn binding_request(txn: &TransactionId, change: Change) -> Vec<u8> {
    let mut message = header(BINDING_REQUEST, txn);
    if change != Change::Nothing {
        let flags = change.flags().to_be_bytes();
        attribute(&mut message, ATTR_CHANGE_REQUEST, &flags);
    }
    let padding = MAX_RESPONSE - message.len() - 4;
    attribute(&mut message, ATTR_PADDING, &[0; MAX_RESPONSE][..padding]);
    set_length(&mut message);
    message
}

/// A binding response, at most [`MAX_RESPONSE`] bytes.
pub fn binding_response(txn: &TransactionId, mapped: SocketAddr) -> Vec<u8> {
    let mut buffer = [0; MAX_RESPONSE];
    let len = write_binding_response(&mut buffer, txn, mapped);
    buffer[..len].to_vec()
}

/// As [`binding_response`], without allocation; returns the length.
pub fn write_binding_response(
    buffer: &mut [u8; MAX_RESPONSE],
    txn: &TransactionId,
    mapped: SocketAddr,
) -> usize {
    // RFC 8489, section 14.2: the port is xored with the cookie, the address with cookie and transaction ID.
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(txn);
    let (family, size) = match mapped.ip().to_canonical() {
        IpAddr::V4(ip) => {
            mask[..4]
                .iter_mut()
                .zip(ip.octets())
                .for_each(|(m, o)| *m ^= o);
            (FAMILY_V4, 4)
        }
        IpAddr::V6(ip) => {
            mask.iter_mut().zip(ip.octets()).for_each(|(m, o)| *m ^= o);
            (FAMILY_V6, 16)
        }
    };
    let port = mapped.port() ^ u16::from_be_bytes([MAGIC_COOKIE[0], MAGIC_COOKIE[1]]);
    let len = HEADER + 8 + size;
    buffer[..2].copy_from_slice(&BINDING_SUCCESS.to_be_bytes());
    buffer[2..4].copy_from_slice(&(8 + size as u16).to_be_bytes());
    buffer[4..8].copy_from_slice(&MAGIC_COOKIE);
    buffer[8..20].copy_from_slice(txn);
    buffer[20..22].copy_from_slice(&ATTR_XOR_MAPPED_ADDRESS.to_be_bytes());
    buffer[22..24].copy_from_slice(&(4 + size as u16).to_be_bytes());
    buffer[24..26].copy_from_slice(&[0, family]);
    buffer[26..28].copy_from_slice(&port.to_be_bytes());
    buffer[28..len].copy_from_slice(&mask[..size]);
    len
}

/// Parses a binding request or a successful binding response.
///
/// # Errors
/// Anything else, and any attribute that must be understood and is not (RFC 8489 would have it answered with error 420;
/// silence is cheaper and safer).
pub fn parse(datagram: &[u8]) -> Result<Message, WireError> {
    if !is_stun(datagram) {
        return Err(WireError::Invalid("STUN header"));
    }
    let mut reader = Reader::new(datagram);
    let kind = reader.u16()?;
    reader.bytes(6)?;
    let txn = reader.array()?;
    match kind {
        BINDING_REQUEST => {
            let change = parse_request(reader)?;
            Ok(Message::Request {
                txn,
                change,
                len: datagram.len(),
            })
        }
        BINDING_SUCCESS => {
            let mapped = parse_response(reader, &txn)?;
            Ok(Message::Response { txn, mapped })
        }
        _ => Err(WireError::Invalid("STUN message type")),
    }
}

fn parse_request(mut reader: Reader<'_>) -> Result<Change, WireError> {
    let mut change = Change::Nothing;
    while let Some((kind, value)) = next_attribute(&mut reader)? {
        match kind {
            ATTR_CHANGE_REQUEST => {
                change = Change::from_flags(Reader::new(value).u32()?);
            }
            // What follows is not covered by the integrity check that we do not make (RFC 8489, section 14.5).
            ATTR_MESSAGE_INTEGRITY | ATTR_MESSAGE_INTEGRITY_SHA256 => break,
            ATTR_PADDING | ATTR_USERNAME | ATTR_OPTIONAL.. => {}
            _ => return Err(WireError::Invalid("STUN attribute")),
        }
    }
    Ok(change)
}

fn parse_response(mut reader: Reader<'_>, txn: &TransactionId) -> Result<SocketAddr, WireError> {
    let mut mapped = None;
    while let Some((kind, value)) = next_attribute(&mut reader)? {
        match kind {
            // The first one counts (RFC 8489, section 14).
            ATTR_XOR_MAPPED_ADDRESS if mapped.is_none() => mapped = Some(unmask(value, txn)?),
            ATTR_MESSAGE_INTEGRITY | ATTR_MESSAGE_INTEGRITY_SHA256 => break,
            ATTR_XOR_MAPPED_ADDRESS | ATTR_MAPPED_ADDRESS | ATTR_PADDING | ATTR_OPTIONAL.. => {}
            _ => return Err(WireError::Invalid("STUN attribute")),
        }
    }
    mapped.ok_or(WireError::Invalid("STUN response without an address"))
}

/// The next attribute's type and value; values are padded to four bytes (RFC 8489, section 14).
fn next_attribute<'a>(reader: &mut Reader<'a>) -> Result<Option<(u16, &'a [u8])>, WireError> {
    if reader.is_empty() {
        return Ok(None);
    }
    let kind = reader.u16()?;
    let len = usize::from(reader.u16()?);
    let value = reader.bytes(len)?;
    reader.bytes(len.next_multiple_of(4) - len)?;
    Ok(Some((kind, value)))
}

fn unmask(value: &[u8], txn: &TransactionId) -> Result<SocketAddr, WireError> {
    let mut reader = Reader::new(value);
    reader.u8()?;
    let family = reader.u8()?;
    let port = reader.u16()? ^ u16::from_be_bytes([MAGIC_COOKIE[0], MAGIC_COOKIE[1]]);
    let ip = match family {
        FAMILY_V4 => {
            let bits = reader.u32()? ^ u32::from_be_bytes(MAGIC_COOKIE);
            IpAddr::from(Ipv4Addr::from_bits(bits))
        }
        FAMILY_V6 => {
            let mut mask = [0; 16];
            mask[..4].copy_from_slice(&MAGIC_COOKIE);
            mask[4..].copy_from_slice(txn);
            let bits = u128::from_be_bytes(reader.array()?) ^ u128::from_be_bytes(mask);
            IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical()
        }
        _ => return Err(WireError::Invalid("STUN address family")),
    };
    reader.finish()?;
    Ok(SocketAddr::new(ip, port))
}

fn header(kind: u16, txn: &TransactionId) -> Vec<u8> {
    let mut message = Vec::with_capacity(MAX_RESPONSE);
    message.extend(kind.to_be_bytes());
    message.extend([0, 0]);
    message.extend(MAGIC_COOKIE);
    message.extend(txn);
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}

fn set_length(message: &mut [u8]) {
    let len = (message.len() - HEADER) as u16;
    message[2..4].copy_from_slice(&len.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 5769, section 2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME, integrity, fingerprint.
    const RFC5769_REQUEST: &[u8] = b"\x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
        \x80\x22\x00\x10STUN test client\x00\x24\x00\x04\x6e\x00\x01\xff\
        \x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\x00\x06\x00\x09evtj:h6vY\x20\x20\x20\
        \x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\
        \x80\x28\x00\x04\xe5\x7a\x3b\xcf";

    /// RFC 5769, section 2.2.
    const RFC5769_RESPONSE_V4: &[u8] = b"\x01\x01\x00\x3c\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
        \x80\x22\x00\x0btest vector\x20\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43\
        \x00\x08\x00\x14\x2b\x91\xf5\x99\xfd\x9e\x90\xc3\x8c\x74\x89\xf9\x2a\xf9\xba\x53\xf0\x6b\xe7\xd7\
        \x80\x28\x00\x04\xc0\x7d\x4c\x96";

    /// RFC 5769, section 2.3.
    const RFC5769_RESPONSE_V6: &[u8] = b"\x01\x01\x00\x48\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
        \x80\x22\x00\x0btest vector\x20\x00\x20\x00\x14\x00\x02\xa1\x47\
        \x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9\
        \x00\x08\x00\x14\xa3\x82\x95\x4e\x4b\xe6\x7b\xf1\x17\x84\xc9\x7c\x82\x92\xc2\x75\xbf\xe3\xed\x41\
        \x80\x28\x00\x04\xc8\xfb\x0b\x4c";

    const RFC5769_TXN: TransactionId = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";

    #[test]
    fn responses_of_rfc_5769_are_understood() {
        assert_eq!(
            parse(RFC5769_RESPONSE_V4),
            Ok(Message::Response {
                txn: RFC5769_TXN,
                mapped: "192.0.2.1:32853".parse().unwrap(),
            })
        );
        assert_eq!(
            parse(RFC5769_RESPONSE_V6),
            Ok(Message::Response {
                txn: RFC5769_TXN,
                mapped: "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
                    .parse()
                    .unwrap(),
            })
        );
    }

    #[test]
    fn our_responses_mask_addresses_as_rfc_5769_does() {
        let v4 = binding_response(&RFC5769_TXN, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(v4[20..], RFC5769_RESPONSE_V4[36..48]);
        let v6 = binding_response(
            &RFC5769_TXN,
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
                .parse()
                .unwrap(),
        );
        assert_eq!(v6[20..], RFC5769_RESPONSE_V6[36..60]);
    }

    #[test]
    fn a_request_with_an_ice_priority_is_not_for_us() {
        assert!(is_stun(RFC5769_REQUEST));
        assert_eq!(
            parse(RFC5769_REQUEST),
            Err(WireError::Invalid("STUN attribute"))
        );
    }

    #[test]
    fn requests_are_as_large_as_the_largest_answer() {
        let txn = [7; 12];
        for change in [Change::Nothing, Change::Port, Change::Address] {
            let request = binding_request(&txn, change);
            assert_eq!(request.len(), MAX_RESPONSE);
            assert_eq!(
                parse(&request),
                Ok(Message::Request {
                    txn,
                    change,
                    len: MAX_RESPONSE
                })
            );
        }
        let largest = binding_response(&txn, "[2001:db8::1]:65535".parse().unwrap());
        assert_eq!(largest.len(), MAX_RESPONSE);
    }

    #[test]
    fn a_bare_request_of_any_stun_client_is_understood() {
        let mut request = header(BINDING_REQUEST, &[1; 12]);
        set_length(&mut request);
        assert_eq!(
            parse(&request),
            Ok(Message::Request {
                txn: [1; 12],
                change: Change::Nothing,
                len: 20
            })
        );
    }

    #[test]
    fn who_wants_another_address_and_port_wants_another_address() {
        let mut request = header(BINDING_REQUEST, &[1; 12]);
        attribute(
            &mut request,
            ATTR_CHANGE_REQUEST,
            &(CHANGE_IP | CHANGE_PORT).to_be_bytes(),
        );
        set_length(&mut request);
        let change = Change::Address;
        assert!(
            matches!(parse(&request), Ok(Message::Request { change: found, .. }) if found == change)
        );
    }

    #[test]
    fn indications_and_errors_are_refused() {
        for kind in [0x0011, 0x0111, 0x0003] {
            let mut message = header(kind, &[1; 12]);
            set_length(&mut message);
            assert_eq!(
                parse(&message),
                Err(WireError::Invalid("STUN message type"))
            );
        }
    }

    #[test]
    fn a_response_without_an_address_is_refused() {
        let mut message = header(BINDING_SUCCESS, &[1; 12]);
        set_length(&mut message);
        assert!(parse(&message).is_err());
        let mut message = header(BINDING_SUCCESS, &[1; 12]);
        attribute(
            &mut message,
            ATTR_XOR_MAPPED_ADDRESS,
            &[0, FAMILY_V6, 0, 0, 1, 2, 3, 4],
        );
        set_length(&mut message);
        assert_eq!(parse(&message), Err(WireError::Truncated));
    }

    #[test]
    fn an_attribute_longer_than_the_message_is_refused() {
        for len in [1_u16, 5, 8, 0xffff] {
            let mut message = header(BINDING_REQUEST, &[1; 12]);
            message.extend(ATTR_PADDING.to_be_bytes());
            message.extend(len.to_be_bytes());
            set_length(&mut message);
            assert_eq!(parse(&message), Err(WireError::Truncated));
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(body in proptest::collection::vec(any::<u8>(), 0..64), kind in 0..2) {
            let mut message = header(if kind == 0 { BINDING_REQUEST } else { BINDING_SUCCESS }, &[1; 12]);
            message.extend(&body);
            set_length(&mut message);
            let _ = parse(&message);
            let _ = parse(&body);
        }

        #[test]
        fn answers_come_back_as_sent(ip: IpAddr, port: u16, txn: TransactionId) {
            let mapped = SocketAddr::new(ip.to_canonical(), port);
            let response = binding_response(&txn, mapped);
            prop_assert!(response.len() <= MAX_RESPONSE);
            prop_assert_eq!(parse(&response), Ok(Message::Response { txn, mapped }));
            for len in 0..response.len() {
                prop_assert!(parse(&response[..len]).is_err());
            }
        }
    }
}
