//! What the collector says of the run.

use std::sync::Arc;

use tokio::sync::watch;
use windrow_common::broker::{Broker, BrokerError, Queue};
use windrow_common::envelope::control::{Control, RunNews, RunState};
use windrow_common::ids::{ProcessId, RunId};

/// News is small and taken at once.
const PREFETCH: u16 = 64;

/// The latest news of `run`, from the own queue of the process `process`, until the receiver is dropped.
///
/// # Errors
/// The broker refuses the subscription.
pub async fn follow_news(
    broker: &Arc<dyn Broker>,
    process: &ProcessId,
    run: RunId,
) -> Result<watch::Receiver<Option<RunNews>>, BrokerError> {
    let mut subscription = broker.subscribe(vec![Queue::Process(process.clone())], PREFETCH).await?;
    let (latest, news) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let delivery = tokio::select! {
                () = latest.closed() => return,
                delivery = subscription.next() => delivery,
            };
            let Some(delivery) = delivery else { return };
            match Control::from_message(&delivery.message) {
                Ok(Control::RunNews(heard)) if heard.run == run => {
                    latest.send_replace(Some(heard));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%run, %error, "a message to this process cannot be understood"),
            }
        }
    });
    Ok(news)
}

/// Whether this news means that nothing more of the run is to be published.
pub(crate) fn stops(news: &RunNews) -> bool {
    news.stopping || news.state == RunState::Cancelling || news.state.is_ended()
}
