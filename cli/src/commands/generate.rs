//! `meshctl completion`, and the hidden `meshctl man` that packaging uses.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Args;
use crate::exit::Failure;
use crate::output;

pub(super) fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "meshctl", &mut script);
    Ok(output::text(&String::from_utf8_lossy(&script))?)
}

pub(super) fn man(directory: &Path) -> Result<(), Failure> {
    for (name, page) in pages()? {
        let path = directory.join(name);
        fs::write(&path, page).map_err(|error| {
            Failure::failed(format!(
                "cannot write {}: {error}; choose another directory",
                path.display()
            ))
        })?;
    }
    Ok(())
}

/// File names and texts: one page for the program, one for each command.
fn pages() -> Result<Vec<(String, String)>, Failure> {
    // Without the version, so that the pages change only with the commands.
    let mut program = Args::command()
        .version(None::<&str>)
        .disable_help_subcommand(true);
    program.build();
    let commands = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    commands
        .chain([&program])
        .map(|command| {
            let man = clap_mangen::Man::new(command.clone())
                .source("meshd")
                .manual("meshd manual");
            let mut page = Vec::new();
            man.render(&mut page)?;
            let page = String::from_utf8_lossy(&page).replace(".SH EXTRA\n", ".SH EXIT STATUS\n");
            Ok((man.get_filename(), page))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_pages_are_those_of_the_commands() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/man");
        let generated = pages().unwrap();
        assert!(generated.iter().any(|(name, _)| name == "meshctl-ping.1"));
        for (name, page) in &generated {
            let text = fs::read_to_string(shipped.join(name)).unwrap_or_default();
            assert!(
                text == *page,
                "{name} is out of date: run `cargo run -p meshctl -- man packaging/man`"
            );
        }
        let of_meshctl =
            |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("meshctl");
        let entries = fs::read_dir(shipped).unwrap().map(Result::unwrap);
        assert_eq!(
            entries.filter(of_meshctl).count(),
            generated.len(),
            "one page is of no command"
        );
    }

    #[test]
    fn completions_know_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "meshctl", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["status", "netcheck", "until-direct"] {
                assert!(script.contains(word), "{word} in {shell}");
            }
        }
    }
}
