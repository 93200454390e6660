//! Both ledgers keep the contract of the seam.

use std::cell::Cell;

use tempfile::TempDir;
use windrow_collector::ledger::postgres::{PostgresAddress, PostgresLedger};
use windrow_collector::ledger::sqlite::SqliteLedger;
use windrow_collector::ledger::{Changes, Ledger, LedgerError};
use windrow_common::ids::Group;
use windrow_tests::ledger_contract::{self, Opening};
use windrow_tests::postgres_server::{PASSWORD, PostgresServer};

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let folder = TempDir::new().unwrap();
    let number = Cell::new(0);
    ledger_contract::holds(|| {
        number.set(number.get() + 1);
        let place = folder.path().join(number.get().to_string());
        std::fs::create_dir(&place).unwrap();
        let open = move || -> futures::future::BoxFuture<'static, _> {
            let opened = SqliteLedger::open(&place).map(|ledger| Box::new(ledger) as Box<dyn Ledger>);
            Box::pin(std::future::ready(opened))
        };
        Box::new(open) as Box<Opening>
    })
    .await;
}

#[tokio::test]
async fn postgres_keeps_the_contract_with_a_schema_per_group() {
    let server = PostgresServer::start();
    let number = Cell::new(0);
    ledger_contract::holds(|| {
        number.set(number.get() + 1);
        let group: Group = format!("group-{}", number.get()).parse().unwrap();
        let address: PostgresAddress = server.url().parse().unwrap();
        let open = move || -> futures::future::BoxFuture<'static, _> {
            let (address, group) = (address.clone(), group.clone());
            Box::pin(async move {
                let ledger = PostgresLedger::open(&address, &group).await?;
                Ok(Box::new(ledger) as Box<dyn Ledger>)
            })
        };
        Box::new(open) as Box<Opening>
    })
    .await;
}

#[tokio::test]
async fn a_server_that_went_down_is_waited_for_and_found_again() {
    let mut server = PostgresServer::start();
    let address: PostgresAddress = server.url().parse().unwrap();
    let mut ledger = PostgresLedger::open(&address, &Group::main()).await.unwrap();
    server.restart();
    let mut tries = 0;
    while let Err(error) = ledger.commit(&Changes::default()).await {
        assert!(matches!(error, LedgerError::Unwritable(_)), "{error:?}");
        tries += 1;
        assert!(tries < 5, "{error}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_address_is_said_without_the_password() {
    let server = PostgresServer::start();
    let wrong = [
        (server.url().replace(PASSWORD, "guessed"), "check user and password"),
        (server.url().replace("/postgres", "/nowhere"), "createdb nowhere"),
        ("postgres://windrow:guessed@127.0.0.1:1/postgres".to_owned(), "is PostgreSQL running there"),
    ];
    for (url, remedy) in wrong {
        let address: PostgresAddress = url.parse().unwrap();
        let error = PostgresLedger::check(&address, &Group::main()).await.unwrap_err().to_string();
        assert!(error.contains(remedy), "{error}");
        assert!(!error.contains("guessed") && !error.contains(PASSWORD), "{error}");
    }
}
