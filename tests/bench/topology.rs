//! Two hosts on one veth, and how that veth behaves.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Namespace;

/// The addresses of the two hosts on the link. Every contender has a pair of its own, so that none can take another's
/// tunnel for a path, and all have the same addresses.
pub(crate) const OUTER: [Ipv4Addr; 2] =
    [Ipv4Addr::new(44, 128, 0, 1), Ipv4Addr::new(44, 128, 0, 2)];

/// How the link treats segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Profile {
    /// As the kernel makes a veth: superpackets cross it whole.
    Plain,
    /// Packets are cut before the link and joined after it, as with a network card.
    GroAlone,
    /// Packets are cut before the link and stay so.
    NoOffload,
}

/// What of the link is set: the name that `ethtool -K` takes, and the one that `ethtool -k` shows.
const FEATURES: [(&str, &str); 3] = [
    ("tso", "tcp-segmentation-offload"),
    ("tx-udp-segmentation", "tx-udp-segmentation"),
    ("gro", "generic-receive-offload"),
];

/// Two namespaces.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    /// The interface at both ends whose profile can be set, and the profile that it was given.
    link: Option<(&'static str, Option<Profile>)>,
}

impl Profile {
    /// Its name in the machine-readable results.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::GroAlone => "gro_alone",
            Self::NoOffload => "no_offload",
        }
    }

    /// Whether each of [`FEATURES`] is on. Those of the plain link are what the kernel gives a new veth.
    fn settings(self) -> [bool; 3] {
        match self {
            Self::Plain => [true, true, false],
            Self::GroAlone => [false, false, true],
            Self::NoOffload => [false, false, false],
        }
    }
}

impl Pair {
    /// Two hosts on a new veth.
    pub(crate) fn new() -> Result<Self> {
        let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
        a.ip(&format!(
            "link add veth0 type veth peer name veth0 netns {}",
            b.path()
        ))?;
        for (ns, own, other) in [(&a, OUTER[0], OUTER[1]), (&b, OUTER[1], OUTER[0])] {
            // vpncloud cannot start on a host without a default route, and finds its MTU by it.
            ns.ip(&format!(
                "addr add {own}/24 dev veth0\nlink set veth0 up\nroute add default via {other}"
            ))?;
        }
        let pair = Self::unlinked(a, b)?;
        let mut pair = Self {
            link: Some(("veth0", None)),
            ..pair
        };
        pair.set(Profile::Plain)?;
        Ok(pair)
    }

    /// Two hosts that are not on one link.
    pub(crate) fn unlinked(a: Namespace, b: Namespace) -> Result<Self> {
        // Lets the prober leave checksums and identifiers of ICMP to the kernel.
        a.sysctl("net.ipv4.ping_group_range", "0 0")?;
        Ok(Self { a, b, link: None })
    }

    /// Makes this the congestion control of every connection between the two.
    pub(crate) fn use_congestion_control(&self, name: &str) -> Result<()> {
        for ns in [&self.a, &self.b] {
            ns.sysctl("net.ipv4.tcp_congestion_control", name)?;
        }
        Ok(())
    }

    /// Gives both ends of the link this profile, and makes sure that they have it.
    pub(crate) fn set(&mut self, profile: Profile) -> Result<()> {
        let Some((device, current)) = &mut self.link else {
            ensure!(profile == Profile::Plain, "there is no one link to set");
            return Ok(());
        };
        if *current == Some(profile) {
            return Ok(());
        }
        let settings = profile.settings();
        for ns in [&self.a, &self.b] {
            let mut args = vec!["-K", *device];
            for ((name, _), on) in FEATURES.into_iter().zip(settings) {
                args.extend([name, if on { "on" } else { "off" }]);
            }
            ns.run("ethtool", &args)?;
            let shown = ns.run("ethtool", &["-k", device])?;
            for ((_, name), on) in FEATURES.into_iter().zip(settings) {
                ensure!(
                    feature(&shown, name).with_context(|| format!("ethtool shows no {name}"))?
                        == on,
                    "{name} did not become {on} on host {}",
                    ns.name()
                );
            }
        }
        *current = Some(profile);
        Ok(())
    }
}

/// Whether `ethtool -k` shows a feature as on.
fn feature(shown: &str, name: &str) -> Option<bool> {
    let mut lines = shown
        .lines()
        .filter_map(|line| line.trim().split_once(": "));
    let (_, state) = lines.find(|(found, _)| *found == name)?;
    Some(state.starts_with("on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_by_their_whole_name() {
        let shown = "Features for veth0:\ntcp-segmentation-offload: off\n\ttx-tcp-segmentation: on\n\
                     generic-receive-offload: on [fixed]\n";
        assert_eq!(feature(shown, "tcp-segmentation-offload"), Some(false));
        assert_eq!(feature(shown, "tx-tcp-segmentation"), Some(true));
        assert_eq!(feature(shown, "generic-receive-offload"), Some(true));
        assert_eq!(feature(shown, "segmentation"), None);
    }
}
