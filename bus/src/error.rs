//! What can go wrong with a request, as D-Bus error names and as exit codes.

/// Why meshd did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// It was tried and failed.
    Failed,
    /// The request makes no sense as it stands, for example because it has to name one of several networks.
    Usage,
    /// Whoever asks may not.
    NotAuthorised,
    /// No such network or peer.
    NoSuch,
}

impl ErrorKind {
    /// What meshctl exits with.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotAuthorised => 4,
            Self::NoSuch => 5,
        }
    }
}

/// Errors of the interface `net.meshd.Mesh1`; the text says what failed and what to do.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "net.meshd.Mesh1.Error", impl_display = false)]
pub enum Error {
    /// Anything that is not an answer of meshd: the connection broke, nobody answers.
    #[zbus(error)]
    Bus(zbus::Error),
    /// [`ErrorKind::Failed`].
    Failed(String),
    /// [`ErrorKind::Usage`].
    Usage(String),
    /// [`ErrorKind::NotAuthorised`].
    NotAuthorised(String),
    /// [`ErrorKind::NoSuch`].
    NoSuch(String),
}

impl Error {
    /// An error of the interface.
    #[must_use]
    pub fn new(kind: ErrorKind, message: String) -> Self {
        match kind {
            ErrorKind::Failed => Self::Failed(message),
            ErrorKind::Usage => Self::Usage(message),
            ErrorKind::NotAuthorised => Self::NotAuthorised(message),
            ErrorKind::NoSuch => Self::NoSuch(message),
        }
    }

    /// What kind of answer it is; `None` when it is none of meshd.
    #[must_use]
    pub const fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Bus(_) => None,
            Self::Failed(_) => Some(ErrorKind::Failed),
            Self::Usage(_) => Some(ErrorKind::Usage),
            Self::NotAuthorised(_) => Some(ErrorKind::NotAuthorised),
            Self::NoSuch(_) => Some(ErrorKind::NoSuch),
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bus(error) => error.fmt(f),
            Self::Failed(text)
            | Self::Usage(text)
            | Self::NotAuthorised(text)
            | Self::NoSuch(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use zbus::DBusError;

    use super::*;

    #[test]
    fn names_on_the_bus_are_those_of_the_contract() {
        for (kind, name, code) in [
            (ErrorKind::Failed, "net.meshd.Mesh1.Error.Failed", 1),
            (ErrorKind::Usage, "net.meshd.Mesh1.Error.Usage", 2),
            (
                ErrorKind::NotAuthorised,
                "net.meshd.Mesh1.Error.NotAuthorised",
                4,
            ),
            (ErrorKind::NoSuch, "net.meshd.Mesh1.Error.NoSuch", 5),
        ] {
            let error = Error::new(kind, "it failed; do that".to_owned());
            assert_eq!(error.name().as_str(), name);
            assert_eq!(error.kind(), Some(kind));
            assert_eq!(error.to_string(), "it failed; do that");
            assert_eq!(kind.exit_code(), code);
        }
    }
}
