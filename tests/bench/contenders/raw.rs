//! The bare link: what no tunnel can exceed.

use std::net::Ipv4Addr;

use super::Tunnel;
use crate::topology::OUTER;

pub(super) fn start() -> (Box<dyn Tunnel>, Ipv4Addr) {
    (Box::new([]), OUTER[1])
}
