//! The lock on the database file, and whether the file is still there.
//!
//! Never reads or writes the file's content.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Error, Result},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::OpenError;

/// The database file, locked for this process until `release`.
pub(super) struct OurFile {
    /// Its name in the config.
    named: PathBuf,
    /// The same with links resolved.
    pub(super) path: PathBuf,
    /// The file and its log, as the operating system identifies them.
    opened: Vec<(PathBuf, Identity)>,
    /// The operating system releases them when the process dies.
    locks: Vec<File>,
}

/// Device and inode: the file that a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl OurFile {
    /// Locks the file for this process. It is made if it is not there.
    pub(super) fn take(named: &Path) -> std::result::Result<OurFile, OpenError> {
        let explain = |why| OpenError::File(named.to_owned(), why);
        if let Some(folder) = named.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(explain)?;
        }
        // Only when it is missing: in a process that has it open, closing a second handle would end SQLite's locks on it.
        if !named.exists() {
            OpenOptions::new().create(true).truncate(false).write(true).open(named).map_err(explain)?;
        }
        let path = named.canonicalize().map_err(explain)?;
        let mut locks = vec![lock(named, &beside(&path, ".lock"), true)?];
        // Beside a hard link there is another `.lock`, so the file itself is locked too. Only on Linux does that not disturb SQLite's own locks.
        if cfg!(target_os = "linux") {
            locks.push(lock(named, &path, false)?);
        }
        let itself = (named.to_owned(), identity(named).map_err(explain)?);
        Ok(OurFile { named: named.to_owned(), path, opened: vec![itself], locks })
    }

    /// SQLite has opened the file: from now on its log is checked too.
    pub(super) fn has_a_log(&mut self) {
        let log = beside(&self.path, "-wal");
        self.opened.extend(identity(&log).ok().map(|identity| (log, identity)));
    }

    /// Why the file is lost, if it is not there any more: nobody finds what is written from then on.
    pub(super) fn is_gone(&self) -> Option<String> {
        let (name, _) = self.opened.iter().find(|(name, was)| identity(name).ok() != Some(*was))?;
        Some(format!(
            "{} is not the file that was opened: it was deleted or moved, or its folder was; what was accepted since then is in the old file, if \
             that still exists: put it back, then start again",
            name.display()
        ))
    }

    /// Ends the locks now, not when the last copy of a handle is closed: a child process that is being started has a copy.
    pub(super) fn release(&self) {
        for lock in &self.locks {
            if let Err(error) = lock.unlock() {
                tracing::warn!(%error, file = %self.named.display(), "the lock on the store's file could not be released; it is when this process ends");
            }
        }
    }
}

fn identity(path: &Path) -> Result<Identity> {
    std::fs::metadata(path).map(|file| Identity(file.dev(), file.ino()))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn lock(named: &Path, path: &Path, create: bool) -> std::result::Result<File, OpenError> {
    let explain = |why: Error| OpenError::File(named.to_owned(), why);
    let file = OpenOptions::new().create(create).truncate(false).write(true).open(path).map_err(explain)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(named.to_owned())),
        Err(TryLockError::Error(why)) => Err(explain(why)),
    }
}
