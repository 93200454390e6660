//! The tables of a ledger on PostgreSQL, and what is asked of them.
//!
//! They are those of the SQLite ledger. Numbers are `bigint`, whose bits are kept. Texts of users are JSON
//! strings, since PostgreSQL takes no NUL in a text.

/// The version of the tables; a ledger of another version is refused.
pub(super) const VERSION: i64 = 1;

/// For every session. A collector that sleeps in the middle of a transaction must not hold its lock for long,
/// and what was committed survives the loss of power.
pub(super) const SESSION: &str = "SET idle_in_transaction_session_timeout = '2s'; SET lock_timeout = '5s'; \
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';";

/// The tables, made once, in the schema of the search path.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta (
    single bigint PRIMARY KEY CHECK (single = 1), version bigint NOT NULL, epoch bigint NOT NULL,
    commits bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (
    run bigint PRIMARY KEY, id text NOT NULL UNIQUE, job text NOT NULL, is_open boolean NOT NULL,
    record text NOT NULL
);
CREATE INDEX IF NOT EXISTS open_runs ON runs (run) WHERE is_open;
CREATE TABLE IF NOT EXISTS chunks (
    run bigint, stage bigint, source bigint, ordinal bigint,
    first bigint NOT NULL, count bigint NOT NULL, settled bytea, digests bytea NOT NULL, hops text,
    succeeded bigint NOT NULL, failed bigint NOT NULL, skipped bigint NOT NULL,
    expired bigint NOT NULL, cancelled bigint NOT NULL, unknown bigint NOT NULL, claims text,
    PRIMARY KEY (run, stage, source, ordinal)
);
ALTER TABLE chunks ADD COLUMN IF NOT EXISTS claims text;
CREATE INDEX IF NOT EXISTS claimed_chunks ON chunks (run) WHERE claims IS NOT NULL;
CREATE TABLE IF NOT EXISTS items (
    run bigint, stage bigint, source bigint, first bigint,
    count bigint NOT NULL, outcome text NOT NULL, id text, attempts bigint NOT NULL, error text NOT NULL,
    PRIMARY KEY (run, stage, source, first)
);
CREATE TABLE IF NOT EXISTS rejects (
    run bigint, source bigint, file text, line bigint, reason text NOT NULL,
    PRIMARY KEY (run, source, file, line)
);
CREATE TABLE IF NOT EXISTS pieces (
    run bigint, source bigint, ordinal bigint, item bigint,
    next_ordinal bigint NOT NULL, next_item bigint NOT NULL,
    segment bigint NOT NULL, at bigint NOT NULL, bytes bigint NOT NULL,
    PRIMARY KEY (run, source, ordinal, item)
);
CREATE TABLE IF NOT EXISTS spans (
    run bigint, sink_at bigint, segment bigint NOT NULL, at bigint NOT NULL, bytes bigint NOT NULL,
    PRIMARY KEY (run, sink_at)
);
CREATE TABLE IF NOT EXISTS limits (destination text PRIMARY KEY, rates text NOT NULL);
CREATE TABLE IF NOT EXISTS outages (destination text PRIMARY KEY, until bigint NOT NULL);
CREATE TABLE IF NOT EXISTS pauses (destination text PRIMARY KEY, until bigint NOT NULL);
INSERT INTO meta VALUES (1, 1, 0, 0) ON CONFLICT DO NOTHING;
";

/// Locks the one row for the rest of the transaction, and counts it.
pub(super) const COUNT_COMMIT: &str = "UPDATE meta SET commits = commits + 1 RETURNING epoch, commits";

pub(super) const TAKE_EPOCH: &str = "UPDATE meta SET epoch = epoch + 1 RETURNING epoch, commits";

pub(super) const OPEN_RUNS: &str = "SELECT record, (SELECT COUNT(*) FROM rejects WHERE rejects.run = runs.run) \
     FROM runs WHERE is_open ORDER BY run";

pub(super) const LIMITS: &str = "SELECT destination, rates FROM limits";

pub(super) const PUT_LIMITS: &str = "INSERT INTO limits SELECT * FROM unnest($1::text[], $2::text[]) \
     ON CONFLICT (destination) DO UPDATE SET rates = excluded.rates";

pub(super) const DROP_LIMITS: &str = "DELETE FROM limits WHERE destination = ANY($1::text[])";

pub(super) const OUTAGES: &str = "SELECT destination, until FROM outages";

pub(super) const PUT_OUTAGES: &str = "INSERT INTO outages SELECT * FROM unnest($1::text[], $2::bigint[]) \
     ON CONFLICT (destination) DO UPDATE SET until = excluded.until";

pub(super) const DROP_OUTAGES: &str = "DELETE FROM outages WHERE destination = ANY($1::text[])";

pub(super) const PAUSES: &str = "SELECT destination, until FROM pauses";

pub(super) const PUT_PAUSES: &str = "INSERT INTO pauses SELECT * FROM unnest($1::text[], $2::bigint[]) \
     ON CONFLICT (destination) DO UPDATE SET until = excluded.until";

pub(super) const DROP_PAUSES: &str = "DELETE FROM pauses WHERE destination = ANY($1::text[])";

pub(super) const NEXT_KEY: &str = "SELECT COALESCE(MAX(run), 0) + 1 FROM runs";

pub(super) const RUN: &str = "SELECT record, (SELECT COUNT(*) FROM rejects WHERE rejects.run = runs.run) \
     FROM runs WHERE id = $1";

pub(super) const ALL_RUNS: &str = "SELECT record, (SELECT COUNT(*) FROM rejects WHERE rejects.run = runs.run) \
     FROM runs ORDER BY run DESC";

pub(super) const RUN_NAMES: &str = "SELECT id FROM runs ORDER BY run DESC";

pub(super) const FAILURES: &str = "SELECT first, count, outcome, id, attempts, error FROM items \
     WHERE run = $1 AND source = $2 AND stage = $3 AND first + count > $4 AND outcome <> 'skipped' \
     ORDER BY first LIMIT $5";

pub(super) const REJECTS: &str = "SELECT source, file, line, reason FROM rejects \
     WHERE run = $1 AND (source, file, line) > ($2, $3, $4) ORDER BY source, file, line LIMIT $5";

pub(super) const CHUNKS: &str = "SELECT k.n, c.first, c.count, c.settled, c.digests, c.hops, c.succeeded, c.failed, \
     c.skipped, c.expired, c.cancelled, c.unknown, c.claims \
     FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) WITH ORDINALITY \
         AS k (run, stage, source, ordinal, n) \
     JOIN chunks c ON (c.run, c.stage, c.source, c.ordinal) = (k.run, k.stage, k.source, k.ordinal)";

pub(super) const CLAIMED: &str =
    "SELECT run, stage, source, ordinal FROM chunks WHERE claims IS NOT NULL ORDER BY run";

pub(super) const PIECES: &str = "SELECT source, ordinal, item, next_ordinal, next_item, segment, at, bytes \
     FROM pieces WHERE run = $1 AND (source, ordinal, item) >= ($2, $3, $4) \
     ORDER BY source, ordinal, item LIMIT $5";

pub(super) const SPANS: &str =
    "SELECT sink_at, segment, at, bytes FROM spans WHERE run = $1 ORDER BY sink_at";

pub(super) const SEGMENTS: &str = "SELECT segment, SUM(bytes)::bigint FROM \
     (SELECT segment, bytes FROM pieces WHERE run = $1 UNION ALL \
      SELECT segment, bytes FROM spans WHERE run = $1) AS needed GROUP BY segment";

pub(super) const CHUNK_EDGES: &str = "SELECT ordinal, first, count, settled IS NULL FROM chunks \
     WHERE run = $1 AND stage = $2 AND source = $3 ORDER BY ordinal";

pub(super) const SUM_CHUNKS: &str = "SELECT \
     COALESCE(SUM(CASE WHEN settled IS NULL THEN count ELSE bit_count(settled) END), 0)::bigint, \
     COALESCE(SUM(succeeded), 0)::bigint, COALESCE(SUM(failed), 0)::bigint, COALESCE(SUM(skipped), 0)::bigint, \
     COALESCE(SUM(expired), 0)::bigint, COALESCE(SUM(cancelled), 0)::bigint, COALESCE(SUM(unknown), 0)::bigint \
     FROM chunks WHERE run = $1 AND stage = $2";

pub(super) const SUM_ITEMS: &str =
    "SELECT outcome, SUM(count)::bigint FROM items WHERE run = $1 AND stage = $2 GROUP BY outcome";

pub(super) const PUT_RUNS: &str = "INSERT INTO runs SELECT * FROM \
     unnest($1::bigint[], $2::text[], $3::text[], $4::boolean[], $5::text[]) \
     ON CONFLICT (run) DO UPDATE SET is_open = excluded.is_open, record = excluded.record";

pub(super) const PUT_CHUNKS: &str = "INSERT INTO chunks SELECT * FROM unnest($1::bigint[], $2::bigint[], \
     $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[], $9::text[], $10::bigint[], \
     $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::text[]) \
     ON CONFLICT (run, stage, source, ordinal) DO UPDATE SET first = excluded.first, count = excluded.count, \
     settled = excluded.settled, digests = excluded.digests, hops = excluded.hops, \
     succeeded = excluded.succeeded, failed = excluded.failed, skipped = excluded.skipped, \
     expired = excluded.expired, cancelled = excluded.cancelled, unknown = excluded.unknown, \
     claims = excluded.claims";

pub(super) const PUT_ITEMS: &str = "INSERT INTO items SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], \
     $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::bigint[], $9::text[]) \
     ON CONFLICT (run, stage, source, first) DO UPDATE SET count = excluded.count, outcome = excluded.outcome, \
     id = excluded.id, attempts = excluded.attempts, error = excluded.error";

pub(super) const DROP_PIECES: &str = "DELETE FROM pieces p \
     USING unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS k (run, source, ordinal, item) \
     WHERE p.run = k.run AND (p.source, p.ordinal, p.item) < (k.source, k.ordinal, k.item)";

pub(super) const PUT_PIECES: &str = "INSERT INTO pieces SELECT * FROM unnest($1::bigint[], $2::bigint[], \
     $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[]) \
     ON CONFLICT (run, source, ordinal, item) DO UPDATE SET next_ordinal = excluded.next_ordinal, \
     next_item = excluded.next_item, segment = excluded.segment, at = excluded.at, bytes = excluded.bytes";

pub(super) const DROP_SPANS: &str = "DELETE FROM spans s USING unnest($1::bigint[], $2::bigint[]) AS k (run, synced) \
     WHERE s.run = k.run AND s.sink_at < k.synced";

pub(super) const PUT_SPANS: &str = "INSERT INTO spans SELECT * FROM \
     unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) \
     ON CONFLICT (run, sink_at) DO UPDATE SET segment = excluded.segment, at = excluded.at, bytes = excluded.bytes";

pub(super) const PUT_REJECTS: &str = "WITH new AS (INSERT INTO rejects SELECT * FROM \
     unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::text[]) \
     ON CONFLICT DO NOTHING RETURNING run) SELECT run, COUNT(*) FROM new GROUP BY run";
