//! The relay's key on disk.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use mesh_core::identity::{Identity, IdentityError};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// Name of the key's file in the state directory.
const FILE: &str = "identity.key";
/// Largest file that is read, in bytes; a key's file has 71.
const MAX_FILE: u64 = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system says no.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The file is not a key of ours.
    #[error("cannot use {path}: {source}", path = path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// The file can be trusted by nobody.
    #[error("cannot use {path}: {problem}", path = path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The kernel has no random numbers.
    #[error("cannot make a key: the kernel gives no random numbers")]
    Randomness,
}

impl StateError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// Reads the relay's key from a state directory, or makes both.
///
/// # Errors
/// If the file is there and is not a key, is half-written, or may be read by others; or if it cannot be made.
pub fn identity(directory: &Path) -> Result<Identity, StateError> {
    let path = directory.join(FILE);
    match read(&path) {
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(directory, &path)?;
            // Another process may have been faster; its key counts.
            read(&path)
        }
        other => other,
    }
}

fn read(path: &Path) -> Result<Identity, StateError> {
    let file = OpenOptions::new()
        .read(true)
        // Not to wait for whoever writes to a pipe.
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(StateError::io("read", path))?;
    let metadata = file.metadata().map_err(StateError::io("read", path))?;
    check(path, &metadata)?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize));
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(StateError::io("read", path))?;
    Identity::parse_file(&text).map_err(|source| StateError::Identity {
        path: path.to_owned(),
        source,
    })
}

/// A key that others can read or replace is not the relay's any more.
fn check(path: &Path, metadata: &Metadata) -> Result<(), StateError> {
    let shown = path.display();
    let us = nix::unistd::geteuid().as_raw();
    let problem = if !metadata.is_file() {
        "it is not a file; move it away to get a new key".to_owned()
    } else if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o7777;
        format!(
            "others may use it (mode {mode:04o}); if nobody has, run `chmod 600 {shown}`, else remove it"
        )
    } else if metadata.uid() != us && metadata.uid() != 0 && us != 0 {
        format!(
            "it belongs to user {}, and this is user {us}; correct its owner",
            metadata.uid()
        )
    } else {
        return Ok(());
    };
    Err(StateError::Unsafe {
        path: path.to_owned(),
        problem,
    })
}

/// Writes a new key, whole or not at all, and never over another one.
fn create(directory: &Path, path: &Path) -> Result<(), StateError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(StateError::io("create", directory))?;
    let owner = fs::metadata(directory).map_err(StateError::io("read", directory))?;
    let mut seed = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut seed[..])
        .map_err(|_| StateError::Randomness)?;
    let unfinished = Unfinished(directory.join(format!(".new-{}", std::process::id())));
    // Of a process that had our number and was killed.
    let _ = fs::remove_file(&unfinished.0);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished.0)
        .map_err(StateError::io("create", &unfinished.0))?;
    file.write_all(Identity::from_seed(seed).to_file().as_bytes())
        .map_err(StateError::io("write", &unfinished.0))?;
    if nix::unistd::geteuid().is_root() && owner.uid() != 0 {
        // Somebody prepares the key of a service that runs as the directory's owner.
        fchown(&file, Some(owner.uid()), Some(owner.gid()))
            .map_err(StateError::io("change the owner of", &unfinished.0))?;
    }
    file.sync_all()
        .map_err(StateError::io("sync", &unfinished.0))?;
    // Unlike a rename, a link does not replace what is there.
    match fs::hard_link(&unfinished.0, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StateError::io("write", path)(error));
        }
        _ => {}
    }
    drop(unfinished);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(StateError::io("sync", directory))
}

/// A file under its temporary name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // A leftover does no harm.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory that is removed in the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("mesh-relay-state-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn key(&self) -> PathBuf {
            self.0.join(FILE)
        }

        fn write(&self, text: &str, mode: u32) {
            fs::create_dir_all(&self.0).unwrap();
            fs::write(self.key(), text).unwrap();
            fs::set_permissions(self.key(), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn refused(&self) -> String {
            let before = fs::read(self.key()).ok();
            let message = identity(&self.0).unwrap_err().to_string();
            assert_eq!(
                fs::read(self.key()).ok(),
                before,
                "what is refused is left alone"
            );
            assert!(message.contains("identity.key"), "{message}");
            message
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_key_is_made_once_and_for_us_alone() {
        let scratch = Scratch::new();
        let first = identity(&scratch.0).unwrap().id();
        assert_eq!(identity(&scratch.0).unwrap().id(), first);
        assert_eq!(fs::metadata(scratch.key()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&scratch.0).unwrap().mode() & 0o777, 0o700);
        assert_eq!(
            fs::read_dir(&scratch.0).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn keys_differ() {
        let (one, other) = (Scratch::new(), Scratch::new());
        assert_ne!(
            identity(&one.0).unwrap().id(),
            identity(&other.0).unwrap().id()
        );
    }

    #[test]
    fn a_half_written_or_foreign_file_is_refused() {
        let scratch = Scratch::new();
        for text in [
            "",
            "meshd-identity-v1\nabc",
            "-----BEGIN PRIVATE KEY-----\n",
        ] {
            scratch.write(text, 0o600);
            scratch.refused();
        }
        scratch.write("meshd-identity-v1\n\u{0}", 0o600);
        scratch.refused();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let scratch = Scratch::new();
        identity(&scratch.0).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(scratch.key(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(scratch.refused().contains("chmod 600"));
        }
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let scratch = Scratch::new();
        fs::create_dir_all(scratch.key()).unwrap();
        assert!(scratch.refused().contains("not a file"));
    }

    #[test]
    fn a_key_that_is_there_is_never_replaced() {
        let scratch = Scratch::new();
        let first = identity(&scratch.0).unwrap().id();
        create(&scratch.0, &scratch.key()).unwrap();
        assert_eq!(identity(&scratch.0).unwrap().id(), first);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let message = identity(Path::new("/dev/null/x")).unwrap_err().to_string();
        assert!(message.contains("/dev/null/x"), "{message}");
    }
}
