//! What the end-to-end suites and benchmarks are built from: real brokers, real processes, and a destination
//! that remembers every call.

pub mod account;
pub mod broker_contract;
pub mod desk;
pub mod destination;
pub mod fleet;
pub mod front_door;
pub mod ledger_contract;
pub mod metrics;
pub mod model_broker;
pub mod own_network;
pub mod postgres_server;
pub mod process;
pub mod proxy;
pub mod rabbitmq_cluster;
pub mod rabbitmq_installation;
mod rabbitmq_place;
pub mod rabbitmq_server;
pub mod seeded;
pub mod small_disk;
