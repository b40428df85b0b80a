//! What goes into one system call, and whose the packets are.

use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::engine::{NetworkIndex, SocketId};
use crate::limits;
use crate::path::Route;
use crate::session::cipher::{self, Job, Key, TAG};
use crate::session::{HEADER, OVERHEAD, Sealing, counter};
use crate::wire::relay::FRAME_HEADER;

/// Packets with counters from 0 on, each full of its own.
struct Sender {
    batch: SendBatch,
    key: Arc<Key>,
    next: u64,
}

fn route(port: u16) -> Route {
    Route {
        socket: SocketId::MESH,
        remote: SocketAddr::from(([192, 0, 2, 1], port)),
        channel: None,
        mtu: 1_440,
        fragments: false,
    }
}

impl Sender {
    fn new() -> Self {
        Self {
            batch: SendBatch::new(Kernel::best()),
            key: Arc::new(Key::new(&[7; 32])),
            next: 0,
        }
    }

    fn push(&mut self, route: &Route, length: usize) -> bool {
        let sealing = Sealing {
            receiver: 5,
            key: &self.key,
            counter: self.next,
        };
        let fill = self.next as u8;
        self.next += 1;
        self.batch
            .push(route, &sealing, 0, length, |packet| packet.fill(fill))
    }

    /// How many datagrams are in each run, and the size of all but the last.
    fn runs(&mut self) -> Vec<(usize, usize)> {
        let runs = self.batch.runs();
        runs.map(|(run, bytes)| (bytes.len().div_ceil(run.segment), run.segment))
            .collect()
    }
}

#[test]
fn what_follows_a_shorter_packet_begins_a_run() {
    let mut sender = Sender::new();
    for length in [1_440, 1_440, 320, 320, 1_440, 1_440] {
        assert!(sender.push(&route(1), length));
    }
    let sizes = [1_440, 320, 1_440].map(|length| length + OVERHEAD);
    assert_eq!(sender.runs(), [(3, sizes[0]), (1, sizes[1]), (2, sizes[2])]);
}

#[test]
fn a_run_has_one_destination() {
    let mut sender = Sender::new();
    let fragments = Route {
        fragments: true,
        ..route(2)
    };
    for route in [&route(1), &route(2), &route(2), &fragments, &route(1)] {
        assert!(sender.push(route, 640));
    }
    let counts: Vec<usize> = sender.runs().into_iter().map(|(count, _)| count).collect();
    assert_eq!(counts, [1, 2, 1, 1]);
}

#[test]
fn a_run_is_bounded_in_packets_and_in_bytes() {
    let mut sender = Sender::new();
    for _ in 0..limits::MAX_GSO_SEGMENTS + 1 {
        assert!(sender.push(&route(1), 16));
    }
    assert_eq!(sender.runs().len(), 2);
    assert_eq!(sender.runs()[0].0, limits::MAX_GSO_SEGMENTS);

    let mut sender = Sender::new();
    let most = limits::MAX_GSO_BYTES / (1_440 + OVERHEAD);
    for _ in 0..most + 1 {
        assert!(sender.push(&route(1), 1_440));
    }
    let counts: Vec<usize> = sender.runs().into_iter().map(|(count, _)| count).collect();
    assert_eq!(counts, [most, 1]);
}

#[test]
fn copies_on_a_second_path_are_the_very_same_messages() {
    let mut sender = Sender::new();
    let relay = Route {
        channel: Some(9),
        ..route(2)
    };
    for _ in 0..40 {
        assert!(sender.push(&route(1), 700));
        sender.batch.repeat(&relay);
    }
    let mut messages: Vec<Vec<u8>> = Vec::new();
    for (run, bytes) in sender.batch.runs() {
        let frame = if run.remote == relay.remote {
            FRAME_HEADER
        } else {
            0
        };
        messages.push(bytes[frame..].to_vec());
    }
    assert_eq!(messages.len(), 80);
    for (at, pair) in messages.chunks(2).enumerate() {
        assert_eq!(pair[0], pair[1]);
        assert_eq!(counter(&pair[0]), Some(at as u64));
        let mut data = pair[0][HEADER..].to_vec();
        let mut jobs = [Job {
            counter: at as u64,
            data: &mut data,
        }];
        assert_eq!(cipher::open(Kernel::Ring, &sender.key, &mut jobs), 1);
        assert!(
            data[..data.len() - TAG][..700]
                .iter()
                .all(|byte| *byte == at as u8)
        );
    }
}

#[test]
fn packets_are_handed_out_network_by_network_and_once() {
    let data: Vec<u8> = (0..100).collect();
    let mut received = ReceiveBatch::of(SocketId::MESH, route(1).remote, &data, 20);
    let (_, mut inbox) = received.split();
    let (a, b) = (NetworkIndex(0), NetworkIndex(3));
    for (network, at) in [(a, 0), (a, 20), (b, 40), (a, 60)] {
        inbox.push(network, at..at + 10);
    }
    let mut written = Vec::new();
    let mut write = |received: &mut ReceiveBatch| {
        received.write(|network, storage, ranges| {
            let firsts: Vec<u8> = ranges.iter().map(|range| storage[range.start]).collect();
            written.push((network, firsts));
        });
    };
    write(&mut received);
    write(&mut received);
    let expected = [(a, vec![0, 20]), (b, vec![40]), (a, vec![60])];
    assert_eq!(written, expected);
}
