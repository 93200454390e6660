//! What leaves a chunk before its delivery is let go of: outcomes as they come, every item that waits while the
//! destination is down, and every item that had not begun when the run was paused. So neither an outage nor a pause keeps
//! an item here for the sake of slow calls that have not ended (law 5).

use windrow_common::broker::{BrokerError, Outgoing, Queue, Target};
use windrow_common::clock;
use windrow_common::envelope::chunk::KIND;
use windrow_common::ranges::Ranges;

use super::{Besides, ChunkRun, Publishing, SentOn, Standing, report, sent_on};
use crate::stage::StageIntake;

/// What became of an early publish.
pub(super) struct Published {
    /// The items it sent on, by position.
    left: Vec<usize>,
    result: Result<(), BrokerError>,
}

/// Publishes one after another, each once the one before it is safe.
pub(super) async fn publish(intake: &StageIntake, messages: Vec<Outgoing>, left: Vec<usize>) -> Published {
    for message in messages {
        if let Err(error) = intake.broker.publish(message).await {
            return Published { left, result: Err(error) };
        }
    }
    Published { left, result: Ok(()) }
}

impl<'a> ChunkRun<'a> {
    /// While the destination is down, sends on every item that waits.
    pub(super) fn leave_early(&mut self, publishing: &mut Publishing<'a>) {
        if self.version.processor.outage_now().is_none() {
            return;
        }
        let waits = |(_, slot): &(usize, &super::Slot)| matches!(slot.standing, Standing::Later(_));
        let left: Vec<usize> =
            self.slots.iter().enumerate().filter(waits).map(|(position, _)| position).collect();
        let messages = self.take_leave(&left);
        if !messages.is_empty() {
            publishing.push(Box::pin(publish(self.intake, messages, left)));
        }
    }

    /// Sends what has not begun to the held queue.
    pub(super) fn hold_the_rest(&mut self, publishing: &mut Publishing<'a>) {
        let intake = self.intake;
        let mut left = Vec::new();
        for (position, slot) in self.slots.iter_mut().enumerate().skip(self.next) {
            if matches!(slot.standing, Standing::Open) {
                intake.metrics.holds.inc();
                slot.counts = slot.counts.held();
                left.push(position);
            }
        }
        self.next = self.slots.len();
        let mut messages = self.take_leave(&left);
        if messages.is_empty() {
            return;
        }
        for message in messages.iter_mut().filter(|message| message.message.kind == KIND) {
            message.target = Target::Queue(Queue::Held(intake.key.clone()));
        }
        let run = self.header.id.run.clone();
        publishing.push(Box::pin(async move {
            let published = publish(intake, messages, left).await;
            intake.runs.was_held(&run);
            published
        }));
    }

    /// The remainders of these items, then the completion that names them, as at the end (law 2). A lost delivery sends
    /// nothing on: its copy has the items.
    fn take_leave(&mut self, left: &[usize]) -> Vec<Outgoing> {
        if left.is_empty() || self.lost.is_cancelled() {
            return Vec::new();
        }
        let items: Vec<SentOn> = left.iter().filter_map(|position| sent_on(&self.slots[*position])).collect();
        let now = clock::now();
        for (position, item) in left.iter().zip(&items) {
            self.slots[*position].standing = Standing::Leaving(item.due.unwrap_or(now));
        }
        let (header, compress) = (&self.header, self.version.compress);
        let mut messages = report::remainders(header, &self.intake.key, &items, now, compress);
        let handed_over = Ranges::from_ascending(items.iter().map(|item| item.index));
        let released = self.claims.as_ref().map_or_else(Ranges::new, |claims| claims.release(&handed_over));
        let besides = Besides { handed_over, released, ..self.besides() };
        let completions = report::completions(header, &[], &besides);
        messages.extend(completions.iter().map(|completion| report::to_collector(completion, compress)));
        messages
    }

    /// What could not be published is no loss. Outcomes: the broker is closing, so the delivery is not settled, and the
    /// copy of it will be asked about. Items: they are still here, and leave with the delivery.
    pub(super) fn note_published(&mut self, published: Published) {
        if let Err(error) = &published.result {
            tracing::warn!(chunk = %self.header.id, %error, "could not publish outcomes");
        }
        for position in published.left {
            let slot = &mut self.slots[position];
            if let Standing::Leaving(due) = slot.standing {
                slot.standing =
                    if published.result.is_ok() { Standing::Reported } else { Standing::Later(due) };
            }
        }
    }
}
