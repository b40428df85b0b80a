//! What was decided at run time: `up` and `down`.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::files::{self, Existing};
use super::{StateDir, StateError};

const FILE: &str = "state.toml";

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Brought up (or down) by hand; wins over `autostart`.
    up: bool,
}

impl StateDir {
    /// Whether network `name` was last brought up or down by hand; `None` if neither.
    ///
    /// # Errors
    ///
    /// If what is there cannot be read.
    pub fn remembered_up(&self, name: &str) -> Result<Option<bool>, StateError> {
        super::check_name(name)?;
        let path = self.root.join("networks").join(name).join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::io("read", &path)(error)),
        };
        let remembered: Remembered =
            toml::from_str(&text).map_err(|error| StateError::Content {
                path: path.clone(),
                problem: format!("is damaged ({}): remove it", error.message()),
            })?;
        Ok(Some(remembered.up))
    }

    /// Remembers that network `name` was brought up or down by hand.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn remember_up(&self, name: &str, up: bool) -> Result<(), StateError> {
        let path = self.network(name)?.join(FILE);
        let text = toml::to_string(&Remembered { up }).map_err(|error| StateError::Content {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        files::write_atomically(&path, text.as_bytes(), &self.owner, Existing::Replace)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn up_and_down_are_remembered() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        assert_eq!(state.remembered_up("home").unwrap(), None);
        for up in [true, false, true] {
            state.remember_up("home", up).unwrap();
            let again = StateDir::open(temp.path()).unwrap();
            assert_eq!(again.remembered_up("home").unwrap(), Some(up));
        }
        assert_eq!(state.remembered_up("work").unwrap(), None);
    }

    #[test]
    fn damaged_state_is_reported_by_name() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        state.remember_up("home", true).unwrap();
        fs::write(temp.path().join("networks/home/state.toml"), "up = perh").unwrap();
        let error = state.remembered_up("home").unwrap_err().to_string();
        assert!(error.contains("state.toml is damaged"), "{error}");
    }
}
