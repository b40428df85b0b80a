//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Problems that are shown at most; a file that is not a configuration at all may have one on every line.
const MAX_SHOWN: usize = 100;

/// One problem. Displays as `FILE:LINE: KEY: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}:{line}: {}{message}", file.display(), KeyPrefix(key))]
pub struct ConfigError {
    /// The file, as given to the parser.
    pub file: PathBuf,
    /// Line in the file, from 1.
    pub line: usize,
    /// The key with its tables, like `network.home.relays`; `None` where the file is not TOML.
    pub key: Option<String>,
    /// What is wrong and what to do, without a full stop.
    pub message: String,
}

struct KeyPrefix<'a>(&'a Option<String>);

impl fmt::Display for KeyPrefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "{key}: "),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration: at least one problem. Displays one line for each.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    omitted: usize,
}

impl ConfigErrors {
    /// Sorts by line; drops what is beyond the bound.
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by_key(|error| error.line);
        let omitted = errors.len().saturating_sub(MAX_SHOWN);
        errors.truncate(MAX_SHOWN);
        Self { errors, omitted }
    }

    /// The problems by line, at most a hundred.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.errors.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\n… and {} more", self.omitted)?;
        }
        Ok(())
    }
}
