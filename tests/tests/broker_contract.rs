//! The broker contract, run over each backend; and what only RabbitMQ can do to its clients.

use windrow_common::broker::address::BrokerAddress;
use windrow_tests::broker_contract::run_all;
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
