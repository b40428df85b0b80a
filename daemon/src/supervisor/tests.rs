//! A whole daemon, but for its loop, in a network namespace of its own.

use std::path::PathBuf;

use clap::Parser;
use mesh_bus::NetworkState;
use mesh_core::identity::{Identity, NodeId};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::serve::Running;
use super::{Supervisor, start, stop};
use crate::api::{ApiError, ErrorKind, Reply, Request};
use crate::args::Args;
use crate::netlink::Netlink;
use crate::netlink::clash::Host;
use crate::sandbox;
use crate::testing::TempDir;

/// Where a test's daemon keeps its things.
struct Home(TempDir);

impl Home {
    fn new(config: &str) -> Self {
        let home = Self(TempDir::new());
        home.configure(config);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn configure(&self, config: &str) {
        // A daemon that has stopped holds its port until its process ends.
        let port = if config.contains("listen_port") {
            ""
        } else {
            "listen_port = 0\n"
        };
        std::fs::write(self.path("config.toml"), format!("{port}{config}")).unwrap();
    }

    async fn start(&self) -> Daemon {
        let option = |name: &str, value: &str| format!("--{name}={}", self.path(value).display());
        let args = Args::parse_from([
            "meshd".to_owned(),
            "--no-bus".to_owned(),
            option("config", "config.toml"),
            option("state-dir", "state"),
            option("socket", "control.sock"),
        ]);
        let (supervisor, running) = start::start(&args).await.unwrap();
        Daemon {
            supervisor,
            running,
        }
    }
}

struct Daemon {
    supervisor: Supervisor,
    running: Running,
}

impl Daemon {
    async fn ask<T>(&mut self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.supervisor.handle(request(reply)).await;
        answer.await.unwrap()
    }

    async fn status(&mut self) -> mesh_bus::Status {
        self.ask(|reply| Request::Status { reply }).await.unwrap()
    }

    async fn up(&mut self, network: Option<&str>) -> Result<Vec<String>, ApiError> {
        let network = network.map(str::to_owned);
        self.ask(|reply| Request::Up { network, reply }).await
    }

    async fn down(&mut self, network: Option<&str>) -> Result<Vec<String>, ApiError> {
        let network = network.map(str::to_owned);
        self.ask(|reply| Request::Down { network, reply }).await
    }

    async fn reload(&mut self) -> Result<mesh_bus::Reloaded, ApiError> {
        self.ask(|reply| Request::Reload { reply }).await
    }

    async fn states(&mut self) -> Vec<(String, NetworkState)> {
        let networks = self.status().await.networks;
        let state = |network: mesh_bus::Network| (network.name, network.state);
        networks.into_iter().map(state).collect()
    }

    async fn stop(self) {
        stop::stop(self.supervisor, self.running).await;
    }
}

fn id(seed: u8) -> NodeId {
    Identity::from_seed(Zeroizing::new([seed; 32])).id()
}

fn network(name: &str, subnet: u8, peers: &[u8]) -> String {
    let mut text = format!("[network.{name}]\naddress = [\"10.{subnet}.0.1/32\"]\n");
    for peer in peers {
        text.push_str(&format!(
            "[[network.{name}.peer]]\nid = \"{}\"\nname = \"p{peer}\"\naddress = [\"10.{subnet}.0.{peer}\"]\n",
            id(*peer)
        ));
    }
    text
}

/// Links, addresses and routes; a link's number differs from one time to the next.
async fn on_host() -> (Vec<String>, Vec<String>, Vec<String>) {
    let Host {
        links,
        addresses,
        routes,
    } = Netlink::connect().unwrap().host().await.unwrap();
    let mut routes: Vec<String> = routes
        .iter()
        .filter(|route| !route.destination.to_string().starts_with("ff00"))
        .map(|route| format!("{} {:?}", route.destination, route.action))
        .collect();
    routes.sort();
    (
        links.into_iter().map(|link| link.name).collect(),
        addresses
            .iter()
            .map(|address| address.net.to_string())
            .collect(),
        routes,
    )
}

#[test]
fn stop_leaves_the_host_as_it_was() {
    sandbox::run(async || {
        let before = on_host().await;
        let home = Home::new(&[network("home", 77, &[2, 9]), network("work", 78, &[4])].concat());
        let mut daemon = home.start().await;
        let up = |name: &str| (name.to_owned(), NetworkState::Up);
        assert_eq!(daemon.states().await, [up("home"), up("work")]);
        let (links, addresses, routes) = on_host().await;
        assert_eq!(links, ["lo", "mesh-home", "mesh-work"]);
        assert!(
            addresses.contains(&"10.77.0.1/32".to_owned()),
            "{addresses:?}"
        );
        for expected in [
            "10.77.0.2/32 Forward",
            "10.77.0.2/32 Refuse",
            "10.78.0.4/32 Forward",
        ] {
            assert!(
                routes.contains(&expected.to_owned()),
                "{expected}: {routes:?}"
            );
        }
        daemon.stop().await;
        assert_eq!(on_host().await, before);
        assert!(!home.path("control.sock").exists());
    });
}

#[test]
fn down_is_remembered_across_restarts_and_undone_by_up() {
    sandbox::run(async || {
        let before = on_host().await;
        let home = Home::new(&network("home", 77, &[2]));
        let mut daemon = home.start().await;
        assert_eq!(daemon.down(None).await.unwrap(), ["home"]);
        assert_eq!(on_host().await, before);
        assert!(daemon.down(None).await.unwrap().is_empty());
        assert_eq!(daemon.down(Some("home")).await.unwrap(), ["home"]);
        daemon.stop().await;

        let mut daemon = home.start().await;
        let status = daemon.status().await;
        assert_eq!(status.networks[0].state, NetworkState::Down);
        assert_eq!(status.networks[0].peers[0].name, "p2");
        assert_eq!(daemon.up(None).await.unwrap(), ["home"]);
        daemon.stop().await;
        let mut daemon = home.start().await;
        assert_eq!(daemon.status().await.networks[0].state, NetworkState::Up);
        let error = daemon.up(Some("work")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSuch);
        daemon.stop().await;
    });
}

#[test]
fn one_network_that_clashes_does_not_keep_the_other_down() {
    sandbox::run(async || {
        let other_vpn = other_vpn("10.77.0.0/16").await;
        let home = Home::new(&[network("home", 77, &[2]), network("work", 78, &[4])].concat());
        let mut daemon = home.start().await;
        let status = daemon.status().await;
        assert_eq!(status.networks[0].state, NetworkState::Down);
        let health = &status.networks[0].health;
        assert!(
            health[0].contains("10.77.0.0/16 on interface vpn0"),
            "{health:?}"
        );
        assert_eq!(status.networks[1].state, NetworkState::Up);
        let (links, _, routes) = on_host().await;
        assert_eq!(links, ["lo", "vpn0", "mesh-work"]);
        assert!(
            !routes.iter().any(|route| route.starts_with("10.77.0.2")),
            "{routes:?}"
        );
        let error = daemon.up(Some("home")).await.unwrap_err();
        assert!(error.message.contains("vpn0"), "{error}");

        drop(other_vpn);
        assert_eq!(daemon.up(None).await.unwrap(), ["home"]);
        assert!(
            daemon.status().await.networks[0]
                .health
                .iter()
                .all(|line| !line.contains("vpn0"))
        );
        daemon.stop().await;
    });
}

/// An interface of somebody else that `route` leads to.
async fn other_vpn(route: &str) -> tun_rs::SyncDevice {
    use crate::netlink::routes::{OwnRoute, Target};
    let device = tun_rs::DeviceBuilder::new()
        .name("vpn0")
        .build_sync()
        .unwrap();
    let link = device.if_index().unwrap();
    let route = OwnRoute {
        destination: route.parse().unwrap(),
        target: Target::Tun(link),
    };
    Netlink::connect()
        .unwrap()
        .add_routes([route], None)
        .await
        .unwrap();
    device
}

#[test]
fn reload_applies_differences_and_keeps_the_interface() {
    sandbox::run(async || {
        let home = Home::new(&[network("home", 77, &[2, 3]), network("work", 78, &[4])].concat());
        let mut daemon = home.start().await;
        let link = |daemon: &Daemon| daemon.supervisor.networks[0].interface().unwrap().link;
        let before = link(&daemon);
        home.configure(&[network("home", 77, &[3, 5]), network("lab", 79, &[6])].concat());
        let reloaded = daemon.reload().await.unwrap();
        assert_eq!(reloaded.added, ["lab"]);
        assert_eq!(reloaded.removed, ["work"]);
        assert_eq!(reloaded.changed, ["home"]);
        assert_eq!(link(&daemon), before);
        let (links, _, routes) = on_host().await;
        assert_eq!(links, ["lo", "mesh-home", "mesh-lab"]);
        let of = |address: &str| {
            routes
                .iter()
                .filter(|route| route.starts_with(address))
                .count()
        };
        assert_eq!(
            [
                of("10.77.0.2"),
                of("10.77.0.3"),
                of("10.77.0.5"),
                of("10.78")
            ],
            [0, 2, 2, 0]
        );
        assert_eq!(daemon.reload().await.unwrap().unchanged, ["home", "lab"]);
        let names: Vec<String> = (daemon.status().await.networks[0].peers.iter())
            .map(|peer| peer.name.clone())
            .collect();
        assert_eq!(names, ["p3", "p5"]);
        daemon.stop().await;
    });
}

#[test]
fn reload_gives_a_network_another_address_or_interface() {
    sandbox::run(async || {
        let text = network("home", 77, &[2]);
        let home = Home::new(&text);
        let mut daemon = home.start().await;
        home.configure(&text.replace("10.77.0.1/32", "10.77.0.9/32"));
        daemon.reload().await.unwrap();
        let (_, addresses, routes) = on_host().await;
        assert!(
            addresses.contains(&"10.77.0.9/32".to_owned()),
            "{addresses:?}"
        );
        assert!(
            !addresses.contains(&"10.77.0.1/32".to_owned()),
            "{addresses:?}"
        );
        assert!(
            !routes.contains(&"10.77.0.1/32 Refuse".to_owned()),
            "{routes:?}"
        );
        home.configure(&text.replace("address", "interface = \"wonder\"\naddress"));
        let error = daemon.reload().await.unwrap_err();
        assert!(error.message.contains("config.toml"), "{error}");
        let other = text.replacen("address", "interface = \"wonder\"\naddress", 1);
        home.configure(&other);
        assert_eq!(daemon.reload().await.unwrap().changed, ["home"]);
        assert_eq!(on_host().await.0, ["lo", "wonder"]);
        home.configure(&other.replace(
            "address = [\"10.77.0.1",
            "autostart = false\naddress = [\"10.77.0.1",
        ));
        daemon.reload().await.unwrap();
        assert_eq!(on_host().await.0, ["lo"]);
        assert!(on_host().await.2.is_empty());
        daemon.stop().await;
    });
}

#[test]
fn bad_reload_changes_nothing() {
    sandbox::run(async || {
        let text = network("home", 77, &[2]);
        let home = Home::new(&text);
        let mut daemon = home.start().await;
        let before = on_host().await;
        let missing = text.replace("name = ", "psk_file = \"/nonexistent\"\nname = ");
        let clash = text.replace("10.77.0.2", "10.99.0.2");
        let other_vpn = other_vpn("10.99.0.0/16").await;
        for (bad, expected) in [
            ("[network.home", "config.toml:2"),
            (missing.as_str(), "/nonexistent does not exist"),
            (clash.as_str(), "10.99.0.0/16 on interface vpn0"),
        ] {
            home.configure(bad);
            let error = daemon.reload().await.unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            assert!(error.message.starts_with("nothing changed: "), "{error}");
            let health = &daemon.status().await.networks[0].health;
            assert!(health[0].contains(expected), "{health:?}");
        }
        drop(other_vpn);
        assert_eq!(on_host().await, before);
        home.configure(&format!("listen_port = 1234\n{text}"));
        assert_eq!(daemon.reload().await.unwrap().unchanged, ["home"]);
        let health = &daemon.status().await.networks[0].health;
        assert!(health[0].starts_with("listen_port is 1234"), "{health:?}");
        assert!(
            !health.iter().any(|line| line.contains("not in force")),
            "{health:?}"
        );
        daemon.stop().await;
    });
}

#[test]
fn deleted_interface_is_noticed_and_comes_back_on_request() {
    sandbox::run(async || {
        let home = Home::new(&network("home", 77, &[2]));
        let mut daemon = home.start().await;
        let link = daemon.supervisor.networks[0].interface().unwrap().link;
        Netlink::connect().unwrap().delete_link(link).await;
        let news = daemon.running.events.recv().await.unwrap();
        daemon.supervisor.notice(news).await;
        let status = daemon.status().await;
        assert_eq!(status.networks[0].state, NetworkState::Down);
        assert!(status.networks[0].health[0].contains("deleted the interface mesh-home"));
        let (_, _, routes) = on_host().await;
        assert!(
            routes.contains(&"10.77.0.2/32 Refuse".to_owned()),
            "{routes:?}"
        );
        assert_eq!(daemon.up(None).await.unwrap(), ["home"]);
        daemon.stop().await;
        assert!(on_host().await.2.is_empty());
    });
}

#[test]
fn peers_are_found_by_name_id_and_address() {
    sandbox::run(async || {
        let config = [network("home", 77, &[2, 3]), network("work", 78, &[2])].concat();
        let home = Home::new(&config);
        let mut daemon = home.start().await;
        let networks = &daemon.supervisor.networks;
        let found = |network, meant: &str| {
            super::names::peer(networks, network, meant).map(|found| {
                format!(
                    "{}/{}/{}",
                    found.network.name(),
                    found.peer.name,
                    found.address
                )
            })
        };
        assert_eq!(found(None, "p3").unwrap(), "home/p3/10.77.0.3");
        assert_eq!(
            found(None, &id(3).to_string()).unwrap(),
            "home/p3/10.77.0.3"
        );
        assert_eq!(found(None, "10.78.0.2").unwrap(), "work/p2/10.78.0.2");
        let derived = super::names::addresses(&networks[0], &networks[0].config.peers[1])[0];
        let expected = format!("home/p3/{derived}");
        assert_eq!(found(None, &derived.to_string()).unwrap(), expected);
        assert_eq!(found(None, "p2").unwrap_err().kind, ErrorKind::Usage);
        assert_eq!(found(Some("work"), "p2").unwrap(), "work/p2/10.78.0.2");
        assert_eq!(
            found(Some("work"), "p3").unwrap_err().kind,
            ErrorKind::NoSuch
        );
        assert_eq!(
            found(Some("nowhere"), "p3").unwrap_err().kind,
            ErrorKind::NoSuch
        );
        daemon.down(Some("home")).await.unwrap();
        let request = |reply| Request::Ping {
            network: None,
            peer: "p3".to_owned(),
            timeout: std::time::Duration::from_millis(10),
            reply,
        };
        let error = daemon.ask(request).await.unwrap_err();
        assert!(error.message.contains("meshctl up home"), "{error}");
        daemon.stop().await;
    });
}

#[test]
fn without_configuration_there_is_an_identity_to_hand_out() {
    sandbox::run(async || {
        let home = Home::new("");
        let mut daemon = home.start().await;
        assert!(daemon.status().await.networks.is_empty());
        let error = daemon.down(None).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSuch);
        assert!(home.path("state/networks/home/identity.key").exists());
        daemon.stop().await;
    });
}
