//! The program `mesh-relay` as its users see it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Client, Host};
use mesh_core::identity::RelayUrl;
use mesh_core::wire::relay::{Frame, ServerMessage, parse_frame};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A directory of its own for each test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-relay-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn config(&self, text: &str) -> PathBuf {
        let path = self.0.join("relay.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn state(&self) -> PathBuf {
        self.0.join("state")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn program(config: &Path, scratch: &Scratch) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-relay"));
    command.env_remove("RUST_LOG").arg("--config").arg(config);
    command.arg("--state-dir").arg(scratch.state());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn check(scratch: &Scratch, config: &str) -> Output {
    let config = scratch.config(config);
    program(&config, scratch).arg("--check").output().unwrap()
}

/// A running relay that is killed in the end.
struct Running {
    child: Child,
    notices: UnixDatagram,
}

impl Running {
    /// Starts it and waits until it says that it is ready.
    fn start(mut command: Command, scratch: &Scratch) -> Self {
        let path = scratch.0.join("notify");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        command.env("NOTIFY_SOCKET", &path).stderr(Stdio::piped());
        let running = Self {
            child: command.spawn().unwrap(),
            notices: socket,
        };
        assert!(running.notice().contains("READY=1"));
        running
    }

    /// The next thing that it tells systemd.
    fn notice(&self) -> String {
        let mut buffer = [0; 256];
        let len = loop {
            match self.notices.recv(&mut buffer) {
                // A signal to the test program, such as a child's end, is no answer.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => break result.expect("the relay tells how it is"),
            }
        };
        text(&buffer[..len])
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end; returns whether it succeeded, and what it logged.
    fn end(mut self) -> (bool, String) {
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (self.child.wait().unwrap().success(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn print_url(config: &Path, scratch: &Scratch, address: &str) -> Output {
    program(config, scratch)
        .args(["--print-url", address])
        .output()
        .unwrap()
}

#[test]
fn check_names_file_line_and_key() {
    let scratch = Scratch::new("check");
    let good = check(&scratch, "access = \"open\"\n");
    assert!(good.status.success());
    assert_eq!(
        (text(&good.stdout), text(&good.stderr)),
        (String::new(), String::new())
    );

    let bad = check(
        &scratch,
        "access = \"open\"\nlisten = \"all\"\nnetworks = [\"x\"]\n",
    );
    assert_eq!(bad.status.code(), Some(1));
    let file = scratch.0.join("relay.toml");
    let shown = text(&bad.stderr);
    assert!(
        shown.contains(&format!("{}:2: listen: ", file.display())),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("{}:3: networks: is not supported", file.display())),
        "{shown}"
    );
    assert!(!scratch.state().exists(), "checking makes no key");
}

#[test]
fn a_relay_that_admits_nobody_says_so() {
    let scratch = Scratch::new("nobody");
    let output = check(&scratch, "");
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("admits nobody"));
}

#[test]
fn a_missing_file_is_an_error_only_if_it_was_asked_for() {
    let scratch = Scratch::new("missing");
    let output = program(Path::new("/nonexistent/relay.toml"), &scratch)
        .arg("--check")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nonexistent/relay.toml"));
}

#[test]
fn print_url_makes_the_key_and_repeats_it() {
    let scratch = Scratch::new("url");
    let config = scratch.config("access = \"open\"\nlisten = [\"[::]:4443\"]\n");
    let first = print_url(&config, &scratch, "relay.example.org");
    assert!(first.status.success());
    let url: RelayUrl = text(&first.stdout).trim().parse().unwrap();
    assert_eq!((url.host.as_str(), url.port), ("relay.example.org", 4443));
    let second = print_url(&config, &scratch, "[2001:db8::1]:443");
    assert_eq!(
        text(&second.stdout),
        format!("mesh://{}@[2001:db8::1]:443\n", url.id)
    );
    let third = print_url(&config, &scratch, "no host");
    assert_eq!(third.status.code(), Some(1));
    assert!(text(&third.stderr).contains("no host"));
}

#[test]
fn bad_usage_is_2() {
    let scratch = Scratch::new("usage");
    let config = scratch.config("");
    let output = program(&config, &scratch)
        .arg("--nonsense")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let scratch = Scratch::new("taken");
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let config = scratch.config(&format!("listen = [\"{address}\"]\nstun_alt_port = 0\n"));
    let output = program(&config, &scratch).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(
        shown.contains(&address.to_string()) && shown.contains("another program"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_prints_its_line_serves_and_stops_on_sigterm() {
    let scratch = Scratch::new("serve");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let config = scratch.config(&format!(
        "listen = [\"{address}\"]\nstun_alt_port = 0\naccess = \"open\"\n"
    ));
    let running = Running::start(program(&config, &scratch), &scratch);
    let printed = text(&print_url(&config, &scratch, &address.to_string()).stdout);
    let url: RelayUrl = printed.trim().parse().unwrap();

    let host = Host::new(1, Ipv4Addr::LOCALHOST).await;
    let mut client = host.connect(url.id, address).await.unwrap();
    client.greet().await;
    client.ping(1).await;
    running.signal(Signal::SIGUSR1);
    client.ping(2).await;
    running.signal(Signal::SIGTERM);
    let started = Instant::now();
    let (last, _) = client.closed().await;
    assert_eq!(last, [ServerMessage::Draining]);
    assert!(running.notice().contains("STOPPING=1"));
    let (success, log) = running.end();
    assert!(success, "{log}");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert!(log.contains(printed.trim()), "{log}");
    assert!(log.contains("clients=1 "), "{log}");
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    assert!(log.lines().count() < 12, "{log}");
}

/// What Prometheus would be told: samples by name and labels.
fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_tell_of_clients_channels_forwarded_packets_and_drops() {
    let scratch = Scratch::new("metrics");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let metrics = {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        free.local_addr().unwrap()
    };
    let config = scratch.config(&format!(
        "listen = [\"{address}\"]\nstun_alt_port = 0\naccess = \"open\"\nmetrics = \"{metrics}\"\n"
    ));
    let running = Running::start(program(&config, &scratch), &scratch);
    let first = scrape(metrics);
    assert!(first["mesh_relay_clients"] == 0.0 && first["mesh_relay_channels"] == 0.0);

    let printed = text(&print_url(&config, &scratch, &address.to_string()).stdout);
    let url: RelayUrl = printed.trim().parse().unwrap();
    let mut clients = Vec::new();
    for seed in [1, 2] {
        let host = Host::new(seed, Ipv4Addr::LOCALHOST).await;
        let mut client: Client = host.connect(url.id, address).await.unwrap();
        client.greet().await;
        clients.push(client);
    }
    let [mut a, mut b]: [Client; 2] = clients.try_into().ok().unwrap();
    let (channel, _) = a.channel_to(&mut b).await;
    a.send(channel, b"first").await;
    b.host.receive().await;
    let to = b.host.identity.id();
    let packet = b"by the control connection".to_vec();
    a.say(mesh_core::wire::relay::ClientMessage::Send { to, packet })
        .await;
    b.hear().await;
    a.send(channel ^ 1, b"to nobody").await;
    a.host.receive().await; // it is told that there is no such channel

    let now = scrape(metrics);
    let told = |name: &str| now[name];
    assert_eq!(told("mesh_relay_clients"), 2.0);
    assert_eq!(told("mesh_relay_newcomers"), 0.0);
    assert_eq!(told("mesh_relay_channels"), 1.0);
    assert_eq!(told("mesh_relay_forwarded_packets_total"), 1.0);
    assert_eq!(told("mesh_relay_forwarded_bytes_total"), 13.0);
    assert_eq!(told("mesh_relay_control_packets_total"), 1.0);
    assert_eq!(
        told("mesh_relay_drops_total{reason=\"unknown_channel\"}"),
        1.0
    );
    assert_eq!(told("mesh_relay_drops_total{reason=\"rate_limit\"}"), 0.0);
    running.signal(Signal::SIGTERM);
    assert!(running.end().0);

    let _taken = TcpListener::bind(metrics).unwrap();
    let refused = program(&config, &scratch).output().unwrap();
    let shown = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    let expected = format!("cannot offer metrics at {metrics}: ");
    assert!(shown.contains(&expected), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_after_sigkill_is_noticed_within_a_round_trip() {
    let scratch = Scratch::new("restart");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let config = scratch.config(&format!(
        "listen = [\"{address}\"]\nstun_alt_port = 0\naccess = \"open\"\n"
    ));
    let relay = Running::start(program(&config, &scratch), &scratch);
    let url: RelayUrl = text(&print_url(&config, &scratch, &address.to_string()).stdout)
        .trim()
        .parse()
        .unwrap();
    let connect = async |seed| {
        let host = Host::new(seed, Ipv4Addr::LOCALHOST).await;
        let mut client: Client = host.connect(url.id, address).await.unwrap();
        client.greet().await;
        client
    };
    let (mut a, mut b) = (connect(1).await, connect(2).await);
    let (ours, _) = a.channel_to(&mut b).await;
    drop(relay);
    let relay = Running::start(program(&config, &scratch), &scratch);

    let started = Instant::now();
    a.send(ours, b"anybody there?").await;
    assert_eq!(
        parse_frame(&a.host.receive().await),
        Ok(Frame::Rebind { channel: ours })
    );
    a.say(mesh_core::wire::relay::ClientMessage::Ping { nonce: 1 })
        .await;
    let (_, reason) = a.closed().await;
    assert_eq!(reason, "the relay restarted");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    connect(1).await.ping(2).await;
    relay.signal(Signal::SIGINT);
    assert!(relay.end().0);
}
