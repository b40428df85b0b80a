//! Peers on one link find each other without any help: by multicast DNS.
//!
//! Whoever wants a peer and has no direct path to it asks the link who is here; every host answers for each of its
//! networks, and says so unasked when it comes or its network changes. An answer names nobody. Its tag is a MAC over a
//! nonce and the address that the answer comes from, with the node's public key as the key: only who knows the node
//! recognises it, and nobody can repeat it from another address.
//!
//! What comes of an answer is a hint, an address that a handshake or a probe may go to; the tunnel proves the peer.
//! Nothing is done while no peer is wanted and nobody asks: there is no timer then.

mod hints;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

pub(crate) use hints::Hints;

use crate::engine::NetworkIndex;
use crate::identity::NetworkId;
use crate::limits;
use crate::peer::PeerIndex;
use crate::rate::{Bucket, Rate};
use crate::rng::Random;
use crate::session::hash::mac;
use crate::time::Instant;
use crate::wire::mdns;

/// An address of this host on a link where peers may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LanAddress {
    /// The kernel's number of the interface.
    pub interface: u32,
    /// The address, with the length of the link's prefix.
    pub net: IpNet,
}

/// One of the two multicast groups on one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LanGroup {
    /// The kernel's number of the interface.
    pub interface: u32,
    /// [`mdns::GROUP_V6`], else [`mdns::GROUP_V4`].
    pub ipv6: bool,
}

/// What the engine wants done on the links around us, from and to port [`mdns::PORT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LanAction {
    /// Be a member of exactly these groups; without any, have no socket.
    Listen(Vec<LanGroup>),
    /// Send a packet to the group of the address's family, with the hop limit [`mdns::HOP_LIMIT`].
    Send {
        /// By which interface.
        interface: u32,
        /// The address that it has to come from.
        from: IpAddr,
        /// The UDP payload.
        payload: Vec<u8>,
    },
}

/// A packet that came to port [`mdns::PORT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanPacket {
    /// The interface that it came by.
    pub interface: u32,
    /// Who sent it.
    pub from: SocketAddr,
    /// The hop limit, or TTL, that it came with.
    pub hop_limit: u8,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// RFC 6762, section 6: answers that several hosts may give wait for a time between these two, and so does what a change
/// of the network makes several hosts say.
const SPREAD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(120));
/// RFC 6762, sections 5.2, 6 and 8.3: nothing is said twice on a link within this time, and an announcement is repeated
/// after it.
const SECOND: Duration = Duration::from_secs(1);
/// Questions that are not answered are repeated after twice as long each time, up to this: a peer that comes says so
/// itself, so they are only for what gets lost.
const MAX_QUERY_PAUSE: Duration = Duration::from_secs(300);
/// Names and nonces live as long: who listens on a link for a day must not see one host in what it says.
const EPOCH: Duration = Duration::from_secs(3600);
/// What the tag is the tag of.
const PURPOSE: &[u8] = b"meshd lan 1";

/// The tag of an instance: with the node's WireGuard key, and for the address that it can be reached at.
pub(crate) fn tag(
    key: &[u8; 32],
    network: &NetworkId,
    nonce: &[u8; 8],
    address: SocketAddr,
) -> [u8; 8] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let (ip, port) = (ip.octets(), address.port().to_be_bytes());
    let [a, b, c, d, e, f, g, h, ..] = mac(key, &[PURPOSE, network.as_bytes(), nonce, &ip, &port]);
    [a, b, c, d, e, f, g, h]
}

/// What is due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Ask on every link.
    pub(crate) query: bool,
    /// Say on these interfaces who we are.
    pub(crate) answers: BTreeSet<u32>,
}

/// When to ask.
#[derive(Debug, Default)]
struct Queries {
    next: Option<Instant>,
    last: Option<Instant>,
    pause: Duration,
}

/// What was said on an interface, and will be.
#[derive(Debug, Default)]
struct Answers {
    due: Option<Instant>,
    last: Option<Instant>,
}

/// What names and nonces are made from.
struct Epoch {
    secret: [u8; 32],
    began: Instant,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Lan {
    /// Not wanted at all.
    disabled: bool,
    /// All links that there are, and those that we use: the same, or none.
    present: Vec<LanAddress>,
    links: Vec<LanAddress>,
    listening: Vec<LanGroup>,
    epoch: Option<Epoch>,
    /// When the announcement that is under way is made, or repeated; and whether it will be once more.
    announcement: Option<(Instant, bool)>,
    queries: Queries,
    answers: BTreeMap<u32, Answers>,
    wanted: BTreeSet<PeerIndex>,
    packets: Bucket,
    checks: Bucket,
    actions: VecDeque<LanAction>,
}

impl Lan {
    /// The links that there are now; without any, the whole is off. True if others are used than before.
    pub(crate) fn set_links(&mut self, mut links: Vec<LanAddress>) -> bool {
        links.sort();
        links.dedup();
        links.truncate(limits::LAN_ADDRESSES);
        self.present = links;
        self.use_links()
    }

    /// Whether all this is wanted; as [`Self::set_links`].
    pub(crate) fn set_enabled(&mut self, enabled: bool) -> bool {
        self.disabled = !enabled;
        self.use_links()
    }

    fn use_links(&mut self) -> bool {
        let links = match self.disabled {
            true => Vec::new(),
            false => self.present.clone(),
        };
        if self.links == links {
            return false;
        }
        self.links = links;
        let links = &self.links;
        self.answers
            .retain(|interface, _| links.iter().any(|link| link.interface == *interface));
        if links.is_empty() {
            self.wanted.clear();
        }
        true
    }

    pub(crate) fn links(&self) -> &[LanAddress] {
        &self.links
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.links.is_empty()
    }

    /// Joins and leaves groups: all of the links' if there is a network, else none.
    pub(crate) fn listen(&mut self, any_network: bool) {
        let links = self.links.iter().filter(|_| any_network);
        let group = |link: &LanAddress| LanGroup {
            interface: link.interface,
            ipv6: link.net.addr().is_ipv6(),
        };
        let mut groups: Vec<LanGroup> = links.map(group).collect();
        groups.sort();
        groups.dedup();
        if self.listening != groups {
            self.listening.clone_from(&groups);
            self.actions.push_back(LanAction::Listen(groups));
        }
    }

    /// We came to other links, or to other neighbours: new names, and a word to everybody.
    pub(crate) fn network_changed(&mut self, now: Instant, rng: &mut Random) {
        self.epoch = None;
        self.announce(now, rng);
        if self.queries.next.is_some() {
            self.ask(now);
        }
    }

    /// Tells everybody that we are here, twice.
    pub(crate) fn announce(&mut self, now: Instant, rng: &mut Random) {
        if self.is_on() && self.announcement.is_none_or(|(_, first)| !first) {
            let last = self.answers.values().filter_map(|answers| answers.last);
            let soon = last.max().map_or(now, |last| now.max(last + SECOND));
            self.announcement = Some((soon + spread(rng), true));
        }
    }

    /// A peer is wanted that was not before; see to it that somebody is asked for it.
    pub(crate) fn want(&mut self, now: Instant, peer: PeerIndex) {
        if self.is_on() && self.wanted.len() < limits::LAN_WANTED && self.wanted.insert(peer) {
            self.ask(now);
        }
    }

    pub(crate) fn forget(&mut self, peer: PeerIndex) {
        self.wanted.remove(&peer);
    }

    pub(crate) fn wanted(&self) -> impl Iterator<Item = PeerIndex> {
        self.wanted.iter().copied()
    }

    fn ask(&mut self, now: Instant) {
        let queries = &mut self.queries;
        let earliest = queries.last.map_or(now, |last| now.max(last + SECOND));
        queries.next = Some(queries.next.map_or(earliest, |next| next.min(earliest)));
        queries.pause = SECOND;
    }

    /// True if a packet comes from a neighbour, and is one of no more than we look at.
    ///
    /// Who asks may have a link-local address; hints are those of the link's prefixes only.
    pub(crate) fn admits(&self, packet: &LanPacket) -> bool {
        packet.hop_limit == mdns::HOP_LIMIT
            && packet.from.port() == mdns::PORT
            && self.links.iter().any(|link| {
                link.interface == packet.interface
                    && (link.net.contains(&packet.from.ip()) || is_link_local(packet.from.ip()))
            })
    }

    /// True if one more packet may be looked into.
    pub(crate) fn may_read(&mut self, now: Instant) -> bool {
        let rate = Rate::new(
            limits::LAN_PACKETS_PER_SECOND,
            limits::LAN_PACKETS_PER_SECOND,
        );
        self.packets.take(now, rate, 1)
    }

    /// True if so many tags may be computed.
    pub(crate) fn may_check(&mut self, now: Instant, tags: usize) -> bool {
        let rate = Rate::new(limits::LAN_TAGS_PER_SECOND, limits::LAN_TAGS_PER_SECOND);
        self.checks.take(now, rate, tags as u64)
    }

    /// True if the address is that of one host on a link of this interface.
    pub(crate) fn is_neighbour(&self, interface: u32, ip: IpAddr) -> bool {
        let mut links = self.links.iter();
        links.any(|link| link.interface == interface && is_host_in(link.net, ip))
    }

    /// Somebody asks.
    pub(crate) fn asked(&mut self, now: Instant, interface: u32, rng: &mut Random) {
        let answers = self.answers.entry(interface).or_default();
        if answers.due.is_none() {
            let free = answers.last.map_or(now, |last| last + SECOND);
            answers.due = Some(free.max(now + spread(rng)));
        }
    }

    /// When [`Self::poll`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let announcement = self.announcement.map(|(at, _)| at);
        let answers = self.answers.values().filter_map(|answers| answers.due);
        let rest = [self.queries.next, announcement].into_iter().flatten();
        answers.chain(rest).min()
    }

    /// What has to be said now.
    pub(crate) fn poll(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        if !self.is_on() {
            self.announcement = None;
            self.queries.next = None;
            return due;
        }
        if self.queries.next.is_some_and(|next| next <= now) {
            let queries = &mut self.queries;
            due.query = true;
            queries.last = Some(now);
            queries.next = Some(now + queries.pause);
            queries.pause = (queries.pause * 2).min(MAX_QUERY_PAUSE);
        }
        if let Some((at, again)) = self.announcement
            && at <= now
        {
            self.announcement = again.then(|| (now + SECOND, false));
            due.answers
                .extend(self.links.iter().map(|link| link.interface));
        }
        for (interface, answers) in &mut self.answers {
            if answers.due.is_some_and(|at| at <= now) {
                due.answers.insert(*interface);
            }
        }
        for interface in &due.answers {
            let answers = self.answers.entry(*interface).or_default();
            *answers = Answers {
                due: None,
                last: Some(now),
            };
        }
        due
    }

    /// Nobody is wanted any more.
    pub(crate) fn stop_asking(&mut self) {
        self.queries.next = None;
    }

    /// Makes new names and nonces if it is time.
    pub(crate) fn renew(&mut self, now: Instant, rng: &mut Random) {
        let old = |epoch: &Epoch| now.since(epoch.began) >= EPOCH;
        if self.epoch.as_ref().is_none_or(old) {
            self.epoch = Some(Epoch {
                secret: rng.bytes(),
                began: now,
            });
        }
    }

    /// The instance that stands for a network on an interface, at an address of ours. Nobody can tell from two of them
    /// that they are of one host, but by where they come from. `None` before the first [`Self::renew`].
    pub(crate) fn instance(
        &self,
        network: (NetworkIndex, &NetworkId),
        key: &[u8; 32],
        interface: u32,
        address: SocketAddr,
    ) -> Option<mdns::Instance> {
        let (index, id) = network;
        let secret = &self.epoch.as_ref()?.secret;
        let place = [&index.0.to_be_bytes()[..], &interface.to_be_bytes()].concat();
        let [a, b, c, d, e, f, g, h, nonce @ ..] = mac(secret, &[&place]);
        Some(mdns::Instance {
            label: [a, b, c, d, e, f, g, h],
            port: address.port(),
            nonce,
            tag: tag(key, id, &nonce, address),
        })
    }

    pub(crate) fn send(&mut self, interface: u32, from: IpAddr, payload: Vec<u8>) {
        self.actions.push_back(LanAction::Send {
            interface,
            from,
            payload,
        });
    }

    pub(crate) fn poll_action(&mut self) -> Option<LanAction> {
        self.actions.pop_front()
    }
}

fn spread(rng: &mut Random) -> Duration {
    let (least, most) = SPREAD;
    least + (most - least).mul_f64(rng.fraction())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// True for an address of a prefix that is not that of the prefix itself, nor its broadcast address.
fn is_host_in(net: IpNet, ip: IpAddr) -> bool {
    let special = match net {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            ip == IpAddr::V4(v4.network()) || ip == IpAddr::V4(v4.broadcast())
        }
        // The router anycast address (RFC 4291, section 2.6.1).
        IpNet::V6(v6) if v6.prefix_len() < 127 => ip == IpAddr::V6(v6.network()),
        _ => false,
    };
    net.contains(&ip) && !special
}
