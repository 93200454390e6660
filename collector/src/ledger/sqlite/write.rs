//! What a transaction writes.

use std::collections::BTreeMap;

use rusqlite::{Transaction, params};

use super::int;
use crate::ledger::{Changes, LedgerError, RunKey, schema, write_claims, write_rates};
use crate::sink::order::Position;
use crate::spool::Extent;

/// Writes all of it. Returns how many rejects were new, by run.
pub(super) fn changes(
    transaction: &Transaction<'_>,
    changes: &Changes,
) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
    runs(transaction, changes)?;
    chunks(transaction, changes)?;
    items(transaction, changes)?;
    places(transaction, changes)?;
    destinations(transaction, changes)?;
    rejects(transaction, changes)
}

fn runs(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let mut put = transaction.prepare_cached(schema::PUT_RUN)?;
    for run in &changes.runs {
        let record = serde_json::to_string(run)
            .map_err(|error| LedgerError::Broken(format!("run {}: {error}", run.id())))?;
        let (id, job) = (run.id().as_str(), run.opened.job.as_str());
        put.execute(params![run.key, id, job, run.is_unfinished(), record])?;
    }
    Ok(())
}

fn chunks(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let mut put = transaction.prepare_cached(schema::PUT_CHUNK)?;
    for (key, chunk) in &changes.chunks {
        let counts = &chunk.counts;
        put.execute(params![
            key.run,
            key.stage,
            key.source,
            int(key.ordinal),
            int(chunk.span.first),
            int(chunk.span.count),
            chunk.settled,
            chunk.digests,
            chunk.hops_text(),
            int(counts.succeeded),
            int(counts.failed),
            int(counts.skipped),
            int(counts.expired),
            int(counts.cancelled),
            int(counts.unknown),
            write_claims(chunk)?,
        ])?;
    }
    Ok(())
}

fn items(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let mut put = transaction.prepare_cached(schema::PUT_ITEMS)?;
    for row in &changes.items {
        put.execute(params![
            row.run,
            row.stage,
            row.source,
            int(row.first),
            int(row.count),
            row.outcome.as_str(),
            row.id,
            row.attempts,
            row.error,
        ])?;
    }
    Ok(())
}

fn places(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    let mut drop_pieces = transaction.prepare_cached(schema::DROP_PIECES)?;
    for (run, position) in &changes.placed {
        let Position { source, ordinal, offset } = *position;
        drop_pieces.execute(params![run, source, int(ordinal), int(offset)])?;
    }
    let mut put_piece = transaction.prepare_cached(schema::PUT_PIECE)?;
    for (run, piece) in &changes.waiting {
        put_piece.execute(params![
            run,
            piece.at.source,
            int(piece.at.ordinal),
            int(piece.at.offset),
            int(piece.next.ordinal),
            int(piece.next.offset),
            piece.extent.segment,
            int(piece.extent.at),
            int(piece.extent.bytes),
        ])?;
    }
    let mut drop_spans = transaction.prepare_cached(schema::DROP_SPANS)?;
    for (run, synced) in &changes.synced {
        drop_spans.execute(params![run, int(*synced)])?;
    }
    let mut put_span = transaction.prepare_cached(schema::PUT_SPAN)?;
    for (run, span) in &changes.spans {
        let Extent { segment, at, bytes } = span.extent;
        put_span.execute(params![run, int(span.at), segment, int(at), int(bytes)])?;
    }
    Ok(())
}

/// What holds for destinations.
fn destinations(transaction: &Transaction<'_>, changes: &Changes) -> Result<(), LedgerError> {
    for (destination, rates) in &changes.limits {
        match rates {
            Some(rates) => {
                let mut put = transaction.prepare_cached(schema::PUT_LIMIT)?;
                put.execute(params![destination, write_rates(rates)?])?
            }
            None => transaction.prepare_cached(schema::DROP_LIMIT)?.execute([destination])?,
        };
    }
    keep_until(transaction, &changes.outages, schema::PUT_OUTAGE, schema::DROP_OUTAGE)?;
    keep_until(transaction, &changes.pauses, schema::PUT_PAUSE, schema::DROP_PAUSE)
}

fn keep_until(
    transaction: &Transaction<'_>,
    kept: &[(String, Option<u64>)],
    put: &str,
    drop: &str,
) -> Result<(), LedgerError> {
    for (destination, until) in kept {
        match until {
            Some(until) => transaction.prepare_cached(put)?.execute(params![destination, int(*until)])?,
            None => transaction.prepare_cached(drop)?.execute([destination])?,
        };
    }
    Ok(())
}

fn rejects(transaction: &Transaction<'_>, changes: &Changes) -> Result<BTreeMap<RunKey, u64>, LedgerError> {
    let mut new = BTreeMap::new();
    let mut put = transaction.prepare_cached(schema::PUT_REJECT)?;
    for (run, source, reject) in &changes.rejects {
        let is_new = put.execute(params![run, source, reject.file, int(reject.line), reject.reason])?;
        *new.entry(*run).or_default() += is_new as u64;
    }
    Ok(new)
}
