//! What `meshctl explain` shows.

use mesh_bus::Nat;
use mesh_core::engine::{Explanation, PathKind, PathStatus, PeerKey};
use mesh_core::nat::{Mapping, NatProfile, Pooling};

use super::names::key_text;
use super::status;

/// Why a peer of `network` is reached as it is.
pub(super) fn explanation(
    network: String,
    key: &PeerKey,
    found: &Explanation,
) -> mesh_bus::Explanation {
    mesh_bus::Explanation {
        network,
        id: key_text(key),
        name: found.name.clone(),
        path: found.path.as_ref().map(status::path),
        summary: summary(found),
        own_nat: nat(&found.own),
        peer_nat: found.peer.as_ref().map(nat),
        attempts: found
            .attempts
            .iter()
            .map(|attempt| mesh_bus::Attempt {
                local_port: attempt.local_port,
                target: attempt.target,
                strategy: attempt.strategy.as_str().to_owned(),
                probes: attempt.probes,
                mappings: attempt.mappings,
                answered: attempt.answered,
                age_s: attempt.age.as_secs_f64(),
                duration_s: attempt.duration.as_secs_f64(),
            })
            .collect(),
        mappings: found.mappings,
    }
}

fn nat(profile: &NatProfile) -> Nat {
    Nat {
        mapping: status::mapping(profile.mapping),
        filtering: status::filtering(profile.filtering),
        port_allocation: status::allocation(profile.allocation),
        pooling: status::pooling(profile.pooling),
    }
}

fn summary(found: &Explanation) -> String {
    let name = &found.name;
    let Some(path) = &found.path else {
        return format!("{name} is not reached: {}.", found.reason);
    };
    let reason = found.reason;
    match path.kind {
        PathKind::Direct => {
            let how = found
                .attempts
                .iter()
                .rev()
                .find(|attempt| attempt.answered && attempt.target.ip() == path.remote.ip())
                .map(|attempt| format!(", opened by {}", attempt.strategy.as_str()))
                .unwrap_or_default();
            format!(
                "{name} is reached directly at {}{how}: {reason}.",
                path.remote
            )
        }
        PathKind::Relay => format!(
            "{name} is reached through {}: {reason}{}{}.",
            relay(path),
            obstacle(found),
            unforeseeable(found)
        ),
    }
}

fn relay(path: &PathStatus) -> String {
    match &path.relay {
        Some(url) => format!("relay {}:{}", url.host, url.port),
        None => "a relay".to_owned(),
    }
}

/// Whose ports nobody can foretell, because nobody can tell the address that they will be on.
fn unforeseeable(found: &Explanation) -> String {
    let is_pool = |nat: &NatProfile| {
        nat.pooling == Pooling::Arbitrary && nat.mapping != Mapping::EndpointIndependent
    };
    let whose = match (
        is_pool(&found.own),
        found.peer.as_ref().is_some_and(is_pool),
    ) {
        (false, false) => return String::new(),
        (true, false) => "this host's NAT gives",
        (false, true) => "the peer's NAT gives",
        (true, true) => "both NATs give",
    };
    format!("; {whose} each mapping any of several addresses, so no port can be foretold")
}

/// What stands in the way of a direct path, as far as it is known.
fn obstacle(found: &Explanation) -> String {
    match found
        .attempts
        .iter()
        .rev()
        .find(|attempt| !attempt.answered)
    {
        None => "; no direct path has been tried yet".to_owned(),
        Some(last) => {
            let probes: u32 = found.attempts.iter().map(|attempt| attempt.probes).sum();
            format!(
                "; no direct path has answered {probes} probes, the last of them by {}",
                last.strategy.as_str()
            )
        }
    }
}
