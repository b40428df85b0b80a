//! meshctl: what a person types.
//!
//! Arguments become a call to meshd ([`client`]), its answer becomes text or JSON ([`render`]), and whatever happens
//! becomes an exit code ([`exit`]).

mod args;
mod client;
mod commands;
mod exit;
mod output;
mod progress;
mod render;

use std::process::ExitCode;

use clap::Parser;

use args::Args;
use exit::Failure;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return bad_usage(&error),
    };
    let json = args.global.json;
    exit::report(run(args), json)
}

fn run(args: Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(commands::run(args))
}

/// Help and version are no errors; everything else is exit code 2, on stdout too if JSON was asked for.
fn bad_usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let line = line.strip_prefix("error: ").unwrap_or(line);
        return exit::report(
            Err(Failure::usage(format!("{line}; see: meshctl --help"))),
            true,
        );
    }
    // A closed pipe is no reason to fail.
    let _ = error.print();
    if error.use_stderr() {
        exit::Code::Usage.into()
    } else {
        ExitCode::SUCCESS
    }
}
