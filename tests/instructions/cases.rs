//! What is counted: each case prepares itself and then does a fixed amount of work inside [`measure`].
//!
//! Built with the `null-cipher` feature: `ring` would be most of every count, and chooses its code by the CPU.

use std::hint::black_box;
use std::path::Path;

use mesh_core::config::Config;
use mesh_core::microbench::{Paths, Roster, Routes, Tunnel, engine_with};
use mesh_core::session::Kernel;
use mesh_core::wire::{Protocol, classify, stun};

/// Name and work.
pub(crate) const CASES: [(&str, fn()); 23] = [
    ("classify", classify_datagrams),
    ("lookup-v4-same-10", || same(Routes::v4(10))),
    ("lookup-v4-same-10000", || same(Routes::v4(10_000))),
    ("lookup-v4-changing-10", || changing(Routes::v4(10))),
    ("lookup-v4-changing-1000", || changing(Routes::v4(1_000))),
    ("lookup-v4-changing-10000", || changing(Routes::v4(10_000))),
    ("lookup-v6-same-10", || same(Routes::v6(10))),
    ("lookup-v6-same-10000", || same(Routes::v6(10_000))),
    ("lookup-v6-changing-10", || changing(Routes::v6(10))),
    ("lookup-v6-changing-1000", || changing(Routes::v6(1_000))),
    ("lookup-v6-changing-10000", || changing(Routes::v6(10_000))),
    ("choose-path-1", || choose(1)),
    ("choose-path-8", || choose(8)),
    ("choose-path-28", || choose(28)),
    ("seal-tcp-64KiB", || {
        seal(|tunnel| tunnel.super_packet(53), 53 * 1_312)
    }),
    ("seal-16x64", || {
        seal(|tunnel| tunnel.small_packets(16, 64), 16 * 96)
    }),
    ("open-44x1312-coalesced", || {
        open(|tunnel| tunnel.super_packet(44), 44)
    }),
    ("open-16x1312-single", || {
        open(|tunnel| tunnel.small_packets(16, 1_280), 16)
    }),
    ("open-16x96-single", || {
        open(|tunnel| tunnel.small_packets(16, 64), 16)
    }),
    ("add-network-500", || add_network(&Roster::new(FEW))),
    ("add-network-stock-2000", || {
        add_network(&Roster::stock(ROSTER))
    }),
    ("parse-config-500", || parse_config(&Roster::new(FEW), FEW)),
    ("parse-config-routes-2000", || {
        parse_config(&Roster::routed(10), 10)
    }),
];

/// So often is done what takes no more than some hundred instructions.
const MANY: usize = 10_000;
/// And what takes thousands.
const SOME: usize = 200;
/// Peers in a network: the work grows with them, so that the benchmark's 10,000 would show no more.
const ROSTER: u32 = 2_000;
/// And peers with IDs: checking that one is a point of a curve takes as long as a hundred lines of configuration.
const FEW: u32 = 500;

/// Does `work` so many `times` and has that counted. Each time has to yield `each`, or the count would mean nothing.
fn measure(times: usize, each: usize, mut work: impl FnMut() -> usize) {
    let mut total = 0;
    counted_by_callgrind(&mut || {
        for _ in 0..times {
            total += black_box(work());
        }
    });
    assert_eq!(total, times * each);
}

/// Callgrind counts from the call of this function to its return; see `COUNTED` in `valgrind.rs`.
#[inline(never)]
fn counted_by_callgrind(work: &mut dyn FnMut()) {
    work();
}

fn classify_datagrams() {
    let mut data = [0xee; 1_312];
    data[..4].copy_from_slice(&[4, 0, 0, 0]);
    let mut frame = [0xee; 1_320];
    frame[..4].copy_from_slice(&[0x20, 0, 0, 0]);
    let request = stun::binding_request(&[9; 12], stun::Change::Nothing);
    let datagrams: [&[u8]; 5] = [&data, &frame, &request, &[0x41; 1_200], &[5; 60]];
    measure(MANY, 4, || {
        let known = |datagram: &&&[u8]| classify(black_box(datagram)) != Protocol::Unknown;
        datagrams.iter().filter(known).count()
    });
}

fn same(mut routes: Routes) {
    measure(MANY, 1, || routes.lookup_same().into());
}

fn changing(mut routes: Routes) {
    measure(MANY, 1, || routes.lookup_next().into());
}

fn choose(count: u16) {
    let mut paths = Paths::new(count);
    measure(MANY, 1, || paths.choose().into());
}

fn seal(frames: fn(&Tunnel) -> Vec<Vec<u8>>, bytes: usize) {
    let mut tunnel = Tunnel::new(Kernel::Ring);
    let frames = frames(&tunnel);
    measure(SOME, bytes, || tunnel.seal(&frames));
}

fn open(frames: fn(&Tunnel) -> Vec<Vec<u8>>, packets: usize) {
    let mut tunnel = Tunnel::new(Kernel::Ring);
    let frames = frames(&tunnel);
    for _ in 0..SOME {
        tunnel.send(&frames);
        measure(1, packets, || tunnel.open());
    }
}

fn add_network(roster: &Roster) {
    let mut setup = Some(roster.setup());
    measure(1, 1, || {
        let engine = setup.take().map(engine_with);
        black_box(&engine);
        matches!(engine, Some(Ok(_))).into()
    });
}

fn parse_config(roster: &Roster, peers: u32) {
    let text = roster.config();
    measure(1, peers as usize, || {
        let config = Config::parse(black_box(&text), Path::new("config.toml"));
        config.map_or(0, |config| config.networks[0].peers.len())
    });
}
