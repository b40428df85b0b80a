//! Logging to stderr, or to journald with fields when stderr is the journal.
//!
//! Two things hold whatever `-vv` or `RUST_LOG` ask for: nothing of boringtun is logged (it writes a line for each
//! handshake and each expired session, at the pace of whoever sends them), and other crates are cut off below DEBUG,
//! where some of them print the bytes that they carry.

use std::env;
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Our own crates: only they may log below DEBUG, since only of them we know what they print there.
const OURS: [&str; 4] = ["meshd", "mesh_core", "mesh_relay", "mesh_bus"];
/// Never logged.
const SILENT: &str = "boringtun";

/// Starts logging; `verbose` counts the `-v`. Does nothing if somebody else has started it. Returns whether the log goes
/// to the journal.
pub fn init(verbose: u8) -> bool {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbose)));
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(FilterFn::new(may_be_logged));
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let _ = registry
            .with(journal.with_syslog_identifier("meshd".into()))
            .try_init();
        return true;
    }
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(verbose > 0);
    let _ = registry.with(layer).try_init();
    false
}

/// The filter for a number of `-v`.
fn directives(verbose: u8) -> String {
    let (others, ours) = match verbose {
        0 => ("warn", "info"),
        1 => ("info", "debug"),
        _ => ("debug", "trace"),
    };
    let mut text = others.to_owned();
    for name in OURS {
        text.push_str(&format!(",{name}={ours}"));
    }
    text
}

fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let root = metadata.target().split("::").next().unwrap_or_default();
    root != SILENT && (*metadata.level() <= Level::DEBUG || OURS.contains(&root))
}

/// True when stderr is connected to the journal, as `$JOURNAL_STREAM` (`device:inode`) says; see systemd.exec(5).
fn stderr_is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else {
        return false;
    };
    fstat(io::stderr().as_fd())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, write: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::registry()
            .with(EnvFilter::new(filter))
            .with(FilterFn::new(may_be_logged))
            .with(
                tracing_subscriber::fmt::layer()
                    .with_ansi(false)
                    .with_writer(move || writer.clone()),
            );
        tracing::subscriber::with_default(subscriber, write);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn nothing_of_boringtun_is_logged_even_on_request() {
        let text = logged("trace,boringtun=trace", || {
            tracing::error!(target: "boringtun::noise::timers", "CONNECTION_EXPIRED");
            tracing::info!(target: "meshd::supervisor", "network home is up");
        });
        assert!(!text.contains("CONNECTION_EXPIRED"), "{text}");
        assert!(text.contains("network home is up"), "{text}");
    }

    #[test]
    fn other_crates_are_cut_off_below_debug() {
        let text = logged("trace", || {
            tracing::trace!(target: "quinn_proto::connection", "bytes of a packet");
            tracing::trace!(target: "mesh_core::path", "probe answered");
            tracing::trace!(target: "meshdump", "not one of ours");
        });
        assert!(
            !text.contains("bytes of a packet") && !text.contains("not one of ours"),
            "{text}"
        );
        assert!(text.contains("probe answered"), "{text}");
    }

    #[test]
    fn each_v_shows_more_of_ours_than_of_others() {
        for (verbose, ours, others) in [
            (0, "info", "warn"),
            (1, "debug", "info"),
            (2, "trace", "debug"),
            (9, "trace", "debug"),
        ] {
            let text = directives(verbose);
            assert!(text.starts_with(&format!("{others},")), "{text}");
            assert!(text.contains(&format!("meshd={ours}")), "{text}");
            assert!(EnvFilter::builder().parse(&text).is_ok());
        }
    }
}
