//! The tables of a SQLite ledger.

/// The version of the tables; a ledger of another version is refused.
pub(super) const VERSION: i64 = 1;

/// The tables, made once.
///
/// `chunks.settled` is NULL once every item has settled. `items` has rows only for items that did not
/// succeed, `pieces` the places in the spool of lines waiting for their turn, `spans` the bytes fixed in a
/// sink's stream that may not be safe there yet.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta (
    only INTEGER PRIMARY KEY CHECK (only = 1), version INTEGER NOT NULL, epoch INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, job TEXT NOT NULL, is_open INTEGER NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS open_runs ON runs (run) WHERE is_open = 1;
CREATE TABLE IF NOT EXISTS chunks (
    run INTEGER NOT NULL, stage INTEGER NOT NULL, source INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    first INTEGER NOT NULL, count INTEGER NOT NULL, settled BLOB, digests BLOB NOT NULL, hops TEXT,
    succeeded INTEGER NOT NULL, failed INTEGER NOT NULL, skipped INTEGER NOT NULL,
    expired INTEGER NOT NULL, cancelled INTEGER NOT NULL, unknown INTEGER NOT NULL, claims TEXT,
    PRIMARY KEY (run, stage, source, ordinal)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    run INTEGER NOT NULL, stage INTEGER NOT NULL, source INTEGER NOT NULL, first INTEGER NOT NULL,
    count INTEGER NOT NULL, outcome TEXT NOT NULL, id TEXT, attempts INTEGER NOT NULL, error TEXT NOT NULL,
    PRIMARY KEY (run, stage, source, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejects (
    run INTEGER NOT NULL, source INTEGER NOT NULL, file TEXT NOT NULL, line INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (run, source, file, line)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pieces (
    run INTEGER NOT NULL, source INTEGER NOT NULL, ordinal INTEGER NOT NULL, offset INTEGER NOT NULL,
    next_ordinal INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    segment INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (run, source, ordinal, offset)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spans (
    run INTEGER NOT NULL, sink_at INTEGER NOT NULL,
    segment INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (run, sink_at)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limits (destination TEXT PRIMARY KEY, rates TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outages (destination TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pauses (destination TEXT PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
";

/// Whether the chunks of this ledger have claims: an early build knew none.
pub(super) const HAS_CLAIMS: &str = "SELECT 1 FROM pragma_table_info('chunks') WHERE name = 'claims'";

pub(super) const ADD_CLAIMS: &str = "ALTER TABLE chunks ADD COLUMN claims TEXT";

/// Made after the column it is about.
pub(super) const CLAIMED_CHUNKS: &str =
    "CREATE INDEX IF NOT EXISTS claimed_chunks ON chunks (run) WHERE claims IS NOT NULL";

pub(super) const CLAIMED: &str =
    "SELECT run, stage, source, ordinal FROM chunks WHERE claims IS NOT NULL ORDER BY run";

/// Where rows of a run are, the run's own last.
pub(super) const OF_A_RUN: [&str; 6] = ["chunks", "items", "rejects", "pieces", "spans", "runs"];

pub(super) const CHUNK: &str = "SELECT first, count, settled, digests, hops, succeeded, failed, skipped, expired, \
     cancelled, unknown, claims FROM chunks WHERE run = ?1 AND stage = ?2 AND source = ?3 AND ordinal = ?4";

pub(super) const PUT_CHUNK: &str = "INSERT OR REPLACE INTO chunks VALUES \
     (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";

pub(super) const LIMITS: &str = "SELECT destination, rates FROM limits";

pub(super) const PUT_LIMIT: &str = "INSERT OR REPLACE INTO limits VALUES (?1, ?2)";

pub(super) const DROP_LIMIT: &str = "DELETE FROM limits WHERE destination = ?1";

pub(super) const OUTAGES: &str = "SELECT destination, until FROM outages";

pub(super) const PUT_OUTAGE: &str = "INSERT OR REPLACE INTO outages VALUES (?1, ?2)";

pub(super) const DROP_OUTAGE: &str = "DELETE FROM outages WHERE destination = ?1";

pub(super) const PAUSES: &str = "SELECT destination, until FROM pauses";

pub(super) const PUT_PAUSE: &str = "INSERT OR REPLACE INTO pauses VALUES (?1, ?2)";

pub(super) const DROP_PAUSE: &str = "DELETE FROM pauses WHERE destination = ?1";

pub(super) const PUT_RUN: &str = "INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5) \
     ON CONFLICT (run) DO UPDATE SET is_open = excluded.is_open, record = excluded.record";

pub(super) const PUT_ITEMS: &str = "INSERT OR REPLACE INTO items VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

pub(super) const PUT_REJECT: &str = "INSERT OR IGNORE INTO rejects VALUES (?1, ?2, ?3, ?4, ?5)";

pub(super) const PUT_PIECE: &str =
    "INSERT OR REPLACE INTO pieces VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

pub(super) const DROP_PIECES: &str =
    "DELETE FROM pieces WHERE run = ?1 AND (source, ordinal, offset) < (?2, ?3, ?4)";

pub(super) const PIECES: &str = "SELECT source, ordinal, offset, next_ordinal, next_offset, segment, at, bytes \
     FROM pieces WHERE run = ?1 AND (source, ordinal, offset) >= (?2, ?3, ?4) \
     ORDER BY source, ordinal, offset LIMIT ?5";

pub(super) const PUT_SPAN: &str = "INSERT OR REPLACE INTO spans VALUES (?1, ?2, ?3, ?4, ?5)";

pub(super) const DROP_SPANS: &str = "DELETE FROM spans WHERE run = ?1 AND sink_at < ?2";

pub(super) const SPANS: &str =
    "SELECT sink_at, segment, at, bytes FROM spans WHERE run = ?1 ORDER BY sink_at";

pub(super) const SEGMENTS: &str = "SELECT segment, SUM(bytes) FROM \
     (SELECT segment, bytes FROM pieces WHERE run = ?1 UNION ALL \
      SELECT segment, bytes FROM spans WHERE run = ?1) GROUP BY segment";

pub(super) const CHUNK_EDGES: &str = "SELECT ordinal, first, count, settled IS NULL FROM chunks \
     WHERE run = ?1 AND stage = ?2 AND source = ?3 ORDER BY ordinal";

pub(super) const SUM_CHUNKS: &str = "SELECT \
     COALESCE(SUM(CASE WHEN settled IS NULL THEN count ELSE 0 END), 0), \
     COALESCE(SUM(succeeded), 0), COALESCE(SUM(failed), 0), COALESCE(SUM(skipped), 0), \
     COALESCE(SUM(expired), 0), COALESCE(SUM(cancelled), 0), COALESCE(SUM(unknown), 0) \
     FROM chunks WHERE run = ?1 AND stage = ?2";

pub(super) const BITMAPS: &str =
    "SELECT settled FROM chunks WHERE run = ?1 AND stage = ?2 AND settled IS NOT NULL";

pub(super) const SUM_ITEMS: &str =
    "SELECT outcome, SUM(count) FROM items WHERE run = ?1 AND stage = ?2 GROUP BY outcome";
