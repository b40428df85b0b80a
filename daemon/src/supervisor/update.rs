//! A running network gets a new configuration.

use ipnet::IpNet;
use mesh_core::{config, limits};

use super::network::{Host, Interface, Network, Phase};
use super::plan::Plan;
use super::secrets::Secrets;
use crate::netlink::routes::OwnRoute;

impl Network {
    /// Takes over a configuration that has been checked, and follows its wish to be up or down. A network that failed
    /// is tried again.
    pub(super) async fn replace(&mut self, host: &Host, config: config::Network, secrets: Secrets) {
        self.id = Some(secrets.identity.id());
        self.config = config;
        self.wanted = self.wish(&host.state);
        if !self.wanted {
            self.take_down(host, false).await;
            return;
        }
        if self.interface().is_some() {
            match self.update(host, secrets).await {
                Ok(()) => return,
                Err(reason) => {
                    tracing::warn!(network = self.name(), "starting it anew: {reason}");
                    self.take_down(host, true).await;
                }
            }
        }
        // Guards of the old configuration that the new one does not have.
        let old = std::mem::take(&mut self.guards);
        // What went wrong is in its health lines.
        let _ = self.bring_up(host).await;
        let surplus: Vec<OwnRoute> = old.difference(&self.guards).copied().collect();
        if let Err(error) = host.netlink.remove_routes(surplus).await {
            tracing::warn!(%error, "guard routes are left");
        }
    }

    /// Changes what is different. New things come before old ones go, so that nothing that stays is ever missing.
    async fn update(&mut self, host: &Host, secrets: Secrets) -> Result<(), String> {
        let Some(&Interface {
            link,
            ipv6,
            plan: ref old,
        }) = self.interface()
        else {
            return Err("it is not up".to_owned());
        };
        let old = old.clone();
        let new = Plan::new(&self.config, &secrets.identity.id());
        let guards = new.guards();
        let new = new.limited(ipv6);
        let (routes, old_routes) = (new.routes(link), old.routes(link));
        let old_guards = self.guards.clone();
        self.guards.extend(guards.iter().copied());
        let (netlink, mtu) = (&host.netlink, self.route_mtu(limits::INNER_MTU));
        let result = async {
            netlink
                .add_routes(guards.difference(&old_guards).copied(), None)
                .await?;
            for address in missing(&old.addresses, &new.addresses) {
                netlink.add_address(link, address).await?;
            }
            netlink
                .add_routes(routes.difference(&old_routes).copied(), Some(mtu))
                .await
        };
        result.await.map_err(|error| error.to_string())?;
        let setup = secrets.into_setup(&self.config);
        host.data
            .update_network(self.index, setup)
            .await
            .map_err(|error| error.to_string())?;
        let result = async {
            netlink
                .remove_routes(old_routes.difference(&routes).copied())
                .await?;
            for address in missing(&new.addresses, &old.addresses) {
                netlink.remove_address(link, address).await?;
            }
            netlink
                .remove_routes(old_guards.difference(&guards).copied())
                .await
        };
        result.await.map_err(|error| error.to_string())?;
        self.guards = guards;
        self.phase = Phase::Up(Interface {
            link,
            ipv6,
            plan: new,
        });
        self.set_all_mtus(host).await;
        Ok(())
    }
}

/// What is in `there` and not in `here`.
fn missing(here: &[IpNet], there: &[IpNet]) -> Vec<IpNet> {
    there
        .iter()
        .filter(|net| !here.contains(net))
        .copied()
        .collect()
}
