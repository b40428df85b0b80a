//! A better path appears under full load: 80,000 packets/s move from a relay to a direct path that is 150 ms faster.

use std::collections::HashSet;
use std::io::IoSlice;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Arrivals, Namespace, Node, Relay, TwoNats, within};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};

use crate::cases::Run;

const SOON: Duration = Duration::from_secs(20);
/// Packets a second, so many at a time.
const RATE: u32 = 80_000;
const BURST: u32 = 100;
/// Bytes of a packet's payload.
const SIZE: usize = 64;
/// What the way over the relay takes longer, one way, than the direct one.
const DETOUR: Duration = Duration::from_millis(150);
/// On the relay before the direct path can open.
const BEFORE: Duration = Duration::from_secs(2);
/// And on the direct one: spare paths are measured every 15 s.
const AFTER: Duration = Duration::from_secs(20);
/// The next attempt to open a direct path may be so far away.
const PUNCH: Duration = Duration::from_secs(60);
/// UDP payload of a probe, and of its answer, in a relay's frame.
const PROBE_BYTES: usize = 8 + 64 + 32;
const PORT: u16 = 9_002;
/// What a relay allows a client by default is less.
const RELAY: &str = "access = \"open\"\nrate_limit = \"10 Gbit/s\"\n";
/// For what arrives while the receiver does not run.
const BUFFER: usize = 256 << 20;

/// Packets lost, packets taken for replays, and probes over the relay that were not answered.
pub(crate) fn run(run: &Run<'_>) -> Result<Vec<f64>> {
    use mesh_tests::lab::Nat::Masquerade;
    let mut net = TwoNats::new(Masquerade, Masquerade)?;
    // Twice over the cable: to the relay and from it.
    let detour = (DETOUR + run.delay) / 2;
    let more = detour.saturating_sub(run.delay);
    net.internet.delay_far(run.delay, net.relay_address, more)?;
    net.internet.block_udp(net.nat_a.wan, net.nat_b.wan)?;
    let relay = Relay::start_with(run.lab, &net.relay, net.relay_address, RELAY)?;
    let (a, b) = Node::pair(run.lab, &net.a, &net.b, &[&relay.url])?;
    let (mut a, mut b) = (a.quiet(), b.quiet());
    for node in [&mut a, &mut b] {
        node.start()?;
        node.wait_relay(SOON)?;
    }
    let overlay = b.overlay()?;
    within("a to reach b", SOON, || Ok(a.icmp(overlay, 1).is_ok()))?;
    a.wait_path("b", "relay", SOON)?;
    for node in [&a, &b] {
        // The load comes in bursts that are larger than what the device takes by default.
        node.ns.ip("link set mesh-lab txqueuelen 10000")?;
    }
    let over = AtomicBool::new(false);
    let receiver = receiver(&b.ns, overlay)?;
    let (sent, received, probes) = std::thread::scope(|scope| -> Result<_> {
        let sink = scope.spawn(|| receive(&receiver, &over));
        let source = scope.spawn(|| {
            let sent = send(&a.ns, overlay, &over);
            over.store(true, Ordering::Relaxed);
            sent
        });
        let probes = watch(&net, &a, &b);
        over.store(true, Ordering::Relaxed);
        let sent = source.join().expect("no panic")?;
        let received = sink.join().expect("no panic");
        Ok((sent, received, probes?))
    })?;
    let machine = dropped_by_the_host(&a.ns, &b.ns)?;
    ensure!(
        machine == 0,
        "this host dropped {machine} packets by itself"
    );
    ensure!(
        sent > 0 && received > 0,
        "{sent} were sent, {received} arrived"
    );
    let replayed = a.drops("replayed")? + b.drops("replayed")?;
    Ok(vec![(sent - received) as f64, replayed as f64, probes])
}

/// Lets the path change, and counts probes over the relay afterwards that a did not get an answer to.
fn watch(net: &TwoNats, a: &Node, b: &Node) -> Result<f64> {
    std::thread::sleep(BEFORE);
    let kind = a.path_kind("b")?;
    ensure!(
        kind.as_deref() == Some("relay"),
        "the path is {kind:?} too early"
    );
    net.internet.unblock()?;
    a.wait_path("b", "direct", PUNCH)?;
    b.wait_path("a", "direct", SOON)?;
    // What was sent before is still under way on the relay.
    std::thread::sleep(DETOUR * 4);
    let (at_a, at_b) = (
        Arrivals::watch(&a.ns, PROBE_BYTES)?,
        Arrivals::watch(&b.ns, PROBE_BYTES)?,
    );
    std::thread::sleep(AFTER);
    let relayed = |seen: &Arrivals| {
        seen.count(|seen| seen.from.ip() == std::net::IpAddr::from(net.relay_address))
    };
    // Each side's probes, and the answers to the other one's.
    let (a_got, b_got) = (relayed(&at_a), relayed(&at_b));
    ensure!(a_got > 0 && b_got > 0, "no probe went over the relay");
    Ok(a_got.abs_diff(b_got) as f64)
}

fn receiver(ns: &Namespace, overlay: Ipv6Addr) -> Result<UdpSocket> {
    let socket = ns.udp((overlay, PORT).into())?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("a large buffer")?;
    socket.set_read_timeout(Some(DETOUR * 4))?;
    Ok(socket)
}

/// Sends numbered packets until it is over; returns how many.
fn send(ns: &Namespace, overlay: Ipv6Addr, over: &AtomicBool) -> Result<u64> {
    let socket = ns.udp((Ipv6Addr::UNSPECIFIED, 0).into())?;
    let to = SockaddrStorage::from(SocketAddr::from((overlay, PORT)));
    let segment = SIZE as u16;
    let (start, mut number) = (Instant::now(), 0_u64);
    while !over.load(Ordering::Relaxed) {
        let mut burst = [0; SIZE * BURST as usize];
        for packet in burst.chunks_mut(SIZE) {
            packet[..8].copy_from_slice(&number.to_le_bytes());
            number += 1;
        }
        let cut = [ControlMessage::UdpGsoSegments(&segment)];
        let iov = [IoSlice::new(&burst)];
        sendmsg(socket.as_raw_fd(), &iov, &cut, MsgFlags::empty(), Some(&to))?;
        let due = start + Duration::from_secs(1).mul_f64(number as f64 / f64::from(RATE));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let rate = number as f64 / start.elapsed().as_secs_f64();
    ensure!(
        rate > f64::from(RATE) * 0.95,
        "only {rate:.0} packets/s were sent"
    );
    Ok(number)
}

/// Counts packets, each once, until none has come for a while after it was over.
fn receive(socket: &UdpSocket, over: &AtomicBool) -> u64 {
    let mut numbers = HashSet::new();
    let mut buffer = [0; SIZE];
    loop {
        match socket.recv(&mut buffer) {
            Ok(SIZE) => {
                numbers.extend(
                    buffer
                        .first_chunk()
                        .map(|number| u64::from_le_bytes(*number)),
                );
            }
            Ok(_) => {}
            Err(_) if over.load(Ordering::Relaxed) => return numbers.len() as u64,
            Err(_) => {}
        }
    }
}

/// What did not even reach meshd at a, or the receiver behind meshd at b.
fn dropped_by_the_host(a: &Namespace, b: &Namespace) -> Result<u64> {
    let link = a.run("ip", &["-j", "-s", "link", "show", "dev", "mesh-lab"])?;
    let link: serde_json::Value = serde_json::from_str(&link)?;
    let device = link[0]["stats64"]["tx"]["dropped"].as_u64();
    let udp = b.run("nstat", &["-asz", "Udp6RcvbufErrors"])?;
    let udp = udp.lines().find_map(|line| {
        let (_, count) = line.split_once("Udp6RcvbufErrors")?;
        count.split_whitespace().next()?.parse::<u64>().ok()
    });
    Ok(device.context("no count of drops")? + udp.context("no count of drops")?)
}
