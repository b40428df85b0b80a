//! Guard routes: overlay destinations are unreachable, not somewhere else, while there is no meshd.
//!
//! A TUN interface goes with its process, and its routes go with it. Without more, the next packet to a peer would
//! follow the default route and leave the host in the clear. So each destination has a second route that refuses
//! packets, with a metric so high that it counts only when the first is gone. Guards belong to no interface and outlive
//! a crash or a restart; the next meshd adopts them, a clean stop or `meshd --cleanup` removes them.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::routes::{Action, OwnRoute, PROTOCOL, Route, Target};
use super::{Netlink, NetlinkError};

/// Metric of guard routes, `mesh` in ASCII: above anything that other software or people use.
pub const METRIC: u32 = 0x6d65_7368;

/// The guards for a set of destinations. A destination inside another needs none of its own.
pub fn guards(destinations: &[IpNet]) -> BTreeSet<OwnRoute> {
    IpNet::aggregate(&destinations.iter().map(IpNet::trunc).collect())
        .into_iter()
        .map(guard)
        .collect()
}

fn guard(destination: IpNet) -> OwnRoute {
    OwnRoute {
        destination,
        target: Target::Unreachable(METRIC),
    }
}

/// The guard that a route is, if it is one.
fn as_guard(route: &Route) -> Option<OwnRoute> {
    let ours = route.protocol == PROTOCOL && route.action == Action::Refuse;
    ours.then_some(OwnRoute {
        destination: route.destination,
        target: Target::Unreachable(route.metric),
    })
}

impl Netlink {
    /// The guards that are installed.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub async fn installed_guards(&self) -> Result<BTreeSet<OwnRoute>, NetlinkError> {
        Ok(self.routes().await?.iter().filter_map(as_guard).collect())
    }

    /// Removes the guards that nobody needs but those in `keep`; returns how many went.
    ///
    /// A guard whose destination is routed into a tunnel of ours is needed: by another meshd in this network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove_guards_except(
        &self,
        keep: &BTreeSet<OwnRoute>,
    ) -> Result<usize, NetlinkError> {
        let surplus = surplus(&self.routes().await?, keep);
        let count = surplus.len();
        self.remove_routes(surplus).await?;
        Ok(count)
    }
}

fn surplus(routes: &[Route], keep: &BTreeSet<OwnRoute>) -> Vec<OwnRoute> {
    let live: BTreeSet<IpNet> = routes
        .iter()
        .filter(|route| route.protocol == PROTOCOL && route.action == Action::Forward)
        .map(|route| route.destination)
        .collect();
    let is_live = |guard: &OwnRoute| {
        let net = guard.destination;
        let last = IpNet::from(net.broadcast());
        live.range(net..=last).any(|inside| net.contains(inside))
    };
    routes
        .iter()
        .filter_map(as_guard)
        .filter(|guard| !keep.contains(guard) && !is_live(guard))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_of_another_living_meshd_are_left_alone() {
        let route = |destination: &str, action| Route {
            destination: destination.parse().unwrap(),
            table: super::super::routes::MAIN_TABLE,
            protocol: PROTOCOL,
            action,
            links: vec![1],
            gateway: None,
            metric: METRIC,
        };
        let routes = [
            route("10.77.0.0/30", Action::Refuse),
            route("10.77.0.2/32", Action::Forward),
            route("10.77.0.9/32", Action::Refuse),
            route("10.77.0.10/32", Action::Refuse),
        ];
        let keep = guards(&["10.77.0.10/32".parse().unwrap()]);
        let surplus = surplus(&routes, &keep);
        assert_eq!(surplus, [guard("10.77.0.9/32".parse().unwrap())]);
    }

    #[test]
    fn destinations_inside_others_need_no_guard_of_their_own() {
        let nets: Vec<IpNet> = [
            "fd00::/64",
            "fd00::1/128",
            "10.77.0.2/32",
            "10.77.0.9/32",
            "10.77.0.2/32",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let destinations: Vec<String> = guards(&nets)
            .into_iter()
            .map(|guard| guard.destination.to_string())
            .collect();
        assert_eq!(destinations, ["10.77.0.2/32", "10.77.0.9/32", "fd00::/64"]);
    }
}
