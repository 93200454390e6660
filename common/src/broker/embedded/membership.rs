//! Who lives: each process holds a kernel lock on a file of its own, which ends with it however it ends.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::ffi;

use super::storage::Store;
use crate::ids::ProcessId;

/// This process among those that share the folder.
pub(super) struct Member {
    /// What leases name it by. Never used twice.
    pub(super) number: i64,
    lock: Lock,
}

/// A process that ended without leaving. We hold its lock, so nobody else buries it too.
pub(super) struct Dead {
    /// What its leases name it by.
    pub(super) number: i64,
    lock: Lock,
}

/// The right to make the file, to join and to clear away what dead processes left: had by one process at
/// a time, so that these are free of races.
pub(super) struct OpeningTurn {
    _lock: File,
}

impl OpeningTurn {
    /// Waits for the turn, which takes others a few milliseconds.
    pub(super) fn wait(folder: &Path) -> std::io::Result<Self> {
        let lock = File::create(folder.join("opening.lock"))?;
        lock.lock()?;
        Ok(Self { _lock: lock })
    }
}

/// A locked file. The lock ends when this is dropped; the file stays.
struct Lock {
    file: File,
    path: PathBuf,
}

/// A file of ours cannot be used: to the user the same as a queue file that cannot be.
fn unusable(error: &std::io::Error) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(error.to_string()))
}

impl Lock {
    /// Takes the lock of a process, if nobody has it. The file is made if it is missing, as after a copy of
    /// the folder: then, too, nobody has the lock.
    fn try_take(path: PathBuf) -> rusqlite::Result<Option<Self>> {
        let file = File::options().create(true).append(true).open(&path).map_err(|error| unusable(&error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, path })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(unusable(&error)),
        }
    }

    /// Removes the file, then ends the lock.
    fn remove(self) {
        let Self { file, path } = self;
        // Left behind, it is removed by the next process that joins.
        let _ = fs::remove_file(path);
        drop(file);
    }
}

fn lock_folder(store: &Store) -> PathBuf {
    store.folder.join("processes")
}

impl Member {
    /// Becomes one of the folder's processes, and releases what dead ones held.
    pub(super) fn join(store: &Store, _turn: &OpeningTurn) -> rusqlite::Result<Self> {
        let folder = lock_folder(store);
        fs::create_dir_all(&folder).map_err(|error| unusable(&error))?;
        let name = format!("{}.lock", ProcessId::generate());
        let lock = Lock::try_take(folder.join(&name))?;
        let lock = lock.ok_or_else(|| unusable(&std::io::ErrorKind::WouldBlock.into()))?;
        let dead = find_dead(store, None)?;
        let transaction = store.begin()?;
        for each in &dead {
            each.release(store)?;
        }
        let number = transaction.prepare("INSERT INTO processes (lock) VALUES (?1)")?.insert([&name])?;
        transaction.commit()?;
        dead.into_iter().for_each(Dead::bury);
        remove_strays(store, &folder)?;
        Ok(Self { number, lock })
    }

    /// Joins anew after others took this process for dead.
    pub(super) fn join_again(store: &Store) -> rusqlite::Result<Self> {
        let turn = OpeningTurn::wait(&store.folder).map_err(|error| unusable(&error))?;
        Self::join(store, &turn)
    }

    /// Gives everything held back and stops being one of the folder's processes. When the disk does not
    /// let us, the next process to look sees that our lock is free.
    pub(super) fn leave(self, store: &Store) -> rusqlite::Result<usize> {
        let transaction = store.begin()?;
        let released = store.release(self.number)?;
        transaction.commit()?;
        self.lock.remove();
        Ok(released)
    }
}

impl Dead {
    /// Puts back what it held; within a transaction.
    pub(super) fn release(&self, store: &Store) -> rusqlite::Result<usize> {
        store.release(self.number)
    }

    /// Removes its lock, once its release is on disk.
    pub(super) fn bury(self) {
        self.lock.remove();
    }
}

/// The processes whose locks can be taken, apart from `own`.
pub(super) fn find_dead(store: &Store, own: Option<&Member>) -> rusqlite::Result<Vec<Dead>> {
    let folder = lock_folder(store);
    let mut dead = Vec::new();
    for (number, name) in registered(store)? {
        if own.is_some_and(|own| own.number == number) {
            continue;
        }
        match Lock::try_take(folder.join(name)) {
            Ok(Some(lock)) => dead.push(Dead { number, lock }),
            Ok(None) => {}
            Err(error) => tracing::warn!(process = number, %error, "cannot tell whether a process lives"),
        }
    }
    Ok(dead)
}

/// Whether `own` is still among the processes. It is not when somebody removed its lock file by hand and
/// another process took it for dead.
pub(super) fn is_registered(store: &Store, own: &Member) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM processes WHERE number = ?1)";
    store.connection.prepare_cached(sql)?.query_row([own.number], |row| row.get(0))
}

fn registered(store: &Store) -> rusqlite::Result<Vec<(i64, String)>> {
    let mut select = store.connection.prepare_cached("SELECT number, lock FROM processes")?;
    select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Removes the lock files of processes that ended while they were joining or leaving.
fn remove_strays(store: &Store, folder: &Path) -> rusqlite::Result<()> {
    let known: HashSet<String> = registered(store)?.into_iter().map(|(_, name)| name).collect();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        let is_known = entry.file_name().to_str().is_some_and(|name| known.contains(name));
        if !is_known && let Ok(Some(stray)) = Lock::try_take(entry.path()) {
            stray.remove();
        }
    }
    Ok(())
}
