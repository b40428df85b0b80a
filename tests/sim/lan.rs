//! Peers on one link, without any relay and without configured addresses.

use std::net::SocketAddr;

use mesh_core::wire::mdns::{self, Message};
use mesh_tests::sim::{
    Families, HostId, LinkConfig, NatConfig, PathKind, RouterConfig, RouterId, Sim, for_seeds,
};

use crate::common::{ms, secs};

/// Hosts behind one router, members of one network without relays; not started.
fn neighbours<const N: usize>(sim: &mut Sim, names: [&str; N]) -> (RouterId, [HostId; N]) {
    let router = sim.router(RouterConfig::nat(NatConfig::home()), LinkConfig::access());
    let hosts = names.map(|name| sim.host_behind(router, name));
    sim.configure(&hosts, &[]);
    sim.lan_discovery(&hosts, true);
    (router, hosts)
}

/// How many datagrams of the mesh socket `host` has sent.
fn sent(sim: &Sim, host: HostId) -> u64 {
    sim.host(host).counters.datagrams
}

#[test]
fn hosts_on_one_lan_find_each_other_without_anybody_else() {
    for_seeds(0..20, |seed| {
        let mut sim = Sim::new(seed);
        let (_, [a, b]) = neighbours(&mut sim, ["a", "b"]);
        sim.start(a);
        sim.start(b);
        sim.run_for(secs(5));
        let flow = sim.echo(a, b);
        let took = sim.run_until("a direct path", secs(2), |sim| {
            sim.is_direct(a, b) && sim.stream(flow).works()
        });
        assert!(took < ms(300), "{took:?}");
        assert_eq!(sim.remote(a, b), Some(sim.socket_of(b)));
        assert_eq!(sim.remote(b, a), Some(sim.socket_of(a)));
    });
}

#[test]
fn without_discovery_they_do_not() {
    let mut sim = Sim::new(1);
    let router = sim.router(RouterConfig::nat(NatConfig::home()), LinkConfig::access());
    let (a, b) = (sim.host_behind(router, "a"), sim.host_behind(router, "b"));
    sim.configure(&[a, b], &[]);
    sim.start(a);
    sim.start(b);
    sim.echo(a, b);
    sim.run_for(secs(30));
    assert_eq!(sim.path(a, b), None);
    assert_eq!(sent(&sim, a), 0);
}

#[test]
fn hosts_with_ipv6_alone_find_each_other() {
    for_seeds(0..5, |seed| {
        let mut sim = Sim::new(seed);
        let (router, [a, b]) = neighbours(&mut sim, ["a", "b"]);
        for host in [a, b] {
            sim.unplug(host, true);
        }
        for host in [a, b] {
            sim.plug(host, router, Families::V6, true);
            sim.start(host);
        }
        sim.run_for(secs(5));
        let flow = sim.echo(a, b);
        sim.run_until("a direct path", secs(2), |sim| {
            sim.is_direct(a, b) && sim.stream(flow).works()
        });
    });
}

#[test]
fn a_host_that_comes_late_is_found_at_once() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let (_, [a, b]) = neighbours(&mut sim, ["a", "b"]);
        sim.start(a);
        sim.run_for(secs(5));
        sim.echo(a, b);
        sim.run_for(secs(200));
        assert_eq!(sim.path(a, b), None);
        sim.start(b);
        let took = sim.run_until("a direct path", secs(5), |sim| sim.is_direct(a, b));
        assert!(took < ms(300), "{took:?}");
    });
}

#[test]
fn hosts_that_both_move_to_another_network_find_each_other_there() {
    for_seeds(0..10, |seed| {
        let mut sim = Sim::new(seed);
        let (_, [a, b]) = neighbours(&mut sim, ["a", "b"]);
        let other = sim.router(RouterConfig::nat(NatConfig::home()), LinkConfig::access());
        // So that the addresses there are others.
        for printer in ["one", "two"] {
            sim.host_behind(other, printer);
        }
        sim.start(a);
        sim.start(b);
        sim.echo(a, b);
        sim.run_until("a direct path", secs(5), |sim| sim.is_direct(a, b));
        sim.run_for(secs(1));
        for host in [a, b] {
            sim.unplug(host, false);
        }
        sim.run_for(secs(3));
        for host in [a, b] {
            sim.plug(host, other, Families::V4, false);
        }
        sim.run_until("the path in the other network", secs(5), |sim| {
            sim.remote(a, b) == Some(sim.socket_of(b)) && sim.remote(b, a) == Some(sim.socket_of(a))
        });
    });
}

#[test]
fn an_idle_host_says_nothing_after_it_has_come() {
    let mut sim = Sim::new(1);
    let (_, [a, b]) = neighbours(&mut sim, ["a", "b"]);
    sim.start(a);
    sim.start(b);
    sim.run_for(secs(5));
    for host in [a, b] {
        assert_eq!(sim.host(host).multicast.said.len(), 2, "twice, no more");
    }
    sim.run_for(secs(7_200));
    for host in [a, b] {
        assert_eq!(sim.host(host).multicast.said.len(), 2);
        let timeout = sim
            .host(host)
            .engine()
            .and_then(|engine| engine.poll_timeout());
        assert_eq!(timeout, None, "it does not even wake");
    }
}

#[test]
fn a_peer_that_is_not_there_is_asked_for_less_and_less() {
    let mut sim = Sim::new(1);
    let (_, [a, b]) = neighbours(&mut sim, ["a", "b"]);
    sim.start(a);
    sim.run_for(secs(5));
    let before = sim.host(a).multicast.said.len();
    let flow = sim.echo(a, b);
    sim.run_for(secs(3_600));
    let asked = sim.host(a).multicast.said.len() - before;
    // 1 s, 2 s, 4 s … 256 s, and then each 300 s.
    assert!((15..=25).contains(&asked), "{asked} questions in an hour");
    sim.stop_flow(flow);
    sim.run_for(secs(600));
    let last = sim.host(a).multicast.said.len();
    sim.run_for(secs(3_600));
    assert_eq!(sim.host(a).multicast.said.len(), last, "nobody is wanted");
}

#[test]
fn strangers_hear_no_more_than_that_somebody_is_there() {
    let mut sim = Sim::new(7);
    let (router, [a, b, stranger]) = neighbours(&mut sim, ["a", "b", "stranger"]);
    // Neither knows the other.
    let id = sim.host(stranger).id();
    sim.host_mut(a)
        .membership
        .peers
        .retain(|peer| peer.id != id);
    sim.host_mut(stranger).membership.peers.clear();
    sim.start(a);
    sim.start(stranger);
    sim.run_for(secs(5));
    sim.echo(a, b);
    for _ in 0..30 {
        sim.say_behind(router, neighbour(7), &mdns::query());
        sim.run_for(secs(1));
    }
    let said = &sim.host(stranger).multicast.said;
    assert!(said.len() > 20, "it was asked {} times", said.len());
    assert_eq!(sent(&sim, a), 0, "nobody is greeted who is not known");
    // What is said is the same for all who do not know the key, and has none of the names.
    for packet in said {
        let Ok(Message::Answer(instances)) = mdns::parse(&packet.payload) else {
            continue;
        };
        assert_eq!(instances.len(), 1);
        let text = String::from_utf8_lossy(&packet.payload).into_owned();
        assert!(!text.contains("home") && !text.contains("stranger"));
        assert!(
            !packet
                .payload
                .windows(4)
                .any(|four| four == &id.as_bytes()[..4])
        );
    }
}

#[test]
fn an_announcement_that_is_repeated_from_elsewhere_leads_nobody_there() {
    let mut sim = Sim::new(3);
    let (router, [a, b]) = neighbours(&mut sim, ["a", "b"]);
    sim.start(b);
    sim.run_for(secs(5));
    let heard = sim.host(b).multicast.said.clone();
    sim.stop(b);
    sim.start(a);
    sim.run_for(secs(5));
    sim.echo(a, b);
    sim.run_for(secs(1));
    for last in 0..100 {
        for packet in &heard {
            sim.say_behind(router, neighbour(100 + last), &packet.payload);
        }
        sim.run_for(ms(50));
    }
    assert_eq!(sent(&sim, a), 0);
    // From where it came: a hint, for which a handful of handshakes is sent.
    for _ in 0..1_000 {
        sim.say_behind(router, heard[0].from, &heard[0].payload);
        sim.run_for(ms(10));
    }
    let sent = sent(&sim, a);
    assert!((1..=25).contains(&sent), "{sent} datagrams in ten seconds");
}

#[test]
fn a_flood_of_questions_has_one_answer_a_second() {
    let mut sim = Sim::new(3);
    let (router, [a]) = neighbours(&mut sim, ["a"]);
    sim.start(a);
    sim.run_for(secs(5));
    let before = sim.host(a).multicast.said.len();
    for _ in 0..10_000 {
        sim.say_behind(router, neighbour(7), &mdns::query());
        sim.run_for(ms(1));
    }
    let answers = sim.host(a).multicast.said.len() - before;
    assert!(
        (8..=11).contains(&answers),
        "{answers} answers in ten seconds"
    );
}

#[test]
fn with_a_relay_the_lan_path_is_the_same_as_without_discovery() {
    for_seeds(0..10, |seed| {
        let mut took = Vec::new();
        for discovery in [false, true] {
            let mut sim = Sim::new(seed);
            let (_, [a, b]) = neighbours(&mut sim, ["a", "b"]);
            let relay = sim.add_relay(LinkConfig::access());
            sim.lan_discovery(&[a, b], discovery);
            sim.network(&[a, b], &[relay]);
            sim.run_for(secs(5));
            let flow = sim.echo(a, b);
            let direct = sim.run_until("the path on the LAN", secs(10), |sim| {
                sim.remote(a, b) == Some(sim.socket_of(b))
                    && sim.remote(b, a) == Some(sim.socket_of(a))
            });
            sim.run_for(secs(20));
            assert!(sim.stream(flow).works());
            assert_eq!(sim.path(a, b), Some(PathKind::Direct));
            took.push(direct);
        }
        assert!(took[1] <= took[0] + ms(50), "{took:?}");
    });
}

fn neighbour(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 168, 1, last], mdns::PORT))
}
