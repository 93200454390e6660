//! The ledger on PostgreSQL (14 or newer): several collectors can stand by for one another.
//!
//! Each collector group has a schema of its own, `windrow_GROUP`, so one database serves several groups. The one
//! row of `meta` is locked by every commit, which finds there whether it still holds the epoch.

mod address;
mod errors;
mod read;
mod schema;
mod write;

pub use address::{PostgresAddress, PostgresAddressError};
pub(super) use read::PostgresTables;

use std::collections::BTreeMap;

use async_trait::async_trait;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use serde::Serialize;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};
use windrow_common::envelope::chunk::Span;
use windrow_common::ids::{Group, RunId};
use windrow_common::outcome::{Outcome, OutcomeCounts};
use windrow_common::ranges::Runs;

use super::sqlite::{int, uint};
use super::{
    Changes, ChunkKey, Held, Ledger, LedgerError, OpenItems, OpenRuns, Recount, RunKey, RunRecord, SinkSpan,
};
use crate::chunk_state::ChunkState;
use crate::sink::order::{Piece, Position};
use crate::spool::Extent;

/// PostgreSQL cuts longer names, and two groups could then share one.
const NAME_BYTES: usize = 63;

/// The ledger of a collector group in a database.
#[derive(Debug)]
pub struct PostgresLedger {
    connection: Connection,
    epoch: i64,
    /// How many commits the ledger has seen, as far as we know.
    commits: i64,
    /// What the last commit was about to return, unless it returned it: its connection may have been lost
    /// after it was done.
    in_doubt: Option<BTreeMap<RunKey, u64>>,
}

impl PostgresLedger {
    /// Opens, or makes, the ledger of `group`, and takes the next epoch.
    pub async fn open(address: &PostgresAddress, group: &Group) -> Result<Self, LedgerError> {
        let connection = Connection::prepare(address, group).await?;
        let row = connection.client().await?.query_one(schema::TAKE_EPOCH, &[]).await?;
        Ok(Self { connection, epoch: row.get(0), commits: row.get(1), in_doubt: None })
    }

    /// Makes sure the ledger of `group` can be opened, without taking it from who holds it.
    pub async fn check(address: &PostgresAddress, group: &Group) -> Result<(), LedgerError> {
        Connection::prepare(address, group).await.map(drop)
    }
}

/// One connection, made again when it is lost.
#[derive(Debug)]
struct Connection {
    pool: Pool,
    address: PostgresAddress,
    /// The schema of the group.
    schema: String,
}

impl Connection {
    /// Connects, and makes the tables if they are not there.
    async fn prepare(address: &PostgresAddress, group: &Group) -> Result<Self, LedgerError> {
        let connection = Self::new(address, group)?;
        let mut client = connection.client().await?;
        connection.make_tables(&mut client).await.map_err(|error| address.explain(&error))?;
        connection.check_version(&client).await?;
        Ok(connection)
    }

    fn new(address: &PostgresAddress, group: &Group) -> Result<Self, LedgerError> {
        let schema = format!("windrow_{group}");
        if schema.len() > NAME_BYTES {
            return Err(LedgerError::Broken(format!(
                "--group {group} is too long: PostgreSQL takes schema names of {NAME_BYTES} bytes, and {schema} is longer"
            )));
        }
        let session = format!("SET search_path TO \"{schema}\"; {}", schema::SESSION);
        let how = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(address.config(), NoTls, how);
        let begin = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let session = session.clone();
            Box::pin(async move { client.batch_execute(&session).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager).max_size(1).post_create(begin).build();
        let pool = pool.map_err(|error| LedgerError::Broken(error.to_string()))?;
        Ok(Self { pool, address: address.clone(), schema })
    }

    async fn client(&self) -> Result<Object, LedgerError> {
        self.pool.get().await.map_err(|error| match errors::backend(&error) {
            Some(error) => self.address.explain(error),
            None => LedgerError::Unwritable(error.to_string()),
        })
    }

    async fn check_version(&self, client: &Object) -> Result<(), LedgerError> {
        let version: i64 = client.query_one("SELECT version FROM meta", &[]).await?.get(0);
        if version != schema::VERSION {
            return Err(LedgerError::Broken(format!(
                "the ledger in schema {} of {} has version {version}, this build knows {}; use the build that wrote \
                 it, or another database",
                self.schema,
                self.address,
                schema::VERSION
            )));
        }
        Ok(())
    }

    async fn make_tables(&self, client: &mut Object) -> Result<(), tokio_postgres::Error> {
        let schema = &self.schema;
        let transaction = client.transaction().await?;
        // Two collectors may start at once.
        transaction.execute("SELECT pg_advisory_xact_lock(hashtext($1))", &[schema]).await?;
        let there = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
        if !transaction.query_one(there, &[schema]).await?.get::<_, bool>(0) {
            transaction.batch_execute(&format!("CREATE SCHEMA \"{schema}\"")).await?;
        }
        transaction.batch_execute(schema::TABLES).await?;
        transaction.commit().await
    }

    async fn rows(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, LedgerError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(statement).await?;
        Ok(client.query(&statement, values).await?)
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn open_runs(&mut self) -> Result<OpenRuns, LedgerError> {
        let rows = self.connection.rows(schema::OPEN_RUNS, &[]).await?;
        let next = self.connection.rows(schema::NEXT_KEY, &[]).await?;
        let runs = rows.iter().map(read_run).collect::<Result<_, _>>()?;
        let limits = self.connection.rows(schema::LIMITS, &[]).await?;
        let limits = limits.iter().map(|row| Ok((row.get(0), crate::ledger::read_rates(row.get(1))?)));
        let limits = limits.collect::<Result<_, LedgerError>>()?;
        let kept_until = |rows: Vec<Row>| rows.iter().map(|row| (row.get(0), uint(row.get(1)))).collect();
        let outages = kept_until(self.connection.rows(schema::OUTAGES, &[]).await?);
        let pauses = kept_until(self.connection.rows(schema::PAUSES, &[]).await?);
        let claimed = self.connection.rows(schema::CLAIMED, &[]).await?;
        Ok(OpenRuns {
            runs,
            next_key: next.first().map_or(1, |row| row.get(0)),
            limits,
            outages,
            claimed: claimed.iter().map(read_key).collect::<Result<_, _>>()?,
            pauses,
            is_first: self.epoch == 1,
        })
    }

    async fn run(&mut self, run: &RunId) -> Result<Option<RunRecord>, LedgerError> {
        self.connection.rows(schema::RUN, &[&run.as_str()]).await?.first().map(read_run).transpose()
    }

    async fn chunks(&mut self, keys: &[ChunkKey]) -> Result<Vec<Option<ChunkState>>, LedgerError> {
        let mut found = vec![None; keys.len()];
        if keys.is_empty() {
            return Ok(found);
        }
        let column = |of: fn(&ChunkKey) -> i64| keys.iter().map(of).collect::<Vec<i64>>();
        let (runs, stages) = (column(|key| key.run), column(|key| key.stage.into()));
        let (sources, ordinals) = (column(|key| key.source.into()), column(|key| int(key.ordinal)));
        for row in self.connection.rows(schema::CHUNKS, &[&runs, &stages, &sources, &ordinals]).await? {
            let number = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            if let Some(state) = found.get_mut(number) {
                *state = Some(read_chunk(&row)?);
            }
        }
        Ok(found)
    }

    async fn waiting(
        &mut self,
        run: RunKey,
        from: Position,
        limit: usize,
    ) -> Result<Vec<Piece>, LedgerError> {
        let (source, ordinal, item) = (i64::from(from.source), int(from.ordinal), int(from.offset));
        let values: [&(dyn ToSql + Sync); 5] = [&run, &source, &ordinal, &item, &int(limit as u64)];
        self.connection.rows(schema::PIECES, &values).await?.iter().map(read_piece).collect()
    }

    async fn held(&mut self, run: RunKey) -> Result<Held, LedgerError> {
        let mut held = Held::default();
        for row in self.connection.rows(schema::SPANS, &[&run]).await? {
            held.spans.push(SinkSpan { at: uint(row.get(0)), extent: read_extent(&row, 1)? });
        }
        for row in self.connection.rows(schema::SEGMENTS, &[&run]).await? {
            held.segments.insert(small(row.get(0))?, uint(row.get(1)));
        }
        Ok(held)
    }

    async fn open_items(&mut self, run: RunKey, stage: u32, source: u32) -> Result<OpenItems, LedgerError> {
        let mut open = OpenItems::default();
        let (stage, source) = (i64::from(stage), i64::from(source));
        for row in self.connection.rows(schema::CHUNK_EDGES, &[&run, &stage, &source]).await? {
            let span = Span { first: uint(row.get(1)), count: uint(row.get(2)) };
            open.add_chunk(uint(row.get(0)), span, row.get(3));
        }
        Ok(open)
    }

    async fn recount(&mut self, run: RunKey, stage: u32) -> Result<Recount, LedgerError> {
        let stage = i64::from(stage);
        let mut recount = Recount::default();
        for row in self.connection.rows(schema::SUM_CHUNKS, &[&run, &stage]).await? {
            recount.settled = uint(row.get(0));
            recount.chunks = read_counts(&row, 1);
        }
        for row in self.connection.rows(schema::SUM_ITEMS, &[&run, &stage]).await? {
            let outcome: Outcome = row.get::<_, &str>(0).parse().map_err(unreadable)?;
            recount.items.add(outcome, uint(row.get(1)));
        }
        Ok(recount)
    }

    async fn commit(&mut self, changes: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
        let mut client = self.connection.client().await?;
        let transaction = client.transaction().await?;
        let count = transaction.prepare_cached(schema::COUNT_COMMIT).await?;
        let row = transaction.query_one(&count, &[]).await?;
        let (theirs, commits): (i64, i64) = (row.get(0), row.get(1));
        if theirs != self.epoch {
            return Err(LedgerError::Deposed { ours: self.epoch, theirs });
        }
        if commits > self.commits + 1
            && let Some(done) = self.in_doubt.take()
        {
            self.commits = commits - 1;
            return Ok(done);
        }
        let new_rejects = write::changes(&transaction, changes).await?;
        self.in_doubt = Some(new_rejects.clone());
        transaction.commit().await?;
        self.in_doubt = None;
        self.commits = commits;
        Ok(new_rejects)
    }
}

fn json(value: &impl Serialize) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(unreadable)
}

fn unreadable(error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Broken(format!("a row of the ledger in PostgreSQL is not of its form: {error}"))
}

fn small(value: i64) -> Result<u32, LedgerError> {
    value.try_into().map_err(unreadable)
}

fn read_run(row: &Row) -> Result<RunRecord, LedgerError> {
    let mut run: RunRecord = serde_json::from_str(row.get(0)).map_err(unreadable)?;
    run.rejected = uint(row.get(1));
    Ok(run)
}

fn read_key(row: &Row) -> Result<ChunkKey, LedgerError> {
    let (stage, source) = (small(row.get(1))?, small(row.get(2))?);
    Ok(ChunkKey { run: row.get(0), stage, source, ordinal: uint(row.get(3)) })
}

fn read_chunk(row: &Row) -> Result<ChunkState, LedgerError> {
    let hops: Option<&str> = row.get(5);
    let hops = hops.map(str::parse::<Runs<u32>>).transpose().map_err(unreadable)?;
    let claims: Option<&str> = row.get(12);
    let claims = claims.map(serde_json::from_str).transpose().map_err(unreadable)?;
    Ok(ChunkState {
        span: Span { first: uint(row.get(1)), count: uint(row.get(2)) },
        settled: row.get(3),
        digests: row.get(4),
        hops: hops.map(|hops| hops.iter().collect()),
        counts: read_counts(row, 6),
        claims: claims.unwrap_or_default(),
    })
}

/// Six columns from `at` on, in the order of [`Outcome::ALL`].
fn read_counts(row: &Row, at: usize) -> OutcomeCounts {
    let mut counts = OutcomeCounts::default();
    for (position, outcome) in Outcome::ALL.into_iter().enumerate() {
        counts.add(outcome, uint(row.get(at + position)));
    }
    counts
}

fn read_piece(row: &Row) -> Result<Piece, LedgerError> {
    let source = small(row.get(0))?;
    let at = Position { source, ordinal: uint(row.get(1)), offset: uint(row.get(2)) };
    let next = Position { source, ordinal: uint(row.get(3)), offset: uint(row.get(4)) };
    Ok(Piece { at, next, extent: read_extent(row, 5)? })
}

fn read_extent(row: &Row, at: usize) -> Result<Extent, LedgerError> {
    Ok(Extent { segment: small(row.get(at))?, at: uint(row.get(at + 1)), bytes: uint(row.get(at + 2)) })
}
