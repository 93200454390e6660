//! What follows a step: answers and news go out, deliveries are let go of, what nobody understands is
//! parked. All of it beside the next step.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::{FuturesUnordered, TryStreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use windrow_common::broker::parking::Death;
use windrow_common::broker::{Broker, BrokerError, Delivery, Outgoing, Queue, Target};
use windrow_common::crash;
use windrow_common::envelope::completion::{Completion, Overdue};
use windrow_common::envelope::control::{Answer, Control, RunNews};
use windrow_common::ids::{ProcessId, RunId};

use crate::engine::Effects;
use crate::notify::Notifier;

/// Batches being let go of at a time.
const BATCHES: usize = 4;

/// News that wait while the broker takes none; beyond that they are dropped, and told again later.
const NEWS_WAITING: usize = 64;

/// Lets go of what a step has settled.
#[derive(Debug)]
pub(crate) struct Settling {
    broker: Arc<dyn Broker>,
    batches: JoinSet<Result<(), BrokerError>>,
    news: mpsc::Sender<RunNews>,
    notifier: Notifier,
}

impl Settling {
    /// Starts the task that tells news, one after another.
    pub(crate) fn start(broker: Arc<dyn Broker>) -> Self {
        let (news, mut inbox) = mpsc::channel::<RunNews>(NEWS_WAITING);
        let teller = Arc::clone(&broker);
        tokio::spawn(async move {
            while let Some(news) = inbox.recv().await {
                let message = Control::RunNews(news).to_message();
                if let Err(error) = teller.publish(Outgoing { target: Target::Everybody, message }).await {
                    tracing::debug!("news could not be told: {error}");
                }
            }
        });
        Self { broker, batches: JoinSet::new(), news, notifier: Notifier::default() }
    }

    /// Follows up a step. Waits only while too many batches are under way.
    pub(crate) async fn follow(&mut self, batch: Vec<Delivery>, effects: Effects) -> Result<(), BrokerError> {
        for news in effects.news {
            // A full channel means the broker is away: news are told again in 5 s.
            let _ = self.news.try_send(news);
        }
        for notice in effects.notices {
            self.notifier.send(notice, Instant::now());
        }
        if let Some(at) = effects.overdue {
            tokio::spawn(say_overdue(Arc::clone(&self.broker), Overdue { at }));
        }
        if batch.is_empty() {
            return Ok(());
        }
        while self.batches.len() >= BATCHES {
            self.one_batch().await?;
        }
        let broker = Arc::clone(&self.broker);
        self.batches.spawn(async move {
            send_answers(broker.as_ref(), effects.answers).await;
            let settled: FuturesUnordered<_> = batch
                .into_iter()
                .zip(effects.parked)
                .map(|(delivery, died)| let_go(broker.as_ref(), delivery, died))
                .collect();
            settled.try_collect().await
        });
        Ok(())
    }

    /// The next run whose end people were told, or given up. Never returns while there is none.
    pub(crate) async fn told(&mut self) -> RunId {
        self.notifier.told().await
    }

    /// Waits until everything is let go of, and for a while for people to be told. Returns the runs of which they were.
    pub(crate) async fn finish(mut self) -> Result<Vec<RunId>, BrokerError> {
        while !self.batches.is_empty() {
            self.one_batch().await?;
        }
        Ok(self.notifier.finish().await)
    }

    async fn one_batch(&mut self) -> Result<(), BrokerError> {
        match self.batches.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => Ok(()),
        }
    }
}

async fn say_overdue(broker: Arc<dyn Broker>, overdue: Overdue) {
    let message = Completion::Overdue(overdue).to_message(false);
    if let Err(error) = broker.publish(Outgoing { target: Target::Queue(Queue::Completion), message }).await {
        // As long as they are overdue it is said again.
        tracing::debug!("that claims are overdue could not be said: {error}");
    }
}

async fn send_answers(broker: &dyn Broker, answers: Vec<(ProcessId, Answer)>) {
    for (process, answer) in answers {
        let message = Control::Answer(answer).to_message();
        if let Err(error) = broker.publish(Outgoing { target: Target::Process(process), message }).await {
            // Whoever asked asks again.
            tracing::debug!("an answer could not be sent: {error}");
        }
    }
}

async fn let_go(broker: &dyn Broker, delivery: Delivery, died: Option<Death>) -> Result<(), BrokerError> {
    let outgoing = died.map(|death| {
        tracing::error!(
            message = %delivery.message.message_id,
            failed_items = death.failed_items.unwrap_or(0),
            "a message is parked: {}",
            death.reason
        );
        Outgoing { target: Target::Queue(Queue::Parking), message: death.mark(&delivery.message) }
    });
    crash::point("collector.settling");
    broker.settle(delivery, outgoing.into_iter().collect()).await?;
    Ok(())
}
