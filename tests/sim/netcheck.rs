//! What a host finds out about its NAT.

use mesh_core::engine::{Event, NetcheckReport};
use mesh_core::nat;
use mesh_tests::sim::{
    Allocation, Filtering, HostId, LinkConfig, Mapping, NatConfig, Pool, RouterConfig, Sim, Site,
    for_seeds,
};

use crate::common::{home, ms, secs};

fn report(seed: u64, site: Site, relays: usize) -> NetcheckReport {
    let mut sim = Sim::new(seed);
    let relays: Vec<_> = (0..relays)
        .map(|_| sim.add_relay(LinkConfig::access()))
        .collect();
    let host = sim.host_at("a", site).0;
    sim.network(&[host], &relays);
    sim.run_for(secs(3));
    netcheck(&mut sim, host)
}

fn netcheck(sim: &mut Sim, host: HostId) -> NetcheckReport {
    sim.netcheck(host, 1);
    sim.run_for(secs(2));
    let mut reports = sim
        .host(host)
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Netcheck { token: 1, report } => Some(report.clone()),
            _ => None,
        });
    reports.next().expect("netcheck is answered")
}

fn truth(mapping: Mapping) -> nat::Mapping {
    match mapping {
        Mapping::Eim => nat::Mapping::EndpointIndependent,
        Mapping::Adm => nat::Mapping::AddressDependent,
        Mapping::Apdm => nat::Mapping::AddressAndPortDependent,
    }
}

fn filter(filtering: Filtering) -> nat::Filtering {
    match filtering {
        Filtering::Eif => nat::Filtering::EndpointIndependent,
        Filtering::Adf => nat::Filtering::AddressDependent,
        Filtering::Apdf => nat::Filtering::AddressAndPortDependent,
    }
}

#[test]
fn two_relays_tell_every_kind_of_mapping_and_of_filter() {
    for_seeds(0..3, |seed| {
        for mapping in [Mapping::Eim, Mapping::Adm, Mapping::Apdm] {
            for filtering in [Filtering::Eif, Filtering::Adf, Filtering::Apdf] {
                let report = report(seed, Site::nat(NatConfig::new(mapping, filtering)), 2);
                assert!(report.udp);
                assert_eq!(
                    report.profile.mapping,
                    truth(mapping),
                    "{mapping:?}/{filtering:?}"
                );
                assert_eq!(
                    report.profile.filtering,
                    filter(filtering),
                    "{mapping:?}/{filtering:?}"
                );
            }
        }
    });
}

#[test]
fn one_relay_tells_port_dependent_mappings_and_claims_nothing_else() {
    for_seeds(0..3, |seed| {
        for (mapping, expected) in [
            (Mapping::Eim, nat::Mapping::Unknown),
            (Mapping::Adm, nat::Mapping::Unknown),
            (Mapping::Apdm, nat::Mapping::AddressAndPortDependent),
        ] {
            let report = report(seed, Site::nat(NatConfig::new(mapping, Filtering::Apdf)), 1);
            assert_eq!(report.profile.mapping, expected, "{mapping:?}");
        }
    });
}

#[test]
fn a_host_sees_the_address_of_its_router_and_the_distance_of_its_relays() {
    let report = report(1, home(), 2);
    assert_eq!(report.ipv4.map(|address| address.port()), Some(41_820));
    assert_eq!(report.relays.len(), 2);
    for relay in report.relays {
        // Two access lines of 10 ms each way, and the LAN.
        let rtt = relay.rtt.map(|rtt| rtt.as_millis());
        assert_eq!(rtt, Some(40));
    }
}

#[test]
fn a_lossy_line_is_not_taken_for_a_filter_or_a_changing_mapping() {
    for_seeds(0..40, |seed| {
        let site =
            Site::nat(NatConfig::new(Mapping::Eim, Filtering::Eif)).access(LinkConfig::bad());
        let report = report(seed, site, 2);
        assert_ne!(report.profile.mapping, nat::Mapping::AddressDependent);
        assert_ne!(
            report.profile.mapping,
            nat::Mapping::AddressAndPortDependent
        );
        assert!(matches!(
            report.profile.filtering,
            nat::Filtering::EndpointIndependent
                | nat::Filtering::NotPortDependent
                | nat::Filtering::Unknown
        ));
    });
}

#[test]
fn several_external_addresses_are_told_from_one_and_shown() {
    for_seeds(0..10, |seed| {
        for (pool, relays, expected) in [
            (Pool::One, 1, nat::Pooling::Paired),
            (Pool::Paired(3), 2, nat::Pooling::Paired),
            (Pool::Arbitrary(3), 1, nat::Pooling::Arbitrary),
            (Pool::ByDestination(2), 2, nat::Pooling::Arbitrary),
        ] {
            let found = report(seed, Site::nat(NatConfig::home().pool(pool)), relays);
            assert_eq!(found.profile.pooling, expected, "{pool:?}");
            let several = expected == nat::Pooling::Arbitrary;
            assert_eq!(
                found.addresses.len() > 1,
                several,
                "{pool:?}: {:?}",
                found.addresses
            );
            assert!(
                found
                    .ipv4
                    .is_some_and(|own| found.addresses.contains(&own.ip()))
            );
            let by_destination = matches!(pool, Pool::ByDestination(_));
            let expected = match (by_destination, relays) {
                (true, _) => nat::Mapping::AddressDependent,
                (false, 1) => nat::Mapping::Unknown,
                (false, _) => nat::Mapping::EndpointIndependent,
            };
            assert_eq!(found.profile.mapping, expected, "{pool:?}");
        }
        let public = report(seed, Site::public(), 2);
        assert_eq!(public.profile.pooling, nat::Pooling::Unknown);
    });
}

#[test]
fn the_filter_of_ipv6_is_told_and_that_nothing_is_translated() {
    for_seeds(0..5, |seed| {
        for filtering in [Filtering::Eif, Filtering::Adf, Filtering::Apdf] {
            let mut sim = Sim::new(seed);
            let relays = [
                sim.add_relay(LinkConfig::access()),
                sim.add_relay(LinkConfig::access()),
            ];
            let firewall = RouterConfig::firewall(filtering);
            let (host, router) = sim.host_at("a", Site::behind(firewall));
            sim.add_ipv6(host, router.expect("it has one"));
            sim.configure(&[host], &relays);
            // Reached over IPv6 alone.
            let urls = relays.map(|relay| sim.relay_url_v6(relay));
            sim.host_mut(host).membership.relays = urls.to_vec();
            sim.start(host);
            sim.run_for(secs(3));
            let found = netcheck(&mut sim, host);
            assert!(found.ipv4.is_none() && found.ipv6.is_some());
            assert_eq!(found.ipv6_translated, Some(false));
            assert_eq!(found.ipv6_filtering, filter(filtering));
            assert_eq!(sim.host(host).spares(), 0);
        }
    });
}

#[test]
fn port_allocation_and_its_step_are_told_behind_every_kind_of_mapping() {
    for_seeds(0..3, |seed| {
        for mapping in [Mapping::Eim, Mapping::Adm, Mapping::Apdm] {
            for allocation in [
                Allocation::Preserving,
                Allocation::Sequential(1),
                Allocation::Sequential(-3),
                Allocation::Random,
            ] {
                let nat = NatConfig::new(mapping, Filtering::Apdf).allocation(allocation);
                let found = report(seed, Site::nat(nat), 2).profile.allocation;
                let right = match (allocation, found) {
                    (Allocation::Preserving, nat::Allocation::Preserving) => true,
                    (Allocation::Sequential(step), nat::Allocation::Sequential { delta }) => {
                        step == delta
                    }
                    (Allocation::Random, nat::Allocation::Random { low, high }) => low < high,
                    _ => false,
                };
                assert!(right, "{mapping:?}/{allocation:?}: {found:?}");
            }
        }
    });
}

#[test]
fn hairpinning_is_told_and_a_host_without_nat_has_none() {
    for_seeds(0..3, |seed| {
        let with = Site::nat(NatConfig::home().hairpin());
        assert_eq!(report(seed, with, 1).profile.hairpin, Some(true));
        assert_eq!(report(seed, home(), 1).profile.hairpin, Some(false));
        let public = report(seed, Site::public(), 1).profile;
        assert_eq!(public.hairpin, None);
        assert_eq!(public.mapping, nat::Mapping::EndpointIndependent);
        assert_eq!(public.allocation, nat::Allocation::Preserving);
    });
}

#[test]
fn the_nat_is_known_within_a_second_on_lines_of_30_ms_at_both_ends_and_without_anybody_asking() {
    for_seeds(0..5, |seed| {
        for nat in [
            NatConfig::home(),
            NatConfig::new(Mapping::Apdm, Filtering::Eif).allocation(Allocation::Random),
        ] {
            let mut sim = Sim::new(seed);
            let line = LinkConfig::delay(ms(30));
            let relays = [sim.add_relay(line), sim.add_relay(line)];
            let host = sim.host_at("a", Site::nat(nat).access(line)).0;
            sim.network(&[host], &relays);
            sim.run_for(secs(3));
            assert_eq!(sim.host(host).spares(), 0);
            let asked = sim.now();
            sim.netcheck(host, 1);
            let events = |sim: &Sim| sim.host(host).events.clone();
            let is_report = |event: &Event| matches!(event, Event::Netcheck { token: 1, .. });
            sim.run_until("a report", secs(1), |sim| {
                events(sim).iter().any(|(_, event)| is_report(event))
            });
            assert!(
                sim.now().since(asked) < secs(1),
                "{:?}",
                sim.now().since(asked)
            );
        }
    });
}
