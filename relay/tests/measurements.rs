//! Measurements: `cargo test --release -p mesh-relay --test measurements -- --ignored --nocapture --test-threads 1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use common::{Client, Host, TestRelay, config};
use mesh_core::identity::Identity;
use mesh_core::relay::server::Access;
use mesh_core::wire::relay::{ClientMessage, PROTOCOL_VERSION, write_data_header};
use mesh_relay::client::connect;
use quinn_udp::{Transmit, UdpSocketState};
use zeroize::Zeroizing;

const FRAME: usize = 1_340;
const BURST: usize = 44;
const TIME: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn forwarding() {
    for burst in [BURST, 1] {
        let mut settings = config(Access::Open);
        settings.rate_limit = 1_000_000_000_000;
        let relay = TestRelay::start(&settings);
        let (mut a, mut b) = (Client::new(&relay, 1).await, Client::new(&relay, 2).await);
        let (ours, _) = a.channel_to(&mut b).await;
        // The receiver reads nothing: what is measured is the relay and the sender on one core each.
        let socket = a.host.duplicate();
        let to = relay.address;
        let sent = tokio::task::spawn_blocking(move || send(&socket, to, ours, burst))
            .await
            .unwrap();
        let stats = relay.stats();
        let seconds = TIME.as_secs_f64();
        println!(
            "bursts of {burst}: sent {:.2} Gbit/s, forwarded {:.2} Gbit/s, {:.0} kpps; {stats}",
            (sent * FRAME) as f64 * 8e-9 / seconds,
            stats.bytes as f64 * 8e-9 / seconds,
            stats.frames as f64 / seconds / 1e3,
        );
        relay.stop().await;
    }
}

fn send(socket: &UdpSocket, to: std::net::SocketAddr, channel: u32, burst: usize) -> usize {
    let state = UdpSocketState::new(socket.into()).unwrap();
    let mut frames = vec![0; FRAME * burst];
    frames
        .chunks_mut(FRAME)
        .for_each(|frame| write_data_header(frame, channel));
    let transmit = Transmit {
        destination: to,
        ecn: None,
        contents: &frames,
        segment_size: (burst > 1).then_some(FRAME),
        src_ip: None,
    };
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < TIME {
        match state.try_send(socket.into(), &transmit) {
            Ok(()) => sent += burst,
            Err(_) => std::thread::yield_now(),
        }
    }
    sent
}

/// Memory of this process, which is relay and clients, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn memory_of_idle_clients() {
    const CLIENTS: u64 = 500;
    let relay = TestRelay::open();
    let host = Host::new(0, std::net::Ipv4Addr::LOCALHOST).await;
    let mut clients = Vec::new();
    let mut before = 0;
    for i in 0..CLIENTS + 50 {
        if i == 50 {
            before = resident();
        }
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&i.to_le_bytes());
        let identity = Identity::from_seed(Zeroizing::new(seed));
        let client = connect(&host.endpoint, &identity, &relay.id, relay.address)
            .await
            .unwrap();
        let (mut sender, mut receiver) = client.split();
        sender
            .send(&ClientMessage::Hello {
                version: PROTOCOL_VERSION,
            })
            .await
            .unwrap();
        receiver.receive().await.unwrap();
        clients.push((sender, receiver));
    }
    assert_eq!(relay.observer.clients() as u64, CLIENTS + 50);
    println!(
        "{} KiB for a client with its relay's side",
        (resident() - before) / CLIENTS
    );
}
