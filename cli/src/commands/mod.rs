//! One file for each command: from arguments to requests to output.

mod explain;
mod generate;
mod netcheck;
mod ping;
mod reload;
mod status;
mod updown;

use crate::args::{Args, Command, Global};
use crate::client::Client;
use crate::exit::Failure;

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let Args { global, command } = args;
    match command {
        Command::Up { name, wait } => {
            let name = chosen(&global, name)?;
            updown::up(&client(&global).await?, global.json, name, wait).await
        }
        Command::Down { name } => {
            let name = chosen(&global, name)?;
            updown::down(&client(&global).await?, global.json, name).await
        }
        Command::Status {
            peers,
            watch,
            wireguard,
        } => {
            let client = client(&global).await?;
            if wireguard {
                status::wireguard(&client, &global).await
            } else if watch {
                status::watch(&client, &global, peers).await
            } else {
                status::once(&client, &global, peers).await
            }
        }
        Command::Ping {
            peer,
            count,
            wait,
            interval,
            until_direct,
        } => {
            let plan = ping::Plan {
                peer,
                count,
                wait,
                interval,
                until_direct,
            };
            ping::run(&client(&global).await?, &global, plan).await
        }
        Command::Explain { peer } => explain::run(&client(&global).await?, &global, &peer).await,
        Command::Netcheck => netcheck::run(&client(&global).await?, &global).await,
        Command::Reload => reload::run(&client(&global).await?, &global).await,
        Command::Completion { shell } => generate::completion(shell),
        Command::Man { directory } => generate::man(&directory),
    }
}

async fn client(global: &Global) -> Result<Client, Failure> {
    Client::connect(global.socket.as_deref()).await
}

/// The network that a command names, which can be done in two ways.
fn chosen(global: &Global, name: Option<String>) -> Result<String, Failure> {
    match (&global.network, name) {
        (Some(option), Some(name)) if *option != name => Err(Failure::usage(format!(
            "both {name} and --network {option} are given; choose one"
        ))),
        (_, Some(name)) => Ok(name),
        (Some(option), None) => Ok(option.clone()),
        (None, None) => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_can_be_named_in_two_ways_but_not_two_networks() {
        let global = |network: Option<&str>| Global {
            network: network.map(str::to_owned),
            ..Global::default()
        };
        assert_eq!(chosen(&global(None), None), Ok(String::new()));
        assert_eq!(chosen(&global(Some("home")), None), Ok("home".to_owned()));
        assert_eq!(
            chosen(&global(Some("home")), Some("home".to_owned())),
            Ok("home".to_owned())
        );
        assert!(chosen(&global(Some("home")), Some("work".to_owned())).is_err());
    }
}
