//! The data thread from outside: through sockets, TUN devices and commands.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command as Program;

use mesh_core::engine::{HostAddress, PathKind, PeerSetup};
use mesh_core::identity::{Identity, NetworkId, RelayUrl};
use nix::sched::{CloneFlags, setns, unshare};

use super::*;
use crate::netlink::monitor::Surroundings;
use crate::relays::RelayDialer;
use crate::sockets::Family;
use crate::tuning::Tuning;

const NETWORK: NetworkIndex = NetworkIndex(9);

fn identity(seed: u8) -> Identity {
    Identity::from_seed([seed; 32].into())
}

fn key(seed: u8) -> PeerKey {
    PeerKey::Mesh(identity(seed).id())
}

/// The overlay address of host `seed` beside the derived one.
fn overlay(seed: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, seed).into()
}

fn setup(seed: u8, peer: u8, endpoints: Vec<SocketAddr>, relays: Vec<RelayUrl>) -> NetworkSetup {
    NetworkSetup {
        name: "home".to_owned(),
        id: NetworkId::from_name("home"),
        identity: identity(seed),
        addresses: vec![overlay(seed)],
        mtu: limits::MAX_INNER_MTU,
        peers: vec![PeerSetup {
            key: key(peer),
            name: "peer".to_owned(),
            addresses: vec![overlay(peer)],
            routes: Vec::new(),
            psk: None,
            endpoints,
        }],
        relays,
    }
}

/// A network namespace that goes with its value.
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(namespace.join().unwrap());
        namespace.ip("link set lo up");
        namespace
    }

    fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                job()
            });
            thread.join().unwrap()
        })
    }

    fn ip(&self, arguments: &str) {
        self.enter(|| {
            let status = Program::new("ip")
                .args(arguments.split(' '))
                .status()
                .unwrap();
            assert!(status.success(), "ip {arguments}");
        });
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A host with a data plane and the interface `mesh`.
struct Host {
    namespace: Namespace,
    sockets: Arc<Sockets>,
    started: Started,
    seed: u8,
}

impl Host {
    fn new(namespace: Namespace, seed: u8) -> Self {
        let sockets = namespace.enter(|| Arc::new(Sockets::bind(41_820).unwrap()));
        let started =
            DataPlane::start([seed; 32], Arc::clone(&sockets), Tuning::default()).unwrap();
        Self {
            namespace,
            sockets,
            started,
            seed,
        }
    }

    /// Knows the peer's address.
    async fn join(&self, peer: u8, endpoints: Vec<SocketAddr>) {
        self.run(setup(self.seed, peer, endpoints, Vec::new()))
            .await;
    }

    async fn run(&self, setup: NetworkSetup) {
        let tun = self.namespace.enter(|| {
            tun_rs::DeviceBuilder::new()
                .name("mesh")
                .offload(true)
                .build_sync()
                .unwrap()
        });
        let handle = &self.started.handle;
        handle.add_network(NETWORK, setup, tun).await.unwrap();
        self.namespace
            .ip(&format!("addr add {}/24 dev mesh", overlay(self.seed)));
        self.namespace.ip("link set mesh mtu 1280 up");
    }

    async fn counters(&self) -> Counters {
        self.started.handle.status().await.unwrap().counters
    }
}

/// Two hosts on one cable, or nothing, loudly, when not root.
fn cable() -> Option<(Host, Host)> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root for network namespaces");
        return None;
    }
    let (a, b) = (Namespace::new(), Namespace::new());
    a.ip(&format!(
        "link add cable type veth peer name cable netns {}",
        b.path()
    ));
    for (namespace, address) in [(&a, "44.128.0.1/24"), (&b, "44.128.0.2/24")] {
        namespace.ip(&format!("addr add {address} dev cable"));
        namespace.ip("link set cable up");
    }
    Some((Host::new(a, 1), Host::new(b, 2)))
}

/// Two hosts that are in a network, one of which knows where the other is.
async fn two_hosts() -> Option<(Host, Host)> {
    let (a, b) = cable()?;
    a.join(2, vec!["44.128.0.2:41820".parse().unwrap()]).await;
    b.join(1, Vec::new()).await;
    Some((a, b))
}

#[tokio::test]
async fn an_overlay_ping_names_the_direct_path() {
    let Some((a, b)) = two_hosts().await else {
        return;
    };
    let wait = Duration::from_secs(5);
    let pong = a.started.handle.ping(NETWORK, key(2), wait).await.unwrap();
    assert_eq!(pong.unwrap().via, "44.128.0.2:41820");
    let pong = b.started.handle.ping(NETWORK, key(1), wait).await.unwrap();
    assert_eq!(pong.unwrap().via, "44.128.0.1:41820");
}

/// Does what the supervisor does for a host that knows no more than a relay.
async fn join_by_relay(mut host: Host, peer: u8, relay: RelayUrl) -> DataPlane {
    let sockets = Arc::clone(&host.sockets);
    let quic = std::mem::replace(&mut host.started.quic, mpsc::channel(1).1);
    let mut outputs = std::mem::replace(&mut host.started.outputs, mpsc::channel(1).1);
    let dialer = RelayDialer::new(sockets, quic, host.started.handle.clone()).unwrap();
    dialer.set_identity(NETWORK, identity(host.seed));
    tokio::spawn(async move {
        while let Some(output) = outputs.recv().await {
            if let FromData::Relay(id, action) = output {
                dialer.handle(id, action);
            }
        }
    });
    host.run(setup(host.seed, peer, Vec::new(), vec![relay]))
        .await;
    let handle = host.started.handle.clone();
    let ip = format!("44.128.0.{}", host.seed).parse().unwrap();
    let address = HostAddress {
        ip,
        virtual_interface: false,
        mtu: 1_500,
    };
    let surroundings = Surroundings {
        addresses: vec![address],
        gateways: Vec::new(),
        lan: Vec::new(),
    };
    handle.surroundings(surroundings).await.unwrap();
    handle
}

#[tokio::test]
async fn two_hosts_find_each_other_by_a_relay_and_then_speak_directly() {
    let Some((a, b)) = cable() else { return };
    let config = "listen = [\"44.128.0.1:3443\"]\naccess = \"open\"\n";
    let config = mesh_relay::config::Config::parse(config, "relay.toml".as_ref()).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let relay = a.namespace.enter(|| {
        let _runtime = runtime.enter();
        mesh_relay::Relay::bind(&config, &identity(9)).unwrap()
    });
    tokio::spawn(relay.run(std::future::pending()));
    let url = RelayUrl {
        id: identity(9).id(),
        host: "44.128.0.1".to_owned(),
        port: 3_443,
    };
    let a = join_by_relay(a, 2, url.clone()).await;
    let _b = join_by_relay(b, 1, url).await;
    let mut kinds = Vec::new();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while kinds.last() != Some(&PathKind::Direct) && std::time::Instant::now() < deadline {
        let wait = Duration::from_secs(2);
        if let Some(pong) = a.ping(NETWORK, key(2), wait).await.unwrap() {
            kinds.push(pong.kind);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(kinds.first(), Some(&PathKind::Relay), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&PathKind::Direct), "{kinds:?}");
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

#[tokio::test]
async fn bulk_data_crosses_unharmed_in_both_directions() {
    let Some((a, b)) = two_hosts().await else {
        return;
    };
    let data = noise(16 << 20);
    let listener = b
        .namespace
        .enter(|| TcpListener::bind((overlay(2), 5_000)).unwrap());
    let stream = a
        .namespace
        .enter(|| TcpStream::connect((overlay(2), 5_000)).unwrap());
    std::thread::scope(|scope| {
        // Sends back what comes.
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            (&stream).write_all(&data).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut returned = Vec::new();
        (&stream).read_to_end(&mut returned).unwrap();
        assert!(
            returned == data,
            "{} of {} bytes",
            returned.len(),
            data.len()
        );
    });
    let counters = a.counters().await;
    assert!(counters.packets_to_tun > 10_000 && counters.packets_from_tun > 10_000);
    assert_eq!(
        (counters.tun_read_errors, counters.tun_write_errors),
        (0, 0)
    );
    let report = b.started.handle.status().await.unwrap();
    assert_eq!(report.send_errors, SendErrors::default());
    assert_eq!(report.drops.malformed + report.drops.unauthentic, 0);
}

#[tokio::test]
async fn a_deleted_interface_is_reported_and_not_waited_on() {
    let Some((mut a, _b)) = two_hosts().await else {
        return;
    };
    a.namespace.ip("link del mesh");
    let lost = async {
        loop {
            match a.started.outputs.recv().await {
                Some(FromData::TunLost(network)) => break network,
                Some(_) => {}
                None => panic!("the data thread has ended"),
            }
        }
    };
    let lost = tokio::time::timeout(Duration::from_secs(5), lost)
        .await
        .unwrap();
    assert_eq!(lost, NETWORK);
    let before = a.counters().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = a.counters().await;
    assert!(after.wakeups - before.wakeups < 50, "{before:?} {after:?}");
    a.started.handle.remove_network(NETWORK).await.unwrap();
    // The name and the index are free again.
    a.join(2, Vec::new()).await;
}

#[tokio::test]
async fn removing_a_network_removes_its_interface() {
    let Some((a, _b)) = two_hosts().await else {
        return;
    };
    a.started.handle.remove_network(NETWORK).await.unwrap();
    let exists = a.namespace.enter(|| {
        Program::new("ip")
            .args(["link", "show", "mesh"])
            .output()
            .unwrap()
            .status
            .success()
    });
    assert!(!exists);
}

#[tokio::test]
async fn an_index_in_use_is_refused_and_the_network_stays() {
    let Some((a, _b)) = two_hosts().await else {
        return;
    };
    let tun = a.namespace.enter(|| {
        tun_rs::DeviceBuilder::new()
            .name("other")
            .build_sync()
            .unwrap()
    });
    let error = a
        .started
        .handle
        .add_network(NETWORK, setup(1, 2, Vec::new(), Vec::new()), tun)
        .await;
    assert!(matches!(error, Err(CommandError::Refused(_))));
    let wait = Duration::from_secs(5);
    assert!(
        a.started
            .handle
            .ping(NETWORK, key(2), wait)
            .await
            .unwrap()
            .is_some()
    );
}

fn start() -> (Started, SocketAddr) {
    let sockets = Arc::new(Sockets::bind(0).unwrap());
    let port = sockets.port(Family::V4).unwrap();
    let started = DataPlane::start([0; 32], sockets, Tuning::default()).unwrap();
    (started, (Ipv4Addr::LOCALHOST, port).into())
}

#[tokio::test]
async fn noise_on_the_port_is_counted_and_survived() {
    let (started, to) = start();
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let noise = noise(100_000);
    for (index, len) in (0..500).map(|index| (index, index * 3 % 1_500)) {
        sender.send_to(&noise[index * 100..][..len], to).unwrap();
    }
    let mut counters = Counters::default();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    // One is empty, which is not counted.
    while counters.datagrams_received < 497 && std::time::Instant::now() < deadline {
        counters = started.handle.status().await.unwrap().counters;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(counters.datagrams_received >= 497, "{counters:?}");
    // Three quarters could be QUIC by their first byte.
    let drops = started.handle.status().await.unwrap().drops;
    assert!(drops.unknown_protocol > 50, "{drops:?}");
}

#[tokio::test]
async fn quic_that_nobody_takes_is_dropped() {
    let (mut started, to) = start();
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for index in 0..QUIC_QUEUE + 100 {
        sender.send_to(&[0x40; 50], to).unwrap();
        if index % 8 == 0 {
            started.handle.status().await.unwrap();
        }
    }
    let counters = started.handle.status().await.unwrap().counters;
    assert!(counters.quic_queue_full > 0, "{counters:?}");
    let from = sender.local_addr().unwrap();
    assert_eq!(started.quic.recv().await, Some((from, vec![0x40; 50])));
}

#[tokio::test]
async fn an_idle_data_plane_sleeps() {
    let (started, _) = start();
    let before = started.handle.status().await.unwrap().counters.wakeups;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = started.handle.status().await.unwrap().counters.wakeups;
    // One is for the question.
    assert!(after - before <= 2, "{before} {after}");
}

#[tokio::test]
async fn after_a_shutdown_commands_fail_at_once() {
    let (mut started, _) = start();
    let handle = started.handle;
    handle.shutdown().await;
    started.thread.join();
    assert!(matches!(handle.status().await, Err(CommandError::Stopped)));
    assert!(started.outputs.recv().await.is_none());
    assert!(started.quic.recv().await.is_none());
}
