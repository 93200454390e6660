//! `windrow topology`: the exchanges and queues of a set of job files.

use std::time::Duration;

use windrow_common::broker::address::{BrokerAddress, connect};
use windrow_common::broker::rabbitmq::RabbitMq;
use windrow_common::broker::{Broker, Queue};
use windrow_common::ids::StageKey;
use windrow_common::job::JobSet;

use crate::args::{TopologyAction, TopologyArgs, TopologyTarget};
use crate::output::{counted, print};
use crate::{Failure, exit};

/// How long the broker is given to take leave.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Declares, shows or checks.
pub(crate) async fn topology(arguments: &TopologyArgs) -> Result<(), Failure> {
    match &arguments.action {
        TopologyAction::Apply(target) => apply(target).await,
        TopologyAction::Show(target) => show(target).await,
        TopologyAction::Check(target) => check(target).await,
    }
}

async fn apply(target: &TopologyTarget) -> Result<(), Failure> {
    let (queues, address) = (queues(target)?, address(target)?);
    let broker = connect(&address, &target.group).await?;
    for (name, queue) in &queues {
        broker.ensure(queue).await?;
        print(format_args!("declared  {name}"))?;
    }
    broker.close(CLOSE_GRACE).await;
    Ok(())
}

async fn show(target: &TopologyTarget) -> Result<(), Failure> {
    let (queues, address) = (queues(target)?, address(target)?);
    let broker = connect(&address, &target.group).await?;
    for (name, queue) in &queues {
        let depth = broker.depth(queue).await?;
        print(format_args!("{:>10} ready {:>10} in hand  {name}", depth.ready, depth.unsettled))?;
    }
    broker.close(CLOSE_GRACE).await;
    Ok(())
}

async fn check(target: &TopologyTarget) -> Result<(), Failure> {
    let queues: Vec<Queue> = queues(target)?.into_iter().map(|(_, queue)| queue).collect();
    let BrokerAddress::RabbitMq(address) = address(target)? else {
        return print("the embedded broker makes its queues as they are needed: there is nothing to check");
    };
    let broker = RabbitMq::connect(&address, &target.group).await?;
    let found = broker.compare(&queues).await?;
    broker.close(CLOSE_GRACE).await;
    for difference in &found.differences {
        print(difference)?;
    }
    if found.differences.is_empty() {
        return print(format_args!(
            "{} queues and exchanges are as the job files need them (a broker cannot be asked about bindings: \
             `windrow topology apply` makes those that are missing)",
            found.compared
        ));
    }
    Err(Failure {
        code: exit::ERROR,
        message: Some(format!(
            "{} of {} queues and exchanges",
            counted(found.differences.len() as u64, "difference"),
            found.compared
        )),
    })
}

fn address(target: &TopologyTarget) -> Result<BrokerAddress, Failure> {
    target.broker.parse().map_err(|error| Failure::usage(format!("--broker: {error}")))
}

/// Every queue the job files need, with a name for people.
fn queues(target: &TopologyTarget) -> Result<Vec<(String, Queue)>, Failure> {
    let jobs = JobSet::load_folder(&target.jobs).map_err(Failure::usage)?;
    let mut keys: Vec<StageKey> =
        jobs.iter().flat_map(|job| job.stages.iter().map(|stage| job.stage_key(stage))).collect();
    keys.sort();
    keys.dedup();
    let mut queues =
        vec![("completion".to_owned(), Queue::Completion), ("parking".to_owned(), Queue::Parking)];
    for key in keys {
        queues.push((format!("{key} work"), Queue::Work(key.clone())));
        queues.push((format!("{key} due"), Queue::Due(key.clone())));
        queues.push((format!("{key} held"), Queue::Held(key.clone())));
        queues.push((format!("{key} alone"), Queue::Alone(key)));
    }
    Ok(queues)
}
