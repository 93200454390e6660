//! A process's own queue: answers to its questions (law 4), and what the collector tells everybody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use windrow_common::broker::{Broker, BrokerError, Outgoing, Queue, Subscription, Target};
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{Claim, Completion, Question};
use windrow_common::envelope::control::Control;
use windrow_common::ids::{ChunkId, ProcessId};
use windrow_common::ranges::Ranges;

use crate::fleet::Fleet;
use crate::runs::RunWords;

/// How long a question may go unanswered, counted from its confirmation.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The answer to a question.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// The items to run: neither settled, nor handed to a higher hop, nor claimed by somebody else.
    pub(crate) run: Ranges,
    /// Those of them that a live consumer is still working on.
    pub(crate) busy: Ranges,
    /// Those that somebody else has claimed. None from a collector that knows nothing of claims.
    pub(crate) claimed: Option<Ranges>,
}

/// Asks the collector, and hears it.
#[derive(Debug)]
pub(crate) struct Questions {
    process: ProcessId,
    broker: Arc<dyn Broker>,
    pending: Mutex<HashMap<String, oneshot::Sender<Told>>>,
    runs: Arc<RunWords>,
    fleet: Arc<Fleet>,
}

impl Questions {
    /// Opens this process's own queue, and listens to it in a task that ends with the broker. News go to `runs`,
    /// what the collector says of the fleet to `fleet`.
    pub(crate) async fn open(
        process: ProcessId,
        broker: Arc<dyn Broker>,
        runs: Arc<RunWords>,
        fleet: Arc<Fleet>,
    ) -> Result<Arc<Self>, BrokerError> {
        let subscription = broker.subscribe(vec![Queue::Process(process.clone())], 1_000).await?;
        let questions = Arc::new(Self { process, broker, pending: Mutex::default(), runs, fleet });
        tokio::spawn(Arc::clone(&questions).listen(subscription));
        Ok(questions)
    }

    /// Which of these items of a chunk at `hop` to run, and to claim them if `claim` says so. None when no answer came
    /// within [`ANSWER_TIMEOUT`].
    pub(crate) async fn ask(
        &self,
        id: &ChunkId,
        span: Span,
        hop: u32,
        items: Ranges,
        claim: Option<Claim>,
    ) -> Result<Option<Told>, BrokerError> {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).insert(token.clone(), sender);
        let (id, reply_to) = (id.clone(), self.process.clone());
        let question = Question { id, span, hop, items, reply_to, token: token.clone(), claim };
        let message = Completion::Question(question).to_message(false);
        let asked = self.broker.publish(Outgoing { target: Target::Queue(Queue::Completion), message }).await;
        let answer = match asked {
            Ok(()) => Ok(tokio::time::timeout(ANSWER_TIMEOUT, receiver).await.ok().and_then(Result::ok)),
            Err(error) => Err(error),
        };
        lock(&self.pending).remove(&token);
        answer
    }

    async fn listen(self: Arc<Self>, mut subscription: Subscription) {
        while let Some(delivery) = subscription.next().await {
            match Control::from_message(&delivery.message) {
                Ok(Control::Answer(answer)) => {
                    let waiting = lock(&self.pending).remove(&answer.token);
                    if let (Some(waiting), Ok(run), Ok(busy)) = (waiting, answer.items(), answer.busy()) {
                        // The asker may have stopped waiting.
                        let _ = waiting.send(Told { run, busy, claimed: answer.claimed });
                    }
                }
                Ok(Control::RunNews(news)) => self.runs.hear(&news),
                Ok(Control::Beat(beat)) => self.fleet.beat(beat),
                Ok(Control::Lease(lease)) => self.fleet.lend(&lease),
                Ok(Control::Outage(outage)) => self.fleet.hear(&outage),
                Ok(Control::Paused(throttle)) => self.fleet.hear_pause(&throttle),
                // Only a collector is told these.
                Ok(Control::Demand(_) | Control::Found(_) | Control::Throttled(_) | Control::Working(_)) => {}
                Err(error) => tracing::warn!(reason = %error, "a message to this process cannot be read"),
            }
        }
    }
}

/// The map behind this lock is whole after every statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
