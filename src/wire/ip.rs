//! Views of inner IP packets (RFC 791, RFC 8200), as far as routing needs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The fields of an inner packet that decide where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// Who sent it.
    pub source: IpAddr,
    /// Who is to get it.
    pub destination: IpAddr,
    /// IPv4 protocol, or the first IPv6 next header.
    pub protocol: u8,
    /// Length of the whole packet, which padding may follow.
    pub length: usize,
}

impl IpHeader {
    /// Reads the header of a whole packet; `None` if it is truncated or no IP packet.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let header_length = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_length < 20 || total < header_length || total > packet.len() {
            return None;
        }
        Some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            length: total,
        })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 40] = packet.first_chunk()?;
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if 40 + payload > packet.len() {
            return None;
        }
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        };
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol: header[6],
            length: 40 + payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_and_foreign_packets_have_no_header() {
        let mut v4 = vec![0; 28];
        v4[0] = 0x45;
        v4[3] = 28;
        v4[9] = 17;
        v4[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let header = IpHeader::parse(&v4).unwrap();
        assert_eq!(header.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(header.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!((header.protocol, header.length), (17, 28));
        for length in 0..v4.len() {
            assert_eq!(IpHeader::parse(&v4[..length]), None);
        }
        v4[0] = 0x44;
        assert_eq!(IpHeader::parse(&v4), None);
        v4[0] = 0x55;
        assert_eq!(IpHeader::parse(&v4), None);
    }
}
