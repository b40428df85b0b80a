use std::time::Duration;

use super::*;
use crate::engine::RelayHandle;

const USED: Use = Use {
    active: true,
    probes: true,
};

fn at(milliseconds: u64) -> Instant {
    Instant::from_boot(Duration::from_millis(1_000_000 + milliseconds))
}

fn direct(last: u8) -> PathKey {
    PathKey::direct(std::net::SocketAddr::from(([192, 0, 2, last], 41_820)))
}

fn relay() -> PathKey {
    PathKey::Relay(RelayHandle(1))
}

fn relayed() -> PathSet {
    let mut set = PathSet::default();
    let path = set.get_or_add(relay(), at(0)).unwrap();
    path.set_channel(Some((
        std::net::SocketAddr::from(([203, 0, 113, 1], 443)),
        7,
    )));
    path.measured(Duration::from_millis(20));
    set.choose(at(0));
    set
}

fn prove(set: &mut PathSet, key: PathKey, rtt: u64, now: Instant) {
    let path = set.get_or_add(key, now).unwrap();
    path.probe_sent(42, now - Duration::from_millis(rtt));
    assert_eq!(set.probe_answered(key, 42, now), Some(key));
}

#[test]
fn a_direct_path_counts_only_when_our_own_probe_was_answered_on_it() {
    let mut set = relayed();
    set.get_or_add(direct(1), at(5))
        .unwrap()
        .received(at(5), 100);
    assert_eq!(set.choose(at(5)), None);
    assert_eq!(set.probe_answered(direct(1), 1, at(6)), None, "never sent");
    prove(&mut set, direct(1), 1, at(10));
    assert_eq!(set.choose(at(10)).unwrap().to, Some(direct(1)));
}

fn second_relay() -> PathKey {
    PathKey::Relay(RelayHandle(2))
}

/// Relayed, with another relay that works as well.
fn with_standby() -> PathSet {
    let mut set = relayed();
    let path = set.get_or_add(second_relay(), at(0)).unwrap();
    path.set_channel(Some((
        std::net::SocketAddr::from(([203, 0, 113, 2], 443)),
        8,
    )));
    path.measured(Duration::from_millis(20));
    assert_eq!(set.choose(at(0)), None);
    set
}

#[test]
fn a_path_that_seemed_to_lose_data_is_better_than_none() {
    let mut set = with_standby();
    let until = at(30_000);
    set.get_mut(second_relay()).unwrap().distrusted = Some(until);
    assert_eq!(set.choose(at(10)), None, "the one in use works");
    set.get_mut(relay()).unwrap().set_channel(None);
    assert_eq!(set.choose(at(20)).unwrap().to, Some(second_relay()));
    assert_eq!(set.choose(at(30)), None);
}

#[test]
fn the_peer_is_told_of_its_data_on_the_path_that_it_came_by_as_well() {
    let mut set = with_standby();
    set.received_data(relay(), at(5), 1, 1, 1);
    assert_eq!(set.alive_ways(at(5)), [None, None]);
    set.received_data(second_relay(), at(6), 1, 2, 1);
    assert_eq!(set.alive_ways(at(6)), [None, Some(second_relay())]);
    set.get_mut(second_relay()).unwrap().set_channel(None);
    assert_eq!(set.alive_ways(at(7)), [None, None]);
}

#[test]
fn an_answer_proves_the_path_of_its_probe_but_not_when_it_comes_through_a_relay() {
    let mut set = relayed();
    set.get_or_add(direct(1), at(0))
        .unwrap()
        .probe_sent(42, at(0));
    set.get_or_add(direct(2), at(0)).unwrap();
    assert_eq!(set.probe_answered(relay(), 42, at(1)), None);
    assert!(!set.has_usable_direct(at(1)));
    assert_eq!(set.probe_answered(direct(2), 42, at(1)), Some(direct(1)));
    assert!(set.get(direct(1)).unwrap().is_usable(at(1)));
    assert!(!set.get(direct(2)).unwrap().is_usable(at(1)));
}

#[test]
fn near_equal_paths_do_not_flap_and_a_clearly_faster_one_wins() {
    let mut set = relayed();
    prove(&mut set, direct(1), 20, at(10));
    set.choose(at(10));
    prove(&mut set, direct(2), 17, at(20));
    assert_eq!(set.choose(at(20)), None);
    prove(&mut set, direct(3), 5, at(30));
    assert_eq!(set.choose(at(30)).unwrap().to, Some(direct(3)));
}

/// Lets time pass until the path changes; returns when, to what, and the probes of each path until then.
fn until_change(set: &mut PathSet, from: Instant) -> (Instant, Change, Vec<PathKey>) {
    let mut rng = Random::from_seed([0; 32]);
    let (mut now, mut probes) = (from, Vec::new());
    loop {
        now = set.deadline(USED).unwrap().max(now);
        assert!(now.since(from) < Duration::from_secs(5));
        for order in set.handle_timeout(now, USED, &mut rng) {
            let path = set.get_mut(order.key).unwrap();
            path.probe_sent(order.transaction, now);
            probes.push(order.key);
            if matches!(order.key, PathKey::Relay(_)) {
                set.probe_answered(order.key, order.transaction, now);
            }
        }
        set.update_copies(now);
        if let Some(change) = set.choose(now) {
            return (now, change, probes);
        }
    }
}

#[test]
fn data_that_nobody_acknowledges_is_probed_then_copied_and_then_leaves_the_path() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    set.current_mut().unwrap().0.sent_data(at(1_000), 1, 5, 1);
    let mut rng = Random::from_seed([0; 32]);
    let suspicious = at(1_000 + 10 + 2 * 100);
    assert_eq!(set.deadline(USED), Some(suspicious));
    let orders = set.handle_timeout(suspicious, USED, &mut rng);
    assert_eq!(orders.len(), 1, "the path itself is asked first");
    let path = set.get_mut(direct(1)).unwrap();
    path.probe_sent(orders[0].transaction, suspicious);
    set.update_copies(suspicious);
    assert!(set.copies.is_none());

    let (now, change, probes) = until_change(&mut set, suspicious);
    assert_eq!(change.to, Some(relay()));
    assert_eq!(change.reason, PathReason::Unacknowledged);
    assert!(now.since(at(1_000)) < Duration::from_millis(600), "{now:?}");
    assert!(
        probes.contains(&relay()),
        "the relay is asked before it is needed"
    );
}

#[test]
fn a_path_in_doubt_has_its_data_copied_to_the_relay() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    set.doubt_all(at(10), |_| true);
    set.update_copies(at(10));
    assert_eq!(set.copies.as_ref().unwrap().route.channel, Some(7));
    let path = set.get_mut(direct(1)).unwrap();
    path.probe_sent(9, at(10));
    assert!(set.probe_answered(direct(1), 9, at(20)).is_some());
    set.update_copies(at(20));
    assert!(set.copies.is_none());
    assert_eq!(set.choose(at(20)), None);
}

#[test]
fn what_is_heard_of_one_path_clears_no_other() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    set.current_mut().unwrap().0.sent_data(at(1_000), 1, 5, 1);
    let report = |set: &PathSet, key| Received {
        path: set.get(key).unwrap().id,
        session: 1,
        highest: 9,
        count: 9,
    };
    let other = report(&set, relay());
    set.acknowledged(at(1_050), &[other]);
    set.get_mut(direct(1)).unwrap().received(at(1_060), 100);
    assert_eq!(set.deadline(USED), Some(at(1_210)));
    let own = report(&set, direct(1));
    set.acknowledged(at(1_070), &[own]);
    assert!(set.deadline(USED) > Some(at(1_210)));
}

#[test]
fn paths_of_a_family_without_address_go_at_once() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    set.doubt_all(at(10), |ip| ip.is_ipv6());
    let change = set.choose(at(10)).unwrap();
    assert_eq!(change.to, Some(relay()));
    assert_eq!(change.reason, PathReason::AddressGone);
}

#[test]
fn a_path_that_gets_much_slower_than_the_relay_loses_its_place_and_gets_it_back() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    let slow = |set: &mut PathSet, rtt: u64, count: u32| {
        for _ in 0..count {
            let path = set.get_mut(direct(1)).unwrap();
            path.measured(Duration::from_millis(rtt));
        }
    };
    slow(&mut set, 110, 20);
    assert_eq!(set.choose(at(10)), None, "by a wide margin only");
    slow(&mut set, 300, 20);
    assert_eq!(set.choose(at(20)), None, "the relay may be as slow now");
    assert_eq!(set.get(relay()).unwrap().check_at, Some(at(20)));
    prove(&mut set, relay(), 290, at(320));
    assert_eq!(set.choose(at(320)), None, "and it is");
    prove(&mut set, relay(), 20, at(350));
    assert_eq!(set.choose(at(350)).unwrap().to, Some(relay()));
    slow(&mut set, 150, 20);
    assert_eq!(set.choose(at(360)), None, "and not back for a little");
    slow(&mut set, 20, 20);
    assert_eq!(set.choose(at(370)).unwrap().to, Some(direct(1)));
}

#[test]
fn the_time_by_each_kind_of_path_goes_on_after_a_change_and_comes_back() {
    let mut set = relayed();
    let times = |set: &PathSet, now| PathKind::ALL.map(|kind| set.time_by(kind, now).as_millis());
    assert_eq!(times(&set, at(10)), [0, 10], "it began with the relay");
    prove(&mut set, direct(1), 10, at(10));
    let change = set.choose(at(10)).unwrap();
    assert_eq!(
        (change.from, change.reason),
        (Some(PathKind::Relay), PathReason::Direct)
    );
    assert_eq!(times(&set, at(35)), [25, 10]);
    let change = set.set_current(Some(relay()), PathReason::Silent, at(40));
    assert_eq!(change.unwrap().from, Some(PathKind::Direct));
    assert_eq!(
        set.set_current(Some(relay()), PathReason::Silent, at(41)),
        None
    );
    assert_eq!(times(&set, at(45)), [30, 15]);
}

#[test]
fn an_idle_peer_is_not_probed_and_falls_back_to_the_relay() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    let idle = Use {
        active: false,
        ..USED
    };
    assert_eq!(set.deadline(idle), None);
    assert_eq!(set.choose(at(60_000)).unwrap().to, Some(relay()));
}

#[test]
fn the_last_path_of_a_peer_without_a_relay_is_kept_alive_when_idle() {
    let mut set = PathSet::default();
    prove(&mut set, direct(1), 10, at(0));
    set.choose(at(0));
    let idle = Use {
        active: false,
        ..USED
    };
    assert_eq!(set.deadline(idle), Some(at(15_000)));
    assert_eq!(set.choose(at(60_000)), None, "nothing better: it stays");
}

#[test]
fn the_number_of_paths_is_bounded_and_proven_ones_stay() {
    let mut set = relayed();
    prove(&mut set, direct(1), 10, at(0));
    for port in 1..500 {
        set.get_or_add(
            PathKey::direct(std::net::SocketAddr::from(([198, 51, 100, 1], port))),
            at(1),
        );
    }
    assert_eq!(set.iter().count(), limits::MAX_PATHS);
    assert!(set.get(direct(1)).is_some() && set.get(relay()).is_some());
}

#[test]
fn an_unproven_address_gets_at_most_three_times_what_it_sent() {
    let mut set = PathSet::default();
    let path = set.get_or_add(direct(1), at(0)).unwrap();
    path.received(at(0), 100);
    assert!(path.may_answer(at(0), 200));
    assert!(path.may_answer(at(0), 100));
    assert!(!path.may_answer(at(0), 1));
}
