//! Reading and writing single files with care.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::{Gid, Uid, chown, fchown};
use zeroize::Zeroizing;

use super::StateError;

/// Files that are being written are called `.new-<process ID>-<number>`.
const UNFINISHED: &str = ".new-";
/// Largest file that is read, in bytes: all of ours are much smaller.
const MAX_FILE: usize = 4096;

/// Whose a new file shall be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner(Option<(Uid, Gid)>);

impl Owner {
    /// The owner of a directory; `None` inside if new files are theirs anyway or cannot be given away.
    pub(super) fn of(directory: &Metadata) -> Self {
        let (uid, gid) = (
            Uid::from_raw(directory.uid()),
            Gid::from_raw(directory.gid()),
        );
        let us = nix::unistd::geteuid();
        Self((us.is_root() && uid != us).then_some((uid, gid)))
    }

    /// New files are left to who makes them.
    pub(super) const fn none() -> Self {
        Self(None)
    }

    pub(super) fn give(&self, file: impl AsFd, path: &Path) -> Result<(), StateError> {
        let Some((uid, gid)) = self.0 else {
            return Ok(());
        };
        fchown(file, Some(uid), Some(gid))
            .map_err(io::Error::from)
            .map_err(StateError::io("change the owner of", path))
    }

    pub(super) fn give_path(&self, path: &Path) -> Result<(), StateError> {
        let Some((uid, gid)) = self.0 else {
            return Ok(());
        };
        chown(path, Some(uid), Some(gid))
            .map_err(io::Error::from)
            .map_err(StateError::io("change the owner of", path))
    }

    /// Whether a file with a secret may belong to `uid`: us, root, or who the directory belongs to.
    pub(super) fn accepts(&self, uid: u32) -> bool {
        uid == 0
            || uid == nix::unistd::geteuid().as_raw()
            || self.0.is_some_and(|(owner, _)| owner.as_raw() == uid)
    }
}

/// What to do when the file to write exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// Leave it as it is and return `false`.
    Keep,
    /// Replace it.
    Replace,
}

/// Writes `content` to `path` with mode 0600, whole or not at all; returns whether it was written.
pub(super) fn write_atomically(
    path: &Path,
    content: &[u8],
    owner: &Owner,
    existing: Existing,
) -> Result<bool, StateError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let unfinished = Unfinished::new(directory);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished.0)
        .map_err(StateError::io("create", &unfinished.0))?;
    file.write_all(content)
        .map_err(StateError::io("write", &unfinished.0))?;
    owner.give(&file, &unfinished.0)?;
    file.sync_all()
        .map_err(StateError::io("sync", &unfinished.0))?;
    let written = match existing {
        Existing::Replace => fs::rename(&unfinished.0, path).map(|()| true),
        // Unlike a rename, a link does not replace what is there, and every filesystem with permissions has it.
        Existing::Keep => match fs::hard_link(&unfinished.0, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true),
        },
    }
    .map_err(StateError::io("write", path))?;
    drop(unfinished);
    sync_dir(directory)?;
    Ok(written)
}

/// A file under its temporary name, removed unless it was renamed.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(directory: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(directory.join(format!("{UNFINISHED}{}-{number}", std::process::id())))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Not there after a rename.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes the names in `directory` durable.
pub(super) fn sync_dir(directory: &Path) -> Result<(), StateError> {
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(StateError::io("sync", directory))
}

/// Removes unfinished files of processes that are gone. Failures leave a file behind and hurt nobody.
pub(super) fn remove_leftovers(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED)) else {
            continue;
        };
        let writer = rest.split('-').next().unwrap_or_default();
        // In a container every meshd may have the same process ID; this one is not writing yet.
        let ours = writer == std::process::id().to_string();
        let alive = !writer.is_empty() && Path::new("/proc").join(writer).exists();
        if ours || !alive {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Who else may read a file with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// A file of ours: nobody else, and no symbolic link.
    OwnerOnly,
    /// A file that the administrator deploys: the group may read it.
    Group,
    /// A credential of the service manager, which guards it in its own way.
    Any,
}

/// Reads a small file with a secret; `None` if there is none.
pub(super) fn read_secret(
    path: &Path,
    owner: &Owner,
    access: Access,
) -> Result<Option<Zeroizing<String>>, StateError> {
    let mut options = OpenOptions::new();
    // Not to hang on a FIFO that somebody put there.
    let mut flags = libc::O_NONBLOCK;
    if access == Access::OwnerOnly {
        flags |= libc::O_NOFOLLOW;
    }
    options.read(true).custom_flags(flags);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(StateError::NotAFile { path: path.into() });
        }
        Err(error) => return Err(StateError::io("open", path)(error)),
    };
    check_access(&file, path, owner, access)?;
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
    file.take(MAX_FILE as u64 + 1)
        .read_to_end(&mut content)
        .map_err(StateError::io("read", path))?;
    if content.len() > MAX_FILE {
        return Err(StateError::Content {
            path: path.into(),
            problem: "is too large to be a key: move it away".into(),
        });
    }
    let text = std::str::from_utf8(&content).map_err(|_| StateError::Content {
        path: path.into(),
        problem: "is not text: move it away, or restore it from a backup".into(),
    })?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

fn check_access(file: &File, path: &Path, owner: &Owner, access: Access) -> Result<(), StateError> {
    let metadata = file.metadata().map_err(StateError::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(StateError::NotAFile { path: path.into() });
    }
    let forbidden = match access {
        Access::OwnerOnly => 0o077,
        Access::Group => 0o027,
        Access::Any => return Ok(()),
    };
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(StateError::TooOpen {
            path: path.into(),
            mode,
        });
    }
    if !owner.accepts(metadata.uid()) {
        return Err(StateError::ForeignOwner {
            path: path.into(),
            owner: metadata.uid(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::TempDir;

    const OWNER: Owner = Owner(None);

    #[test]
    fn written_file_is_private_and_leaves_nothing_else() {
        let temp = TempDir::new();
        let path = temp.path().join("file");
        assert!(write_atomically(&path, b"one", &OWNER, Existing::Keep).unwrap());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert!(!write_atomically(&path, b"two", &OWNER, Existing::Keep).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert!(write_atomically(&path, b"two", &OWNER, Existing::Replace).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_write_leaves_nothing() {
        let temp = TempDir::new();
        let path = temp.path().join("occupied");
        fs::create_dir(&path).unwrap();
        assert!(write_atomically(&path, b"one", &OWNER, Existing::Replace).is_err());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn parallel_writers_agree_on_one_content() {
        let temp = TempDir::new();
        let path = temp.path().join("file");
        let written: usize = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8u8)
                .map(|n| {
                    let path = &path;
                    scope.spawn(move || {
                        write_atomically(path, &[n; 100], &OWNER, Existing::Keep).unwrap()
                    })
                })
                .collect();
            writers
                .into_iter()
                .map(|writer| usize::from(writer.join().unwrap()))
                .sum()
        });
        assert_eq!(written, 1);
        let content = fs::read(&path).unwrap();
        assert_eq!(content, vec![content[0]; 100]);
    }

    #[test]
    fn unfinished_file_of_a_living_process_is_left_alone() {
        let temp = TempDir::new();
        // Process 1 lives; this test is not process 1.
        let path = temp.path().join(".new-1-0");
        fs::write(&path, "").unwrap();
        remove_leftovers(temp.path());
        assert!(path.exists());
    }

    #[test]
    fn secrets_that_others_can_read_are_refused() {
        let temp = TempDir::new();
        let path = temp.path().join("secret");
        fs::write(&path, "text").unwrap();
        for (mode, private, group) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o640, false, true),
            (0o660, false, false),
            (0o604, false, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let ok = |access| read_secret(&path, &OWNER, access).is_ok();
            assert_eq!(ok(Access::OwnerOnly), private, "{mode:o}");
            assert_eq!(ok(Access::Group), group, "{mode:o}");
            assert!(ok(Access::Any), "{mode:o}");
        }
    }

    #[test]
    fn links_and_special_files_in_place_of_a_secret_are_refused() {
        let temp = TempDir::new();
        let target = temp.path().join("target");
        fs::write(&target, "text").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let fifo = temp.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&link, &fifo, &temp.path().to_owned()] {
            assert!(
                matches!(
                    read_secret(path, &OWNER, Access::OwnerOnly),
                    Err(StateError::NotAFile { .. })
                ),
                "{}",
                path.display()
            );
        }
        assert!(read_secret(&link, &OWNER, Access::Group).is_ok());
    }

    #[test]
    fn endless_and_binary_files_are_refused() {
        let temp = TempDir::new();
        let path = temp.path().join("file");
        write_atomically(&path, &[b'a'; MAX_FILE + 1], &OWNER, Existing::Replace).unwrap();
        let error = read_secret(&path, &OWNER, Access::OwnerOnly).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
        write_atomically(&path, &[0xff; 10], &OWNER, Existing::Replace).unwrap();
        let error = read_secret(&path, &OWNER, Access::OwnerOnly).unwrap_err();
        assert!(error.to_string().contains("not text"), "{error}");
    }
}
