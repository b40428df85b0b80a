//! One meshd at a time on a state directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{StateError, files::Owner};

const FILE: &str = "lock";

/// The right to the state directory. The kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Locked {
    _file: Flock<File>,
}

impl Locked {
    pub(super) fn acquire(root: &Path, owner: &Owner) -> Result<Self, StateError> {
        let path = root.join(FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(StateError::io("open", &path))?;
        owner.give(&file, &path)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => {
                return Err(StateError::InUse {
                    path: root.to_owned(),
                    pid: read_pid(file),
                });
            }
            Err((_, errno)) => return Err(StateError::io("lock", &path)(errno.into())),
        };
        // For people only; the lock does not depend on it.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(StateError::io("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// `Some` with the process ID, if known, of who holds the lock.
pub(super) fn holder(root: &Path) -> Result<Option<Option<u32>>, StateError> {
    let path = root.join(FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StateError::io("open", &path)(error)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Some(read_pid(file))),
        Err((_, errno)) => Err(StateError::io("lock", &path)(errno.into())),
    }
}

fn read_pid(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
