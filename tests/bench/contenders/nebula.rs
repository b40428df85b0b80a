//! Debian's `nebula`, both hosts told where the other is, so that no lighthouse is asked.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Result;
use mesh_tests::lab::{Lab, Namespace, Program};

use super::{Tunnel, overlay};
use crate::topology::OUTER;

const PORT: u16 = 4242;

pub(super) fn start(
    lab: &Lab,
    a: &Namespace,
    b: &Namespace,
) -> Result<(Box<dyn Tunnel>, Ipv4Addr)> {
    let addresses = overlay(79);
    let dir = lab.dir().join("nebula");
    std::fs::create_dir_all(&dir)?;
    let file = |name: &str| dir.join(name).display().to_string();
    let (ca, ca_key) = (file("ca.crt"), file("ca.key"));
    let cert = |args: &[&str]| a.run("nebula-cert", args).map(drop);
    cert(&["ca", "-name", "bench", "-out-crt", &ca, "-out-key", &ca_key])?;
    let mut programs = Vec::new();
    for (own, peer, ns) in [(0, 1, a), (1, 0, b)] {
        let name = ns.name();
        let (crt, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        let ip = format!("{}/24", addresses[own]);
        cert(&[
            "sign", "-ca-crt", &ca, "-ca-key", &ca_key, "-name", name, "-ip", &ip, "-out-crt",
            &crt, "-out-key", &key,
        ])?;
        let config = dir.join(format!("{name}.yml"));
        std::fs::write(
            &config,
            configuration(&dir, name, addresses[peer], OUTER[peer]),
        )?;
        let mut command = ns.command("nebula");
        command.arg("-config").arg(config);
        programs.push(Program::spawn(lab, &format!("nebula-{name}"), command)?);
    }
    let Ok(programs) = <[Program; 2]>::try_from(programs) else {
        unreachable!("two were started");
    };
    Ok((Box::new(programs), addresses[1]))
}

/// Nothing here but what it cannot do without.
fn configuration(dir: &Path, name: &str, peer: Ipv4Addr, outer: Ipv4Addr) -> String {
    let dir = dir.display();
    format!(
        "pki: {{ ca: {dir}/ca.crt, cert: {dir}/{name}.crt, key: {dir}/{name}.key }}
static_host_map: {{ \"{peer}\": [\"{outer}:{PORT}\"] }}
lighthouse: {{ am_lighthouse: false, hosts: [] }}
listen: {{ host: 0.0.0.0, port: {PORT} }}
tun: {{ dev: nebula0 }}
firewall:
  outbound: [{{ port: any, proto: any, host: any }}]
  inbound: [{{ port: any, proto: any, host: any }}]
"
    )
}
