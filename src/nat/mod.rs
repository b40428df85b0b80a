//! What the NAT before this host does, and how two hosts behind NATs open a path to each other.
//!
//! Terms are RFC 4787's. [`profile`] asks the relays where we are seen, [`survey`] how the NAT behaves, from sockets that
//! are used for nothing else. [`punch`] schedules the simultaneous opening, [`strategy`] says what is left to do where that
//! cannot work, [`salvo`] is how that is done, [`ledger`] keeps it within bounds, and [`hairpins`]
//! remembers which NATs can be passed twice. [`lifetime`] finds out how long mappings live, [`portmap`] asks the router for
//! a way in.

mod allocation;
pub(crate) mod hairpins;
pub(crate) mod ledger;
pub(crate) mod lifetime;
pub mod portmap;
pub(crate) mod profile;
pub(crate) mod punch;
pub(crate) mod salvo;
pub(crate) mod strategy;
pub(crate) mod survey;

pub use allocation::Allocation;
pub(crate) use allocation::predicted;

/// How a NAT chooses the external address and port for packets from one internal endpoint (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Mapping {
    /// Not measured, or not measurable with the relays at hand.
    #[default]
    Unknown = 0,
    /// The same for every destination.
    EndpointIndependent = 1,
    /// One for each destination address.
    AddressDependent = 2,
    /// One for each destination address and port.
    AddressAndPortDependent = 3,
}

/// Which packets from outside a NAT lets in on a mapping (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Filtering {
    /// Not measured, or not measurable with the relays at hand.
    #[default]
    Unknown = 0,
    /// From anyone.
    EndpointIndependent = 1,
    /// From addresses that were sent to.
    AddressDependent = 2,
    /// From addresses and ports that were sent to.
    AddressAndPortDependent = 3,
    /// From other ports of an address that was sent to, if not from anyone: one relay cannot tell the two apart.
    NotPortDependent = 4,
}

/// How a NAT with several external addresses chooses one (RFC 4787, section 4.1, REQ-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Pooling {
    /// Not measured, or there is no NAT.
    #[default]
    Unknown = 0,
    /// The same one for everything that a host sends; it may be the only one.
    Paired = 1,
    /// Any, for each mapping anew or by the destination's address.
    Arbitrary = 2,
}

impl Pooling {
    /// As in `netcheck --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Paired => "paired",
            Self::Arbitrary => "arbitrary",
        }
    }

    pub(crate) const fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Unknown,
            1 => Self::Paired,
            2 => Self::Arbitrary,
            _ => return None,
        })
    }
}

impl Mapping {
    /// As in `netcheck --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }

    pub(crate) const fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Unknown,
            1 => Self::EndpointIndependent,
            2 => Self::AddressDependent,
            3 => Self::AddressAndPortDependent,
            _ => return None,
        })
    }
}

impl Filtering {
    /// As in `netcheck --json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown | Self::NotPortDependent => "unknown",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }

    pub(crate) const fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Unknown,
            1 => Self::EndpointIndependent,
            2 => Self::AddressDependent,
            3 => Self::AddressAndPortDependent,
            4 => Self::NotPortDependent,
            _ => return None,
        })
    }
}

/// What is known about the NAT before a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatProfile {
    /// How it maps.
    pub mapping: Mapping,
    /// What it lets in.
    pub filtering: Filtering,
    /// Which port a new mapping gets.
    pub allocation: Allocation,
    /// Hosts behind it reach each other by their external addresses.
    pub hairpin: Option<bool>,
    /// Which of its external addresses a mapping gets.
    pub pooling: Pooling,
}
