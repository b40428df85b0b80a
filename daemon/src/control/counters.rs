//! What the control socket had to refuse. Counted, because whoever can connect could otherwise fill the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Connections that came to nothing, by reason.
#[derive(Debug, Default)]
pub struct Counters {
    malformed: AtomicU64,
    silent: AtomicU64,
    too_many: AtomicU64,
}

impl Counters {
    /// Not D-Bus, or D-Bus that nobody should send to us.
    pub(super) fn malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    /// Did not say who it is in time.
    pub(super) fn silent(&self) {
        self.silent.fetch_add(1, Relaxed);
    }

    /// Beyond the number of connections that are served at once.
    pub(super) fn too_many(&self) {
        self.too_many.fetch_add(1, Relaxed);
    }

    /// Adds what was counted to the drops of a status, which leaves out what never occurred.
    pub(super) fn report(&self, drops: &mut BTreeMap<String, u64>) {
        let occurred = self.all().into_iter().filter(|(_, count)| *count > 0);
        drops.extend(occurred.map(|(reason, count)| (format!("control_{reason}"), count)));
    }

    /// Every reason with its count.
    pub fn all(&self) -> [(&'static str, u64); 3] {
        [
            ("malformed", self.malformed.load(Relaxed)),
            ("silent", self.silent.load(Relaxed)),
            ("too_many", self.too_many.load(Relaxed)),
        ]
    }
}
