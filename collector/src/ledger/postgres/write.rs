//! What a transaction writes: one statement per table, with a column of values per parameter.

use std::collections::BTreeMap;

use deadpool_postgres::Transaction;
use tokio_postgres::types::ToSql;

use super::{json, schema};
use crate::ledger::sqlite::{int, uint};
use crate::ledger::{Changes, LedgerError, RunKey, RunRecord, write_claims, write_rates};

type Value<'a> = &'a (dyn ToSql + Sync);

/// Writes all of it. Returns how many rejects were new, by run.
pub(super) async fn changes(
    transaction: &Transaction<'_>,
    changes: &Changes,
) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
    runs(transaction, changes).await?;
    chunks(transaction, changes).await?;
    items(transaction, changes).await?;
    pieces(transaction, changes).await?;
    spans(transaction, changes).await?;
    limits(transaction, changes).await?;
    keep_until(transaction, &changes.outages, schema::PUT_OUTAGES, schema::DROP_OUTAGES).await?;
    keep_until(transaction, &changes.pauses, schema::PUT_PAUSES, schema::DROP_PAUSES).await?;
    rejects(transaction, changes).await
}

fn column<'a, T, V>(rows: &'a [T], of: impl Fn(&'a T) -> V) -> Vec<V> {
    rows.iter().map(of).collect()
}

async fn put(
    transaction: &Transaction<'_>,
    statement: &str,
    rows: usize,
    columns: &[Value<'_>],
) -> Result<(), LedgerError> {
    if rows > 0 {
        let statement = transaction.prepare_cached(statement).await?;
        transaction.execute(&statement, columns).await?;
    }
    Ok(())
}

async fn runs(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let rows = &changes.runs;
    let records = rows.iter().map(json).collect::<Result<Vec<_>, _>>()?;
    let columns: [Value<'_>; 5] = [
        &column(rows, |run| run.key),
        &column(rows, |run| run.id().as_str()),
        &column(rows, |run| run.opened.job.as_str()),
        &column(rows, RunRecord::is_unfinished),
        &records,
    ];
    put(transaction, schema::PUT_RUNS, rows.len(), &columns).await
}

async fn chunks(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let rows = &changes.chunks;
    let claims = rows.iter().map(|(_, chunk)| write_claims(chunk)).collect::<Result<Vec<_>, _>>()?;
    let columns: [Value<'_>; 16] = [
        &column(rows, |(key, _)| key.run),
        &column(rows, |(key, _)| i64::from(key.stage)),
        &column(rows, |(key, _)| i64::from(key.source)),
        &column(rows, |(key, _)| int(key.ordinal)),
        &column(rows, |(_, chunk)| int(chunk.span.first)),
        &column(rows, |(_, chunk)| int(chunk.span.count)),
        &column(rows, |(_, chunk)| chunk.settled.as_deref()),
        &column(rows, |(_, chunk)| chunk.digests.as_slice()),
        &column(rows, |(_, chunk)| chunk.hops_text()),
        &column(rows, |(_, chunk)| int(chunk.counts.succeeded)),
        &column(rows, |(_, chunk)| int(chunk.counts.failed)),
        &column(rows, |(_, chunk)| int(chunk.counts.skipped)),
        &column(rows, |(_, chunk)| int(chunk.counts.expired)),
        &column(rows, |(_, chunk)| int(chunk.counts.cancelled)),
        &column(rows, |(_, chunk)| int(chunk.counts.unknown)),
        &claims,
    ];
    put(transaction, schema::PUT_CHUNKS, rows.len(), &columns).await
}

async fn items(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let rows = &changes.items;
    let ids = rows.iter().map(|row| row.id.as_ref().map(json).transpose()).collect::<Result<Vec<_>, _>>()?;
    let columns: [Value<'_>; 9] = [
        &column(rows, |row| row.run),
        &column(rows, |row| i64::from(row.stage)),
        &column(rows, |row| i64::from(row.source)),
        &column(rows, |row| int(row.first)),
        &column(rows, |row| int(row.count)),
        &column(rows, |row| row.outcome.as_str()),
        &ids,
        &column(rows, |row| i64::from(row.attempts)),
        &column(rows, |row| row.error.as_str()),
    ];
    put(transaction, schema::PUT_ITEMS, rows.len(), &columns).await
}

async fn pieces(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let placed = &changes.placed;
    let columns: [Value<'_>; 4] = [
        &column(placed, |(run, _)| *run),
        &column(placed, |(_, position)| i64::from(position.source)),
        &column(placed, |(_, position)| int(position.ordinal)),
        &column(placed, |(_, position)| int(position.offset)),
    ];
    put(transaction, schema::DROP_PIECES, placed.len(), &columns).await?;
    let waiting = &changes.waiting;
    let columns: [Value<'_>; 9] = [
        &column(waiting, |(run, _)| *run),
        &column(waiting, |(_, piece)| i64::from(piece.at.source)),
        &column(waiting, |(_, piece)| int(piece.at.ordinal)),
        &column(waiting, |(_, piece)| int(piece.at.offset)),
        &column(waiting, |(_, piece)| int(piece.next.ordinal)),
        &column(waiting, |(_, piece)| int(piece.next.offset)),
        &column(waiting, |(_, piece)| i64::from(piece.extent.segment)),
        &column(waiting, |(_, piece)| int(piece.extent.at)),
        &column(waiting, |(_, piece)| int(piece.extent.bytes)),
    ];
    put(transaction, schema::PUT_PIECES, waiting.len(), &columns).await
}

async fn spans(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let synced = &changes.synced;
    let columns: [Value<'_>; 2] = [&column(synced, |(run, _)| *run), &column(synced, |(_, to)| int(*to))];
    put(transaction, schema::DROP_SPANS, synced.len(), &columns).await?;
    let spans = &changes.spans;
    let columns: [Value<'_>; 5] = [
        &column(spans, |(run, _)| *run),
        &column(spans, |(_, span)| int(span.at)),
        &column(spans, |(_, span)| i64::from(span.extent.segment)),
        &column(spans, |(_, span)| int(span.extent.at)),
        &column(spans, |(_, span)| int(span.extent.bytes)),
    ];
    put(transaction, schema::PUT_SPANS, spans.len(), &columns).await
}

async fn limits(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let dropped: Vec<&String> =
        changes.limits.iter().filter(|(_, rates)| rates.is_none()).map(|(name, _)| name).collect();
    put(transaction, schema::DROP_LIMITS, dropped.len(), &[&dropped]).await?;
    let set = changes.limits.iter().filter_map(|(name, rates)| rates.as_ref().map(|rates| (name, rates)));
    let set =
        set.map(|(name, rates)| Ok((name, write_rates(rates)?))).collect::<Result<Vec<_>, LedgerError>>()?;
    let columns: [Value<'_>; 2] =
        [&column(&set, |(name, _)| *name), &column(&set, |(_, rates)| rates.as_str())];
    put(transaction, schema::PUT_LIMITS, set.len(), &columns).await
}

async fn keep_until(
    transaction: &Transaction<'_>,
    kept: &[(String, Option<u64>)],
    put_statement: &'static str,
    drop_statement: &'static str,
) -> Result<(), LedgerError> {
    let over: Vec<&String> = kept.iter().filter(|(_, until)| until.is_none()).map(|(name, _)| name).collect();
    put(transaction, drop_statement, over.len(), &[&over]).await?;
    let kept: Vec<(&String, i64)> =
        kept.iter().filter_map(|(name, until)| until.map(|until| (name, int(until)))).collect();
    let columns: [Value<'_>; 2] = [&column(&kept, |(name, _)| *name), &column(&kept, |(_, until)| *until)];
    put(transaction, put_statement, kept.len(), &columns).await
}

async fn rejects(
    transaction: &Transaction<'_>,
    changes: &Changes,
) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
    let rows = &changes.rejects;
    if rows.is_empty() {
        return Ok(BTreeMap::new());
    }
    let files = rows.iter().map(|(_, _, reject)| json(&reject.file)).collect::<Result<Vec<_>, _>>()?;
    let reasons = rows.iter().map(|(_, _, reject)| json(&reject.reason)).collect::<Result<Vec<_>, _>>()?;
    let columns: [Value<'_>; 5] = [
        &column(rows, |(run, _, _)| *run),
        &column(rows, |(_, source, _)| i64::from(*source)),
        &files,
        &column(rows, |(_, _, reject)| int(reject.line)),
        &reasons,
    ];
    let statement = transaction.prepare_cached(schema::PUT_REJECTS).await?;
    let new = transaction.query(&statement, &columns).await?;
    Ok(new.iter().map(|row| (row.get(0), uint(row.get(1)))).collect())
}
