//! `meshd`: see [`meshd`].

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use meshd::args::Args;
use meshd::{logging, supervisor};

fn main() -> ExitCode {
    let args = Args::parse();
    logging::init(args.verbose);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.check {
        let file = supervisor::ConfigFile::new(args.config.as_deref());
        file.read()?;
        eprintln!("{}: no problems found", file.path().display());
        return Ok(());
    }
    if let Some(network) = &args.print_id {
        println!("{}", supervisor::node_id(args, network)?);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        if args.cleanup {
            supervisor::cleanup(args).await
        } else {
            supervisor::run(args).await
        }
    });
    // Whatever still waits, such as a name server, is not waited for.
    runtime.shutdown_background();
    Ok(result?)
}
