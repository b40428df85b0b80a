//! Keys: ours, which are made here, and those that the configuration points to.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_core::identity::Identity;
use zeroize::Zeroizing;

use super::files::{self, Access, Existing, Owner};
use super::{StateDir, StateError};

const FILE: &str = "identity.key";
/// Where systemd puts credentials, with permissions (access control lists) that look too open and are not.
const CREDENTIALS: &str = "/run/credentials";

impl StateDir {
    /// Our key in network `name`, made from the system's randomness if there is none.
    ///
    /// # Errors
    ///
    /// If the key cannot be read or made. A file that is no whole key, or that others can read, is never replaced.
    pub fn identity(&self, name: &str) -> Result<Identity, StateError> {
        let path = self.network(name)?.join(FILE);
        if let Some(identity) = read(&path, &self.owner, Access::OwnerOnly)? {
            return Ok(identity);
        }
        let identity = Identity::from_seed(new_seed(&path)?);
        let text = identity.to_file();
        if files::write_atomically(&path, text.as_bytes(), &self.owner, Existing::Keep)? {
            return Ok(identity);
        }
        // Another process was faster: its key is the key.
        read(&path, &self.owner, Access::OwnerOnly)?.ok_or_else(|| vanished(&path))
    }
}

/// Our key from a file that the configuration names, as written by [`StateDir::identity`].
///
/// # Errors
///
/// If there is none, if all users can read it, or if it is no whole key.
pub fn load_identity_file(path: &Path) -> Result<Identity, StateError> {
    read(path, &owner_of_process(path), deployed(path))?
        .ok_or_else(|| missing(path, "identity_file"))
}

/// A WireGuard preshared key from a file as `wg genpsk` writes it: 32 bytes in base64.
///
/// # Errors
///
/// If there is none, if all users can read it, or if it is no such key.
pub fn load_psk(path: &Path) -> Result<Zeroizing<[u8; 32]>, StateError> {
    let text = files::read_secret(path, &owner_of_process(path), deployed(path))?
        .ok_or_else(|| missing(path, "psk_file"))?;
    let mut key = Zeroizing::new([0; 32]);
    match STANDARD.decode_slice(text.trim(), key.as_mut_slice()) {
        Ok(32) => Ok(key),
        _ => Err(StateError::Content {
            path: path.into(),
            problem: "is not a preshared key: make one with `wg genpsk`, the same on both sides"
                .into(),
        }),
    }
}

fn read(path: &Path, owner: &Owner, access: Access) -> Result<Option<Identity>, StateError> {
    let Some(text) = files::read_secret(path, owner, access)? else {
        return Ok(None);
    };
    match Identity::parse_file(&text) {
        Ok(identity) => Ok(Some(identity)),
        Err(error) => Err(StateError::Content {
            path: path.into(),
            problem: format!(
                "is not a whole key ({error}): restore it from a backup; or remove it to get a new key, \
                 which changes this node's ID"
            ),
        }),
    }
}

fn new_seed(path: &Path) -> Result<Zeroizing<[u8; 32]>, StateError> {
    let mut seed = Zeroizing::new([0; 32]);
    crate::randomness::fill(seed.as_mut_slice())
        .map_err(StateError::io("get randomness for", path))?;
    Ok(seed)
}

/// Files of the configuration may belong to us, to root, or to who owns their directory when we are root.
fn owner_of_process(path: &Path) -> Owner {
    let directory = path.parent().unwrap_or(Path::new("."));
    match fs::metadata(directory) {
        Ok(metadata) => Owner::of(&metadata),
        Err(_) => Owner::none(),
    }
}

fn deployed(path: &Path) -> Access {
    let by_manager = std::env::var_os("CREDENTIALS_DIRECTORY")
        .is_some_and(|directory| !directory.is_empty() && path.starts_with(directory));
    if by_manager || path.starts_with(CREDENTIALS) {
        Access::Any
    } else {
        Access::Group
    }
}

fn missing(path: &Path, key: &str) -> StateError {
    StateError::Content {
        path: path.into(),
        problem: format!("does not exist: make it, or correct `{key}`"),
    }
}

fn vanished(path: &Path) -> StateError {
    StateError::Content {
        path: path.into(),
        problem: "was removed while it was made: try again".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::TempDir;

    fn write(path: &Path, content: &str, mode: u32) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn key_is_made_once_private_and_per_network() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        let first = state.identity("home").unwrap().id();
        assert_eq!(
            StateDir::open(temp.path())
                .unwrap()
                .identity("home")
                .unwrap()
                .id(),
            first
        );
        assert_ne!(state.identity("work").unwrap().id(), first);
        let path = temp.path().join("networks/home/identity.key");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn half_written_foreign_and_open_keys_are_refused_and_kept() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        state.identity("home").unwrap();
        let path = temp.path().join("networks/home/identity.key");
        let whole = fs::read_to_string(&path).unwrap();
        let half = &whole[..whole.len() / 2];
        for (content, mode, expected) in [
            ("", 0o600, "not a whole key"),
            (half, 0o600, "not a whole key"),
            (
                "-----BEGIN OPENSSH PRIVATE KEY-----\n",
                0o600,
                "not a whole key",
            ),
            (whole.as_str(), 0o644, "can be read by others (mode 0644)"),
        ] {
            write(&path, content, mode);
            let error = state.identity("home").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("identity.key"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn no_part_of_a_refused_key_is_shown() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        state.identity("home").unwrap();
        let path = temp.path().join("networks/home/identity.key");
        let whole = fs::read_to_string(&path).unwrap();
        let secret = whole.lines().nth(1).unwrap();
        write(&path, &whole.replace(&secret[51..], "!"), 0o600);
        let error = format!("{:?}", state.identity("home").unwrap_err());
        assert!(!error.contains(&secret[..8]), "{error}");
    }

    #[test]
    fn parallel_starts_make_one_key() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| state.identity("home").unwrap().id()))
                .collect();
            makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
    }

    #[test]
    fn identity_file_of_the_configuration_is_read_but_never_made() {
        let temp = TempDir::new();
        let state = StateDir::open(temp.path()).unwrap();
        let id = state.identity("home").unwrap().id();
        let deployed = temp.path().join("deployed.key");
        let error = load_identity_file(&deployed).unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
        fs::copy(temp.path().join("networks/home/identity.key"), &deployed).unwrap();
        fs::set_permissions(&deployed, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(load_identity_file(&deployed).unwrap().id(), id);
        fs::set_permissions(&deployed, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            load_identity_file(&deployed),
            Err(StateError::TooOpen { .. })
        ));
    }

    #[test]
    fn preshared_keys_are_read_as_wg_writes_them() {
        let temp = TempDir::new();
        let path = temp.path().join("psk");
        write(
            &path,
            "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n",
            0o600,
        );
        let expected: [u8; 32] = std::array::from_fn(|i| i as u8 + 1);
        assert_eq!(*load_psk(&path).unwrap(), expected);
        for bad in [
            "",
            "AQID",
            "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAh",
            "not base64",
        ] {
            write(&path, bad, 0o600);
            let error = load_psk(&path).unwrap_err().to_string();
            assert!(error.contains("not a preshared key"), "{bad}: {error}");
        }
    }

    #[test]
    fn credentials_of_the_service_manager_may_look_open() {
        assert_eq!(
            deployed(Path::new("/run/credentials/meshd.service/home.key")),
            Access::Any
        );
        assert_eq!(
            deployed(Path::new("/run/credentials-of-others/home.key")),
            Access::Group
        );
        assert_eq!(deployed(Path::new("/etc/meshd/home.key")), Access::Group);
    }
}
