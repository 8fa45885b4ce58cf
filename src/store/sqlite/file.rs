//! The one file: who may have it, and whether it is still where it was.
//!
//! Never reads or writes what is in it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Error, Result},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::OpenError;

/// The database, ours until it is let go.
pub(super) struct OurFile {
    /// As it was named to us.
    named: PathBuf,
    /// Where that led, links resolved.
    pub(super) path: PathBuf,
    /// The file itself and its log, by what they are for the operating system.
    opened: Vec<(PathBuf, Identity)>,
    /// Let go by the operating system when the process dies.
    locks: Vec<File>,
}

/// Device and inode: which file a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl OurFile {
    /// Takes the file for this process. It is made if it is not there.
    pub(super) fn take(named: &Path) -> std::result::Result<OurFile, OpenError> {
        let explain = |why| OpenError::File(named.to_owned(), why);
        if let Some(folder) = named.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(explain)?;
        }
        // Nobody has it open then: a second handle of a process that has would, when closed, take away the locks of SQLite's.
        if !named.exists() {
            OpenOptions::new().create(true).truncate(false).write(true).open(named).map_err(explain)?;
        }
        let path = named.canonicalize().map_err(explain)?;
        let mut locks = vec![lock(named, &beside(&path, ".lock"), true)?];
        // A hard link has another file beside it. Only on Linux are these locks none of those that SQLite needs.
        if cfg!(target_os = "linux") {
            locks.push(lock(named, &path, false)?);
        }
        let itself = (named.to_owned(), identity(named).map_err(explain)?);
        Ok(OurFile { named: named.to_owned(), path, opened: vec![itself], locks })
    }

    /// SQLite has opened it: from now on its log belongs to it too.
    pub(super) fn has_a_log(&mut self) {
        let log = beside(&self.path, "-wal");
        self.opened.extend(identity(&log).ok().map(|identity| (log, identity)));
    }

    /// Says so if what was opened is not there any more. What is written then is found by nobody.
    pub(super) fn is_gone(&self) -> Option<String> {
        let (name, _) = self.opened.iter().find(|(name, was)| identity(name).ok() != Some(*was))?;
        Some(format!(
            "{} is not the file that was opened: it was deleted or moved, or its folder was; what was accepted since then is in the old file, if \
             that still exists: put it back, then start again",
            name.display()
        ))
    }

    /// Now, and not when the last copy of a handle is gone: a child process that is just being started has one too.
    pub(super) fn let_go(&self) {
        for lock in &self.locks {
            if let Err(error) = lock.unlock() {
                tracing::warn!(%error, file = %self.named.display(), "the store's file could not be let go; it is when this process ends");
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
