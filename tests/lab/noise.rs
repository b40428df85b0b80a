//! Whatever anybody sends is counted, never a crash, a flood of log lines or growing memory.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Internet, Node, PeerConfig, Program, Relay, Settings, scenario, within};

use super::SOON;

/// Datagrams sent to each port.
const DATAGRAMS: u64 = 30_000;
/// A daemon may say what is going on, but not once per datagram.
const LOG_GROWTH: usize = 256 * 1024;
const MEMORY_GROWTH: u64 = 64 * 1024 * 1024;

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }

    /// A datagram that is plain noise, or looks like one of the protocols on the port from its first bytes.
    fn datagram(&mut self) -> Vec<u8> {
        let kind = self.next() % 8;
        let mut bytes = match kind {
            1 => self.bytes(148),
            2 => self.bytes(92),
            3 => self.bytes(64),
            _ => {
                let len = usize::try_from(self.next() % 1_400).unwrap_or(0);
                self.bytes(len)
            }
        };
        let start: Vec<u8> = match kind {
            // WireGuard: initiation, response, cookie, data.
            1 => vec![1, 0, 0, 0],
            2 => vec![2, 0, 0, 0],
            3 => vec![3, 0, 0, 0],
            4 => vec![4, 0, 0, 0],
            // A STUN request and its magic cookie.
            5 => vec![0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42],
            // A relay frame.
            6 => vec![0x20 + (self.next() % 3).to_le_bytes()[0], 0, 0, 0],
            // A QUIC initial.
            7 => vec![0xc0, 0, 0, 0, 1, 8],
            _ => vec![],
        };
        let len = start.len().min(bytes.len());
        bytes[..len].copy_from_slice(&start[..len]);
        bytes
    }
}

fn memory(program: &Program) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Runs `noise` and checks that the program behind it took no harm.
fn unharmed(program: &mut Program, noise: impl FnOnce() -> Result<()>) -> Result<()> {
    let (log, rss) = (program.log().len(), memory(program)?);
    noise()?;
    ensure!(program.is_running(), "it died:\n{}", program.log());
    let grown = program.log().len() - log;
    ensure!(grown < LOG_GROWTH, "the log grew by {grown} bytes");
    let grown = memory(program)?.saturating_sub(rss);
    ensure!(grown < MEMORY_GROWTH, "memory grew by {grown} bytes");
    Ok(())
}

/// A public host `a` that `b` knows the address of, and an attacker.
struct Target {
    internet: Internet,
    a: Node,
    b: Node,
    address: SocketAddr,
}

impl Target {
    fn new(lab: &mesh_tests::lab::Lab, relays: &[String]) -> Result<Self> {
        let mut internet = Internet::new(false)?;
        let ((ns_a, address), (ns_b, _)) = (internet.host("a")?, internet.host("b")?);
        let (mut a, mut b) = (Node::new(lab, &ns_a, "a")?, Node::new(lab, &ns_b, "b")?);
        let address = SocketAddr::new(address.into(), 41_820);
        a.configure(&Settings {
            listen_port: 41_820,
            relays: relays.to_vec(),
            address: Some("10.77.0.1".to_owned()),
            peers: vec![b.as_peer("10.77.0.2")],
            ..Settings::default()
        })?;
        b.configure(&Settings {
            address: Some("10.77.0.2".to_owned()),
            peers: vec![PeerConfig {
                endpoint: Some(address),
                ..a.as_peer("10.77.0.1")
            }],
            ..Settings::default()
        })?;
        a.start()?;
        b.start()?;
        let target = Self {
            internet,
            a,
            b,
            address,
        };
        target.reachable()?;
        Ok(target)
    }

    fn reachable(&self) -> Result<()> {
        let overlay = self.a.overlay()?;
        within("b to reach a", SOON, || Ok(self.b.icmp(overlay, 1).is_ok()))?;
        self.b.icmp(overlay, 5)
    }
}

#[test]
fn random_datagrams_on_the_mesh_port_are_counted() {
    scenario(|lab| {
        let mut target = Target::new(lab, &[])?;
        let (attacker, _) = target.internet.host("attacker")?;
        let socket = attacker.udp("0.0.0.0:0".parse()?)?;
        let before: u64 = all_drops(&target.a)?;
        let address = target.address;
        unharmed(target.a.program(), || {
            let mut random = Random(0x5eed);
            for number in 0..DATAGRAMS {
                socket.send_to(&random.datagram(), address)?;
                // A socket buffer's worth at a time, so that the daemon and not its buffer does the dropping.
                if number % 100 == 99 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        })?;
        target.reachable()?;
        let counted = all_drops(&target.a)? - before;
        ensure!(
            counted > DATAGRAMS / 4,
            "{counted} of {DATAGRAMS} were counted"
        );
        Ok(())
    });
}

fn all_drops(node: &Node) -> Result<u64> {
    let status = node.status()?;
    let drops = status["drops"].as_object().context("status has drops")?;
    Ok(drops.values().filter_map(serde_json::Value::as_u64).sum())
}

#[test]
fn random_datagrams_on_the_relay_port_do_not_hurt_its_clients() {
    scenario(|lab| {
        let mut pair = super::Pair::behind(
            lab,
            mesh_tests::lab::Nat::Symmetric,
            mesh_tests::lab::Nat::Symmetric,
        )?;
        pair.settle("relay")?;
        let (attacker, _) = pair.net.internet.host("attacker")?;
        let socket = attacker.udp("0.0.0.0:0".parse()?)?;
        let relay: &mut Relay = &mut pair.relay;
        let address = pair.net.relay_address;
        for port in [443, 3478] {
            let to = SocketAddr::new(address.into(), port);
            unharmed(relay.program(), || {
                let mut random = Random(0x5eed + u64::from(port));
                for number in 0..DATAGRAMS {
                    // The alternative port may not be open: then the answer is an error on our socket, and no matter.
                    let _ = socket.send_to(&random.datagram(), to);
                    if number % 100 == 99 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                Ok(())
            })?;
        }
        pair.a.icmp(pair.b.overlay()?, 20)
    });
}

#[test]
fn random_bytes_on_the_control_socket_do_not_hurt() {
    scenario(|lab| {
        let mut target = Target::new(lab, &[])?;
        let path = target.a.socket_path();
        unharmed(target.a.program(), || {
            let mut random = Random(0x5eed);
            let mut open = Vec::new();
            for number in 0..300_u32 {
                // Beyond its limit the daemon may close a connection at once.
                let Ok(mut stream) = UnixStream::connect(&path) else {
                    continue;
                };
                stream.set_write_timeout(Some(Duration::from_millis(200)))?;
                stream.set_read_timeout(Some(Duration::from_millis(20)))?;
                let len = usize::try_from(random.next() % 4_000).unwrap_or(0);
                // A proper D-Bus greeting before the noise, half of the time.
                if number % 2 == 0 {
                    let _ = stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n");
                }
                let _ = stream.write_all(&random.bytes(len));
                let _ = stream.read(&mut [0; 512]);
                if number % 3 == 0 {
                    open.push(stream);
                }
            }
            Ok(())
        })?;
        // The connections are closed now; the daemon answers.
        within("the daemon to answer", SOON, || {
            Ok(target.a.ctl(&["status"])?.code == 0)
        })?;
        target.reachable()
    });
}
