//! What survives a restart: one directory that one meshd owns at a time.
//!
//! ```text
//! lock                          flock(2)ed by the running meshd, contains its process ID
//! networks/<name>/identity.key  our key in that network
//! networks/<name>/state.toml    whether the network was brought up or down by hand
//! ```
//!
//! Files are made whole or not at all: written under another name in the same directory, synced, then renamed. A file
//! that is not as we would have written it is refused and never replaced, for a key cannot be had back.

mod files;
mod keys;
mod lock;
mod remembered;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use keys::{load_identity_file, load_psk};
pub use lock::Locked;
use thiserror::Error;

/// Longest name of a network, in bytes: it is also the name of a directory.
const MAX_NAME: usize = 64;

/// Why something in the state directory, or a file with a secret, cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// An operation on a file failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried, a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another meshd runs on this directory.
    #[error(
        "another meshd{} uses {}: stop it first, or give this one its own --state-dir and --socket",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who holds it, if it has said so.
        pid: Option<u32>,
    },
    /// Others could read a secret.
    #[error("{} can be read by others (mode {mode:04o}): its secret may be known; if not, run: chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error("{} belongs to user {owner}, who could read and replace it: give it to the user that meshd runs as", path.display())]
    ForeignOwner {
        /// The file or directory.
        path: PathBuf,
        /// User ID of its owner.
        owner: u32,
    },
    /// Something else than a file, or a link to one.
    #[error("{} is not a regular file: move it away", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// The content is not what belongs there.
    #[error("{} {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Not usable as the name of a directory.
    #[error("`{0}` is not the name of a network: use letters, digits, - and _, at most 64")]
    Name(String),
}

impl StateError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// The state directory. Keys can be read and made without owning it; see [`StateDir::lock`].
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
    /// Who the files belong to: the owner of the directory, so that what root makes there by hand serves the daemon.
    owner: files::Owner,
}

impl StateDir {
    /// Opens the directory at `root`, making it if there is none, and closes it to others.
    ///
    /// # Errors
    ///
    /// If it cannot be made, is no directory, or belongs to another user (unless we are root).
    pub fn open(root: &Path) -> Result<Self, StateError> {
        make_dir(root, None)?;
        let metadata = fs::metadata(root).map_err(StateError::io("inspect", root))?;
        let us = nix::unistd::geteuid();
        if !us.is_root() && metadata.uid() != us.as_raw() {
            return Err(StateError::ForeignOwner {
                path: root.to_owned(),
                owner: metadata.uid(),
            });
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(root, fs::Permissions::from_mode(0o700))
                .map_err(StateError::io("close to others", root))?;
        }
        Ok(Self {
            root: root.to_owned(),
            owner: files::Owner::of(&metadata),
        })
    }

    /// Makes this process the only meshd on the directory, until the returned value is dropped, and clears away what a
    /// meshd that was killed has left half-written.
    ///
    /// # Errors
    ///
    /// [`StateError::InUse`] when another one runs.
    pub fn lock(&self) -> Result<Locked, StateError> {
        let locked = Locked::acquire(&self.root, &self.owner)?;
        files::remove_leftovers(&self.root);
        let networks = self.root.join("networks");
        for entry in fs::read_dir(networks).into_iter().flatten().flatten() {
            files::remove_leftovers(&entry.path());
        }
        Ok(locked)
    }

    /// True while some meshd holds [`StateDir::lock`]; its process ID, if it has written it.
    ///
    /// # Errors
    ///
    /// If the lock file cannot be read.
    pub fn holder(&self) -> Result<Option<Option<u32>>, StateError> {
        lock::holder(&self.root)
    }

    /// The directory of network `name`, made if there is none.
    fn network(&self, name: &str) -> Result<PathBuf, StateError> {
        check_name(name)?;
        let networks = self.root.join("networks");
        make_dir(&networks, Some(&self.owner))?;
        let directory = networks.join(name);
        make_dir(&directory, Some(&self.owner))?;
        Ok(directory)
    }
}

/// Names come from a configuration that has its own idea of them, and from the command line.
fn check_name(name: &str) -> Result<(), StateError> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
        return Err(StateError::Name(name.to_owned()));
    }
    Ok(())
}

fn make_dir(path: &Path, owner: Option<&files::Owner>) -> Result<(), StateError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            if let Some(owner) = owner {
                owner.give_path(path)?;
            }
            if let Some(parent) = path.parent() {
                files::sync_dir(parent)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(StateError::io("make the directory", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn directory_is_made_and_closed_to_others() {
        let temp = TempDir::new();
        let root = temp.path().join("state");
        StateDir::open(&root).unwrap();
        assert_eq!(
            fs::metadata(&root).unwrap().permissions().mode() & 0o7777,
            0o700
        );

        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        StateDir::open(&root).unwrap();
        assert_eq!(
            fs::metadata(&root).unwrap().permissions().mode() & 0o7777,
            0o700
        );
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_refused() {
        let temp = TempDir::new();
        let root = temp.path().join("state");
        fs::write(&root, "").unwrap();
        let error = StateDir::open(&root).unwrap_err().to_string();
        assert!(error.contains("cannot make the directory"), "{error}");
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        for name in ["", ".", "..", "../x", "a/b", "a b", "a\0b", &"x".repeat(65)] {
            assert!(
                matches!(state.identity(name), Err(StateError::Name(_))),
                "{name:?}"
            );
        }
        assert!(state.identity("home-2_B").is_ok());
    }

    #[test]
    fn second_meshd_on_the_directory_is_refused_by_name() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        assert_eq!(state.holder().unwrap(), None);
        let locked = state.lock().unwrap();
        let error = StateDir::open(temp.path())
            .unwrap()
            .lock()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        assert_eq!(state.holder().unwrap(), Some(Some(std::process::id())));
        drop(locked);
        assert_eq!(state.holder().unwrap(), None);
        state.lock().unwrap();
    }

    #[test]
    fn leftovers_of_a_killed_meshd_are_cleared_away() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        state.identity("home").unwrap();
        let home = temp.path().join("networks/home");
        // No process has the highest ID: the kernel keeps below 2^22.
        fs::write(home.join(".new-4194305-0"), "half").unwrap();
        fs::write(home.join("of-the-user"), "kept").unwrap();
        state.lock().unwrap();
        assert!(!home.join(".new-4194305-0").exists());
        assert!(home.join("of-the-user").exists());
        assert!(home.join("identity.key").exists());
    }
}
