//! What `meshctl netcheck` and `meshctl reload` print.

use mesh_bus::{NatBehaviour, Netcheck, Pooling, Reloaded};

use super::units::latency;

/// The report, one finding on a line.
pub(crate) fn netcheck(found: &Netcheck) -> String {
    let address = |address: Option<std::net::SocketAddr>| {
        address.map_or("-".to_owned(), |address| address.to_string())
    };
    let port_mapping = match found.port_mapping.as_slice() {
        [] => "none".to_owned(),
        protocols => protocols.join(", "),
    };
    let ports = match found.delta {
        Some(delta) => format!("{} ({delta:+})", found.port_allocation),
        None => found.port_allocation.to_string(),
    };
    let hairpin = match found.hairpin {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    let mut text = format!(
        "UDP:        {}\nIPv4:       {}\nIPv6:       {}\nMapping:    {}\nFiltering:  {}\n\
         Ports:      {ports}\nHairpin:    {hairpin}\nPort maps:  {port_mapping}\n",
        if found.udp { "yes" } else { "no" },
        address(found.ipv4),
        ipv6(found),
        found.mapping,
        found.filtering,
    );
    if let Some(seconds) = found.mapping_lifetime_s {
        let lifetime = match seconds {
            0 => "less than 9 s".to_owned(),
            seconds => format!("at least {seconds} s"),
        };
        text.push_str(&format!("Lifetime:   {lifetime} without a packet\n"));
    }
    if found.pooling == Pooling::Arbitrary {
        let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "Addresses:  {} (a mapping gets any)\n",
            addresses.join(", ")
        ));
    }
    if found.relays.is_empty() {
        text.push_str("Relays:     none configured\n");
        return text;
    }
    text.push_str("Relays:\n");
    for relay in &found.relays {
        let reached = match (relay.rtt_ms, &relay.via) {
            (Some(rtt), Some(via)) => format!("{} over {via}", latency(rtt)),
            (Some(rtt), None) => latency(rtt),
            (None, _) => "no answer".to_owned(),
        };
        text.push_str(&format!("  {}  {reached}\n", relay.url));
    }
    text
}

/// Our address over IPv6, and what is done to it.
fn ipv6(found: &Netcheck) -> String {
    let Some(address) = found.ipv6 else {
        return "-".to_owned();
    };
    let translated = match found.ipv6_translated {
        Some(true) => ", translated",
        Some(false) => ", not translated",
        None => "",
    };
    let filtering = match found.ipv6_filtering {
        NatBehaviour::Unknown => String::new(),
        known => format!(", filtering {known}"),
    };
    format!("{address}{translated}{filtering}")
}

/// What became of each network.
pub(crate) fn reloaded(reloaded: &Reloaded) -> String {
    let parts: Vec<String> = [
        ("added", &reloaded.added),
        ("removed", &reloaded.removed),
        ("changed", &reloaded.changed),
        ("unchanged", &reloaded.unchanged),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| format!("{what}: {}", names.join(", ")))
    .collect();
    if parts.is_empty() {
        "no networks".to_owned()
    } else {
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use mesh_bus::{NatBehaviour, PortAllocation, RelayLatency};

    use super::*;

    #[test]
    fn a_netcheck_is_readable() {
        let relay = |rtt_ms: Option<f64>, via: Option<&str>| RelayLatency {
            url: "mesh://rrr@203.0.113.9:443".to_owned(),
            rtt_ms,
            via: via.map(str::to_owned),
        };
        let mut found = Netcheck {
            network: "home".to_owned(),
            udp: true,
            ipv4: Some("203.0.113.7:41820".parse().unwrap()),
            ipv6: None,
            mapping: NatBehaviour::EndpointIndependent,
            filtering: NatBehaviour::Unknown,
            port_allocation: PortAllocation::Sequential,
            delta: Some(1),
            pooling: Pooling::Paired,
            addresses: vec!["203.0.113.7".parse().unwrap()],
            mapping_lifetime_s: None,
            ipv6_translated: None,
            ipv6_filtering: NatBehaviour::Unknown,
            hairpin: Some(false),
            port_mapping: vec!["pcp".to_owned(), "upnp".to_owned()],
            relays: vec![relay(Some(20.46), Some("udp")), relay(None, None)],
        };
        assert_eq!(
            netcheck(&found),
            "UDP:        yes\n\
             IPv4:       203.0.113.7:41820\n\
             IPv6:       -\n\
             Mapping:    endpoint-independent\n\
             Filtering:  unknown\n\
             Ports:      sequential (+1)\n\
             Hairpin:    no\n\
             Port maps:  pcp, upnp\n\
             Relays:\n  mesh://rrr@203.0.113.9:443  20.5 ms over udp\n  mesh://rrr@203.0.113.9:443  no answer\n"
        );
        found.mapping_lifetime_s = Some(28);
        assert!(netcheck(&found).contains("\nLifetime:   at least 28 s without a packet\n"));
        found.ipv6 = Some("[2001:db8::7]:41820".parse().unwrap());
        found.ipv6_translated = Some(false);
        found.ipv6_filtering = NatBehaviour::AddressDependent;
        found.pooling = Pooling::Arbitrary;
        found.addresses.push("203.0.113.8".parse().unwrap());
        let text = netcheck(&found);
        let line = "IPv6:       [2001:db8::7]:41820, not translated, filtering address-dependent\n";
        assert!(text.contains(line), "{text}");
        let line = "Addresses:  203.0.113.7, 203.0.113.8 (a mapping gets any)\n";
        assert!(text.contains(line), "{text}");
        found.relays.clear();
        found.port_mapping.clear();
        assert!(netcheck(&found).contains("Port maps:  none\n"));
        assert!(netcheck(&found).ends_with("Relays:     none configured\n"));
    }

    #[test]
    fn a_reload_says_what_became_of_each_network() {
        let mut result = Reloaded {
            changed: vec!["home".to_owned(), "lab".to_owned()],
            unchanged: vec!["work".to_owned()],
            ..Reloaded::default()
        };
        assert_eq!(reloaded(&result), "changed: home, lab; unchanged: work");
        result = Reloaded::default();
        assert_eq!(reloaded(&result), "no networks");
    }
}
