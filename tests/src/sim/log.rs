//! What happened in a run: the newest entries for people, and a fingerprint of all of them for comparing runs.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use mesh_core::time::Instant;

use super::packet::{Kind, Packet};

/// Entries that are kept.
const KEPT: usize = 10_000;

/// One thing that happened at a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A host or relay sent a datagram.
    Sent(Flight),
    /// A host or relay received a datagram.
    Received(Flight),
    /// A datagram ended where it should not have.
    Dropped(Flight, &'static str),
    /// An inner packet entered the tunnel: bytes.
    Inner(usize),
    /// An inner packet left the tunnel: bytes.
    Delivered(usize),
    /// Anything else, in words. Its length is part of the fingerprint, its text is not.
    Note(String),
}

/// A datagram as the log shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    source: SocketAddr,
    destination: SocketAddr,
    kind: Kind,
    ttl: u8,
    size: usize,
}

impl From<&Packet> for Flight {
    fn from(packet: &Packet) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            kind: packet.kind(),
            ttl: packet.ttl,
            size: packet.body.len(),
        }
    }
}

impl fmt::Display for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            destination,
            kind,
            ttl,
            size,
        } = self;
        write!(f, "{source} → {destination} {kind:?} {size} B")?;
        if *ttl < 16 {
            write!(f, " ttl {ttl}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(flight) => write!(f, "> {flight}"),
            Self::Received(flight) => write!(f, "< {flight}"),
            Self::Dropped(flight, why) => write!(f, "x {flight}: {why}"),
            Self::Inner(size) => write!(f, "inner packet in, {size} B"),
            Self::Delivered(size) => write!(f, "inner packet out, {size} B"),
            Self::Note(text) => write!(f, "* {text}"),
        }
    }
}

/// The log of a run.
#[derive(Debug, Default)]
pub struct Log {
    entries: VecDeque<(Instant, usize, Entry)>,
    fingerprint: u64,
    count: u64,
}

impl Log {
    /// Adds an entry for a node.
    pub fn push(&mut self, now: Instant, node: usize, entry: Entry) {
        let mut hasher = DefaultHasher::new();
        (self.fingerprint, now, node).hash(&mut hasher);
        match &entry {
            Entry::Sent(flight) => (1, flight.kind, flight.ttl, flight.size).hash(&mut hasher),
            Entry::Received(flight) => (2, flight.kind, flight.ttl, flight.size).hash(&mut hasher),
            Entry::Dropped(flight, why) => (3, flight.kind, flight.size, why).hash(&mut hasher),
            Entry::Inner(size) => (4, size).hash(&mut hasher),
            Entry::Delivered(size) => (5, size).hash(&mut hasher),
            Entry::Note(text) => (6, text.len()).hash(&mut hasher),
        }
        self.fingerprint = hasher.finish();
        self.count += 1;
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back((now, node, entry));
    }

    /// Depends on the time, node, kind and size of everything that happened, not on addresses or contents.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// How much happened.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The newest entries, oldest first: when, at which node, what.
    pub fn entries(&self) -> impl Iterator<Item = &(Instant, usize, Entry)> {
        self.entries.iter()
    }
}
