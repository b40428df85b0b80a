//! NATs in every behaviour of RFC 4787, and stateful firewalls without address translation.
//!
//! One [`Nat`] stands for the translation table of one router with one external address, or a pool of them. The quirk that breaks naive
//! hole punching is modelled too: a Linux router whose INPUT chain *accepts* enters an unsolicited packet into its
//! connection table, and an outbound mapping that needs the same tuple later has to move to another port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mesh_core::time::Instant;

use super::rng::Rng;

/// How external ports are assigned to destinations (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    /// Endpoint-independent: one for all destinations.
    Eim,
    /// Address-dependent: one for each destination address.
    Adm,
    /// Address-and-port-dependent: one for each destination address and port.
    Apdm,
}

/// Who may send to a mapping (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filtering {
    /// Endpoint-independent: anyone.
    Eif,
    /// Address-dependent: every address that was sent to.
    Adf,
    /// Address-and-port-dependent: every address and port that was sent to.
    Apdf,
}

/// Which external port a new mapping gets (RFC 4787, section 4.2.1). A port in use is replaced by a random one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Allocation {
    /// The internal port.
    Preserving,
    /// The internal port plus a constant.
    Offset(u16),
    /// The internal port times a constant.
    Multiple(u16),
    /// The previous mapping's port plus this step.
    Sequential(i8),
    /// Any.
    Random,
    /// Any of so many that follow each other.
    Block(u16),
}

/// Which of several external addresses a new mapping gets (RFC 4787, section 4.1, REQ-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pool {
    /// There is one.
    One,
    /// Of so many, each host always the same.
    Paired(u8),
    /// Of so many, any.
    Arbitrary(u8),
    /// Of so many, the one that the destination's address leads to, as Linux chooses.
    ByDestination(u8),
}

impl Pool {
    /// How many addresses there are.
    pub const fn size(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Paired(size) | Self::Arbitrary(size) | Self::ByDestination(size) => size,
        }
    }
}

/// What a router does with packets from outside that belong to no mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// Forgets them at once.
    Drop,
    /// Accepts them itself, which occupies their tuple in its connection table.
    Accept,
}

/// A NAT's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatConfig {
    /// Port assignment to destinations.
    pub mapping: Mapping,
    /// Who may send to a mapping.
    pub filtering: Filtering,
    /// Which port a new mapping gets.
    pub allocation: Allocation,
    /// How long a mapping lives after the last packet that refreshes it.
    pub lifetime: Duration,
    /// Packets from outside refresh a mapping as well (RFC 4787, REQ-6, leaves this open).
    pub inbound_refresh: bool,
    /// Hosts behind it reach each other by external addresses.
    pub hairpin: bool,
    /// What becomes of unsolicited packets.
    pub input: Input,
    /// Its external addresses.
    pub pool: Pool,
}

impl NatConfig {
    /// A NAT with port preservation, a lifetime of two minutes (RFC 4787, REQ-5), no hairpinning and a closed INPUT.
    pub const fn new(mapping: Mapping, filtering: Filtering) -> Self {
        Self {
            mapping,
            filtering,
            allocation: Allocation::Preserving,
            lifetime: Duration::from_secs(120),
            inbound_refresh: false,
            hairpin: false,
            input: Input::Drop,
            pool: Pool::One,
        }
    }

    /// What Linux's `masquerade` does, and so most home routers.
    pub const fn home() -> Self {
        Self::new(Mapping::Eim, Filtering::Apdf)
    }

    /// With another port allocation.
    pub const fn allocation(mut self, allocation: Allocation) -> Self {
        self.allocation = allocation;
        self
    }

    /// With another mapping lifetime.
    pub const fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// With hairpinning.
    pub const fn hairpin(mut self) -> Self {
        self.hairpin = true;
        self
    }

    /// With several external addresses.
    pub const fn pool(mut self, pool: Pool) -> Self {
        self.pool = pool;
        self
    }

    /// With an INPUT chain that accepts.
    pub const fn accepting_input(mut self) -> Self {
        self.input = Input::Accept;
        self
    }
}

/// Lowest external port that is given out.
const FIRST_PORT: u16 = 1_024;
/// How many external ports there are.
const PORTS: u16 = u16::MAX - FIRST_PORT + 1;
/// How long a connection table keeps a tuple that only one side sent on (`nf_conntrack_udp_timeout`).
const UNREPLIED: Duration = Duration::from_secs(30);

/// What a mapping is for: the internal endpoint, and as much of the destination as the NAT looks at.
type MappingKey = (SocketAddr, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
struct Binding {
    /// Whose it is: the port may be given to another one after it has expired.
    key: MappingKey,
    expires: Instant,
    /// Destinations that were sent to, until when each may answer.
    addresses: BTreeMap<IpAddr, Instant>,
    endpoints: BTreeMap<SocketAddr, Instant>,
}

/// The translation table of one router.
#[derive(Debug)]
pub struct Nat {
    config: NatConfig,
    externals: Vec<IpAddr>,
    mappings: BTreeMap<MappingKey, SocketAddr>,
    bindings: BTreeMap<SocketAddr, Binding>,
    /// Flows that had to leave their mapping's port because the tuple was taken.
    moved: BTreeMap<(SocketAddr, SocketAddr), SocketAddr>,
    /// Tuples taken by unsolicited packets to the router itself: our side, the sender, until when.
    taken: BTreeMap<(SocketAddr, SocketAddr), Instant>,
    previous: u16,
    /// Where [`Allocation::Block`] begins.
    block: u16,
    made: u64,
    rng: Rng,
}

impl Nat {
    /// A NAT without mappings. A pool is `external` and the addresses that follow.
    pub fn new(config: NatConfig, external: IpAddr, mut rng: Rng) -> Self {
        let size = usize::from(config.pool.size());
        let externals = std::iter::successors(Some(external), |ip| Some(following(*ip)));
        Self {
            config,
            externals: externals.take(size).collect(),
            mappings: BTreeMap::new(),
            bindings: BTreeMap::new(),
            moved: BTreeMap::new(),
            taken: BTreeMap::new(),
            previous: FIRST_PORT + (rng.below(u64::from(PORTS)) as u16),
            block: 40_000,
            made: 0,
            rng,
        }
    }

    /// The external addresses.
    pub fn externals(&self) -> &[IpAddr] {
        &self.externals
    }

    /// The router forgets everything, as after a reboot.
    pub fn flush(&mut self) {
        self.mappings.clear();
        self.bindings.clear();
        self.moved.clear();
        self.taken.clear();
    }

    /// How many mappings are alive.
    pub fn mappings(&self, now: Instant) -> usize {
        self.bindings
            .values()
            .filter(|binding| binding.expires > now)
            .count()
    }

    /// How many mappings were ever made.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// A packet leaves: the source that it gets, or `None` when no port is left.
    pub fn outbound(
        &mut self,
        now: Instant,
        source: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let external = self.external_for(now, source, to)?;
        let expires = now + self.config.lifetime;
        let binding = self.bindings.get_mut(&external)?;
        binding.expires = expires;
        binding.addresses.insert(to.ip(), expires);
        binding.endpoints.insert(to, expires);
        Some(external)
    }

    /// A packet arrives at one of our addresses and ports: the host that gets it, or `None` if it is not let in.
    pub fn inbound(
        &mut self,
        now: Instant,
        from: SocketAddr,
        external: SocketAddr,
    ) -> Option<SocketAddr> {
        let allowed = self.is_allowed(now, from, external);
        if !allowed {
            if self.config.input == Input::Accept {
                self.taken.insert((external, from), now + UNREPLIED);
            }
            return None;
        }
        let expires = now + self.config.lifetime;
        let binding = self.bindings.get_mut(&external)?;
        if self.config.inbound_refresh {
            binding.expires = expires;
            binding.addresses.insert(from.ip(), expires);
            binding.endpoints.insert(from, expires);
        }
        Some(binding.key.0)
    }

    /// A host inside sends to an external port of ours: source and destination inside, if that works here
    /// (RFC 4787, REQ-9: the source becomes the external address and port).
    pub fn hairpin(
        &mut self,
        now: Instant,
        source: SocketAddr,
        to: SocketAddr,
    ) -> Option<(SocketAddr, SocketAddr)> {
        if !self.config.hairpin {
            return None;
        }
        let source = self.outbound(now, source, to)?;
        let destination = self.inbound(now, source, to)?;
        Some((source, destination))
    }

    fn is_allowed(&self, now: Instant, from: SocketAddr, external: SocketAddr) -> bool {
        let Some(binding) = self
            .bindings
            .get(&external)
            .filter(|binding| binding.expires > now)
        else {
            return false;
        };
        let alive = |until: Option<&Instant>| until.is_some_and(|until| *until > now);
        match self.config.filtering {
            Filtering::Eif => true,
            Filtering::Adf => alive(binding.addresses.get(&from.ip())),
            Filtering::Apdf => alive(binding.endpoints.get(&from)),
        }
    }

    fn external_for(
        &mut self,
        now: Instant,
        source: SocketAddr,
        to: SocketAddr,
    ) -> Option<SocketAddr> {
        let moved_key = (source, Some(to.ip()), Some(to.port()));
        if let Some(external) = self.moved.get(&(source, to)).copied() {
            if self.belongs(now, external, moved_key) {
                return Some(external);
            }
            self.moved.remove(&(source, to));
        }
        let by_destination = matches!(self.config.pool, Pool::ByDestination(_));
        let key: MappingKey = match self.config.mapping {
            Mapping::Eim if !by_destination => (source, None, None),
            Mapping::Eim | Mapping::Adm => (source, Some(to.ip()), None),
            Mapping::Apdm => (source, Some(to.ip()), Some(to.port())),
        };
        let known = self.mappings.get(&key).copied();
        let known = known.filter(|external| self.belongs(now, *external, key));
        // What was let out before has its own entry in the connection table, so its tuple cannot be taken.
        if let Some(external) = known
            && self.has_sent(now, external, to)
        {
            return Some(external);
        }
        let external = match known {
            Some(external) => external,
            None => {
                let address = self.address_for(source.ip(), to.ip());
                let preferred = self.preferred(source.port());
                let preferred = SocketAddr::new(address, preferred);
                let external = self.allocate(now, preferred, key)?;
                self.mappings.insert(key, external);
                external
            }
        };
        if self
            .taken
            .get(&(external, to))
            .is_none_or(|until| *until <= now)
        {
            return Some(external);
        }
        let random = SocketAddr::new(external.ip(), self.random_port());
        let other = self.allocate(now, random, moved_key)?;
        self.moved.insert((source, to), other);
        Some(other)
    }

    /// The external address of a new mapping.
    fn address_for(&mut self, source: IpAddr, to: IpAddr) -> IpAddr {
        let sum = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().iter().map(|byte| usize::from(*byte)).sum(),
            IpAddr::V6(_) => 0_usize,
        };
        let chosen = match self.config.pool {
            Pool::One => 0,
            Pool::Paired(_) => sum(source),
            Pool::Arbitrary(size) => self.rng.below(u64::from(size)) as usize,
            Pool::ByDestination(_) => sum(to),
        };
        self.externals[chosen % self.externals.len()]
    }

    fn belongs(&self, now: Instant, external: SocketAddr, key: MappingKey) -> bool {
        let binding = self.bindings.get(&external);
        binding.is_some_and(|binding| binding.expires > now && binding.key == key)
    }

    fn has_sent(&self, now: Instant, external: SocketAddr, to: SocketAddr) -> bool {
        let sent = self
            .bindings
            .get(&external)
            .and_then(|binding| binding.endpoints.get(&to));
        sent.is_some_and(|until| *until > now)
    }

    fn is_alive(&self, now: Instant, external: SocketAddr) -> bool {
        self.bindings
            .get(&external)
            .is_some_and(|binding| binding.expires > now)
    }

    fn preferred(&mut self, internal: u16) -> u16 {
        let wrap = |port: u32| FIRST_PORT + (port % u32::from(PORTS)) as u16;
        match self.config.allocation {
            Allocation::Preserving => internal.max(FIRST_PORT),
            Allocation::Offset(by) => {
                wrap(u32::from(internal.max(FIRST_PORT) - FIRST_PORT) + u32::from(by))
            }
            Allocation::Multiple(by) => wrap(u32::from(internal) * u32::from(by)),
            Allocation::Sequential(step) => {
                let next = u32::from(self.previous - FIRST_PORT) + u32::from(PORTS);
                self.previous = wrap(next.saturating_add_signed(i32::from(step)));
                self.previous
            }
            Allocation::Random => self.random_port(),
            Allocation::Block(size) => self.block + self.rng.below(u64::from(size)) as u16,
        }
    }

    fn random_port(&mut self) -> u16 {
        FIRST_PORT + (self.rng.below(u64::from(PORTS)) as u16)
    }

    /// Makes a binding on the preferred port, or, where that is in use, on a random one of the same address.
    fn allocate(
        &mut self,
        now: Instant,
        preferred: SocketAddr,
        key: MappingKey,
    ) -> Option<SocketAddr> {
        let mut external = preferred;
        let mut tries = 0;
        while self.is_alive(now, external) {
            tries += 1;
            if tries > 1_000 {
                return None;
            }
            let port = match self.config.allocation {
                Allocation::Sequential(_) | Allocation::Block(_) => self.preferred(key.0.port()),
                _ => self.random_port(),
            };
            external.set_port(port);
        }
        let binding = Binding {
            key,
            expires: now,
            addresses: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        };
        self.bindings.insert(external, binding);
        self.made += 1;
        Some(external)
    }
}

/// The address after this one.
fn following(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().wrapping_add(1)).into(),
    }
}

/// A stateful packet filter without translation, as in most home routers for IPv6.
#[derive(Debug)]
pub struct Firewall {
    filtering: Filtering,
    lifetime: Duration,
    addresses: BTreeMap<(SocketAddr, IpAddr), Instant>,
    endpoints: BTreeMap<(SocketAddr, SocketAddr), Instant>,
}

impl Firewall {
    /// A firewall that has seen nothing yet.
    pub fn new(filtering: Filtering, lifetime: Duration) -> Self {
        Self {
            filtering,
            lifetime,
            addresses: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        }
    }

    /// A packet leaves.
    pub fn outbound(&mut self, now: Instant, source: SocketAddr, to: SocketAddr) {
        self.addresses
            .insert((source, to.ip()), now + self.lifetime);
        self.endpoints.insert((source, to), now + self.lifetime);
    }

    /// True if a packet may enter.
    pub fn inbound(&self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        let alive = |until: Option<&Instant>| until.is_some_and(|until| *until > now);
        match self.filtering {
            Filtering::Eif => true,
            Filtering::Adf => alive(self.addresses.get(&(to, from.ip()))),
            Filtering::Apdf => alive(self.endpoints.get(&(to, from))),
        }
    }

    /// The router forgets everything.
    pub fn flush(&mut self) {
        self.addresses.clear();
        self.endpoints.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: &str = "192.168.1.2:5000";

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_boot(Duration::from_secs(seconds))
    }

    fn nat(config: NatConfig) -> Nat {
        Nat::new(config, addr("203.0.113.1:0").ip(), Rng::new(7))
    }

    fn inbound(nat: &mut Nat, now: Instant, from: &str, port: u16) -> Option<SocketAddr> {
        let external = SocketAddr::new(nat.externals()[0], port);
        nat.inbound(now, addr(from), external)
    }

    fn send(nat: &mut Nat, to: &str) -> u16 {
        nat.outbound(at(0), addr(INSIDE), addr(to)).unwrap().port()
    }

    #[test]
    fn mappings_depend_on_as_much_of_the_destination_as_their_kind_says() {
        for (mapping, by_port, by_address) in [
            (Mapping::Eim, false, false),
            (Mapping::Adm, false, true),
            (Mapping::Apdm, true, true),
        ] {
            for allocation in [
                Allocation::Preserving,
                Allocation::Offset(1_000),
                Allocation::Multiple(3),
                Allocation::Sequential(-2),
                Allocation::Random,
            ] {
                let mut nat = nat(NatConfig::new(mapping, Filtering::Apdf).allocation(allocation));
                let first = send(&mut nat, "8.8.8.8:1");
                assert_eq!(send(&mut nat, "8.8.8.8:1"), first);
                assert_eq!(
                    send(&mut nat, "8.8.8.8:2") != first,
                    by_port,
                    "{mapping:?} {allocation:?}"
                );
                assert_eq!(
                    send(&mut nat, "8.8.4.4:1") != first,
                    by_address,
                    "{mapping:?} {allocation:?}"
                );
            }
        }
    }

    #[test]
    fn filters_let_in_as_much_as_their_kind_says() {
        for (filtering, other_port, stranger) in [
            (Filtering::Eif, true, true),
            (Filtering::Adf, true, false),
            (Filtering::Apdf, false, false),
        ] {
            let mut nat = nat(NatConfig::new(Mapping::Eim, filtering));
            let port = send(&mut nat, "8.8.8.8:1");
            assert_eq!(
                inbound(&mut nat, at(0), "8.8.8.8:1", port),
                Some(addr(INSIDE))
            );
            assert_eq!(
                inbound(&mut nat, at(0), "8.8.8.8:2", port).is_some(),
                other_port
            );
            assert_eq!(
                inbound(&mut nat, at(0), "9.9.9.9:1", port).is_some(),
                stranger
            );
            assert_eq!(inbound(&mut nat, at(0), "8.8.8.8:1", port ^ 1), None);
        }
    }

    #[test]
    fn ports_are_allocated_as_configured_and_a_collision_is_moved() {
        let allocate = |allocation, count: usize| -> Vec<u16> {
            let mut nat =
                nat(NatConfig::new(Mapping::Apdm, Filtering::Apdf).allocation(allocation));
            (1..=count)
                .map(|last| send(&mut nat, &format!("8.8.8.8:{last}")))
                .collect()
        };
        let preserved = allocate(Allocation::Preserving, 2);
        assert_eq!(preserved[0], 5_000);
        assert_ne!(preserved[1], 5_000);
        assert_eq!(allocate(Allocation::Offset(1_000), 1), [6_000]);
        assert_eq!(allocate(Allocation::Multiple(3), 1), [1_024 + 15_000]);
        let sequential = allocate(Allocation::Sequential(2), 4);
        assert!(
            sequential.windows(2).all(|pair| pair[1] == pair[0] + 2),
            "{sequential:?}"
        );
        let random = allocate(Allocation::Random, 3);
        assert!(random[0].abs_diff(random[1]) > 5 && random[1].abs_diff(random[2]) > 5);
    }

    #[test]
    fn a_pool_gives_a_host_one_address_or_any_or_one_for_each_destination() {
        let addresses = |pool| {
            let config = NatConfig::home().pool(pool);
            let mut nat = nat(config);
            let mut seen = std::collections::BTreeSet::new();
            for port in 5_000..5_032 {
                let source = SocketAddr::new(addr(INSIDE).ip(), port);
                let [one, other] =
                    ["8.8.8.8:1", "8.8.8.9:1"].map(|to| nat.outbound(at(0), source, addr(to)));
                let fixed = one == other;
                assert_eq!(fixed, !matches!(pool, Pool::ByDestination(_)));
                seen.insert(one.unwrap().ip());
                assert_eq!(
                    nat.inbound(at(0), addr("8.8.8.8:1"), one.unwrap()),
                    Some(source)
                );
            }
            seen.len()
        };
        assert_eq!(addresses(Pool::One), 1);
        assert_eq!(addresses(Pool::Paired(2)), 1);
        assert_eq!(addresses(Pool::ByDestination(2)), 1);
        assert_eq!(addresses(Pool::Arbitrary(2)), 2);
    }

    #[test]
    fn a_mapping_expires_unless_it_is_refreshed_from_inside() {
        let mut nat = nat(NatConfig::home().lifetime(Duration::from_secs(30)));
        let port = send(&mut nat, "8.8.8.8:1");
        assert!(inbound(&mut nat, at(29), "8.8.8.8:1", port).is_some());
        assert!(
            inbound(&mut nat, at(30), "8.8.8.8:1", port).is_none(),
            "not refreshed from outside"
        );
        nat.outbound(at(40), addr(INSIDE), addr("8.8.8.8:1"));
        nat.outbound(at(60), addr(INSIDE), addr("8.8.8.8:1"));
        assert!(inbound(&mut nat, at(89), "8.8.8.8:1", port).is_some());
        assert_eq!(nat.mappings(at(89)), 1);
        assert_eq!(nat.mappings(at(90)), 0);
    }

    #[test]
    fn an_expired_port_that_another_host_got_is_not_shared_with_it() {
        for mapping in [Mapping::Eim, Mapping::Adm, Mapping::Apdm] {
            let config = NatConfig::new(mapping, Filtering::Eif).lifetime(Duration::from_secs(30));
            let mut nat = nat(config);
            let (to, other) = (addr("8.8.8.8:1"), addr("192.168.1.3:5000"));
            assert_eq!(send(&mut nat, "8.8.8.8:1"), 5_000);
            assert_eq!(nat.outbound(at(40), other, to).unwrap().port(), 5_000);
            let moved = nat.outbound(at(50), addr(INSIDE), to).unwrap().port();
            assert_ne!(moved, 5_000);
            assert_eq!(inbound(&mut nat, at(50), "8.8.8.8:1", 5_000), Some(other));
            assert_eq!(
                inbound(&mut nat, at(50), "8.8.8.8:1", moved),
                Some(addr(INSIDE))
            );
        }
    }

    #[test]
    fn hairpinning_shows_the_external_source_or_does_not_work() {
        let mut with = nat(NatConfig::new(Mapping::Eim, Filtering::Eif).hairpin());
        let port = send(&mut with, "8.8.8.8:1");
        let to = SocketAddr::new(with.externals()[0], port);
        let (source, destination) = with.hairpin(at(0), addr("192.168.1.3:6000"), to).unwrap();
        assert_eq!(
            (source, destination),
            (addr("203.0.113.1:6000"), addr(INSIDE))
        );
        let mut without = nat(NatConfig::home());
        assert_eq!(without.hairpin(at(0), addr("192.168.1.3:6000"), to), None);
    }

    #[test]
    fn an_accepting_input_chain_loses_its_mapping_to_an_early_packet_and_a_closed_one_does_not() {
        for (input, moves) in [(Input::Accept, true), (Input::Drop, false)] {
            let mut nat = nat(NatConfig {
                input,
                ..NatConfig::home()
            });
            let port = send(&mut nat, "8.8.8.8:1");
            assert_eq!(inbound(&mut nat, at(0), "9.9.9.9:7", port), None);
            assert_eq!(send(&mut nat, "9.9.9.9:7") != port, moves);
            assert_eq!(send(&mut nat, "9.9.9.9:8"), port, "another tuple is free");
            assert_eq!(inbound(&mut nat, at(1), "9.9.9.9:7", port).is_none(), moves);
        }
    }

    #[test]
    fn a_packet_that_left_first_keeps_its_tuple_behind_an_accepting_input_chain() {
        let mut nat = nat(NatConfig::home().accepting_input());
        let port = send(&mut nat, "9.9.9.9:7");
        assert!(inbound(&mut nat, at(0), "9.9.9.9:7", port).is_some());
        assert_eq!(send(&mut nat, "9.9.9.9:7"), port);
    }

    #[test]
    fn a_firewall_lets_in_answers_only() {
        let mut firewall = Firewall::new(Filtering::Apdf, Duration::from_secs(30));
        let (inside, outside) = (addr("[2001:db8::1]:1"), addr("[2001:db8:1::1]:1"));
        assert!(!firewall.inbound(at(0), outside, inside));
        firewall.outbound(at(0), inside, outside);
        assert!(firewall.inbound(at(29), outside, inside));
        assert!(!firewall.inbound(at(30), outside, inside));
    }
}
