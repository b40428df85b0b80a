//! What is said when, and what is recognised by whom. Scenarios with several hosts belong to the simulator.

use super::*;

fn at(milliseconds: u64) -> Instant {
    Instant::from_boot(Duration::from_millis(1_000_000 + milliseconds))
}

fn link(interface: u32, net: &str) -> LanAddress {
    LanAddress {
        interface,
        net: net.parse().unwrap(),
    }
}

fn packet(interface: u32, from: &str) -> LanPacket {
    LanPacket {
        interface,
        from: from.parse().unwrap(),
        hop_limit: 255,
        payload: Vec::new(),
    }
}

fn on_two_links() -> (Lan, Random) {
    let mut lan = Lan::default();
    let links = vec![
        link(2, "192.168.1.2/24"),
        link(2, "2001:db8::2/64"),
        link(3, "10.0.0.2/8"),
    ];
    assert!(lan.set_links(links.clone()));
    assert!(!lan.set_links(links), "the same as before");
    (lan, Random::from_seed([7; 32]))
}

/// Runs until there is nothing to do, and says when what was due.
fn run(lan: &mut Lan, until: Instant) -> Vec<(u64, Due)> {
    let mut all = Vec::new();
    while let Some(next) = lan.deadline().filter(|next| *next <= until) {
        let due = lan.poll(next);
        all.push((next.since(at(0)).as_millis() as u64, due));
    }
    all
}

#[test]
fn a_host_that_comes_says_so_twice_and_then_rests() {
    let (mut lan, mut rng) = on_two_links();
    lan.network_changed(at(0), &mut rng);
    lan.announce(at(1), &mut rng);
    let said = run(&mut lan, at(100_000));
    assert_eq!(said.len(), 2);
    assert!((20..=120).contains(&said[0].0), "{said:?}");
    assert_eq!(said[1].0, said[0].0 + 1_000);
    for (_, due) in &said {
        assert_eq!(due.answers, BTreeSet::from([2, 3]));
        assert!(!due.query);
    }
    assert_eq!(lan.deadline(), None);
}

#[test]
fn questions_on_a_link_are_answered_there_after_a_while_and_once_a_second() {
    let (mut lan, mut rng) = on_two_links();
    lan.asked(at(0), 3, &mut rng);
    lan.asked(at(10), 3, &mut rng);
    let said = run(&mut lan, at(500));
    assert_eq!(said.len(), 1);
    assert!((20..=120).contains(&said[0].0), "{said:?}");
    assert_eq!(said[0].1.answers, BTreeSet::from([3]));
    lan.asked(at(500), 3, &mut rng);
    let again = run(&mut lan, at(5_000));
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].0, said[0].0 + 1_000);
}

#[test]
fn whoever_is_wanted_is_asked_for_at_growing_pauses() {
    let (mut lan, _) = on_two_links();
    lan.want(at(0), PeerIndex(1));
    lan.want(at(0), PeerIndex(1));
    let asked: Vec<u64> = run(&mut lan, at(900_000))
        .iter()
        .map(|(at, _)| at / 1_000)
        .collect();
    assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811]);
    // Somebody else is wanted: from the beginning, but no more than once a second.
    lan.want(at(900_000), PeerIndex(2));
    lan.want(at(900_001), PeerIndex(3));
    let asked: Vec<u64> = run(&mut lan, at(905_000))
        .iter()
        .map(|(at, _)| at / 1_000)
        .collect();
    assert_eq!(asked, [900, 901, 903]);
    lan.stop_asking();
    assert_eq!(lan.deadline(), None);
}

#[test]
fn only_neighbours_are_heard() {
    let (lan, _) = on_two_links();
    for good in [
        packet(2, "192.168.1.9:5353"),
        packet(2, "[2001:db8::9]:5353"),
        packet(2, "[fe80::9]:5353"),
        packet(3, "10.200.0.1:5353"),
    ] {
        assert!(lan.admits(&good), "{good:?}");
        let routed = LanPacket {
            hop_limit: 254,
            ..good
        };
        assert!(!lan.admits(&routed));
    }
    for bad in [
        packet(3, "192.168.1.9:5353"),
        packet(4, "192.168.1.9:5353"),
        packet(2, "192.168.2.9:5353"),
        packet(2, "8.8.8.8:5353"),
        packet(2, "192.168.1.9:53"),
    ] {
        assert!(!lan.admits(&bad), "{bad:?}");
    }
}

#[test]
fn hints_are_hosts_of_the_very_link() {
    let (lan, _) = on_two_links();
    for (interface, ip, good) in [
        (2, "192.168.1.9", true),
        (2, "192.168.1.255", false),
        (2, "192.168.1.0", false),
        (2, "10.0.0.9", false),
        (3, "10.0.0.9", true),
        (3, "10.255.255.255", false),
        (2, "2001:db8::9", true),
        (2, "2001:db8::", false),
        (2, "fe80::9", false),
    ] {
        assert_eq!(
            lan.is_neighbour(interface, ip.parse().unwrap()),
            good,
            "{ip}"
        );
    }
}

#[test]
fn a_tag_is_of_one_key_one_network_one_nonce_and_one_address() {
    let network = NetworkId::from_name("home");
    let address: SocketAddr = "192.168.1.2:41820".parse().unwrap();
    let good = tag(&[1; 32], &network, &[2; 8], address);
    assert_eq!(good, tag(&[1; 32], &network, &[2; 8], address));
    for other in [
        tag(&[9; 32], &network, &[2; 8], address),
        tag(&[1; 32], &NetworkId::from_name("work"), &[2; 8], address),
        tag(&[1; 32], &network, &[9; 8], address),
        tag(
            &[1; 32],
            &network,
            &[2; 8],
            "192.168.1.3:41820".parse().unwrap(),
        ),
        tag(
            &[1; 32],
            &network,
            &[2; 8],
            "192.168.1.2:41821".parse().unwrap(),
        ),
        tag(
            &[1; 32],
            &network,
            &[2; 8],
            "[::ffff:192.168.1.3]:41820".parse().unwrap(),
        ),
    ] {
        assert_ne!(good, other);
    }
}

#[test]
fn names_and_nonces_last_an_hour_or_until_the_network_changes() {
    let (mut lan, mut rng) = on_two_links();
    let network = NetworkId::from_name("home");
    let address: SocketAddr = "192.168.1.2:41820".parse().unwrap();
    let instance = |lan: &Lan, index, interface| {
        lan.instance(
            (NetworkIndex(index), &network),
            &[1; 32],
            interface,
            address,
        )
    };
    assert_eq!(instance(&lan, 0, 2), None);
    lan.renew(at(0), &mut rng);
    let first = instance(&lan, 0, 2).unwrap();
    assert_eq!(first.tag, tag(&[1; 32], &network, &first.nonce, address));
    let differs = |other: mdns::Instance| {
        assert_ne!(other.label, first.label);
        assert_ne!(other.nonce, first.nonce);
    };
    differs(instance(&lan, 1, 2).unwrap());
    differs(instance(&lan, 0, 3).unwrap());
    lan.renew(at(3_599_999), &mut rng);
    assert_eq!(instance(&lan, 0, 2), Some(first));
    lan.renew(at(3_600_000), &mut rng);
    differs(instance(&lan, 0, 2).unwrap());
    lan.network_changed(at(3_600_001), &mut rng);
    assert_eq!(instance(&lan, 0, 2), None);
}

#[test]
fn groups_are_those_of_the_links_while_there_is_a_network_and_it_is_wanted() {
    let (mut lan, _) = on_two_links();
    let group = |interface, ipv6| LanGroup { interface, ipv6 };
    lan.listen(false);
    assert_eq!(lan.poll_action(), None);
    lan.listen(true);
    let all = vec![group(2, false), group(2, true), group(3, false)];
    assert_eq!(lan.poll_action(), Some(LanAction::Listen(all)));
    lan.listen(true);
    assert_eq!(lan.poll_action(), None, "nothing new");
    assert!(lan.set_enabled(false));
    lan.listen(true);
    assert_eq!(lan.poll_action(), Some(LanAction::Listen(Vec::new())));
    lan.want(at(0), PeerIndex(1));
    assert_eq!(lan.deadline(), None);
    assert!(lan.set_enabled(true));
}

#[test]
fn what_is_looked_into_is_bounded() {
    let mut lan = Lan::default();
    let read = (0..10_000).filter(|_| lan.may_read(at(0))).count() as u64;
    assert_eq!(read, limits::LAN_PACKETS_PER_SECOND);
    assert!(lan.may_check(at(0), limits::LAN_WANTED));
    let more = (0..100).filter(|_| lan.may_check(at(0), limits::LAN_WANTED));
    assert!(more.count() < 4);
    let many = (0..200).map(|last| link(2, &format!("10.0.{last}.1/24")));
    lan.set_links(many.collect());
    assert_eq!(lan.links().len(), limits::LAN_ADDRESSES);
}
