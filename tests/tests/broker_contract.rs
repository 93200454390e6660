//! The broker contract, run over each backend; and what only RabbitMQ can do to its clients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use windrow_common::broker::Broker;
use windrow_common::broker::address::BrokerAddress;
use windrow_common::ids::Group;
use windrow_tests::broker_contract::{Connector, Site, run_all, run_on};
use windrow_tests::model_broker::{Mischief, ModelBroker};
use windrow_tests::rabbitmq_server::RabbitMqServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rabbitmq_keeps_the_broker_contract() {
    let server = RabbitMqServer::start().await.unwrap();
    let address: BrokerAddress = server.uri().parse().unwrap();
    let failures = run_all(&address).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_embedded_broker_keeps_the_broker_contract() {
    let folder = tempfile::TempDir::new().unwrap();
    let failures = run_all(&BrokerAddress::Embedded(folder.path().to_owned())).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The broker of the in-process model, so that what is shown on it holds for the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_models_broker_keeps_the_broker_contract() {
    let brokers: Mutex<HashMap<Group, ModelBroker>> = Mutex::default();
    let connector: Connector = Arc::new(move |group| {
        let mut brokers = brokers.lock().unwrap();
        let broker =
            brokers.entry(group).or_insert_with(|| ModelBroker::new(Mischief::none(), Arc::new(|_| ())));
        let client = broker.connect("client");
        async move { Ok(client as Arc<dyn Broker>) }.boxed()
    });
    let failures = run_on(|| Site::on(Arc::clone(&connector))).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
