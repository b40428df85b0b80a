//! What `meshctl explain` prints.

use comfy_table::{Table, presets};
use mesh_bus::{Attempt, Explanation, Nat, Pooling};

use super::units::age;

/// One sentence, what both NATs do, and what was tried.
pub(crate) fn explanation(found: &Explanation) -> String {
    let mut text = format!(
        "{}\n\nThis NAT:    {}\n{:<12} {}\n",
        found.summary,
        nat(&found.own_nat),
        "Peer's NAT:",
        found.peer_nat.as_ref().map_or("-".to_owned(), nat)
    );
    if found.attempts.is_empty() {
        text.push_str("\nNothing was tried to open a direct path lately.\n");
    } else {
        text.push_str(&format!("\n{}\n", table(&found.attempts)));
    }
    if found.mappings > 0 {
        text.push_str(&format!(
            "\nNAT mappings made for it since meshd started, where a plain punch does not do: {}\n",
            found.mappings
        ));
    }
    text
}

fn nat(nat: &Nat) -> String {
    let pool = match nat.pooling {
        Pooling::Arbitrary => ", on any of several addresses",
        Pooling::Paired | Pooling::Unknown => "",
    };
    format!(
        "mapping {}, filtering {}, ports {}{pool}",
        nat.mapping, nat.filtering, nat.port_allocation
    )
}

fn table(attempts: &[Attempt]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "AGO", "PORT", "TARGET", "STRATEGY", "PROBES", "MAPPINGS", "ANSWER", "TIME",
    ]);
    for attempt in attempts {
        let target = match attempt.target.port() {
            0 => attempt.target.ip().to_string(),
            _ => attempt.target.to_string(),
        };
        let local = attempt
            .local_port
            .map_or("many".to_owned(), |port| port.to_string());
        table.add_row([
            age(attempt.age_s),
            local,
            target,
            attempt.strategy.clone(),
            attempt.probes.to_string(),
            attempt.mappings.to_string(),
            if attempt.answered { "yes" } else { "no" }.to_owned(),
            format!("{:.2} s", attempt.duration_s),
        ]);
    }
    let table = table.to_string();
    let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use mesh_bus::{NatBehaviour, PortAllocation};

    use super::*;

    #[test]
    fn an_explanation_is_readable() {
        let own_nat = Nat {
            mapping: NatBehaviour::EndpointIndependent,
            filtering: NatBehaviour::AddressAndPortDependent,
            port_allocation: PortAllocation::Preserving,
            pooling: Pooling::Arbitrary,
        };
        let attempt = Attempt {
            local_port: None,
            target: "198.51.100.4:0".parse().unwrap(),
            strategy: "port prediction".to_owned(),
            probes: 25,
            mappings: 25,
            answered: true,
            age_s: 63.0,
            duration_s: 0.314,
        };
        let mut found = Explanation {
            network: "home".to_owned(),
            id: "bbb".to_owned(),
            name: "bob".to_owned(),
            path: None,
            summary: "bob is reached directly.".to_owned(),
            own_nat,
            peer_nat: None,
            attempts: vec![attempt],
            mappings: 0,
        };
        let text = explanation(&found);
        assert!(text.starts_with(
            "bob is reached directly.\n\nThis NAT:    mapping endpoint-independent, filtering \
             address-and-port-dependent, ports preserving, on any of several addresses\nPeer's NAT:  -\n"
        ));
        let row = text.lines().last().unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words[2..],
            [
                "many",
                "198.51.100.4",
                "port",
                "prediction",
                "25",
                "25",
                "yes",
                "0.31",
                "s"
            ]
        );
        found.mappings = 281;
        assert!(explanation(&found).ends_with("a plain punch does not do: 281\n"));
        found.mappings = 0;
        found.attempts.clear();
        assert!(explanation(&found).ends_with("Nothing was tried to open a direct path lately.\n"));
    }
}
