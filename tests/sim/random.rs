//! Random networks: whatever they look like, data flows in the end unless nothing could carry it.

use mesh_tests::sim::{
    Allocation, Filtering, HostId, Input, LinkConfig, Mapping, NatConfig, Rng, RouterConfig, Sim,
    Site, for_seeds,
};

use crate::common::{ms, secs};

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

#[test]
fn data_flows_in_every_random_network_and_again_after_a_mishap() {
    for_seeds(0..200, |seed| {
        let mut sim = Sim::new(seed);
        let mut rng = Rng::new(seed ^ 0x5eed);
        let count = 1 + rng.below(2);
        let relays: Vec<_> = (0..count)
            .map(|_| sim.add_relay(access(&mut rng)))
            .collect();
        let mut world = World {
            relays,
            routers: Vec::new(),
        };
        let mut hosts = Vec::new();
        for name in ["a", "b", "c"] {
            let (host, router) = match world.routers.first() {
                // Sometimes next to the host before.
                Some(router) if rng.chance(0.2) => (sim.host_behind(*router, name), None),
                _ => sim.host_at(name, site(&mut rng)),
            };
            hosts.push(host);
            world.routers.extend(router);
        }
        sim.network(&hosts, &world.relays);
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
            if round < 2 {
                mishap(&mut sim, &mut rng, &hosts, &world);
            }
        }
    });
}
