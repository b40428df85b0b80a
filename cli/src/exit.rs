//! How a command ends.

use std::fmt;
use std::process::ExitCode;

use mesh_bus::ErrorKind;
use serde_json::json;

use crate::output;

/// Exit codes; they are a stable interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// It was tried and failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Nobody answers.
    NotRunning = 3,
    /// The user may not.
    NotAuthorised = 4,
    /// No such network or peer.
    NoSuch = 5,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

impl From<ErrorKind> for Code {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Failed => Self::Failed,
            ErrorKind::Usage => Self::Usage,
            ErrorKind::NotAuthorised => Self::NotAuthorised,
            ErrorKind::NoSuch => Self::NoSuch,
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The user is told.
    Told {
        /// What to exit with.
        code: Code,
        /// One line: what failed, and what to do.
        message: String,
    },
    /// Nobody reads our output any more: there is nothing to tell, and nobody to tell it to.
    NobodyReads,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self::Told {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    pub(crate) fn not_running(what: impl fmt::Display) -> Self {
        Self::new(
            Code::NotRunning,
            format!("meshd is not running ({what}); start it with: systemctl start meshd"),
        )
    }
}

impl From<std::io::Error> for Failure {
    /// Of writing our output.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::failed(format!(
                "cannot write the output: {error}; check where it goes to"
            )),
        }
    }
}

/// Tells the user how it ended: one line on stderr, with `json` an object on stdout as well.
pub(crate) fn report(result: Result<(), Failure>, json: bool) -> ExitCode {
    let Err(Failure::Told { code, message }) = result else {
        return ExitCode::SUCCESS;
    };
    let message = one_line(&message);
    if json {
        let _ = output::document(&json!({"error": {"code": code as u8, "message": message}}));
    }
    let _ = output::complain(&format!("meshctl: {message}"));
    code.into()
}

/// What meshd says may come from a file or from the network.
fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let line = lines.join("; ");
    line.chars()
        .filter(|character| !character.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_contract() {
        for kind in [
            ErrorKind::Failed,
            ErrorKind::Usage,
            ErrorKind::NotAuthorised,
            ErrorKind::NoSuch,
        ] {
            assert_eq!(Code::from(kind) as u8, kind.exit_code());
        }
        assert_eq!(Code::NotRunning as u8, 3);
    }

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        assert_eq!(
            one_line("first\n second\u{1b}[31m\n\n"),
            "first; second[31m"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(broken), Failure::NobodyReads);
        assert_eq!(report(Err(Failure::NobodyReads), false), ExitCode::SUCCESS);
    }
}
