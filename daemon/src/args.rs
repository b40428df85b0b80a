//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Where the configuration is looked for; it may be missing there.
pub const DEFAULT_CONFIG: &str = "/etc/meshd/config.toml";

/// What `--version` prints behind the program's name.
const VERSION: &str = if mesh_core::session::NULL_CIPHER {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " (NO ENCRYPTION: for benchmarks only)"
    )
} else {
    env!("CARGO_PKG_VERSION")
};

/// A mesh VPN daemon that needs no control server.
#[derive(Debug, Clone, Parser)]
#[command(name = "meshd", version = VERSION)]
pub struct Args {
    /// Configuration file [default: /etc/meshd/config.toml, which may be missing]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Directory for keys and what else must survive a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/meshd")]
    pub state_dir: PathBuf,

    /// Control socket
    #[arg(long, value_name = "PATH", default_value = "/run/meshd/control.sock")]
    pub socket: PathBuf,

    /// Stay off the system bus; the control socket is then the only way in
    #[arg(long)]
    pub no_bus: bool,

    /// Print the node ID in NETWORK, making its key first if there is none, and exit
    #[arg(long, value_name = "NETWORK", conflicts_with_all = ["check", "cleanup"])]
    pub print_id: Option<String>,

    /// Check the configuration, print everything that is wrong with it, and exit with 0 or 1
    #[arg(long, conflicts_with = "cleanup")]
    pub check: bool,

    /// Remove what a meshd that is gone left in the routing table, and exit
    #[arg(long)]
    pub cleanup: bool,

    /// Log more; twice for even more. RUST_LOG overrides it
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("meshd").chain(line.iter().copied()))
    }

    #[test]
    fn definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn without_arguments_the_system_paths_are_used() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.config, None);
        assert_eq!(args.state_dir, PathBuf::from("/var/lib/meshd"));
        assert_eq!(args.socket, PathBuf::from("/run/meshd/control.sock"));
        assert!(!args.no_bus && !args.check && !args.cleanup);
        assert_eq!(args.verbose, 0);
    }

    #[test]
    fn every_option_of_the_interface_is_understood() {
        let args = parse(&[
            "--config",
            "c.toml",
            "--state-dir",
            "s",
            "--socket",
            "x.sock",
            "--no-bus",
            "-vv",
        ])
        .unwrap();
        assert_eq!(args.config, Some(PathBuf::from("c.toml")));
        assert_eq!(args.state_dir, PathBuf::from("s"));
        assert_eq!(args.socket, PathBuf::from("x.sock"));
        assert!(args.no_bus);
        assert_eq!(args.verbose, 2);
        assert_eq!(
            parse(&["--print-id", "home"]).unwrap().print_id.as_deref(),
            Some("home")
        );
        assert!(parse(&["--check"]).unwrap().check);
        assert!(parse(&["--cleanup"]).unwrap().cleanup);
    }

    #[test]
    fn only_one_thing_is_done_at_a_time() {
        for line in [
            &["--check", "--cleanup"][..],
            &["--print-id", "home", "--check"],
            &["--print-id", "home", "--cleanup"],
        ] {
            assert_eq!(
                parse(line).unwrap_err().kind(),
                ErrorKind::ArgumentConflict,
                "{line:?}"
            );
        }
    }

    #[test]
    fn the_version_is_a_number_and_nothing_to_be_warned_of() {
        let shown = parse(&["--version"]).unwrap_err();
        assert_eq!(shown.kind(), ErrorKind::DisplayVersion);
        assert_eq!(
            shown.to_string(),
            format!("meshd {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
