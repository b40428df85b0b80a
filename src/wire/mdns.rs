//! Multicast DNS (RFC 6762) and the little of DNS-SD (RFC 6763) that peers on one link need: the question who of the
//! service `_meshd._udp.local` is here, and the answer to it.
//!
//! An answer has a PTR, an SRV and a TXT record for each instance. The instance's name is random, and there is no address
//! record: the address is where the packet comes from. Names are written in lower case and ours comes first in every
//! packet, so that a filter can tell them from other multicast DNS by a few bytes ([`LEADER`]).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Reader, WireError, Writer};

/// The port of multicast DNS.
pub const PORT: u16 = 5353;
/// The group over IPv4.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// The group over IPv6, on the link alone.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// The hop limit of every packet (RFC 6762, section 11): a router between would have lowered it.
pub const HOP_LIMIT: u8 = 255;
/// The first name of every packet of ours begins with this, behind the header of [`HEADER`] bytes.
pub const LEADER: [u8; 8] = *b"\x06_meshd\x04";
/// Bytes of the header.
pub const HEADER: usize = 12;
/// Seconds for which an answer holds, those of RFC 6762, section 10, for whatever depends on an address.
pub const LIFETIME: u32 = 120;
/// Instances in one packet: with ten times as many it would not fit an Ethernet frame. An answer of more networks is several
/// packets.
pub const MAX_INSTANCES: usize = 8;

/// Ours fit one frame; RFC 6762, section 17, allows more, for records that we have no use for.
const MAX_PACKET: usize = 1_500;
/// Questions and records that are looked at in one packet: ours have a quarter of that.
const MAX_ENTRIES: usize = 100;
/// Longest name (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;
/// The service's name as it is on the wire.
const SERVICE: &[u8] = b"\x06_meshd\x04_udp\x05local\x00";
/// A pointer to the service's name (RFC 1035, section 4.1.4), which is the first thing behind the header.
const TO_SERVICE: u16 = 0xc000 | HEADER as u16;
/// And to `local`, its end.
const TO_LOCAL: u16 = TO_SERVICE + 12;

const RESPONSE: u16 = 0x8000;
const AUTHORITATIVE: u16 = 0x0400;
/// The bits of the opcode and the response code: all zero in multicast DNS.
const CODES: u16 = 0x780f;
const IN: u16 = 1;
/// In a record: it is the only one of its name (RFC 6762, section 10.2). In a question: the answer may go to us alone.
const TOP_BIT: u16 = 0x8000;
const ANY: u16 = 255;
const PTR: u16 = 12;
const TXT: u16 = 16;
const SRV: u16 = 33;

/// A packet, as far as it means something to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Somebody asks who is here.
    Query,
    /// Somebody is here, or says so: at most [`MAX_INSTANCES`]. None if it only takes back what it said.
    Answer(Vec<Instance>),
}

/// One network of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    /// Its name, random; sixteen hexadecimal digits on the wire.
    pub label: [u8; 8],
    /// UDP port of the mesh socket.
    pub port: u16,
    /// What the tag is made with, random.
    pub nonce: [u8; 8],
    /// By which it is recognised by those who know the node.
    pub tag: [u8; 8],
}

/// The question. It asks for an answer to all: one to us alone would go to whichever program of this host has port 5353.
pub fn query() -> Vec<u8> {
    let mut packet = Vec::new();
    header(&mut packet, 0, 1, 0);
    Writer::new(&mut packet).bytes(SERVICE).u16(PTR).u16(IN);
    packet
}

/// An answer, which nobody need have asked for, with at most [`MAX_INSTANCES`]; further ones are left out. A lifetime of
/// zero takes it back (RFC 6762, section 10.1).
pub fn answer(instances: &[Instance], lifetime: u32) -> Vec<u8> {
    let instances = &instances[..instances.len().min(MAX_INSTANCES)];
    let mut packet = Vec::new();
    header(
        &mut packet,
        RESPONSE | AUTHORITATIVE,
        0,
        3 * instances.len() as u16,
    );
    for (at, instance) in instances.iter().enumerate() {
        let text = data_encoding::HEXLOWER.encode(&instance.label);
        let mut out = Writer::new(&mut packet);
        if at == 0 {
            out.bytes(SERVICE);
        } else {
            out.u16(TO_SERVICE);
        }
        out.u16(PTR).u16(IN).u32(lifetime).u16(19);
        let name = packet.len();
        // Within the first 1,000 bytes: a pointer has 14 bits.
        let to_name = 0xc000 | name as u16;
        let mut out = Writer::new(&mut packet);
        out.u8(16).bytes(text.as_bytes()).u16(TO_SERVICE);
        out.u16(to_name).u16(SRV).u16(IN | TOP_BIT).u32(lifetime);
        // No priority, no weight, and a host of the instance's name.
        out.u16(25).u32(0).u16(instance.port);
        out.u8(16).bytes(text.as_bytes()).u16(TO_LOCAL);
        out.u16(to_name).u16(TXT).u16(IN | TOP_BIT).u32(lifetime);
        out.u16(22).u8(10).bytes(b"n=").bytes(&instance.nonce);
        out.u8(10).bytes(b"t=").bytes(&instance.tag);
    }
    packet
}

fn header(packet: &mut Vec<u8>, flags: u16, questions: u16, answers: u16) {
    let mut out = Writer::new(packet);
    // The ID means nothing (RFC 6762, section 18.1).
    out.u16(0).u16(flags).u16(questions).u16(answers);
    out.u16(0).u16(0);
}

/// Reads a packet.
///
/// # Errors
///
/// When it is not well-formed as far as it was looked at, or has nothing to do with us.
pub fn parse(packet: &[u8]) -> Result<Message, WireError> {
    if packet.len() > MAX_PACKET {
        return Err(WireError::TooLarge);
    }
    let mut reader = Reader::new(packet);
    reader.u16()?;
    let flags = reader.u16()?;
    let [questions, answers, authorities, additional] = [
        usize::from(reader.u16()?),
        usize::from(reader.u16()?),
        usize::from(reader.u16()?),
        usize::from(reader.u16()?),
    ];
    if flags & CODES != 0 {
        return Err(WireError::Invalid("code"));
    }
    let records = answers + authorities + additional;
    if questions + records > MAX_ENTRIES {
        return Err(WireError::TooLarge);
    }
    let mut cursor = Cursor { packet, reader };
    if flags & RESPONSE == 0 {
        for _ in 0..questions {
            if cursor.question()? {
                return Ok(Message::Query);
            }
        }
        return Err(WireError::Invalid("question"));
    }
    for _ in 0..questions {
        cursor.question()?;
    }
    let mut found = Found::default();
    for _ in 0..records {
        cursor.record(&mut found)?;
    }
    if !found.ours {
        return Err(WireError::Invalid("service"));
    }
    Ok(Message::Answer(found.instances()))
}

/// What is known of each instance so far.
#[derive(Default)]
struct Found {
    /// The packet is about our service.
    ours: bool,
    drafts: Vec<Draft>,
}

struct Draft {
    label: [u8; 8],
    port: Option<u16>,
    keys: Option<Keys>,
}

/// A nonce and a tag.
type Keys = ([u8; 8], [u8; 8]);

impl Found {
    fn draft(&mut self, label: [u8; 8]) -> Option<&mut Draft> {
        let at = self.drafts.iter().position(|draft| draft.label == label);
        if at.is_none() && self.drafts.len() < MAX_INSTANCES {
            self.drafts.push(Draft {
                label,
                port: None,
                keys: None,
            });
        }
        match at {
            Some(at) => self.drafts.get_mut(at),
            None => self.drafts.last_mut().filter(|draft| draft.label == label),
        }
    }

    fn instances(&self) -> Vec<Instance> {
        let complete = |draft: &Draft| {
            let (nonce, tag) = draft.keys?;
            Some(Instance {
                label: draft.label,
                port: draft.port?,
                nonce,
                tag,
            })
        };
        self.drafts.iter().filter_map(complete).collect()
    }
}

/// A place in a packet, which names point back into.
struct Cursor<'a> {
    packet: &'a [u8],
    reader: Reader<'a>,
}

impl Cursor<'_> {
    /// Takes a question; true if it is for us.
    fn question(&mut self) -> Result<bool, WireError> {
        let name = self.name()?;
        let (kind, class) = (self.reader.u16()?, self.reader.u16()? & !TOP_BIT);
        let wanted = match () {
            () if name.is_service() => matches!(kind, PTR | ANY),
            () => name.instance().is_some() && matches!(kind, SRV | TXT | ANY),
        };
        Ok(wanted && matches!(class, IN | ANY))
    }

    /// Takes a record, and what it says of an instance that is there. One that is taken back is not.
    fn record(&mut self, found: &mut Found) -> Result<(), WireError> {
        let name = self.name()?;
        let (kind, class) = (self.reader.u16()?, self.reader.u16()? & !TOP_BIT);
        let lifetime = self.reader.u32()?;
        let length = usize::from(self.reader.u16()?);
        let mut data = Reader::new(self.reader.bytes(length)?);
        found.ours |= name.is_service();
        let Some(label) = name.instance().filter(|_| class == IN && lifetime > 0) else {
            return Ok(());
        };
        match kind {
            SRV => {
                data.u32()?;
                let port = data.u16()?;
                if port != 0
                    && let Some(draft) = found.draft(label)
                {
                    draft.port = Some(port);
                }
            }
            TXT => {
                if let Some(keys) = read_text(&mut data)?
                    && let Some(draft) = found.draft(label)
                {
                    draft.keys = Some(keys);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a name. A pointer leads to an earlier place than the one that it stands at, and each to an earlier one than
    /// the last: there is no way round in circles.
    fn name(&mut self) -> Result<Name, WireError> {
        let mut name = Name {
            bytes: [0; MAX_NAME],
            length: 0,
        };
        let mut limit = self.packet.len() - self.reader.remaining();
        let mut jumped: Option<Reader<'_>> = None;
        loop {
            let reader = jumped.as_mut().unwrap_or(&mut self.reader);
            let length = reader.u8()?;
            match length >> 6 {
                0 => {
                    let label = reader.bytes(usize::from(length))?;
                    name.push(length, label)?;
                    if length == 0 {
                        return Ok(name);
                    }
                }
                0b11 => {
                    let target = usize::from(length & 0x3f) << 8 | usize::from(reader.u8()?);
                    if target >= limit {
                        return Err(WireError::Invalid("name"));
                    }
                    limit = target;
                    let behind = self.packet.get(target..).unwrap_or_default();
                    jumped = Some(Reader::new(behind));
                }
                _ => return Err(WireError::Invalid("name")),
            }
        }
    }
}

/// A name without pointers, in lower case (RFC 6762, section 16).
struct Name {
    bytes: [u8; MAX_NAME],
    length: usize,
}

impl Name {
    fn push(&mut self, length: u8, label: &[u8]) -> Result<(), WireError> {
        let end = self.length + 1 + label.len();
        let place = self.bytes.get_mut(self.length..end);
        let Some((first, rest)) = place.and_then(<[u8]>::split_first_mut) else {
            return Err(WireError::Invalid("name"));
        };
        *first = length;
        rest.copy_from_slice(label);
        rest.make_ascii_lowercase();
        self.length = end;
        Ok(())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn is_service(&self) -> bool {
        self.as_bytes() == SERVICE
    }

    /// The label of an instance as we name them.
    fn instance(&self) -> Option<[u8; 8]> {
        let label = self.as_bytes().strip_suffix(SERVICE)?.strip_prefix(&[16])?;
        let label = data_encoding::HEXLOWER.decode(label).ok()?;
        label.try_into().ok()
    }
}

/// The nonce and the tag, if both are there (RFC 6763, section 6.4: the first of each counts).
fn read_text(data: &mut Reader<'_>) -> Result<Option<Keys>, WireError> {
    let (mut nonce, mut tag) = (None, None);
    while !data.is_empty() {
        let length = usize::from(data.u8()?);
        let pair = data.bytes(length)?;
        let value = |key: &[u8]| <[u8; 8]>::try_from(pair.strip_prefix(key)?).ok();
        nonce = nonce.or_else(|| value(b"n="));
        tag = tag.or_else(|| value(b"t="));
    }
    Ok(nonce.zip(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(number: u8) -> Instance {
        Instance {
            label: [number; 8],
            port: 41_820,
            nonce: [b'n'; 8],
            tag: [b't'; 8],
        }
    }

    #[test]
    fn what_is_written_reads_as_the_same_and_fits_a_frame() {
        assert_eq!(parse(&query()), Ok(Message::Query));
        let instances: Vec<Instance> = (0..20).map(instance).collect();
        for count in 1..=20 {
            let packet = answer(&instances[..count], LIFETIME);
            assert!(packet.len() < 1_000, "{count}: {} bytes", packet.len());
            assert_eq!(packet[HEADER..HEADER + LEADER.len()], LEADER);
            let expected = instances[..count.min(MAX_INSTANCES)].to_vec();
            assert_eq!(parse(&packet), Ok(Message::Answer(expected)));
        }
        assert_eq!(query()[HEADER..HEADER + LEADER.len()], LEADER);
    }

    #[test]
    fn an_answer_holds_nothing_but_what_it_must() {
        let packet = answer(&[instance(0xa5)], LIFETIME);
        let expected = [
            b"\0\0\x84\0\0\0\0\x03\0\0\0\0".as_slice(),
            b"\x06_meshd\x04_udp\x05local\0\0\x0c\0\x01\0\0\0\x78\0\x13",
            b"\x10a5a5a5a5a5a5a5a5\xc0\x0c",
            b"\xc0\x29\0\x21\x80\x01\0\0\0\x78\0\x19\0\0\0\0\xa3\x5c\x10a5a5a5a5a5a5a5a5\xc0\x18",
            b"\xc0\x29\0\x10\x80\x01\0\0\0\x78\0\x16\x0an=nnnnnnnn\x0at=tttttttt",
        ];
        assert_eq!(packet, expected.concat());
    }

    #[test]
    fn what_is_taken_back_is_not_there() {
        let goodbye = answer(&[instance(1)], 0);
        assert_eq!(parse(&goodbye), Ok(Message::Answer(Vec::new())));
    }

    #[test]
    fn packets_that_are_cut_short_are_refused() {
        for packet in [query(), answer(&[instance(1)], LIFETIME)] {
            for length in 0..packet.len() {
                assert!(parse(&packet[..length]).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_question_in_any_spelling_and_any_order_is_understood() {
        let packet = [
            b"\0\x07\0\0\0\x02\0\0\0\0\0\0".as_slice(),
            b"\x04_ipp\x04_tcp\x05local\0\0\x0c\0\x01",
            b"\x06_MeshD\x04_UDP\xc0\x16\0\xff\x80\x01",
        ];
        assert_eq!(parse(&packet.concat()), Ok(Message::Query));
    }

    #[test]
    fn questions_for_others_are_not_for_us() {
        for question in [
            b"\x04_ipp\x04_tcp\x05local\0\0\x0c\0\x01".as_slice(),
            b"\x06_meshd\x04_udp\x05local\0\0\x01\0\x01",
            b"\x06_meshd\x04_udp\x05local\0\0\x0c\0\x03",
            b"\x07printer\x06_meshd\x04_udp\x05local\0\0\x21\0\x01",
        ] {
            let packet = [b"\0\0\0\0\0\x01\0\0\0\0\0\0", question].concat();
            assert!(parse(&packet).is_err(), "{question:?}");
        }
    }

    #[test]
    fn pointers_in_circles_are_refused() {
        for name in [
            b"\xc0\x0c".as_slice(),
            b"\xc0\x0e\xc0\x0c",
            b"\x01a\xc0\x0c",
            b"\xff\xff",
            b"\x40a",
        ] {
            let packet = [b"\0\0\0\0\0\x01\0\0\0\0\0\0", name, b"\0\x0c\0\x01"].concat();
            assert_eq!(parse(&packet), Err(WireError::Invalid("name")), "{name:?}");
        }
    }

    #[test]
    fn a_name_does_not_grow_past_its_bound() {
        let label = [&[63][..], &[b'a'; 63]].concat();
        let packet = [
            b"\0\0\0\0\0\x01\0\0\0\0\0\0".to_vec(),
            label.repeat(5),
            b"\0\0\x0c\0\x01".to_vec(),
        ];
        assert_eq!(parse(&packet.concat()), Err(WireError::Invalid("name")));
    }
}
