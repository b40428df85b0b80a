//! Random networks: whatever they look like, data flows in the end unless nothing could carry it.

use mesh_core::engine::Strategy;
use mesh_core::limits;
use mesh_tests::sim::{
    Allocation, Filtering, FlowConfig, HostId, Input, LinkConfig, Mapping, NatConfig, Rng,
    RouterConfig, Sim, Site, for_seeds,
};

use crate::common::{ms, secs};
use crate::memory;

fn nat(rng: &mut Rng) -> NatConfig {
    let mapping = *rng.pick(&[Mapping::Eim, Mapping::Eim, Mapping::Adm, Mapping::Apdm]);
    let filtering = *rng.pick(&[
        Filtering::Eif,
        Filtering::Adf,
        Filtering::Apdf,
        Filtering::Apdf,
    ]);
    let step = *rng.pick(&[-2, -1, 1, 1, 2, 4]);
    NatConfig {
        allocation: *rng.pick(&[
            Allocation::Preserving,
            Allocation::Offset(777),
            Allocation::Multiple(3),
            Allocation::Sequential(step),
            Allocation::Random,
        ]),
        lifetime: *rng.pick(&[secs(20), secs(30), secs(60), secs(120), secs(300)]),
        inbound_refresh: rng.chance(0.5),
        hairpin: rng.chance(0.3),
        input: *rng.pick(&[Input::Drop, Input::Drop, Input::Accept]),
        ..NatConfig::new(mapping, filtering)
    }
}

fn router(rng: &mut Rng) -> RouterConfig {
    match rng.below(8) {
        0 => RouterConfig::firewall(Filtering::Apdf),
        1 => RouterConfig::open(),
        _ => RouterConfig::nat(nat(rng)),
    }
}

fn access(rng: &mut Rng) -> LinkConfig {
    LinkConfig {
        jitter: rng.duration(ms(20)),
        loss: *rng.pick(&[0.0, 0.0, 0.005, 0.02, 0.08]),
        reorder: *rng.pick(&[0.0, 0.0, 0.01, 0.05]),
        reorder_by: rng.duration(ms(50)),
        duplicate: *rng.pick(&[0.0, 0.01]),
        rate: *rng.pick(&[None, None, Some(20_000_000), Some(2_000_000)]),
        ..LinkConfig::delay(ms(1) + rng.duration(ms(80)))
    }
}

fn site(rng: &mut Rng) -> Site {
    let site = Site::public().access(access(rng));
    match rng.below(6) {
        0 => site,
        1 => Site {
            router: Some(RouterConfig::nat(nat(rng))),
            outer: Some(RouterConfig::nat(nat(rng))),
            ..site
        },
        _ => Site {
            router: Some(router(rng)),
            ..site
        },
    }
}

/// Something that may go wrong under way.
fn mishap(sim: &mut Sim, rng: &mut Rng, hosts: &[HostId], world: &World) {
    match rng.below(6) {
        0 => {
            let host = *rng.pick(hosts);
            sim.start(host);
        }
        1 => {
            if let Some(router) = world.routers.first() {
                sim.router_mut(*router).flush();
            }
        }
        2 => {
            let relay = *rng.pick(&world.relays);
            sim.stop_relay(relay);
            sim.start_relay(relay);
        }
        3 => {
            let host = *rng.pick(hosts);
            let line = access(rng);
            sim.move_to_public(host, line);
        }
        _ => {}
    }
}

struct World {
    relays: Vec<mesh_tests::sim::RelayId>,
    routers: Vec<mesh_tests::sim::RouterId>,
}

/// Three hosts somewhere, with one relay or two.
fn world(sim: &mut Sim, rng: &mut Rng) -> (World, [HostId; 3]) {
    let count = 1 + rng.below(2);
    let relays: Vec<_> = (0..count).map(|_| sim.add_relay(access(rng))).collect();
    let mut world = World {
        relays,
        routers: Vec::new(),
    };
    let hosts = ["a", "b", "c"].map(|name| {
        let (host, router) = match world.routers.first() {
            // Sometimes next to the host before.
            Some(router) if rng.chance(0.2) => (sim.host_behind(*router, name), None),
            _ => sim.host_at(name, site(rng)),
        };
        world.routers.extend(router);
        host
    });
    sim.network(&hosts, &world.relays);
    (world, hosts)
}

/// What holds at any moment, whatever the network does.
fn check_budgets(sim: &Sim, hosts: &[HostId]) {
    for host in hosts {
        let spares = sim.host(*host).spares();
        assert!(spares <= limits::SPARE_SOCKETS, "{spares} spare sockets");
        let Some(engine) = sim.host(*host).engine() else {
            continue;
        };
        let done = engine.traversal();
        let (probes, attempts) = (done.probes, done.attempts);
        assert!(probes <= attempts * limits::SPRAY_PROBES as u64, "{done:?}");
        for peer in hosts.iter().filter(|peer| *peer != host) {
            let tried = sim.explain(*host, *peer).map(|one| one.attempts);
            for one in tried.into_iter().flatten() {
                assert!(one.probes as usize <= limits::SPRAY_PROBES, "{one:?}");
                let settled = limits::SPRAY_TIME + secs(1);
                let hard = one.strategy != Strategy::Plain;
                assert!(!hard || one.duration <= settled, "{one:?}");
            }
        }
    }
}

#[test]
fn data_flows_in_every_random_network_and_again_after_a_mishap() {
    for_seeds(0..200, |seed| {
        let mut sim = Sim::new(seed);
        let mut rng = Rng::new(seed ^ 0x5eed);
        let (world, hosts) = world(&mut sim, &mut rng);
        sim.run_for(rng.duration(secs(3)));
        let flows = [sim.echo(hosts[0], hosts[1]), sim.echo(hosts[2], hosts[0])];
        for round in 0..3 {
            let since = sim.now();
            sim.run_until("data flows", secs(40), |sim| {
                flows
                    .iter()
                    .all(|flow| sim.stream(*flow).works_since(since))
            });
            sim.run_for(secs(5) + rng.duration(secs(20)));
            check_budgets(&sim, &hosts);
            if round < 2 {
                mishap(&mut sim, &mut rng, &hosts, &world);
            }
        }
    });
}

/// What all engines and relays of a random network hold after so many mishaps, one a minute.
fn weight(seed: u64, mishaps: usize) -> isize {
    let mut sim = Sim::new(seed);
    let mut rng = Rng::new(seed ^ 0x96ed);
    let (world, hosts) = world(&mut sim, &mut rng);
    let flows = [(0, 1), (2, 0)].map(|(from, to)| {
        sim.flow(FlowConfig {
            from: hosts[from],
            to: hosts[to],
            interval: secs(1),
            size: 100,
            echo: true,
        })
    });
    for _ in 0..mishaps {
        mishap(&mut sim, &mut rng, &hosts, &world);
        sim.run_for(secs(60));
        check_budgets(&sim, &hosts);
    }
    // What was under way comes to rest.
    flows.iter().for_each(|flow| sim.stop_flow(*flow));
    sim.run_for(secs(600));
    let before = memory::live();
    hosts.iter().for_each(|host| sim.stop(*host));
    world.relays.iter().for_each(|relay| sim.stop_relay(*relay));
    before - memory::live()
}

/// Bytes by which three engines and two relays may grow: tables double when they are full.
const GROWTH: isize = 48 * 1024;

#[test]
fn no_engine_and_no_relay_grows_however_many_mishaps_there_are() {
    for_seeds(0..12, |seed| {
        let (few, many) = (weight(seed, 2), weight(seed, 120));
        assert!(few > 0 && many <= few + GROWTH, "{few} bytes, then {many}");
    });
}
