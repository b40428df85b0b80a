//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

/// Longest time that makes sense to wait: a day.
const MAX_SECONDS: f64 = 86_400.0;

/// Controls meshd, the mesh VPN daemon
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 it failed, 2 bad usage, 3 meshd is not running, 4 not authorised, 5 no such network or peer";

/// Options of every command.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Global {
    /// Network to act on [default: the only one]
    #[arg(long, global = true, value_name = "NAME", value_parser = network_name)]
    pub(crate) network: Option<String>,
    /// Control socket of meshd [default: the system bus, else /run/meshd/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Print JSON; its fields are a stable interface
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a network up: its interface, addresses and routes; remembered across restarts
    Up {
        /// Network [default: every one that is down]
        #[arg(value_name = "NAME", value_parser = network_name)]
        name: Option<String>,
        /// Then wait until a peer answers, at most so long
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
    /// Take a network down: its interface, addresses and routes; remembered across restarts
    Down {
        /// Network [default: every one that is up]
        #[arg(value_name = "NAME", value_parser = network_name)]
        name: Option<String>,
    },
    /// Show who is here, how each is reached, and what is wrong
    Status {
        /// Which peers to show
        #[arg(long, value_name = "WHICH", value_enum, default_value_t = Peers::All)]
        peers: Peers,
        /// Show it again every second until interrupted
        #[arg(long, conflicts_with = "wireguard")]
        watch: bool,
        /// Print what to configure on a stock WireGuard device that is to be a peer of this host
        #[arg(long)]
        wireguard: bool,
    },
    /// Ping a peer inside the tunnel and name the path of each answer
    Ping {
        /// Name, node ID or overlay address of the peer
        #[arg(value_name = "PEER", value_parser = peer_name)]
        peer: String,
        /// How many; 0 for no end
        #[arg(short = 'c', long, value_name = "N", default_value_t = 10)]
        count: u32,
        /// How long to wait for each answer
        #[arg(short = 'W', long, value_name = "SECONDS", default_value = "5", value_parser = ping_seconds)]
        wait: Duration,
        /// Time from one ping to the next
        #[arg(short = 'i', long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
        interval: Duration,
        /// Stop at the first answer over a direct path, and fail if there is none
        #[arg(long)]
        until_direct: bool,
    },
    /// Say why a peer is reached as it is, and what was tried
    Explain {
        /// Name, node ID or overlay address of the peer
        #[arg(value_name = "PEER", value_parser = peer_name)]
        peer: String,
    },
    /// Check what lies between this host and its relays: UDP, NAT, latencies
    Netcheck,
    /// Make meshd read its configuration again; sessions that did not change live on
    Reload,
    /// Print a script that completes meshctl's command lines
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// Directory, which has to be there
        directory: PathBuf,
    },
}

/// Which peers `status` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peers {
    /// All of them
    All,
    /// Those in use
    Active,
}

/// Longer ones exist nowhere; an empty one would mean all of them to meshd.
fn network_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=256 => Ok(text.to_owned()),
        _ => Err("a network's name has between 1 and 256 bytes".to_owned()),
    }
}

fn peer_name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=256 => Ok(text.to_owned()),
        _ => Err("a peer has a name, a node ID or an address".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    if (0.001..=MAX_SECONDS).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("choose between 0.001 and {MAX_SECONDS} seconds"))
    }
}

fn ping_seconds(text: &str) -> Result<Duration, String> {
    let wait = seconds(text)?;
    if wait <= Duration::from_secs(60) {
        Ok(wait)
    } else {
        Err("choose at most 60 seconds".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_behind_the_command() {
        for line in [
            "meshctl --json --network home --socket /s status",
            "meshctl status --json --network home --socket /s",
        ] {
            let args = parse(line).unwrap();
            assert!(args.global.json);
            assert_eq!(args.global.network.as_deref(), Some("home"));
            assert_eq!(args.global.socket, Some(PathBuf::from("/s")));
        }
    }

    #[test]
    fn ping_takes_the_options_of_the_contract() {
        let Command::Ping {
            peer,
            count,
            wait,
            until_direct,
            ..
        } = parse("meshctl ping bob -c 3 -W 0.5 --until-direct")
            .unwrap()
            .command
        else {
            panic!("not a ping");
        };
        assert_eq!((peer.as_str(), count, until_direct), ("bob", 3, true));
        assert_eq!(wait, Duration::from_millis(500));
    }

    #[test]
    fn senseless_values_are_bad_usage() {
        for line in [
            "meshctl ping bob -W 0",
            "meshctl ping bob -W 61",
            "meshctl ping bob -W NaN",
            "meshctl ping bob -c -1",
            "meshctl up --wait -5",
            "meshctl up --wait soon",
            "meshctl status --peers some",
            "meshctl status --watch --wireguard",
            "meshctl --network= status",
            "meshctl ping",
            "meshctl frobnicate",
            "meshctl completion tcsh",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["meshctl --help", "meshctl --version", "meshctl ping --help"] {
            assert!(!parse(line).unwrap_err().use_stderr(), "{line}");
        }
    }
}
