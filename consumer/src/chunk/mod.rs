//! One delivery of a work queue, from its arrival to its settlement.
//!
//! [`mod@triage`] decides what to do with the chunk, and [`suspicion`] what with one that keeps coming back; [`items`] runs
//! its items, [`attempts`] tries one of them, [`report`] turns what became of them into messages. This file connects
//! them and lets go of the delivery.

mod attempts;
mod claims;
mod items;
mod report;
mod suspicion;
#[cfg(test)]
mod tests;
pub(crate) mod triage;

use std::sync::Arc;

use bytes::Bytes;
use windrow_common::broker::parking::Death;
use windrow_common::broker::{BrokerError, Delivery, Outgoing, Queue, Settlement, Target};
use windrow_common::clock;
use windrow_common::envelope::Message;
use windrow_common::envelope::chunk::{ChunkHeader, KIND};
use windrow_common::job::Effect;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Ranges;

use self::items::ChunkRun;
use self::report::SentOn;
use self::suspicion::{Treatment, is_suspect, treatment};
use self::triage::{Circumstances, Triage, held_by_outage, held_by_work, makes_no_call, triage, unanswered};
use crate::questions::Told;
use crate::stage::{StageIntake, StageRunner};
use crate::verdict::End;

/// Works on one delivery and lets go of it. A delivery that was lost, or that a closed broker can't take
/// back, is left to the broker, which delivers it again.
pub(crate) async fn handle(intake: &StageIntake, delivery: Delivery) {
    intake.metrics.chunks_received.inc();
    if delivery.redelivered {
        intake.metrics.deliveries_redelivered.inc();
    }
    let (header, lines) = match ChunkHeader::from_message(&delivery.message) {
        Ok(chunk) => chunk,
        Err(reason) => {
            let parked = park(&delivery, &reason.to_string());
            return settle(intake, delivery, vec![parked]).await;
        }
    };
    let header = suspicion::counted(header, &delivery.queue, delivery.delivery_count);
    let version = intake.version(&header.hash);
    let circumstances = Circumstances {
        redelivered: delivery.redelivered,
        is_alone: matches!(delivery.queue, Queue::Alone(_)),
        job_known: version.is_some(),
        word: intake.runs.word(&header.id.run),
        now_ms: clock::unix_ms(),
    };
    let decided = triage(&header, circumstances);
    match (decided, version) {
        (Triage::Run, Some(version)) => run(intake, version, delivery, header, &lines, None, false).await,
        (Triage::Ask, Some(version)) => {
            let is_never_called = makes_no_call(&header, circumstances) || is_suspect(&header);
            match version.processor.outage_now().filter(|_| !is_never_called) {
                None => ask(intake, version, delivery, header, &lines).await,
                Some(outage) => {
                    let held = held_by_outage(&header, outage, clock::unix_ms());
                    without_running(intake, delivery, header, &lines, held).await;
                }
            }
        }
        (decided, _) => without_running(intake, delivery, header, &lines, decided).await,
    }
}

/// Law 4: a copy asks before it works.
async fn ask(
    intake: &StageIntake,
    version: &Arc<StageRunner>,
    delivery: Delivery,
    header: ChunkHeader,
    lines: &[Bytes],
) {
    intake.metrics.questions_asked.inc();
    let answer = tokio::select! {
        biased;
        answer = intake.questions.ask(&header.id, header.span, header.hop, header.items.clone(), None) => answer,
        () = delivery.lost.cancelled() => return,
    };
    // A collector that says nothing of claims knows none: where the effect must not repeat its word is no answer.
    let is_answer = |told: &Told| version.effect == Effect::AtLeastOnce || told.claimed.is_some();
    match answer.map(|told| told.filter(is_answer)) {
        Ok(Some(told)) => {
            intake.metrics.questions_answered.inc();
            let Some(reason) = reason_to_wait(&header, &told) else {
                return treat(intake, version, delivery, header, lines, &told).await;
            };
            intake.metrics.copies_held.inc();
            tracing::info!(chunk = %header.id, hop = header.hop, reason, "a copy waits");
            let held = held_by_work(&header);
            without_running(intake, delivery, header, lines, held).await;
        }
        Ok(None) => match unanswered(&header, version.effect) {
            Triage::Run => {
                intake.metrics.chunks_unasked.inc();
                tracing::warn!(chunk = %header.id, "no collector answered for ten minutes: running a copy unasked");
                run(intake, version, delivery, header, lines, None, true).await;
            }
            decided => without_running(intake, delivery, header, lines, decided).await,
        },
        Err(error) => tracing::error!(chunk = %header.id, %error, "could not ask about a copy"),
    }
}

/// Why a copy is put aside whole, if it is. What somebody else has claimed of one that came back too often is not to be
/// left behind when that is taken apart.
fn reason_to_wait(header: &ChunkHeader, told: &Told) -> Option<&'static str> {
    if !told.busy.is_empty() {
        return Some("another consumer is still working on it");
    }
    let is_claimed = told.claimed.as_ref().is_some_and(|claimed| !claimed.is_empty());
    (is_claimed && is_suspect(header)).then_some("somebody else has claimed items of it")
}

/// What becomes of the items of a copy that are to run, by how often it came back.
async fn treat(
    intake: &StageIntake,
    version: &Arc<StageRunner>,
    delivery: Delivery,
    header: ChunkHeader,
    lines: &[Bytes],
    told: &Told,
) {
    match treatment(&header, told.run.len()) {
        Treatment::Run => run(intake, version, delivery, header, lines, Some(told), false).await,
        Treatment::Isolate(each) => isolate(intake, version, delivery, &header, lines, &told.run, each).await,
        Treatment::Convict(error) => {
            intake.metrics.items_poisonous.inc();
            tracing::error!(chunk = %header.id, items = %header.items, reason = error.message,
                "an item ended its process again and again, and ends as failed");
            let ended = Triage::EndAll(Outcome::Failed, error);
            without_running(intake, delivery, header, lines, ended).await;
        }
    }
}

async fn run(
    intake: &StageIntake,
    version: &Arc<StageRunner>,
    delivery: Delivery,
    header: ChunkHeader,
    lines: &[Bytes],
    told: Option<&Told>,
    unasked: bool,
) {
    // Until it is settled: its outcomes may wait for the broker.
    let wanted = told.map_or(&header.items, |told| &told.run);
    let _work = intake.in_hand.begin(&header, wanted, clock::now());
    let outgoing = ChunkRun::new(intake, version, &delivery, header, lines, told, unasked).run().await;
    if outgoing.iter().any(|outgoing| outgoing.message.kind == KIND) {
        intake.metrics.chunks_handed_over.inc();
    }
    settle(intake, delivery, outgoing).await;
}

/// Sends the wanted items of a chunk on to run with nothing else in their process.
async fn isolate(
    intake: &StageIntake,
    version: &StageRunner,
    delivery: Delivery,
    header: &ChunkHeader,
    lines: &[Bytes],
    wanted: &Ranges,
    each: u64,
) {
    intake.metrics.chunks_isolated.inc();
    tracing::warn!(chunk = %header.id, returns = header.returns, items = wanted.len(), in_one_message = each,
        "a chunk came back without an answer again and again: its items run alone");
    let items: Vec<SentOn> = report::carried(header, lines)
        .filter(|(index, ..)| wanted.contains(*index))
        .map(|(index, raw, counts)| SentOn { index, raw, counts, due: None })
        .collect();
    let outgoing = report::isolated(header, &intake.key, &items, each, version.compress);
    settle(intake, delivery, outgoing).await;
    intake.isolated.notify_one();
}

async fn without_running(
    intake: &StageIntake,
    delivery: Delivery,
    header: ChunkHeader,
    lines: &[Bytes],
    decided: Triage,
) {
    let outgoing = match decided {
        Triage::PutAside(held, delay) => {
            let target = Target::Delay { delay, stage: intake.key.clone() };
            vec![as_it_is(intake, &delivery, &held, target)]
        }
        Triage::Hold(held) => {
            let target = Target::Queue(Queue::Held(intake.key.clone()));
            let outgoing = vec![as_it_is(intake, &delivery, &held, target)];
            settle(intake, delivery, outgoing).await;
            return intake.runs.was_held(&header.id.run);
        }
        Triage::Isolate(suspect) => {
            let target = Target::Queue(Queue::Alone(intake.key.clone()));
            let outgoing = vec![as_it_is(intake, &delivery, &suspect, target)];
            settle(intake, delivery, outgoing).await;
            return intake.isolated.notify_one();
        }
        Triage::EndAll(outcome, error) => {
            let end = End::without_success(outcome, &error);
            intake.metrics.outcomes_sent.of(outcome).inc_by(header.items.len());
            report::all_ended(&header, lines, &end)
        }
        Triage::Park(reason) => vec![park(&delivery, &reason)],
        // `handle` runs these; without a version of the job there is nothing to run them with.
        Triage::Run | Triage::Ask => return,
    };
    settle(intake, delivery, outgoing).await;
}

/// The same chunk under a header with other counters, and a hold for each of its items.
fn as_it_is(intake: &StageIntake, delivery: &Delivery, held: &ChunkHeader, target: Target) -> Outgoing {
    intake.metrics.holds.inc_by(held.items.len());
    let headers = held.to_message(Bytes::new(), false).headers;
    Outgoing { target, message: Message { headers, ..delivery.message.clone() } }
}

/// Lets go of a delivery (law 2).
async fn settle(intake: &StageIntake, delivery: Delivery, outgoing: Vec<Outgoing>) {
    let message_id = delivery.message.message_id.clone();
    let received_at = delivery.received_at;
    match intake.broker.settle(delivery, outgoing).await {
        Ok(Settlement::Done) => {
            intake.metrics.chunks_settled.inc();
            intake
                .metrics
                .chunk_seconds
                .observe(clock::now().saturating_duration_since(received_at).as_secs_f64());
        }
        Ok(Settlement::Lost) => {
            intake.metrics.chunks_lost.inc();
            tracing::info!(
                chunk = message_id,
                "settled a delivery that was lost meanwhile; its copy will ask"
            );
        }
        Err(BrokerError::Closed) => {
            tracing::warn!(
                chunk = message_id,
                "the broker was closed before a chunk was settled; it will come again"
            );
        }
        Err(error) => {
            tracing::error!(chunk = message_id, %error, "could not settle a chunk; it will come again");
        }
    }
}

/// The message, on its way to where a person will see it; by the collector, when a run waits for it.
fn park(delivery: &Delivery, reason: &str) -> Outgoing {
    let message_id = &delivery.message.message_id;
    tracing::error!(message_id, reason, "parked a message that cannot be handled");
    Death::new(reason, &delivery.queue, clock::unix_ms()).outgoing(&delivery.message)
}
