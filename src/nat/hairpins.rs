//! Where hosts behind one NAT have reached each other by its outside.
//!
//! That way is tried a second after all others, because most NATs do not offer it and those on one LAN need it not. Where
//! it has worked it is tried at once. Whether it does is a property of the NAT, which its public address stands for.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::limits;

/// The newest last.
#[derive(Debug, Default)]
pub(crate) struct Hairpins(VecDeque<IpAddr>);

impl Hairpins {
    /// It has worked behind this address.
    pub(crate) fn worked(&mut self, public: IpAddr) {
        self.failed(public);
        if self.0.len() >= limits::HAIRPINS {
            self.0.pop_front();
        }
        self.0.push_back(public);
    }

    /// It has not.
    pub(crate) fn failed(&mut self, public: IpAddr) {
        self.0.retain(|known| *known != public);
    }

    /// It is worth to be tried at once.
    pub(crate) fn knows(&self, public: IpAddr) -> bool {
        self.0.contains(&public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_addresses_are_known_until_one_fails() {
        let ip = |last: usize| IpAddr::from([203, 0, 113, u8::try_from(last).unwrap()]);
        let mut hairpins = Hairpins::default();
        for last in 0..=limits::HAIRPINS {
            hairpins.worked(ip(last));
            hairpins.worked(ip(last));
        }
        assert!(!hairpins.knows(ip(0)));
        assert!((1..=limits::HAIRPINS).all(|last| hairpins.knows(ip(last))));
        hairpins.failed(ip(1));
        assert!(!hairpins.knows(ip(1)) && hairpins.knows(ip(2)));
    }
}
