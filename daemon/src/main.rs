//! `meshd`: see [`meshd`].

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Parser;
use meshd::args::Args;
use meshd::{logging, supervisor};

fn main() -> ExitCode {
    let args = Args::parse();
    let journal = logging::init(args.verbose);
    let Err(error) = run(&args) else {
        return ExitCode::SUCCESS;
    };
    // Our messages include what caused them.
    if journal {
        tracing::error!("{error}");
    } else if args.check {
        // Starts with file and line, as editors understand it.
        eprintln!("{error}");
    } else {
        eprintln!("meshd: {error}");
    }
    ExitCode::FAILURE
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
        .map_err(|error| anyhow!("cannot start the runtime: {error}"))?;
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
