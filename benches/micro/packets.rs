//! Sealing and opening: the cipher alone, and the whole way through an engine.

use std::time::Duration;

use criterion::measurement::{Measurement, WallTime};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use mesh_core::microbench::{Cipher, Tunnel};
use mesh_core::session::Kernel;

const GROUP: usize = 16;
const PACKET: usize = 1_280;
const SMALL: usize = 64;
/// What a super-packet of 64 KiB is cut into.
const SEGMENTS: usize = 53;
/// What fits one message of UDP GRO, as measured between two hosts.
const COALESCED: usize = 44;

/// Those that this CPU can run.
fn kernels() -> impl Iterator<Item = Kernel> {
    ["ring", "avx512"]
        .into_iter()
        .filter_map(|name| name.parse().ok())
}

pub(crate) fn cipher(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cipher");
    group.throughput(Throughput::Bytes((GROUP * PACKET) as u64));
    for kernel in kernels() {
        let cipher = Cipher::new(kernel, PACKET);
        let mut packets = vec![0x45; cipher.room(GROUP)];
        group.bench_function(BenchmarkId::new("seal-16x1280", kernel), |b| {
            b.iter(|| cipher.seal(&mut packets));
        });
        cipher.seal(&mut packets);
        group.bench_function(BenchmarkId::new("open-16x1280", kernel), |b| {
            let open = |packets: &mut Vec<u8>| cipher.open(packets);
            b.iter_batched_ref(|| packets.clone(), open, BatchSize::SmallInput);
        });
    }
}

pub(crate) fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for kernel in kernels() {
        let mut tunnel = Tunnel::new(kernel);
        let workloads = [
            ("tcp-64KiB", tunnel.super_packet(SEGMENTS)),
            ("16x64", tunnel.small_packets(GROUP, SMALL)),
        ];
        for (name, frames) in workloads {
            let bytes: usize = frames.iter().map(Vec::len).sum();
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(name, kernel), |b| {
                b.iter(|| tunnel.seal(&frames));
            });
        }
    }
}

pub(crate) fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for kernel in kernels() {
        let mut tunnel = Tunnel::new(kernel);
        let workloads = [
            (
                "44x1312-coalesced",
                tunnel.super_packet(COALESCED),
                COALESCED,
            ),
            ("16x1312-single", tunnel.small_packets(GROUP, PACKET), GROUP),
            ("16x96-single", tunnel.small_packets(GROUP, SMALL), GROUP),
        ];
        for (name, frames, packets) in workloads {
            group.throughput(Throughput::Elements(packets as u64));
            group.bench_function(BenchmarkId::new(name, kernel), |b| {
                b.iter_custom(|times| opening(&mut tunnel, &frames, packets, times));
            });
        }
    }
}

/// The time that opening takes, `times` over. No datagram is opened twice, so each time new ones are sealed, unmeasured.
fn opening(tunnel: &mut Tunnel, frames: &[Vec<u8>], packets: usize, times: u64) -> Duration {
    let mut total = WallTime.zero();
    for _ in 0..times {
        tunnel.send(frames);
        let start = WallTime.start();
        let opened = tunnel.open();
        total = WallTime.add(&total, &WallTime.end(start));
        assert_eq!(opened, packets);
    }
    total
}
