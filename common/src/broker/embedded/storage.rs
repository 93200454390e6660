//! The file: how it is opened, and what its errors mean to the user.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};

use super::super::{BrokerError, Queue};
use super::membership::{Member, OpeningTurn};
use crate::ids::Group;

/// What marks an SQLite file as ours: "wdrw".
const APPLICATION_ID: i32 = 0x7764_7277;

/// The version of [`SCHEMA`].
const SCHEMA_VERSION: i32 = 1;

/// A usual chunk or completion and its row fit in one page, and two or more of them share it.
const PAGE_BYTES: u32 = 32 * 1024;

/// How much of the write-ahead log is usually kept before its pages are moved to the file. Messages settled
/// by then are never moved.
const LOG_BYTES: u32 = 64 * 1024 * 1024;

/// On a small disk the log is kept to this part of the room there is: one that fills the disk could not even be
/// moved into the file.
const LOG_SHARE: u64 = 4;

/// The page cache of the writer, and of the connection that counts.
const CACHE_KIB: i32 = 32 * 1024;

/// How long another process may hold the file before we say so.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages are written once and deleted once; what changes more often is in small rows beside them.
const SCHEMA: &str = "
    CREATE TABLE processes (number INTEGER PRIMARY KEY AUTOINCREMENT, lock TEXT NOT NULL) STRICT;
    CREATE TABLE queues (
        number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        parking INTEGER,    -- the queue that messages delivered too often go to
        reader INTEGER      -- the one process that may read it, of queues read by one at a time
    ) STRICT;
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY, kind TEXT NOT NULL, message_id TEXT NOT NULL, reply_to TEXT NOT NULL,
        headers TEXT NOT NULL, content_encoding TEXT NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE ready (
        queue INTEGER NOT NULL, message INTEGER NOT NULL, deliveries INTEGER NOT NULL,
        PRIMARY KEY (queue, message)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leased (
        message INTEGER PRIMARY KEY, queue INTEGER NOT NULL, process INTEGER NOT NULL,
        deliveries INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE delayed (
        due_ms INTEGER NOT NULL, message INTEGER NOT NULL, queue INTEGER NOT NULL,
        PRIMARY KEY (due_ms, message)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE process_queues (
        process_id TEXT PRIMARY KEY, queue_group TEXT NOT NULL, process INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE posts (
        number INTEGER PRIMARY KEY AUTOINCREMENT, queue_group TEXT NOT NULL,
        process_id TEXT,    -- null: everybody
        sender INTEGER NOT NULL, sent_ms INTEGER NOT NULL, message INTEGER NOT NULL
    ) STRICT;
";

/// A connection to the file. The statements are in the modules beside this one.
pub(super) struct Store {
    pub(super) connection: Connection,
    pub(super) group: Group,
    pub(super) folder: PathBuf,
    pub(super) queue_numbers: RefCell<HashMap<Queue, i64>>,
    /// How long the log is to become, at most [`LOG_BYTES`].
    log_bytes: Cell<u32>,
}

/// Opens the file in `folder` and becomes one of its processes.
pub(super) fn open_and_join(folder: &Path, group: &Group) -> Result<(Store, Member), BrokerError> {
    let unusable = |error: std::io::Error| {
        let folder = folder.display();
        BrokerError::Storage(format!("cannot use the folder {folder}: {error}; {WRITABLE}"))
    };
    fs::create_dir_all(folder).map_err(unusable)?;
    let turn = OpeningTurn::wait(folder).map_err(unusable)?;
    let store = Store::open(folder, group)?;
    let member = Member::join(&store, &turn).map_err(|error| store.explain(&error))?;
    Ok((store, member))
}

const WRITABLE: &str = "make it writable, or choose another data folder";

impl Store {
    fn open(folder: &Path, group: &Group) -> Result<Self, BrokerError> {
        let file = file_in(folder);
        let connection = Connection::open(&file).map_err(|error| explain(&error, &file))?;
        let mut store = Self {
            connection,
            group: group.clone(),
            folder: folder.to_owned(),
            queue_numbers: RefCell::default(),
            log_bytes: Cell::new(LOG_BYTES),
        };
        let found = store.configure().map_err(|error| explain(&error, &file))?;
        match found {
            (APPLICATION_ID, SCHEMA_VERSION) => Ok(store),
            (APPLICATION_ID, version) => Err(BrokerError::Storage(format!(
                "{} is of format {version}, this build reads {SCHEMA_VERSION}; use the build that wrote it, or \
                 choose another data folder",
                file.display()
            ))),
            _ => Err(BrokerError::Storage(format!(
                "{} belongs to another program; choose another data folder",
                file.display()
            ))),
        }
    }

    /// A second connection, which only reads and does not wait for the writer.
    pub(super) fn another_reader(&self) -> Result<Self, BrokerError> {
        let store = Self::open(&self.folder, &self.group)?;
        store.connection.pragma_update(None, "query_only", true).map_err(|error| self.explain(&error))?;
        Ok(store)
    }

    /// Sets the connection up, makes the tables in an empty file, and says whose file it is.
    fn configure(&mut self) -> rusqlite::Result<(i32, i32)> {
        let connection = &mut self.connection;
        connection.busy_handler(Some(wait_for_turn))?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        // A confirm, and the mark that a message was delivered, outlive a power cut.
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "wal_autocheckpoint", LOG_BYTES / PAGE_BYTES)?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
        if tables == 0 {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        self.fit_log()?;
        let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get(0));
        Ok((pragma("application_id")?, pragma("user_version")?))
    }

    /// Begins a transaction that may write.
    pub(super) fn begin(&self) -> rusqlite::Result<Transaction<'_>> {
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
    }

    /// A number that changes when another process has written.
    pub(super) fn outside_version(&self) -> rusqlite::Result<i64> {
        self.connection.prepare_cached("PRAGMA data_version")?.query_row((), |row| row.get(0))
    }

    /// Whether commits wait for the disk. Without it they outlive this process, but not a power cut.
    pub(super) fn set_durable(&self, durable: bool) -> rusqlite::Result<()> {
        let sql = if durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
        self.connection.execute_batch(sql)
    }

    /// Moves the log into the file when it has grown far beyond what is meant: several processes that never
    /// pause keep each other from doing so in passing.
    pub(super) fn limit_log(&self) -> rusqlite::Result<()> {
        self.fit_log()?;
        if self.log_length() > 2 * u64::from(self.log_bytes.get()) {
            self.empty_log()?;
        }
        Ok(())
    }

    /// Fits the usual length of the log to the room there is.
    fn fit_log(&self) -> rusqlite::Result<()> {
        // Where the room cannot be told, there is no reason to think it small.
        let Ok(disk) = rustix::fs::statvfs(&self.folder) else { return Ok(()) };
        let room = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(self.log_length());
        let share = u32::try_from(room / LOG_SHARE).unwrap_or(LOG_BYTES);
        let bytes = share.clamp(PAGE_BYTES, LOG_BYTES);
        if self.log_bytes.replace(bytes) != bytes {
            self.connection.pragma_update(None, "wal_autocheckpoint", bytes / PAGE_BYTES)?;
        }
        Ok(())
    }

    fn log_length(&self) -> u64 {
        self.folder.join("queue.db-wal").metadata().map_or(0, |log| log.len())
    }

    /// Moves the log into the file, and gives its space back.
    pub(super) fn empty_log(&self) -> rusqlite::Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
    }

    /// The error in words, with the remedy.
    pub(super) fn explain(&self, error: &rusqlite::Error) -> BrokerError {
        explain(error, &file_in(&self.folder))
    }
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("queue.db")
}

/// Waits for another process's transaction: a turn takes a few milliseconds, so we look often.
fn wait_for_turn(tries: i32) -> bool {
    let pause = Duration::from_micros(500);
    std::thread::sleep(pause);
    pause * tries.unsigned_abs() < BUSY_TIMEOUT
}

/// Why a write may succeed later, if it may: then it is worth waiting.
pub(super) fn passing_trouble(error: &rusqlite::Error, folder: &Path) -> Option<String> {
    let folder = folder.display();
    let extended = error.sqlite_error().map(|error| error.extended_code);
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Some(format!("disk full: free space under {folder}")),
        _ if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => {
            Some(format!("disk full: free space under {folder}"))
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Some(format!("another process has held the queue file in {folder} for {BUSY_TIMEOUT:?}"))
        }
        _ => None,
    }
}

fn explain(error: &rusqlite::Error, file: &Path) -> BrokerError {
    let file = file.display();
    BrokerError::Storage(match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("{file} is damaged or no queue file ({error}); move it away and start the runs again")
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            format!("cannot write {file}: {error}; {WRITABLE}")
        }
        Some(ErrorCode::DiskFull) => format!("cannot write {file}: the disk is full; free space there"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!(
                "another process has held {file} for {BUSY_TIMEOUT:?}; end it, or choose another data folder"
            )
        }
        _ => format!("{file}: {error}"),
    })
}
