//! What is looked up, chosen and read.

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use mesh_core::config::Config;
use mesh_core::microbench::{Paths, Roster, Routes, engine_with};
use mesh_core::wire::classify as tell;

/// Peers in the tables: a household, a company, and near the limit of one network.
const PEERS: [u32; 3] = [10, 1_000, 10_000];
const ROSTER: u32 = 10_000;
/// A second each is too long for criterion's hundred.
const ROSTER_SAMPLES: usize = 10;

pub(crate) fn classify(criterion: &mut Criterion) {
    let mut wireguard = [0xee; 1_312];
    wireguard[..4].copy_from_slice(&[4, 0, 0, 0]);
    let mut frame = [0xee; 1_320];
    frame[..4].copy_from_slice(&[0x20, 0, 0, 0]);
    let stun =
        mesh_core::wire::stun::binding_request(&[9; 12], mesh_core::wire::stun::Change::Nothing);
    let quic = [0x41; 1_200];
    let mut group = criterion.benchmark_group("classify");
    let datagrams: [(&str, &[u8]); 4] = [
        ("wireguard", &wireguard),
        ("relay-frame", &frame),
        ("stun", &stun),
        ("quic", &quic),
    ];
    for (name, datagram) in datagrams {
        group.bench_function(name, |b| b.iter(|| tell(black_box(datagram))));
    }
}

pub(crate) fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for peers in PEERS {
        for (family, mut routes) in [("v4", Routes::v4(peers)), ("v6", Routes::v6(peers))] {
            let id = |kind: &str| BenchmarkId::new(format!("{family}-{kind}"), peers);
            group.bench_function(id("same"), |b| b.iter(|| routes.lookup_same()));
            group.bench_function(id("changing"), |b| b.iter(|| routes.lookup_next()));
        }
    }
}

pub(crate) fn choose(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("choose-path");
    for count in [1, 8, 28] {
        let mut paths = Paths::new(count);
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| paths.choose());
        });
    }
}

pub(crate) fn roster(criterion: &mut Criterion) {
    let roster = Roster::new(ROSTER);
    let text = roster.config();
    let mut group = criterion.benchmark_group("roster");
    group.sample_size(ROSTER_SAMPLES);
    group.throughput(Throughput::Elements(ROSTER.into()));
    group.bench_function("add-network", |b| {
        let add = |setup| engine_with(setup).map_err(|error| panic!("{error}"));
        b.iter_batched(|| roster.setup(), add, BatchSize::PerIteration);
    });
    group.bench_function("parse-config", |b| {
        b.iter(|| match Config::parse(&text, Path::new("config.toml")) {
            Ok(config) => config,
            Err(errors) => panic!("{errors}"),
        });
    });
}
