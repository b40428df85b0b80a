//! Finds prefixes that overlap, in O(n log n).

use std::net::IpAddr;

use ipnet::IpNet;

/// Someone's claim on a prefix.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) net: IpNet,
    pub(super) network: usize,
    pub(super) owner: Owner,
    /// Byte offset of what says so.
    pub(super) offset: usize,
}

/// Whose claim it is, within a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// An address of this host.
    Host,
    /// The prefix of all derived addresses.
    Derived,
    /// An address of the peer with this index.
    Address(usize),
    /// A route of the peer with this index.
    Route(usize),
}

impl Owner {
    /// True if it is one and the same node.
    pub(super) fn same_node(self, other: Self) -> bool {
        match (self, other) {
            (Self::Address(a) | Self::Route(a), Self::Address(b) | Self::Route(b)) => a == b,
            _ => self == other,
        }
    }
}

/// Calls `clash` for the overlapping pairs that `is_clash` confirms, the one that stands later in the file first.
///
/// Two prefixes that overlap are equal or nested. Sorted by address and then length, whatever contains a prefix
/// comes before it, so a stack of the prefixes that are still open is enough. Each claim is reported once, against
/// the longest prefix around it; of equal prefixes only the first is kept, so the stack is at most 129 deep.
pub(super) fn find_overlaps(
    mut claims: Vec<Claim>,
    is_clash: impl Fn(&Claim, &Claim) -> bool,
    mut clash: impl FnMut(&Claim, &Claim),
) {
    claims.sort_by_key(|claim| {
        let first = claim.net.network();
        let number = match first {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        (
            first.is_ipv6(),
            number,
            claim.net.prefix_len(),
            claim.offset,
        )
    });
    let mut open: Vec<&Claim> = Vec::new();
    for claim in &claims {
        while open.last().is_some_and(|top| !top.net.contains(&claim.net)) {
            open.pop();
        }
        let around = open.iter().rev();
        if let Some(other) = around.copied().find(|other| is_clash(other, claim)) {
            if claim.offset >= other.offset {
                clash(claim, other);
            } else {
                clash(other, claim);
            }
        }
        if open.last().is_none_or(|top| top.net != claim.net) {
            open.push(claim);
        }
    }
}
