//! Logging to stderr, or to journald with fields when stderr is the journal.

use std::env;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging; `verbose` counts the `-v`, and `RUST_LOG` overrides it.
pub fn init(verbose: u8) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbose)));
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_syslog_identifier("mesh-relay".into());
        let _ = registry.with(journal).try_init();
        return;
    }
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0);
    let _ = registry.with(layer).try_init();
}

/// Quinn writes lines for single packets from DEBUG on, at the pace of whoever sends them.
fn directives(verbose: u8) -> &'static str {
    match verbose {
        0 => "error,mesh_relay=info,mesh_core=info",
        1 => "warn,mesh_relay=debug,mesh_core=debug",
        _ => "info,mesh_relay=trace,mesh_core=trace",
    }
}

/// True when stderr is connected to the journal, as `$JOURNAL_STREAM` (`device:inode`) says; see systemd.exec(5).
fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr().as_fd())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
