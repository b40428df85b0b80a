//! The relay's configuration file, parsed into types that cannot be wrong.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use mesh_core::config::{ConfigError, parse_metrics_address};
use mesh_core::identity::NodeId;
use mesh_core::limits;
use mesh_core::relay::server::Access;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// UDP port that a relay listens on unless configured.
pub const DEFAULT_PORT: u16 = 443;
/// Second STUN port unless configured: the one that is registered for STUN.
pub const DEFAULT_ALT_PORT: u16 = 3478;

/// Addresses to listen on; each costs two sockets and a QUIC endpoint.
const MAX_LISTEN: usize = 16;
/// Nodes in the list of who may use the relay.
const MAX_NODES: usize = 65_536;
/// Problems that are shown at most.
const MAX_SHOWN: usize = 100;
/// Below this the control traffic of a mesh does not fit.
const MIN_RATE: u64 = 8_000;
/// Far above any hardware, and far from overflow.
const MAX_RATE: u64 = 1_000_000_000_000;

const KNOWN: [&str; 7] = [
    "listen",
    "stun_alt_port",
    "stun_alt_address",
    "nodes",
    "access",
    "rate_limit",
    "metrics",
];
/// Keys that are planned and that this version does not have.
const LATER: [&str; 1] = ["networks"];

/// Everything that a configuration file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Addresses to listen on; port 0 is any free port.
    pub listen: Vec<SocketAddr>,
    /// False if `listen` is only the default, and IPv4 alone will do where there is no IPv6.
    pub listen_configured: bool,
    /// The second STUN port; 0 is any free port.
    pub alt_port: u16,
    /// False if `alt_port` is only the default, and the relay can do without.
    pub alt_port_configured: bool,
    /// A second address of this host, to answer STUN from.
    pub alt_address: Option<Ipv4Addr>,
    /// Who may use the relay.
    pub access: Access,
    /// Bytes a second that are forwarded for each client.
    pub rate_limit: u64,
    /// Where Prometheus may fetch metrics, over TCP; not at all without it.
    pub metrics: Option<SocketAddr>,
}

impl Default for Config {
    /// What holds without any file: a relay that admits nobody.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT)],
            listen_configured: false,
            alt_port: DEFAULT_ALT_PORT,
            alt_port_configured: false,
            alt_address: None,
            access: Access::Nodes(BTreeSet::new()),
            rate_limit: limits::RELAY_RATE,
            metrics: None,
        }
    }
}

/// Everything that is wrong with a configuration: at least one problem. Displays one line for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Parses `text`; `file` is only named in messages.
    ///
    /// # Errors
    /// All problems that were found, in the order of their lines.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigErrors> {
        let mut parser = Parser {
            text,
            file,
            errors: Vec::new(),
        };
        let (root, syntax) = DeTable::parse_recoverable(text);
        for error in &syntax {
            let at = error.span().map_or(0, |span| span.start);
            parser.error(
                at,
                None,
                format!("this is not TOML: {}", error.message().trim()),
            );
        }
        let config = if syntax.is_empty() {
            parser.config(root.get_ref())
        } else {
            Self::default()
        };
        if parser.errors.is_empty() {
            return Ok(config);
        }
        parser.errors.sort_by_key(|error| error.line);
        parser.errors.truncate(MAX_SHOWN);
        Err(ConfigErrors(parser.errors))
    }

    /// Whether the configuration lets anybody in.
    pub fn admits_anybody(&self) -> bool {
        !matches!(&self.access, Access::Nodes(nodes) if nodes.is_empty())
    }
}

struct Parser<'a> {
    text: &'a str,
    file: &'a Path,
    errors: Vec<ConfigError>,
}

impl Parser<'_> {
    fn error(&mut self, offset: usize, key: Option<&str>, message: impl Into<String>) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        self.errors.push(ConfigError {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            key: key.map(str::to_owned),
            message: message.into(),
        });
    }

    fn config(&mut self, table: &DeTable<'_>) -> Config {
        let mut config = Config::default();
        for name in table.keys() {
            let text: &str = name.get_ref();
            if LATER.contains(&text) {
                let message = "is not supported by this version; remove it";
                self.error(name.span().start, Some(text), message);
            } else if !KNOWN.contains(&text) {
                let message = format!("is not a key of a relay; the keys are {}", KNOWN.join(", "));
                self.error(name.span().start, Some(&shown(text)), message);
            }
        }
        if let Some(listen) = self.each(table, "listen", MAX_LISTEN, listen_address) {
            if listen.is_empty() {
                self.error(
                    offset(table, "listen"),
                    Some("listen"),
                    "is empty; name an address or remove it",
                );
            }
            config.listen = self.unique(table, "listen", listen);
            config.listen_configured = true;
        }
        if let Some(port) = self.value(table, "stun_alt_port", alt_port) {
            config.alt_port = port;
            config.alt_port_configured = true;
        }
        config.alt_address = self.value(table, "stun_alt_address", alt_address);
        if let Some(rate) = self.value(table, "rate_limit", rate) {
            config.rate_limit = rate;
        }
        config.metrics = self.value(table, "metrics", metrics_address);
        config.access = self.access(table);
        let clash = |listen: &SocketAddr| listen.port() == config.alt_port && listen.port() != 0;
        if config.alt_port_configured && config.listen.iter().any(clash) {
            let message = "is a port of `listen`, too; use another one";
            self.error(
                offset(table, "stun_alt_port"),
                Some("stun_alt_port"),
                message,
            );
        } else if config.listen.iter().any(clash) {
            let message = format!(
                "port {DEFAULT_ALT_PORT} is the second STUN port; set `stun_alt_port` to another one"
            );
            self.error(offset(table, "listen"), Some("listen"), message);
        }
        config
    }

    fn access(&mut self, table: &DeTable<'_>) -> Access {
        let nodes = self.each(table, "nodes", MAX_NODES, node);
        let open = self.value(table, "access", access).is_some();
        match nodes {
            Some(_) if open => {
                let message = "says that everyone may use the relay, and `nodes` that some may; remove one of them";
                self.error(offset(table, "access"), Some("access"), message);
                Access::Open
            }
            None if open => Access::Open,
            None => Access::Nodes(BTreeSet::new()),
            Some(nodes) => Access::Nodes(self.unique(table, "nodes", nodes).into_iter().collect()),
        }
    }

    /// Reports what occurs twice.
    fn unique<T: Ord + Copy + fmt::Display>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        values: Vec<(usize, T)>,
    ) -> Vec<T> {
        let mut seen = BTreeSet::new();
        for &(at, value) in &values {
            if !seen.insert(value) {
                let at = at.max(offset(table, key));
                self.error(at, Some(key), format!("{value} is there twice; remove one"));
            }
        }
        values.into_iter().map(|(_, value)| value).collect()
    }

    fn value<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        let value = table.get(key)?;
        match parse(value.get_ref()) {
            Ok(value) => Some(value),
            Err(message) => {
                self.error(value.span().start, Some(key), message);
                None
            }
        }
    }

    /// The elements of an array with their places; those that are wrong are reported and left out.
    fn each<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        most: usize,
        parse: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<Vec<(usize, T)>> {
        let value = table.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let message = format!(
                "must be a list, not {}; write {key} = [\"…\"]",
                kind(value.get_ref())
            );
            self.error(value.span().start, Some(key), message);
            return None;
        };
        if array.len() > most {
            let message = format!("has {} entries, and {most} are allowed", array.len());
            self.error(value.span().start, Some(key), message);
            return None;
        }
        let mut parsed = Vec::new();
        for element in array.iter() {
            let at = element.span().start;
            match parse(element.get_ref()) {
                Ok(value) => parsed.push((at, value)),
                Err(message) => self.error(at, Some(key), message),
            }
        }
        Some(parsed)
    }
}

fn offset(table: &DeTable<'_>, key: &str) -> usize {
    table
        .get(key)
        .map_or(0, |value: &Spanned<_>| value.span().start)
}

fn text<'v>(value: &'v DeValue<'_>, example: &str) -> Result<&'v str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("must be a string, not {}; write {example}", kind(value)))
}

fn listen_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let text = text(value, "\"[::]:443\"")?;
    let address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "{} is not an address with a port; write it like \"[::]:443\" or \"0.0.0.0:443\"",
            shown(text)
        )
    })?;
    // IPv4 in IPv6 form would be a second spelling of an IPv4 socket.
    match address.ip().to_canonical() {
        IpAddr::V6(ip) if ip.is_multicast() => Err(format!(
            "{address} is a multicast address; use one of this host"
        )),
        IpAddr::V4(ip) if ip.is_multicast() || ip.is_broadcast() => Err(format!(
            "{address} is no host's address; use one of this host"
        )),
        ip => Ok(SocketAddr::new(ip, address.port())),
    }
}

fn metrics_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    parse_metrics_address(text(value, "metrics = \"127.0.0.1:9587\"")?)
}

fn alt_port(value: &DeValue<'_>) -> Result<u16, String> {
    let Some(number) = value.as_integer() else {
        return Err(format!(
            "must be a number, not {}; write stun_alt_port = {DEFAULT_ALT_PORT}",
            kind(value)
        ));
    };
    u16::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| format!("{number} is not a port; use 0 (any free port) to 65535"))
}

fn alt_address(value: &DeValue<'_>) -> Result<Ipv4Addr, String> {
    let text = text(value, "an IPv4 address of this host: \"203.0.113.2\"")?;
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{} is no IP address", shown(text)))?;
    match address.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() => {
            Err(format!("{ip} is no host's address; use one of this host"))
        }
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => Err(format!(
            "{ip} is an IPv6 address; it is IPv4 that NATs translate, so use an IPv4 address of this host"
        )),
    }
}

fn node(value: &DeValue<'_>) -> Result<NodeId, String> {
    let text = text(value, "\"<node id>\", as `meshd --print-id` prints it")?;
    text.parse()
        .map_err(|error| format!("{}: {error}", shown(text)))
}

fn access(value: &DeValue<'_>) -> Result<(), String> {
    match text(value, "access = \"open\"")? {
        "open" => Ok(()),
        other => Err(format!(
            "{} is not known; write \"open\" to admit everyone, or list `nodes`",
            shown(other)
        )),
    }
}

/// A rate like `100 Mbit/s`, in bytes a second.
fn rate(value: &DeValue<'_>) -> Result<u64, String> {
    const EXAMPLE: &str = "\"100 Mbit/s\"";
    let text = text(value, EXAMPLE)?;
    let wrong = || {
        format!(
            "{} is not a rate; write it like {EXAMPLE}, in kbit/s, Mbit/s or Gbit/s",
            shown(text)
        )
    };
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit: u64 = match unit.trim_start() {
        "kbit/s" => 1_000,
        "Mbit/s" => 1_000_000,
        "Gbit/s" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let bits = number.saturating_mul(unit);
    if !(MIN_RATE..=MAX_RATE).contains(&bits) {
        return Err(format!(
            "{} is out of range; use 8 kbit/s to 1000 Gbit/s",
            shown(text)
        ));
    }
    Ok(bits / 8)
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A text of the file as a message repeats it: on one line, and not too much of it.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "zkj2yfyfdbyhdvt3qpd76dx6qeeor3cfgblv25zgq6jthw62xz6a";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("relay.toml")).map_err(|errors| errors.to_string())
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err(text)
    }

    #[test]
    fn an_empty_file_is_the_default_and_admits_nobody() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.listen, ["[::]:443".parse().unwrap()]);
        assert_eq!(config.rate_limit, 12_500_000);
        assert!(!config.admits_anybody() && config.metrics.is_none());
    }

    #[test]
    fn everything_can_be_set() {
        let config = parse(&format!(
            "listen = [\"0.0.0.0:4443\", \"[2001:db8::1]:443\"]\nstun_alt_port = 4444\n\
             nodes = [\"{NODE}\"]\nrate_limit = \"2 Gbit/s\"\nmetrics = \"[::1]:9587\"\n"
        ))
        .unwrap();
        assert_eq!(config.listen.len(), 2);
        assert!(config.listen_configured && config.alt_port_configured);
        assert_eq!(config.alt_port, 4444);
        assert_eq!(config.access, Access::Nodes([NODE.parse().unwrap()].into()));
        assert_eq!(config.rate_limit, 250_000_000);
        assert_eq!(config.metrics, Some("[::1]:9587".parse().unwrap()));
        assert!(config.admits_anybody());
        assert_eq!(parse("access = \"open\"").unwrap().access, Access::Open);
    }

    #[test]
    fn rates_have_units() {
        for (text, bytes) in [
            ("8 kbit/s", 1_000),
            ("100Mbit/s", 12_500_000),
            ("1 Gbit/s", 125_000_000),
        ] {
            assert_eq!(
                parse(&format!("rate_limit = \"{text}\""))
                    .unwrap()
                    .rate_limit,
                bytes
            );
        }
        for text in [
            "100",
            "Mbit/s",
            "100 MB/s",
            "-1 Mbit/s",
            "1.5 Mbit/s",
            "99999999999999999999 Gbit/s",
        ] {
            assert!(
                refused(&format!("rate_limit = \"{text}\"")).contains("write it like"),
                "{text}"
            );
        }
        for text in ["7 kbit/s", "1001 Gbit/s", "18446744073709551615 Gbit/s"] {
            assert!(
                refused(&format!("rate_limit = \"{text}\"")).contains("out of range"),
                "{text}"
            );
        }
    }

    #[test]
    fn each_problem_is_named_with_its_line_and_key() {
        let text = refused(
            "listen = [\"[::]:443\",\n  \"nonsense\"]\n# comment\nstun_alt_port = 70000\nrate = 1\n\
             networks = []\naccess = 7\nnodes = \"all\"\nmetrics = \"x:9587\"\n",
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "relay.toml:2: listen: nonsense is not an address with a port; \
                 write it like \"[::]:443\" or \"0.0.0.0:443\"",
                "relay.toml:4: stun_alt_port: 70000 is not a port; use 0 (any free port) to 65535",
                "relay.toml:5: rate: is not a key of a relay; \
                 the keys are listen, stun_alt_port, stun_alt_address, nodes, access, rate_limit, metrics",
                "relay.toml:6: networks: is not supported by this version; remove it",
                "relay.toml:7: access: must be a string, not a number; write access = \"open\"",
                "relay.toml:8: nodes: must be a list, not a string; write nodes = [\"…\"]",
                "relay.toml:9: metrics: \"x:9587\" is not an address with a port; \
                 write it like \"127.0.0.1:9586\" or \"[::1]:9586\"",
            ]
        );
    }

    #[test]
    fn what_is_not_toml_is_said_with_its_line() {
        let text = refused("access = \"open\"\nlisten = [\n");
        assert!(
            text.starts_with("relay.toml:2: this is not TOML")
                || text.starts_with("relay.toml:3: this is not TOML"),
            "{text}"
        );
    }

    #[test]
    fn keys_of_later_versions_say_so() {
        for key in LATER {
            assert!(refused(&format!("{key} = \"x\"")).contains("not supported by this version"));
        }
    }

    #[test]
    fn contradictions_and_duplicates_are_refused() {
        assert!(
            refused(&format!("access = \"open\"\nnodes = [\"{NODE}\"]"))
                .starts_with("relay.toml:1: access: ")
        );
        assert!(
            refused(&format!("nodes = [\"{NODE}\",\n\"{NODE}\"]"))
                .starts_with("relay.toml:2: nodes: ")
        );
        assert!(refused("listen = [\"[::]:1\", \"[::]:1\"]").contains("twice"));
        assert!(refused("listen = []").contains("empty"));
        assert!(
            refused("listen = [\"[::]:5\"]\nstun_alt_port = 5")
                .starts_with("relay.toml:2: stun_alt_port: ")
        );
        let second = parse("stun_alt_address = \"203.0.113.2\"").unwrap();
        assert_eq!(second.alt_address, Some(Ipv4Addr::new(203, 0, 113, 2)));
        for wrong in ["0.0.0.0", "224.0.0.1", "2001:db8::1", "relay.example.org"] {
            assert!(
                refused(&format!("stun_alt_address = \"{wrong}\""))
                    .starts_with("relay.toml:1: stun_alt_address: ")
            );
        }
        assert!(refused("listen = [\"[::]:3478\"]").contains("stun_alt_port"));
        parse("listen = [\"[::]:3478\"]\nstun_alt_port = 5").unwrap();
        parse("listen = [\"127.0.0.1:0\"]\nstun_alt_port = 0").unwrap();
    }

    #[test]
    fn long_and_strange_texts_are_not_repeated_as_they_are() {
        let text = refused(&format!("access = \"{}\\n\"", "x".repeat(1000)));
        assert!(text.len() < 300 && !text.contains('\n'), "{text}");
    }
}
