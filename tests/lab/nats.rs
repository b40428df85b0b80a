//! The lab's own routers do what their names say: everything else relies on it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::lab::{
    Allocation, Behaviour, Dependence, Internet, Nat, TwoNats, WanInput, scenario,
};

/// A public host with two addresses and two ports each, and a host behind the NAT in question.
struct Bench {
    net: TwoNats,
    inner: UdpSocket,
    outer: Vec<UdpSocket>,
}

impl Bench {
    fn new(nat: Nat) -> Result<Self> {
        let net = TwoNats::new(nat, Nat::Masquerade)?;
        let second = Ipv4Addr::new(44, 128, 1, 3);
        net.relay.ip(&format!("addr add {second}/24 dev wan"))?;
        let inner = net.a.udp("0.0.0.0:40100".parse()?)?;
        let mut outer = Vec::new();
        for address in [net.relay_address, second] {
            for port in [7001, 7002] {
                let socket = net.relay.udp(SocketAddr::new(address.into(), port))?;
                outer.push(socket);
            }
        }
        Ok(Self { net, inner, outer })
    }

    /// Writes to one outer socket and gives the mapping that it sees.
    fn map(&self, outer: usize) -> Result<SocketAddr> {
        self.inner
            .send_to(b"hello", self.outer[outer].local_addr()?)?;
        Ok(self.outer[outer].recv_from(&mut [0; 16])?.1)
    }

    /// Does a packet from an outer socket to `mapping` arrive inside.
    fn passes(&self, outer: usize, mapping: SocketAddr) -> Result<bool> {
        self.outer[outer].send_to(b"in", mapping)?;
        // The way is a few microseconds long; 50 ms of silence is a no.
        self.inner
            .set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(self.inner.recv_from(&mut [0; 16]).is_ok())
    }
}

const ALL: [Dependence; 3] = [
    Dependence::EndpointIndependent,
    Dependence::Address,
    Dependence::AddressAndPort,
];

/// From the same outer endpoint, another port of its address, another address.
fn observed(same: [bool; 3]) -> Option<Dependence> {
    match same {
        [true, true, true] => Some(Dependence::EndpointIndependent),
        [true, true, false] => Some(Dependence::Address),
        [true, false, false] => Some(Dependence::AddressAndPort),
        _ => None,
    }
}

fn check(nat: Nat, mapping: Dependence, filtering: Dependence) -> Result<()> {
    let bench = Bench::new(nat)?;
    let first = bench.map(0)?;
    ensure!(
        first.ip() == bench.net.nat_a.wan,
        "{nat:?}: not translated: {first}"
    );
    let same = [
        first == bench.map(0)?,
        first == bench.map(1)?,
        first == bench.map(2)?,
    ];
    ensure!(observed(same) == Some(mapping), "{nat:?}: maps {same:?}");
    // Afresh: an inner packet opens the filter, and one let in makes a mapping of its own.
    let bench = Bench::new(nat)?;
    let first = bench.map(0)?;
    let filter = observed([
        bench.passes(0, first)?,
        bench.passes(1, first)?,
        bench.passes(2, first)?,
    ]);
    ensure!(filter == Some(filtering), "{nat:?}: filters {filter:?}");
    Ok(())
}

#[test]
fn linux_masquerade_maps_endpoint_independently_and_filters_by_port() {
    scenario(|_| {
        check(
            Nat::Masquerade,
            Dependence::EndpointIndependent,
            Dependence::AddressAndPort,
        )
    });
}

#[test]
fn linux_fully_random_masquerade_is_symmetric() {
    scenario(|_| {
        check(
            Nat::Symmetric,
            Dependence::AddressAndPort,
            Dependence::AddressAndPort,
        )
    });
}

#[test]
fn every_modelled_nat_maps_and_filters_as_named() {
    scenario(|_| {
        for mapping in ALL {
            for filtering in ALL {
                for allocation in [
                    Allocation::Preserving,
                    Allocation::Sequential,
                    Allocation::Random,
                ] {
                    let behaviour = Behaviour::new(mapping, filtering, allocation);
                    check(Nat::Modelled(behaviour), mapping, filtering)?;
                }
            }
        }
        Ok(())
    });
}

/// The NAT that is hardest to reach, with every port.
const fn symmetric(allocation: Allocation) -> Nat {
    use Dependence::AddressAndPort;
    Nat::Modelled(Behaviour::new(AddressAndPort, AddressAndPort, allocation).whole())
}

#[test]
fn a_sequential_nat_allocates_one_port_after_the_other() {
    scenario(|_| {
        let bench = Bench::new(symmetric(Allocation::Sequential))?;
        let ports = [
            bench.map(0)?.port(),
            bench.map(1)?.port(),
            bench.map(2)?.port(),
        ];
        ensure!(
            ports[1] == ports[0] + 1 && ports[2] == ports[1] + 1,
            "{ports:?}"
        );
        Ok(())
    });
}

#[test]
fn a_preserving_nat_keeps_the_first_port_of_a_socket_and_gives_the_next_mapping_another() {
    scenario(|_| {
        let nat = symmetric(Allocation::Preserving);
        check(nat, Dependence::AddressAndPort, Dependence::AddressAndPort)?;
        let bench = Bench::new(nat)?;
        let (first, second) = (bench.map(0)?.port(), bench.map(1)?.port());
        ensure!(first == 40_100 && second != 40_100, "{first}, {second}");
        Ok(())
    });
}

#[test]
fn fully_random_masquerade_gives_out_ports_from_the_whole_range() {
    scenario(|_| {
        let bench = Bench::new(Nat::Symmetric)?;
        let mut ports = Vec::new();
        for port in 30_000..30_064 {
            let inner = bench.net.a.udp(SocketAddr::from(([0, 0, 0, 0], port)))?;
            inner.send_to(b"hello", bench.outer[0].local_addr()?)?;
            ports.push(bench.outer[0].recv_from(&mut [0; 16])?.1.port());
        }
        // A quarter of the range at each end is missed by all of 64 once in 10^8 times.
        let (low, high) = (ports.iter().min(), ports.iter().max());
        ensure!(low < Some(&17_000) && high > Some(&49_000), "{ports:?}");
        let preserved = (30_000..).zip(&ports).filter(|(own, port)| own == *port);
        ensure!(preserved.count() < 3, "{ports:?}");
        Ok(())
    });
}

#[test]
fn a_hairpinning_nat_shows_the_external_source_inside_and_others_drop() {
    use {Allocation::Preserving, Dependence::EndpointIndependent};
    let open = Behaviour::new(EndpointIndependent, EndpointIndependent, Preserving);
    scenario(|_| {
        for (nat, turns) in [(open.hairpin(), true), (open, false)] {
            let mut bench = Bench::new(Nat::Modelled(nat))?;
            let (neighbour, _) = bench.net.nat_a.host("neighbour")?;
            let (target, wan) = (bench.map(0)?, bench.net.nat_a.wan);
            let other = neighbour.udp("0.0.0.0:40200".parse()?)?;
            other.send_to(b"round", target)?;
            bench
                .inner
                .set_read_timeout(Some(Duration::from_millis(50)))?;
            let seen = bench.inner.recv_from(&mut [0; 16]).ok();
            let expected = turns.then(|| SocketAddr::new(wan.into(), 40_200));
            let seen = seen.map(|(_, from)| from);
            ensure!(seen == expected, "{seen:?}, expected {expected:?}");
        }
        Ok(())
    });
}

#[test]
fn a_host_behind_two_nats_shows_the_outer_address_of_the_second() {
    scenario(|_| {
        let mut internet = Internet::new(false)?;
        let (public, address) = internet.host("public")?;
        let mut carrier = internet.carrier("carrier", Nat::Masquerade)?;
        let mut home = carrier.router("home", Nat::Masquerade, WanInput::Drop)?;
        let (inner, own) = home.host("inner")?;
        ensure!(home.wan == Ipv4Addr::new(100, 64, 2, 2), "{}", home.wan);
        ensure!(own == Ipv4Addr::new(10, 2, 2, 2), "{own}");
        let (inside, outside) = (
            inner.udp("0.0.0.0:7000".parse()?)?,
            public.udp("0.0.0.0:7000".parse()?)?,
        );
        inside.send_to(b"x", SocketAddr::new(address.into(), 7000))?;
        let (_, seen) = outside.recv_from(&mut [0; 16])?;
        ensure!(seen.ip() == carrier.wan, "{seen}");
        outside.send_to(b"x", seen)?;
        ensure!(inside.recv_from(&mut [0; 16]).is_ok());
        Ok(())
    });
}

#[test]
fn a_low_ttl_dies_between_the_two_nats() {
    scenario(|_| {
        let net = TwoNats::with_input(Nat::Masquerade, Nat::Masquerade, WanInput::Accept)?;
        let inner = net.a.udp("0.0.0.0:0".parse()?)?;
        let router = net.nat_b.ns.udp("0.0.0.0:7000".parse()?)?;
        router.set_read_timeout(Some(Duration::from_millis(100)))?;
        let target = SocketAddr::new(net.nat_b.wan.into(), 7000);
        inner.set_ttl(2)?;
        inner.send_to(b"opener", target)?;
        ensure!(
            router.recv_from(&mut [0; 16]).is_err(),
            "two hops end before the third router"
        );
        inner.set_ttl(3)?;
        inner.send_to(b"opener", target)?;
        ensure!(
            router.recv_from(&mut [0; 16]).is_ok(),
            "three hops reach it"
        );
        Ok(())
    });
}

#[test]
fn a_block_stops_udp_between_sites_until_it_is_lifted() {
    scenario(|_| {
        let mut net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        let (host, address) = net.internet.host("c")?;
        let (one, other) = (
            host.udp("0.0.0.0:7000".parse()?)?,
            net.relay.udp("0.0.0.0:7000".parse()?)?,
        );
        other.set_read_timeout(Some(Duration::from_millis(100)))?;
        let target = SocketAddr::new(net.relay_address.into(), 7000);
        net.internet.block_udp(address, net.relay_address)?;
        one.send_to(b"x", target)?;
        ensure!(other.recv_from(&mut [0; 16]).is_err());
        net.internet.unblock()?;
        one.send_to(b"x", target)?;
        ensure!(other.recv_from(&mut [0; 16]).is_ok());
        Ok(())
    });
}

#[test]
fn a_delayed_internet_takes_its_time_both_ways() {
    scenario(|_| {
        let mut net = TwoNats::new(Nat::Masquerade, Nat::Masquerade)?;
        net.internet.delay(Duration::from_millis(25))?;
        let inner = net.a.udp("0.0.0.0:0".parse()?)?;
        let outer = net.relay.udp("0.0.0.0:7000".parse()?)?;
        let started = Instant::now();
        inner.send_to(b"x", SocketAddr::new(net.relay_address.into(), 7000))?;
        let (_, mapping) = outer.recv_from(&mut [0; 16])?;
        outer.send_to(b"x", mapping)?;
        inner.recv_from(&mut [0; 16])?;
        let rtt = started.elapsed();
        ensure!(rtt >= Duration::from_millis(50), "{rtt:?}");
        ensure!(rtt < Duration::from_millis(90), "{rtt:?}");
        Ok(())
    });
}

#[test]
fn hosts_with_ipv6_reach_each_other_unless_a_router_filters() {
    scenario(|_| {
        let mut internet = Internet::new(true)?;
        let (public, _) = internet.host("public")?;
        let mut router = internet.router("router", Nat::Masquerade, WanInput::Drop)?;
        let (inner, _) = router.host("inner")?;
        let outer = public.udp("[::]:7000".parse()?)?;
        let inside = inner.udp("[::]:7000".parse()?)?;
        inside.set_read_timeout(Some(Duration::from_millis(100)))?;
        outer.send_to(b"x", "[2a00:a000:2:1::2]:7000")?;
        ensure!(
            inside.recv_from(&mut [0; 16]).is_err(),
            "unexpected, so filtered"
        );
        inside.send_to(b"x", "[2a00:a000:1::2]:7000")?;
        let (_, seen) = outer.recv_from(&mut [0; 16])?;
        ensure!(
            seen == "[2a00:a000:2:1::2]:7000".parse()?,
            "not translated: {seen}"
        );
        outer.send_to(b"x", seen)?;
        ensure!(inside.recv_from(&mut [0; 16]).is_ok());
        Ok(())
    });
}
