//! What the answers to a survey's questions show.

use std::net::{IpAddr, SocketAddr};

use super::{FILTER, Findings, ROW, Survey};
use crate::limits;
use crate::nat::allocation::{Sample, foreign};
use crate::nat::{Allocation, Filtering, Mapping, NatProfile, Pooling};

impl Survey {
    pub(super) fn sample(&self, at: usize) -> Option<Sample> {
        let fresh = self.fresh.get(at)?;
        let (answered, external) = fresh.external?;
        Some(Sample {
            place: at,
            at: answered,
            local: fresh.local?,
            external: external.port(),
            again: fresh.asked > 1,
        })
    }

    fn samples(&self) -> Vec<Sample> {
        ROW.filter_map(|at| self.sample(at)).collect()
    }

    pub(super) fn allocation(&self) -> Allocation {
        Allocation::of(&self.samples())
    }

    /// What the answers show. `own` are the addresses of this host itself: without a NAT nothing changes.
    pub(crate) fn findings(&self, own: impl Fn(SocketAddr) -> bool) -> Findings {
        let allocation = self.allocation();
        let first = self.samples().into_iter().next();
        let late = self.sample(ROW.end() + 1);
        let foreign = match (allocation.delta(), first, late) {
            (Some(delta), Some(first), Some(late)) => foreign(delta, first, late),
            _ => 0.0,
        };
        let last = self.fresh.get(self.last());
        let seen = last.and_then(|fresh| Some((fresh.local?, fresh.external?.1)));
        let direct = seen.is_some_and(|(local, seen)| seen.port() == local && own(seen));
        let compared = self.comparing.is_some() && self.last() > 0;
        let addresses = self.addresses();
        let pooling = match addresses.len() {
            _ if direct || allocation == Allocation::Unknown => Pooling::Unknown,
            0 | 1 => Pooling::Paired,
            _ => Pooling::Arbitrary,
        };
        Findings {
            profile: NatProfile {
                mapping: match seen {
                    _ if direct => Mapping::EndpointIndependent,
                    Some(_) => self.mapping(),
                    None => Mapping::Unknown,
                },
                filtering: self.filtering(),
                allocation,
                hairpin: (compared && !direct).then_some(self.hairpin),
                pooling,
            },
            translated: seen.map(|_| !direct),
            addresses,
            foreign,
        }
    }

    /// External addresses, whichever socket and destination they were for.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let fresh = self.fresh.iter().filter_map(|fresh| fresh.external);
        let seen = fresh.map(|(_, address)| address);
        let seen = seen.chain(self.seen.values().copied());
        let mut addresses: Vec<IpAddr> = seen.map(|address| address.ip()).collect();
        addresses.sort();
        addresses.dedup();
        addresses.truncate(limits::POOL_ADDRESSES);
        addresses
    }

    /// Whether other destinations were shown the address that the relay's main port was.
    fn mapping(&self) -> Mapping {
        let ports = usize::from(self.server.alternative.is_some());
        let compared = self.seen.iter().filter_map(|((at, number), seen)| {
            let (_, first) = self.fresh.get(*at)?.external?;
            Some((*number < ports, first == *seen))
        });
        let (mut by_port, mut by_address, mut others) = (false, false, false);
        for (is_port, same) in compared {
            by_port |= is_port && !same;
            by_address |= !is_port && !same;
            others |= !is_port;
        }
        match (by_port, by_address, others) {
            (true, ..) => Mapping::AddressAndPortDependent,
            (false, true, _) => Mapping::AddressDependent,
            (false, false, true) => Mapping::EndpointIndependent,
            (false, false, false) => Mapping::Unknown,
        }
    }

    fn filtering(&self) -> Filtering {
        let asked = self.is_heard() && (self.filter_asked == FILTER.len() || self.knocked);
        let ports = self.server.alternative;
        let addresses = self.server.elsewhere.is_some() || self.knocked;
        match self.filter_open {
            [_, true] => Filtering::EndpointIndependent,
            [true, false] if asked && addresses => Filtering::AddressDependent,
            [true, false] => Filtering::NotPortDependent,
            [false, false] if asked && ports.is_some() => Filtering::AddressAndPortDependent,
            [false, false] => Filtering::Unknown,
        }
    }
}
