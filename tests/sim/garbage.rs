//! What strangers send.

use std::net::SocketAddr;

use mesh_core::wire::relay::{challenge_frame, rebind_frame};
use mesh_core::wire::stun;
use mesh_tests::sim::{HostId, LinkConfig, Rng, Sim, Site};

use crate::common::{home, ms, secs, until_direct, until_works};
use crate::memory;

/// A datagram of one of the kinds that a mesh socket takes apart, with random contents.
fn garbage(rng: &mut Rng) -> Vec<u8> {
    let len = rng.below(1_400) as usize;
    let mut bytes = rng.bytes(len);
    let typed = |rng: &mut Rng, kind: u8, len: usize| {
        let mut bytes = rng.bytes(len);
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes
    };
    match rng.below(10) {
        0 => typed(rng, 1, 148),
        1 => typed(rng, 2, 92),
        2 => typed(rng, 3, 64),
        3 => typed(rng, 4, 32 + len),
        4 => {
            // To the first sessions, which exist.
            let mut bytes = typed(rng, 4, 32 + len);
            bytes[4..8].copy_from_slice(&(rng.below(1_024) as u32).to_le_bytes());
            bytes
        }
        5 => {
            let kind = 0x20 + rng.below(16) as u8;
            typed(rng, kind, 8 + len)
        }
        6 => {
            let txn: [u8; 12] = rng.bytes(12).try_into().unwrap_or_default();
            let mapped = SocketAddr::from(([8, 8, 8, 8], rng.u64() as u16));
            stun::binding_response(&txn, mapped)
        }
        7 => {
            let txn: [u8; 12] = rng.bytes(12).try_into().unwrap_or_default();
            let changes = [
                stun::Change::Nothing,
                stun::Change::Port,
                stun::Change::Address,
            ];
            stun::binding_request(&txn, changes[rng.below(3) as usize])
        }
        8 => {
            if let Some(first) = bytes.first_mut() {
                *first |= 0x40;
            }
            bytes
        }
        _ => bytes,
    }
}

/// Sends this many datagrams of garbage from a host in one second of time; returns their bytes.
fn flood(sim: &mut Sim, rng: &mut Rng, from: HostId, to: SocketAddr, count: usize) -> u64 {
    let mut bytes = 0;
    for _ in 0..count / 100 {
        for _ in 0..100 {
            let datagram = garbage(rng);
            bytes += datagram.len() as u64;
            sim.send_raw(from, to, None, datagram);
        }
        sim.run_for(ms(1_000) * 100 / count as u32);
    }
    bytes
}

#[test]
fn a_flood_of_garbage_makes_a_host_neither_grow_nor_talk() {
    let mut sim = Sim::new(7);
    let mut rng = Rng::new(7);
    let pair = sim.pair(Site::public(), home());
    let stranger = sim.public_host("stranger", LinkConfig::delay(ms(1)));
    sim.run_for(secs(1));
    let flow = until_direct(&mut sim, pair);
    sim.stop_flow(flow);
    let victim = sim.socket_of(pair.a);
    // Fills the log and every buffer, so that what is counted is the engine's.
    flood(&mut sim, &mut rng, stranger, victim, 20_000);
    let answers = |sim: &mut Sim| std::mem::take(&mut sim.host_mut(stranger).raw);
    answers(&mut sim);
    let (sent, before) = (sim.host(pair.a).counters.datagrams, memory::live());
    let bytes = flood(&mut sim, &mut rng, stranger, victim, 20_000);
    let answers = answers(&mut sim);
    let answered: usize = answers.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(
        (answered as u64) < bytes / 20,
        "{answered} bytes of answers to {bytes}"
    );
    let sent = sim.host(pair.a).counters.datagrams - sent - answers.len() as u64;
    assert!(sent <= 40, "{sent} datagrams to others");
    drop(answers);
    let grown = memory::live() - before;
    assert!(grown < 64 * 1_024, "{grown} bytes more");
    sim.resume_flow(flow);
    until_works(&mut sim, "data after the flood", flow, secs(1));
}

#[test]
fn data_flows_through_a_flood_of_garbage() {
    let mut sim = Sim::new(8);
    let mut rng = Rng::new(8);
    let pair = sim.pair(Site::public(), home());
    let stranger = sim.public_host("stranger", LinkConfig::delay(ms(1)));
    sim.run_for(secs(1));
    let flow = until_direct(&mut sim, pair);
    let start = sim.now();
    let victim = sim.socket_of(pair.a);
    for _ in 0..3 {
        flood(&mut sim, &mut rng, stranger, victim, 5_000);
    }
    let end = sim.now();
    sim.stop_flow(flow);
    sim.run_for(secs(1));
    assert_eq!(sim.stream(flow).missing(start..end), 0);
    assert!(sim.is_direct(pair.a, pair.b));
}

#[test]
fn forged_questions_of_the_relay_are_answered_rarely_and_only_to_the_relay() {
    let mut sim = Sim::new(9);
    let mut rng = Rng::new(9);
    let pair = sim.pair(Site::public(), home());
    let stranger = sim.public_host("stranger", LinkConfig::delay(ms(1)));
    sim.run_for(secs(2));
    let relay = sim.relay_address(pair.relay);
    let victim = sim.socket_of(pair.a);
    let log_before = sim.log().count();
    for _ in 0..10_000 {
        let frame = match rng.chance(0.5) {
            true => challenge_frame(rng.u64()).to_vec(),
            false => rebind_frame(rng.u64() as u32).to_vec(),
        };
        sim.send_forged(stranger, relay, victim, frame);
        sim.run_for(ms(1));
    }
    // Each forged datagram is three entries of the log: sent, received, and at most a handful of answers per second.
    let caused = sim.log().count() - log_before - 2 * 10_000;
    assert!(
        caused < 10 * 20 * 10,
        "{caused} entries beside the forged datagrams"
    );
    assert!(sim.health(pair.a).is_empty());
}

#[test]
fn packets_that_a_stranger_records_and_repeats_change_nothing() {
    let mut sim = Sim::new(10);
    let pair = sim.pair(Site::public(), Site::public());
    let stranger = sim.public_host("stranger", LinkConfig::delay(ms(1)));
    sim.run_for(secs(1));
    sim.record(pair.a, 500);
    let flow = until_direct(&mut sim, pair);
    sim.run_for(secs(1));
    let recorded = sim.recorded(pair.a);
    assert!(recorded.len() > 20);
    let (to_a, to_b) = (sim.remote(pair.b, pair.a), sim.remote(pair.a, pair.b));
    let start = sim.now();
    let victim = sim.socket_of(pair.a);
    for _ in 0..20 {
        for (_, datagram) in &recorded {
            sim.send_raw(stranger, victim, None, datagram.clone());
        }
        sim.run_for(ms(50));
    }
    let end = sim.now();
    sim.stop_flow(flow);
    sim.run_for(secs(1));
    assert_eq!(
        (sim.remote(pair.b, pair.a), sim.remote(pair.a, pair.b)),
        (to_a, to_b)
    );
    assert_eq!(sim.stream(flow).missing(start..end), 0);
    assert_eq!(sim.stream(flow).duplicates, 0);
    let to_stranger: usize = sim
        .host(stranger)
        .raw
        .iter()
        .map(|(_, bytes)| bytes.len())
        .sum();
    let from_stranger: usize = recorded.iter().map(|(_, bytes)| bytes.len() * 20).sum();
    assert!(
        to_stranger < from_stranger / 20,
        "{to_stranger} bytes of answers to {from_stranger}"
    );
}
