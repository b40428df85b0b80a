//! What meshd and meshctl say to each other: the D-Bus interface `net.meshd.Mesh1` and the JSON documents that it
//! carries.
//!
//! The same interface is served on the system bus and, peer to peer, on the control socket. Small things that a desktop
//! or a script watches (names, states) are typed properties and signals; `status`, `netcheck`, `ping` and `explain` answer with one
//! JSON document each, which is what `meshctl --json` prints: fields can be added without a new interface.

mod error;
mod model;
mod proxy;

pub use error::{Error, ErrorKind};
pub use model::{
    Answer, Attempt, Explanation, Nat, NatBehaviour, Netcheck, Network, NetworkState, Path,
    PathKind, Peer, PeerState, Pong, Pooling, PortAllocation, RelayLatency, Reloaded, SelfInfo,
    Status,
};
pub use proxy::{HealthArgs, MeshProxy, NetworkChangedArgs, PeerChangedArgs};

/// Well-known name of meshd on the system bus.
pub const BUS_NAME: &str = "net.meshd.Mesh1";

/// The D-Bus interface of meshd.
pub const INTERFACE: &str = "net.meshd.Mesh1";

/// The object that stands for all networks.
pub const OBJECT_PATH: &str = "/net/meshd/Mesh1";

/// Where meshd listens and meshctl looks unless `--socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/meshd/control.sock";

/// Path of the object that stands for one network.
///
/// Whatever D-Bus does not allow in a path is written as `_` and two hexadecimal digits, as systemd does it: `_` itself,
/// any byte beside ASCII letters and digits, and an empty name as a lone `_`.
#[must_use]
pub fn network_path(name: &str) -> String {
    let mut path = format!("{OBJECT_PATH}/");
    if name.is_empty() {
        path.push('_');
    }
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_name_gives_a_valid_object_path_of_its_own() {
        let names = [
            "", "home", "_", "my-home", "my_home", "büro", "a.b/c", "_2d",
        ];
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            let path = network_path(name);
            assert!(zbus::ObjectPath::try_from(path.clone()).is_ok(), "{path}");
            assert!(seen.insert(path), "{name} has the path of another name");
        }
        assert_eq!(network_path("home"), "/net/meshd/Mesh1/home");
        assert_eq!(network_path("my-home"), "/net/meshd/Mesh1/my_2dhome");
    }
}
