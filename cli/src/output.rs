//! Writing to stdout and stderr: a closed pipe is an error like any other here, not a panic.

use std::env;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Writes text to stdout, and a line feed if it does not end in one.
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes a JSON document to stdout, for people and programs.
pub(crate) fn document(document: &impl Serialize) -> io::Result<()> {
    text(&serde_json::to_string_pretty(document)?)
}

/// Writes one JSON document of several to stdout, on a line.
pub(crate) fn document_line(document: &impl Serialize) -> io::Result<()> {
    text(&serde_json::to_string(document)?)
}

/// Writes a line to stderr.
pub(crate) fn complain(line: &str) -> io::Result<()> {
    writeln!(io::stderr(), "{line}")
}

/// Whether stdout is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether to use colours on stdout: on a terminal that has them, unless `NO_COLOR` is set (no-color.org).
pub(crate) fn colours() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
    is_terminal() && !set("NO_COLOR") && !dumb
}
