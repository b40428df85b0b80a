//! A router that maps ports: Debian's `miniupnpd`.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::process::Program;
use super::scenario::Lab;
use super::topology::Router;
use super::wait::within;

/// Longest time that it may take to start.
const START: Duration = Duration::from_secs(10);

/// What the router's `miniupnpd` speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speaks {
    /// PCP (RFC 6887).
    pub pcp: bool,
    /// NAT-PMP (RFC 6886).
    pub natpmp: bool,
    /// UPnP, of the first version of its device if [`Self::igd1`] is set as well.
    pub upnp: bool,
    /// It calls itself an `InternetGatewayDevice:1`.
    pub igd1: bool,
    /// The external address that it tells, if that is not its own: as behind a second NAT.
    pub claims: Option<Ipv4Addr>,
}

/// A running miniupnpd.
#[derive(Debug)]
pub struct MiniUpnpd {
    /// Ends with it.
    program: Option<Program>,
    config: std::path::PathBuf,
}

impl MiniUpnpd {
    /// Starts it on a router. Its rules go into chains `miniupnpd` and `prerouting_miniupnpd`.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(lab: &Lab, router: &Router, lan: Ipv4Addr, speaks: Speaks) -> Result<Self> {
        router.ns.nft(
            "table inet filter {
               chain miniupnpd {
               }
             }
             insert rule inet filter forward jump miniupnpd
             table inet mapped {
               chain prerouting_miniupnpd {
               }
               chain postrouting_miniupnpd {
               }
               chain prerouting { type nat hook prerouting priority -101;
                 jump prerouting_miniupnpd
               }
               chain postrouting { type nat hook postrouting priority 99;
                 jump postrouting_miniupnpd
               }
             }",
        )?;
        // One setting of its serves both protocols; their first byte is their version.
        for (version, spoken) in [(2, speaks.pcp), (0, speaks.natpmp)] {
            if !spoken {
                router.ns.nft(&format!(
                    "table inet mute{version} {{
                       chain input {{ type filter hook input priority -1;
                         udp dport 5351 @th,64,8 {version} drop
                       }}
                     }}"
                ))?;
            }
        }
        let yes = |wanted: bool| if wanted { "yes" } else { "no" };
        let config = lab
            .dir()
            .join(format!("miniupnpd-{}.conf", router.ns.name()));
        std::fs::write(
            &config,
            format!(
                "ext_ifname=wan\next_ip={wan}\nlistening_ip=lan\nhttp_port=0\nenable_natpmp={}\nenable_upnp={}\n\
                 force_igd_desc_v1={}\nupnp_table_name=filter\nupnp_nat_table_name=mapped\n\
                 upnp_forward_chain=miniupnpd\nupnp_nat_chain=prerouting_miniupnpd\n\
                 upnp_nat_postrouting_chain=postrouting_miniupnpd\nsecure_mode=yes\nsystem_uptime=no\n\
                 uuid=0a0b0c0d-0000-4000-8000-{:012x}\nlease_file={leases}\n\
                 allow 1024-65535 {lan}/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
                yes(speaks.pcp || speaks.natpmp),
                yes(speaks.upnp),
                yes(speaks.igd1),
                std::process::id(),
                wan = speaks.claims.unwrap_or(router.wan),
                leases = lab
                    .dir()
                    .join(format!("leases-{}", router.ns.name()))
                    .display(),
            ),
        )?;
        let program = Some(Self::launch(lab, router, &config)?);
        Ok(Self { program, config })
    }

    /// The router restarts: its tables are lost, and its clock begins anew. It tells its LAN so.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn restart(&mut self, lab: &Lab, router: &Router) -> Result<()> {
        self.program = None;
        router.ns.nft(
            "flush chain inet mapped prerouting_miniupnpd
             flush chain inet mapped postrouting_miniupnpd
             flush chain inet filter miniupnpd",
        )?;
        let program = self
            .program
            .insert(Self::launch(lab, router, &self.config)?);
        // At its start it announces itself by PCP, and on this signal by NAT-PMP.
        program.signal(Signal::SIGUSR1)
    }

    fn launch(lab: &Lab, router: &Router, config: &std::path::Path) -> Result<Program> {
        let mut command = router.ns.command("miniupnpd");
        let name = router.ns.name();
        command.arg("-d").arg("-f").arg(config);
        command
            .arg("-P")
            .arg(lab.dir().join(format!("miniupnpd-{name}.pid")));
        let program = Program::spawn(lab, &format!("miniupnpd-{name}"), command)?;
        within("miniupnpd to listen", START, || {
            let sockets = router.ns.run("ss", &["-lunt"])?;
            Ok(sockets.contains(":5351") || sockets.contains(":1900"))
        })?;
        Ok(program)
    }

    /// True if it has written this into its log.
    pub fn said(&self, text: &str) -> bool {
        let program = self.program.as_ref();
        program.is_some_and(|program| program.log().contains(text))
    }

    /// What the router's IPv6 firewall lets in beside answers.
    ///
    /// # Errors
    ///
    /// When nft fails.
    pub fn pinholes(router: &Router) -> Result<Vec<String>> {
        // Written by hand, so that nft shows the place of the destination and not its name; mappings have one.
        Self::rules(router, ["filter", "miniupnpd"], "@nh,192,128")
    }

    /// What the router forwards to a host in its LAN: rules with `dnat`.
    ///
    /// # Errors
    ///
    /// When nft fails.
    pub fn mappings(router: &Router) -> Result<Vec<String>> {
        Self::rules(router, ["mapped", "prerouting_miniupnpd"], "dnat")
    }

    fn rules(router: &Router, [table, chain]: [&str; 2], with: &str) -> Result<Vec<String>> {
        let list = ["list", "chain", "inet", table, chain];
        let rules = router.ns.run("nft", &list)?;
        let rules = rules.lines().filter(|line| line.contains(with));
        Ok(rules.map(|line| line.trim().to_owned()).collect())
    }
}
