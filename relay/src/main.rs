//! The program `mesh-relay`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use mesh_relay::config::Config;
use mesh_relay::{Observer, Relay, advertise, logging, metrics, scrape, state};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where the configuration is looked for; it may be missing there.
const DEFAULT_CONFIG: &str = "/etc/mesh-relay/relay.toml";

/// A self-hosted relay and STUN server for meshd.
#[derive(Debug, Parser)]
#[command(name = "mesh-relay", version)]
struct Args {
    /// Configuration file [default: /etc/mesh-relay/relay.toml, which may be missing]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Directory for the relay's key
    #[arg(long, value_name = "DIR", default_value = "/var/lib/mesh-relay")]
    state_dir: PathBuf,

    /// Check the configuration, print everything that is wrong with it, and exit with 0 or 1
    #[arg(long)]
    check: bool,

    /// Print the mesh:// line for clients that reach the relay at ADDRESS (a host name or IP address, with a port or
    /// on the configured one), making its key first if there is none, and exit
    #[arg(long, value_name = "ADDRESS", conflicts_with = "check")]
    print_url: Option<String>,

    /// Log more; twice for even more. RUST_LOG overrides it
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let config = load(args)?;
    if args.check {
        if !config.admits_anybody() {
            eprintln!("{NOBODY}");
        }
        return Ok(());
    }
    if let Some(address) = &args.print_url {
        let identity = state::identity(&args.state_dir)?;
        let port = config.listen.first().map_or(0, |listen| listen.port());
        let url = advertise::url(identity.id(), address, port)
            .with_context(|| format!("clients cannot use the address \"{address}\""))?;
        println!("{url}");
        return Ok(());
    }
    logging::init(args.verbose);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(args, &config))
}

const NOBODY: &str =
    "the relay admits nobody: list `nodes` in its configuration, or set `access = \"open\"`";

fn load(args: &Args) -> Result<Config> {
    let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Config::parse(&text, path)?),
        Err(error) if error.kind() == ErrorKind::NotFound && args.config.is_none() => {
            Ok(Config::default())
        }
        Err(error) => bail!("cannot read {}: {error}", path.display()),
    }
}

async fn serve(args: &Args, config: &Config) -> Result<()> {
    let shutdown = Shutdown::new()?;
    let identity = state::identity(&args.state_dir)?;
    let relay = Relay::bind(config, &identity)?;
    drop(identity);
    let listening = relay.local_addresses();
    for address in &listening {
        tracing::info!("listening on UDP {address}");
    }
    if let Some(port) = relay.alt_port() {
        tracing::info!("second STUN port: {port}");
    }
    let urls = advertise::urls(relay.id(), &listening);
    if urls.is_empty() {
        tracing::info!("relay {}", relay.id());
    }
    for url in urls {
        tracing::info!("for `relays` of clients: {url}");
    }
    if !config.admits_anybody() {
        tracing::warn!("{NOBODY}");
    }
    let observer = relay.observer();
    if let Some(address) = config.metrics {
        let listener = scrape::listen(address)?;
        tracing::info!("metrics at http://{address}/metrics");
        let observer = observer.clone();
        tokio::spawn(scrape::serve(listener, move || {
            std::future::ready(Some(metrics::render(&observer)))
        }));
    }
    tokio::spawn(report_on_signal(
        observer,
        signal(SignalKind::user_defined1())?,
    ));
    notify(NotifyState::Ready);
    relay.run(shutdown.wait()).await.context("the relay failed")
}

/// Tells systemd, if it is there and asked for it.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot notify systemd: {error}");
    }
}

async fn report_on_signal(observer: Observer, mut asked: Signal) {
    while asked.recv().await.is_some() {
        tracing::info!("clients={} {}", observer.clients(), observer.stats());
    }
}

/// The signals that stop the relay.
struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        notify(NotifyState::Stopping);
        tracing::info!("stopping");
    }
}
