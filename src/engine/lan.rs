//! Peers on one link: what is said there for our networks, and what comes of what others say. See [`crate::lan`].

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Engine, NetworkIndex, Output, PeerIndex};
use crate::batch::Batches;
use crate::lan::{LanAddress, LanPacket, tag};
use crate::path::PathKey;
use crate::path::candidates::is_acceptable;
use crate::peer::Peer;
use crate::peer::handshake::Handshake;
use crate::time::Instant;
use crate::wire::mdns::{self, Instance, MAX_INSTANCES, Message};

/// Hints come in groups, one for each address of the peer: one initiation goes to all of them.
const HINT_PAUSE: Duration = Duration::from_millis(5);

impl Engine {
    /// Tells our addresses on links where peers may be, after [`Self::set_local_addresses`]; with none, as at first,
    /// nothing is said or heard there.
    pub fn set_lan(&mut self, now: Instant, links: &[LanAddress]) {
        let overlay = |ip: IpAddr| self.networks.values().any(|network| network.covers(ip));
        let links = links.iter().filter(|link| !overlay(link.net.addr()));
        if self.lan.set_links(links.copied().collect()) {
            self.links_changed(now);
        }
    }

    /// Whether peers on our links are looked for and answered at all, as they are unless this says no.
    pub fn set_lan_discovery(&mut self, now: Instant, wanted: bool) {
        if self.lan.set_enabled(wanted) {
            self.links_changed(now);
        }
    }

    fn links_changed(&mut self, now: Instant) {
        self.lan.network_changed(now, &mut self.rng);
        self.lan.listen(!self.networks.is_empty());
        // Those that have been wanted for long.
        let peers: Vec<PeerIndex> = self.peers.iter().map(|(_, peer)| peer.index).collect();
        for index in peers {
            self.service_lan_wish(now, index);
        }
        self.settle_lan();
    }

    /// Takes a packet that came to one of the groups of [`crate::lan::LanAction::Listen`].
    pub fn handle_lan(&mut self, now: Instant, packet: &LanPacket, out: &mut Batches) {
        let own = |ip: IpAddr| self.lan.links().iter().any(|link| link.net.addr() == ip);
        if !self.lan.admits(packet) || own(packet.from.ip()) {
            self.drops.unknown_protocol += 1;
            return;
        }
        if !self.lan.may_read(now) {
            self.drops.rate_limited += 1;
            return;
        }
        match mdns::parse(&packet.payload) {
            Ok(Message::Query) => self.lan.asked(now, packet.interface, &mut self.rng),
            Ok(Message::Answer(instances)) => {
                for instance in &instances {
                    self.recognise(now, packet, instance, out);
                }
            }
            Err(_) => self.drops.unknown_protocol += 1,
        }
    }

    /// Looks whether an instance is a peer that is wanted.
    fn recognise(
        &mut self,
        now: Instant,
        packet: &LanPacket,
        instance: &Instance,
        out: &mut Batches,
    ) {
        let address = SocketAddr::new(packet.from.ip(), instance.port);
        let overlay = |ip: IpAddr| self.networks.values().any(|network| network.covers(ip));
        if !is_acceptable(address)
            || !self.lan.is_neighbour(packet.interface, address.ip())
            || self.is_own_address(address)
            || overlay(address.ip())
        {
            return;
        }
        let wanted: Vec<PeerIndex> = self.lan.wanted().collect();
        if !self.lan.may_check(now, wanted.len()) {
            self.drops.rate_limited += 1;
            return;
        }
        let is_it = |index: &PeerIndex| {
            let peer = self.peer(*index)?;
            let network = self.networks.get(&peer.network)?;
            let key = peer.key.to_wireguard();
            Some(tag(&key, &network.id, &instance.nonce, address) == instance.tag)
        };
        if let Some(index) = wanted.iter().find(|index| is_it(index) == Some(true)) {
            self.take_hint(now, *index, address, out);
        }
    }

    /// A peer may be at this address of the link: a handshake goes there, or a probe.
    fn take_hint(
        &mut self,
        now: Instant,
        index: PeerIndex,
        address: SocketAddr,
        out: &mut Batches,
    ) {
        let Some(peer) = self.peers.get_mut(index.0 as usize) else {
            return;
        };
        if !is_wanted(now, peer) || !peer.hints.add(now, address) {
            return;
        }
        let soon = now + HINT_PAUSE;
        // A session whose first words were never answered says nothing about other addresses either.
        let mute = !peer.uses(now).probes && !peer.paths.has_relay();
        if !peer.is_ready() || peer.paths.route().is_none() || mute {
            peer.handshake.get_or_insert_with(|| Handshake::new(soon));
        }
        if let Some(handshake) = &mut peer.handshake
            && handshake.deadline() > soon
        {
            handshake.hurry(soon);
        }
        if peer.uses(now).probes {
            let key = PathKey::direct(address);
            let added = peer.paths.get_or_add(key, now).is_some();
            if added {
                self.check_path(now, index, key);
            }
        }
        self.service_peer(now, index, out);
    }

    /// Has a peer looked for on the link while it is wanted there.
    pub(super) fn service_lan_wish(&mut self, now: Instant, index: PeerIndex) {
        if !self.lan.is_on() {
            return;
        }
        match self.peers.get(index.0 as usize) {
            Some(peer) if is_wanted(now, peer) => self.lan.want(now, index),
            _ => self.lan.forget(index),
        }
    }

    /// Says what is due.
    pub(super) fn service_lan(&mut self, now: Instant) {
        if self.lan.deadline().is_none_or(|due| due > now) {
            return;
        }
        let due = self.lan.poll(now);
        if due.query {
            self.ask_lan(now);
        }
        if !due.answers.is_empty() {
            self.lan.renew(now, &mut self.rng);
            let networks: Vec<NetworkIndex> = self.networks.keys().copied().collect();
            let links = self.lan.links().to_vec();
            for link in links {
                if due.answers.contains(&link.interface) {
                    self.say(link, &networks, mdns::LIFETIME);
                }
            }
        }
        self.settle_lan();
    }

    /// Asks on every link, if somebody is still wanted.
    fn ask_lan(&mut self, now: Instant) {
        let wanted: Vec<PeerIndex> = self.lan.wanted().collect();
        for index in &wanted {
            self.service_lan_wish(now, *index);
        }
        if self.lan.wanted().next().is_none() {
            self.lan.stop_asking();
            return;
        }
        let mut links = self.lan.links().to_vec();
        links.dedup_by_key(|link| (link.interface, link.net.addr().is_ipv6()));
        for link in links {
            self.lan
                .send(link.interface, link.net.addr(), mdns::query());
        }
    }

    /// Says on one link, from one address, that these networks are here.
    fn say(&mut self, link: LanAddress, networks: &[NetworkIndex], lifetime: u32) {
        let from = link.net.addr();
        let port = match from {
            IpAddr::V4(_) => self.ports.0,
            IpAddr::V6(_) => self.ports.1,
        };
        let Some(port) = port else { return };
        let address = SocketAddr::new(from, port);
        for some in networks.chunks(MAX_INSTANCES) {
            let instance = |index: &NetworkIndex| {
                let network = self.networks.get(index)?;
                let (id, key) = ((*index, &network.id), network.local.public());
                self.lan.instance(id, &key, link.interface, address)
            };
            let instances: Vec<Instance> = some.iter().filter_map(instance).collect();
            if !instances.is_empty() {
                let payload = mdns::answer(&instances, lifetime);
                self.lan.send(link.interface, from, payload);
            }
        }
    }

    /// A network has come.
    pub(super) fn join_lan(&mut self, now: Instant) {
        self.lan.listen(true);
        self.lan.announce(now, &mut self.rng);
        self.settle_lan();
    }

    /// A network is about to go: takes back what was said of it.
    pub(super) fn leave_lan(&mut self, index: NetworkIndex) {
        for link in self.lan.links().to_vec() {
            self.say(link, &[index], 0);
        }
        let others = self.networks.keys().any(|other| *other != index);
        self.lan.listen(others);
        self.settle_lan();
    }

    fn settle_lan(&mut self) {
        while let Some(action) = self.lan.poll_action() {
            self.outputs.push_back(Output::Lan(action));
        }
    }
}

/// True for a peer that is in use, or to be reached, without a direct path to it.
fn is_wanted(now: Instant, peer: &Peer) -> bool {
    let needed = peer.handshake.is_some() || peer.is_active(now);
    needed && peer.node_id().is_some() && !peer.paths.has_usable_direct(now)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::engine::{HostAddress, LanAction, NetworkSetup, PeerKey, PeerSetup};
    use crate::identity::{Identity, NetworkId};
    use crate::session::Kernel;

    const NET: NetworkIndex = NetworkIndex(0);

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(Zeroizing::new([seed; 32]))
    }

    fn peer(seed: u8) -> PeerSetup {
        PeerSetup {
            key: PeerKey::Mesh(identity(seed).id()),
            name: format!("peer{seed}"),
            addresses: Vec::new(),
            routes: Vec::new(),
            psk: None,
            endpoints: Vec::new(),
        }
    }

    /// A host at 192.168.1.2 that wants peer 2, and has asked for it.
    fn wanting(now: Instant, out: &mut Batches) -> Engine {
        let mut engine = Engine::new([7; 32], Kernel::Ring, now, Duration::from_secs(1 << 30));
        let setup = NetworkSetup {
            name: "home".to_owned(),
            id: NetworkId::from_name("home"),
            identity: identity(1),
            addresses: Vec::new(),
            mtu: 1_280,
            peers: vec![peer(2), peer(3)],
            relays: Vec::new(),
        };
        engine.add_network(now, NET, setup).unwrap();
        let own = HostAddress {
            ip: "192.168.1.2".parse().unwrap(),
            virtual_interface: false,
            mtu: 1_500,
        };
        engine.set_local_addresses(now, &[own], Some(41_820), None);
        let net = "192.168.1.2/24".parse().unwrap();
        engine.set_lan(now, &[LanAddress { interface: 2, net }]);
        let wanted = peer(2).key;
        engine.ping(now, NET, wanted, 1, Duration::from_secs(60), out);
        engine.handle_timeout(now, out);
        engine
    }

    /// What somebody who knows this node's ID says, from an address of its choice.
    fn announcement(node: u8, from: &str, port: u16) -> LanPacket {
        let from: IpAddr = from.parse().unwrap();
        let key = identity(node).id().to_wireguard();
        let network = NetworkId::from_name("home");
        let nonce = [node; 8];
        let address = SocketAddr::new(from, port);
        let instance = Instance {
            label: [1; 8],
            port,
            nonce,
            tag: tag(&key, &network, &nonce, address),
        };
        LanPacket {
            interface: 2,
            from: SocketAddr::new(from, mdns::PORT),
            hop_limit: 255,
            payload: mdns::answer(&[instance], mdns::LIFETIME),
        }
    }

    fn drain(engine: &mut Engine) -> (Vec<SocketAddr>, Vec<Vec<u8>>) {
        let (mut datagrams, mut said) = (Vec::new(), Vec::new());
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Datagram { remote, .. } => datagrams.push(remote),
                Output::Lan(LanAction::Send { payload, .. }) => said.push(payload),
                _ => {}
            }
        }
        (datagrams, said)
    }

    /// Lets time pass up to `end`.
    fn run(engine: &mut Engine, end: Instant, out: &mut Batches) {
        while let Some(due) = engine.poll_timeout().filter(|due| *due <= end) {
            engine.handle_timeout(due, out);
        }
    }

    #[test]
    fn a_wanted_peer_is_asked_for_and_called_where_it_says_it_is() {
        let now = Instant::from_boot(Duration::from_secs(1_000));
        let mut out = Batches::new(Kernel::Ring);
        let mut engine = wanting(now, &mut out);
        assert_eq!(drain(&mut engine), (Vec::new(), vec![mdns::query()]));
        // Peer 3 is known and not wanted; nobody else is known.
        for node in [3, 4] {
            engine.handle_lan(now, &announcement(node, "192.168.1.9", 41_820), &mut out);
        }
        run(&mut engine, now + Duration::from_millis(10), &mut out);
        assert_eq!(drain(&mut engine).0, []);
        engine.handle_lan(now, &announcement(2, "192.168.1.9", 41_820), &mut out);
        run(&mut engine, now + Duration::from_millis(20), &mut out);
        let there: Vec<SocketAddr> = vec!["192.168.1.9:41820".parse().unwrap()];
        assert_eq!(drain(&mut engine).0, there);
    }

    #[test]
    fn nobody_makes_us_send_to_what_is_no_neighbour() {
        let now = Instant::from_boot(Duration::from_secs(1_000));
        let mut out = Batches::new(Kernel::Ring);
        let mut engine = wanting(now, &mut out);
        drain(&mut engine);
        for (from, port) in [
            ("192.168.1.2", 41_820),
            ("192.168.1.255", 41_820),
            ("192.168.1.0", 41_820),
            ("192.168.2.9", 41_820),
            ("127.0.0.1", 41_820),
            ("224.0.0.251", 5_353),
            ("8.8.8.8", 53),
            ("fe80::9", 41_820),
        ] {
            engine.handle_lan(now, &announcement(2, from, port), &mut out);
        }
        let routed = LanPacket {
            hop_limit: 64,
            ..announcement(2, "192.168.1.9", 41_820)
        };
        engine.handle_lan(now, &routed, &mut out);
        run(&mut engine, now + Duration::from_millis(10), &mut out);
        assert_eq!(drain(&mut engine).0, []);
    }

    #[test]
    fn whoever_knows_the_id_causes_a_handful_of_handshakes() {
        let now = Instant::from_boot(Duration::from_secs(1_000));
        let mut out = Batches::new(Kernel::Ring);
        let mut engine = wanting(now, &mut out);
        drain(&mut engine);
        let mut datagrams = Vec::new();
        for round in 0..100 {
            let at = now + Duration::from_millis(round * 100);
            for last in 3..200 {
                let packet = announcement(2, &format!("192.168.1.{last}"), 41_820);
                engine.handle_lan(at, &packet, &mut out);
            }
            run(&mut engine, at + Duration::from_millis(99), &mut out);
            datagrams.extend(drain(&mut engine).0);
        }
        // Of some 20,000 in ten seconds: a hint a second and four at once, and a handshake for each goes to four of them.
        assert!((8..=80).contains(&datagrams.len()), "{}", datagrams.len());
        assert!(engine.drops().rate_limited > 15_000);
        // And without any more, soon nothing.
        run(&mut engine, now + Duration::from_secs(45), &mut out);
        drain(&mut engine);
        run(&mut engine, now + Duration::from_secs(90), &mut out);
        assert_eq!(drain(&mut engine).0, []);
    }
}
