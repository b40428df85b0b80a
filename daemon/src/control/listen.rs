//! The file of the control socket: who may make it, and that it goes again.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Why meshd cannot listen for commands.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on the socket.
    #[error("another meshd answers on {0}; stop it, or choose another --socket")]
    Taken(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0} is no socket; remove it, or choose another --socket")]
    Foreign(PathBuf),
    /// The path cannot be used.
    #[error("cannot listen on {path}: {source}; choose another --socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The file of a socket that somebody listens on; dropping it removes the file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: a file that somebody else has put there since is left alone.
    identity: (u64, u64),
    made_directory: Option<PathBuf>,
}

/// Listens on `path`, for everyone on this host to connect.
///
/// A socket that nobody answers on, left by a meshd that was killed, is replaced. The socket appears under its name only
/// when it accepts connections.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let io = |source| ListenError::Io {
        path: path.to_owned(),
        source,
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let made_directory = make_directory(directory).map_err(io)?;
    // Two daemons that start at once must not both find the same dead socket.
    let lock = fs::File::open(directory).map_err(io)?;
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| io(errno.into()))?;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::Foreign(path.to_owned()));
        }
        Ok(_) if is_answered(path) => return Err(ListenError::Taken(path.to_owned())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = directory.join(name);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh).map_err(io)?;
    let place = || {
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        let made = fs::symlink_metadata(&fresh)?;
        fs::rename(&fresh, path)?;
        Ok((made.dev(), made.ino()))
    };
    match place() {
        Ok(identity) => Ok((
            listener,
            SocketFile {
                path: path.to_owned(),
                identity,
                made_directory,
            },
        )),
        Err(error) => {
            let _ = fs::remove_file(&fresh);
            Err(io(error))
        }
    }
}

/// Returns the directory if it was not there.
fn make_directory(directory: &Path) -> io::Result<Option<PathBuf>> {
    match fs::DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => Ok(Some(directory.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether somebody accepts connections; one whose queue is full is alive, too.
fn is_answered(path: &Path) -> bool {
    let Ok(socket) = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
    else {
        return true;
    };
    let Ok(address) = socket2::SockAddr::unix(path) else {
        return false;
    };
    if socket.set_nonblocking(true).is_err() {
        return true;
    }
    match socket.connect(&address) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
        if let Some(directory) = &self.made_directory {
            // Not if somebody keeps something in it.
            let _ = fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A directory of its own for each test, gone with it.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("meshd-listen-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn everyone_can_connect_and_nothing_is_left_afterwards() {
        let directory = Directory::new("plain");
        let path = directory.0.join("run/control.sock");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o666
        );
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert_eq!(directory.names(), Vec::<String>::new());
    }

    #[test]
    fn a_socket_that_somebody_answers_on_is_left_alone() {
        let directory = Directory::new("taken");
        let path = directory.0.join("control.sock");
        let (_listener, _file) = listen(&path).unwrap();
        let error = listen(&path).unwrap_err();
        assert!(matches!(error, ListenError::Taken(_)), "{error}");
        assert!(
            error.to_string().contains("another meshd answers on"),
            "{error}"
        );
        UnixStream::connect(&path).unwrap();
        assert_eq!(directory.names(), ["control.sock"]);
    }

    #[test]
    fn a_socket_with_a_full_queue_counts_as_answered() {
        let directory = Directory::new("full");
        let path = directory.0.join("control.sock");
        let socket =
            socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&socket2::SockAddr::unix(&path).unwrap())
            .unwrap();
        socket.listen(0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        assert!(matches!(listen(&path).unwrap_err(), ListenError::Taken(_)));
    }

    #[test]
    fn a_dead_socket_is_replaced() {
        let directory = Directory::new("dead");
        let path = directory.0.join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        drop(UnixListener::bind(directory.0.join("control.sock.new")).unwrap());
        let (_listener, _file) = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(directory.names(), ["control.sock"]);
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let directory = Directory::new("foreign");
        let path = directory.0.join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            listen(&path).unwrap_err(),
            ListenError::Foreign(_)
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_socket_that_somebody_else_has_put_there_since_is_left_alone() {
        let directory = Directory::new("replaced");
        let path = directory.0.join("control.sock");
        let (_listener, file) = listen(&path).unwrap();
        let other = directory.0.join("other");
        let _other = UnixListener::bind(&other).unwrap();
        fs::rename(&other, &path).unwrap();
        drop(file);
        assert_eq!(directory.names(), ["control.sock"]);
    }

    #[test]
    fn an_unusable_path_is_an_error_that_says_so() {
        let error = listen(Path::new("/proc/nowhere/control.sock")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot listen on /proc/nowhere/control.sock: "),
            "{error}"
        );
        let long = std::env::temp_dir().join("x".repeat(120));
        assert!(matches!(listen(&long).unwrap_err(), ListenError::Io { .. }));
    }
}
