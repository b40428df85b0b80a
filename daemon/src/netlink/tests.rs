//! Against a real kernel, in network namespaces of their own.

use std::collections::BTreeSet;
use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::sync::watch;

use super::Netlink;
use super::clash::{self, Clash};
use super::guard::guards;
use super::links::LinkKind;
use super::monitor::Monitor;
use super::routes::{OwnRoute, PROTOCOL, Target};
use crate::sandbox;

const MTU: u16 = 1280;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn tun(name: &str) -> (tun_rs::SyncDevice, u32) {
    let device = tun_rs::DeviceBuilder::new()
        .name(name)
        .mtu(MTU)
        .offload(true)
        .enable(false)
        .build_sync()
        .unwrap();
    let index = device.if_index().unwrap();
    (device, index)
}

fn into_tun(index: u32, destinations: &[IpNet]) -> Vec<OwnRoute> {
    let target = Target::Tun(index);
    let route = |destination: &IpNet| OwnRoute {
        destination: *destination,
        target,
    };
    destinations.iter().map(route).collect()
}

/// Makes an interface that stands for a network card, with a switch called `<name>-sw`; returns its index.
async fn card(netlink: &Netlink, name: &str, addresses: &[&str]) -> u32 {
    let switch = format!("{name}-sw");
    let message = LinkVeth::new(name, &switch).up().build();
    netlink.handle.link().add(message).execute().await.unwrap();
    set_link(netlink, index_of(&switch), true).await;
    let index = index_of(name);
    for address in addresses {
        add_address(netlink, index, address).await;
    }
    index
}

fn index_of(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

async fn add_address(netlink: &Netlink, index: u32, address: &str) {
    let address = net(address);
    let mut request = netlink
        .handle
        .address()
        .add(index, address.addr(), address.prefix_len());
    let usable_at_once = AddressAttribute::Flags(AddressFlags::Nodad);
    request.message_mut().attributes.push(usable_at_once);
    request.execute().await.unwrap();
}

async fn remove_address(netlink: &Netlink, index: u32, address: &str) {
    let address = net(address);
    let addresses = netlink.handle.address();
    let mut request = addresses.add(index, address.addr(), address.prefix_len());
    let message = request.message_mut().clone();
    netlink
        .handle
        .address()
        .del(message)
        .execute()
        .await
        .unwrap();
}

async fn set_link(netlink: &Netlink, index: u32, up: bool) {
    let builder = LinkUnspec::new_with_index(index);
    let message = if up { builder.up() } else { builder.down() }.build();
    netlink.handle.link().set(message).execute().await.unwrap();
}

async fn add_default(netlink: &Netlink, index: u32, metric: u32) {
    let message = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
        .output_interface(index)
        .priority(metric)
        .build();
    netlink.handle.route().add(message).execute().await.unwrap();
}

/// What the kernel says to a packet for `destination`; `Ok` if it knows a way.
fn way_to(destination: &str) -> Result<(), Option<i32>> {
    let local = if destination.contains('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(local).unwrap();
    socket
        .connect(destination)
        .map_err(|error: io::Error| error.raw_os_error())
}

#[test]
fn interface_has_what_was_asked_for_and_nothing_else() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let (_device, index) = tun("mesh-home");
        let addresses = [net("fd00:1::1/128"), net("10.77.0.1/24")];
        netlink
            .configure_interface(index, &addresses)
            .await
            .unwrap();
        // Again, as after a reload.
        netlink
            .configure_interface(index, &addresses)
            .await
            .unwrap();
        let destinations = [
            net("fd00:1::/64"),
            net("10.77.0.2/32"),
            net("192.168.50.0/24"),
        ];
        netlink
            .add_routes(into_tun(index, &destinations), None)
            .await
            .unwrap();
        netlink
            .add_routes(into_tun(index, &destinations), None)
            .await
            .unwrap();

        let host = netlink.host().await.unwrap();
        let link = host.links.iter().find(|link| link.index == index).unwrap();
        assert_eq!(
            (link.name.as_str(), link.kind, link.up),
            ("mesh-home", LinkKind::Tunnel, true)
        );
        let found: BTreeSet<IpNet> = host.addresses.iter().map(|address| address.net).collect();
        assert_eq!(found, BTreeSet::from(addresses));
        let found: BTreeSet<(IpNet, u8)> = host
            .routes
            .iter()
            .map(|route| (route.destination, route.protocol))
            .collect();
        let expected = destinations.map(|destination| (destination, PROTOCOL));
        // The kernel routes multicast by itself.
        let ours: BTreeSet<_> = found
            .into_iter()
            .filter(|(net, _)| *net != self::net("ff00::/8"))
            .collect();
        assert_eq!(ours, BTreeSet::from(expected));

        netlink
            .remove_routes(into_tun(index, &destinations[1..]))
            .await
            .unwrap();
        netlink
            .remove_routes(into_tun(index, &destinations[1..]))
            .await
            .unwrap();
        netlink.remove_address(index, addresses[1]).await.unwrap();
        netlink.remove_address(index, addresses[1]).await.unwrap();
        assert_eq!(way_to("10.77.0.2:9"), Err(Some(libc::ENETUNREACH)));
        assert_eq!(way_to("[fd00:1::2]:9"), Ok(()));
    });
}

#[test]
fn thousands_of_routes_take_no_round_trip_each() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let (_device, index) = tun("mesh-home");
        netlink
            .configure_interface(index, &[net("10.0.0.1/32")])
            .await
            .unwrap();
        let destinations: Vec<IpNet> = (0..16_384u32)
            .map(|n| net(&format!("10.1.{}.{}/32", n / 256, n % 256)))
            .collect();
        let begin = Instant::now();
        netlink
            .add_routes(into_tun(index, &destinations), None)
            .await
            .unwrap();
        let added = begin.elapsed();
        assert_eq!(netlink.routes().await.unwrap().len(), destinations.len());
        netlink
            .remove_routes(into_tun(index, &destinations))
            .await
            .unwrap();
        assert_eq!(netlink.routes().await.unwrap().len(), 0);
        eprintln!("16384 routes added in {added:?}");
        assert!(added < Duration::from_secs(5), "{added:?}");
    });
}

#[test]
fn overlay_is_unreachable_once_the_tun_is_gone() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let card = card(&netlink, "eth0", &["198.51.100.2/24", "2001:db8::2/64"]).await;
        add_default(&netlink, card, 0).await;
        let message = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .output_interface(card)
            .build();
        netlink.handle.route().add(message).execute().await.unwrap();

        let destinations = [net("fd00:1::/64"), net("10.77.0.2/32")];
        let both = ["[fd00:1::2]:9", "10.77.0.2:9"];
        assert!(
            both.iter().all(|to| way_to(to) == Ok(())),
            "the default route"
        );
        netlink
            .add_routes(guards(&destinations), None)
            .await
            .unwrap();
        assert!(
            both.iter()
                .all(|to| way_to(to) == Err(Some(libc::EHOSTUNREACH)))
        );

        let (device, index) = tun("mesh-home");
        netlink
            .configure_interface(index, &[net("fd00:1::1/128"), net("10.77.0.1/32")])
            .await
            .unwrap();
        netlink
            .add_routes(into_tun(index, &destinations), None)
            .await
            .unwrap();
        assert!(both.iter().all(|to| way_to(to) == Ok(())), "the tunnel");
        drop(device);
        for to in both {
            assert_eq!(
                way_to(to),
                Err(Some(libc::EHOSTUNREACH)),
                "{to} after the tunnel"
            );
        }
        assert_eq!(way_to("192.0.2.1:9"), Ok(()));
    });
}

#[test]
fn guards_are_adopted_and_only_guards_are_removed() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let card = card(&netlink, "eth0", &["198.51.100.2/24"]).await;
        add_default(&netlink, card, 0).await;
        // The kernel adds the link-local ones when it comes to it.
        let routes = async || {
            let mut routes = netlink.routes().await.unwrap();
            routes.retain(|route| route.destination != net("fe80::/64"));
            routes
        };
        let before = routes().await;
        let old = guards(&[net("fd00:1::/64"), net("10.77.0.2/32"), net("10.77.0.3/32")]);
        let new = guards(&[net("fd00:1::/64"), net("10.77.0.3/32"), net("10.77.0.4/32")]);
        netlink.add_routes(old.clone(), None).await.unwrap();
        assert_eq!(netlink.installed_guards().await.unwrap(), old);
        netlink.add_routes(new.clone(), None).await.unwrap();
        assert_eq!(netlink.remove_guards_except(&new).await.unwrap(), 1);
        assert_eq!(netlink.installed_guards().await.unwrap(), new);
        assert_eq!(
            netlink
                .remove_guards_except(&BTreeSet::new())
                .await
                .unwrap(),
            3
        );
        assert_eq!(routes().await, before);
    });
}

#[test]
fn clash_with_the_host_is_found_before_anything_is_changed() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        card(&netlink, "eth0", &["10.77.0.9/24", "198.51.100.2/24"]).await;
        netlink
            .add_routes(guards(&[net("10.78.0.2/32")]), None)
            .await
            .unwrap();
        let host = netlink.host().await.unwrap();
        let clashes = clash::find(
            &[net("10.77.0.2/32"), net("10.78.0.2/32")],
            &host,
            &BTreeSet::new(),
        );
        let texts: Vec<String> = clashes.iter().map(Clash::to_string).collect();
        assert_eq!(
            texts,
            [
                "10.77.0.2/32 of the overlay clashes with the route to 10.77.0.0/24 on interface eth0"
            ]
        );
        assert!(clash::find(&[net("fd00:1::/64")], &host, &BTreeSet::new()).is_empty());
    });
}

#[test]
fn lists_can_be_asked_for_at_the_same_time() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let (_device, index) = tun("mesh-home");
        let address = [net("10.0.0.1/32")];
        netlink.configure_interface(index, &address).await.unwrap();
        let destinations: Vec<IpNet> = (0..2_000u32)
            .map(|n| net(&format!("10.1.{}.{}/32", n / 256, n % 256)))
            .collect();
        let routes = into_tun(index, &destinations);
        netlink.add_routes(routes, None).await.unwrap();
        let (a, b, c) = tokio::join!(netlink.routes(), netlink.host(), netlink.links());
        assert_eq!(a.unwrap(), b.unwrap().routes);
        c.unwrap();
    });
}

async fn next(monitor: &mut Monitor) -> Option<Vec<String>> {
    let changed = tokio::time::timeout(Duration::from_millis(300), monitor.changed()).await;
    changed.ok().map(|surroundings| {
        surroundings
            .addresses
            .iter()
            .map(|address| address.ip.to_string())
            .collect()
    })
}

#[test]
fn addresses_default_routes_and_carriers_are_changes() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let eth0 = card(&netlink, "eth0", &["198.51.100.2/24"]).await;
        let (_overlay, receiver) = watch::channel(vec![net("10.77.0.0/24")]);
        let mut monitor = Monitor::start(receiver).unwrap();
        assert_eq!(next(&mut monitor).await.unwrap(), ["198.51.100.2"]);
        assert_eq!(next(&mut monitor).await, None);

        add_address(&netlink, eth0, "198.51.100.3/24").await;
        assert_eq!(
            next(&mut monitor).await.unwrap(),
            ["198.51.100.2", "198.51.100.3"]
        );
        add_default(&netlink, eth0, 7).await;
        assert!(next(&mut monitor).await.is_some(), "new default route");
        add_address(&netlink, eth0, "10.77.0.1/24").await;
        assert_eq!(next(&mut monitor).await, None, "an address of the overlay");

        // The default route goes without an announcement of its own.
        set_link(&netlink, eth0, false).await;
        assert_eq!(next(&mut monitor).await.unwrap(), [""; 0]);
        set_link(&netlink, eth0, true).await;
        assert_eq!(
            next(&mut monitor).await.unwrap(),
            ["198.51.100.2", "198.51.100.3"]
        );
        add_default(&netlink, eth0, 7).await;
        assert!(
            next(&mut monitor).await.is_some(),
            "the same default route again"
        );
    });
}

#[test]
fn a_default_route_that_went_with_the_last_address_is_news_when_it_comes_back() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let eth0 = card(&netlink, "eth0", &["198.51.100.2/24"]).await;
        add_default(&netlink, eth0, 7).await;
        let (_overlay, receiver) = watch::channel(Vec::new());
        let mut monitor = Monitor::start(receiver).unwrap();
        assert_eq!(next(&mut monitor).await.unwrap(), ["198.51.100.2"]);
        // The kernel says nothing of the route.
        remove_address(&netlink, eth0, "198.51.100.2/24").await;
        add_address(&netlink, eth0, "198.51.100.3/24").await;
        let mut last = next(&mut monitor).await;
        while let Some(addresses) = next(&mut monitor).await {
            last = Some(addresses);
        }
        assert_eq!(last.unwrap(), ["198.51.100.3"]);
        add_default(&netlink, eth0, 7).await;
        assert_eq!(next(&mut monitor).await.unwrap(), ["198.51.100.3"]);
    });
}

#[test]
fn lost_carrier_of_a_link_is_a_change() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        card(&netlink, "wifi0", &["198.51.100.2/24"]).await;
        let access_point = index_of("wifi0-sw");
        let (_overlay, receiver) = watch::channel(Vec::new());
        let mut monitor = Monitor::start(receiver).unwrap();
        assert_eq!(next(&mut monitor).await.unwrap(), ["198.51.100.2"]);
        set_link(&netlink, access_point, false).await;
        assert_eq!(next(&mut monitor).await.unwrap(), [""; 0]);
        set_link(&netlink, access_point, true).await;
        assert_eq!(next(&mut monitor).await.unwrap(), ["198.51.100.2"]);
    });
}

#[test]
fn our_own_doings_and_other_tunnels_are_no_change() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        card(&netlink, "eth0", &["198.51.100.2/24"]).await;
        let (_overlay, receiver) = watch::channel(Vec::new());
        let mut monitor = Monitor::start(receiver).unwrap();
        next(&mut monitor).await.unwrap();

        let (device, index) = tun("mesh-home");
        netlink
            .configure_interface(index, &[net("10.77.0.1/32")])
            .await
            .unwrap();
        let destinations: Vec<IpNet> = (0..5_000u32)
            .map(|n| net(&format!("10.1.{}.{}/32", n / 256, n % 256)))
            .collect();
        netlink
            .add_routes(into_tun(index, &destinations), None)
            .await
            .unwrap();
        netlink
            .add_routes(guards(&destinations), None)
            .await
            .unwrap();
        assert_eq!(next(&mut monitor).await, None);
        drop(device);
        let (_other, index) = tun("vpn0");
        add_address(&netlink, index, "100.64.0.1/10").await;
        set_link(&netlink, index, true).await;
        add_default(&netlink, index, 3).await;
        assert_eq!(next(&mut monitor).await, None);
    });
}

#[test]
fn storm_of_changes_is_taken_together_and_its_end_is_not_missed() {
    sandbox::run(async || {
        let netlink = Netlink::connect().unwrap();
        let eth0 = card(&netlink, "eth0", &[]).await;
        let (_overlay, receiver) = watch::channel(Vec::new());
        let mut monitor = Monitor::start(receiver).unwrap();
        next(&mut monitor).await.unwrap();
        let (sender, mut changes) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let surroundings = monitor.changed().await;
                let _ = sender.send((Instant::now(), surroundings.addresses.len()));
            }
        });
        // Long enough after the first look for the next to be made at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begin = Instant::now();
        for n in 0..200 {
            add_address(&netlink, eth0, &format!("198.18.{n}.1/24")).await;
            // So that the storm lasts for many looks.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let end = Instant::now();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut seen = Vec::new();
        while let Ok(change) = changes.try_recv() {
            seen.push(change);
        }
        let (first, last) = (seen[0], seen[seen.len() - 1]);
        assert_eq!(last.1, 64, "the most that is offered");
        assert!(
            first.0 < begin + (end - begin) / 4,
            "the first of {:?} was told after {:?}",
            end - begin,
            first.0 - begin
        );
        // Pauses of 2, 4, … and then 128 ms.
        let looks = (end - begin).as_millis() / 128 + 8;
        assert!(
            seen.len() as u128 <= looks,
            "{} changes in {:?}",
            seen.len(),
            end - begin
        );
    });
}
