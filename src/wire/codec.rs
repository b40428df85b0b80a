//! Bounded reading and writing of the fields that messages are made of. Integers are big-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why bytes from the network were not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WireError {
    /// The message ends before its last field does.
    #[error("message is cut short")]
    Truncated,
    /// The message goes on after its last field.
    #[error("message has bytes after its end")]
    Trailing,
    /// The message announces more bytes than any message may have.
    #[error("message is larger than allowed")]
    TooLarge,
    /// A type that this version does not know.
    #[error("unknown message type {0:#04x}")]
    UnknownType(u8),
    /// A field has a value that it cannot have.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Takes fields off the front of a byte slice; no input makes it panic or read past the end.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet taken.
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// True when everything was taken.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when there are fewer, as for all the other fields.
    pub const fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(WireError::Truncated),
        }
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub const fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(WireError::Truncated),
        }
    }

    /// One byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_be_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// One byte that is 0 or 1.
    ///
    /// # Errors
    /// [`WireError::Truncated`], or [`WireError::Invalid`] for any other byte.
    pub fn bool(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Invalid("flag")),
        }
    }

    /// An address as [`Writer::ip`] writes it.
    ///
    /// # Errors
    /// [`WireError::Truncated`]; [`WireError::Invalid`] for an unknown family, or for an IPv4 address in IPv6 form
    /// (one address must have one spelling, as addresses are compared).
    pub fn ip(&mut self) -> Result<IpAddr, WireError> {
        match self.u8()? {
            FAMILY_V4 => Ok(Ipv4Addr::from(self.array::<4>()?).into()),
            FAMILY_V6 => {
                let address = Ipv6Addr::from(self.array::<16>()?);
                if address.to_ipv4_mapped().is_some() {
                    return Err(WireError::Invalid("address"));
                }
                Ok(address.into())
            }
            _ => Err(WireError::Invalid("address family")),
        }
    }

    /// An address and port as [`Writer::socket_addr`] writes it.
    ///
    /// # Errors
    /// As [`Self::ip`].
    pub fn socket_addr(&mut self) -> Result<SocketAddr, WireError> {
        Ok(SocketAddr::new(self.ip()?, self.u16()?))
    }

    /// Everything that is left.
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.rest = &[];
        rest
    }

    /// Ends the message.
    ///
    /// # Errors
    /// [`WireError::Trailing`] unless everything was taken.
    pub const fn finish(&self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing)
        }
    }
}

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;

/// Appends fields to a buffer in the form that [`Reader`] takes.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `buffer`.
    pub const fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer }
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// One byte, 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// One byte of family (4 or 6), then the address; IPv4 in IPv6 form becomes IPv4.
    pub fn ip(&mut self, ip: IpAddr) -> &mut Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => self.u8(FAMILY_V4).bytes(&v4.octets()),
            IpAddr::V6(v6) => self.u8(FAMILY_V6).bytes(&v6.octets()),
        }
    }

    /// As [`Self::ip`], then two bytes of port.
    pub fn socket_addr(&mut self, address: SocketAddr) -> &mut Self {
        self.ip(address.ip()).u16(address.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_written() {
        let mut buffer = Vec::new();
        Writer::new(&mut buffer)
            .u8(7)
            .u16(0x1234)
            .u32(0xdead_beef)
            .u64(u64::MAX - 1)
            .bool(true)
            .socket_addr("192.0.2.1:65535".parse().unwrap())
            .socket_addr("[2001:db8::1]:1".parse().unwrap())
            .bytes(b"tail");
        let mut reader = Reader::new(&buffer);
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!(reader.u16(), Ok(0x1234));
        assert_eq!(reader.u32(), Ok(0xdead_beef));
        assert_eq!(reader.u64(), Ok(u64::MAX - 1));
        assert_eq!(reader.bool(), Ok(true));
        assert_eq!(reader.socket_addr(), Ok("192.0.2.1:65535".parse().unwrap()));
        assert_eq!(reader.socket_addr(), Ok("[2001:db8::1]:1".parse().unwrap()));
        assert_eq!(reader.finish(), Err(WireError::Trailing));
        assert_eq!(reader.rest(), b"tail");
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn every_field_of_an_empty_message_is_truncated() {
        let reader = || Reader::new(&[]);
        assert_eq!(reader().u8(), Err(WireError::Truncated));
        assert_eq!(reader().u16(), Err(WireError::Truncated));
        assert_eq!(reader().u32(), Err(WireError::Truncated));
        assert_eq!(reader().u64(), Err(WireError::Truncated));
        assert_eq!(reader().bool(), Err(WireError::Truncated));
        assert_eq!(reader().bytes(1), Err(WireError::Truncated));
        assert_eq!(reader().bytes(usize::MAX), Err(WireError::Truncated));
        assert_eq!(reader().array::<32>(), Err(WireError::Truncated));
        assert_eq!(reader().socket_addr(), Err(WireError::Truncated));
    }

    #[test]
    fn a_failed_read_takes_nothing() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u32(), Err(WireError::Truncated));
        assert_eq!(reader.rest(), &[1, 2, 3]);
    }

    #[test]
    fn an_ipv4_address_has_one_spelling() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().unwrap();
        let mut buffer = Vec::new();
        Writer::new(&mut buffer).socket_addr(mapped);
        assert_eq!(
            Reader::new(&buffer).socket_addr(),
            Ok("192.0.2.1:9".parse().unwrap())
        );

        let mut raw = vec![FAMILY_V6];
        raw.extend("::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
        raw.extend([0, 9]);
        assert_eq!(
            Reader::new(&raw).socket_addr(),
            Err(WireError::Invalid("address"))
        );
    }

    #[test]
    fn unknown_families_and_flags_are_invalid() {
        assert_eq!(
            Reader::new(&[5; 19]).ip(),
            Err(WireError::Invalid("address family"))
        );
        assert_eq!(Reader::new(&[2]).bool(), Err(WireError::Invalid("flag")));
    }
}
