//! The operator's commands that look at a broker, and act on what is there: `windrow topology` and `windrow dead`.

mod dead;
mod topology;

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use lapin::options::BasicGetOptions;
use lapin::{Connection, ConnectionProperties};
use windrow_common::broker::Queue;
use windrow_common::broker::address::connect;
use windrow_common::ids::{Group, StageKey};
use windrow_tests::desk::Desk;
use windrow_tests::rabbitmq_server::RabbitMqServer;

/// One delivery more than a message may have.
const TOO_OFTEN: usize = 51;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operator_finds_what_is_wrong_on_rabbitmq() {
    let server = RabbitMqServer::start().await.unwrap();
    topology::what_differs_is_told_and_nothing_is_changed(&server).await;
    topology::put_right(&server).await;
    dead::dead_letters_on(&server.uri(), wear_on_rabbitmq).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operator_finds_dead_letters_on_the_embedded_broker() {
    let folder = tempfile::TempDir::new().unwrap();
    let queue = folder.path().join("queue");
    dead::dead_letters_on(&format!("embedded:{}", queue.display()), wear_on_embedded).await;
    // The folder of a run is what these commands look at unless told otherwise, and they make none.
    let desk = Desk::new("");
    desk.windrow(&["dead", "list"]).ended(1, &["there is no broker in .windrow/queue", "--data-dir"]);
    assert!(!desk.path(".windrow").exists());
    let data = folder.path().to_str().unwrap();
    desk.windrow(&["dead", "list", "--data-dir", data]).ended(0, &["no dead letters"]);
}

/// A channel that ends without an acknowledgement is what the death of a consumer looks like.
fn wear_on_rabbitmq(uri: &str) -> BoxFuture<'_, ()> {
    async move {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
        let mut deliveries = 0;
        while deliveries < TOO_OFTEN {
            let channel = connection.create_channel().await.unwrap();
            let queue = "windrow.v1.work.main.dead.call";
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
            deliveries += usize::from(got.is_some());
            channel.close(200, "died".into()).await.unwrap();
            if got.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        connection.close(200, "done".into()).await.unwrap();
    }
    .boxed()
}

fn wear_on_embedded(uri: &str) -> BoxFuture<'_, ()> {
    async move {
        let stage = StageKey { job: "dead".parse().unwrap(), stage: "call".parse().unwrap() };
        for _ in 0..TOO_OFTEN {
            let broker = connect(&uri.parse().unwrap(), &Group::main()).await.unwrap();
            let mut deliveries = broker.subscribe(vec![Queue::Work(stage.clone())], 1).await.unwrap();
            deliveries.next().await.unwrap();
            broker.close(Duration::from_secs(5)).await;
        }
    }
    .boxed()
}
