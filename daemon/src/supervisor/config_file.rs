//! Where the configuration is, and what it says now.

use std::io;
use std::path::{Path, PathBuf};

use mesh_core::config::{Config, ConfigErrors};
use thiserror::Error;

use crate::args::DEFAULT_CONFIG;

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigFailure {
    /// It cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It can, and is wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
}

/// The configuration file of this process.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    /// It was asked for by name, so it has to be there.
    required: bool,
}

impl ConfigFile {
    /// The file given on the command line, or the default one.
    pub fn new(given: Option<&Path>) -> Self {
        Self {
            path: given.unwrap_or(Path::new(DEFAULT_CONFIG)).to_owned(),
            required: given.is_some(),
        }
    }

    /// Where it is, or would be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and parses it; without a file where none is required, everything has its default.
    ///
    /// # Errors
    ///
    /// With everything that is wrong.
    pub fn read(&self) -> Result<Config, ConfigFailure> {
        match std::fs::read_to_string(&self.path) {
            Ok(text) => Ok(Config::parse(&text, &self.path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.required => {
                Ok(Config::default())
            }
            Err(source) => Err(ConfigFailure::Read {
                path: self.path.clone(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn only_the_default_file_may_be_missing() {
        let temp = TempDir::new();
        let path = temp.path().join("config.toml");
        let given = ConfigFile::new(Some(&path));
        let error = given.read().unwrap_err().to_string();
        assert!(error.contains("config.toml"), "{error}");
        let default = ConfigFile {
            required: false,
            ..given
        };
        assert_eq!(default.read().unwrap(), Config::default());
        assert_eq!(ConfigFile::new(None).path(), Path::new(DEFAULT_CONFIG));
    }

    #[test]
    fn what_is_wrong_comes_with_file_and_line() {
        let temp = TempDir::new();
        let path = temp.path().join("config.toml");
        std::fs::write(&path, "listen_port = 1\n\nlisten_prot = 2\n").unwrap();
        let error = ConfigFile::new(Some(&path)).read().unwrap_err().to_string();
        assert!(error.contains("config.toml:3: listen_prot"), "{error}");
    }
}
